"""Counting work from a jaxpr: against XLA's count, against sums by hand."""

import jax
import jax.numpy as jnp
import pytest

from lawm_jax.aot.flops import Chip, count, roofline
from lawm_jax.nn import blocks
from lawm_jax.nn.blocks import Stack


def zeros(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def loop(w, x):
    """Multiplies by each of the stacked matrices in turn."""
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]


def unrolled(w, x):
    for i in range(len(w)):
        x = x @ w[i]
    return x


def test_a_loops_products_are_counted_as_xla_counts_them_unrolled():
    args = zeros(5, 64, 64), zeros(48, 64)
    gradient = lambda f: lambda w, x: jax.grad(lambda w, x: f(w, x).sum(), (0, 1))(w, x)  # noqa: E731
    for wrap in (lambda f: f, gradient):
        xla = jax.jit(wrap(unrolled)).lower(*args).compile().cost_analysis()["flops"]
        flops, _ = count(wrap(loop), *args)
        # XLA adds element-wise work, and folds the products by a gradient of ones.
        assert flops == pytest.approx(xla, rel=0.1)
        once = jax.jit(wrap(loop)).lower(*args).compile().cost_analysis()["flops"]
        assert once < 0.5 * flops  # why XLA's count of a loop won't do


@pytest.mark.parametrize("short", [0, 10**6], ids=["per step", "masked"])
def test_a_block_costs_what_its_matrices_and_its_frame_causal_attention_do(short, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    B, T, N, D, depth = 2, 3, 16, 32, 4
    module, x = Stack(D, 2, depth), zeros(B, T, N, D)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    flops, _ = count(module.apply, params, x)
    seen = T * (T + 1) // 2 if short == 0 else T * T  # pairs of frames
    assert flops == depth * B * (2 * T * N * 12 * D**2 + 2 * 2 * seen * N**2 * D)


def test_training_costs_three_forward_passes_and_more_where_blocks_are_computed_again():
    x, ratios = zeros(2, 3, 16, 32), []
    for remat in ("", "dots", "blocks"):
        module = Stack(32, 2, 4, remat=remat)
        params = jax.eval_shape(module.init, jax.random.key(0), x)
        loss = lambda p, x: jnp.sin(module.apply(p, x)).sum()  # noqa: B023, E731
        both = count(jax.grad(loss, (0, 1)), params, x)[0]
        ratios.append(both / count(loss, params, x)[0])
    assert ratios[0] == 3
    assert 3 < ratios[1] < 3.3  # attention alone
    assert 3.6 < ratios[2] <= 4  # a block's last product need not be computed again


def test_a_convolution_costs_its_kernel_at_every_place():
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    flops, size = count(convolve, zeros(2, 8, 8, 5), zeros(3, 3, 5, 7))
    assert flops == 2 * (2 * 8 * 8 * 7) * (3 * 3 * 5)
    assert size == 4 * (2 * 8 * 8 * (5 + 7) + 3 * 3 * 5 * 7)


def test_products_move_their_operands_and_results_and_attention_keeps_its_logits():
    bf16 = {"dtype": jnp.bfloat16}
    assert count(jnp.matmul, zeros(8, 16, **bf16), zeros(16, 4, **bf16))[1] == 2 * (
        8 * 16 + 16 * 4 + 8 * 4
    )
    q = zeros(2, 3, 64, 16, **bf16)  # logits [2, 3, 64, 64] and weights are not among it
    assert count(blocks.attend, q, q, q)[1] == 2 * 4 * (2 * 3 * 64 * 16)
    logits = 2 * 3 * 64 * 64  # in float32, the weights in bfloat16; each is written and read
    moved = count(blocks.attend, q, q, q, fused=False)[1]
    assert moved == 2 * 4 * (2 * 3 * 64 * 16) + 2 * (4 + 2) * logits


def test_the_dearer_branch_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count(either, zeros(8, 8))[0] == 2 * 2 * 8**3


def test_a_chip_needs_the_longer_of_computing_and_moving():
    chip = Chip(memory=1.0, flops=100.0, bandwidth=10.0, source="")
    assert roofline(500, 20, chip) == (5.0, "compute")
    assert roofline(100, 20, chip) == (2.0, "memory")

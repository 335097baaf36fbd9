"""Attention, rotary positions and the stack of blocks, against numpy and against plain loops."""

import importlib.util
import inspect
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lawm_jax.aot import flops
from lawm_jax.nn import blocks, cudnn, rope, splash
from lawm_jax.nn.blocks import Block, Stack
from lawm_jax.nn.inverse import InverseDynamics
from lawm_jax.nn.predictor import Predictor
from lawm_jax.train import sharding

DEPTH, WIDTH, HEADS = 3, 24, 2


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense_attention(q, k, v, mask):
    """Computes attention of flat tokens, one query and head at a time, in float64."""
    B, heads, Q, dim = q.shape
    out = np.zeros(q.shape)
    for b in range(B):
        for head in range(heads):
            for i in range(Q):
                logits = k[b, head].astype(np.float64) @ q[b, head, i] / dim**0.5
                weight = np.exp(logits - logits.max()) * mask[i]
                out[b, head, i] = weight / weight.sum() @ v[b, head]
    return out


@pytest.mark.parametrize("short", [0, 256], ids=["per step", "masked"])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_a_dense_reference(causal, short, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    q, k, v = (draw((2, 2, 3, 4, 8), i) for i in range(3))
    step = np.arange(12) // 4
    mask = step[:, None] >= step if causal else np.ones((12, 12))
    flat = (x.reshape(2, 2, 12, 8) for x in (q, k, v))
    expected = dense_attention(*flat, mask).reshape(q.shape)
    np.testing.assert_allclose(blocks.attention(q, k, v, causal), expected, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_of_tpus_equals_attention_elsewhere(causal):
    mesh = sharding.make_mesh(devices=jax.devices()[:1]).abstract_mesh
    qkv = [jnp.array(draw((1, 1, 2, 128, 16), i)) for i in range(3)]

    def kernel(q, k, v):
        with jax.sharding.use_abstract_mesh(mesh):
            return splash.attention(q, k, v, causal, mesh, interpret=True)

    def both(run):
        loss = lambda *qkv: jnp.sin(run(*qkv)).sum()  # noqa: E731
        return jax.jit(lambda *qkv: (run(*qkv), jax.grad(loss, (0, 1, 2))(*qkv)))(*qkv)

    (out, grads), (expected, expected_grads) = map(
        both, (kernel, lambda *qkv: dense_jax(*qkv, causal))
    )
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for grad, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, other, atol=1e-4)
        assert np.abs(other).max() > 0.1


def dense_jax(q, k, v, causal):
    """Computes attention by JAX's own function, with a mask."""
    B, heads, T, N, dim = q.shape
    step = np.arange(T * N) // N
    mask = jnp.array(step[:, None] >= step) if causal else None
    flat = (x.reshape(B, heads, T * N, dim).swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(*flat, mask=mask).swapaxes(1, 2).reshape(q.shape)


def mesh_of(platform, devices):
    """Returns an abstract mesh of absent devices."""
    kind = {"tpu": "TPU v5", "cpu": "cpu", "cuda": "NVIDIA H100 80GB HBM3"}[platform]
    about = dict(device_kind=kind, num_cores=None, platform=platform)
    known = inspect.signature(jax.sharding.AbstractDevice).parameters  # jax 0.7: no platform
    device = jax.sharding.AbstractDevice(**{k: v for k, v in about.items() if k in known})
    return jax.sharding.AbstractMesh(
        (devices, 1), ("data", "fsdp"), (blocks.AUTO,) * 2, abstract_device=device
    )


def test_the_kernel_is_for_tpus_whose_mesh_is_known():
    qkv = [jax.ShapeDtypeStruct((4, 2, 3, 128, 16), jnp.float32)] * 3
    trace = lambda *qkv: str(jax.make_jaxpr(lambda *x: blocks.attention(*x, True))(*qkv))  # noqa: E731
    assert "pallas_call" not in trace(*qkv)
    for platform, devices, taken in [("tpu", 4, True), ("cpu", 4, False), ("tpu", 3, False)]:
        with jax.sharding.use_abstract_mesh(mesh_of(platform, devices)):
            assert ("pallas_call" in trace(*qkv)) == taken
            odd = jax.ShapeDtypeStruct((4, 2, 3, 100, 16), jnp.float32)
            assert blocks.kernel(odd) is None  # no whole blocks


@pytest.mark.parametrize("block, error", [(128, ""), (384, ""), (256, "got 256"), (96, "got 96")])
def test_the_blocks_of_the_kernel_of_tpus_can_be_chosen(block, error):
    q = jax.ShapeDtypeStruct((4, 2, 3, 128, 16), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh_of("tpu", 4)):
        trace = lambda: jax.make_jaxpr(lambda x: blocks.attention(x, x, x, True, block))(q)  # noqa: E731
        if error:
            with pytest.raises(ValueError, match=f"block: .* divides 3 \\* 128 tokens, {error}"):
                trace()
        else:
            assert f"{block},16" in str(trace())  # blocks of queries


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T", [1, 3])
def test_cudnns_calls_equal_a_dense_reference_on_all_devices(T, causal, monkeypatch):
    monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")  # the same function, without a GPU
    mesh = sharding.make_mesh().abstract_mesh
    q, k, v = (jnp.array(draw((8, 2, T, 4, 8), i)) for i in range(3))

    def both(run):
        loss = lambda *qkv: jnp.sin(run(*qkv)).sum()  # noqa: E731
        return jax.jit(lambda *qkv: (run(*qkv), jax.grad(loss, (0, 1, 2))(*qkv)))(q, k, v)

    with jax.set_mesh(sharding.make_mesh()):
        out, grads = both(lambda *qkv: cudnn.attention(*qkv, causal, mesh))
    expected, expected_grads = both(lambda *qkv: dense_jax(*qkv, causal))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for grad, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, other, atol=1e-5)


def test_cudnn_is_for_gpus_in_half_precision_and_its_absence_is_logged(monkeypatch, caplog):
    shape = 4, 2, 3, 128, 16
    half, single = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    one = jax.ShapeDtypeStruct((4, 2, 1, 256, 16), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(mesh_of("cuda", 4)):
        cudnn.supported.cache_clear()
        if importlib.util.find_spec("jax_cuda12_plugin") is None:
            assert blocks.kernel(half) is None
            assert "instead of cuDNN: cuDNN is not detected" in caplog.text
        monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
        cudnn.supported.cache_clear()
        assert blocks.kernel(half).func is cudnn.attention
        assert blocks.kernel(one).func is cudnn.attention
        assert blocks.kernel(single) is None
    assert blocks.kernel(half) is None  # the mesh is unknown
    cudnn.supported.cache_clear()


@pytest.mark.parametrize("capability, taken", [("7.5", False), ("8.0", True), ("10.0", True)])
def test_old_gpus_do_not_use_cudnn(capability, taken, monkeypatch, caplog):
    device = types.SimpleNamespace(compute_capability=capability, device_kind="Tesla T4")
    monkeypatch.setattr(cudnn, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert cudnn.supported.__wrapped__(256, 2, 16, jnp.bfloat16) == taken
    assert ("Tesla T4 has compute capability" in caplog.text) != taken


@pytest.mark.parametrize("shared", [1, 2], ids=["one context", "a context each"])
def test_cached_attention_sees_all_past_steps_and_itself(shared):
    q, k, v = (draw((2, 2, 1, 4, 8), i) for i in range(3))
    far = [draw((shared, 2, 3, 4, 8), i) for i in (3, 4)]
    near = [draw((2, 2, 1, 4, 8), i) for i in (5, 6)]
    out = blocks.cached_attention(q, k, v, (tuple(far), tuple(near)))
    steps = (
        np.concatenate([np.repeat(a, 2 // shared, 0), b, c], 2)
        for a, b, c in zip(far, near, (k, v), strict=True)
    )
    keys, values = (x.reshape(2, 2, 20, 8) for x in steps)
    expected = dense_attention(q[:, :, 0], keys, values, np.ones((4, 20)))
    np.testing.assert_allclose(out[:, :, 0], expected, atol=1e-5)


def test_layer_norm_equals_numpy():
    x = 3 * draw((2, 3, 8)) + 1
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(blocks.layer_norm(jnp.array(x)), expected, atol=1e-5)


def rotary(steps, tokens, head_dim, start, tiled, grid):
    """Computes the rotary angles one number at a time: [T, N, head_dim]."""
    side, part = int(tokens**0.5), 2 * ((head_dim // 3) // 2)
    stretch = (grid - 1) / (side - 1) if grid else 1.0
    angles = np.zeros((steps, tokens, head_dim))
    for t in range(steps):
        for n in range(tokens):
            for axis, place in enumerate((start + t, n // side * stretch, n % side * stretch)):
                for i in range(part):
                    j = i % (part // 2) if tiled else i // 2
                    angles[t, n, axis * part + i] = place * 10000 ** (-j / (part / 2))
    return angles


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-7), ("bfloat16", 8e-3)])
def test_gelu_and_its_gradient_equal_scipys(dtype, tolerance):
    x = np.linspace(-8, 8, 2001).astype(dtype).astype(np.float32)
    y, slope = jax.vmap(jax.value_and_grad(blocks.gelu))(jnp.asarray(x, dtype))
    assert y.dtype == slope.dtype == dtype
    phi = scipy.stats.norm.cdf(x.astype(np.float64))
    size = 1 + np.abs(x)
    assert (np.abs(y.astype(np.float32) - x * phi) / size).max() < tolerance
    expected = phi + x * scipy.stats.norm.pdf(x)
    assert (np.abs(slope.astype(np.float32) - expected) / size).max() < tolerance


def test_products_of_matrices_equal_those_of_more_axes():
    x, kernel = draw((2, 3, 4, 8)), draw((8, 3, 5), 1)
    ours = lambda x, kernel: blocks.product(x, kernel, (((3,), (0,)), ((), ())), precision=None)  # noqa: E731
    np.testing.assert_allclose(ours(x, kernel), np.tensordot(x, kernel, 1), atol=1e-5)
    dense = nn.DenseGeneral((3, 5))
    params = dense.init(jax.random.key(0), x)
    got = dense.clone(dot_general=blocks.product).apply(params, x)
    np.testing.assert_allclose(got, dense.apply(params, x), atol=1e-5)


@pytest.mark.parametrize("tiled, grid", [(False, 0), (True, 0), (False, 16)])
def test_rotary_tables_equal_a_loop_over_positions_and_channels(tiled, grid):
    angles = rotary(3, 9, 16, 5, tiled, grid)
    cos, sin = rope.table(3, 9, 16, start=5, tiled=tiled, grid=grid)
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-5)


def test_interleaved_rotation_turns_pairs_as_complex_numbers():
    x, angles = draw((2, 2, 3, 9, 16)), rotary(3, 9, 16, 0, False, 0)
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles[None, None, :, :, ::2])
    expected = np.stack([turned.real, turned.imag], -1).reshape(x.shape)
    np.testing.assert_allclose(rope.rotate(x, *rope.table(3, 9, 16)), expected, atol=1e-5)


def test_tiled_rotation_turns_the_members_of_a_pair_by_their_own_angles():
    x, angles = draw((2, 2, 3, 9, 16)), rotary(3, 9, 16, 0, True, 0)
    expected = np.zeros(x.shape)
    for c in range(16):
        partner = -x[..., c + 1] if c % 2 == 0 else x[..., c - 1]
        angle = angles[None, None, :, :, c]
        expected[..., c] = x[..., c] * np.cos(angle) + partner * np.sin(angle)
    out = rope.rotate(x, *rope.table(3, 9, 16, tiled=True))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_interleaved_rotations_depend_on_relative_positions_alone():
    q, k = draw((1, 1, 3, 4, 16)), draw((1, 1, 3, 4, 16), 1)

    def logits(start):
        a, b = (rope.rotate(x, *rope.table(3, 4, 16, start=start)) for x in (q, k))
        return jnp.einsum("bhtnd,bhsmd->btnsm", a, b)

    np.testing.assert_allclose(logits(0), logits(7), atol=1e-4)
    unrotated = np.einsum("bhtnd,bhsmd->btnsm", q, k)
    assert np.abs(logits(0) - unrotated).max() > 0.1


@pytest.mark.parametrize(
    "args, message",
    [((2, 8, 16), "tokens: expected a square number .*got 8"), ((2, 9, 4), "head_dim: .*got 4")],
)
def test_a_table_that_cannot_be_is_an_error(args, message):
    with pytest.raises(ValueError, match=message):
        rope.table(*args)


@pytest.fixture(scope="module")
def stack():
    """Returns a conditioned stack, random parameters, x [2, 3, 4, D] and a condition [2, 3, 5]."""
    module = Stack(WIDTH, HEADS, DEPTH, conditioned=True)
    x, condition = jnp.array(draw((2, 3, 4, WIDTH))), jnp.array(draw((2, 3, 5), 1))
    params = jax.jit(module.init)(jax.random.key(0), x, condition)["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda p: p + jnp.array(0.3 * rng.normal(size=p.shape), jnp.float32), params
    )
    return module, params, x, condition


def outcome(run, *args):
    """Returns the output, and the gradients of a nonlinear scalar of it to all arguments."""
    loss = lambda *args: jnp.sin(run(*args)).sum()  # noqa: E731
    return jax.jit(lambda *args: (run(*args), jax.grad(loss, argnums=(0, 1, 2))(*args)))(*args)


def assert_close(a, b, tolerance=1e-5):
    """Compares trees, each leaf relative to its largest element."""

    def close(a, b):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)

    jax.tree.map(close, a, b)


@pytest.fixture(scope="module")
def expected(stack):
    """Output and gradients of `stack`, by a plain loop over its blocks."""
    module, params, x, condition = stack
    block = Block(WIDTH, HEADS, conditioned=True)

    def loop(params, x, condition):
        for i in range(DEPTH):
            layer = jax.tree.map(lambda p: p[i], params["blocks"])  # noqa: B023
            x, _ = block.apply({"params": layer}, x, rope.table(3, 4, WIDTH // HEADS), condition)
        return x

    return outcome(loop, params, x, condition)


@pytest.mark.parametrize("options", [{}, {"remat": "dots"}, {"remat": "blocks"}], ids=str)
def test_scanned_blocks_equal_a_loop_over_blocks(stack, expected, options):
    module, params, x, condition = stack
    module = module.clone(**options)
    run = lambda params, x, condition: module.apply({"params": params}, x, condition)  # noqa: E731
    got = outcome(run, params, x, condition)
    assert float(np.abs(expected[1][2]).min()) > 0  # of the condition: the inverse model's signal
    assert_close(got, expected)


def test_what_is_computed_again_has_a_name():
    with pytest.raises(ValueError, match="remat: expected '' or one of .*dots.*, got 'all'"):
        jax.eval_shape(Stack(24, 2, 3, remat="all").init, jax.random.key(0), draw((1, 2, 4, 24)))


def test_a_cached_stack_equals_the_uncached_one(stack):
    module, params, x, condition = stack
    apply = lambda *args, **kw: module.apply({"params": params}, *args, **kw)  # noqa: E731
    full, (keys, values) = apply(x, condition, keep=True)
    assert keys.shape == values.shape == (DEPTH, 2, HEADS, 3, 4, WIDTH // HEADS)
    step, past = jax.jit(lambda *args: apply(*args, keep=True)), ()
    for t in range(3):
        out, new = step(x[:, t : t + 1], condition[:, t : t + 1], past)
        past = (*past, new)
        assert_close(out, full[:, t : t + 1])
    joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=3), *past)
    assert_close(joined, (keys, values))


def test_conditioned_blocks_start_as_the_identity():
    module = Stack(WIDTH, HEADS, DEPTH, conditioned=True)
    x, condition = jnp.array(draw((2, 3, 4, WIDTH))), jnp.array(draw((2, 3, 5), 1))
    out, _ = module.init_with_output(jax.random.key(0), x, condition)
    np.testing.assert_array_equal(out, x)


def test_blocks_without_a_condition_do_not():
    module, x = Stack(WIDTH, HEADS, DEPTH), jnp.array(draw((2, 3, 4, WIDTH)))
    out, _ = module.init_with_output(jax.random.key(0), x)
    assert np.abs(out - x).mean() > 0.1


def test_a_steps_condition_modulates_that_steps_tokens_only(stack):
    module, params, x, condition = stack
    layers = params["blocks"]
    silent = jax.tree.map(jnp.zeros_like, layers["proj"])  # attention, which mixes steps, is off
    params = {"blocks": layers | {"proj": silent}}
    apply = lambda c: module.apply({"params": params}, x, c)  # noqa: E731
    before = np.asarray(apply(condition))
    for step in range(3):
        after = np.asarray(apply(condition.at[:, step].add(1.0)))
        changed = np.abs(after - before).max(axis=(2, 3))
        np.testing.assert_array_equal(np.delete(changed, step, axis=1), 0)
        assert changed[:, step].min() > 0.1


@pytest.mark.parametrize("short", [0, 256], ids=["per step", "masked"])
def test_no_gradient_flows_to_later_steps(stack, short, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    module, params, x, condition = stack

    def first(x, condition):
        return jnp.sin(module.apply({"params": params}, x, condition)[:, 1]).sum()

    for grad in jax.grad(first, argnums=(0, 1))(x, condition):
        size = np.abs(grad).reshape(2, 3, -1).max(-1)
        np.testing.assert_array_equal(size[:, 2], 0)
        assert size[:, :2].min() > 1e-3


def test_attention_that_is_not_causal_sees_later_steps():
    module, x = Stack(WIDTH, HEADS, 1, causal=False), jnp.array(draw((2, 3, 4, WIDTH)))
    params = module.init(jax.random.key(0), x)
    grad = jax.grad(lambda x: jnp.sin(module.apply(params, x)[:, 0]).sum())(x)
    assert np.abs(grad[:, 2]).max() > 1e-4


def products(jaxpr):
    """Lists the operands' dtypes of all matrix products of a jaxpr, wherever they are."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found.append(tuple(str(x.aval.dtype) for x in eqn.invars))
        for inner in flops.inner_jaxprs(eqn):
            found += products(inner)
    return found


@pytest.mark.parametrize("remat", ["", "dots", "blocks"])
@pytest.mark.parametrize("short", [0, 256], ids=["per step", "masked"])
@pytest.mark.parametrize("net", [Predictor, InverseDynamics])
def test_no_product_of_a_gradient_mixes_precisions(net, short, remat, monkeypatch):
    monkeypatch.setattr(blocks, "SHORT", short)
    options = dict(width=16, heads=2, depth=2, remat=remat, dtype=jnp.bfloat16)
    s, z = jnp.zeros((2, 3, 4, 8)), jnp.zeros((2, 3, 5))
    model = net(**options) if net is Predictor else net(5, **options)
    args = (s, z) if net is Predictor else (s,)
    params = jax.eval_shape(model.init, jax.random.key(0), *args)
    loss = jax.grad(lambda params: model.apply(params, *args).astype(jnp.float32).sum())
    found = products(jax.make_jaxpr(loss)(params).jaxpr)
    assert len(found) > 10 and ("bfloat16", "bfloat16") in found
    assert {pair for pair in found if pair[0] != pair[1]} == set()


def test_attention_in_bfloat16_has_float32_logits_and_the_gradient_of_float32():
    q, k, v = (draw((2, 2, 8, 16), i) for i in range(3))
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    wide = [np.asarray(x, np.float32) for x in narrow]
    value = lambda *qkv: jnp.square(blocks.attend(*qkv).astype(jnp.float32)).sum()  # noqa: E731
    got, expected = (jax.grad(value, (0, 1, 2))(*args) for args in (narrow, wide))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours.astype(jnp.float32) / scale, theirs / scale, atol=0.02)
    jaxpr = jax.make_jaxpr(blocks.attend)(*narrow)
    assert "f32[2,2,8,8] = dot_general" in str(jaxpr)


def test_the_gradient_reaches_a_context_that_all_queries_share():
    q, k, v = (jnp.asarray(draw((3, 2, 4, 8), i), jnp.bfloat16) for i in range(3))
    past = jnp.asarray(draw((1, 2, 5, 8), 4), jnp.bfloat16)

    def value(past):
        return blocks.attend(q, k, v, past=[(past, past)]).astype(jnp.float32).sum()

    repeated = lambda past: value(jnp.repeat(past, 3, axis=0))  # noqa: E731
    got, expected = (jax.grad(f)(past).astype(jnp.float32) for f in (value, repeated))
    assert got.shape == (1, 2, 5, 8)
    np.testing.assert_allclose(got, expected, atol=0.03 * np.abs(expected).max())

"""Fused attention of cuDNN on NVIDIA GPUs: keeps logits on the chip, forward and backward."""

import functools
import logging

import jax
import jax.numpy as jnp

DTYPES = (jnp.bfloat16, jnp.float16)
OLDEST = (8, 0)  # compute capability, Ampere; checked by cuDNN only when it runs
IMPLEMENTATION = "cudnn"  # of `jax.nn.dot_product_attention`

_LOG = logging.getLogger(__name__)


def attention(q, k, v, causal, mesh):
    """Computes attention over all tokens, or over those of the same and of earlier time steps.

    cuDNN's causal mask is by token, so that frame-causal attention is one unmasked call per step.

    Args:
      q, k, v: [B, heads, T, N, head_dim], see `supported`.
      causal: whether tokens attend only to their own and earlier time steps.
      mesh: abstract mesh, over all axes of which B is sharded; its size must divide B.

    Returns:
      [B, heads, T, N, head_dim].
    """

    def attend(q, k, v):
        flat = [x.reshape(len(x), -1, *x.shape[3:]) for x in (q, k, v)]
        out = jax.nn.dot_product_attention(*flat, implementation=IMPLEMENTATION)
        return out.reshape(q.shape)

    def run(q, k, v):  # [B, T, N, heads, head_dim]
        if not causal:
            return attend(q, k, v)
        steps = range(q.shape[1])
        return jnp.concatenate(
            [attend(q[:, t : t + 1], k[:, : t + 1], v[:, : t + 1]) for t in steps], axis=1
        )

    clips = jax.P(mesh.axis_names)
    run = jax.shard_map(run, mesh=mesh, in_specs=(clips,) * 3, out_specs=clips, check_vma=False)
    return jnp.moveaxis(run(*(jnp.moveaxis(x, 1, 3) for x in (q, k, v))), 3, 1)


@functools.cache
def supported(tokens, heads, head_dim, dtype):
    """Returns whether cuDNN computes attention of such queries; logs the reason if it can't.

    Args:
      tokens: number of tokens that attend to each other.
      heads, head_dim, dtype: of the queries. Only half precision is supported; float32 is
        computed by XLA.
    """
    if dtype not in DTYPES:
        return False
    x = jax.ShapeDtypeStruct((1, tokens, heads, head_dim), dtype)
    run = functools.partial(jax.nn.dot_product_attention, implementation=IMPLEMENTATION)
    try:
        jax.eval_shape(lambda *qkv: jax.vjp(run, *qkv)[0], x, x, x)
        _refuse_old_gpus()  # after cuDNN is found, which AMD's GPUs don't have
    except (NotImplementedError, RuntimeError) as error:
        _LOG.warning(
            "attention: using XLA, which stores logits in memory, instead of cuDNN: %s", error
        )
        return False
    return True


def _refuse_old_gpus():
    """Raises RuntimeError if this process computes on a GPU that is too old for the kernel."""
    if jax.default_backend() != "gpu":  # compiling for an absent GPU
        return
    device = jax.devices()[0]
    capability = tuple(map(int, device.compute_capability.split(".")))
    if capability < OLDEST:
        raise RuntimeError(f"{device.device_kind} has compute capability {capability} < {OLDEST}")

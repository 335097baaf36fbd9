"""Splash attention on TPUs: keeps logits on the chip and skips masked blocks."""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

BLOCKS = (256, 128)  # tokens; V-JEPA 2 has 256 per frame, so no block is partly masked
LANES = 128  # lanes of a TPU core; block sizes are multiples of it


class FrameCausal(masks._ComputableMask):
    """Masks attention to later time steps; each step has `tokens` tokens."""

    def __init__(self, steps, tokens):
        self.size = steps, tokens
        see = lambda q, k: q // tokens >= k // tokens  # noqa: E731
        super().__init__(shape=(steps * tokens,) * 2, mask_function=see)

    def __eq__(self, other):
        return isinstance(other, FrameCausal) and self.size == other.size

    def __hash__(self):
        return hash(self.size)


def attention(q, k, v, causal, mesh, block=0, interpret=False):
    """Computes attention over all tokens, or over those of the same and of earlier time steps.

    Args:
      q, k, v: [B, heads, T, N, head_dim], T * N a multiple of 128.
      causal: whether tokens attend only to their own and earlier time steps.
      mesh: abstract mesh, over all axes of which B is sharded; its size must divide B. The compiler
        cannot partition the kernel, so it is mapped over the devices' clips with `jax.shard_map`.
      block: tokens per block, a multiple of 128 that divides T * N; 0: the first of `BLOCKS` that
        does.
      interpret: whether to run the kernel in interpret mode, on any device.

    Returns:
      [B, heads, T, N, head_dim].

    Raises:
      ValueError: `block` does not divide T * N, or is not a multiple of 128.
    """
    _, heads, T, N, dim = q.shape
    block = block or next((size for size in BLOCKS if T * N % size == 0), LANES)
    if T * N % block or block % LANES:
        raise ValueError(
            f"block: expected a multiple of {LANES} that divides {T} * {N} tokens, got {block}"
        )
    names = "q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq"
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([FrameCausal(T if causal else 1, N if causal else T * N)] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernels.BlockSizes(**{f"block_{name}": block for name in names}),
        interpret=interpret,
    )
    clips = jax.P(mesh.axis_names)
    run = jax.shard_map(
        jax.vmap(kernel), mesh=mesh, in_specs=(clips,) * 3, out_specs=clips, check_vma=False
    )
    flat = (*q.shape[:2], T * N, dim)
    q = q * dim**-0.5  # the kernel does not scale logits
    return run(q.reshape(flat), k.reshape(flat), v.reshape(flat)).reshape(q.shape)

"""The transformer block of all networks, and frame-causal attention."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.nn import cudnn, rope

SHORT = 256  # tokens; masked attention is faster up to this length
AUTO = jax.sharding.AxisType.Auto
GPUS = ("gpu", "cuda")  # platforms of attached GPUs, and of absent ones to compile for
REMAT = {"blocks": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def layer_norm(x):
    """Normalizes the last axis in float32, without parameters; eps 1e-6; keeps the dtype of x."""
    f = x.astype(jnp.float32)
    f = f - f.mean(-1, keepdims=True)
    return (f * jax.lax.rsqrt(jnp.square(f).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def gelu(x):
    """Computes the exact GELU, x times the normal CDF; keeps the dtype of x.

    In float32 it uses erf, twice as fast as erfc on CPUs. Lower precisions need erfc for the tail.
    """
    if x.dtype != jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def product(x, kernel, *_, **options):
    """Multiplies x [..., in] by a kernel [in, ...] as two matrices, for flax's `dot_general`.

    With more axes, XLA copies and transposes operands for the gradient on CPUs.
    """
    out = x.reshape(-1, x.shape[-1]) @ kernel.reshape(len(kernel), -1)
    return out.reshape(*x.shape[:-1], *kernel.shape[1:])


def attend(q, k, v, mask=None, past=()):
    """Computes softmax attention with float32 logits.

    Args:
      q: [B, heads, Q, head_dim].
      k, v: [B, heads, K, head_dim].
      mask: [Q or 1, K] bool, True where a query attends to a key, or None for all keys.
      past: (keys, values) pairs of earlier steps, [B or 1, heads, K', head_dim] each; not supported
        together with a mask. A batch of 1 is shared by all queries and never copied.

    Returns:
      [B, heads, Q, head_dim], in the dtype of q.
    """
    pairs = [*past, (k, v)]
    scale = q.shape[-1] ** -0.5
    logits = [_logits(q, k) if q.dtype != jnp.float32 else _products(q, k) for k, _ in pairs]
    logits = jnp.concatenate(logits, axis=-1) * scale
    if mask is not None:
        logits = jnp.where(mask[None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    ends = np.cumsum([k.shape[2] for k, _ in pairs])[:-1]
    weights = jnp.split(weights, ends, axis=-1)
    out, *more = [
        jnp.einsum("bhqk,bhkd->bhqd", w, v) for w, (_, v) in zip(weights, pairs, strict=True)
    ]
    return sum(more, out)


def _products(q, k, dtype=jnp.float32):
    return jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=dtype)


@jax.custom_vjp
def _logits(q, k):
    """Computes float32 logits of queries and keys, with gradients in the precision of q.

    JAX would multiply the float32 gradient of the logits by bfloat16 keys and queries, a product of
    mixed types that accelerators compute in float32.
    """
    return _products(q, k)


def _logits_backward(operands, gradient):
    q, k = operands
    gradient = gradient.astype(q.dtype)
    to_q = jax.linear_transpose(lambda q: _products(q, k, q.dtype), q)
    to_k = jax.linear_transpose(lambda k: _products(q, k, k.dtype), k)
    return *to_q(gradient), *to_k(gradient)


_logits.defvjp(lambda q, k: (_products(q, k), (q, k)), _logits_backward)


def attention(q, k, v, causal, block=0):
    """Computes attention over all tokens, or over those of the same and of earlier time steps.

    Long sequences use a fused kernel on accelerators if the mesh is known (see `kernel`), else one
    unmasked call per time step, with a fraction 1 / T of the logits in memory and, if causal,
    (T + 1) / 2T of the dense work. Short sequences use a mask: less to compile and to launch. All
    are exact.

    Args:
      q, k, v: [B, heads, T, N, head_dim].
      causal: whether tokens attend only to their own and earlier time steps.
      block: see `kernel`.

    Returns:
      [B, heads, T, N, head_dim].
    """
    B, heads, T, N, dim = q.shape
    if fused := kernel(q, block):
        return fused(q, k, v, causal)
    if T > 1 and T * N > SHORT:
        see = lambda x, t: x[:, :, : t + 1 if causal else T].reshape(B, heads, -1, dim)  # noqa: E731
        steps = [attend(q[:, :, t], see(k, t), see(v, t)) for t in range(T)]
        return jnp.stack(steps, axis=2)
    step = jnp.arange(T * N) // N
    mask = step[:, None] >= step[None] if causal and T > 1 else None
    flat = (B, heads, T * N, dim)
    return attend(q.reshape(flat), k.reshape(flat), v.reshape(flat), mask).reshape(q.shape)


def kernel(q, block=0):
    """Returns the fused kernel of the devices that a function is traced for, which keeps logits on
    the chip: a function (q, k, v, causal) -> output, with arguments as in `attention`, or None.

    The compiler cannot partition kernels by itself, so the mesh must be known: the abstract mesh
    of the trace (`jax.sharding.use_abstract_mesh`, as in the training step, or `jax.set_mesh`), all
    of whose axes are automatic and whose size divides B. TPUs use splash attention for several
    steps of more than `SHORT` tokens in all, a multiple of 128. NVIDIA GPUs use cuDNN for `SHORT`
    tokens or more in half precision.

    Args:
      q: [B, heads, T, N, head_dim].
      block: tokens per block of splash attention, see `splash.attention`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = getattr(mesh, "abstract_device", None)
    B, heads, T, N, dim = q.shape
    if device is None or set(mesh.axis_types) != {AUTO} or B % mesh.size:
        return None
    platform = _platform(device)
    if platform == "tpu" and T > 1 and T * N > SHORT and T * N % 128 == 0:
        from lawm_jax.nn import splash  # slow to import

        return functools.partial(splash.attention, mesh=mesh, block=block)
    if platform in GPUS and T * N >= SHORT:
        if cudnn.supported(T * N, heads, dim, q.dtype):
            return functools.partial(cudnn.attention, mesh=mesh)
    return None


def _platform(device):
    """Returns the platform of an abstract device, which before jax 0.8 had only its kind."""
    kinds = {"TPU": "tpu", "cpu": "cpu"}
    return getattr(device, "platform", None) or kinds.get(device.device_kind[:3], "gpu")


def cached_attention(q, k, v, past):
    """Computes the attention of a new step to itself and to cached steps.

    Args:
      q, k, v: [B, heads, 1, N, head_dim], of the new step.
      past: (keys, values) pairs of earlier steps, [B or 1, heads, T, N, head_dim] each; a batch of
        1 is shared by the whole batch.

    Returns:
      [B, heads, 1, N, head_dim].
    """
    flat = lambda x: x.reshape(*x.shape[:2], -1, x.shape[-1])  # noqa: E731
    out = attend(flat(q), flat(k), flat(v), past=jax.tree.map(flat, past))
    return out.reshape(q.shape)


class Block(nn.Module):
    """Applies pre-norm attention and an MLP, optionally conditioned by AdaLN-zero.

    With a condition, the two LayerNorms have no parameters: a zero-initialized layer computes each
    time step's scale, shift and gate from its condition, so the initial block is the identity
    (Peebles & Xie 2022, adaLN-Zero). They are [B, T, 1, D], broadcast over tokens.
    """

    width: int
    heads: int
    mlp: int = 0
    conditioned: bool = False
    causal: bool = True
    block: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, rotary, condition=None, past=()):
        """Returns the block's output and its (keys, values); arguments as in `Stack`."""
        B, T, N, D = x.shape
        dense = lambda features, name: nn.DenseGeneral(  # noqa: E731
            features,
            name=name,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            dot_general=product,
        )
        if self.conditioned:
            zeros = nn.initializers.zeros
            modulation = nn.DenseGeneral(
                (6, D), name="modulation", dtype=self.dtype, kernel_init=zeros
            )
            scale1, shift1, gate1, scale2, shift2, gate2 = jnp.moveaxis(
                modulation(condition)[:, :, None], -2, 0
            )
            norm1 = lambda x: layer_norm(x) * (1 + scale1) + shift1  # noqa: E731
            norm2 = lambda x: layer_norm(x) * (1 + scale2) + shift2  # noqa: E731
        else:
            gate1 = gate2 = 1
            norm1 = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm1")
            norm2 = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm2")

        h = norm1(x).astype(self.dtype)
        qkv = dense((3, D), "qkv")(h).reshape(B, T, N, 3 * self.heads, D // self.heads)
        q, k, v = jnp.split(jnp.transpose(qkv, (0, 3, 1, 2, 4)), 3, axis=1)
        q, k = rope.rotate(q, *rotary), rope.rotate(k, *rotary)
        h = cached_attention(q, k, v, past) if past else attention(q, k, v, self.causal, self.block)
        x = x + gate1 * dense(D, "proj")(jnp.moveaxis(h, 1, 3).reshape(B, T, N, D))
        h = dense(self.mlp or 4 * D, "fc1")(norm2(x).astype(self.dtype))
        x = x + gate2 * dense(D, "fc2")(gelu(h))
        return x, (k, v)


class Stack(nn.Module):
    """Applies `depth` blocks in a scan, with parameters stacked on a leading axis.

    Attributes:
      width, heads, depth: D, attention heads, number of blocks.
      conditioned: whether blocks take a condition (AdaLN-zero).
      causal: whether attention is frame-causal.
      tiled, grid: variant of the rotary embedding, see `rope.table`.
      mlp: hidden width of the MLP; 0 for four times the width.
      block: tokens per block of attention on TPUs, see `kernel`; 0 for its default.
      remat: operations that the backward pass recomputes instead of storing their results:
        "blocks", all; "dots", attention and cheap ones, but no products with weights; "", none.
      dtype: of matrix products and activations; parameters, norms and softmax are float32.
    """

    width: int
    heads: int
    depth: int
    conditioned: bool = False
    causal: bool = True
    tiled: bool = False
    grid: int = 0
    mlp: int = 0
    block: int = 0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, condition=None, past=(), keep=False):
        """Applies the blocks.

        Args:
          x: [B, T, N, D].
          condition: [B, T, C], one vector per time step, or None.
          past: keys and values returned by earlier calls for the steps before x, in order; each is
            a pair of [depth, B or 1, heads, T', N, head_dim]. If not empty, T must be 1.
          keep: whether to return the keys and values of x.

        Returns:
          [B, T, N, D], and with `keep` also (keys, values).
        """
        T, N = x.shape[1:3]
        start = sum(keys.shape[3] for keys, _ in past)
        rotary = rope.table(
            T, N, self.width // self.heads, start=start, tiled=self.tiled, grid=self.grid
        )

        def body(block, x, past):
            x, kept = block(x, rotary, condition, past)
            return x, kept if keep else None

        if self.remat:
            if self.remat not in REMAT:
                raise ValueError(f"remat: expected '' or one of {[*REMAT]}, got {self.remat!r}")
            body = nn.remat(body, prevent_cse=False, policy=REMAT[self.remat])
        loop = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        block = Block(
            self.width,
            self.heads,
            self.mlp,
            self.conditioned,
            self.causal,
            self.block,
            self.dtype,
            name="blocks",
        )
        x, kept = loop(block, x.astype(self.dtype), past)
        return (x, kept) if keep else x

"""The predictor, or forward model: past states and a latent action -> the next state."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lawm_jax.nn.blocks import Stack, layer_norm, product


class Predictor(nn.Module):
    """Predicts the next state of every time step in one pass (teacher forcing).

    A ViT with V-JEPA 2's rotary embedding and frame-causal attention. The latent action of each
    step conditions the tokens of that step by AdaLN-zero. The zero-initialized output is added to
    s_t, so that the untrained model predicts no change.

    Attributes:
      width, heads, depth, remat, block, dtype: of the ViT, see `Stack`.

    Source: Garrido et al. 2026, section 3 (p_psi).
    """

    width: int
    heads: int
    depth: int
    remat: str = ""
    block: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, s, z, past=(), keep=False):
        """Predicts s[:, t + 1] from s[:, :t + 1] and z[:, :t + 1], for every t.

        Args:
          s: [B or 1, T, N, D]; a batch of 1 is shared by all of z.
          z: [B, T, A], z[:, t] is the latent action between steps t and t + 1.
          past, keep: keys and values of the steps before s, and whether to return those of s, see
            `Stack`.

        Returns:
          [B, T, N, D] float32, and with `keep` also (keys, values).
        """
        dense = lambda features, name, **k: nn.DenseGeneral(  # noqa: E731
            features, name=name, dtype=self.dtype, dot_general=product, **k
        )
        condition = nn.silu(dense(self.width, "latent1")(z.astype(self.dtype)))
        condition = nn.silu(dense(self.width, "latent2")(condition))
        x = dense(self.width, "embed")(s.astype(self.dtype))
        x = jnp.broadcast_to(x, (len(z), *x.shape[1:]))
        stack = Stack(
            self.width,
            self.heads,
            self.depth,
            conditioned=True,
            remat=self.remat,
            block=self.block,
            dtype=self.dtype,
            name="stack",
        )
        x = stack(x, condition, past, keep)
        x, kv = x if keep else (x, None)
        zeros = nn.initializers.zeros
        scale, shift = jnp.moveaxis(
            dense((2, self.width), "modulation", kernel_init=zeros)(condition)[:, :, None], -2, 0
        )
        x = layer_norm(x) * (1 + scale) + shift
        x = dense(s.shape[-1], "out", kernel_init=zeros)(x.astype(self.dtype))
        x = s.astype(jnp.float32) + x.astype(jnp.float32)
        return (x, kv) if keep else x

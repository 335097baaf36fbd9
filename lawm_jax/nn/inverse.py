"""The inverse dynamics model: two consecutive states -> features of the action between them."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lawm_jax.nn.blocks import Stack, attend, product


class InverseDynamics(nn.Module):
    """Infers features of the latent action from two consecutive states.

    The paper says only that the IDM reads s_t and s_t+1 and is trained jointly. Our choice: the
    tokens of the two states are concatenated along channels, position by position, so that a pair
    has N tokens and not 2N. A ViT with the encoder's rotary embedding processes each pair
    separately, one learned query pools its tokens, and a linear head gives the output. In the
    configs, the ViT is as wide as the predictor.

    Attributes:
      features: size of the output (A, or 2A for the moments of a noisy latent).
      width, heads, depth, remat, dtype: of the ViT, see `Stack`.

    Source: Garrido et al. 2026, section 3 (g_phi); pooling as in V-JEPA's attentive probe.
    """

    features: int
    width: int
    heads: int
    depth: int = 12
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, s):
        """Computes the features between all consecutive states of a clip.

        Args:
          s: [B, T, N, D], T at least 2.

        Returns:
          [B, T-1, features] float32; entry t depends only on s[:, t] and s[:, t + 1].
        """
        B, T, N, _ = s.shape
        pairs = jnp.concatenate([s[:, :-1], s[:, 1:]], axis=-1).astype(self.dtype)
        x = nn.Dense(self.width, name="embed", dtype=self.dtype, dot_general=product)(pairs)
        x = x.reshape(B * (T - 1), 1, N, self.width)
        x = Stack(
            self.width, self.heads, self.depth, remat=self.remat, dtype=self.dtype, name="stack"
        )(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x)[:, 0].astype(self.dtype)
        query = self.param("query", nn.initializers.normal(0.02), (self.width,))
        kv = nn.DenseGeneral((2, self.width), name="pool", dtype=self.dtype, dot_general=product)(x)
        kv = kv.reshape(*kv.shape[:3], self.heads, -1)
        k, v = jnp.transpose(kv, (2, 0, 3, 1, 4))
        q = jnp.broadcast_to(query.astype(self.dtype), (len(x), self.width))
        x = attend(q.reshape(len(x), self.heads, 1, -1), k, v).reshape(B, T - 1, self.width)
        return nn.Dense(self.features, name="head")(x.astype(jnp.float32))

"""The pixel decoder: states of the frozen encoder -> video, to look at and to measure by eye."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lawm_jax.nn.blocks import Stack


class Decoder(nn.Module):
    """Paints the pixels of each token: a frame-causal ViT and one linear layer.

    It is trained apart, on the frozen encoder; the world model never sees it.

    Attributes:
      patch, tubelet: side and number of frames of what one token paints, the encoder's.
      steps: time steps that see each other, no more than it was trained on; a longer clip is
        painted piece by piece.
      width, heads, depth, remat, dtype: of the ViT, see `Stack`.
      perceptual, weight, frames: how it is trained, see `train/objectives.py`.

    Source: Garrido et al. 2026, section 3 (decoder).
    """

    patch: int
    tubelet: int
    width: int
    heads: int
    depth: int
    steps: int = 8
    perceptual: str = ""
    weight: float = 0.0
    frames: int = 0
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, s):
        """Decodes states.

        Args:
          s: [B, T, N, D], one token per patch of the encoder (not merged).

        Returns:
          [B, T * tubelet, H, W, 3] float32; -1 is black, 1 is white, not clipped.
        """
        B, T, N, D = s.shape
        steps = min(self.steps, T)
        pieces = -(-T // steps)
        s = jnp.pad(s, ((0, 0), (0, pieces * steps - T), (0, 0), (0, 0)))
        s = s.reshape(B * pieces, steps, N, D).astype(self.dtype)
        x = nn.Dense(self.width, name="embed", dtype=self.dtype)(s)
        x = Stack(
            self.width,
            self.heads,
            self.depth,
            remat=self.remat,
            dtype=self.dtype,
            name="stack",
        )(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x)
        p, k, side = self.patch, self.tubelet, round(N**0.5)
        x = nn.Dense(k * p * p * 3, name="out", dtype=self.dtype)(x.astype(self.dtype))
        x = x.astype(jnp.float32).reshape(B, pieces * steps, side, side, k, p, p, 3)[:, :T]
        return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, T * k, side * p, side * p, 3)

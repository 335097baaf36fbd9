"""The pixel decoder: states of the frozen encoder -> video, for inspection and metrics."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lawm_jax.nn.blocks import Stack


class Decoder(nn.Module):
    """Decodes the pixels of each token with a frame-causal ViT and a linear layer.

    It is trained separately, on the frozen encoder; the world model does not use it.

    Attributes:
      patch, tubelet: side and number of frames of the pixels of a token, as in the encoder.
      steps: maximum number of time steps that attend to each other, no more than in training;
        longer clips are decoded in chunks.
      width, heads, depth, remat, dtype: of the ViT, see `Stack`.
      perceptual, weight, frames: training options, see `train/objectives.py`.

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
          [B, T * tubelet, H, W, 3] float32, from -1 (black) to 1 (white), not clipped.
        """
        B, T, N, D = s.shape
        steps = min(self.steps, T)
        pieces = -(-T // steps)
        s = jnp.pad(s, ((0, 0), (0, pieces * steps - T), (0, 0), (0, 0)))
        s = s.reshape(B * pieces, steps, N, D).astype(self.dtype)
        x = nn.Dense(self.width, name="embed", dtype=self.dtype)(s)
        x = Stack(
            self.width, self.heads, self.depth, remat=self.remat, dtype=self.dtype, name="stack"
        )(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x)
        p, k, side = self.patch, self.tubelet, round(N**0.5)
        x = nn.Dense(k * p * p * 3, name="out", dtype=self.dtype)(x.astype(self.dtype))
        x = x.astype(jnp.float32).reshape(B, pieces * steps, side, side, k, p, p, 3)[:, :T]
        return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, T * k, side * p, side * p, 3)

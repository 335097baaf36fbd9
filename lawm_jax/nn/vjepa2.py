"""V-JEPA 2's video encoder, as published or frame-causal."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lawm_jax.nn.blocks import Stack

# Meta's sizes, and a tiny one for tests.
SIZES = {
    "tiny": {"width": 96, "heads": 4, "depth": 2, "mlp": 384},
    "base": {"width": 768, "heads": 12, "depth": 12, "mlp": 3072},
    "large": {"width": 1024, "heads": 16, "depth": 24, "mlp": 4096},
    "huge": {"width": 1280, "heads": 16, "depth": 32, "mlp": 5120},
    "giant": {"width": 1408, "heads": 22, "depth": 40, "mlp": 6144},
    "gigantic": {"width": 1664, "heads": 26, "depth": 48, "mlp": 8192},
}

# Options of V-JEPA 2.1 that differ from 2.0; its image branch and token are not used.
VERSION_2_1 = {"tiled": False, "grid": 16}


class VJEPA2(nn.Module):
    """Encodes video as a grid of tokens per tubelet.

    A ViT with rotary positions over time, row and column, pre-norm, exact GELU, no class token.
    With causal=False it is the public model. With causal=True the same weights use frame-causal
    attention, so that states do not depend on later frames.

    All encoders have: `tubelet`, frames per time step; `alone`, whether each state depends only on
    its own frames; `patch`, side of a token in pixels; `width`, of a token; and `mean` and `std` of
    the input on the scale 0 to 255 (here ImageNet's).

    Attributes:
      width, heads, depth, mlp: see `SIZES`.
      patch, tubelet: side and number of frames of a token.
      causal, tiled, grid, remat, dtype: see `Stack`.

    Source: Assran et al. 2025 (V-JEPA 2), section 2.1; causal: Garrido et al. 2026, section 3.
    """

    width: int
    heads: int
    depth: int
    mlp: int
    patch: int = 16
    tubelet: int = 2
    causal: bool = True
    tiled: bool = True
    grid: int = 0
    remat: str = ""
    dtype: Any = jnp.dtype("float32")

    alone = False
    mean = (123.675, 116.28, 103.53)
    std = (58.395, 57.12, 57.375)

    @nn.compact
    def __call__(self, x):
        """Encodes normalized video into states.

        Args:
          x: [B, F, H, W, 3] floating point, (video - mean) / std; square frames, H a multiple of
            `patch`, F a multiple of `tubelet`.

        Returns:
          s: [B, T, N, D] float32, T = F / tubelet, N = (H / patch)^2 tokens in row-major order.

        Raises:
          ValueError: x has another shape or dtype.
        """
        p, k = self.patch, self.tubelet
        if x.ndim != 5 or x.shape[4] != 3 or x.shape[2] != x.shape[3] or x.shape[2] % p:
            raise ValueError(f"x: expected [B, F, H, H, 3] with H a multiple of {p}, got {x.shape}")
        if x.shape[1] % k:
            raise ValueError(f"x: expected a multiple of {k} frames, got {x.shape[1]}")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x: expected normalized floating-point values, got {x.dtype}")
        B, F, H, W, C = x.shape
        x = x.reshape(B, F // k, k, H // p, p, W // p, p, C).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        x = x.reshape(B, F // k, H // p * (W // p), k * p * p * C).astype(self.dtype)
        x = nn.Dense(self.width, name="embed", dtype=self.dtype)(x)
        x = Stack(
            self.width,
            self.heads,
            self.depth,
            causal=self.causal,
            tiled=self.tiled,
            grid=self.grid,
            mlp=self.mlp,
            remat=self.remat,
            dtype=self.dtype,
            name="stack",
        )(x)
        return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x)

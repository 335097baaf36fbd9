"""The trunks of LPIPS: VGG16 and AlexNet up to their last ReLU, frame by frame.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
version 0.1; layers and their order as in torchvision. `perceptual.py` computes the distance.
"""

import flax.linen as nn
import jax.numpy as jnp


class Trunk(nn.Module):
    """Computes five feature maps of each frame; `mean` and `std` of its input are on 0 to 255.

    Attributes:
      stages: five pairs (window of the preceding max pooling with stride 2, or 0 for none;
        convolutions (width, kernel size, stride, padding), each followed by a ReLU).
      least: smallest supported side, for which the last map has one pixel.
    """

    stages: tuple
    least: int

    # Combines two steps of LPIPS: pixels are scaled to -1..1, then to (x - shift) / scale.
    mean = tuple(127.5 * (1 + shift) for shift in (-0.030, -0.088, -0.188))
    std = tuple(127.5 * scale for scale in (0.458, 0.448, 0.450))

    @nn.compact
    def features(self, x):
        """Computes the feature maps that LPIPS compares.

        Args:
          x: [B, F, H, W, 3] floating point, (video - mean) / std; H and W are at least `least`.

        Returns:
          Five maps [B, F, h, w, C] float32, after the last ReLU of each stage.

        Raises:
          ValueError: x has another shape or dtype.
        """
        if x.ndim != 5 or x.shape[-1] != 3 or min(x.shape[2:4]) < self.least:
            raise ValueError(
                f"x: expected [B, F, H, W, 3] with H and W at least {self.least}, got "
                f"{list(x.shape)}"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x: expected normalized floating-point values, got {x.dtype}")
        x, maps, layer = x.astype(jnp.float32), [], 0  # `layer` as in torchvision
        for pooling, convolutions in self.stages:
            if pooling:
                x, layer = nn.max_pool(x, (pooling, pooling), (2, 2)), layer + 1
            for width, k, stride, padding in convolutions:
                x = nn.Conv(width, (k, k), stride, padding, name=f"conv_{layer}")(x)
                x, layer = nn.relu(x), layer + 2
            maps.append(x)
        return tuple(maps)


VGG16 = Trunk(
    stages=(
        (0, ((64, 3, 1, 1),) * 2),
        (2, ((128, 3, 1, 1),) * 2),
        (2, ((256, 3, 1, 1),) * 3),
        (2, ((512, 3, 1, 1),) * 3),
        (2, ((512, 3, 1, 1),) * 3),
    ),
    least=16,
)

ALEXNET = Trunk(
    stages=(
        (0, ((64, 11, 4, 2),)),
        (3, ((192, 5, 1, 2),)),
        (3, ((384, 3, 1, 1),)),
        (0, ((256, 3, 1, 1),)),
        (0, ((256, 3, 1, 1),)),
    ),
    least=31,
)

"""EfficientNet-Lite0 up to stride 16: the small frozen image encoder that comes with the package.

Source: Tan & Le 2019, "EfficientNet"; Lite (relu6, no squeeze-and-excitation) is Google's variant
of 2020. `assets/make_efficientnet.py` folded batch norm into kernels and biases.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Groups of blocks: repeats, kernel size, stride of the first block, expansion, width.
GROUPS = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))


class EfficientNetLite0(nn.Module):
    """Encodes each frame separately as a grid of standardized feature vectors.

    All encoders have: `tubelet`, frames per time step; `alone`, whether each state depends only on
    its own frames; `patch`, side of a token in pixels; `width`, of a token; and `mean` and `std` of
    the input on the scale 0 to 255.
    """

    tubelet = 1
    alone = True
    patch = 16
    width = 112
    mean = (127.0, 127.0, 127.0)
    std = (128.0, 128.0, 128.0)

    def setup(self):
        self.weights = {name: self.param(name, draw, shape) for name, shape in shapes().items()}
        statistics = {"mean": jnp.zeros(self.width), "std": jnp.ones(self.width)}
        self.output = self.param("output", lambda key: statistics)

    def __call__(self, x):
        """Encodes normalized video into states.

        Args:
          x: [B, F, H, W, 3] floating point, (video - mean) / std; H and W are multiples of 16.

        Returns:
          s: [B, T, N, D] float32, T = F, N = H/16 * W/16 tokens in row-major order, D = 112
            channels, standardized with the statistics in the parameter `output`.

        Raises:
          ValueError: x has another shape or dtype.
        """
        s = self.features(x)[-1]
        B, T, rows, columns, D = s.shape
        s = s.reshape(B, T, rows * columns, D)
        return (s - row(self.output["mean"])) / row(self.output["std"])

    def features(self, x):
        """Computes the feature maps at strides 2, 4, 8 and 16, for a perceptual distance.

        Args:
          x: as in `__call__`.

        Returns:
          Four maps [B, F, H/k, W/k, C] float32, not standardized; k = 2, 4, 8, 16 and C = 16, 24,
          40, 112.

        Raises:
          ValueError: x has another shape or dtype.
        """
        if x.ndim != 5 or x.shape[-1] != 3 or x.shape[2] % 16 or x.shape[3] % 16:
            raise ValueError(
                f"x: expected [B, F, H, W, 3] with H and W multiples of 16, got {list(x.shape)}"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x: expected normalized floating-point values, got {x.dtype}")
        x = x.astype(jnp.float32)
        return lax.platform_dependent(self.weights, x, cpu=frame_by_frame, default=all_at_once)


def all_at_once(weights, video):
    """Computes the feature maps of [B, F, H, W, 3] with ordinary convolutions."""
    B, F, H, W, C = video.shape
    maps = trunk(weights, video.reshape(B * F, H, W, C), convolve)
    return tuple(m.reshape(B, F, *m.shape[1:]) for m in maps)


def frame_by_frame(weights, video):
    """Computes the feature maps of [B, F, H, W, 3], one frame of every clip at a time.

    Activations then fit into a CPU's cache (800 frames/s instead of 450 at 128 x 128 on 2 cores),
    and clips that are sharded over devices stay sharded.
    """
    maps = lax.map(lambda x: trunk(weights, x, sum_of_taps), video.swapaxes(0, 1))
    return tuple(m.swapaxes(0, 1) for m in maps)


def trunk(weights, x, depthwise):
    """Computes the last map of each stride, [B, h, w, C], of images [B, H, W, 3]."""
    layer, maps, i = weights["stem"], [], 0
    x = nn.relu6(convolve(x, layer["kernel"], 2) + row(layer["bias"]))
    for repeats, _, stride, _, _ in GROUPS:
        if stride == 2:
            maps.append(x)
        for j in range(repeats):
            y = block(weights[f"blocks_{i}"], x, 1 if j else stride, depthwise)
            x = x + y if j else y
            i += 1
    return (*maps, x)


def block(weights, x, stride, depthwise):
    """Applies an inverted residual block, without its skip connection."""
    if "expand" in weights:
        x = nn.relu6(x @ weights["expand"]["kernel"] + row(weights["expand"]["bias"]))
    layer = weights["depthwise"]
    x = nn.relu6(depthwise(x, layer["kernel"], stride) + row(layer["bias"]))
    return x @ weights["project"]["kernel"] + row(weights["project"]["bias"])


def row(v):
    """Reshapes a vector over channels to [1, 1, 1, C]."""
    return v.reshape(1, 1, 1, -1)


def convolve(x, kernel, stride):
    """Convolves [B, H, W, C] with [k, k, C or 1 if depthwise, out]; TensorFlow's SAME padding."""
    order, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=order, feature_group_count=groups
    )


def sum_of_taps(x, kernel, stride):
    """Computes a depthwise `convolve` as k * k shifted products: ten times as fast on CPUs."""
    k, (_, H, W, _) = len(kernel), x.shape
    pad = (k - stride) // 2, k - stride - (k - stride) // 2
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    taps = ((i, j) for i in range(k) for j in range(k))
    return sum(x[:, i : i + H : stride, j : j + W : stride] * row(kernel[i, j]) for i, j in taps)


def shapes():
    """Lists the kernels' shapes: {"stem": shape, "blocks_0": {"depthwise": shape, ...}, ...}."""
    table, width = {"stem": (3, 3, 3, 32)}, 32
    for repeats, k, _, expansion, out in GROUPS:
        for _ in range(repeats):
            wide = width * expansion
            layers = {"expand": (width, wide)} if expansion > 1 else {}
            layers |= {"depthwise": (k, k, 1, wide), "project": (wide, out)}
            table[f"blocks_{len(table) - 1}"], width = layers, out
    return table


def draw(key, shape):
    """Initializes kernels (random) and biases (zero) for a shape or a dict of shapes."""
    if isinstance(shape, tuple):
        kernel = nn.initializers.he_uniform()(key, shape)
        return {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    keys = jax.random.split(key, len(shape))
    return {name: draw(k, s) for k, (name, s) in zip(keys, shape.items(), strict=True)}

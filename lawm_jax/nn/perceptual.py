"""Perceptual distances between frames: LPIPS, and a distance on the embedded EfficientNet.

The weights of LPIPS are not included. Its heads come from the package lpips (BSD 2-clause), its
trunks from torchvision (BSD 3-clause; trained on ImageNet), which users put in torch.hub's folder.
"""

import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.nn import pretrained
from lawm_jax.nn.efficientnet import EfficientNetLite0
from lawm_jax.nn.lpips import ALEXNET, VGG16

NETWORKS = {"effnet": EfficientNetLite0(), "lpips_vgg": VGG16, "lpips_alex": ALEXNET}

# LPIPS network -> its name in the package lpips, torchvision's file with the trunk's weights.
FILES = {
    "lpips_vgg": ("vgg", "vgg16-397923af.pth"),
    "lpips_alex": ("alex", "alexnet-owt-7be5be79.pth"),
}

EPSILON = 1e-10  # as in LPIPS, for feature vectors of zeros


def load(name, trunk=None):
    """Loads a perceptual network and its weights from disk.

    Args:
      name: "effnet", the embedded EfficientNet-Lite0; or "lpips_vgg" or "lpips_alex", LPIPS version
        0.1, whose weights the user installs.
      trunk: path of torchvision's weights of the LPIPS network. None uses torch.hub's folder,
        $TORCH_HOME/hub/checkpoints, where TORCH_HOME is ~/.cache/torch by default.

    Returns:
      network: NETWORKS[name], a Linen module; hashable, a static argument for `jax.jit`.
      params: {"network": its parameters, "heads": [C] float32 per feature map}; numpy arrays.

    Raises:
      ValueError: unknown name, or a file that does not hold the network's weights.
      ModuleNotFoundError: the package lpips, or torch to read the files, is not installed.
      FileNotFoundError: torchvision's file is missing; the message gives its expected path.
    """
    if name not in NETWORKS:
        raise ValueError(f"name: expected one of {', '.join(NETWORKS)}, got {name!r}")
    if name in FILES:
        return NETWORKS[name], _lpips(NETWORKS[name], *FILES[name], trunk)
    # Equal weights, not learned: the distances are not comparable with those of LPIPS.
    heads = [np.full(width, 0.25, np.float32) for width in (16, 24, 40, 112)]
    return NETWORKS[name], {"network": pretrained.efficientnet()[1], "heads": heads}


def _lpips(network, net, name, trunk):
    """Reads LPIPS 0.1 without importing the package lpips, which would import torchvision."""
    package = importlib.util.find_spec("lpips")
    if package is None:
        raise ModuleNotFoundError("LPIPS needs its heads from the package lpips: pip install lpips")
    if trunk is None:
        cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        trunk = f"{os.environ.get('TORCH_HOME', f'{cache}/torch')}/hub/checkpoints/{name}"
    trunk = pathlib.Path(trunk).expanduser()
    if not trunk.is_file():
        raise FileNotFoundError(
            f"{trunk}: LPIPS needs torchvision's weights here, or the path of a copy; get them "
            f"with `curl -L --create-dirs -o {trunk} https://download.pytorch.org/models/{name}`"
        )
    x = jnp.zeros((1, 1, network.least, network.least, 3))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, method="features"))["params"]
    layers, expected = {name: name.replace("conv_", "features.") for name in shapes}, {}
    for layer, tensor in layers.items():
        *window, before, width = shapes[layer]["kernel"].shape
        expected |= {f"{tensor}.weight": (width, before, *window), f"{tensor}.bias": (width,)}
    arrays = _read(trunk, expected)
    params = {
        layer: {
            "kernel": arrays[f"{tensor}.weight"].transpose(2, 3, 1, 0),
            "bias": arrays[f"{tensor}.bias"],
        }
        for layer, tensor in layers.items()
    }
    widths = [convolutions[-1][0] for _, convolutions in network.stages]
    expected = {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(widths)}
    heads = _read(pathlib.Path(package.origin).parent / "weights" / "v0.1" / f"{net}.pth", expected)
    return {"network": params, "heads": [heads[key].reshape(-1) for key in expected]}


def _read(file, shapes):
    """Reads tensors of the given {name: shape} from a torch file: {name: float32 array}."""
    tensors = pretrained.read_torch(file)
    tensors = tensors if isinstance(tensors, dict) else {}
    missing = [k for k, shape in shapes.items() if np.shape(tensors.get(k)) != shape]
    if missing:
        raise ValueError(
            f"{file}: expected a tensor {missing[0]} {list(shapes[missing[0]])}; {len(missing)} of "
            f"{len(shapes)} tensors are missing or have another shape"
        )
    return {name: tensors[name].float().numpy() for name in shapes}


def distance(network, params, a, b):
    """Computes the perceptual distance of each pair of frames; differentiable in a and b.

    Scales feature vectors to unit length, averages their squared differences over the pixels of
    each map, weighted per channel by the map's head, and sums over maps. With "effnet" this is the
    mean squared Euclidean distance over maps: from 0 to 4, and 2 for unrelated frames.

    Args:
      network, params: from `load`; jit with `network` static.
      a, b: uint8 or floating point [B, F, H, W, 3] on the scale 0 to 255. H and W: multiples of 16
        for "effnet", at least 16 for "lpips_vgg", at least 31 for "lpips_alex". Frames are not
        resized, since distances of different sizes are not comparable.

    Returns:
      [B, F] float32.

    Raises:
      ValueError: the shapes of a and b differ or are not supported, or a dtype is not.

    Source: Zhang et al. 2018, equation 1.
    """
    if a.shape != b.shape:
        raise ValueError(f"a, b: expected frames of the same shape, got {a.shape} and {b.shape}")
    maps = zip(*(_features(network, params, x) for x in (a, b)), params["heads"], strict=True)
    return sum(((_unit(x) - _unit(y)) ** 2 @ head).mean((2, 3)) for x, y, head in maps)


def _features(network, params, video):
    """Computes the feature maps [B, F, h, w, C] of frames on the scale 0 to 255."""
    if video.dtype != jnp.uint8 and not jnp.issubdtype(video.dtype, jnp.floating):
        raise ValueError(f"a, b: expected uint8 or floating point, got {video.dtype}")
    mean, std = (jnp.array(v).reshape(1, 1, 1, 1, 3) for v in (network.mean, network.std))
    x = (video.astype(jnp.float32) - mean) / std
    return network.apply({"params": params["network"]}, x, method="features")


def _unit(x):
    """Scales vectors over channels to unit length, with finite gradients at zero."""
    squared = jnp.maximum((x * x).sum(-1, keepdims=True), EPSILON**2)
    return x / (jnp.sqrt(squared) + EPSILON)

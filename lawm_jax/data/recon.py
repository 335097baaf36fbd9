"""Reads RECON: a Jackal robot that explores parks and parking lots, one HDF5 file per trajectory.

`images/rgb_left` holds T JPEG files, `jackal/position` [T, >=2] the robot's x and y in meters and
`jackal/yaw` [T] its heading in radians, all in its odometry frame.

Source: Shah et al. 2021, "Rapid Exploration for Open-World Navigation with Latent Goal Models". The
layout is the one that train/process_recon.py of github.com/robodhruv/visualnav-transformer reads;
its data_config.yaml (0.25 m between frames) implies meters. The files don't state their rate:
github.com/facebookresearch/nwm assumes 4 frames per second (`--input_fps` of
isolated_nwm_infer.py), Open X-Embodiment's conversion 3.
"""

import contextlib
import logging
import os

import numpy as np

from lawm_jax.data import episodes, frames, hdf5, paths, poses

RATE = 4.0  # frames per second

_KEYS = "images/rgb_left", "jackal/position", "jackal/yaw"
_LOG = logging.getLogger(__name__)


def source(name, where, split, data, view, rate=RATE):
    """Opens RECON: the source `recon:FOLDER` or `recon:FOLDER?rate=3`.

    Its clips have `actions` float32 [F-1,3], the robot's motion in its own frame before the step:
    forward and to the left (meters), turn to the left (radians); and `state` float32 [F,3]: x, y
    and yaw.

    Args:
      name: name used in error messages.
      where: folder that holds *.hdf5 at any depth.
      split: "train" or "test", by a hash of the path within the folder.
      data: has `frames`, `fps` and `holdout`.
      view: `frames.View`, or None to read only labels.
      rate: frames per second of the recordings.

    Returns:
      `episodes.Episodes`, whose items are paths.

    Raises:
      ValueError: there are no files, or `rate` isn't positive or is less than `data.fps`.
    """
    stride = episodes.stride(name, episodes.rate(name, rate), data.fps)
    folder = paths.expand(where)
    keys = paths.below(folder, (".hdf5",))
    if not keys:
        raise ValueError(f"{name}: no trajectories *.hdf5 in {where!r}")
    train, test = episodes.split(keys, data.holdout)
    if train == test:
        _LOG.warning("%s is the only trajectory: it is used for training and testing", keys[0])
    items = tuple(os.path.join(folder, keys[i]) for i in (train if split == "train" else test))
    return episodes.Episodes(name, items, _open, data.frames, stride, view)


@contextlib.contextmanager
def _open(path):
    """Opens a trajectory, and turns every error in it into `UnreadableVideo`."""
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:  # some network disks lack file locks
            images, position, yaw = (hdf5.array(file, key) for key in _KEYS)
            for key, array, axes in zip(_KEYS, (images, position, yaw), (1, 2, 1), strict=True):
                if array.ndim < axes or axes == 2 and array.shape[1] < 2:
                    expected = "[F, 2]" if axes == 2 else "[F]"
                    raise ValueError(f"{key}: expected {expected}, got {array.shape}")
                if array is not images and array.dtype.kind not in "fiu":
                    raise ValueError(f"{key}: expected numbers, got {array.dtype}")
            lengths = len(images), len(position), len(yaw)
            if len(set(lengths)) > 1:
                raise ValueError(
                    f"expected equal numbers of images, positions and yaws, got {lengths}"
                )

            def arrays(indices, view):
                rows = slice(indices[0], indices[-1] + 1, np.diff(indices).max(initial=1))
                places = np.asarray(position[rows, :2], np.float64)
                angles = np.asarray(yaw[rows], np.float64).reshape(len(indices))
                clip = {
                    "actions": poses.body_frame(places, angles),
                    "state": np.column_stack([places, angles]).astype(np.float32),
                }
                if view is not None:
                    clip["video"] = frames.Scaler(view).images(map(_bytes, images[rows]))
                return clip

            yield episodes.Episode(len(images), arrays)
    except (OSError, KeyError, RuntimeError, ValueError) as error:  # h5py raises all of these
        raise episodes.UnreadableVideo(path, str(error)) from error


def _bytes(image):
    """Returns the bytes of an image that HDF5 stores as a string, opaque data or numbers."""
    return image if isinstance(image, bytes) else image.tobytes()

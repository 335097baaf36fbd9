"""Reads DROID: episodes of a Franka arm with the poses that it reached, at 15 Hz."""

import contextlib
import dataclasses
import glob
import os

import numpy as np

from lawm_jax.data import episodes, frames, metadata, pace, paths, poses, recent, tfds, video

RATE = 15.0  # steps per second
SEEN = "steps/observation/"  # prefix of the observations, in the TFDS format
LABELS = f"{SEEN}cartesian_position", f"{SEEN}gripper_position"
_RAW_LABELS = {
    "observation/robot_state/cartesian_position": 2,
    "observation/robot_state/gripper_position": 1,
}
# Camera names of the TFDS format -> those in the metadata of the raw format.
CAMERAS = {
    "exterior_image_1_left": "ext1",
    "exterior_image_2_left": "ext2",
    "wrist_image_left": "wrist",
    "left": "left",
    "right": "right",
}


def source(name, where, split, data, view, camera="exterior_image_1_left"):
    """Opens DROID: the source `droid:DIR` or `droid:DIR?camera=CAMERA`.

    `actions` [F-1,7] are the achieved changes of pose, see `poses.droid_actions`, and `state` [F,7]
    is the pose: position (m) and Euler angles of the hand in the base frame, and the gripper's
    closing (0 to 1). At 4 fps every 4th step is read, i.e. at 3.75 Hz.

    Args:
      name: name used in error messages.
      where: a TFDS folder, such as droid/1.0.1, of ArrayRecord or TFRecord files, or a folder with
        raw episodes at any depth: trajectory.h5, metadata_*.json and recordings/MP4/*.mp4.
      split: "train" or "test", by a hash of the record's number or the episode's path.
      data: has `frames`, `fps` and `holdout`.
      view: `frames.View`, or None to read only labels.
      camera: the left eye of a stereo camera: exterior_image_1_left, exterior_image_2_left or
        wrist_image_left; for raw episodes also `left` and `right`, the exterior cameras as seen
        from the robot. V-JEPA 2 reads `left`.

    Returns:
      `episodes.Episodes`.

    Raises:
      ValueError: the folder has none of these formats, or there is no such camera.

    Source: Khazatsky et al. 2024, "DROID"; raw format as in github.com/facebookresearch/vjepa2,
    app/vjepa_droid/droid.py, and github.com/droid-dataset/droid, droid/postprocessing.
    """
    where = paths.expand(where)
    if os.path.isfile(os.path.join(where, "dataset_info.json")):
        examples, items = tfds.open_examples(name, where, split, data.holdout)
        cameras = [x.removeprefix(SEEN) for x in examples.images if x.startswith(SEEN)]
        tfds.check(name, "camera", [camera], cameras)
        tfds.check(name, "labels", LABELS, examples.widths)
        opened = _Recorded(examples, SEEN + camera)
    else:
        tfds.check(name, "camera", [camera], CAMERAS)
        keys = _raw_episodes(where)
        if not keys:
            raise ValueError(
                f"{name}: expected a TFDS folder with dataset_info.json, such as droid/1.0.1, or a "
                f"folder of raw episodes with trajectory.h5, got {where!r}, which has neither"
            )
        train, test = episodes.split(keys, data.holdout)
        items = tuple(os.path.join(where, keys[i]) for i in (train if split == "train" else test))
        opened = _Raw(f"{CAMERAS[camera]}_mp4_path")
    stride = episodes.stride(name, RATE, data.fps)
    return episodes.Episodes(name, items, opened, data.frames, stride, view)


@dataclasses.dataclass(frozen=True)
class _Recorded:
    """Opens episodes of the TFDS format, with frames as JPEG images."""

    examples: tfds.Examples
    images: str

    def identity(self, item):
        return self.examples.identity(item)

    @contextlib.contextmanager
    def __call__(self, item):
        features = self.examples.read(item)
        images = features.get(self.images, ())
        try:
            path, gripper = tfds.rows(features, LABELS[0], 6), tfds.rows(features, LABELS[1], 1)
        except ValueError as error:
            raise frames.UnreadableVideo(item, f"labels: {error}") from error
        if not len(path) == len(gripper) == len(images):
            reason = f"{len(path)} poses and {len(gripper)} gripper positions"
            raise frames.UnreadableVideo(item, f"{reason} don't match {len(images)} frames")

        def arrays(indices, view):
            clip = _labels(path[indices], gripper[indices, 0])
            if view is not None:
                clip["video"] = frames.Scaler(view).images([images[i] for i in indices])
            return clip

        yield episodes.Episode(len(images), arrays)


@dataclasses.dataclass(frozen=True)
class _Raw:
    """Opens episode folders of the raw format; `key` of the metadata names the video."""

    key: str
    times: recent.Recent = dataclasses.field(default_factory=lambda: recent.Recent(256))

    @contextlib.contextmanager
    def __call__(self, item):
        import h5py

        try:
            described = sorted(glob.glob(os.path.join(glob.escape(item), "metadata_*.json")))
            if not described:
                raise ValueError("no metadata_*.json")
            info = metadata.load(described[0], "an episode's metadata")
            recorded = metadata.field(described[0], info, self.key, "a string")
            recorded = os.path.join(item, "recordings", "MP4", os.path.basename(recorded))
            with h5py.File(os.path.join(item, "trajectory.h5"), "r", locking=False) as file:
                path, gripper = (_rows(file, key, axes) for key, axes in _RAW_LABELS.items())
            times = self.times.get(recorded, _even_times)
        except frames.UnreadableVideo as error:
            raise frames.UnreadableVideo(item, str(error)) from error
        except (OSError, KeyError, ValueError, RuntimeError) as error:  # h5py raises all of these
            raise frames.UnreadableVideo(item, f"{type(error).__name__}: {error}") from error
        # Frame i belongs to row i. At the end of a recording, a frame or a row may be missing.
        count = len(times)
        if abs(count - len(path)) > 1 or len(gripper) != len(path):
            reason = f"{len(path)} poses and {len(gripper)} gripper positions"
            raise frames.UnreadableVideo(item, f"{reason} don't match {count} frames of {recorded}")

        def arrays(indices, view):
            clip = _labels(path[indices], gripper[indices])
            if view is not None:
                start, rate = pace.sampling(times, indices)  # the video's rate, not the arm's
                try:
                    read = video.read_clip(recorded, start, len(indices), rate, view)
                except frames.UnreadableVideo as error:
                    raise ValueError(str(error)) from error
                clip["video"] = read["video"]
            return clip

        yield episodes.Episode(min(count, len(path)), arrays)


def _labels(path, gripper):
    """Returns the labels of a clip from its poses [F, 6] and gripper [F]."""
    state = np.concatenate([path, gripper[:, None]], 1).astype(np.float32)
    return {"actions": poses.droid_actions(path, gripper), "state": state}


def _raw_episodes(where):
    """Returns the folders with a trajectory, relative to `where`."""
    keys = []
    for folder, folders, files in os.walk(where):
        if "trajectory.h5" in files:
            keys.append(os.path.relpath(folder, where).replace(os.sep, "/"))
            folders.clear()
    return sorted(keys)


def _even_times(path):
    """Returns the times of a video's frames, see `pace.times`.

    Raises:
      ValueError: they aren't evenly spaced, as after a lost frame, which shifts all later rows.
    """
    times = pace.times(path)
    even = np.linspace(times[0], times[-1], len(times)) if len(times) else times
    if len(times) < 2 or np.abs(times - even).max() > pace.NEAR * (even[1] - even[0]):
        raise ValueError(f"{path}: its {len(times)} frames aren't evenly spaced in time")
    return times


def _rows(file, key, axes):
    """Reads a numeric array of an HDF5 file, with one row or number per step."""
    import h5py

    array = file.get(key)
    if not isinstance(array, h5py.Dataset) or array.ndim != axes or array.dtype.kind not in "fiu":
        raise ValueError(f"{file.filename}: {key}: expected numbers with {axes} axes, got {array}")
    return array[()]

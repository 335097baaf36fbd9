"""Reads DROID: episodes of a Franka arm with the poses that it reached, at 15 Hz."""

import contextlib
import dataclasses
import glob
import json
import os

import numpy as np

from lawm_jax.data import episodes, frames, paths, poses, tfds, video

RATE = 15.0  # steps per second
SEEN = "steps/observation/"  # what the arm and its cameras see, in the TFDS form
LABELS = f"{SEEN}cartesian_position", f"{SEEN}gripper_position"
# What the cameras of the TFDS form are called in the raw form's metadata.
CAMERAS = {
    "exterior_image_1_left": "ext1",
    "exterior_image_2_left": "ext2",
    "wrist_image_left": "wrist",
    "left": "left",
    "right": "right",
}


def source(name, where, split, data, view, camera="exterior_image_1_left"):
    """Opens DROID: the source `droid:DIR` or `droid:DIR?camera=CAMERA`.

    `actions` [F-1,7] are what the arm achieved, see `poses.droid_actions`, and `state` [F,7] is
    where it is: position (m) and Euler angles of the hand in the base frame, gripper closed (0 to
    1). At 4 fps every 4th step is read, which makes 3.75 Hz.

    Args:
      name: what an error message calls it.
      where: a TFDS folder, such as droid/1.0.1, of ArrayRecord or TFRecord files, or a folder with
        raw episodes at any depth: trajectory.h5, metadata_*.json and recordings/MP4/*.mp4.
      split: "train" or "test", by a hash of the record's number or the episode's path.
      data: has `frames`, `fps` and `holdout`.
      view: `frames.View`, or None to read labels alone.
      camera: one of the left eyes: exterior_image_1_left, exterior_image_2_left, wrist_image_left;
        in raw episodes also `left` and `right`, the exterior ones as seen from the robot: V-JEPA 2
        reads `left`.

    Returns:
      `episodes.Episodes`.

    Raises:
      ValueError: the folder holds none of the three, or there is no such camera.

    Source: Khazatsky et al. 2024, "DROID"; the raw form as in github.com/facebookresearch/vjepa2,
    app/vjepa_droid/droid.py, and github.com/droid-dataset/droid, droid/postprocessing.
    """
    where = paths.expand(where)
    if os.path.isfile(os.path.join(where, "dataset_info.json")):
        examples, items = tfds.open_examples(name, where, split, data.holdout)
        there = [one.removeprefix(SEEN) for one in examples.images if one.startswith(SEEN)]
        tfds.check(name, "camera", [camera], there)
        tfds.check(name, "labels", LABELS, examples.widths)
        opened = _Recorded(examples, SEEN + camera)
    else:
        tfds.check(name, "camera", [camera], CAMERAS)
        keys = _raw_episodes(where)
        if not keys:
            raise ValueError(
                f"{name}: expected a TFDS folder with dataset_info.json, such as droid/1.0.1, or "
                f"raw episodes with trajectory.h5 below it; neither is in {where!r}"
            )
        train, test = episodes.split(keys, data.holdout)
        items = tuple(os.path.join(where, keys[i]) for i in (train if split == "train" else test))
        opened = _Raw(f"{CAMERAS[camera]}_mp4_path")
    stride = episodes.stride(name, RATE, data.fps)
    return episodes.Episodes(name, items, opened, data.frames, stride, view)


@dataclasses.dataclass(frozen=True)
class _Recorded:
    """Opens episodes of the TFDS form, where frames are JPEG images."""

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
            raise frames.UnreadableVideo(item, f"its labels: {error}") from error
        if not len(path) == len(gripper) == len(images):
            reason = f"{len(path)} poses and {len(gripper)} gripper positions"
            raise frames.UnreadableVideo(item, f"{reason} for {len(images)} frames")

        def arrays(indices, view):
            clip = _labels(path[indices], gripper[indices, 0])
            if view is not None:
                clip["video"] = frames.Scaler(view).images([images[i] for i in indices])
            return clip

        yield episodes.Episode(len(images), arrays)


@dataclasses.dataclass(frozen=True)
class _Raw:
    """Opens folders of the raw form, where `key` of the metadata names the video."""

    key: str

    @contextlib.contextmanager
    def __call__(self, item):
        import h5py

        try:
            metadata = sorted(glob.glob(os.path.join(glob.escape(item), "metadata_*.json")))
            with open(metadata[0], encoding="utf-8") as file:
                recorded = os.path.basename(json.load(file)[self.key])
            with h5py.File(os.path.join(item, "trajectory.h5"), "r") as file:
                state = file["observation/robot_state"]
                path, gripper = state["cartesian_position"][()], state["gripper_position"][()]
            recorded = os.path.join(item, "recordings", "MP4", recorded)
            count, rate = _pace(recorded)
        except IndexError as error:
            raise frames.UnreadableVideo(item, "no metadata_*.json, or no video") from error
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise frames.UnreadableVideo(item, f"{type(error).__name__}: {error}") from error
        # Frame i belongs to row i. The last grab of a recording may have no row, or no frame.
        if abs(count - len(path)) > 1 or len(gripper) != len(path):
            reason = f"{len(path)} poses and {len(gripper)} gripper positions"
            raise frames.UnreadableVideo(item, f"{reason} for {count} frames of {recorded}")

        def arrays(indices, view):
            clip = _labels(path[indices], gripper[indices])
            if view is not None:
                step = indices[1] - indices[0] if len(indices) > 1 else 1
                start = (indices[0] + 0.5) / rate  # in the middle of the time a frame is shown
                try:
                    read = video.read_clip(recorded, start, len(indices), rate / step, view)
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
    """Lists the folders with a trajectory, relative to `where`."""
    found = []
    for folder, folders, files in os.walk(where):
        if "trajectory.h5" in files:
            found.append(os.path.relpath(folder, where).replace(os.sep, "/"))
            folders.clear()
    return sorted(found)


def _pace(path):
    """Returns number and rate of a video's frames; the rate is the player's, not the arm's.

    Raises:
      ValueError: it is no MP4, or its frames aren't evenly spaced: times don't tell their number.
      IndexError: there is no video stream.
    """
    import av

    try:
        with av.open(os.path.abspath(path), format="mp4") as container:
            stream = container.streams.video[0]
            times = np.array([entry.timestamp for entry in stream.index_entries])
            count, base = stream.frames, stream.time_base
    except av.FFmpegError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0
    late = times - times[0] - step * np.arange(len(times))
    if len(times) != count or not step or np.abs(late).max() > step / 4:
        raise ValueError(f"{path}: {count} frames that aren't evenly spaced")
    return count, float(1 / (step * base))

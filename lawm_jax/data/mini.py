"""Reads lawm_mini, the labelled set that the package embeds: a simulated arm, a walk through rooms.

`FOLDER/{panda,nav}/{train,test}/NNNN.mp4` are episodes of 4 frames per second; `NNNN.npz` beside
each holds `actions` float32 [T-1,U], where actions[t] leads frame t to t+1, and `state` float32
[T,k].
"""

import contextlib
import glob
import os
import pathlib
import zipfile

import numpy as np

from lawm_jax.data import episodes, paths, video

FOLDER = str(pathlib.Path(__file__).resolve().parents[1] / "assets" / "lawm_mini")
FPS = 4.0


def source(name, where, split, data, view):
    """Opens one part of lawm_mini: the source `mini:panda`, `mini:nav` or `mini:FOLDER/PART`.

    Args:
      name: what an error message calls it.
      where: the embedded part, or the folder of another set of the same layout.
      split: "train" or "test".
      data: has `frames` and `fps`.
      view: `frames.View`, or None to read labels alone.

    Raises:
      ValueError: there are no episodes, or `data.fps` isn't 4.
    """
    if data.fps != FPS:
        raise ValueError(f"data.fps: {name} has {FPS} frames a second, got {data.fps}")
    folder = os.path.join(FOLDER, paths.expand(where), split)  # just `where` if that is absolute
    items = tuple(paths.once(glob.glob(os.path.join(glob.escape(folder), "*.mp4"))))
    if not items:
        raise ValueError(f"{name}: no episodes *.mp4 in {folder!r}")
    return episodes.Episodes(name, items, _open, data.frames, 1, view)


@contextlib.contextmanager
def _open(item):
    try:
        with np.load(os.path.splitext(item)[0] + ".npz") as labels:
            actions, state = labels["actions"], labels["state"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise episodes.UnreadableVideo(item, f"its labels: {error}") from error
    if len(actions) != len(state) - 1:
        reason = f"its labels: {len(actions)} actions for {len(state)} states"
        raise episodes.UnreadableVideo(item, reason)

    def arrays(indices, view):
        clip = {
            "actions": actions[indices[:-1]].astype(np.float32),
            "state": state[indices].astype(np.float32),
        }
        if view is not None:
            read = video.read_clip(item, indices[0] / FPS, len(indices), FPS, view)
            clip["video"] = read["video"]
        return clip

    yield episodes.Episode(len(state), arrays)

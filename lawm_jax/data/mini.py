"""Reads lawm_mini, the labelled set that the package embeds: a simulated arm, a walk through rooms.

`FOLDER/{panda,nav}/{train,test}/NNNN.mp4` are episodes of 4 frames per second; `NNNN.npz` beside
each holds `actions` float32 [T-1,U], where actions[t] leads frame t to t+1, and `state` float32
[T,k].
"""

import dataclasses
import glob
import os
import pathlib
import zipfile

import numpy as np

from lawm_jax.data import video

FOLDER = str(pathlib.Path(__file__).resolve().parents[1] / "assets" / "lawm_mini")
FPS = 4.0


@dataclasses.dataclass(frozen=True)
class Mini:
    """Reads labelled clips of one part of lawm_mini: the source of `data.mixture`."""

    name: str
    items: tuple
    frames: int
    resize: int
    size: int

    def clip(self, item, place):
        """Reads the clip at `place`, in [0, 1), of the possible starts of one episode."""
        actions, state = _labels(item, self.frames)
        start = int(place * (len(state) - self.frames + 1))
        return self._read(item, start, actions, state)

    def fixed(self, item):
        """Yields the clips of one episode, end to end."""
        actions, state = _labels(item, self.frames)
        for start in range(0, len(state) - self.frames + 1, self.frames):
            yield self._read(item, start, actions, state)

    def _read(self, item, start, actions, state):
        clip = video.read_clip(item, start / FPS, self.frames, FPS, self.resize, self.size)
        return {
            "video": clip["video"],
            "actions": actions[start : start + self.frames - 1],
            "state": state[start : start + self.frames],
            "episode": int(os.path.splitext(os.path.basename(item))[0]),
            "start": start,
        }


def mini(name, split, frames, resize, size, folder=""):
    """Finds the episodes of one part of lawm_mini.

    Args:
      name: "panda" or "nav".
      split: "train" or "test".
      frames, resize, size: as in `video.read_clip`.
      folder: another folder of the same layout; "" for the embedded one.

    Raises:
      ValueError: there are no episodes.
    """
    where = os.path.join(folder or FOLDER, name, split)
    items = tuple(sorted(glob.glob(os.path.join(glob.escape(where), "*.mp4"))))
    if not items:
        raise ValueError(f"mixture: no episodes *.mp4 of {name!r} in {where!r}")
    return Mini(f"{name}/{split}", items, frames, resize, size)


def _labels(item, frames):
    """Reads actions [T-1,U] and state [T,k] of one episode."""
    try:
        with np.load(os.path.splitext(item)[0] + ".npz") as labels:
            actions, state = labels["actions"], labels["state"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise video.UnreadableVideo(item, f"its labels: {error}") from error
    if len(actions) != len(state) - 1 or len(state) < frames:
        reason = f"{len(actions)} actions for {len(state)} states, needs {frames} states or more"
        raise video.UnreadableVideo(item, reason)
    return actions.astype(np.float32), state.astype(np.float32)

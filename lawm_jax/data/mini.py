"""Reads lawm_mini, the labeled data embedded in the package: a simulated arm, a walk through rooms.

`FOLDER/{panda,nav}/{train,test}/NNNN.mp4` are episodes at 4 frames per second. `NNNN.npz` beside
each holds `actions` float32 [T-1,U], where actions[t] leads from frame t to t+1, and `state`
float32 [T,k].
"""

import contextlib
import dataclasses
import glob
import io
import os
import pathlib
import threading
import zipfile
import zlib

import numpy as np

from lawm_jax.data import episodes, pace, paths, recent, video

FOLDER = str(pathlib.Path(__file__).resolve().parents[1] / "assets" / "lawm_mini")
PARTS = "panda", "nav"
FPS = 4.0
# numpy parses array headers with `ast`, whose recursion counter is shared by all threads: one in
# many thousand reads raises SystemError (python/cpython, issue 106905).
_PARSING = threading.Lock()
# Raised by zipfile and numpy for damaged files; the last one for an unknown compression.
_ARCHIVE = zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError


def source(name, where, split, data, view):
    """Opens one part of lawm_mini: the source `mini:panda`, `mini:nav` or `mini:FOLDER/PART`.

    Args:
      name: name used in error messages.
      where: the embedded part, see `PARTS`, or the folder of other data with the same layout.
      split: "train" or "test".
      data: has `frames` and `fps`.
      view: `frames.View`, or None to read only labels.

    Raises:
      ValueError: there are no episodes, or `data.fps` isn't 4.
    """
    if data.fps != FPS:
        raise ValueError(f"data.fps: expected {FPS}, the frame rate of {name}, got {data.fps}")
    inside = os.path.join(folder(where), split)
    items = tuple(paths.once(glob.glob(os.path.join(glob.escape(inside), "*.mp4"))))
    if not items:
        expected = f"expected {', '.join(PARTS)} or FOLDER/PART"
        raise ValueError(f"{name}: no episodes *.mp4 in {inside!r}; {expected}")
    return episodes.Episodes(name, items, _Open(), data.frames, 1, view)


def folder(where):
    """Returns the folder of an embedded part or of other data, see `source`."""
    return os.path.join(FOLDER, where) if where in PARTS else paths.expand(where)


@dataclasses.dataclass(frozen=True)
class _Open:
    """Opens episodes by the path of their video; picklable.

    Attributes:
      frames: cache of the videos' frame counts.
    """

    frames: recent.Recent = dataclasses.field(default_factory=lambda: recent.Recent(2**14))

    @contextlib.contextmanager
    def __call__(self, item):
        try:
            content = pathlib.Path(os.path.splitext(item)[0] + ".npz").read_bytes()
            with _PARSING, np.lib.npyio.NpzFile(io.BytesIO(content)) as labels:
                actions, state = labels["actions"], labels["state"]
            for array in actions, state:
                if array.ndim != 2 or array.dtype.kind not in "fiu":
                    raise ValueError(f"expected numbers [T, k], got {array.dtype} {array.shape}")
        except (OSError, ValueError, *_ARCHIVE) as error:
            raise episodes.UnreadableVideo(item, f"labels: {error}") from error
        if len(actions) != len(state) - 1:
            reason = f"labels: expected {len(state) - 1} actions, one per step, got {len(actions)}"
            raise episodes.UnreadableVideo(item, reason)

        def arrays(indices, view):
            clip = {
                "actions": actions[indices[:-1]].astype(np.float32),
                "state": state[indices].astype(np.float32),
            }
            if view is not None:
                count = self.frames.get(item, _frames)
                if count != len(state):
                    reason = f"labels: expected {count} states, one per frame, got {len(state)}"
                    raise episodes.UnreadableVideo(item, reason)
                read = video.read_clip(item, indices[0] / FPS, len(indices), FPS, view)
                clip["video"] = read["video"]
            return clip

        yield episodes.Episode(len(state), arrays)


def _frames(path):
    """Returns the number of frames of a video; raises UnreadableVideo unless they are at `FPS`."""
    times = pace.times(path)
    if not (np.abs(times - np.arange(len(times)) / FPS) <= pace.NEAR / FPS).all():
        raise episodes.UnreadableVideo(path, f"expected {FPS:g} evenly spaced frames per second")
    return len(times)

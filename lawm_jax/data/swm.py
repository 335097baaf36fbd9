"""Reads data sets of stable-worldmodel: one HDF5 file with all episodes, end to end.

  pixels     uint8 [rows, H, W, 3]
  action     [rows, U]; a row's action leads to the next row, the last one of an episode to nothing
  ep_len     [episodes], rows of each episode
  ep_offset  [episodes], the first row of each

and further columns [rows, ...]. The file states no rate. Most environments of stable-worldmodel run
at 10 steps per second (`render_fps`).

Source: `HDF5Writer` and `HDF5Dataset` of github.com/galilai-group/stable-worldmodel (0.1.1,
data/formats/hdf5.py) and `World.collect`, which aligns actions and rows.
"""

import contextlib
import dataclasses
import logging
import os

import numpy as np

from lawm_jax.data import episodes, frames, hdf5, paths

RATE = "10"  # steps per second

_LOG = logging.getLogger(__name__)


def source(name, where, split, data, view, rate=RATE, video="pixels", state=""):
    """Opens a data set of stable-worldmodel: the source `swm:FOLDER` or `swm:FOLDER?rate=20&...`.

    Its clips have `actions` float32 [F-1,n*U], the n recorded actions between two frames,
    concatenated, as with that package's `frameskip` n.

    Args:
      name: name used in error messages.
      where: folder that holds one *.h5 or *.hdf5 file.
      split: "train" or "test", by a hash of the episode's number.
      data: has `frames`, `fps` and `holdout`.
      view: `frames.View`, or None to read only labels.
      rate: steps per second of the recording.
      video: column that holds the frames.
      state: column of numbers to return as `state` float32 [F,k]; "" for none.

    Returns:
      `episodes.Episodes`, whose items are the episodes' numbers.

    Raises:
      ValueError: there is no such file or column, or `rate` isn't positive or is less than
        `data.fps`.
    """
    stride = episodes.stride(name, episodes.rate(name, rate), data.fps)
    try:
        recording = _read(_file(where), video, state)
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{name}: {error}") from error
    train, test = episodes.split([str(i) for i in range(len(recording.ends))], data.holdout)
    if train == test:
        _LOG.warning("%s has only one episode: it is used for training and testing", name)
    items = tuple(train if split == "train" else test)
    return episodes.Episodes(name, items, recording, data.frames, stride, view)


@dataclasses.dataclass(frozen=True, eq=False)
class _Recording:
    """Opens episodes by number; picklable.

    Attributes:
      path: the file.
      starts, ends: int64 [episodes], the first row of each episode and the row after its last.
      video, state: columns of `source`.
    """

    path: str
    starts: np.ndarray
    ends: np.ndarray
    video: str
    state: str

    @contextlib.contextmanager
    def __call__(self, item):
        start, end = int(self.starts[item]), int(self.ends[item])
        try:
            with _open(self.path) as file:
                columns = {key: hdf5.array(file, key) for key in self.columns}

                def arrays(indices, view):
                    first, last = start + int(indices[0]), start + int(indices[-1])
                    step = int(np.diff(indices).max(initial=1))
                    rows = slice(first, last + 1, step)
                    taken = np.asarray(columns["action"][first:last], np.float32)
                    width = step * int(np.prod(taken.shape[1:]))
                    clip = {"actions": taken.reshape(len(indices) - 1, width)}
                    if self.state:
                        state = np.asarray(columns[self.state][rows], np.float32)
                        clip["state"] = state.reshape(len(indices), -1)
                    if view is not None:
                        clip["video"] = _seen(columns[self.video][rows], view)
                    return clip

                yield episodes.Episode(end - start, arrays)
        except (OSError, KeyError, RuntimeError, ValueError) as error:  # h5py raises all of these
            raise episodes.UnreadableVideo(str(item), f"{self.path}: {error}") from error

    @property
    def columns(self):
        """The columns that are read."""
        return [column for column in (self.video, "action", self.state) if column]

    def identity(self, item):
        """Returns the identity of an episode, see `episodes.identity`."""
        return f"{paths.identity(self.path)}#{item}"


def _seen(pictures, view):
    """Returns frames of a view from pictures uint8 [F, H, W, 3]."""
    if pictures.shape[1:3] == (view.size, view.size) and view.seed is None:
        return pictures
    return frames.Scaler(view).images(pictures)


def _file(where):
    """Returns the path of the only HDF5 file in a folder."""
    folder = paths.expand(where)
    if not os.path.isdir(folder):
        raise ValueError(f"expected a folder that holds one *.h5 file, got {where!r}")
    names = sorted(name for name in os.listdir(folder) if name.endswith((".h5", ".hdf5")))
    if len(names) != 1:
        raise ValueError(f"expected one file *.h5 in {where!r}, got {', '.join(names) or 'none'}")
    return os.path.join(folder, names[0])


def _open(path):
    """Opens an HDF5 file, with the filters of hdf5plugin for compressed data where installed."""
    import h5py

    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401
    return h5py.File(path, "r")


def _read(path, video, state):
    """Reads where the episodes are and checks the columns; returns a `_Recording`."""
    with _open(path) as file:
        lengths, starts = (hdf5.array(file, key)[:] for key in ("ep_len", "ep_offset"))
        for key, array in ("ep_len", lengths), ("ep_offset", starts):
            if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
                raise ValueError(
                    f"{path}: {key}: expected integers [episodes], got {array.dtype} {array.shape}"
                )
        if len(lengths) != len(starts) or min(lengths.min(), starts.min()) < 0:
            raise ValueError(f"{path}: expected a start and a length of each episode")
        recording = _Recording(
            path, starts.astype(int), (starts + lengths).astype(int), video, state
        )
        for key in recording.columns:
            _check(path, key, hdf5.array(file, key), recording.ends.max(), key == video)
    return recording


def _check(path, key, column, rows, is_video):
    """Raises ValueError unless a column holds frames, or numbers, in enough rows."""
    import h5py

    if is_video and (column.ndim != 4 or column.shape[3] != 3 or column.dtype != np.uint8):
        text = f"expected uint8 [rows, H, W, 3], got {column.dtype} {column.shape}"
        raise ValueError(f"{path}: {key}: {text}")
    if not is_video and (column.ndim < 2 or column.dtype.kind not in "fiub"):
        text = f"expected numbers [rows, k], got {column.dtype} {column.shape}"
        raise ValueError(f"{path}: {key}: {text}")
    if len(column) < rows:
        raise ValueError(f"{path}: {key}: expected at least {rows} rows, got {len(column)}")
    properties = column.id.get_create_plist()
    for number in (properties.get_filter(i)[0] for i in range(properties.get_nfilters())):
        if not h5py.h5z.filter_avail(number):
            text = f"compressed by filter {number} of HDF5: pip install hdf5plugin"
            raise ValueError(f"{path}: {key}: {text}")

"""Reads LeRobot data sets of the versions 2.0, 2.1 and 3.0.

  meta/info.json             frames a second, features, templates of the paths
  meta/episodes.jsonl        v2: number and length of each episode
  meta/episodes/**.parquet   v3: the same, and in which files it lies, and where
  data/**.parquet            a row per frame: actions, state, perhaps the images
  videos/**.mp4              else a file per camera

In v2 an episode has files of its own; in v3 files hold many, end to end. Row i and frame i of an
episode belong together: the frame is shown i / fps after the episode's `from_timestamp`.

Source: github.com/huggingface/lerobot, lerobot/common/datasets/utils.py (v2) and src/lerobot/
datasets/dataset_metadata.py, dataset_reader.py and dataset_writer.py (v3). That reader ignores the
`splits` of info.json, and so does this one.
"""

import contextlib
import dataclasses
import glob
import json
import logging
import math
import os
import re

import numpy as np

from lawm_jax.data import episodes, frames, paths, video

VERSIONS = ("v2.0", "v2.1", "v3.0")

_LOG = logging.getLogger(__name__)
# What damaged files bring about.
_DAMAGE = ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError


def source(name, where, split, data, view, camera="", actions="action", state="observation.state"):
    """Opens a LeRobot data set: the source `lerobot:FOLDER` or `lerobot:FOLDER?camera=FEATURE&...`.

    Its clips have, where the data set does, `state` float32 [F,k] and `actions` float32 [F-1,n*U]:
    the n recorded actions taken between two frames, one after another, as `frameskip` of
    github.com/gaoyuezhou/dino_wm has them (datasets/traj_dset.py).

    Args:
      name: what an error message calls it.
      where: folder of the data set.
      split: "train" or "test", by a hash of the episode's number.
      data: has `frames`, `fps` and `holdout`.
      view: `frames.View`, or None to read labels alone.
      camera: feature to show; "" for the only one.
      actions, state: features, or "none".

    Returns:
      `episodes.Episodes`, whose items are the episodes' numbers.

    Raises:
      ValueError: it is no such data set, has no such feature, fewer frames a second than
        `data.fps`, or paths that lead out of its folder.
    """
    try:
        recording = _read(paths.expand(where), camera, actions, state)
    except _DAMAGE as error:
        raise ValueError(f"{name}: {_reason(error)}") from error
    stride = episodes.stride(name, recording.fps, data.fps)
    recording = dataclasses.replace(recording, stride=stride)
    numbers = recording.table["number"].tolist()
    train, test = episodes.split([str(number) for number in numbers], data.holdout)
    if train == test:
        _LOG.warning("%s has only one episode: it is used for training and testing", name)
    items = tuple(numbers[i] for i in (train if split == "train" else test))
    return episodes.Episodes(name, items, recording, data.frames, stride, view)


@dataclasses.dataclass(frozen=True)
class _Recording:
    """Opens episodes by their number; picklable.

    Attributes:
      root: folder of the data set.
      templates: of its paths: of "data" and, unless that holds the images, of "videos".
      chunk: number of episodes to a folder, in v2.
      fps: rows and frames a second.
      camera: feature to show.
      columns: which features are "actions" and "state"; those that there are.
      table: arrays with an entry per episode: its number, rising, and its length; "data" and
        "videos" [2], which files it lies in; the first of its rows; start and, at most, end of its
        frames in seconds.
      stride: rows from one frame of a clip to the next.
    """

    root: str
    templates: dict
    chunk: int
    fps: float
    camera: str
    columns: dict
    table: dict
    stride: int = 1

    @contextlib.contextmanager
    def __call__(self, item):
        import pyarrow.parquet

        row = int(np.searchsorted(self.table["number"], item))
        length, first = int(self.table["length"][row]), int(self.table["first"][row])
        path = self.path(row, "data")
        try:
            # Read as needed: a file may be large, with rows of many episodes.
            options = {"pre_buffer": False, "buffer_size": 2**16}
            with pyarrow.parquet.ParquetFile(path, **options) as file:
                if file.metadata.num_rows < first + length:
                    raise ValueError(f"{file.metadata.num_rows} rows, needs {first + length}")

                def arrays(indices, view):
                    clip = self._labels(file, item, first, indices)
                    if view is None:
                        return clip
                    if "videos" in self.templates:
                        return clip | {"video": self._shown(item, row, indices, view)}
                    images = _images(_rows(file, first + indices, [self.camera], 16), self.camera)
                    return clip | {"video": frames.Scaler(view).images(images)}

                yield episodes.Episode(length, arrays)
        except _DAMAGE as error:
            raise episodes.UnreadableVideo(str(item), f"{path}: {_reason(error)}") from error

    def identity(self, item):
        """Returns the name of an episode, see `episodes.identity`."""
        return f"{paths.identity(self.root)}#{item}"

    def path(self, row, kind):
        """Returns the path of an episode's "data" or "videos"; raises ValueError, see `_path`."""
        number, (chunk, file) = int(self.table["number"][row]), self.table[kind][row]
        fields = {"episode_index": number, "episode_chunk": number // self.chunk}
        fields |= {"chunk_index": chunk, "file_index": file, "video_key": self.camera}
        return _path(self.root, self.templates[kind], fields)

    def _labels(self, file, item, first, indices):
        """Returns actions and state of an episode's rows `indices`, where there are some."""
        wanted = np.arange(indices[0], indices[-1] + 1)
        columns = {"episode_index", "frame_index", *self.columns.values()}
        rows = _rows(file, first + wanted, sorted(columns), 1024)
        for column, expected in ("episode_index", item), ("frame_index", wanted):
            if (_numbers(rows, column)[:, 0] != expected).any():
                raise ValueError(f"rows {first + wanted[[0, -1]]} have another {column}")
        clip = {key: _numbers(rows, column) for key, column in self.columns.items()}
        if "actions" in clip:
            U = clip["actions"].shape[1]
            clip["actions"] = clip["actions"][:-1].reshape(-1, self.stride * U)
        if "state" in clip:
            clip["state"] = clip["state"][:: self.stride]
        if not all(np.isfinite(values).all() for values in clip.values()):
            raise ValueError(f"expected finite numbers in {', '.join(self.columns.values())}")
        return {key: values.astype(np.float32) for key, values in clip.items()}

    def _shown(self, item, row, indices, view):
        """Returns the frames `indices` of an episode from its video, uint8 [F, size, size, 3]."""
        # The middle of each frame: added up, durations of episodes miss the exact timestamps.
        times = self.table["start"][row] + (indices + 0.5) / self.fps
        if times[-1] >= self.table["end"][row]:
            raise ValueError("more rows than frames: the next episode's video begins before")
        path, rate = self.path(row, "videos"), self.fps / self.stride
        try:
            return video.read_clip(path, times[0], len(times), rate, view)["video"]
        except episodes.UnreadableVideo as error:
            start = None if error.start is None else float(indices[0])
            raise episodes.UnreadableVideo(str(item), str(error), start) from error


def _read(root, camera, actions, state):
    """Reads a data set's metadata; errors of any kind in `_DAMAGE` say what is wrong with it."""
    path = os.path.join(root, "meta", "info.json")
    if not os.path.isfile(path):
        raise ValueError(f"expected a LeRobot data set, there is no {path!r}")
    with open(path, encoding="utf-8") as file:
        info = json.load(file)
    missing = {"codebase_version", "fps", "features", "data_path"} - info.keys()
    if missing:
        raise ValueError(f"{path}: expected {sorted(missing)}, there is none")
    version, fps, features = info["codebase_version"], float(info["fps"]), info["features"]
    if version not in VERSIONS or not 0 < fps < math.inf:
        raise ValueError(f"{path}: expected {', '.join(VERSIONS)}, got {version!r} with fps {fps}")
    camera = _camera(features, camera)
    columns = {"actions": _column(features, "actions", actions, "action")}
    columns["state"] = _column(features, "state", state, "observation.state")
    columns = {key: column for key, column in columns.items() if column}
    templates = {"data": info["data_path"]}
    if features[camera]["dtype"] == "video":
        templates["videos"] = info["video_path"]
    if version == "v3.0":
        table = _read_parquet(root, camera if "videos" in templates else None)
    else:
        table = _read_jsonl(root)
    chunk = int(info.get("chunks_size", 1000))
    recording = _Recording(root, templates, chunk, fps, camera, columns, table)
    for kind in templates:
        recording.path(0, kind)
    return recording


def _camera(features, wanted):
    """Returns the feature to show: the wanted one, or the only one."""
    cameras = [key for key, value in features.items() if value["dtype"] in ("video", "image")]
    if wanted in cameras:
        return wanted
    if wanted or len(cameras) != 1:
        raise ValueError(f"camera: expected one of {cameras}, got {wanted!r}")
    return cameras[0]


def _column(features, option, wanted, usual):
    """Returns the feature that an option stands for, or None."""
    kinds = ("float", "int", "uint", "bool")
    numbers = [key for key, value in features.items() if value["dtype"].startswith(kinds)]
    if wanted in numbers:
        return wanted
    if wanted == "none" or wanted == usual and usual not in features:
        return None
    raise ValueError(f"{option}: expected one of {numbers}, got {wanted!r}")


def _read_jsonl(root):
    """Reads the table of a v2 data set."""
    rows = []
    with open(os.path.join(root, "meta", "episodes.jsonl"), encoding="utf-8") as file:
        for line in filter(str.strip, file):
            row = json.loads(line)
            rows.append((row["episode_index"], row["length"]))
    number, length = np.array(rows, np.int64).reshape(-1, 2).T
    zero, files = np.zeros(len(rows), np.int64), np.zeros((len(rows), 2), np.int64)
    table = {"number": number, "length": length, "data": files, "videos": files}
    return _sorted(table | {"first": zero, "start": zero, "end": np.full(len(rows), np.inf)})


def _read_parquet(root, camera):
    """Reads the table of a v3 data set; `camera` is None where it has no videos."""
    import pyarrow.parquet

    names = ["episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
    places = ("chunk_index", "file_index", "from_timestamp")
    names += [f"videos/{camera}/{place}" for place in places if camera]
    pieces = []
    folder = glob.escape(os.path.join(root, "meta", "episodes"))
    for path in sorted(glob.glob(os.path.join(folder, "**", "*.parquet"), recursive=True)):
        with pyarrow.parquet.ParquetFile(path) as file:
            piece = file.read(names, use_threads=False)
        missing = set(names) - set(piece.column_names)
        if missing:
            raise ValueError(f"{path}: expected {sorted(missing)}, there is none")
        pieces.append(piece)
    if not pieces:
        raise ValueError(f"{folder}: no episodes")
    number, length, index, *files = (
        np.concatenate([piece[name].to_numpy() for piece in pieces]) for name in names
    )
    table = {"number": number, "length": length, "data": np.stack(files[:2], 1)}
    table["first"] = index - _within(table["data"], index)[0]
    if camera:
        table["videos"] = np.stack(files[2:4], 1)
    table = {key: values.astype(np.int64) for key, values in table.items()}
    if camera:
        table["start"], table["end"] = files[4], _within(table["videos"], files[4])[1]
    return _sorted(table)


def _sorted(table):
    """Sorts a table by the episodes' numbers."""
    numbers, order = np.unique(table["number"], return_index=True)
    if not 0 < len(order) == len(table["number"]):
        total = len(table["number"])
        raise ValueError(f"expected episodes with numbers of their own, got {total}, {len(order)}")
    return {key: values[order] for key, values in table.items()}


def _within(files, place):
    """Returns where each episode's file begins, and where in it the next episode does, or inf.

    Args:
      files: [N, 2], which file each lies in.
      place: [N], where in a row of files, or in its file, it begins.
    """
    order = np.lexsort((place, *files.T))
    files, ranked = files[order], place[order]
    new = np.append(True, (files[1:] != files[:-1]).any(1))
    begin, following = np.empty_like(place), np.full(len(place), np.inf)
    begin[order] = ranked[np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))]
    following[order[:-1]] = np.where(new[1:], np.inf, ranked[1:])
    return begin, following


def _path(root, template, fields):
    """Fills in a template of a path.

    Not by str.format, which a template could make fill the memory. Links in the folder are
    followed: of these the hub's cache is made.

    Raises:
      ValueError: a field is unknown, or the path leads out of the folder `root`.
    """

    def fill(match):
        if match[1] not in fields:
            raise ValueError(f"{template!r}: expected fields {sorted(fields)}, got {match[1]!r}")
        return str(fields[match[1]]).zfill(int(match[2] or 0))

    path = os.path.normpath(re.sub(r"\{(\w+)(?::0?(\d)d)?\}", fill, template))
    if os.path.isabs(path) or path.split(os.sep)[0] == ".." or "{" in path:
        raise ValueError(f"{template!r}: expected a path within the data set, got {path!r}")
    return os.path.join(root, path)


def _rows(file, rows, columns, batch):
    """Reads rows of a parquet file, given as rising numbers, `batch` at a time."""
    import pyarrow

    groups = range(file.metadata.num_row_groups)
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in groups])
    low, high = np.searchsorted(ends, rows[[0, -1]], "right")
    at, pieces = int(ends[low - 1]) if low else 0, []
    for piece in file.iter_batches(batch, groups[low : high + 1], columns, use_threads=False):
        mine = rows[(at <= rows) & (rows < at + len(piece))]
        if len(mine):
            pieces.append(piece.take(pyarrow.array(mine - at)))
        at += len(piece)
        if at > rows[-1]:
            break
    return pyarrow.Table.from_batches(pieces)


def _numbers(rows, column):
    """Returns a column as float64 [rows, k]; one with more axes is flattened."""
    return np.asarray(rows[column].to_pylist(), np.float64).reshape(len(rows), -1)


def _images(rows, column):
    """Returns the bytes of the images in a column; a `path` in their place isn't followed."""
    images = [image and image["bytes"] for image in rows[column].to_pylist()]
    if not all(images):
        raise ValueError(f"{column}: expected images in the rows")
    return images


def _reason(error):
    plain = isinstance(error, (OSError, ValueError))
    return str(error) if plain else f"{type(error).__name__}: {error}"

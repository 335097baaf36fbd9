"""Reads LeRobot data sets of the versions 2.0, 2.1 and 3.0.

  meta/info.json             frame rate, features, path templates
  meta/episodes.jsonl        v2: number and length of each episode
  meta/episodes/**.parquet   v3: the same, plus the files of each episode and its position in them
  data/**.parquet            one row per frame: actions, state, possibly images
  videos/**.mp4              otherwise one file per camera

In v2 each episode has its own files; in v3 a file holds many consecutive episodes. A row belongs to
the frame shown at `from_timestamp` plus its `timestamp`, as in LeRobot, which rejects a row that
has no frame within 0.1 ms. This reader rejects an episode unless each row has a frame within a
quarter of the frame interval and each frame has a row. It rejects a clip unless `frame_index` and
`index` number its rows consecutively and `timestamp` increases at about the rate of info.json.

Source: github.com/huggingface/lerobot, lerobot/common/datasets/utils.py (v2) and src/lerobot/
datasets/dataset_metadata.py, dataset_reader.py and dataset_writer.py (v3). Like that reader, this
one ignores the `splits` of info.json.
"""

import contextlib
import dataclasses
import glob
import logging
import os
import re

import numpy as np

from lawm_jax.data import episodes, frames, metadata, pace, paths, recent, video

VERSIONS = ("v2.0", "v2.1", "v3.0")
# Default features of the labels: LeRobot's name first, then other common names.
USUAL = {"actions": ("action", "actions"), "state": ("observation.state", "state")}

BOOKKEEPING = "timestamp", "frame_index", "episode_index", "index", "task_index"
NUMBERS = ("float", "int", "uint", "bool")  # prefixes of numeric dtypes

_LOG = logging.getLogger(__name__)
_KEPT = 256  # number of episodes whose frame times are cached


def source(name, where, split, data, view, camera="", actions="action", state="observation.state"):
    """Opens a LeRobot data set: the source `lerobot:FOLDER` or `lerobot:FOLDER?camera=FEATURE&...`.

    If the data set has them, clips hold `state` float32 [F,k] and `actions` float32 [F-1,n*U]: the
    n recorded actions between two frames, concatenated, as with `frameskip` of
    github.com/gaoyuezhou/dino_wm (datasets/traj_dset.py).

    Args:
      name: name used in error messages.
      where: folder of the data set.
      split: "train" or "test", by a hash of the episode's number.
      data: has `frames`, `fps` and `holdout`.
      view: `frames.View`, or None to read only labels.
      camera: feature to show; "" selects the only camera.
      actions, state: features, or "none".

    Returns:
      `episodes.Episodes`, whose items are the episodes' numbers.

    Raises:
      ValueError: the folder is not a LeRobot data set, or the data set has no such feature, fewer
        frames per second than `data.fps`, or paths that lead out of the folder.
    """
    import pyarrow

    try:
        recording = _read(paths.expand(where), camera, actions, state)
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{name}: {error}") from error
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
    """Opens episodes by number; picklable.

    Attributes:
      root: folder of the data set.
      templates: path templates for "data" and, unless the rows hold the images, for "videos".
      chunk: episodes per folder, in v2.
      fps: rows and frames per second.
      camera: feature to show.
      columns: maps "actions" and "state" to their features, if they exist.
      table: arrays with one entry per episode: "number", ascending; "length"; "data" and "videos"
        [2], the files that hold it; "first", its first row; "start" and "stop" of its frames in the
        video, seconds; and "end", where the next episode's frames start.
      stride: rows from one frame of a clip to the next.
      times: cache of the times of episodes' frames.
    """

    root: str
    templates: dict
    chunk: int
    fps: float
    camera: str
    columns: dict
    table: dict
    stride: int = 1
    times: recent.Recent = dataclasses.field(default_factory=lambda: recent.Recent(_KEPT))

    @contextlib.contextmanager
    def __call__(self, item):
        import pyarrow.parquet

        damage = pyarrow.ArrowException, OSError, ValueError
        row = int(np.searchsorted(self.table["number"], item))
        length, first = int(self.table["length"][row]), int(self.table["first"][row])
        path = self.path(row, "data")
        try:
            # Don't read ahead: a file may be large, with rows of many episodes.
            options = {"pre_buffer": False, "buffer_size": 2**16}
            with pyarrow.parquet.ParquetFile(path, **options) as file:
                if file.metadata.num_rows < first + length:
                    raise ValueError(
                        f"expected at least {first + length} rows, got {file.metadata.num_rows}"
                    )

                def arrays(indices, view):
                    try:
                        clip = self._labels(file, item, first, indices)
                    except damage as error:
                        raise ValueError(f"{path}: {error}") from error
                    if view is None:
                        return clip
                    if "videos" in self.templates:
                        return clip | {"video": self._video(item, row, file, indices, view)}
                    images = _images(_rows(file, first + indices, [self.camera], 16), self.camera)
                    return clip | {"video": frames.Scaler(view).images(images)}

                yield episodes.Episode(length, arrays)
        except damage as error:
            raise episodes.UnreadableVideo(str(item), f"{path}: {error}") from error

    def identity(self, item):
        """Returns the identity of an episode, see `episodes.identity`."""
        return f"{paths.identity(self.root)}#{item}"

    def path(self, row, kind):
        """Returns the path of an episode's "data" or "videos" file, see `_path`."""
        number, (chunk, file) = int(self.table["number"][row]), self.table[kind][row]
        fields = {"episode_index": number, "episode_chunk": number // self.chunk}
        fields |= {"chunk_index": chunk, "file_index": file, "video_key": self.camera}
        return _path(self.root, self.templates[kind], fields)

    def _labels(self, file, item, first, indices):
        """Returns the actions and state, if any, of an episode's rows `indices`."""
        numbers = np.arange(indices[0], indices[-1] + 1)
        names = file.schema_arrow.names
        columns = {"episode_index", "frame_index", *self.columns.values()}
        missing = columns - set(names)
        if missing:
            raise ValueError(f"expected columns {sorted(missing)}, got {names}")
        columns |= {"index", "timestamp"} & set(names)
        rows = _rows(file, first + numbers, sorted(columns), 1024)
        for column, expected in ("episode_index", item), ("frame_index", numbers):
            if (_numbers(rows, column)[:, 0] != expected).any():
                raise ValueError(f"rows {first + numbers[[0, -1]]} have an unexpected {column}")
        if "index" in columns and (np.diff(_numbers(rows, "index")[:, 0]) != 1).any():
            raise ValueError(f"rows {first + numbers[[0, -1]]} have gaps in their index")
        if "timestamp" in columns:
            self._check_pace(_numbers(rows, "timestamp")[:, 0], numbers)
        clip = {key: _numbers(rows, column) for key, column in self.columns.items()}
        if "actions" in clip:
            U = clip["actions"].shape[1]
            clip["actions"] = clip["actions"][:-1].reshape(-1, self.stride * U)
        if "state" in clip:
            clip["state"] = clip["state"][:: self.stride]
        return {key: values.astype(np.float32) for key, values in clip.items()}

    def _check_pace(self, stamps, numbers):
        """Raises ValueError unless the timestamps of rows have the rate of info.json."""
        steps = np.diff(stamps) * self.fps
        if not (np.abs(steps - 1) < 0.5).all():
            worst = int(np.abs(steps - 1).argmax())
            raise ValueError(
                f"timestamp: expected rows {1 / self.fps:.4g} s apart, as in info.json, got "
                f"{steps[worst] / self.fps:.4g} s between frame {numbers[worst]} and the next"
            )
        if len(steps) and abs(steps.mean() - 1) > 0.1:
            raise ValueError(
                f"timestamp: expected {self.fps:g} rows per second, as in info.json, got "
                f"{self.fps / steps.mean():.4g}"
            )

    def _frame_times(self, row, path, file):
        """Returns the time of each frame of an episode, in seconds from the start of its file.

        Raises:
          ValueError: the frames don't match the rows one to one.
        """
        length, first = int(self.table["length"][row]), int(self.table["first"][row])
        start, half = float(self.table["start"][row]), 0.5 / self.fps
        times = pace.times(path, start - half, float(self.table["stop"][row]) - half)
        if len(times) != length:
            raise ValueError(f"expected one frame per row, got {len(times)} for {length} rows")
        if "timestamp" in file.schema_arrow.names:
            rows = _rows(file, first + np.arange(length), ["timestamp"], 2**16)
            stamps = start + _numbers(rows, "timestamp")[:, 0]
        else:
            stamps = start + np.arange(length) / self.fps
        error = np.abs(times - stamps)
        if not (error <= pace.NEAR / self.fps).all():
            wrong = int(np.argmax(~(error <= pace.NEAR / self.fps)))
            raise ValueError(
                f"expected frame {wrong} at {stamps[wrong]:.4f} s, the timestamp of its row, got "
                f"{times[wrong]:.4f} s: video and rows have different rates, or some are missing"
            )
        return times

    def _video(self, item, row, file, indices, view):
        """Returns the frames `indices` of an episode from its video, uint8 [F, size, size, 3]."""
        path = self.path(row, "videos")
        try:
            times = self.times.get(row, lambda row: self._frame_times(row, path, file))
        except (episodes.UnreadableVideo, ValueError) as error:  # the whole episode is unreadable
            reason = str(error) if path in str(error) else f"{path}: {error}"
            raise episodes.UnreadableVideo(str(item), reason) from error
        if times[indices[-1]] + 0.5 / self.fps >= self.table["end"][row]:
            raise ValueError(
                "more rows than frames: the next episode's video begins before the clip ends"
            )
        start, rate = pace.sampling(times, indices)
        try:
            return video.read_clip(path, start, len(indices), rate, view)["video"]
        except episodes.UnreadableVideo as error:
            start = None if error.start is None else float(indices[0])
            raise episodes.UnreadableVideo(str(item), str(error), start) from error


def _read(root, camera, actions, state):
    """Reads a data set's metadata; raises ValueError if it is invalid."""
    path = os.path.join(root, "meta", "info.json")
    if not os.path.isfile(path):
        raise ValueError(f"expected a LeRobot data set, but {path!r} doesn't exist")
    info = metadata.load(path, "a LeRobot info.json")
    version = metadata.field(path, info, "codebase_version", "a string")
    if version not in VERSIONS:
        raise ValueError(f"{path}: codebase_version: expected {', '.join(VERSIONS)}, got {version}")
    fps = float(metadata.field(path, info, "fps", "a positive number"))
    features = metadata.field(path, info, "features", "an object")
    types = {}
    for key, value in features.items():
        metadata.check(path, f"features, {key}", value, "an object")
        types[key] = metadata.field(f"{path}: features, {key}", value, "dtype", "a string")
    camera = _camera(types, camera)
    columns = {"actions": _column(types, "actions", actions)}
    columns["state"] = _column(types, "state", state)
    columns = {key: column for key, column in columns.items() if column}
    templates = {"data": metadata.field(path, info, "data_path", "a string")}
    if types[camera] == "video":
        templates["videos"] = metadata.field(path, info, "video_path", "a string")
    if version == "v3.0":
        table = _read_parquet(root, camera if "videos" in templates else None)
    else:
        table = _read_jsonl(os.path.join(root, "meta", "episodes.jsonl"))
    chunk = metadata.check(path, "chunks_size", info.get("chunks_size", 1000), "a positive integer")
    recording = _Recording(root, templates, chunk, fps, camera, columns, table)
    _check_files(recording)
    return recording


def _check_files(recording):
    """Logs the number of missing files; raises ValueError if all files of a kind are missing."""
    for kind in recording.templates:
        rows = range(len(recording.table["number"]))
        files = dict.fromkeys(recording.path(row, kind) for row in rows)
        missing = [path for path in files if not os.path.isfile(path)]
        if len(missing) == len(files):
            raise ValueError(
                f"expected {len(files)} files of {kind}, got none; first missing: {min(files)}"
            )
        if missing:
            counts = f"{len(missing)} of {len(files)} files of {kind} are missing"
            _LOG.warning("%s: %s: %s ...", recording.root, counts, ", ".join(missing[:3]))


def _camera(types, name):
    """Returns the requested camera feature, or the only one."""
    cameras = [key for key, kind in types.items() if kind in ("video", "image")]
    if name in cameras:
        return name
    if name or len(cameras) != 1:
        raise ValueError(f"camera: expected one of {cameras}, got {name!r}")
    return cameras[0]


def _column(types, option, name):
    """Returns the feature that the option "actions" or "state" selects, or None."""
    numbers = [key for key, kind in types.items() if kind.startswith(NUMBERS)]
    if name in numbers:
        return name
    if name == "none":
        return None
    others = [key for key in numbers if key not in BOOKKEEPING]
    if name != USUAL[option][0]:
        raise ValueError(f"{option}: expected one of {others} or 'none', got {name!r}")
    for usual in USUAL[option]:
        if usual in numbers:
            return usual
    if others:
        text = "there is no feature %r, so clips have no %s; use ?%s=NAME to select one of %s"
        _LOG.warning(text, name, option, option, others)
    return None


def _read_jsonl(path):
    """Reads the episode table of a v2 data set, see `_Recording`."""
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                row = metadata.parse(line, where, "an episode")
                keys = "episode_index", "length"
                rows.append([metadata.field(where, row, key, "an integer >= 0") for key in keys])
    try:
        number, length = np.array(rows, np.int64).reshape(-1, 2).T
    except OverflowError as error:
        raise ValueError(f"{path}: expected 64-bit integers: {error}") from error
    zero, files = np.zeros(len(rows), np.int64), np.zeros((len(rows), 2), np.int64)
    table = {"number": number, "length": length, "data": files, "videos": files}
    inf = np.full(len(rows), np.inf)
    return _sorted(path, table | {"first": zero, "start": zero, "end": inf, "stop": inf})


def _read_parquet(root, camera):
    """Reads the episode table of a v3 data set; `camera` is None if it has no videos."""
    names = ["episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
    places = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    names += [f"videos/{camera}/{place}" for place in places if camera]
    folder = glob.escape(os.path.join(root, "meta", "episodes"))
    tables = sorted(glob.glob(os.path.join(folder, "**", "*.parquet"), recursive=True))
    pieces = [_read_columns(path, names) for path in tables]
    if not pieces or not sum(map(len, pieces)):
        raise ValueError(f"{folder}: no episodes")
    number, length, index, *files = (
        np.concatenate([piece[name].to_numpy() for piece in pieces]) for name in names
    )
    for name, values in zip(names, (number, length, index), strict=False):
        if (values < 0).any():
            raise ValueError(f"{folder}: {name}: expected numbers >= 0, got {values.min()}")
    table = {"number": number, "length": length, "data": np.stack(files[:2], 1)}
    table["first"] = index - _within(table["data"], index)[0]
    if camera:
        table["videos"] = np.stack(files[2:4], 1)
    table = {key: values.astype(np.int64) for key, values in table.items()}
    if camera:
        table["start"], table["end"] = files[4], _within(table["videos"], files[4])[1]
        table["stop"] = files[5]
    return _sorted(folder, table)


def _read_columns(path, names):
    """Reads columns of a parquet file of episodes; raises ValueError unless they hold numbers."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            piece = file.read(names, use_threads=False)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path}: expected a table of episodes, got: {error}") from error
    missing = set(names) - set(piece.column_names)
    if missing:
        raise ValueError(f"{path}: expected columns {sorted(missing)}, which are missing")
    for name in names:
        kind = piece[name].type
        is_integer = pyarrow.types.is_integer(kind)
        fits = is_integer or name.endswith("_timestamp") and pyarrow.types.is_floating(kind)
        if not fits or piece[name].null_count:
            raise ValueError(f"{path}: {name}: expected numbers, got {kind} or empty cells")
    return piece


def _sorted(where, table):
    """Sorts an episode table by episode number."""
    numbers, order = np.unique(table["number"], return_index=True)
    if not 0 < len(order) == len(table["number"]):
        total = len(table["number"])
        raise ValueError(
            f"{where}: expected episodes with unique numbers, got {total} episodes with "
            f"{len(order)} different numbers"
        )
    return {key: values[order] for key, values in table.items()}


def _within(files, place):
    """Returns where each episode's file begins, and where the next episode in it begins, or inf.

    Args:
      files: [N, 2], the file that holds each episode.
      place: [N], the episode's position, in the file or in the sequence of all files.
    """
    order = np.lexsort((place, *files.T))
    files, ranked = files[order], place[order]
    new = np.append(True, (files[1:] != files[:-1]).any(1))
    begin, following = np.empty_like(place), np.full(len(place), np.inf)
    begin[order] = ranked[np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))]
    following[order[:-1]] = np.where(new[1:], np.inf, ranked[1:])
    return begin, following


def _path(root, template, fields):
    """Fills in a path template.

    It doesn't use str.format, since a malicious template could exhaust the memory. Links in the
    folder are followed, as the Hugging Face Hub's cache consists of links.

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
    """Reads rows of a parquet file, given as ascending numbers, `batch` at a time."""
    import pyarrow

    groups = range(file.metadata.num_row_groups)
    ends = np.cumsum([file.metadata.row_group(i).num_rows for i in groups])
    low, high = np.searchsorted(ends, rows[[0, -1]], "right")
    at, pieces = int(ends[low - 1]) if low else 0, []
    for piece in file.iter_batches(batch, groups[low : high + 1], columns, use_threads=False):
        selected = rows[(at <= rows) & (rows < at + len(piece))]
        if len(selected):
            pieces.append(piece.take(pyarrow.array(selected - at)))
        at += len(piece)
        if at > rows[-1]:
            break
    return pyarrow.Table.from_batches(pieces)


def _numbers(rows, column):
    """Returns a column as float64 [rows, k], with all inner axes flattened.

    Raises:
      ValueError: it isn't numeric, or its rows have different lengths.
    """
    import pyarrow

    kind = rows[column].type
    types = pyarrow.types
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise ValueError(f"{column}: expected numbers, got {rows[column].type}")
    return np.asarray(rows[column].to_pylist(), np.float64).reshape(len(rows), -1)


def _images(rows, column):
    """Returns the bytes of the images in a column; images stored as a `path` are not read."""
    kind = rows[column].type
    names = [kind.field(i).name for i in range(kind.num_fields)]
    images = [image and image["bytes"] for image in rows[column].to_pylist() if "bytes" in names]
    if not images or not all(images):
        raise ValueError(f"{column}: expected the bytes of an image in each row")
    return images

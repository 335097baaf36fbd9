"""Reads and writes ingested data: clips in ArrayRecord shards, at the rate and size of training.

`DIR/{train,test}/NNNNN.array_record` hold the records and `DIR/info.json` describes them. A record
is a safetensors file of consecutive frames of one video or episode:

  video    uint8 [n,S,S,3], if frames are small, or
  jpeg     uint8 [bytes], the concatenated JPEG files of the frames, with ends int64 [n], or
  states   bfloat16 [T,N,D] stored as uint16: a frozen encoder's states of these frames; of exactly
           one clip if a state depends on earlier frames
  actions  float32 [n-1,U] and state float32 [n,k], if the source is labeled
  episode  uint8 [bytes], the name of the video or episode
  start    float64 [2], position of the first frame in it, and the step from frame to frame
"""

import contextlib
import dataclasses
import io
import json
import logging
import os

import numpy as np

from lawm_jax.data import episodes, frames, metadata, paths, recent

RAW_BELOW = 128  # pixels; smaller frames are stored raw: they take little space
_LOG = logging.getLogger(__name__)
OPTIONS = "group_size:1,uncompressed"  # writer options that allow reading single records


def source(name, where, split, data, view):
    """Opens ingested data: the source `records:DIR`.

    If clips skip ingested frames, their actions are all those between two frames, concatenated.

    Args:
      name: name used in error messages.
      where: the folder written by `python -m lawm_jax.ingest`.
      split: "train" or "test", as assigned during ingest.
      data: has `frames` and `fps`.
      view: `frames.View`, or None to read only labels.

    Returns:
      `episodes.Episodes`, whose items are numbers of records. If the records hold states, its
      `encoder` describes their encoder.

    Raises:
      ValueError: the ingest is missing or incomplete, its rate is not a multiple of `data.fps`, it
        has a closer crop than `view`, or it holds states of clips with another number of frames or
        another view.
    """
    where = paths.expand(where)
    info = read_info(where)
    # A state may depend on all frames of its clip, so stored clips of states are not subsampled.
    stride = 1 if "steps" in info else max(1, round(info["fps"] / data.fps))
    if not 0.9 < info["fps"] / stride / data.fps < 1.1:
        raise ValueError(
            f"data.fps: expected {info['fps']:g}, the rate at which {name} was ingested, or a "
            f"whole fraction of it, got {data.fps:g}"
        )
    encoder, count = info["encoder"], data.frames
    if "steps" in info:  # a record is one clip
        if info["frames"] != data.frames:
            raise ValueError(
                f"data.frames: expected {info['frames']}, the clip length of the states in {name}, "
                f"got {data.frames}"
            )
        count = info["steps"]
    ends = np.cumsum(info["records"][split], dtype=np.int64)
    if not len(ends) or not ends[-1]:
        raise ValueError(f"{name}: there are no records to {split} on")
    trim = _trim(name, info, view) if view else None
    shards = _Shards(os.path.join(where, split), ends, info.get("source", ""), trim)
    span = (data.frames - 1) * stride + 1
    files = Files(info["lengths"][split], span) if "lengths" in info else None
    encoder = encoder and json.dumps(encoder)
    return episodes.Episodes(name, range(ends[-1]), shards, count, stride, view, encoder, files)


class Files:
    """Groups records by video or episode, so that long and short ones are drawn equally often."""

    def __init__(self, lengths, frames):
        """Stores the frame counts of each file's records, in order, and those that a clip spans."""
        self._ends = np.cumsum([len(records) for records in lengths], dtype=np.int64)
        starts = [max(0, length - frames + 1) for records in lengths for length in records]
        # Number of possible clip starts before each record.
        self._starts = np.append(0, np.cumsum(starts, dtype=np.int64))

    def __len__(self):
        return len(self._ends)

    def pick(self, number, random):
        """Draws a record of one file, weighted by the number of clip starts in it."""
        first, end = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
        low, high = self._starts[first], self._starts[end]
        if low == high:  # all records are too short
            return first
        return int(np.searchsorted(self._starts, random.integers(low, high), "right")) - 1


def read_info(where):
    """Reads the info.json of a folder of records.

    Raises:
      ValueError: it is missing or damaged, or the ingest is incomplete.
    """
    where = paths.expand(where)
    path = os.path.join(where, "info.json")
    if not os.path.exists(path):
        if os.path.exists(os.path.join(where, "plan.json")):
            text = "the ingest is incomplete; run the same ingest command to continue it"
        else:
            text = "expected a folder written by lawm_jax.ingest, got one without info.json"
        raise ValueError(f"records:{where}: {text}")
    info = metadata.load(path, "the info.json of an ingested folder")
    metadata.field(path, info, "fps", "a positive number")
    counts = metadata.field(path, info, "records", "an object")
    for split in "train", "test":
        for count in metadata.field(f"{path}: records", counts, split, "a list"):
            metadata.check(path, f"records, {split}", count, "an integer >= 0")
    lengths = metadata.check(path, "lengths", info.get("lengths", {}), "an object")
    for split in ("train", "test") if "lengths" in info else ():
        files = metadata.field(f"{path}: lengths", lengths, split, "a list")
        for file in files:
            for length in metadata.check(path, f"lengths, {split}", file, "a list"):
                metadata.check(path, f"lengths, {split}", length, "a positive integer")
        if sum(map(len, files)) != sum(counts[split]):
            raise ValueError(f"{path}: lengths, {split}: expected one length per record")
    if info.setdefault("encoder", None) is not None:
        metadata.check(path, "encoder", info["encoder"], "an object")
    for key in {"frames", "size", "resize", "steps"} & info.keys():
        metadata.check(path, key, info[key], "a positive integer")
    if "steps" in info:
        metadata.field(path, info, "frames", "a positive integer")
    return info


def _trim(name, info, view):
    """Returns the side of stored frames and of the center that `view` shows; None if it shows all.

    Raises:
      ValueError: `view` shows more than is stored, or a part other than that of the stored states.
    """
    if "size" not in info or "resize" not in info:
        _LOG.warning("%s: its info.json has no size or no resize; assuming uncropped frames", name)
    size = info.get("size", view.size)
    share = size / info.get("resize", size)
    ratio = view.size / view.resize / share
    if abs(ratio - 1) < 0.01:  # equal up to rounding
        return None
    stored = f"with size {size} and resize {info.get('resize', size)}"
    hint = f"--resize {round(size * view.resize / view.size)}"
    if ratio > 1 or info["encoder"]:
        raise ValueError(
            f"data.resize: {name} was ingested {stored}, got size {view.size} and resize "
            f"{view.resize}, which show a different part of the frame; set data.resize to "
            f"{round(view.size / share)}, or ingest again with {hint}"
        )
    text = "%s was ingested %s: its frames are cropped and enlarged to size %d and resize %d; "
    text += "ingest with %s for sharper frames"
    _LOG.warning(text, name, stored, view.size, view.resize, hint)
    return size, max(1, round(size * ratio))


def pack(part, step, quality):
    """Encodes a record.

    Args:
      part: dict with `video` uint8 [n,S,S,3], `episode`, `start` and optionally `actions`, `state`.
      step: distance from one frame to the next, in the unit of `start`.
      quality: JPEG quality, 1 to 95; 0 stores raw frames.

    Returns:
      The record's bytes.
    """
    import PIL.Image
    import safetensors.numpy

    arrays = {key: part[key] for key in ("actions", "state") if key in part}
    if quality:
        images = []
        for frame in part["video"]:
            file = io.BytesIO()
            PIL.Image.fromarray(frame).save(file, "JPEG", quality=quality)
            images.append(file.getvalue())
        arrays["jpeg"] = np.frombuffer(b"".join(images), np.uint8)
        arrays["ends"] = np.cumsum([len(image) for image in images])
    else:
        arrays["video"] = np.ascontiguousarray(part["video"])
    arrays["episode"] = np.frombuffer(
        str(part["episode"]).encode(errors="surrogateescape"), np.uint8
    )
    arrays["start"] = np.array([part["start"], step], np.float64)
    return safetensors.numpy.save(arrays)


def with_states(stored, states):
    """Encodes an unpacked record with `states` bfloat16 [T,N,D] in place of its frames."""
    import safetensors.numpy

    rest = {key: value for key, value in stored.items() if key != "video"}
    return safetensors.numpy.save(rest | {"states": states.view(np.uint16)})


def unpack(record):
    """Returns the arrays of a record, as they are stored.

    Raises:
      ValueError: the record is damaged.
    """
    import safetensors.numpy

    try:
        return safetensors.numpy.load(record)
    except safetensors.SafetensorError as error:
        raise ValueError(f"damaged record: {error}") from error


class _Shards:
    """Opens records by number; picklable."""

    def __init__(self, folder, ends, spec, trim):
        """Opens a split's folder; `ends` are the cumulative numbers of records of its shards.

        `spec` is that of the ingested source, `trim` is as returned by `_trim`.
        """
        self.folder, self.ends, self.spec, self.trim = folder, ends, spec, trim
        counts = np.diff(ends, prepend=0).tolist()
        paths_ = [shard_path(folder, shard) for shard in range(len(counts))]
        self.records, self.identities = ArrayRecords(paths_, counts), {}

    def __getstate__(self):
        return self.__dict__ | {"identities": {}}

    def identity(self, item):
        """Returns the identity of the item that a record was made from, see `episodes.identity`."""
        path, place = self._place(item)
        if path not in self.identities:
            self.identities[path] = self._identities(path)
        identities = self.identities[path]
        return identities[place] if place < len(identities) else f"{paths.identity(path)}#{place}"

    def _identities(self, path):
        """Returns the identities of a shard's records; an empty list if they are unknown."""
        try:
            with open(report_path(path), encoding="utf-8") as file:
                rows = json.load(file)
            names = []
            for row in rows:
                name = row.get("identity") or self._guess_identity(row["path"])
                names += [name] * row["records"]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return []
        return names if all(names) else []

    def _guess_identity(self, path):
        """Guesses an item's identity, for records made before identities were stored."""
        kind, _, where = self.spec.partition(":")
        if kind == "lerobot":
            return f"{paths.identity(where.partition('?')[0])}#{path}"
        path = path.partition("#t=")[0]
        return paths.identity(path) if "://" in path or os.path.exists(path) else None

    def read(self, item):
        """Returns the bytes of a record."""
        return self.records[item]

    @contextlib.contextmanager
    def __call__(self, item):
        try:
            stored = unpack(self.read(item))
            length = len(stored[next(key for key in _LENGTH if key in stored)])
        except (ValueError, RuntimeError, IndexError, StopIteration, OSError) as error:
            path, place = self._place(item)
            raise episodes.UnreadableVideo(f"{path}[{place}]", f"damaged: {error}") from error
        yield episodes.Episode(
            length, lambda indices, view: arrays(stored, indices, view, self.trim)
        )

    def _place(self, item):
        shard = int(np.searchsorted(self.ends, item, "right"))
        place = item - int(self.ends[shard - 1] if shard else 0)
        return shard_path(self.folder, shard), place


class ArrayRecords:
    """Reads any record of ArrayRecord shards; picklable and thread-safe.

    Only recently read shards stay open: there may be more shards than a process may open files.
    """

    def __init__(self, paths, counts):
        """Takes the paths of the shards, and the expected number of records in each."""
        self.paths, self.ends = list(paths), np.cumsum(counts, dtype=np.int64)
        self.readers = recent.Recent(recent.open_files())

    def __getitem__(self, number):
        """Returns the bytes of a record.

        Raises:
          IndexError, RuntimeError, ValueError, OSError: the record or its shard is damaged.
        """
        shard = int(np.searchsorted(self.ends, number, "right"))
        reader = self.readers.get(self.paths[shard], _reader)
        return reader.read([number - int(self.ends[shard - 1] if shard else 0)])[0]


def _reader(path):
    from array_record.python import array_record_module

    options = "readahead_buffer_size:0,max_parallelism:0"
    return array_record_module.ArrayRecordReader(
        path, options=options, file_reader_buffer_size=32768
    )


def shard_path(folder, number):
    """Returns the path of a shard."""
    return os.path.join(folder, f"{number:05}.array_record")


def report_path(path):
    """Returns the path of the JSON file that reports the outcome of each item of a shard."""
    return path.removesuffix(".array_record") + ".json"


_LENGTH = ("states", "ends", "video")


def arrays(stored, indices, view, trim=None):
    """Returns the clip with frames `indices` of an unpacked record, see `episodes.Episode`.

    With `trim` = (side, center), in pixels, only the center of the stored frames is shown.
    """
    first, step = stored["start"]
    clip = {
        "episode": stored["episode"].tobytes().decode(errors="surrogateescape"),
        "start": first + step * indices[0],
    }
    if "states" in stored:
        import ml_dtypes

        clip["states"] = stored["states"][indices].view(ml_dtypes.bfloat16)
        if len(indices) == len(stored["states"]):  # whole clip; may have more frames than states
            return clip | {key: stored[key] for key in ("actions", "state") if key in stored}
    if "actions" in stored:
        taken = stored["actions"][indices[0] : indices[-1]]
        width = int(np.diff(indices).max(initial=1)) * taken.shape[1]
        clip["actions"] = taken.reshape(len(indices) - 1, width)
    if "state" in stored:
        clip["state"] = stored["state"][indices]
    if "states" in stored or view is None:
        return clip
    if "jpeg" in stored:
        ends = stored["ends"]
        data = memoryview(stored["jpeg"])
        first = np.concatenate([[0], ends[:-1]])
        images = [data[first[i] : ends[i]] for i in indices]
    else:
        images = list(stored["video"][indices])
        if not trim and images[0].shape[:2] == (view.size, view.size) and view.seed is None:
            return clip | {"video": np.stack(images)}
    if trim:
        side, center = trim
        full = frames.Scaler(frames.View(side, side)).images(images)
        first = (side - center) // 2
        images = list(full[:, first : first + center, first : first + center])
        view = dataclasses.replace(view, resize=view.size)
    return clip | {"video": frames.Scaler(view).images(images)}

"""Reads TFDS data sets that hold video, including RLDS, from ArrayRecord or TFRecord files.

Features have the names under which TFDS stores them, such as `steps/observation/image`. The reader
doesn't use tensorflow_datasets: version 4.9 can't create a Video feature without TensorFlow.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re

import numpy as np

from lawm_jax.data import episodes, frames, metadata, paths, records, tfrecord

TESTS = "test", "validation", "val"  # names of test splits, in order of preference

_LOG = logging.getLogger(__name__)


def source(name, where, split, data, view, video="video", rate="", actions="", state="", part=""):
    """Opens a TFDS data set: the source `tfds:DIR?rate=RATE&video=FEATURE...`.

    Args:
      name: name used in error messages.
      where: the folder with dataset_info.json.
      split: "train" or "test". If the data set has a train split and one of `TESTS`, these are
        used; otherwise a hash assigns each example.
      data: has `frames`, `fps` and `holdout`.
      view: `frames.View`, or None to read only labels.
      video: feature that holds the frames, as images; one example is one episode.
      rate: frames per second of the recording.
      actions: features that lead from one frame to the next, separated by commas, with one row per
        frame or one fewer. If a clip skips frames, its actions are all recorded actions between two
        frames, concatenated.
      state: features that belong to a frame, separated by commas.
      part: the split of the data set to read; "" chooses as described for `split`.

    Returns:
      `episodes.Episodes`, whose items are "SHARD/NUMBER" of a record, the same in both formats.

    Raises:
      ValueError: there is no such data set, or an option is invalid.
    """
    try:
        rate = float(rate)
    except ValueError:
        raise ValueError(f"{name}: rate: expected frames per second, got {rate!r}") from None
    stride = episodes.stride(name, rate, data.fps)
    examples, items = open_examples(name, where, split, data.holdout, part)
    check(name, "video", [video], examples.images)
    widths = {}
    for option, value in ("actions", actions), ("state", state):
        named = [feature for feature in value.split(",") if feature]
        check(name, option, named, examples.widths)
        widths[option] = {feature: examples.widths[feature] for feature in named}
    opened = _Video(examples, video, widths["actions"], widths["state"], stride)
    return episodes.Episodes(name, items, opened, data.frames, stride, view)


def open_examples(name, where, split, holdout, part=""):
    """Opens the training or test examples of a TFDS data set.

    Args:
      name, where, split, part: as in `source`.
      holdout: fraction of test examples, if the data set has no test split.

    Returns:
      examples: `Examples`.
      items: its items that belong to `split`.

    Raises:
      ValueError: there is no such data set.
    """
    where = paths.expand(where)
    files = [os.path.join(where, file) for file in ("dataset_info.json", "features.json")]
    try:
        info, features = (
            metadata.load(f, f"a TFDS folder with {os.path.basename(f)}") for f in files
        )
        splits = metadata.check(files[0], "splits", info.get("splits", []), "a list")
        for entry in splits:
            metadata.check(files[0], "splits", entry, "an object")
        parts = [metadata.field(files[0], entry, "name", "a string") for entry in splits]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    test = next((test for test in TESTS if test in parts), None)
    if not parts or part and part not in parts:
        raise ValueError(f"{name}: part: expected one of {', '.join(parts)}, got {part!r}")
    if not part and test and "train" in parts:
        tests = Examples(name, where, test, info, features)
        if tests.exists():
            examples = tests if split == "test" else Examples(name, where, "train", info, features)
            return examples, examples.items(name)
        text = "%s: no shard of %s exists (%s); holding out a part of train instead"
        _LOG.warning(text, name, test, ", ".join(tests.paths[:3]))
        part = "train"
    examples = Examples(name, where, part or parts[0], info, features)
    items = examples.items(name)
    train, test = episodes.split(items, holdout)
    return examples, tuple(items[i] for i in (train if split == "train" else test))


class Examples:
    """Reads examples of one split of a TFDS data set; picklable and thread-safe.

    Attributes:
      paths: the paths of its shards.
      images: names of the features that are sequences of images.
      widths: maps names of numeric features to the count of numbers per frame.
    """

    def __init__(self, name, where, part, info, features):
        """Takes the name for error messages, the folder, the split and the parsed JSON files."""
        path = f"{name}: {os.path.join(where, 'dataset_info.json')}"
        chosen = next(entry for entry in info["splits"] if entry["name"] == part)
        counts = metadata.check(path, "shardLengths", chosen.get("shardLengths", []), "a list")
        if not all(str(count).isdecimal() and len(str(count)) < 16 for count in counts):
            raise ValueError(f"{path}: shardLengths: expected whole numbers, got {counts[:9]}")
        self._counts = [int(count) for count in counts]
        self._format = info.get("fileFormat", "tfrecord")
        if self._format not in ("array_record", "tfrecord"):
            raise ValueError(f"{name}: expected ArrayRecord or TFRecord files, got {self._format}")
        template = chosen.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        metadata.check(path, "filepathTemplate", template, "a string")
        title = metadata.field(path, info, "name", "a string")
        files = list(_files(path, template, title, part, self._format, len(self._counts)))
        if any(os.path.basename(file) != file for file in files):
            raise ValueError(f"{name}: expected files in its folder, got {files[0]}")
        self.paths = [os.path.join(where, file) for file in files]
        self._records = None
        kinds = list(_features(f"{name}: {os.path.join(where, 'features.json')}", features))
        self.images = [key for key, kind, shape in kinds if kind == "image" and len(shape) == 1]
        self.widths = {
            key: math.prod(shape[1:])
            for key, kind, shape in kinds
            if kind == "number" and shape and None not in shape[1:]
        }

    def __getstate__(self):
        return self.__dict__ | {"_records": None}

    def exists(self):
        """Returns whether any of its shards exists."""
        return any(map(os.path.isfile, self.paths))

    def items(self, name):
        """Returns "SHARD/NUMBER" of all records in existing shards.

        Raises:
          ValueError: there are none.
        """
        exists = [os.path.isfile(path) for path in self.paths]
        if not any(exists):
            raise ValueError(f"{name}: expected records in {self.paths[:1]}, got none")
        if not all(exists):
            lost = [path for path, ok in zip(self.paths, exists, strict=True) if not ok]
            some = ", ".join(lost[:3]) + ", ..." * (len(lost) > 3)
            _LOG.warning("%s: %d of %d shards are missing: %s", name, len(lost), len(exists), some)
        shards = [(i, count) for i, count in enumerate(self._counts) if exists[i]]
        return tuple(f"{shard:05}/{number}" for shard, count in shards for number in range(count))

    def read(self, item):
        """Returns the features of an example: maps names to sequences of bytes, floats or ints.

        Raises:
          UnreadableVideo: the record is damaged.
        """
        shard, number = map(int, item.split("/"))
        if self._records is None:  # two threads may both open it, which is harmless
            self._records = self._open()
        try:
            return tfrecord.example(self._records[sum(self._counts[:shard]) + number])
        except (ValueError, IndexError, RuntimeError, OSError) as error:
            raise frames.UnreadableVideo(item, str(error)) from error

    def identity(self, item):
        """Returns the identity of an example, see `episodes.identity`."""
        shard, number = map(int, item.split("/"))
        return f"{paths.identity(self.paths[shard])}#{number}"

    def _open(self):
        """Opens the records: an object that returns a record's bytes by its number."""
        if self._format == "tfrecord":
            return tfrecord.Records(self.paths, self._counts)
        return records.ArrayRecords(self.paths, self._counts)


def check(name, option, values, choices):
    """Raises ValueError if a name in an option's value doesn't exist."""
    for value in values:
        if value not in choices:
            listed = ", ".join(choices) or "nothing"
            raise ValueError(f"{name}: {option}: expected one of {listed}; got {value!r}")


def rows(features, name, width):
    """Returns a label of an example, float64 [T, width].

    Raises:
      ValueError: it isn't numeric, or its size isn't a multiple of `width`.
    """
    values = features.get(name, ())
    if len(values) and isinstance(values[0], bytes):
        raise ValueError(f"{name}: expected numbers, got bytes")
    array = np.asarray(values, np.float64)
    if array.size % width:
        raise ValueError(f"{name}: expected {width} numbers per frame, got {array.size}")
    return array.reshape(-1, width)


@dataclasses.dataclass(frozen=True)
class _Video:
    """Opens examples of a TFDS data set, see `source`."""

    examples: Examples
    video: str
    actions: dict
    state: dict
    stride: int

    def identity(self, item):
        return self.examples.identity(item)

    @contextlib.contextmanager
    def __call__(self, item):
        features = self.examples.read(item)
        images = features.get(self.video, ())
        labels = {}
        try:
            for option in "actions", "state":
                named = getattr(self, option).items()
                if named:
                    tables = [rows(features, name, width) for name, width in named]
                    labels[option] = np.concatenate(tables, 1).astype(np.float32)
        except ValueError as error:
            raise frames.UnreadableVideo(item, f"labels: {error}") from error
        for option, least in ("actions", len(images) - 1), ("state", len(images)):
            if option in labels and not least <= len(labels[option]) <= len(images):
                reason = f"labels: {len(labels[option])} {option} rows for {len(images)} frames"
                raise frames.UnreadableVideo(item, reason)

        def arrays(indices, view):
            clip = {}
            if view is not None:
                clip["video"] = frames.Scaler(view).images([images[i] for i in indices])
            if "actions" in labels:
                between = labels["actions"][indices[0] : indices[-1]]
                width = self.stride * labels["actions"].shape[1]
                clip["actions"] = between.reshape(len(indices) - 1, width)
            if "state" in labels:
                clip["state"] = labels["state"][indices]
            return clip

        yield episodes.Episode(len(images), arrays)


def _files(where, template, name, part, kind, count):
    """Yields the file names of the shards of a split."""
    fields = {"DATASET": name, "SPLIT": part, "FILEFORMAT": kind}

    def fill(match):
        if match[1] not in fields:
            raise ValueError(f"{where}: filepathTemplate: unknown field in {template!r}")
        return fields[match[1]]

    for shard in range(count):
        fields |= {"SHARD_INDEX": f"{shard:05}", "NUM_SHARDS": f"{count:05}"}
        fields["SHARD_X_OF_Y"] = f"{shard:05}-of-{count:05}"
        yield re.sub(r"\{(\w*)\}", fill, template)  # str.format could exhaust the memory


def _features(where, node, name="", shape=()):
    """Yields name, kind and shape of the features in features.json; None denotes any length.

    Kinds are "image", "number" and "other"; an image has the shape of its enclosing sequence.

    Raises:
      ValueError: the file at `where` is damaged.
    """
    metadata.check(where, name or "features", node, "an object")

    def inner(node, key):
        return metadata.field(f"{where}: {name or 'features'}", node, key, "an object")

    if "featuresDict" in node:
        for key, child in inner(inner(node, "featuresDict"), "features").items():
            yield from _features(where, child, f"{name}/{key}" if name else key, shape)
    elif "sequence" in node:
        yield from _features(where, inner(inner(node, "sequence"), "feature"), name, (*shape, None))
    elif "image" in node:
        yield name, "image", shape
    elif "video" in node:
        yield name, "image", (*shape, None)
    elif "tensor" in node:
        tensor = inner(node, "tensor")
        dtype = metadata.field(f"{where}: {name}", tensor, "dtype", "a string")
        number = dtype.startswith(("float", "int", "uint", "bool"))
        plain = tensor.get("encoding", "none") == "none"
        sizes = inner({"shape": {}} | tensor, "shape").get("dimensions", [])
        metadata.check(where, f"{name}, dimensions", sizes, "a list")
        if not all(str(size).removeprefix("-").isdecimal() for size in sizes):
            raise ValueError(f"{where}: {name}, dimensions: expected numbers, got {sizes}")
        sizes = [None if int(size) < 0 else int(size) for size in sizes]
        yield name, "number" if number and plain else "other", (*shape, *sizes)
    else:
        yield name, "other", shape

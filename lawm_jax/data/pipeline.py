"""Streams batches of training clips, and yields fixed clips for evaluation.

The order of examples, the files they come from and the start of each clip depend only on the seed
and the example's number. They are the same for any number of threads, worker processes and training
processes, and after a restart.
"""

import contextlib
import inspect
import json
import logging
import os
import shutil
import urllib.parse
from typing import NamedTuple

import numpy as np

try:
    import fcntl
except ImportError as error:
    raise ImportError("lawm_jax reads data on Linux and macOS; on Windows use WSL") from error

from lawm_jax.data import (
    droid,
    errors,
    frames,
    lerobot,
    mini,
    recon,
    records,
    settings,
    statistics,
    tfds,
    video,
)
from lawm_jax.data import episodes as episodes_
from lawm_jax.data import paths as paths_

KINDS = {
    "videos": video.source,
    "mini": mini.source,
    "records": records.source,
    "recon": recon.source,
    "lerobot": lerobot.source,
    "droid": droid.source,
    "tfds": tfds.source,
}

_LOG = logging.getLogger(__name__)
_SILENT = 3  # consecutive files with system errors after which the run ends
_BUFFER_BYTES = 2**29  # of prefetched clips, per process


def clips(config, split="train", *, process_index=0, process_count=1, skipped=None):
    """Returns an endless iterator over batches of training clips.

    Each of `process_count` processes gets its block of the same global batch. In each epoch, every
    file or episode of a source yields one clip, whatever its length, at a uniformly random
    position. The same holds for ingested data.

    An unreadable file is reported once and replaced by another file of the same source, drawn with
    the example's seed: batches stay full, mixture weights hold, and processes stay in step. System
    errors, such as a time-out, are retried; if they persist, the file is skipped for this example
    only. Any other exception is a bug and ends the run.

    Args:
      config: has `seed` and `data.{videos, sources, mixture, frames, fps, resize, size, augment,
        batch, holdout, workers}`. `mixture` maps names of sources to weights and `sources` maps the
        same names to specs, see `source`. If `videos` isn't "", it is the only source. `batch` is
        the global batch. Recordings with a constant rate are subsampled to the rate nearest to
        `fps`; a rate that differs from `fps` is logged, see `episodes.stride`.
      split: "train" or "test"; sources without predefined splits hold out a fraction `holdout`.
      process_index, process_count: which block of each batch to yield.
      skipped: path of a JSONL file to which one line {"source", "path", "reason"} is appended per
        unreadable file; None to log only.

    Returns:
      A Grain iterator with `get_state`, `set_state` and `shapes`, the shapes of one example. The
      state is valid for any number of processes and workers. A batch is a dict of arrays: `video`
      uint8 [B,F,H,W,3]; `source` int32 [B], the rank of the name among the sorted names of
      `mixture`; `episode` int32 [B], the item's number within its source; `start` float32 [B], see
      `episodes`; and all other arrays that have the same shape in all sources, such as `actions`
      float32 [B,F-1,U] and `state` float32 [B,F,k], except that `augment.flip` removes these two.
      Sources of encoder states have `states` bfloat16 [B,T,N,D] instead of `video`. B = batch /
      process_count.

    Raises:
      ValueError: `batch` isn't divisible by `process_count`, a source matches no files, no file of
        a source can be read, or the sources share neither `video` nor `states`.
    """
    import absl.flags
    import grain

    from lawm_jax.data import stream

    data = config.data
    settings.check(config)
    if data.batch % process_count:
        raise ValueError(f"data.batch: expected a multiple of {process_count}, got {data.batch}")
    batch = data.batch // process_count
    failures = _Failures(skipped)
    readers, weights = [], []
    for rank, (name, weight) in enumerate(sorted(_weights(data).items())):
        if weight > 0:
            readers.append(_Reader(source(config, name, split), rank, data.augment.cut, failures))
            weights.append(weight)
    shared = _shared([reader.check() for reader in readers])
    if data.augment.flip:  # the labels of a mirrored clip are wrong
        shared = {key: value for key, value in shared.items() if key not in ("actions", "state")}
    streams = []
    for reader in readers:
        reader.keys = shared
        seed = int(np.random.SeedSequence([config.seed, reader.rank]).generate_state(1)[0])
        order = grain.MapDataset.range(reader.count).seed(seed).shuffle().repeat()
        streams.append(order.random_map(reader))
    examples = grain.MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0]

    # No example is ever filtered out, so Grain can assign the pieces of a batch to workers in turn
    # and return them in order. Transferring single examples would cost more than reading them.
    workers = max(1, data.workers)
    piece = max(n for n in range(1, 17) if batch % n == 0) if data.workers else 1
    piece_bytes = piece * sum(value.nbytes for value in shared.values())
    buffer = max(1, min(_BUFFER_BYTES // piece_bytes, 2 * batch // piece) // workers)
    threads = min(buffer, 16, max(1, (os.cpu_count() or 1) // workers))

    def mine(index):  # a block of each batch, so that the order doesn't depend on process_count
        before, place = divmod(index, batch)
        return examples[(before * process_count + process_index) * batch + place]

    own = grain.MapDataset.range(len(examples)).map(mine)

    def start(done):
        left = own[done // process_count :]
        if not data.workers:
            read = left.to_iter_dataset(grain.ReadOptions(threads, buffer))
            return iter(read.batch(batch, drop_remainder=True))
        if not absl.flags.FLAGS.is_parsed():  # in a notebook; Grain's workers read flags
            absl.flags.FLAGS.mark_as_parsed()
        _check_shared_memory(piece_bytes * data.workers * (min(buffer, 2) + 2))
        read = left.batch(piece).to_iter_dataset(grain.ReadOptions(threads, buffer))
        read = read.mp_prefetch(grain.MultiprocessingOptions(data.workers, min(buffer, 2)))
        return iter(read.batch(batch // piece, drop_remainder=True, batch_fn=_joined))

    shapes = {key: value.shape for key, value in shared.items()}
    return stream.Stream(start, data.batch, shapes)


def episodes(config, name, split="test", *, most=None, skipped=None, without=()):
    """Yields the clips of one source at fixed positions, in a fixed order.

    Clips of an item don't overlap. A video yields at most four, spread over its length.

    Args:
      config: as in `clips`.
      name: one of `names(config)`.
      split: "train" or "test".
      most: maximum number of items to read, evenly spread over the source; None reads all.
      skipped: as in `clips`.
      without: set of `identities` of items to leave out.

    Yields:
      Dicts with `video` uint8 [F,H,W,3], `source` (the name), `episode` (path or number of the
      item) and `start` (step of the episode, or seconds of a video); labeled sources add `actions`
      float32 [F-1,U] and `state` float32 [F,k].

    Raises:
      ValueError: the source matches no files.
    """
    found = source(config, name, split)
    failures, items = _Failures(skipped), found.items
    if without:
        items = [item for item in items if episodes_.identity(found, item) not in without]
    count = len(items)
    for index in range(count) if most is None else np.linspace(0, count - 1, min(most, count)):
        try:
            for clip in found.fixed(items[round(index)]):
                yield {**clip, "source": name}
        except frames.UnreadableVideo as error:
            failures.add(found.name, error)


def identities(config, name, split="train"):
    """Returns the identities of the items of one source.

    Two configs share an identity if they read the same file, folder or episode: by a relative path,
    a link or a glob, with or without a trailing slash, or from ingested records. Data that was
    copied, or mounted elsewhere when it was ingested, has other identities.

    Args:
      config, name, split: as in `source`.

    Returns:
      A tuple of str, one per item of the source, in order; see `episodes.identity`.

    Raises:
      ValueError: as in `source`.
    """
    found = source(config, name, split)
    return tuple(episodes_.identity(found, item) for item in found.items)


def names(config):
    """Returns the sorted names of the sources to train on."""
    return sorted(name for name, weight in _weights(config.data).items() if weight > 0)


def source(config, name, split="train"):
    """Opens one source of a config.

    Args:
      config: as in `clips`.
      name: one of `names(config)`. `data.sources[name]` is the source's spec, KIND:WHERE or
        KIND:WHERE?OPTION=VALUE&..., with a kind of `KINDS`. The name "videos" refers to
        `data.videos`, which may omit the kind or be a list of paths.
      split: "train" or "test".

    Returns:
      A source, see `lawm_jax.data`.

    Raises:
      ValueError: the name or kind is unknown, or nothing matches.
    """
    data = config.data
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if data.videos and name == "videos":
        label, spec = f"data.videos={data.videos!r}", data.videos
    elif name in data.sources:
        label, spec = f"data.sources.{name}={data.sources[name]!r}", data.sources[name]
    else:
        raise ValueError(f"data.mixture: expected names of data.sources, got {name!r}")
    found = open_source(label, spec, split, data)
    if getattr(found, "encoder", None):
        made, wanted = json.loads(found.encoder), json.loads(config.encoder.to_json())
        if made != wanted:
            raise ValueError(f"encoder: {label} holds states of {made}, got {wanted}")
    return found


class Spec(NamedTuple):
    """A parsed source spec, see `parse`.

    Attributes:
      kind: a key of `KINDS`.
      where: a path; for the kind "videos" also a glob or a list of paths.
      options: name -> value, both str.
    """

    kind: str
    where: str | list
    options: dict

    @property
    def folder(self):
        """The path of the data, with `~` expanded; for embedded data, its folder in the package."""
        path = paths_.expand(self.where)
        return os.path.join(mini.FOLDER, path) if self.kind == "mini" else path


def parse(name, text):
    """Parses a source spec: KIND:WHERE, or KIND:WHERE?OPTION=VALUE&...

    Args:
      name: the source's name in error messages.
      text: str, or a list of paths. Without a kind, it denotes video files.

    Returns:
      A Spec. A question mark in the name of an existing folder belongs to the name.

    Raises:
      ValueError: the text after the question mark isn't a list of options.
    """
    kind, _, where = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind not in KINDS:
        return Spec("videos", text, {})
    # In a glob, a question mark is a wildcard.
    if kind == "videos" or "?" not in where or os.path.exists(paths_.expand(where)):
        return Spec(kind, where, {})
    folder, _, query = where.rpartition("?")
    try:
        return Spec(kind, folder, dict(urllib.parse.parse_qsl(query, strict_parsing=True)))
    except ValueError as error:
        expected = f"expected a folder, or FOLDER?OPTION=VALUE&..., got {where!r}"
        raise ValueError(f"{name}: {expected}") from error


def open_source(name, text, split, data):
    """Opens a source from its spec, see `parse`; the other arguments are as in `source`."""
    augment, spec = data.augment, parse(name, text)
    area = tuple(augment.area) if augment.crop else None
    view = frames.View(data.size, data.resize, area, tuple(augment.ratio), augment.flip)
    arguments = name, spec.where, split, data, view
    try:
        inspect.signature(KINDS[spec.kind]).bind(*arguments, **spec.options)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    return KINDS[spec.kind](*arguments, **spec.options)


def statistics_of(config):
    """Reads the label statistics of the only training source.

    Args:
      config: as in `clips`.

    Returns:
      A dict as returned by `statistics.measure`, with "actions".

    Raises:
      ValueError: there is more than one source, or it has no actions, or its statistics are missing
        or belong to other data; the message gives the command to make them.
    """
    name, *others = names(config)
    if others:
        raise ValueError(
            "data.mixture: expected one source, since real actions of two mean different things, "
            f"got {names(config)}"
        )
    text = config.data.videos or config.data.sources[name]
    found = source(config, name)
    if not isinstance(found, episodes_.Episodes):
        raise ValueError(f"data: expected a source with actions, got {text!r}")
    folder = parse(name, text).folder
    measured = statistics.read(folder, found, config.data.fps, text)
    if "actions" not in measured:
        raise ValueError(f"data: expected a source with actions, {folder} has none")
    return measured


def _check_shared_memory(need, folder="/dev/shm"):
    """Raises ValueError if workers would run out of shared memory and die.

    Each worker holds pieces of batches there: some queued, one being written and one being read.
    """
    if not os.path.isdir(folder):
        return
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ValueError(
            f"data.workers: expected {need / 2**20:.0f} MiB free in {folder}, where worker "
            f"processes hand over clips, got {free / 2**20:.0f} MiB. Give the container more "
            "(docker run --shm-size=8g; Kubernetes: an emptyDir with medium Memory mounted there), "
            "take fewer workers, or 0 for threads"
        )


def _weights(data):
    if data.videos:
        return {"videos": 1.0}
    weights = {name: float(weight) for name, weight in dict(data.mixture).items()}
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError("data.mixture: expected a positive weight, or data.videos, got neither")
    return weights


def _shared(clips):
    """Returns the arrays of the first clip that all clips have with the same shape and dtype."""
    like = lambda a, b: a.shape == b.shape and a.dtype == b.dtype  # noqa: E731
    shared = {
        key: value
        for key, value in clips[0].items()
        if all(key in clip and like(clip[key], value) for clip in clips)
    }
    if not {"video", "states"} & shared.keys():
        got = [{key: value.shape for key, value in clip.items()} for clip in clips]
        raise ValueError(f"data.mixture: expected video of one shape in all sources, got {got}")
    return shared


def _joined(pieces):
    """Concatenates pieces into a batch."""
    if len(pieces) == 1:
        return pieces[0]
    return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}


class _Failures:
    """Records and reports unreadable files; thread-safe."""

    def __init__(self, path):
        self.path = path
        self.reasons = {}
        self.reported, self.offset = set(), 0  # (source, path) rows of the file up to the offset

    def add(self, source, error):
        """Reports an unreadable file or episode, once across threads, processes and restarts."""
        mine = [error.reason]
        if self.reasons.setdefault(error.path, mine) is not mine:  # atomic: one thread reports
            return
        _LOG.warning("skipped file %d, %s", len(self.reasons), error)
        if self.path:
            self._append({"source": source, "path": error.path, "reason": error.reason})

    def _append(self, row):
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        with open(self.path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until closed: other processes may be writing
            file.seek(self.offset)
            line = b"\n"
            for line in file:
                with contextlib.suppress(ValueError):  # a line cut short when a process was killed
                    before = json.loads(line)
                    self.reported.add((before["source"], before["path"]))
            half = 0 if line.endswith(b"\n") else len(line)
            self.offset = file.tell() - half
            if (row["source"], row["path"]) not in self.reported:
                file.write(b"\n" * bool(half) + json.dumps(row).encode() + b"\n")


def _order(first, count, random):
    """Yields `first`, then the other numbers below `count` in a random order.

    Draws them lazily: usually only a few are needed, and `count` may be millions.
    """
    seen = {first}
    yield first
    while len(seen) < count:
        number = int(random.integers(count))
        if number not in seen:
            seen.add(number)
            yield number


class _Reader:
    """Reads one example of a source; picklable, since Grain sends it to worker processes."""

    def __init__(self, source, rank, cut, failures):
        self.source, self.rank, self.cut, self.failures = source, rank, cut, failures
        self.files = getattr(source, "files", None)  # None: each item is one file
        self.count = len(source.items if self.files is None else self.files)
        self.hopeless = set()
        self.keys = None

    def __call__(self, index, random):
        """Returns a clip of file `index`, or of the first readable file in a random order."""
        seed = int(random.integers(2**63))
        silent = 0
        for file in _order(index, self.count, random):
            try:
                clip = self._read(file, seed)
            except frames.UnreadableVideo:  # a system error that outlasted the retries
                silent += 1
                if silent == _SILENT:
                    raise
                continue
            if clip:
                return clip
        raise ValueError(f"{self.source.name}: no file can be read any more")

    def check(self):
        """Returns the first clip that can be read; raises ValueError if there is none."""
        for file in range(self.count):
            clip = self._read(file, 0)
            if clip:
                return clip
        reasons = [f"{path}: {why[0]}" for path, why in list(self.failures.reasons.items())[:5]]
        some = "; ".join(reasons + ["..."] * (self.count > 5))
        text = f"none of {self.count} files can be read: {some}"
        raise ValueError(f"{self.source.name}: {text}")

    def _read(self, file, seed):
        """Returns the arrays of a training clip, or None if the file is unreadable.

        Raises:
          UnreadableVideo: system errors persisted through all retries.
        """
        index = file
        if self.files is not None:
            index = self.files.pick(file, np.random.default_rng((seed, 1)))
        if index in self.hopeless:
            return None

        def read():
            # A new Generator per attempt, so that a retry reads the same clip.
            clip = self.source.clip(self.source.items[index], np.random.default_rng(seed))
            if self.cut and "video" in clip:
                frames.refuse_cuts(clip, self.cut)
            return clip

        try:
            clip = errors.retried(read, self.source.name)
        except frames.UnreadableVideo as error:
            self.failures.add(self.source.name, error)
            if errors.transient(error):
                raise
            if error.start is None:
                self.hopeless.add(index)
            return None
        arrays = {key: value for key, value in clip.items() if isinstance(value, np.ndarray)}
        arrays |= {
            "source": np.array(self.rank, np.int32),
            "episode": np.array(index, np.int32),
            "start": np.array(clip["start"], np.float32),
        }
        return {key: arrays[key] for key in self.keys or arrays}

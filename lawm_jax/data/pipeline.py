"""Streams batches of clips to train on, and fixed clips to evaluate on.

The order of examples, the files they come from and where each clip starts are functions of the seed
and of the example's number alone. Threads, worker processes, training processes and restarts change
none of them.
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
_SILENT = 3  # files in a row that the system doesn't give end the run
_BUFFER_BYTES = 2**29  # of decoded clips that wait for their batch, per process


def clips(config, split="train", *, process_index=0, process_count=1, skipped=None):
    """Starts an endless stream of batches.

    Each of `process_count` processes gets its block of the same global batch. Of each source, an
    epoch has one clip of every file or episode, however long, at a place drawn evenly from it. That
    holds for raw video, recorded episodes and what was ingested of either.

    An unreadable file is reported once and another one, drawn from the same source by the example's
    own seed, takes its place: batches stay full, weights of the mixture hold, and processes stay in
    step. What the system fails to give, as by a time-out, is asked for again; where that doesn't
    help, the file is left out this once. An error of the code ends the run.

    Args:
      config: has `seed` and `data.{videos, sources, mixture, frames, fps, resize, size, augment,
        batch, holdout, workers}`. `mixture` maps names to weights and `sources` the same names to
        what they stand for, see `source`. `videos`, where it is not "", is the only source.
        `batch` is the global batch. Recordings of a constant rate are read at the nearest of its
        fractions to `fps`, which is logged where it is another: see `episodes.stride`.
      split: "train" or "test"; sources without a split of their own hold out a `holdout` of theirs.
      process_index, process_count: which share to yield.
      skipped: path of a JSONL file that gets a line {"source", "path", "reason"} per unreadable
        file, once; None to log only.

    Returns:
      A Grain iterator with `get_state`, `set_state` and `shapes`, those of one example; the state
      holds for any number of processes and workers. A batch is a dict of arrays: `video` uint8
      [B,F,H,W,3]; `source` int32 [B], the rank of the name among the sorted names of `mixture`;
      `episode` int32 [B], the item's number within its source; `start` float32 [B], see `episodes`;
      and what else all sources have in the same shape, such as `actions` float32 [B,F-1,U] and
      `state` float32 [B,F,k], unless `augment.flip` mirrors them. Sources of an encoder's states
      have `states` bfloat16 [B,T,N,D] instead of `video`.
      B = batch / process_count.

    Raises:
      ValueError: `batch` isn't divisible by `process_count`, nothing matches, of some source not
        one file can be read, or sources share neither `video` nor `states`.
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
    if data.augment.flip:  # which way was right is left now
        shared = {key: value for key, value in shared.items() if key not in ("actions", "state")}
    streams = []
    for reader in readers:
        reader.keys = shared
        seed = int(np.random.SeedSequence([config.seed, reader.rank]).generate_state(1)[0])
        order = grain.MapDataset.range(reader.count).seed(seed).shuffle().repeat()
        streams.append(order.random_map(reader))
    examples = grain.MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0]

    # Every example exists, so a batch's pieces can be dealt to workers in turn and come back in
    # order. One by one they would cost more to hand over than to read.
    workers = max(1, data.workers)
    piece = max(n for n in range(1, 17) if batch % n == 0) if data.workers else 1
    piece_bytes = piece * sum(value.nbytes for value in shared.values())
    buffer = max(1, min(_BUFFER_BYTES // piece_bytes, 2 * batch // piece) // workers)
    threads = min(buffer, 16, max(1, (os.cpu_count() or 1) // workers))

    def mine(index):  # a process has a block of each batch: the order does not depend on them
        before, place = divmod(index, batch)
        return examples[(before * process_count + process_index) * batch + place]

    own = grain.MapDataset.range(len(examples)).map(mine)

    def start(done):
        left = own[done // process_count :]
        if not data.workers:
            read = left.to_iter_dataset(grain.ReadOptions(threads, buffer))
            return iter(read.batch(batch, drop_remainder=True))
        if not absl.flags.FLAGS.is_parsed():  # as in a notebook; Grain's workers read flags
            absl.flags.FLAGS.mark_as_parsed()
        _check_shared_memory(piece_bytes * data.workers * (min(buffer, 2) + 2))
        read = left.batch(piece).to_iter_dataset(grain.ReadOptions(threads, buffer))
        read = read.mp_prefetch(grain.MultiprocessingOptions(data.workers, min(buffer, 2)))
        return iter(read.batch(batch // piece, drop_remainder=True, batch_fn=_joined))

    shapes = {key: value.shape for key, value in shared.items()}
    return stream.Stream(start, data.batch, shapes)


def episodes(config, name, split="test", *, most=None, skipped=None, without=()):
    """Yields the clips of one source at fixed places, in a fixed order.

    Clips of a file don't overlap; a video gives four at most, spread over its length.

    Args:
      config: as in `clips`.
      name: one of `names(config)`.
      split: "train" or "test".
      most: number of items to read at most, evenly spread over the source; None reads all.
      skipped: as in `clips`.
      without: set of `identities` of items to leave out.

    Yields:
      Dicts with `video` uint8 [F,H,W,3], `source` (the name), `episode` (path or number of the
      item), `start` (step of the episode, or seconds of a video); labelled ones with `actions`
      float32 [F-1,U] and `state` float32 [F,k].

    Raises:
      ValueError: nothing matches.
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
    """Lists the identities of the items of one source, however its path is spelled.

    Two configs that share an identity read the same file, folder or episode: with or without a
    slash at the end, by a relative path, a link or a glob, or from ingested records of it. Data
    that was copied, or ingested where it was mounted elsewhere, has other identities.

    Args:
      config, name, split: as in `source`.

    Returns:
      A tuple of str, one for each of the source's items, in their order; see `episodes.identity`.

    Raises:
      ValueError: as `source` does.
    """
    found = source(config, name, split)
    return tuple(episodes_.identity(found, item) for item in found.items)


def names(config):
    """Lists the sources to train on."""
    return sorted(name for name, weight in _weights(config.data).items() if weight > 0)


def source(config, name, split="train"):
    """Opens one source.

    Args:
      config: as in `clips`.
      name: one of `names(config)`. `data.sources[name]` says what it stands for: KIND:WHERE or
        KIND:WHERE?OPTION=VALUE&..., with a kind of `KINDS`; "videos" stands for `data.videos`,
        which may also leave out the kind, or be a list of paths.
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
    """Holds what the text of a source says.

    Attributes:
      kind: a key of `KINDS`.
      where: a path; of "videos" also a glob or a list of paths.
      options: name -> value, both str.
    """

    kind: str
    where: str | list
    options: dict

    @property
    def folder(self):
        """The path of the data, `~` expanded; embedded data has a name in place of a path."""
        path = paths_.expand(self.where)
        return os.path.join(mini.FOLDER, path) if self.kind == "mini" else path


def parse(name, text):
    """Parses the text of a source: KIND:WHERE, or KIND:WHERE?OPTION=VALUE&...

    Args:
      name: of the source, for errors.
      text: str, or a list of paths. Without a kind it stands for video files.

    Returns:
      A Spec. A folder may have a question mark in its name.

    Raises:
      ValueError: what follows the question mark are no options.
    """
    kind, _, where = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind not in KINDS:
        return Spec("videos", text, {})
    # Globs have question marks, too.
    if kind == "videos" or "?" not in where or os.path.exists(paths_.expand(where)):
        return Spec(kind, where, {})
    folder, _, query = where.rpartition("?")
    try:
        return Spec(kind, folder, dict(urllib.parse.parse_qsl(query, strict_parsing=True)))
    except ValueError as error:
        expected = f"expected a folder, or FOLDER?OPTION=VALUE&..., got {where!r}"
        raise ValueError(f"{name}: {expected}") from error


def open_source(name, text, split, data):
    """Opens a source by its text, see `parse`; the other arguments are those of `source`."""
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
    """Reads what the labels of the one source to train on were measured to be.

    Args:
      config: as in `clips`.

    Returns:
      What `statistics.measure` returned, with "actions".

    Raises:
      ValueError: there is more than one source, or it has no actions, or it has not been measured,
        or is not what was measured; the text gives the command.
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
    """Raises ValueError where worker processes would die for lack of shared memory.

    Each hands over pieces of batches there: some that wait, one to write and one being read.
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
    """Returns the arrays of the first of `clips` that all have, in the same shape and type."""
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
    """Makes a batch of its pieces."""
    if len(pieces) == 1:
        return pieces[0]
    return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}


class _Failures:
    """Remembers and reports what can't be read; shared by threads."""

    def __init__(self, path):
        self.path = path
        self.reasons = {}
        self.reported, self.offset = set(), 0  # what the file says up to there

    def add(self, source, error):
        """Reports a file or episode, once over threads, processes and restarts."""
        mine = [error.reason]
        if self.reasons.setdefault(error.path, mine) is not mine:  # atomic: one thread goes on
            return
        _LOG.warning("skipped file %d, %s", len(self.reasons), error)
        if self.path:
            self._append({"source": source, "path": error.path, "reason": error.reason})

    def _append(self, row):
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        with open(self.path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until closed: other processes may be writing, too
            file.seek(self.offset)
            line = b"\n"
            for line in file:
                with contextlib.suppress(ValueError):  # a line that a killed process left half
                    before = json.loads(line)
                    self.reported.add((before["source"], before["path"]))
            half = 0 if line.endswith(b"\n") else len(line)
            self.offset = file.tell() - half
            if (row["source"], row["path"]) not in self.reported:
                file.write(b"\n" * bool(half) + json.dumps(row).encode() + b"\n")


def _order(first, count, random):
    """Yields `first`, and then the other numbers below `count` in an order drawn by `random`.

    One by one: hardly ever more than a few are wanted, of a count that may be millions.
    """
    seen = {first}
    yield first
    while len(seen) < count:
        number = int(random.integers(count))
        if number not in seen:
            seen.add(number)
            yield number


class _Reader:
    """Reads one example of a source: picklable, since Grain sends it to worker processes."""

    def __init__(self, source, rank, cut, failures):
        self.source, self.rank, self.cut, self.failures = source, rank, cut, failures
        self.files = getattr(source, "files", None)  # None: each item is one
        self.count = len(source.items if self.files is None else self.files)
        self.hopeless = set()
        self.keys = None

    def __call__(self, index, random):
        """Reads a clip of file `index`, or of the first readable one in an order from `random`."""
        seed = int(random.integers(2**63))
        silent = 0
        for file in _order(index, self.count, random):
            try:
                clip = self._read(file, seed)
            except frames.UnreadableVideo:  # the system's fault, and not for this file alone
                silent += 1
                if silent == _SILENT:
                    raise
                continue
            if clip:
                return clip
        raise ValueError(f"{self.source.name}: no file can be read any more")

    def check(self):
        """Returns the first clip that can be read; raises ValueError where there is none."""
        for file in range(self.count):
            clip = self._read(file, 0)
            if clip:
                return clip
        reasons = [f"{path}: {why[0]}" for path, why in list(self.failures.reasons.items())[:5]]
        some = "; ".join(reasons + ["..."] * (self.count > 5))
        text = f"none of {self.count} files can be read: {some}"
        raise ValueError(f"{self.source.name}: {text}")

    def _read(self, file, seed):
        """Returns the arrays of a clip to train on, or None.

        Raises:
          UnreadableVideo: the system failed, again and again.
        """
        index = file
        if self.files is not None:
            index = self.files.pick(file, np.random.default_rng((seed, 1)))
        if index in self.hopeless:
            return None

        def read():
            # Afresh, so that a clip doesn't depend on how many were tried before.
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

"""Streams batches of clips to train on, and fixed clips to evaluate on.

The order of examples, the files they come from and where each clip starts are functions of the seed
and of the example's number alone. Threads, worker processes, training processes and restarts change
none of them.
"""

import json
import logging
import os

import numpy as np

from lawm_jax.data import mini, video

_LOG = logging.getLogger(__name__)
_BUFFER_BYTES = 2**30  # of decoded clips that wait for their batch, per process


def clips(config, split="train", *, process_index=0, process_count=1, skipped=None):
    """Starts an endless stream of batches.

    Each of `process_count` processes gets its share of the same global batch. An unreadable file is
    reported once and another one, drawn from the same source by the example's own seed, takes its
    place: batches stay full, weights of the mixture hold, and processes stay in step.

    Args:
      config: has `seed` and `data.{videos, mixture, frames, fps, resize, size, batch, holdout,
        workers, dir}`. `videos` names the user's own files, see `video.find_videos`; where it is
        "", `mixture` maps parts of lawm_mini to their weights. `batch` is the global batch.
      split: "train" or "test"; of the user's videos, `holdout` says which fraction is "test".
      process_index, process_count: which share to yield.
      skipped: path of a JSONL file that gets a line {"path", "reason"} per unreadable file, once in
        each process; None to log only.

    Returns:
      A Grain iterator with `get_state` and `set_state`. A batch is a dict with `video` uint8
      [B,F,H,W,3] and, of a labelled mixture, `actions` float32 [B,F-1,U] and `source` int32 [B],
      the rank of the name among the sorted names of `mixture`; B = batch / process_count.

    Raises:
      ValueError: `batch` isn't divisible by `process_count`, nothing matches, or of some source not
        one file can be read.
    """
    import absl.flags
    import grain

    data = config.data
    if data.batch % process_count:
        raise ValueError(f"data.batch: expected a multiple of {process_count}, got {data.batch}")
    batch = data.batch // process_count
    failures = _Failures(skipped)
    streams, weights = [], []
    for rank, weight, source in _sources(config, split):
        read = _Reader(source, None if data.videos else rank, failures)
        read.check()
        seed = int(np.random.SeedSequence([config.seed, rank]).generate_state(1)[0])
        order = grain.MapDataset.range(len(source.items)).seed(seed).shuffle().repeat()
        streams.append(order.random_map(read))
        weights.append(weight)
    examples = grain.MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0]
    examples = examples[process_index::process_count]

    # Every example exists, so examples can be dealt to workers in turn and come back in order.
    processes = max(1, data.workers)
    room = max(1, _BUFFER_BYTES // (data.frames * data.size**2 * 3) // processes)
    buffer = min(room, max(1, 2 * batch // processes))
    threads = min(buffer, 16, max(1, (os.cpu_count() or 1) // processes))
    stream = examples.to_iter_dataset(grain.ReadOptions(threads, buffer))
    if data.workers:
        if not absl.flags.FLAGS.is_parsed():  # as in a notebook; Grain's workers read flags
            absl.flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(data.workers, min(buffer, 2)))
    return iter(stream.batch(batch, drop_remainder=True))


def episodes(config, name, split="test", *, skipped=None):
    """Yields the clips of one source at fixed places, in a fixed order.

    Clips of a file don't overlap; a video gives four at most, spread over its length.

    Args:
      config: as in `clips`.
      name: a part of lawm_mini, or "videos" for the user's files `config.data.videos`.
      split: "train" or "test".
      skipped: as in `clips`.

    Yields:
      Dicts with `video` uint8 [F,H,W,3], `source` (the name), `episode` (number, or path of a
      video), `start` (frame number, or seconds of a video); labelled ones with `actions` float32
      [F-1,U] and `state` float32 [F,k].

    Raises:
      ValueError: nothing matches.
    """
    source = _source(config.data, name, split)
    failures = _Failures(skipped)
    for item in source.items:
        try:
            for clip in source.fixed(item):
                yield {**clip, "source": name}
        except video.UnreadableVideo as error:
            failures.add(error)


def _sources(config, split):
    """Returns (rank, weight, source) of everything to train on."""
    if config.data.videos:
        return [(0, 1.0, _source(config.data, "videos", split))]
    weights = dict(config.data.mixture)
    found = [
        (rank, float(weights[name]), _source(config.data, name, split))
        for rank, name in enumerate(sorted(weights))
        if weights[name] > 0
    ]
    if not found:
        raise ValueError("data.mixture: expected a positive weight, or data.videos, got neither")
    return found


def _source(data, name, split):
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if name != "videos":
        if data.fps != mini.FPS:
            raise ValueError(f"data.fps: lawm_mini has {mini.FPS} frames a second, got {data.fps}")
        return mini.mini(name, split, data.frames, data.resize, data.size, data.dir)
    train, test = video.split_videos(data.videos, data.holdout)
    if train == test:
        _LOG.warning("%s is the only video: it is used for training and for testing", train[0])
    items = tuple(train if split == "train" else test)
    label = f"data.videos={data.videos!r}"
    return video.Videos(label, items, data.frames, data.fps, data.resize, data.size)


class _Failures:
    """Remembers and reports what can't be read; shared by threads."""

    def __init__(self, path):
        self.path = path
        self.reasons = {}
        self.hopeless = set()

    def add(self, error):
        """Reports a file, once, and gives it up if none of its clips can be read."""
        if error.start is None:
            self.hopeless.add(error.path)
        mine = [error.reason]
        if self.reasons.setdefault(error.path, mine) is not mine:  # atomic: one thread goes on
            return
        _LOG.warning("skipped file %d, %s", len(self.reasons), error)
        if self.path:
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            line = json.dumps({"path": error.path, "reason": error.reason}) + "\n"
            # One short write in append mode is not torn by other processes' writes.
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)


class _Reader:
    """Reads one example of a source: picklable, since Grain sends it to worker processes."""

    def __init__(self, source, rank, failures):
        self.source, self.rank, self.failures = source, rank, failures

    def __call__(self, index, rng):
        """Reads a clip of item `index`, or of the first readable one in an order from `rng`."""
        place = rng.random()
        clip = self._read(self.source.items[index], place)
        if clip:
            return clip
        for other in rng.permutation(len(self.source.items)):
            clip = self._read(self.source.items[other], place)
            if clip:
                return clip
        raise ValueError(f"{self.source.name}: no file can be read any more")

    def check(self):
        """Raises ValueError where not one item can be read."""
        if any(self._read(item, 0.0) for item in self.source.items):
            return
        items = self.source.items
        reasons = [f"{item}: {self.failures.reasons[item][0]}" for item in items[:5]]
        some = "; ".join(reasons + ["..."] * (len(items) > 5))
        raise ValueError(f"{self.source.name}: none of {len(items)} files can be read: {some}")

    def _read(self, item, place):
        """Returns the arrays of a clip to train on, or None."""
        if item in self.failures.hopeless:
            return None
        try:
            clip = self.source.clip(item, place)
        except video.UnreadableVideo as error:
            self.failures.add(error)
            return None
        if self.rank is None:
            return {"video": clip["video"]}
        return {
            "video": clip["video"],
            "actions": clip["actions"],
            "source": np.int32(self.rank),
        }

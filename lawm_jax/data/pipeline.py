"""Streams batches of training clips, and yields fixed clips for evaluation.

The order of examples, the files they come from and the start of each clip depend only on the seed
and the example's number. They are the same for any number of threads, worker processes and training
processes, and after a restart.
"""

import os
import shutil

import numpy as np

from lawm_jax.data import catalog, frames, reader, settings, statistics
from lawm_jax.data import episodes as episodes_

BUFFER_BYTES = 2**29  # maximum bytes of prefetched clips, per process


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
        same names to specs, see `catalog.source`. If `videos` isn't "", it is the only source.
        `batch` is the global batch. Recordings with a constant rate are subsampled to the rate
        nearest to `fps`; a rate that differs from `fps` is logged, see `episodes.stride`.
      split: "train" or "test"; sources without predefined splits hold out a fraction `holdout`.
      process_index, process_count: which block of each batch to yield.
      skipped: path of a JSONL file to which one line {"source", "path", "reason"} is appended per
        unreadable file, see `reader.Failures`; None to log only.

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
    examples, shared = _examples(config, split, reader.Failures(skipped))

    # No example is ever filtered out, so Grain can assign the pieces of a batch to workers in turn
    # and return them in order. Transferring single examples would cost more than reading them.
    workers = max(1, data.workers)
    piece = max(n for n in range(1, 17) if batch % n == 0) if data.workers else 1
    piece_bytes = piece * sum(value.nbytes for value in shared.values())
    buffer = max(1, min(BUFFER_BYTES // piece_bytes, 2 * batch // piece) // workers)
    threads = min(buffer, 16, max(1, (os.cpu_count() or 1) // workers))

    def example(index):  # of this process's block of each batch
        step, place = divmod(index, batch)
        return examples[(step * process_count + process_index) * batch + place]

    local = grain.MapDataset.range(len(examples)).map(example)

    def start(done):
        remaining = local[done // process_count :]
        if not data.workers:
            read = remaining.to_iter_dataset(grain.ReadOptions(threads, buffer))
            return iter(read.batch(batch, drop_remainder=True))
        if not absl.flags.FLAGS.is_parsed():  # in a notebook; Grain's workers read flags
            absl.flags.FLAGS.mark_as_parsed()
        check_shared_memory(piece_bytes * data.workers * (min(buffer, 2) + 2))
        read = remaining.batch(piece).to_iter_dataset(grain.ReadOptions(threads, buffer))
        read = read.mp_prefetch(grain.MultiprocessingOptions(data.workers, min(buffer, 2)))
        return iter(read.batch(batch // piece, drop_remainder=True, batch_fn=_joined))

    shapes = {key: value.shape for key, value in shared.items()}
    return stream.Stream(start, data.batch, shapes)


def episodes(config, name, split="test", *, most=None, skipped=None, without=()):
    """Yields the clips of one source at fixed positions, in a fixed order.

    Clips of an item don't overlap. A video yields at most four, spread over its length.

    Args:
      config: as in `clips`.
      name: one of `catalog.names(config)`.
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
    source = catalog.source(config, name, split)
    failures, items = reader.Failures(skipped), source.items
    if without:
        items = [item for item in items if episodes_.identity(source, item) not in without]
    count = len(items)
    for index in range(count) if most is None else np.linspace(0, count - 1, min(most, count)):
        try:
            for clip in source.fixed(items[round(index)]):
                yield {**clip, "source": name}
        except frames.UnreadableVideo as error:
            failures.add(source.name, error)


def identities(config, name, split="train"):
    """Returns the identities of the items of one source.

    Two configs share an identity if they read the same file, folder or episode: by a relative path,
    a link or a glob, with or without a trailing slash, or from ingested records. Data that was
    copied, or mounted elsewhere when it was ingested, has other identities.

    Args:
      config, name, split: as in `catalog.source`.

    Returns:
      A tuple of str, one per item of the source, in order; see `episodes.identity`.

    Raises:
      ValueError: as in `catalog.source`.
    """
    source = catalog.source(config, name, split)
    return tuple(episodes_.identity(source, item) for item in source.items)


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
    name, *others = catalog.names(config)
    if others:
        raise ValueError(
            "data.mixture: expected a single source, because real actions mean different things in "
            f"different sources, got {catalog.names(config)}"
        )
    text = config.data.videos or config.data.sources[name]
    source = catalog.source(config, name)
    if not isinstance(source, episodes_.Episodes):
        raise ValueError(f"data: expected a source with actions, got {text!r}")
    folder = catalog.parse(name, text).folder
    measured = statistics.read(folder, source, config.data.fps, text)
    if "actions" not in measured:
        raise ValueError(f"data: expected a source with actions, got {folder}, which has none")
    return measured


def check_shared_memory(need, folder="/dev/shm"):
    """Raises ValueError if workers would run out of shared memory and die.

    Each worker holds pieces of batches there: some queued, one being written and one being read.
    """
    if not os.path.isdir(folder):
        return
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ValueError(
            f"data.workers: expected {need / 2**20:.0f} MiB free in {folder}, through which worker "
            f"processes pass clips, got {free / 2**20:.0f} MiB. Give the container more shared "
            "memory (docker run --shm-size=8g; Kubernetes: an emptyDir with medium Memory mounted "
            "there), use fewer workers, or set 0 to use threads"
        )


def _examples(config, split, failures):
    """Returns an endless stream of training clips in random order, and the arrays they share.

    Args:
      config, split: as in `clips`.
      failures: `reader.Failures`.

    Returns:
      A `grain.MapDataset` of dicts of arrays; and the arrays of one clip, see `_shared`.
    """
    import grain

    data, readers, weights = config.data, [], []
    for rank, (name, weight) in enumerate(sorted(catalog.weights(data).items())):
        if weight > 0:
            source = catalog.source(config, name, split)
            readers.append(reader.Reader(source, split, rank, data.augment.cut, failures))
            weights.append(weight)
    shared = _shared([r.check() for r in readers])
    if data.augment.flip:  # the labels of a mirrored clip are wrong
        shared = {key: value for key, value in shared.items() if key not in ("actions", "state")}
    streams = []
    for r in readers:
        r.keys = shared
        seed = int(np.random.SeedSequence([config.seed, r.rank]).generate_state(1)[0])
        order = grain.MapDataset.range(r.count).seed(seed).shuffle().repeat()
        streams.append(order.random_map(r))
    return grain.MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0], shared


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
        raise ValueError(f"data.mixture: expected the same video shape in all sources, got {got}")
    return shared


def _joined(pieces):
    """Concatenates pieces into a batch."""
    if len(pieces) == 1:
        return pieces[0]
    return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}

"""Converts any source into ArrayRecord shards (see `records`) with worker processes.

An item's shard depends only on the order of items, and a shard is renamed into place once it is
complete. An interrupted run therefore continues without gaps or duplicates, with any number of
workers.
"""

import contextlib
import functools
import os

from lawm_jax.data import paths
from lawm_jax.ingest import folder, plans, readers, summary


def ingest(plan, out, *, workers=1, limit=120.0, part=(0, 1), encode=None, show=True):
    """Converts a whole source into shards, or continues an interrupted run.

    Args:
      plan: `plans.Plan`.
      out: folder to write to; with plan.write=False, only the report is written.
      workers: number of reader processes.
      limit: seconds without progress after which a file is skipped.
      part: (i, n): make only every nth shard, from the ith on, as one of n machines that share
        `out`.
      encode: for states: function of (path of a shard of raw clips, path of the shard to write).
      show: whether to show progress.

    Returns:
      The summary that info.json holds, or None while shards of other machines are missing.

    Raises:
      ValueError: nothing matches, nothing can be read, or `out` holds other data.
      RuntimeError: a worker failed for a reason other than a file, such as a full disk.
      BlockingIOError: another process is writing the same part of `out`.
    """
    plans.check(plan, workers, limit, part)
    out = paths.expand(out)
    with folder.claim_part(out, part):
        return _ingest(plan, out, workers, limit, part, encode, show)


def _ingest(plan, out, workers, limit, part, encode, show):
    """Implements `ingest`, once the folder is locked."""
    sources = {split: plans.open_source(plan, split) for split in ("train", "test")}
    size, units = plans.divide(sources)
    folder.claim_plan(out, plan, sources, size)
    for split in sources:
        os.makedirs(os.path.join(out, split), exist_ok=True)
    selected = units[part[0] :: part[1]]
    todo = [unit for unit in selected if not os.path.exists(unit.report(out))]
    complete = functools.partial(_complete, plan, out, encode)
    options = dict(workers=workers, limit=limit, complete=complete)
    with _progress(selected, todo, show) as advance:
        readers.run(plan, sources, out, todo, advance=advance, **options)
    if all(os.path.exists(unit.report(out)) for unit in units):
        return summary.write(plan, out, units)
    return None


def _complete(plan, out, encode, unit, worker):
    """Moves a worker's complete shard into place, and then its report."""
    if plan.write:
        path = unit.shard(out)
        partial = folder.partial(path, worker)
        if encode:
            encode(partial, folder.partial(path))
            os.remove(partial)
            partial = folder.partial(path)
        os.replace(partial, path)
    path = unit.report(out)
    os.replace(folder.partial(path, worker), path)


@contextlib.contextmanager
def _progress(selected, todo, show):
    """Shows a progress bar of items; yields a function (unit, next item) that advances it."""
    import tqdm

    total = sum(len(unit.items) for unit in selected)
    done = total - sum(len(unit.items) for unit in todo)
    reached = {}
    with tqdm.tqdm(total=total, initial=done, unit="item", disable=None if show else True) as bar:

        def advance(unit, item):
            bar.update(item - reached.get(unit, unit.items.start))
            reached[unit] = item

        yield advance

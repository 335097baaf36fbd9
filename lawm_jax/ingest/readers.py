"""Reads items in worker processes, each of which makes one shard.

A file that crashes or hangs its reader ends that worker, not the run.
"""

import collections
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import time

from lawm_jax.data import episodes, errors, frames, records, words
from lawm_jax.ingest import folder


def run(plan, sources, out, units, *, workers, limit, complete, advance):
    """Makes shards with worker processes, and replaces workers that die or make no progress.

    Args:
      plan: `plans.Plan`.
      sources: split -> source.
      out: folder to write to.
      units: list of `plans.Unit`, the shards to make.
      workers: number of worker processes.
      limit: seconds without progress after which an item is skipped.
      complete: function (unit, worker's process id), called once a shard's partial files exist.
      advance: function (unit, next item), called whenever an item may have been read.

    Raises:
      RuntimeError: a worker failed for a reason other than an item, such as a full disk.
    """
    waiting = collections.deque((unit, {}) for unit in units)
    running = {}  # process -> (unit, items that killed a reader with the reason, shared progress)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                unit, bad = waiting.popleft()
                process, at = _start(plan, sources[unit.split], out, unit, bad)
                running[process] = unit, bad, at
            time.sleep(0.02)
            for process, (unit, bad, at) in list(running.items()):
                code, item = process.exitcode, int(at[0])
                advance(unit, item)
                if code is None and time.monotonic() - at[1] <= limit:
                    continue
                del running[process]
                if code == 0:
                    complete(unit, process.pid)
                    advance(unit, unit.items.stop)
                    continue
                bad[item] = _failure(process, code, f"item {item} of {unit.split}", limit)
                waiting.appendleft((unit, bad))
    finally:
        for process in running:
            process.kill()


def _start(plan, source, out, unit, bad):
    """Starts a worker for one shard; returns the process and `at`, see `_make_shard`."""
    spawn = multiprocessing.get_context("spawn")
    at = spawn.Array("d", [unit.items.start, math.inf], lock=False)
    restricted = dataclasses.replace(source, items=[source.items[i] for i in unit.items])
    work = (plan, restricted, out, unit, bad, at, os.getpid())
    process = spawn.Process(target=_make_shard, args=work, daemon=True)
    process.start()
    return process, at


def _failure(process, code, item, limit):
    """Returns the reason why a worker failed at an item; kills it if it makes no progress."""
    if code is None:
        process.kill()
        process.join()
        return f"no progress in {limit:g} s"
    if code > 0:
        raise RuntimeError(
            f"a worker failed at {item}, with exit code {code}; its error message is above"
        )
    return f"its reader was killed by signal {-code}"


def _make_shard(plan, source, out, unit, bad, at, parent):
    """Makes one shard; runs in a worker process.

    Args:
      source: the source, restricted to the unit's items.
      bad: items to leave out -> reason.
      at: shared array: the current item's number, and the time.monotonic() of the last progress.
      parent: id of the parent process.
    """
    from array_record.python import array_record_module

    at[1] = time.monotonic()  # only now, since starting a process takes time, too
    report = []
    with contextlib.ExitStack() as stack:
        writer = None
        if plan.write:
            path = folder.partial(unit.shard(out))
            writer = array_record_module.ArrayRecordWriter(path, records.OPTIONS)
            stack.callback(writer.close)
        for item, name in zip(unit.items, source.items, strict=True):
            row = {"path": str(name), "identity": episodes.identity(source, name)}
            row |= {"reason": bad.get(item)}
            row |= {"records": 0, "lengths": [], "frames": 0, "dropped": 0, "labelled": False}
            for part in readable_parts(plan, source, name, row) if item not in bad else ():
                at[0], at[1] = item, time.monotonic()
                if os.getppid() != parent:
                    return  # the parent was killed; the next run makes this shard
                if writer:
                    step = getattr(source, "stride", 1 / plan.fps)
                    writer.write(records.pack(part, step, 0 if plan.encoder else plan.quality))
                row["records"] += 1
                row["lengths"].append(len(part["video"]))
                row["labelled"] |= "actions" in part
                row["frames"] += len(part["video"])
            report.append(row)
            at[0], at[1] = item + 1, time.monotonic()
    folder.write(folder.partial(unit.report(out)), json.dumps(report))


def readable_parts(plan, source, item, row):
    """Yields the parts of an item to store; adds any error and dropped frames to `row`."""
    least = plan.least if plan.least < plan.frames else 0
    try:
        for part in source.parts(item, plan.frames, least):
            if len(part["video"]) < plan.least:
                row["dropped"] += len(part["video"])
            else:
                yield part
    except frames.UnreadableVideo as error:
        if errors.transient(error):  # the same command continues with this shard
            raise
        row["reason"] = error.reason
    if not row["reason"] and not row["records"]:
        row["reason"] = (
            f"too short: {words.counted(row['dropped'], 'frame')}, but a record needs {plan.least}"
        )

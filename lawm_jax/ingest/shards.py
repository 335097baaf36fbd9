"""Converts any source into ArrayRecord shards (see `records`) with worker processes.

An item's shard depends only on the order of items, and a shard is renamed into place once it is
complete. An interrupted run therefore continues without gaps or duplicates, with any number of
workers. A file that crashes or hangs its reader ends that worker, not the run.
"""

import collections
import contextlib
import dataclasses
import glob
import hashlib
import json
import math
import multiprocessing
import os
import time
import types
from typing import NamedTuple

from lawm_jax.data import catalog, episodes, errors, frames, metadata, paths, records

SHARDS = 1024  # approximate maximum per split; a shard has at least 16 items


class Plan(NamedTuple):
    """Describes how to convert a source; an ingest can only be continued with the same plan.

    Attributes:
      source: KIND:WHERE or video files, see `catalog.open_source`.
      fps, size, resize: rate and size of the frames, as in the config's `data`.
      frames: maximum number of frames per record.
      least: minimum number of frames per record; shorter parts are dropped and counted. If it
        equals `frames`, all records have the same length, as needed for states of clips.
      quality: JPEG quality; 0 stores raw frames.
      holdout: fraction of test items, if the source has no split of its own.
      encoder: the config of an encoder whose states are stored, or None to store frames.
      write: False only checks that everything can be read.
    """

    source: str
    fps: float = 4.0
    size: int = 256
    resize: int = 256
    frames: int = 128
    least: int = 16
    quality: int = 90
    holdout: float = 0.05
    encoder: dict | None = None
    write: bool = True


class _Unit(NamedTuple):
    """The items of one shard."""

    split: str
    number: int
    items: range


def ingest(plan, out, *, workers=1, limit=120.0, part=(0, 1), encode=None, show=True):
    """Converts a whole source into shards, or continues an interrupted run.

    Args:
      plan: `Plan`.
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
    check(plan, workers, limit, part)
    out = paths.expand(out)
    with claim_part(out, part):
        return _ingest(plan, out, workers, limit, part, encode, show)


def check(plan, workers=1, limit=120.0, part=(0, 1)):
    """Raises ValueError, which names the argument, if an argument of `ingest` is out of range."""
    for name, value, good, expected in (
        ("fps", plan.fps, 0 < plan.fps <= 1000, "more than 0 and at most 1000"),
        ("size", plan.size, 8 <= plan.size <= 8192, "8 to 8192 pixels"),
        ("resize", plan.resize, plan.size <= plan.resize <= 65536, f"at least size = {plan.size}"),
        ("frames", plan.frames, plan.frames >= 2, "at least 2"),
        ("least", plan.least, 2 <= plan.least <= plan.frames, f"2 to frames = {plan.frames}"),
        ("quality", plan.quality, 0 <= plan.quality <= 100, "0 to 100"),
        ("holdout", plan.holdout, 0 <= plan.holdout <= 1, "0 to 1"),
        ("workers", workers, workers >= 1, "at least 1"),
        ("limit", limit, limit >= 1, "at least 1 second"),
        ("part", "/".join(map(str, part)), 0 <= part[0] < part[1], "i/n with 0 <= i < n"),
    ):
        if not good:
            raise ValueError(f"{name}: expected {expected}, got {value}")


@contextlib.contextmanager
def claim_part(out, part):
    """Locks one part of a folder; raises BlockingIOError if another process has locked it."""
    import fcntl

    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"out: expected a folder, got the file {out}")
    os.makedirs(out, exist_ok=True)
    mine = os.path.join(out, f".ingest-{part[0]}-of-{part[1]}.lock")
    others = glob.glob(os.path.join(glob.escape(out), ".ingest-*-of-*.lock"))
    clashing = [path for path in others if not path.endswith(f"-of-{part[1]}.lock")]
    with contextlib.ExitStack() as stack:
        for path in [*clashing, mine]:
            file = stack.enter_context(open(path, "a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = f"{out}: another process is ingesting into it; wait for it, or stop it"
                raise BlockingIOError(text) from None
            except OSError:  # the file system has no locks
                pass
            stack.callback(lambda path=path: os.path.exists(path) and os.remove(path))
        yield


def _ingest(plan, out, workers, limit, part, encode, show):
    """Implements `ingest`, once the folder is locked."""
    sources = {split: open_source(plan, split) for split in ("train", "test")}
    size = max(16, -(-max(len(source.items) for source in sources.values()) // SHARDS))
    _claim(out, plan, sources, size)
    units = [
        _Unit(split, number, range(first, min(first + size, len(source.items))))
        for split, source in sources.items()
        for number, first in enumerate(range(0, len(source.items), size))
    ]
    for split in sources:
        os.makedirs(os.path.join(out, split), exist_ok=True)
    mine = units[part[0] :: part[1]]
    todo = [unit for unit in mine if not os.path.exists(_report_path(out, unit))]
    with _progress(mine, todo, show) as advance:
        _run(plan, sources, out, todo, workers, limit, encode, advance)
    if all(os.path.exists(_report_path(out, unit)) for unit in units):
        return _finish(plan, out, units)
    return None


def open_source(plan, split):
    """Opens the "train" or "test" split of the plan's source."""
    off = types.SimpleNamespace(
        crop=False, area=(1, 1), ratio=(1, 1), flip=0.0, jitter=0.0, cut=0.0
    )
    names = ("fps", "size", "resize", "holdout")
    data = types.SimpleNamespace(
        frames=plan.least, augment=off, **{name: getattr(plan, name) for name in names}
    )
    return catalog.open_source(plan.source, plan.source, split, data)


def _claim(out, plan, sources, size):
    """Writes the plan, or checks that the folder was begun with the same plan."""
    wanted = plan._asdict() | {"shard_items": size, "items": {}}
    for split, source in sources.items():
        digest = hashlib.sha256()
        for item in source.items:
            digest.update(str(item).encode(errors="surrogateescape") + b"\n")
        wanted["items"][split] = f"{len(source.items)} ({digest.hexdigest()[:16]})"
    wanted = json.loads(json.dumps(wanted))
    path = os.path.join(out, "plan.json")
    try:
        before = metadata.load(path, "the plan of an ingest")
    except ValueError:
        if os.path.exists(path):
            raise
        _write(path, json.dumps(wanted, indent=1))
        return
    changed = [
        f"{key}: {before.get(key)!r}, now {value!r}"
        for key, value in wanted.items()
        if before.get(key) != value
    ]
    if changed:
        raise ValueError(
            f"{out}: expected a new folder or one started with the same source and options; these "
            f"changed: {'; '.join(changed)}"
        )


def _run(plan, sources, out, todo, workers, limit, encode, advance):
    """Makes shards with worker processes, and replaces workers that die or make no progress."""
    spawn = multiprocessing.get_context("spawn")
    waiting = collections.deque((unit, {}) for unit in todo)
    running = {}  # process -> (unit, items that killed a reader with the reason, shared progress)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                unit, bad = waiting.popleft()
                at = spawn.Array("d", [unit.items.start, math.inf], lock=False)
                source = sources[unit.split]
                mine = dataclasses.replace(source, items=[source.items[i] for i in unit.items])
                work = (plan, mine, out, unit, bad, at, os.getpid())
                process = spawn.Process(target=_work, args=work, daemon=True)
                process.start()
                running[process] = unit, bad, at
            time.sleep(0.02)
            for process, (unit, bad, at) in list(running.items()):
                item, since = int(at[0]), at[1]
                advance(unit, item)
                if process.exitcode is None:
                    if time.monotonic() - since > limit:
                        process.kill()
                        process.join()
                        bad[item] = f"no progress in {limit:g} s"
                        waiting.appendleft((unit, bad))
                        del running[process]
                    continue
                del running[process]
                if process.exitcode > 0:
                    raise RuntimeError(
                        f"a worker failed at item {item} of {unit.split}, with exit code "
                        f"{process.exitcode}; its error message is above"
                    )
                if process.exitcode < 0:
                    bad[item] = f"its reader was killed by signal {-process.exitcode}"
                    waiting.appendleft((unit, bad))
                    continue
                _complete(plan, out, unit, process.pid, encode)
                advance(unit, unit.items.stop)
    finally:
        for process in running:
            process.kill()


def _work(plan, source, out, unit, bad, at, parent):
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
            path = _partial(records.shard_path(os.path.join(out, unit.split), unit.number))
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
    _write(_partial(_report_path(out, unit)), json.dumps(report))


def readable_parts(plan, source, item, row):
    """Yields the parts of an item to store; notes in `row` any error and dropped frames."""
    try:
        for part in source.parts(item, plan.frames, plan.least if plan.least < plan.frames else 0):
            if len(part["video"]) < plan.least:
                row["dropped"] += len(part["video"])
            else:
                yield part
    except frames.UnreadableVideo as error:
        if errors.transient(error):  # the same command continues with this shard
            raise
        row["reason"] = error.reason
    if not row["reason"] and not row["records"]:
        row["reason"] = f"too short: {row['dropped']} frames, but a record needs {plan.least}"


def _complete(plan, out, unit, worker, encode):
    """Moves a complete shard into place, and then its report."""
    if plan.write:
        path = records.shard_path(os.path.join(out, unit.split), unit.number)
        made = _partial(path, worker)
        if encode:
            encode(made, _partial(path))
            os.remove(made)
            made = _partial(path)
        os.replace(made, path)
    path = _report_path(out, unit)
    os.replace(_partial(path, worker), path)


def _finish(plan, out, units):
    """Writes report.jsonl and info.json, and deletes partial files of killed workers."""
    counts, lengths = {"train": [], "test": []}, {"train": [], "test": []}
    totals = collections.Counter()
    with open(_partial(os.path.join(out, "report.jsonl")), "w", encoding="utf-8") as file:
        for unit in units:
            with open(_report_path(out, unit), encoding="utf-8") as part:
                rows = json.load(part)
            counts[unit.split].append(sum(row["records"] for row in rows))
            for row in rows:
                if row["records"]:
                    lengths[unit.split].append(row.get("lengths"))
                totals["items"] += 1
                totals["bad"] += row["reason"] is not None
                for key in ("records", "frames", "dropped", "labelled"):
                    totals[key] += row[key]
                file.write(json.dumps({"ok": not row["reason"], "split": unit.split} | row) + "\n")
    os.replace(_partial(os.path.join(out, "report.jsonl")), os.path.join(out, "report.jsonl"))
    for split in counts:
        for name in os.listdir(os.path.join(out, split)):
            if ".partial-" in name:
                os.remove(os.path.join(out, split, name))
    if not totals["records"]:
        raise ValueError(
            f"{plan.source}: none of {totals['items']} items can be read; the reasons are in "
            f"{os.path.join(out, 'report.jsonl')}"
        )
    info = plan._asdict() | {
        "records": counts,
        "lengths": lengths,
        **{f"total_{k}": n for k, n in totals.items()},
    }
    if None in lengths["train"] + lengths["test"]:  # begun by a version that didn't store them
        del info["lengths"]
    if plan.write:
        if plan.encoder and plan.frames == plan.least:
            info["steps"] = _steps(out, counts)
        _write(os.path.join(out, "info.json"), json.dumps(info, indent=1))
    return info


def _steps(out, counts):
    """Returns the number of time steps T of a record of states."""
    from array_record.python import array_record_module

    split, number = next((k, i) for k in counts for i, count in enumerate(counts[k]) if count)
    path = records.shard_path(os.path.join(out, split), number)
    reader = array_record_module.ArrayRecordReader(path)
    return len(records.unpack(reader.read([0])[0])["states"])


def _report_path(out, unit):
    return records.report_path(records.shard_path(os.path.join(out, unit.split), unit.number))


def _partial(path, process=None):
    """Returns the name of a process's partial file, renamed to the final name with `os.replace`."""
    return f"{path}.partial-{process or os.getpid()}"


def _write(path, text):
    """Writes a file atomically."""
    with open(_partial(path), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(_partial(path), path)


@contextlib.contextmanager
def _progress(mine, todo, show):
    """Shows a progress bar of items; yields a function (unit, next item) that advances it."""
    import tqdm

    total = sum(len(unit.items) for unit in mine)
    done = total - sum(len(unit.items) for unit in todo)
    reached = {}
    with tqdm.tqdm(total=total, initial=done, unit="item", disable=None if show else True) as bar:

        def advance(unit, item):
            bar.update(item - reached.get(unit, unit.items.start))
            reached[unit] = item

        yield advance

"""Summarizes a complete ingest in report.jsonl and info.json."""

import collections
import json
import os

from lawm_jax.data import records, words
from lawm_jax.ingest import folder


def write(plan, out, units):
    """Writes report.jsonl and info.json, and deletes partial files of killed workers.

    Args:
      plan: `plans.Plan`.
      out: folder of the ingest, with the reports of all shards.
      units: list of all `plans.Unit`.

    Returns:
      The summary that info.json holds.

    Raises:
      ValueError: no item can be read.
    """
    counts, lengths, totals = _merge_reports(out, units)
    for split in counts:
        for name in os.listdir(os.path.join(out, split)):
            if ".partial-" in name:
                os.remove(os.path.join(out, split, name))
    if not totals["records"]:
        raise ValueError(
            f"{plan.source}: none of {words.counted(totals['items'], 'item')} can be read; the "
            "reasons are in "
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
        folder.write(os.path.join(out, "info.json"), json.dumps(info, indent=1))
    return info


def _merge_reports(out, units):
    """Merges the reports of all shards into report.jsonl.

    Returns:
      split -> the number of records of each shard; split -> the lengths of the records of each
      readable item; and the totals over all items.
    """
    counts, lengths = {"train": [], "test": []}, {"train": [], "test": []}
    totals, path = collections.Counter(), os.path.join(out, "report.jsonl")
    with open(folder.partial(path), "w", encoding="utf-8") as file:
        for unit in units:
            with open(unit.report(out), encoding="utf-8") as part:
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
    os.replace(folder.partial(path), path)
    return counts, lengths, totals


def _steps(out, counts):
    """Returns the number of time steps T of a record of states."""
    from array_record.python import array_record_module

    split, number = next((k, i) for k in counts for i, count in enumerate(counts[k]) if count)
    path = records.shard_path(os.path.join(out, split), number)
    reader = array_record_module.ArrayRecordReader(path)
    return len(records.unpack(reader.read([0])[0])["states"])

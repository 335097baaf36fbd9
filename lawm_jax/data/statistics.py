"""Measures the actions and states of a labelled source, to normalise them.

The numbers lie beside the data, in `FOLDER/statistics.json`, and are made by a command of their
own: two runs on the same data never differ because one of them saw more of it.
"""

import dataclasses
import hashlib
import json
import logging
import os

import numpy as np

from lawm_jax.data import episodes

KEYS = "actions", "state"

_LOG = logging.getLogger(__name__)


def measure(source, fps):
    """Measures the labels of all items of a source, without their video.

    Args:
      source: `episodes.Episodes`. Its training split, if what is measured is to train on.
      fps: frames a second that it was opened for.

    Returns:
      A dict: `fps`; `stride`, steps of the recording per frame; `source`, its name; `items`, their
      number; `fingerprint` of their names; `skipped`, how many of them can't be read to the end;
      and for each of "actions" and "state" that there is a dict with lists of a number per
      dimension: `mean`, `std` (of all, not of a sample), `min`, `max`, `q01` and `q99`, quantiles
      by linear interpolation; with `count`, of steps; and `quantiles`, "exact". The labels are kept
      in memory for it, 8 bytes each.

    Raises:
      ValueError: the source isn't labelled, or no item can be read.
    """
    if not isinstance(source, episodes.Episodes):
        raise ValueError(f"source: expected a labelled one, got {type(source).__name__}")
    source = dataclasses.replace(source, view=None)
    tables, skipped, reason = {}, 0, "there are none"
    for item in source.items:
        try:
            for part in source.parts(item, 2**62):  # one, but for damaged episodes
                found = {key: np.asarray(part[key], np.float64) for key in KEYS if key in part}
                for key, rows in found.items():
                    if key in tables and rows.shape[1:] != tables[key][0].shape[1:]:
                        got, width = rows.shape[1:], tables[key][0].shape[1:]
                        raise episodes.UnreadableVideo(str(item), f"{key} {got}, expected {width}")
                for key, rows in found.items():
                    if len(rows):  # an episode of one step has no action
                        tables.setdefault(key, []).append(rows)
        except episodes.UnreadableVideo as error:
            _LOG.warning("left out %s", error)
            skipped, reason = skipped + 1, str(error)
    if not tables:
        text = "no actions and no state" if skipped < len(source.items) else f"no item: {reason}"
        raise ValueError(f"{source.name}: expected labels, got {text}")
    whole = {"fps": float(fps), "stride": source.stride, "source": source.name}
    whole |= {**_identity(source), "skipped": skipped}
    return whole | {key: _summary(rows) for key, rows in tables.items()}


def write(folder, statistics, replace=False):
    """Writes what `measure` returned to `folder`/statistics.json, at once or not at all.

    Returns:
      The path.

    Raises:
      ValueError: the file exists, and `replace` is false.
    """
    path = os.path.join(folder, "statistics.json")
    if os.path.exists(path) and not replace:
        raise ValueError(f"{path}: it exists; delete it to measure the data again")
    partial = f"{path}.{os.getpid()}"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(statistics, file, indent=1)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return path


def read(folder, source=None, fps=None, spec=None):
    """Reads `folder`/statistics.json.

    Args:
      folder: as in `write`.
      source: `episodes.Episodes` that they must have been measured on, or None for any.
      fps: frames a second that they must have been measured for, or None for any.
      spec: KIND:WHERE of the source, for the command in an error message.

    Returns:
      What `measure` returned.

    Raises:
      ValueError: there are none, or they belong to other data; it gives the command to make them.
    """
    path = os.path.join(folder, "statistics.json")
    command = f"python -m lawm_jax.ingest --source {spec or f'KIND:{folder}'} --statistics"
    command += f" --fps {fps:g}" if fps else ""
    try:
        with open(path, encoding="utf-8") as file:
            statistics = dict(json.load(file))
        expected = {"fps": float(fps)} if fps else {}
        if source is not None:
            expected |= {"stride": source.stride, **_identity(source)}
        changed = [
            f"{key} was {statistics[key]} and is {value}"
            for key, value in expected.items()
            if statistics[key] != value
        ]
    except FileNotFoundError:
        raise ValueError(f"{path}: there is none; make it with: {command}") from None
    except (ValueError, KeyError, TypeError) as error:
        text = f"{path}: it is damaged ({error!r}); delete it, then: {command}"
        raise ValueError(text) from error
    if changed:
        text = f"{path}: measured on other data: {', '.join(changed)}; delete it, then: {command}"
        raise ValueError(text)
    return statistics


def _identity(source):
    """Returns number and fingerprint of a source's items, the same wherever the data lies."""
    names = [str(item) for item in source.items]
    if all(os.path.isabs(name) for name in names):
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
        names = [os.path.relpath(name, folder) for name in names]
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
    return {"items": len(names), "fingerprint": digest.hexdigest()[:16]}


def _summary(rows):
    """Summarizes a list of labels [n, U], float64: the part of `measure` that a key has."""
    columns = np.ascontiguousarray(np.concatenate(rows).T)  # sums along memory are more exact
    low, high = columns.min(1), columns.max(1)
    std = np.where(low == high, 0.0, columns.std(1))
    q01, q99 = np.quantile(columns, (0.01, 0.99), 1)
    values = dict(mean=columns.mean(1), std=std, min=low, max=high, q01=q01, q99=q99)
    lists = {name: value.tolist() for name, value in values.items()}
    return {"count": columns.shape[1], "quantiles": "exact", **lists}

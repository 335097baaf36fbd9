"""Measures statistics of the actions and states of a labeled source, for normalization.

They are stored beside the data, in `FOLDER/statistics.json`, by a separate command, so that all
runs on the same data use the same statistics.
"""

import dataclasses
import hashlib
import json
import logging
import os

import numpy as np

from lawm_jax.data import episodes, paths

KEYS = "actions", "state"

_LOG = logging.getLogger(__name__)


def measure(source, fps):
    """Measures the labels of all items of a source, held in memory, without reading video.

    Args:
      source: `episodes.Episodes`; the training split, if the statistics are for training.
      fps: frames per second for which it was opened.

    Returns:
      A dict: `fps`; `stride`, recorded steps per frame; `source`, its name; `items`, their number;
      `fingerprint`, a hash of their names; `skipped`, the number of items that can't be read
      completely; and for "actions" and "state", if present, a dict with one number per dimension in
      each of `mean`, `std` (of the population), `min`, `max`, `q01` and `q99` (quantiles by linear
      interpolation), plus `count`, the number of steps, and `quantiles`, "exact".

    Raises:
      ValueError: the source isn't labeled, or no item can be read.
    """
    if not isinstance(source, episodes.Episodes):
        raise ValueError(f"source: expected a labeled source, got {type(source).__name__}")
    source = dataclasses.replace(source, view=None)
    tables, skipped, reason = {}, 0, "the source is empty"
    for item in source.items:
        try:
            for part in source.parts(item, 2**62):  # one part, unless the episode is damaged
                labels = {key: np.asarray(part[key], np.float64) for key in KEYS if key in part}
                for key, rows in labels.items():
                    if key in tables and rows.shape[1:] != tables[key][0].shape[1:]:
                        got, width = rows.shape[1:], tables[key][0].shape[1:]
                        raise episodes.UnreadableVideo(
                            str(item), f"{key}: expected shape {width}, got {got}"
                        )
                for key, rows in labels.items():
                    if len(rows):  # an episode with a single step has no actions
                        tables.setdefault(key, []).append(rows)
        except episodes.UnreadableVideo as error:
            _LOG.warning("skipped %s", error)
            skipped, reason = skipped + 1, str(error)
    if not tables:
        text = "neither actions nor state" if skipped < len(source.items) else f"none: {reason}"
        raise ValueError(f"{source.name}: expected labels, got {text}")
    result = {"fps": float(fps), "stride": source.stride, "source": source.name}
    result |= {**_identity(source), "skipped": skipped}
    return result | {key: _summary(rows) for key, rows in tables.items()}


def write(folder, statistics, replace=False):
    """Writes statistics, as returned by `measure`, atomically to `folder`/statistics.json.

    Returns:
      The path.

    Raises:
      ValueError: the file exists and `replace` is false.
    """
    path = os.path.join(folder, "statistics.json")
    if os.path.exists(path) and not replace:
        raise ValueError(f"{path}: already exists; delete it to measure the data again")
    paths.write(path, json.dumps(statistics, indent=1))
    return path


def read(folder, source=None, fps=None, spec=None):
    """Reads `folder`/statistics.json.

    Args:
      folder: as in `write`.
      source: `episodes.Episodes` that the statistics must have been measured on; None for any.
      fps: frames per second that they must have been measured at; None for any.
      spec: KIND:WHERE of the source, for the command in an error message.

    Returns:
      A dict as returned by `measure`.

    Raises:
      ValueError: the file is missing, damaged, or measured on other data or at another rate; the
        message contains the command that creates it.
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
        raise ValueError(f"{path}: not found; create it with: {command}") from None
    except (ValueError, KeyError, TypeError) as error:
        text = f"{path}: damaged ({error!r}); delete it and run: {command}"
        raise ValueError(text) from error
    if changed:
        changed = ", ".join(changed)
        text = f"{path}: measured on different data: {changed}; delete it and run: {command}"
        raise ValueError(text)
    return statistics


def _identity(source):
    """Returns the number and fingerprint of a source's items, wherever the data is stored."""
    names = [str(item) for item in source.items]
    if all(os.path.isabs(name) for name in names):
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
        names = [os.path.relpath(name, folder) for name in names]
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
    return {"items": len(names), "fingerprint": digest.hexdigest()[:16]}


def _summary(rows):
    """Computes the statistics of one key of `measure` from a list of labels, float64 [n_i, U]."""
    # [U, count]: numpy's pairwise summation, which is more accurate, requires contiguous data.
    columns = np.ascontiguousarray(np.concatenate(rows).T)
    low, high = columns.min(1), columns.max(1)
    # Exactly 0 for a constant dimension, regardless of rounding.
    std = np.where(low == high, 0.0, columns.std(1))
    q01, q99 = np.quantile(columns, (0.01, 0.99), 1)
    values = dict(mean=columns.mean(1), std=std, min=low, max=high, q01=q01, q99=q99)
    lists = {name: value.tolist() for name, value in values.items()}
    return {"count": columns.shape[1], "quantiles": "exact", **lists}

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
MOST = 10_000_000  # values of a key up to which quantiles are exact

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
      by linear interpolation; with `count`, of steps; and `quantiles`, "exact" or of how many
      steps, drawn at
      random with a fixed seed where there are more than `MOST` values.

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
                    if key in tables and rows.shape[1:] != tables[key].mean.shape:
                        got, width = rows.shape[1:], tables[key].mean.shape
                        raise episodes.UnreadableVideo(str(item), f"{key} {got}, expected {width}")
                for key, rows in found.items():
                    tables.setdefault(key, _Table(rows.shape[1])).add(rows)
        except episodes.UnreadableVideo as error:
            _LOG.warning("left out %s", error)
            skipped, reason = skipped + 1, str(error)
    if not tables:
        text = "no actions and no state" if skipped < len(source.items) else f"no item: {reason}"
        raise ValueError(f"{source.name}: expected labels, got {text}")
    whole = {"fps": float(fps), "stride": source.stride, "source": source.name}
    whole |= {**_identity(source), "skipped": skipped}
    return whole | {key: table.summary() for key, table in tables.items()}


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


def normalise(x, statistics, key):
    """Gives labels mean 0 and standard deviation 1.

    Args:
      x: [..., U], floating-point, of numpy or JAX.
      statistics: of `measure` or `read`.
      key: "actions" or "state".

    Returns:
      As `x`. A dimension that never changed is shifted, but not scaled.

    Raises:
      ValueError: there are no statistics of `key`, or of another width.
    """
    mean, std = _scale(x, statistics, key)
    return (x - mean) / std


def denormalise(x, statistics, key):
    """Inverts `normalise`."""
    mean, std = _scale(x, statistics, key)
    return x * std + mean


def _scale(x, statistics, key):
    """Returns mean and standard deviation to go with `x`, of its rank and type."""
    if key not in statistics or key not in KEYS:
        raise ValueError(f"key: expected one of {[k for k in KEYS if k in statistics]}, got {key}")
    mean, std = (np.array(statistics[key][name], np.float64) for name in ("mean", "std"))
    if x.shape[-1:] != mean.shape or x.dtype.kind in "iub":
        got = f"{x.dtype} {list(x.shape)}"
        raise ValueError(f"x: expected floating-point [..., {len(mean)}] for {key}, got {got}")
    shape = (1,) * (x.ndim - 1) + mean.shape
    std = np.where(std > 0, std, 1)
    return mean.reshape(shape).astype(x.dtype), std.reshape(shape).astype(x.dtype)


def _identity(source):
    """Returns number and fingerprint of a source's items, the same wherever the data lies."""
    names = [str(item) for item in source.items]
    if all(os.path.isabs(name) for name in names):
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
        names = [os.path.relpath(name, folder) for name in names]
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape"))
    return {"items": len(names), "fingerprint": digest.hexdigest()[:16]}


class _Table:
    """Sums up rows of numbers that come in blocks."""

    def __init__(self, width, most=None):
        """Takes the numbers of a row, and the rows of which quantiles are exact."""
        self.count, self.mean, self.squares = 0, np.zeros(width), np.zeros(width)
        self.min, self.max = np.full(width, np.inf), np.full(width, -np.inf)
        self.most = max(1, MOST // max(1, width)) if most is None else most
        self.rows = np.empty((0, width))
        self.waiting = []
        self.random = np.random.default_rng(0)

    def add(self, rows):
        """Adds rows [n, U], float64.

        Source of the merger: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise
        algorithm for computing sample variances"; of the draw: Vitter 1985, algorithm R.
        """
        if not len(rows):
            return
        mean, before = rows.mean(0), self.count
        self.count += len(rows)
        change = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(0)
        self.squares += change**2 * before * (len(rows) / self.count)
        self.mean = self.mean + change * (len(rows) / self.count)
        self.min = np.minimum(self.min, rows.min(0))
        self.max = np.maximum(self.max, rows.max(0))
        fits = max(0, self.most - before)
        self.waiting.append(rows[:fits])
        if len(rows) > fits:  # row i takes the place of another with probability most / (i + 1)
            self._gather()
            numbers = np.arange(before + fits, self.count)
            places = self.random.integers(numbers + 1)
            stays = places < self.most
            self.rows[places[stays]] = rows[fits:][stays]

    def _gather(self):
        if any(map(len, self.waiting)):
            self.rows = np.concatenate([self.rows, *self.waiting])
        self.waiting = []

    def summary(self):
        """Returns the part of `measure` that a key has."""
        self._gather()
        std = np.sqrt(self.squares / max(1, self.count))
        std[self.min == self.max] = 0  # but for rounding it is
        values = {"mean": self.mean, "std": std, "min": self.min, "max": self.max}
        if self.count:
            values |= dict(
                zip(("q01", "q99"), np.quantile(self.rows, (0.01, 0.99), 0), strict=True)
            )
        kept = "exact" if self.count <= self.most else f"of {self.most} steps"
        lists = {name: value.tolist() for name, value in values.items()}
        return {"count": self.count, "quantiles": kept, **lists}

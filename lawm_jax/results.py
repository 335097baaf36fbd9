"""What runs left in their folders: reads it, and merges what several of them say of one thing.

Files may be missing, damaged or of another version: nothing in them is taken for granted.
"""

import json
import pathlib
import shlex
from typing import NamedTuple

from lawm_jax import figures, page

PARTS = "prediction", "leakage", "transfer", "content", "sampling"
BOUNDS = "copy last frame", "deterministic", "none"
CONTROLS = "copies the future", "decoder alone"  # beginnings of rows that are no model


class Run(NamedTuple):
    """Holds what a folder says.

    Attributes:
      folder: pathlib.Path.
      name, label: the folder's name; what tables call its model, such as "noisy 1e-05".
      config, about: dicts, empty where missing.
      metrics: lines of metrics.jsonl with step, error and copy.
      evals: part -> {source: ...}.
      files: of W/report that a page can show.
      skipped: number of files that could not be read.
      missing: [(what, command that makes it)].
    """

    folder: pathlib.Path
    name: str
    label: str
    config: dict
    about: dict
    metrics: list
    evals: dict
    files: list
    skipped: int
    missing: list

    @property
    def kind(self):
        return string(mapping(self.config.get("latent")).get("kind"))


def read(folder):
    """Reads a run's folder; raises ValueError where it is none."""
    folder = pathlib.Path(folder)
    if not any((folder / part).exists() for part in ("config.json", "metrics.jsonl", "eval")):
        what = "holds no config.json, metrics.jsonl or eval" if folder.is_dir() else "is not there"
        raise ValueError(f"{folder}: expected the folder of a run, but it {what}")
    evaluate = f"python -m lawm_jax.evaluate --workdir {shlex.quote(str(folder))}"
    train = f"python -m lawm_jax.train --config ... --workdir {shlex.quote(str(folder))}"
    missing = []

    def load(name, command):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            missing.append((name, command))
        except (OSError, ValueError):
            missing.append((f"{name} (it is there, but can't be read)", command))
        else:
            if isinstance(value, dict):
                return value
            missing.append((f"{name} (it is there, but holds no object)", command))
        return {}

    config = load("config.json", train)
    lines = []
    if (folder / "metrics.jsonl").exists():
        lines = figures.read_metrics(folder / "metrics.jsonl")
    else:
        missing.append(("metrics.jsonl", train))
    about = load("eval/about.json", evaluate)
    evals = {part: load(f"eval/{part}.json", f"{evaluate} --only {part}") for part in PARTS}
    files = sorted((folder / "report").glob("*"))
    files = [path for path in files if path.suffix.lower() in page.TYPES]
    if not files:
        missing.append(("pictures in report/", f"{evaluate} --only pictures"))
    skipped = folder / "skipped.jsonl"
    skipped = len(figures.read_metrics(skipped)) if skipped.exists() else 0
    lines = [mapping(line) for line in lines]
    lines = [line for line in lines if all(real(line.get(k)) for k in ("step", "error", "copy"))]
    name = folder.resolve().name
    return Run(folder, name, name, config, about, lines, evals, files, skipped, missing)


def with_labels(runs):
    """Names the runs' models by kind and strength, and by folder where that leaves two alike."""
    labels = []
    for run in runs:
        strength = mapping(run.config.get("latent")).get("strength")
        plain = run.kind in BOUNDS or not real(strength)
        labels.append(f"{run.kind or run.name}{'' if plain else f' {figures.short(strength)}'}")
    names = [run.name for run in runs]
    labels = [
        label if labels.count(label) == 1 else f"{label} ({name})"
        for label, name in zip(labels, names, strict=True)
    ]
    labels = [
        label if labels.count(label) == 1 else f"{label}, {run.folder}"
        for label, run in zip(labels, runs, strict=True)
    ]
    return [run._replace(label=label) for run, label in zip(runs, labels, strict=True)]


def merged(runs, part, key=None):
    """Collects rows of all runs: what several of them say alike, such as a bound, comes once.

    Args:
      runs: list of Run.
      part: name of the evaluation.
      key: of the rows within a source's value, if they are not the value itself.

    Returns:
      source -> [(label, row)], from copying over the bounds to the models.
    """
    sources = {}
    for run in runs:
        for source, rows in run.evals[part].items():
            rows = mapping(rows).get(key) if key else rows
            kept = sources.setdefault(source, [])
            for row in listed(rows):
                if not isinstance(mapping(row).get("name"), str):
                    continue
                own = row["name"] == run.kind and run.kind not in BOUNDS
                if own or not any(row == other for _, other in kept):
                    kept.append((run, row))
    return {source: _named(rows) for source, rows in sources.items() if rows}


def _named(rows):
    """Labels rows [(run, row)], and sorts them: [(label, row)]."""
    labels = [run.label if row["name"] == run.kind else str(row["name"]) for run, row in rows]
    keys = [
        (label, string(row.get("metric"))) for label, (_, row) in zip(labels, rows, strict=True)
    ]
    named = [
        (key[0] if keys.count(key) == 1 else f"{key[0]} ({run.label})", row)
        for key, (run, row) in zip(keys, rows, strict=True)
    ]

    def place(pair):
        name = pair[1]["name"]
        bounds = {"copy last frame": 0, "deterministic": 1, "none": 3}
        return 4 if str(name).startswith(CONTROLS) else bounds.get(name, 2)

    return sorted(named, key=place)


# What follows takes what stands in a file for what it should be, or for nothing.


def at(row, path):
    """Looks up "a.b", the key b within the key a, or one key alone; None where it is missing."""
    for key in path.split(".", 1):
        row = mapping(row).get(key)
    return row


def mapping(x):
    """Returns a dict as it is, anything else as an empty one."""
    return x if isinstance(x, dict) else {}


def listed(x):
    """Returns a list as it is, anything else as an empty one."""
    return x if isinstance(x, list) else []


def string(x):
    """Returns text as it is, anything else as None."""
    return x if isinstance(x, str) else None


def real(x):
    """Says whether x is a finite number."""
    return (
        isinstance(x, int | float) and not isinstance(x, bool) and x == x and abs(x) != float("inf")
    )


def drawable(x):
    """Says whether x is an interval that can be drawn."""
    return (
        real(x.get("mean"))
        and all(key in x and (x[key] is None or real(x[key])) for key in ("low", "high"))
        and len(x) == 3
    )

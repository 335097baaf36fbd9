"""Loads and merges the result files of training runs.

Files may be missing, damaged or of another version, so everything in them is checked.
"""

import json
import os
import pathlib
import shlex
from typing import NamedTuple

from lawm_jax.evaluate import row_names
from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.evaluate.tables import listed, mapping
from lawm_jax.report import figures, page
from lawm_jax.train import rundir

BOUNDS = row_names.COPY, row_names.DETERMINISTIC, row_names.NONE
CONTROLS = row_names.COPIES_FUTURE, row_names.DECODER_ALONE  # beginnings of rows that are no model


class Run(NamedTuple):
    """Holds the contents of a run's folder.

    Attributes:
      folder: pathlib.Path.
      name, label: the folder's name; what tables call its model, such as "noisy 1e-05".
      config, about: dicts, empty where missing.
      metrics: lines of metrics.jsonl with step, error and copy.
      evals: part -> {source: ...}; of "plan" the sources are texts that say what was asked.
      files: of W/report that a page can show.
      skipped: number of files that could not be read.
      missing: [(what, command that makes it)].
      others: name -> what W/eval/NAME.json holds, of evaluations that no section shows.
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
    others: dict

    @property
    def kind(self):
        return string(mapping(self.config.get("latent")).get("kind"))


def read(folder):
    """Reads a run's folder; raises ValueError where it is none."""
    folder = pathlib.Path(folder)
    evaluations = pathlib.Path(rundir.evaluation(folder, "about")).parent
    if not any(map(os.path.exists, (rundir.config(folder), rundir.metrics(folder), evaluations))):
        what = "holds no config.json, metrics.jsonl or eval" if folder.is_dir() else "is not there"
        raise ValueError(f"{folder}: expected the folder of a run, but it {what}")
    evaluate = f"python -m lawm_jax.evaluate --workdir {shlex.quote(str(folder))}"
    train = f"python -m lawm_jax.train --config ... --workdir {shlex.quote(str(folder))}"
    missing = []

    def load(path, command):
        name = os.path.relpath(path, folder)
        try:
            value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            missing.append((name, command))
        except (OSError, ValueError, RecursionError):
            missing.append((f"{name} (it is there, but can't be read)", command))
        else:
            if isinstance(value, dict):
                return value
            missing.append((f"{name} (it is there, but holds no object)", command))
        return {}

    config = load(rundir.config(folder), train)
    lines, metrics = [], pathlib.Path(rundir.metrics(folder))
    if metrics.exists():
        lines, bad = _lines(metrics)
        if bad:
            what = "what is there" if bad is True else f"line {', '.join(map(str, bad))}"
            missing.append((f"{metrics.name}: {what} can't be read, and is left out", train))
    else:
        missing.append((metrics.name, train))

    def measured(part):
        return load(rundir.evaluation(folder, part), f"{evaluate} --only {part}")

    about = load(rundir.evaluation(folder, "about"), evaluate)
    evals = {part: measured(part) for part in EVALUATIONS if part != "control"}
    evals |= {"control": {}, "plan": {}}
    driven = bool(rundir.controllers(folder))
    if driven or os.path.exists(rundir.evaluation(folder, "control")):
        evals["control"] = measured("control")
    plan = f"python -m lawm_jax.plan --workdir {shlex.quote(str(folder))} --task ..."
    paths = sorted(evaluations.glob("plan_*.json"))
    for path in paths:
        for asked, rows in _plans(load(path, plan)):
            evals["plan"].setdefault(asked, []).extend(rows)
    known = {*(path.stem for path in paths), "about", *EVALUATIONS}
    unknown = [path for path in sorted(evaluations.glob("*.json")) if path.stem not in known]
    others = {path.stem: load(path, evaluate) for path in unknown}
    if driven and not paths:
        missing.append(("eval/plan_TASK.json", plan))
    files = sorted(pathlib.Path(rundir.report(folder)).glob("*"))
    files = [path for path in files if path.suffix.lower() in page.TYPES]
    if not files:
        missing.append(("pictures in report/", f"{evaluate} --only pictures"))
    skipped = pathlib.Path(rundir.skipped(folder))
    skipped = len(_lines(skipped)[0]) if skipped.exists() else 0
    lines = [line for line in lines if all(real(line.get(k)) for k in ("step", "error", "copy"))]
    name = folder.resolve().name
    return Run(folder, name, name, config, about, lines, evals, files, skipped, missing, others)


def _lines(path):
    """Reads a JSONL file: its dicts, and the numbers of damaged lines, or True for all.

    A last line without an end is one that is being written, or that a killed run left: no fault.
    """
    try:
        rows = path.read_bytes().split(b"\n")
    except OSError:
        return [], True
    found, bad = [], []
    for number, row in enumerate(rows, 1):
        try:
            value = json.loads(row)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        elif number < len(rows) and row.strip():
            bad.append(number)
    return found, bad


def _plans(found):
    """Splits a result of `lawm_jax.plan`: [(description of the task, rows)].

    Rows of different controllers answer the same question: each says which one it had.
    """
    planner, controller = mapping(found.get("planner")), string(found.get("controller"))
    known = {"samples": "samples", "iterations": "iterations", "bound": "deviations at most"}
    settings = [f"{planner[key]:g} {what}" for key, what in known.items() if real(planner.get(key))]
    if real(found.get("episodes")):
        settings.append(f"{found['episodes']} clips")
    of = {"controller": controller and pathlib.PurePath(controller).name}
    of["controller_kind"] = string(found.get("controller_kind"))
    asked = []
    for plan in map(mapping, listed(found.get("plans"))):
        words = f"{found.get('task')} ({found.get('source')})", f"{plan.get('horizon')} steps"
        words = ", ".join([*words, string(planner.get("name")) or "?", *settings])
        if real(plan.get("radius")):
            words += f", goal within {plan['radius']:g} m, in closed loop"
        rows = [mapping(row) for row in listed(plan.get("rows"))]
        others = *row_names.BASELINES, row_names.LABELLED
        rows = [row if str(row.get("name")).startswith(others) else row | of for row in rows]
        asked.append((words, rows))
    return asked


def is_bound(name):
    """Says whether a kind of model, or a row's name, is that of a bound and not of a contender."""
    return name in BOUNDS or isinstance(name, str) and name.startswith(row_names.LABELLED)


def with_labels(runs):
    """Names the runs' models by kind and strength, and by folder where that leaves two alike."""
    labels = []
    for run in runs:
        strength = mapping(run.config.get("latent")).get("strength")
        plain = is_bound(run.kind) or not real(strength)
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
    """Collects the rows of all runs; equal rows of several runs, such as a bound's, appear once.

    Args:
      runs: list of Run.
      part: name of the evaluation.
      key: of the rows within a source's value, if they are not the value itself.

    Returns:
      source -> [(label, row)], from copying over the bounds to the models.
    """
    sources, apart = {}, len(runs) > 1 and part == "control"
    for run in runs:
        for source, rows in run.evals[part].items():
            rows = mapping(rows).get(key) if key else rows
            kept = sources.setdefault(source, [])
            for row in listed(rows):
                if not isinstance(mapping(row).get("name"), str):
                    continue
                if apart and is_bound(row["name"]):  # their difference is to one run's latents
                    row = {key: value for key, value in row.items() if key != "paired"}
                own = row["name"] == run.kind and not is_bound(run.kind)
                if own or not any(row == other for _, other in kept):
                    kept.append((run, row))
    return {source: _named(rows, apart) for source, rows in sources.items() if rows}


def _named(rows, apart):
    """Labels and sorts [(run, row)] to [(label, row)]; `apart` names the run in labels."""

    def label(run, row):
        if row["name"] == run.kind:
            return run.label
        prefix = f"{run.label}: " if apart and not is_bound(row["name"]) else ""
        return prefix + row["name"]

    keys = [(label(*pair), string(pair[1].get("metric"))) for pair in rows]
    named = []
    for key, (run, row) in zip(keys, rows, strict=True):
        which = "" if keys.count(key) == 1 else f" ({row.get('controller') or run.label})"
        named.append((key[0] + which, row))
    return sorted(named, key=lambda pair: _place(pair[1]["name"]))


def _place(name):
    """Ranks a row by its name: baselines, lower bound, models, upper bounds, controls."""
    if name.startswith(CONTROLS):
        return 4
    if name in row_names.BASELINES or name == row_names.COPY:
        return 0
    return 1 if name == row_names.DETERMINISTIC else 3 if is_bound(name) else 2


# What follows takes what stands in a file for what it should be, or for nothing.


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

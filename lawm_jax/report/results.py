"""Loads and merges the result files of training runs.

Files may be missing, damaged or written by another version, so all their contents are checked. Only
a damaged config is an error, since no other file describes what was trained.
"""

import json
import os
import pathlib
import shlex
from typing import NamedTuple

from lawm_jax.data import paths, words
from lawm_jax.evaluate import row_names
from lawm_jax.evaluate.evaluations import EVALUATIONS, SLOW
from lawm_jax.evaluate.tables import listed, mapping, real, string
from lawm_jax.report import figures, page
from lawm_jax.train import rundir

BOUNDS = row_names.COPY, row_names.DETERMINISTIC, row_names.NONE
CONTROLS = (  # prefixes of the names of control rows
    row_names.COPIES_FUTURE,
    row_names.DECODER_ALONE,
    row_names.STATE,
    row_names.CHANGE,
    row_names.REAL_ACTIONS,
)


class Run(NamedTuple):
    """Holds the contents of a run's folder.

    Attributes:
      folder: pathlib.Path or, in a bucket, epath.Path.
      name, label: the folder's name; the model's name in tables, such as "noisy 1e-05".
      config, about: contents of W/config.json and W/eval/about.json, {} if missing.
      metrics: the lines of W/metrics.jsonl that have step, error and copy.
      evals: evaluation -> {source: its results}; for "plan", {description of the task: rows}.
      files: the pictures and videos in W/report.
      skipped: number of data files that training could not read.
      missing: [(result, command that creates it)].
      others: name -> contents of W/eval/NAME.json, for unknown evaluations.
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
    """Loads the results in a run's folder.

    Raises:
      ValueError: it does not contain a run, or its config is damaged.
    """
    folder = paths.at(rundir.folder(folder) if paths.is_url(folder) else folder)
    evaluations = paths.at(rundir.evaluation(folder, "about")).parent
    if not any(map(paths.exists, (rundir.config(folder), rundir.metrics(folder), evaluations))):
        what = "is a file" if folder.is_file() else "does not exist"
        what = "has no config.json, metrics.jsonl or eval" if folder.is_dir() else what
        raise ValueError(f"{folder}: expected the folder of a run, but it {what}")
    evaluate = f"python -m lawm_jax.evaluate --workdir {shlex.quote(str(folder))}"
    train = f"python -m lawm_jax.train --config ... --workdir {shlex.quote(str(folder))}"
    missing = []

    def load(path, command):
        name = os.path.relpath(path, folder)
        try:
            value = json.loads(paths.at(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            missing.append((name, command))
        except (OSError, ValueError, RecursionError):
            missing.append((f"{name} (exists, but cannot be read)", command))
        else:
            if isinstance(value, dict):
                return value
            missing.append((f"{name} (exists, but is not a JSON object)", command))
        return {}

    config = {}
    if paths.exists(rundir.config(folder)):
        config = rundir.read_config(folder)
    else:
        missing.append((os.path.basename(rundir.config(folder)), train))
    lines, metrics = [], rundir.metrics(folder)
    if paths.exists(metrics):
        lines, bad = _lines(metrics)
        if bad:
            what = "file" if bad is True else f"lines {', '.join(map(str, bad))}"
            missing.append((f"{os.path.basename(metrics)}: skipped unreadable {what}", train))
    elif not paths.exists(rundir.weights(folder)):  # an exported model has none
        missing.append((os.path.basename(metrics), train))

    def measured(part):
        path = rundir.evaluation(folder, part)
        if part in SLOW and not paths.exists(path):
            return {}  # not asked for
        return load(path, f"{evaluate} --only {part}")

    about = load(rundir.evaluation(folder, "about"), evaluate)
    evals = {part: measured(part) for part in EVALUATIONS if part != "control"}
    evals |= {"control": {}, "plan": {}}
    driven = bool(rundir.controllers(folder))
    if driven or paths.exists(rundir.evaluation(folder, "control")):
        evals["control"] = measured("control")
    plan = f"python -m lawm_jax.plan --workdir {shlex.quote(str(folder))} --task ..."
    planned = sorted(evaluations.glob("plan_*.json"))
    for path in planned:
        for label, rows in _plans(load(path, plan)):
            evals["plan"].setdefault(label, []).extend(rows)
    names = {*(path.stem for path in planned), "about", *EVALUATIONS}
    unknown = [path for path in sorted(evaluations.glob("*.json")) if path.stem not in names]
    others = {path.stem: load(path, evaluate) for path in unknown}
    if driven and not planned:
        missing.append(("eval/plan_TASK.json", plan))
    files = sorted(paths.at(rundir.report(folder)).glob("*"))
    files = [path for path in files if path.suffix.lower() in page.TYPES]
    if not files:
        missing.append(("pictures in report/", f"{evaluate} --only pictures"))
    skipped = rundir.skipped(folder)
    skipped = len(_lines(skipped)[0]) if paths.exists(skipped) else 0
    lines = [line for line in lines if all(real(line.get(k)) for k in ("step", "error", "copy"))]
    name = folder.name if paths.is_url(folder) else folder.resolve().name
    return Run(folder, name, name, config, about, lines, evals, files, skipped, missing, others)


def _lines(path):
    """Reads a JSONL file: its dicts, and the numbers of its damaged lines, or True if unreadable.

    An unfinished last line is ignored: it is still being written, or the run was killed.
    """
    try:
        rows = rundir.read_lines(path).split(b"\n")
    except OSError:
        return [], True
    values, bad = [], []
    for number, row in enumerate(rows, 1):
        try:
            value = json.loads(row)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            values.append(value)
        elif number < len(rows) and row.strip():
            bad.append(number)
    return values, bad


def _plans(result):
    """Splits a result file of `lawm_jax.plan` into [(description of the task, rows)].

    Adds the controller to the models' rows: the same task may be planned with several controllers.
    """
    planner, controller = mapping(result.get("planner")), string(result.get("controller"))
    names = {
        "samples": "samples",
        "iterations": "iterations",
        "bound": "standard deviations at most",
    }
    protocol = string(result.get("protocol"))
    settings = [f"protocol {protocol}"] if protocol not in (None, "paper") else []
    settings += [
        f"{planner[key]:g} {what}" for key, what in names.items() if real(planner.get(key))
    ]
    if real(result.get("episodes")):
        settings.append(words.counted(result["episodes"], "clip"))
    origin = {"controller": controller and pathlib.PurePath(controller).name}
    origin["controller_kind"] = string(result.get("controller_kind"))
    labeled = []
    for plan in map(mapping, listed(result.get("plans"))):
        label = (
            f"{result.get('task')} ({result.get('source')})",
            words.counted(plan.get("horizon"), "step"),
        )
        label = ", ".join([*label, string(planner.get("name")) or "?", *settings])
        if real(plan.get("radius")):
            label += f", goal within {plan['radius']:g} m, in closed loop"
        rows = [mapping(row) for row in listed(plan.get("rows"))]
        rows = [row | {"name": row_names.current(string(row.get("name")))} for row in rows]
        others = *row_names.BASELINES, row_names.LABELLED
        rows = [row if str(row.get("name")).startswith(others) else row | origin for row in rows]
        labeled.append((label, rows))
    return labeled


def is_bound(name):
    """Returns whether a latent kind or row name is a bound or labeled baseline."""
    return name in BOUNDS or isinstance(name, str) and name.startswith(row_names.LABELLED)


def with_labels(runs):
    """Sets the runs' labels to latent kind and strength, with the folder if that is ambiguous."""
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
    """Collects the rows of an evaluation from all runs, without duplicates such as shared bounds.

    Args:
      runs: list of Run.
      part: name of the evaluation.
      key: key of the rows within a source's value, if they are not the value itself.

    Returns:
      source -> [(label, row)], in the order of `_place`.
    """
    sources, separate = {}, len(runs) > 1 and part == "control"
    for run in runs:
        for source, rows in run.evals[part].items():
            rows = mapping(rows).get(key) if key else rows
            kept = sources.setdefault(source, [])
            for row in listed(rows):
                if not isinstance(mapping(row).get("name"), str):
                    continue
                if separate and is_bound(row["name"]):  # these refer to one run's latents
                    relative = "paired", "no_action", "test"
                    row = {key: value for key, value in row.items() if key not in relative}
                is_main = row["name"] == run.kind and not is_bound(run.kind)
                if is_main or not any(row == other for _, other in kept):
                    kept.append((run, row))
    return {source: _named(rows, separate) for source, rows in sources.items() if rows}


def _named(rows, separate):
    """Maps [(run, row)] to sorted [(label, row)]; `apart` prefixes labels with the run's."""

    def label(run, row):
        if row["name"] == run.kind:
            return run.label
        prefix = f"{run.label}: " if separate and not is_bound(row["name"]) else ""
        return prefix + row["name"]

    keys = [(label(*pair), string(pair[1].get("metric"))) for pair in rows]
    named = []
    for key, (run, row) in zip(keys, rows, strict=True):
        which = "" if keys.count(key) == 1 else f" ({row.get('controller') or run.label})"
        named.append((key[0] + which, row))
    return sorted(named, key=lambda pair: _place(pair[1]["name"]))


def _place(name):
    """Returns a row's sort key: baselines, lower bound, models, upper bounds, controls."""
    if name.startswith(CONTROLS):
        return 4
    if name in row_names.BASELINES or name == row_names.COPY:
        return 0
    if name == row_names.DETERMINISTIC:
        return 1
    return 3 if is_bound(name) else 2

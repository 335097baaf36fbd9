"""Measures how planning depends on the share of in-domain video in the training data.

Source: Garrido et al. 2026, Table S3.
"""

import json
import os

import numpy as np

from lawm_jax.data import paths
from lawm_jax.evaluate import metrics, row_names, tables
from lawm_jax.study import commands, runner


def study(workdir, asked, only_list=False):
    """Runs the study, or resumes it; writes its results and prints a table.

    Args:
      workdir: folder of the study, created if missing.
      asked: commands.Settings.
      only_list: whether to print the remaining commands instead of running them.

    Raises:
      commands.Refused: a setting is invalid.
    """
    if paths.is_url(workdir):
        raise commands.Refused(f"workdir: expected a local folder, got {workdir}")
    workdir = os.path.abspath(paths.expand(workdir))
    stored, runs = commands.plan(workdir, asked)
    if only_list:
        runner.show(stored, runs)
        return
    model, controller = asked.model.value, asked.controller.value
    each = (
        f"Each trains a world model on {(asked.steps or model.steps) * model.data.batch} clips and "
        f"a controller on {controller.steps * controller.data.batch}, and computes "
        f"{asked.planner['episodes']} plans."
    )
    with runner.claimed(workdir):
        runner.run_all(stored, runs, each)
        _report(runs, workdir, asked.inside)


def _report(runs, workdir, inside):
    """Compares all runs; writes W/mixture.json and W/mixture.png and prints a table."""
    from lawm_jax.report import figures

    cases = [dict(kind=run.kind, share=run.share, seed=run.seed) for run in runs]
    results = map(runner.result, runs)
    found = compare([case | result for case, result in zip(cases, results, strict=True)])
    with open(os.path.join(workdir, "mixture.json"), "w", encoding="utf-8") as file:
        json.dump({"inside": inside} | found, file, indent=1, allow_nan=False)
    lines = {}
    for row in found["rows"]:
        lines.setdefault(row["kind"], []).append((row["share"], row["error"]))
    bounds = {f"{k} {x['mean']:.3f}": x["mean"] for k, x in found["baselines"].items()}
    labels = f"share of {inside} in the world model's video, %", f"planning {found['measure']}, m"
    figures.shares(os.path.join(workdir, "mixture.png"), lines, bounds, *labels)
    print(f"\n{table(found)}\n{workdir}/mixture.json and .png")


def compare(runs):
    """Compares planning errors across mixture shares and kinds of latent, on the same clips.

    Each clip's error is averaged over seeds: intervals are over episodes, not seeds.

    Args:
      runs: dicts with `kind`, `share` (percent), `seed`, `plan` (result of `lawm_jax.plan`; only
        its first horizon is used) and `prediction` (in-domain rows of `prediction.compare`).

    Returns:
      dict: `task`, `measure` ("error" or "ate"), `horizon`, `planner`; `clips`, the number of
      clips; `baselines`, name -> error in meters (interval); and `rows`, a dict for each kind and
      share: `kind`, `share`, `error`; `less`, name -> the error minus that of a baseline or of the
      kind's smallest share (paired intervals); `one_step`, the mean one-step error relative to
      copying; and `seeds`, [{"seed", "error", "one_step"}].

    Raises:
      ValueError: there are no runs, or their plans are for different clips.
    """
    if not runs:
        raise ValueError("runs: expected at least one, got none")
    first, cases = runs[0]["plan"]["plans"][0], {}
    for run in runs:
        if run["plan"]["plans"][0]["names"] != first["names"]:
            raise ValueError("runs: expected plans for the same clips, got different clips")
        cases.setdefault((run["kind"], run["share"]), []).append(run)
    cases = dict(sorted(cases.items(), key=lambda case: case[0][1]))
    smallest = {kind: min(share for k, share in cases if k == kind) for kind, _ in cases}
    errors = {case: _clip_errors(seeds) for case, seeds in cases.items()}
    baselines = {case: {k: x for k, x in errors[case].items() if k != case[0]} for case in cases}
    measure = "error" if "error" in first["rows"][0] else "ate"

    def mean(errors):
        return metrics.interval(errors, first["names"])

    rows = []
    for (kind, share), seeds in cases.items():
        error = errors[kind, share][kind]
        less = {name: mean(error - other) for name, other in baselines[kind, share].items()}
        if share != smallest[kind]:
            least = errors[kind, smallest[kind]][kind]
            less[f"{smallest[kind]:g} %"] = mean(error - least)
        one_step = [_row(run["prediction"], kind)["relative"]["mean"] for run in seeds]
        row = {"kind": kind, "share": share, "error": mean(error), "less": less}
        row["one_step"] = float(np.mean(one_step))
        row["seeds"] = [
            {
                "seed": run["seed"],
                "error": _row(run["plan"]["plans"][0]["rows"], kind)[measure],
                "one_step": x,
            }
            for run, x in zip(seeds, one_step, strict=True)
        ]
        rows.append(row)
    *_, last = cases
    return {
        "task": runs[0]["plan"]["task"],
        "measure": measure,
        "horizon": first["horizon"],
        "planner": runs[0]["plan"]["planner"],
        "clips": len(first["names"]),
        "baselines": {name: mean(other) for name, other in baselines[last].items()},
        "rows": rows,
    }


def _clip_errors(seeds):
    """Averages the plans' errors over the runs of all seeds: row name -> [clips]."""
    plans = [run["plan"]["plans"][0]["rows"] for run in seeds]
    names = [row_names.current(row["name"]) for row in plans[0]]
    return {name: np.mean([_row(rows, name)["clips"] for rows in plans], 0) for name in names}


def _row(rows, name):
    return next(row for row in rows if row_names.current(row["name"]) == name)


def table(found):
    """Formats the result of `compare` for a terminal."""
    lines = [
        f"plans of {found['horizon']} steps, {found['task']}, by share of in-domain video: "
        f"{found['measure']}, meters [95 % interval]"
    ]
    lines += [f"  {name:<24}{tables.show(error)}" for name, error in found["baselines"].items()]
    for row in found["rows"]:
        baselines = row_names.NO_ACTION, row_names.NEAREST
        others = [name for name in row["less"] if name in baselines or "%" in name]
        less = ", ".join(f"{name}: {tables.show(row['less'][name], sign='+')}" for name in others)
        lines.append(
            f"  {row['kind']:<9}{row['share']:>5g} %  {tables.show(row['error'])}   minus {less}   "
            f"one-step error / copying {row['one_step']:.3f}"
        )
    return "\n".join(lines)

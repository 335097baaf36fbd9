"""Measures how planning depends on the share of in-domain video in the training data.

Source: Garrido et al. 2026, Table S3.
"""

import contextlib
import dataclasses
import json
import os

import numpy as np

from lawm_jax.data import paths, words
from lawm_jax.evaluate import metrics, row_names, tables
from lawm_jax.study import commands, runner
from lawm_jax.train import rundir

KINDS = ("sparse", "noisy", "discrete", "none")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Holds the settings of a study, as on the command line.

    Attributes:
      model, controller: `commands.Config` of the world models and of the controllers.
      inside: name of the in-domain data source.
      outside: names of the other data sources, or None for all others in the mixture.
      task: as in `lawm_jax.plan`.
      shares: shares of `inside` in the mixture, in percent, as text.
      kinds: kinds of latents, some of `KINDS`.
      steps: training steps of the world models, or None for the config's.
      seeds: number of runs per share and kind.
      planner: options of `lawm_jax.plan`: `episodes`, `samples`, `iterations`.
      jobs: number of runs at a time.
    """

    model: commands.Config
    controller: commands.Config
    inside: str
    outside: list | None
    task: str
    shares: list
    kinds: list
    steps: int | None
    seeds: int
    planner: dict
    jobs: int = 1


def study(workdir, settings, only_list=False):
    """Runs the study, or resumes it; writes its results and prints a table.

    Args:
      workdir: folder of the study, created if missing.
      asked: Settings.
      only_list: whether to print the remaining commands instead of running them.

    Raises:
      commands.Refused: a setting is invalid.
    """
    workdir = commands.local(workdir)
    stored, runs = plan(workdir, settings)
    if only_list:
        runner.show(stored, runs)
        return
    model, controller = settings.model.value, settings.controller.value
    clips = (settings.steps or model.steps) * model.data.batch
    each = (
        f"Each run trains a world model on {clips} clips and a controller on "
        f"{controller.steps * controller.data.batch} clips, and computes "
        f"{settings.planner['episodes']} plans."
    )
    with runner.claimed(workdir):
        runner.run_all(stored, runs, each, settings.jobs)
        _report(runs, workdir, settings.inside)


def plan(workdir, settings):
    """Lists the runs of a study, and the commands that store the states that they share.

    Args:
      workdir: absolute path of the study's folder.
      asked: Settings.

    Returns:
      stored: command lines, each a list; empty if training reads video instead of stored states.
      runs: list of commands.Run.

    Raises:
      commands.Refused: a setting is invalid.
    """
    outside, shares = _outside(settings), [_percent(text) for text in settings.shares]
    if not settings.kinds or not set(settings.kinds) <= set(KINDS):
        raise commands.Refused(f"kinds: expected some of {', '.join(KINDS)}, got {settings.kinds}")
    config = settings.model.value
    video = {name: config.data.sources[name] for name in [settings.inside, *outside]}
    stored, sources = commands.stored_states(workdir, settings.model, video)
    runs = [
        _run(workdir, settings, kind, share, seed, stored, sources, video[settings.inside])
        for seed in range(config.seed, config.seed + settings.seeds)
        for share in dict.fromkeys(shares)
        for kind in dict.fromkeys(settings.kinds)
    ]
    return stored, runs


def _run(workdir, settings, kind, share, seed, stored, sources, video):
    """Builds a `commands.Run`.

    Args:
      workdir, asked, stored: see `plan`.
      kind, share, seed: kind of latent, share of `inside` in percent, seed of both trainings.
      sources: name -> data source to train on, `inside` first.
      video: data source `inside` as video. Planning needs video, not states: `plan` then draws the
        same clips for every model.
    """
    model, controller = settings.model, settings.controller
    inside, task = settings.inside, settings.task
    folder = os.path.join(workdir, "mixture", f"{kind}-{share:g}-{seed}")
    controller_folder = os.path.join(folder, "controller", inside)
    latent = commands.with_argument(model.file, f"latent={kind}")
    weights = _weights(model.value.data.mixture, sources, inside, share)
    options = model.options | ({"steps": settings.steps} if settings.steps else {})
    options |= {"seed": seed, "data.sources": sources, "data.mixture": weights}
    overrides = {"seed": seed, "model": folder, "data.videos": sources[inside]}
    data = f"{inside}={sources[inside]}"
    planner = dict(workdir=folder, task=task, data=f"{task}={video}", controller=controller_folder)
    planner["json"] = os.path.join(folder, "plan.json")
    lines = [
        commands.command("train", dict(config=latent, workdir=folder), config=options),
        commands.command(
            "train",
            dict(config=controller.file, workdir=controller_folder),
            config=controller.options | overrides,
        ),
        commands.command("evaluate", dict(workdir=folder, only="prediction", data=data)),
        commands.command("plan", planner | settings.planner),
    ]
    steps = {folder: settings.steps or model.value.steps, controller_folder: controller.value.steps}
    configs = [json.loads(x.value.to_json_best_effort()) for x in (model, controller)]
    signature = [configs, stored, lines]
    prediction = rundir.evaluation(folder, "prediction"), inside
    results = {"plan": (planner["json"], None), "prediction": prediction}
    labels = dict(kind=kind, share=share, seed=seed)
    return commands.Run(labels, folder, lines, steps, results, signature)


def _outside(settings):
    """Returns the names of the out-of-domain sources."""
    data = settings.model.value.data
    weights = {name: weight for name, weight in data.mixture.items() if weight > 0}
    if data.videos or settings.inside not in data.sources:
        got = f"data.videos={data.videos}" if data.videos else ", ".join(data.sources)
        raise commands.Refused(
            f"inside: expected a data source of the config ({got}), got {settings.inside!r}"
        )
    others = weights.keys() - {settings.inside}
    names = sorted(others) if settings.outside is None else settings.outside
    if not names or not set(names) <= others:
        raise commands.Refused(
            f"outside: expected other data sources of the mixture, {sorted(others)}, got {names}"
        )
    return names


def _percent(text):
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 100:
            return float(text)
    raise commands.Refused(f"shares: expected numbers from 0 to 100, got {text!r}")


def _weights(mixture, names, inside, share):
    """Returns mixture weights: `share` percent `inside`, the rest split as in `mixture`."""
    outside = [name for name in names if name != inside]
    total = sum(mixture[name] for name in outside)
    rest = {name: (100 - share) / 100 * mixture[name] / total for name in outside}
    return {name: round(float(w), 9) for name, w in ({inside: share / 100} | rest).items()}


def _report(runs, workdir, inside):
    """Compares all runs; writes W/mixture.json and W/mixture.png and prints a table."""
    from lawm_jax.report import figures

    result = compare([run.labels | runner.result(run) for run in runs])
    content = json.dumps({"inside": inside} | result, indent=1, allow_nan=False)
    paths.write(os.path.join(workdir, "mixture.json"), content)
    lines = {}
    for row in result["rows"]:
        lines.setdefault(row["kind"], []).append((row["share"], row["error"]))
    bounds = {f"{k} {x['mean']:.3f}": x["mean"] for k, x in result["baselines"].items()}
    labels = f"share of {inside} in the world model's video, %", f"planning {result['measure']}, m"
    figures.shares(os.path.join(workdir, "mixture.png"), lines, bounds, *labels)
    print(f"\n{table(result)}\n{workdir}/mixture.json and .png")


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
        differences = {name: mean(error - other) for name, other in baselines[kind, share].items()}
        if share != smallest[kind]:
            smallest_error = errors[kind, smallest[kind]][kind]
            differences[f"{smallest[kind]:g} %"] = mean(error - smallest_error)
        one_step = [_row(run["prediction"], kind)["relative"]["mean"] for run in seeds]
        row = {"kind": kind, "share": share, "error": mean(error), "less": differences}
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


def table(result):
    """Formats the result of `compare` for a terminal."""
    lines = [
        f"plans of {words.counted(result['horizon'], 'step')}, {result['task']}, by share of "
        f"in-domain video: {result['measure']}, meters [95% interval]"
    ]
    lines += [f"  {name:<24}{tables.show(error)}" for name, error in result["baselines"].items()]
    for row in result["rows"]:
        baselines = row_names.NO_ACTION, row_names.NEAREST
        others = [name for name in row["less"] if name in baselines or "%" in name]
        minus = ", ".join(f"{name}: {tables.show(row['less'][name], sign='+')}" for name in others)
        lines.append(
            f"  {row['kind']:<9}{row['share']:>5g} %  {tables.show(row['error'])}   "
            f"minus {minus}   one-step error / copying {row['one_step']:.3f}"
        )
    return "\n".join(lines)

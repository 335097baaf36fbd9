"""Measures how planning depends on the share of in-domain video in the training data.

Source: Garrido et al. 2026, Table S3.
"""

import numpy as np

from lawm_jax.evaluate import metrics, row_names, tables


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
        one_step = [_row(run["prediction"], kind)["relative"] for run in seeds]
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
    names = [row["name"] for row in plans[0]]
    return {name: np.mean([_row(rows, name)["clips"] for rows in plans], 0) for name in names}


def _row(rows, name):
    return next(row for row in rows if row["name"] == name)


def table(found):
    """Formats the result of `compare` for a terminal."""
    lines = [
        f"plans of {found['horizon']} steps, {found['task']}, by share of in-domain video: "
        f"{found['measure']}, meters [95 % interval]"
    ]
    lines += [f"  {name:<18}{tables.show(error)}" for name, error in found["baselines"].items()]
    for row in found["rows"]:
        baselines = row_names.NO_ACTION, row_names.NEAREST
        others = [name for name in row["less"] if name in baselines or "%" in name]
        less = ", ".join(f"{name}: {tables.show(row['less'][name], sign='+')}" for name in others)
        lines.append(
            f"  {row['kind']:<9}{row['share']:>5g} %  {tables.show(row['error'])}   minus {less}   "
            f"one-step error / copying {row['one_step']:.3f}"
        )
    return "\n".join(lines)

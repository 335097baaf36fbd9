"""Measures how the error one step ahead scales with training steps, width and episodes.

Source: Garrido et al. 2026, Figure 12.
"""

import dataclasses
import json
import os

import numpy as np

from lawm_jax.data import paths
from lawm_jax.evaluate import tables
from lawm_jax.study import cases, rules
from lawm_jax.study.cases import NAV, PANDA, Case

STEPS = 600  # training steps of the base
BASE = "base"
LATENT = "latent=noisy"


def study(workdir, settings, only_list=False):
    """Trains models of several sizes, or resumes; writes W/scaling.json and prints a table.

    Arguments and errors are as in `claims.study`. Also draws W/scaling.png.
    """
    from lawm_jax.report import figures

    settings = dataclasses.replace(settings, steps=settings.steps or STEPS)
    config = settings.model.value
    results = cases.run(workdir, settings, listed(config), (PANDA, NAV), only_list)
    if results is None:
        return
    rows = compare(rules.Measures(results, (), (PANDA, NAV)), config)
    about = cases.about(settings, results)
    path = os.path.join(paths.expand(workdir), "scaling.json")
    paths.write(path, json.dumps(about | {"rows": rows}, indent=1, allow_nan=False))
    lines = {
        f"{row['name']}, {row['source']}": [(x["factor"], x["error"]) for x in row["points"]]
        for row in rows
    }
    labels = "factor", "one-step error relative to copying"
    figures.curves(path.replace(".json", ".png"), lines, *labels)
    print(f"\n{table(rows)}\n{path} and .png")


def axes(config):
    """Returns the scaled quantities: name -> [(factor, Case)], by increasing factor.

    The base, with factor 1, is shared. `config` is that of the world models.
    """

    def wide(factor):
        return {f"{x}.width": round(factor * config[x].width) for x in ("predictor", "inverse")}

    base = (1, Case(BASE, LATENT))
    longer = [(x, Case(f"steps-{x:g}", LATENT, longer=x)) for x in (0.25, 0.5, 2)]
    wider = [(x, Case(f"width-{x:g}", LATENT, options=wide(x))) for x in (0.5, 1.5, 2)]
    subsets = [(1 / n, Case(f"episodes-{1 / n:g}", LATENT, every=n)) for n in (8, 4, 2)]
    scaled = {"steps": longer, "width": wider, "episodes": subsets}
    return {name: sorted([base, *points], key=lambda x: x[0]) for name, points in scaled.items()}


def listed(config):
    """Returns the cases of all axes, each once."""
    return list(
        {case.name: case for points in axes(config).values() for _, case in points}.values()
    )


def compare(measures, config):
    """Computes scaling exponents: the slope of the log error over the log factor.

    The slope is fitted by least squares for each seed and episode, see `comparisons.crossed`.

    Args:
      measures: `rules.Measures`.
      config: of the world models.

    Returns:
      One dict per axis and data source: `name` (the axis), `source`, `exponent` (interval) and
      `points`, a list of {"factor", "error"}, the error relative to copying (interval).
    """
    rows = []
    for name, points in axes(config).items():
        factors = np.array([factor for factor, _ in points])
        for source in measures.sources:
            errors = np.stack([measures(case.name, source, "error") for _, case in points])
            copying = measures(BASE, source, "copying").mean()
            x = np.log(factors) - np.log(factors).mean()
            slope = np.tensordot(x, np.log(errors), 1) / np.square(x).sum()
            row = {"name": name, "source": source, "exponent": rules.interval(slope)}
            row["points"] = [
                {"factor": float(factor), "error": rules.interval(error / copying)}
                for factor, error in zip(factors, errors, strict=True)
            ]
            rows.append(row)
    return rows


def table(rows):
    """Formats the result of `compare` for a terminal."""
    lines = ["exponents of the error one step ahead [95% interval over seeds and episodes]"]
    for row in rows:
        errors = ", ".join(f"{x['factor']:g}: {x['error']['mean']:.3f}" for x in row["points"])
        exponent = tables.show(row["exponent"], 3, "+")
        lines.append(
            f"  {row['name']:<9} {row['source']:<6} {exponent}   relative to copying {errors}"
        )
    return "\n".join(lines)

"""Decides the claims of the paper on small models trained with several seeds.

The rules are in `rules`, the runs in `cases`. Source: Garrido et al. 2026.
"""

import dataclasses
import json
import os

from lawm_jax.data import paths
from lawm_jax.evaluate import tables, verdicts
from lawm_jax.study import cases, rules
from lawm_jax.study.cases import NAV, PANDA, Case

FULL = dict(steps=600, names=tuple(rules.CLAIMS), kinds=("sparse", "noisy"), sources=(PANDA, NAV))
QUICK = dict(steps=150, names=("capacity", "leakage", "cycle"), kinds=("noisy",), sources=(PANDA,))
SHARES = 0, 10  # percent of Panda video


def study(workdir, settings, quick=False, only_list=False):
    """Decides claims, or resumes; writes W/claims.json and W/claims.png and prints verdicts.

    Args:
      workdir: local folder of the study, created if missing.
      settings: cases.Settings; `steps` None for the default.
      quick: whether to decide three claims only, about noisy latents on the Panda.
      only_list: whether to print the remaining commands instead of running them.

    Raises:
      commands.Refused: a setting is invalid.
    """
    defaults, config = QUICK if quick else FULL, settings.model.value
    settings = dataclasses.replace(settings, steps=settings.steps or defaults["steps"])
    listed = quick_cases() if quick else full_cases(config)
    results = cases.run(workdir, settings, listed, defaults["sources"], only_list)
    if results is None:
        return
    measures = rules.Measures(results, defaults["kinds"], defaults["sources"])
    decisions = rules.decide(measures, defaults["names"])
    curves = rules.curves(measures, [case.name for case in listed])
    about = {"quick": quick} | cases.about(settings, results)
    path = os.path.join(paths.expand(workdir), "claims.json")
    content = about | {"claims": decisions, "curves": curves}
    paths.write(path, json.dumps(content, indent=1, allow_nan=False))
    draw(path.replace(".json", ".png"), curves, defaults["kinds"])
    print(f"\n{table(decisions)}\n{path} and .png")


def draw(path, curves, kinds, source=PANDA):
    """Draws the error against capacity as a PNG; `curves` are from `rules.curves`."""
    from lawm_jax.report import figures

    measured = [row for row in curves if row["source"] == source and "error" in row["values"]]
    errors = {row["case"]: row["values"]["error"] for row in measured}
    lines = {
        kind: [
            (strength, errors[f"{kind}-{level}"])
            for level, strength in zip(rules.LEVELS, cases.STRENGTHS[kind], strict=True)
        ]
        for kind in kinds
    }
    bounds = {name: errors[name]["mean"] for name in ("deterministic", "none")}
    figures.capacity(path, lines, bounds)


def quick_cases():
    """Returns the cases of --quick, trained on the Panda alone."""
    mixture = {PANDA: 1.0}
    bounds = [Case(x, f"latent={x}", mixture=mixture) for x in ("deterministic", "none")]
    return bounds + cases.capacities("noisy", mixture=mixture)


def full_cases(config):
    """Returns the cases of all claims; `config` is that of the world models."""
    driven = dict(controllers=((PANDA, "state"),), tasks=(PANDA,))
    noisy = {case.name: case for case in cases.capacities("noisy", **driven)}
    middle = noisy["noisy-middle"]
    strength = middle.latent
    both = ((PANDA, "state"), (PANDA, "actions"), (NAV, "state"))
    noisy["noisy-middle"] = dataclasses.replace(middle, controllers=both, tasks=(PANDA, NAV))
    wider = {f"{part}.width": 3 * config[part].width // 2 for part in ("predictor", "inverse")}
    return [
        Case("deterministic", "latent=deterministic"),
        Case("none", "latent=none"),
        *noisy.values(),
        *cases.capacities("sparse", **driven),
        *cases.capacities("discrete"),
        Case("labelled", "labelled", tasks=(PANDA,), measured=False),
        *(
            Case(
                f"noisy-share-{share}",
                strength,
                mixture={PANDA: share / 100, NAV: 1 - share / 100},
                measured=False,
                **driven,
            )
            for share in SHARES
        ),
        Case("noisy-longer", strength, longer=2.0),
        Case("noisy-wider", strength, options=wider),
        Case("noisy-quarter", strength, every=4),
    ]


def table(decisions):
    """Formats the result of `rules.decide` for a terminal, failed claims first."""
    order = verdicts.FAILS, verdicts.UNDECIDED, verdicts.HOLDS
    lines = []
    for name, row in sorted(decisions.items(), key=lambda item: order.index(item[1]["answer"])):
        p = "not measured" if row["p"] is None else tables.p_value(row["p"])
        lines.append(
            f"{verdicts.MARKS[row['answer']]} {name}: {row['answer']} ({p}). {row['text']}"
        )
        for text, effect in row["contrasts"].items():
            lines.append(f"    {text}: {tables.show(effect, 4, '+')}")
    return "\n".join(lines)

"""The paper's claims, as rules that are fixed before any run.

A claim is a set of contrasts: combinations of measures that are above 0 if the claim is true. The
effect of a contrast has a value for every training seed and held-out episode; its interval counts
both, see `comparisons.crossed`. A claim holds if all of its contrasts are above 0, and fails if one
of them is below 0; otherwise it is undecided at this size. Its p-value for holding is the largest
of its contrasts, that for failing the smallest times their number. Twice the smaller of the two,
corrected by Holm's method over all claims of the study, decides at 0.05.

Source: Garrido et al. 2026, sections 5 and 6, appendix B; the thresholds are ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lawm_jax.evaluate import comparisons, row_names, tables, verdicts
from lawm_jax.study.cases import NAV, PANDA

LEVEL = 0.05
LEVELS = "low", "middle", "high"


class Missing(KeyError):
    """Signals that a claim needs a measure that no run has."""


class Measures:
    """Looks up the measures of a study's runs, for all seeds and episodes.

    Attributes:
      kinds: kinds of latents that are compared at three capacities.
      sources: names of the data sources.
    """

    def __init__(self, results, kinds, sources):
        """Stores the results.

        Args:
          results: (case, seed) -> results of a run, see `cases.plan`.
          kinds, sources: see above.
        """
        self.kinds, self.sources, self._results = kinds, sources, results

    def __call__(self, case, source, measure):
        """Returns a measure of `measures.measure` for each seed and episode, [S, E] or [S, 1].

        An episode that has no value with some seed is NaN there.

        Raises:
          Missing: a run does not have it.
        """
        entries = [self._of(run, "measures", source) for run in self._runs(case)]
        for entry in entries:
            if entry is None or measure not in entry["values"]:
                raise Missing(f"{case}, {source}: {measure}")
            if entry["episodes"] != entries[0]["episodes"]:
                raise ValueError(f"{case}, {source}: expected the same episodes for all seeds")
        values = [np.atleast_1d(entry["values"][measure]) for entry in entries]
        return np.array(values, np.float64)  # None is NaN

    def planned(self, case, task, baseline=None):
        """Returns the errors of plans, in meters, by seed and episode: [S, E].

        Args:
          case, task: names.
          baseline: name of a row that needs no model, or None for the model.
        """
        errors = []
        for run in self._runs(case):
            plan = self._of(run, f"plan_{task}")
            if plan is None:
                raise Missing(f"{case}: plans of {task}")
            first = plan["plans"][0]
            rows = {row["name"]: row["clips"] for row in first["rows"]}
            models = [name for name in rows if name not in row_names.BASELINES]
            _, index = np.unique(first["names"], return_inverse=True)
            errors.append(np.bincount(index, rows[baseline or models[0]]) / np.bincount(index))
        return np.array(errors)

    def _runs(self, case):
        runs = [run for (name, _), run in sorted(self._results.items()) if name == case]
        if not runs:
            raise Missing(case)
        return runs

    def _of(self, run, *keys):
        for key in keys:
            run = run.get(key) if run else None
        return run


class Claim(NamedTuple):
    """A claim of the paper.

    Attributes:
      text: a sentence that is true if the claim holds.
      paper: where the paper says so.
      contrasts: function of `Measures` -> {text: effect [S, E], above 0 if the claim is true}.
    """

    text: str
    paper: str
    contrasts: Callable


def _capacity(m):
    contrasts = {}
    for kind in m.kinds:
        for name in m.sources:
            low, middle, high = (m(f"{kind}-{level}", name, "error") for level in LEVELS)
            bound = m("deterministic", name, "error")
            gap = bound - m("none", name, "error")
            contrasts |= {
                f"{kind}, {name}: low capacity explains less than a third": gap / 3 - (bound - low),
                f"{kind}, {name}: high explains more than two thirds": bound - high - gap * 2 / 3,
                f"{kind}, {name}: the error falls from low to middle": low - middle,
                f"{kind}, {name}: the error falls from middle to high": middle - high,
            }
    return contrasts


def _discrete(m):
    contrasts = {}
    for name in m.sources:
        bound = m("deterministic", name, "error")
        gap = bound - m("none", name, "error")
        contrasts[f"{name}: codes explain less than half"] = gap / 2 - (
            bound - m("discrete-high", name, "error")
        )
    return contrasts


def _leakage(m):
    contrasts = {}
    for kind in m.kinds:
        for name in m.sources:
            cut, uncut, copied, moved = (
                m(f"{kind}-high", name, x) for x in ("cut", "uncut", "copying cut", "copying uncut")
            )
            # Copying the last frame multiplies the error by this at a cut, copying the future by 1.
            ratio = copied.mean() / moved.mean()
            contrasts[f"{kind}, {name}: nearer to copying the last frame"] = (
                cut - uncut * (1 + ratio) / 2
            )
    return contrasts


def _cycle(m):
    contrasts = {}
    for kind in m.kinds:
        for name in m.sources:
            lost = {
                level: m(f"{kind}-{level}", name, "cycled") - m(f"{kind}-{level}", name, "own")
                for level in LEVELS
            }
            for level in ("middle", "high"):
                gain = m(f"{kind}-{level}", name, "shuffled") - m(f"{kind}-{level}", name, "own")
                contrasts[f"{kind}, {name}: {level} capacity loses less than half"] = (
                    gain / 2 - lost[level]
                )
            contrasts[f"{kind}, {name}: high loses more than low"] = lost["high"] - lost["low"]
    return contrasts


def _local(m):
    contrasts = {}
    for kind in m.kinds:
        inside, mirrored, chance = (
            m(f"{kind}-middle", PANDA, f"effect {x}") for x in ("inside", "mirrored", "by chance")
        )
        contrasts[f"{kind}: more of the effect than in the mirror image"] = inside - mirrored
        contrasts[f"{kind}: more of the effect than by chance"] = inside - chance
    return contrasts


def _controller(m):
    state, actions = (m("noisy-middle", PANDA, f"driven, {x}") for x in ("state", "actions"))
    return {"rollouts lose less with the state": actions - state}


def _middle(m):
    contrasts = {}
    for kind in m.kinds:
        low, middle, high = (m(f"{kind}-{level}", PANDA, "driven, state") for level in LEVELS)
        contrasts[f"{kind}: middle capacity beats low"] = low - middle
        contrasts[f"{kind}: middle capacity beats high"] = high - middle
    return contrasts


def _manipulation(m):
    labelled = m.planned("labelled", PANDA)
    return {
        f"{kind}: at most 1.2 times the error of labeled actions": 1.2 * labelled
        - m.planned(f"{kind}-middle", PANDA)
        for kind in m.kinds
    }


def _navigation(m):
    other = {x: m.planned("noisy-middle", NAV, x) for x in ("mean action", "random action")}
    model_error = m.planned("noisy-middle", NAV)
    return {f"plans beat the {name}": error - model_error for name, error in other.items()}


def _tenth(m):
    none, tenth = (m.planned(f"noisy-share-{share}", PANDA) for share in (0, 10))
    return {"a tenth plans better than none": none - tenth}


def _scale(m):
    contrasts = {}
    for name in m.sources:
        error = m("noisy-middle", name, "error")
        contrasts |= {
            f"{name}: twice the steps": error - m("noisy-longer", name, "error"),
            f"{name}: 1.5 times the width": error - m("noisy-wider", name, "error"),
            f"{name}: all episodes against a quarter": m("noisy-quarter", name, "error") - error,
        }
    return contrasts


def _samples(m):
    contrasts = {}
    for kind, sampler in (("noisy", "N(0, I)"), ("sparse", "Langevin")):
        for name in m.sources:
            low, high = (m(f"{kind}-{x}", name, f"AUC of {sampler}") for x in ("low", "high"))
            contrasts[f"{kind}, {name}: an AUC below 0.75 at low capacity"] = 0.75 - low
            contrasts[f"{kind}, {name}: a higher AUC at high capacity"] = high - low
    return contrasts


def curves(m, names):
    """Collects intervals of the runs' measures, to plot against capacity.

    Args:
      m: Measures.
      names: of the cases.

    Returns:
      One dict per case and data source: `case`, `source` and `values`, name -> interval. Errors are
      relative to those of copying the last frame.
    """
    rows = []
    for name in names:
        for source in m.sources:
            values = {}
            for key, value in _curve(m, name, source).items():
                try:
                    values[key] = interval(value())
                except Missing:
                    continue
            rows.append({"case": name, "source": source, "values": values})
    return [row for row in rows if row["values"]]


def _curve(m, name, source):
    """Returns name -> function without arguments that computes a value [S, E] of `curves`."""

    def of(measure):
        return m(name, source, measure)

    return {
        "error": lambda: of("error") / of("copying").mean(),
        "error at a cut": lambda: of("cut") / of("copying cut").mean(),
        "error with own latents": lambda: of("own"),
        "error with latents from the cycle": lambda: of("cycled"),
        "error with shuffled latents": lambda: of("shuffled"),
        "error by real actions, state": lambda: of("driven, state"),
        "error by real actions, actions": lambda: of("driven, actions"),
        "AUC of N(0, I)": lambda: of("AUC of N(0, I)"),
        "AUC of Langevin": lambda: of("AUC of Langevin"),
        "AUC of codes in use": lambda: of("AUC of codes in use"),
        "error of plans": lambda: m.planned(name, source),
    }


CLAIMS = {
    "capacity": Claim(
        "The strength of the regularizer sweeps the range from no latents to unconstrained ones.",
        "Figure 4",
        _capacity,
    ),
    "discrete": Claim(
        "Discrete latents of 1024 codes stay nearer to no latents than to unconstrained ones.",
        "Figure 4",
        _discrete,
    ),
    "leakage": Claim(
        "Latents of high capacity do not hold the next frame: an error at a cut is nearer to that "
        "of copying the last frame than to that of copying the future.",
        "Table 1",
        _leakage,
    ),
    "cycle": Claim(
        "Latents lose less than half of their information to another clip and back, and more at "
        "high capacity than at low.",
        "Table 2",
        _cycle,
    ),
    "locality": Claim(
        "A latent acts at the image position where it came from.", "Figure 8", _local
    ),
    "controller": Claim(
        "A controller that sees the state beats one that sees only the action.",
        "Section 6",
        _controller,
    ),
    "middle": Claim("Middle capacity follows real actions best.", "Tables S1 and S2", _middle),
    "manipulation": Claim(
        "Plans with latents that never saw an action have at most 1.2 times the error of a model "
        "of labeled actions.",
        "Table S1",
        _manipulation,
    ),
    "navigation": Claim(
        "Plans of walks beat the mean action and random ones.", "Table S2", _navigation
    ),
    "mixture": Claim(
        "A tenth of in-domain video makes plans better than none.", "Table S3", _tenth
    ),
    "scale": Claim(
        "More steps, a larger model and more data each lower the error.", "Figure 12", _scale
    ),
    "sampling": Claim(
        "Samples resemble inferred latents at low capacity and less at high.",
        "Appendix B",
        _samples,
    ),
}


def decide(measures, names):
    """Decides claims by their rules.

    Args:
      measures: Measures.
      names: of `CLAIMS`; Holm's correction is over these.

    Returns:
      name -> dict of `text`, `paper`, `contrasts` (text -> see `comparisons.crossed`), `holds` and
      `fails`, the p-values of both, `p`, the corrected one, and `answer`, one of "holds", "fails"
      and "undecided". A claim without its measures has `missing` and no contrasts.
    """
    decisions = {}
    for name in names:
        claim, row = CLAIMS[name], {}
        try:
            effects = claim.contrasts(measures)
            row["contrasts"] = {text: _tested(x) for text, x in effects.items()}
        except Missing as error:
            row |= {"contrasts": {}, "missing": error.args[0]}
        about = {"text": claim.text, "paper": claim.paper}
        decisions[name] = about | row | _p_values(row["contrasts"])
    smaller = [_smaller(row) for row in decisions.values()]
    for row, p in zip(decisions.values(), tables.holm(smaller), strict=True):
        row["p"], row["answer"] = p, verdicts.UNDECIDED
        if p is not None and p < LEVEL:
            row["answer"] = verdicts.HOLDS if row["holds"] < row["fails"] else verdicts.FAILS
    return decisions


def interval(effect):
    """Returns the interval of an effect [S, E], as in `metrics.interval`."""
    return {key: value for key, value in _tested(effect).items() if key in ("mean", "low", "high")}


def _tested(effect):
    """Tests an effect [S, E], on the episodes that have a value with all seeds."""
    complete = np.isfinite(effect).all(0)
    if not complete.any():
        raise Missing("an episode with the measure for all seeds")
    return comparisons.crossed(effect[:, complete])


def _p_values(contrasts):
    """Returns the p-values of a claim for holding and for failing, None if one is unknown."""
    above, below = ([x[key] for x in contrasts.values()] for key in ("above", "below"))
    if not contrasts or None in above:
        return {"holds": None, "fails": None}
    return {"holds": max(above), "fails": min(1.0, len(below) * min(below))}


def _smaller(row):
    if row["holds"] is None:
        return None
    return min(1.0, 2 * min(row["holds"], row["fails"]))

"""Algebra: whether latents of successive steps add up, as displacements do.

If they do, the latent over two steps is the sum of the latents of both, the latent of a reversed
step is its negative, that of a repeated state is zero, and the sum of two latents predicts the
state two steps ahead. Nothing in training enforces this. Noisy latents are the posterior means.

Source: the three errors are terms of the losses of ALAM (arXiv 2605.10819) and AC-LAM (arXiv
2604.03340); their scales, and the comparison of predictions, are ours.
"""

import numpy as np

from lawm_jax.evaluate import leakage, metrics, row_names, verdicts
from lawm_jax.evaluate.tables import Column, Table, listed, mapping

ERRORS = (
    Column("additivity", "additivity", 2, "lower"),
    Column("reversal", "reversal", 2, "lower"),
    Column("identity", "identity", 2, "lower"),
)
TWO_STEPS = (
    Column("error", "error", 4, "lower"),
    Column("relative to copying", "relative", 3, "lower"),
    Column("gain kept", "kept", 2, "higher"),
)
EACH, OVER, SUM = "one latent after the other", "latent over two steps", "sum of two latents"


def run(source):
    """Tests the models of a `context.Source`."""
    if not source.pairs or source.clips.s.shape[1] < 3:
        return None
    s, episodes = source.clips.s, source.clips.episodes
    return [
        {"name": name} | measure(source.models[name], s, source.z(name), episodes)
        for name in source.latents
    ]


def measure(model, s, z, episodes):
    """Measures the errors of the algebra, and of predictions two steps ahead.

    z_ab is the latent that is inferred from state a to state b, for all steps of the clips. Each
    error is relative to that of unrelated latents: 0 if the law holds exactly, 1 if it holds no
    better than for latents of another episode (additivity, reversal), or if the latent of standing
    still is as large as that of a step (identity).

    Args:
      model: Batched.
      s: float32 [n, T, N, D], states of the clips, T at least 3.
      z: [n, T-1, A], latents of their steps.
      episodes: [n] str, bootstrap groups, at least 2 different ones.

    Returns:
      dict of intervals, None where the scale is zero:
        additivity: mean norm |z02 - (z01 + z12)| / the same with z01 + z12 of another episode.
        reversal: mean norm |z01 + z10| / the same with z10 of another episode.
        identity: mean norm |z00| / mean norm |z01|.
        two_steps: dicts of `name` and, for predictions of the state two steps after a single state,
          `error`, `relative` (to copying) and `kept`, (error of copying - error) / (error of
          copying - error of EACH), None where the interval of that gain does not lie above 0.

    Raises:
      ValueError: clips have fewer than 3 states, or there is only one episode.
    """
    if s.shape[1] < 3:
        raise ValueError(f"s: expected at least 3 states per clip, got {s.shape[1]}")
    other, steps = leakage.partners(episodes, 1)[0], range(s.shape[1] - 2)

    def infer(a, b):
        return np.concatenate([model.infer(s[:, [t + a, t + b]]) for t in steps], axis=1)

    single, sums = z[:, :-1], z[:, :-1] + z[:, 1:]
    z00, z10, z02 = infer(0, 0), infer(1, 0), infer(0, 2)
    row = {
        "additivity": _ratio(z02 - sums, z02 - sums[other], episodes),
        "reversal": _ratio(single + z10, single + z10[other], episodes),
        "identity": _ratio(z00, single, episodes),
    }
    return row | {"two_steps": _compare(_errors(model, s, z, z02), episodes)}


def _ratio(a, b, episodes):
    """Computes the interval of mean norm of a / mean norm of b, [n, T-2, A] each, or None."""
    a, b = (np.linalg.norm(x, axis=2).mean(1) for x in (a, b))
    return metrics.ratio_or_none(a, b, episodes)


def _errors(model, s, z, z02):
    """Computes name -> [n], mean absolute errors of the state two steps after each state."""
    errors = {name: 0 for name in (row_names.COPY, EACH, OVER, SUM)}
    steps = s.shape[1] - 2
    for t in range(steps):
        now = s[:, t : t + 1]
        predicted = {
            row_names.COPY: now,
            EACH: model.rollout(now, z[:, t : t + 2])[:, 1:],
            OVER: model.predict(now, z02[:, t : t + 1]),
            SUM: model.predict(now, z[:, t : t + 1] + z[:, t + 1 : t + 2]),
        }
        for name, x in predicted.items():
            errors[name] = errors[name] + leakage.latent_l1(x, s[:, t + 2 : t + 3]) / steps
    return errors


def _compare(errors, episodes):
    """Builds the rows of `two_steps` from `_errors`."""
    copy, rows = errors[row_names.COPY], []
    gain = copy - errors[EACH]
    gains = verdicts.above(metrics.interval(gain, episodes), 0)
    for name, error in errors.items():
        row = {"name": name, "error": metrics.interval(error, episodes), "kept": None}
        row["relative"] = metrics.ratio_or_none(error, copy, episodes)
        if gains and name in (OVER, SUM):
            row["kept"] = metrics.ratio(copy - error, gain, episodes)
        rows.append(row)
    return rows


def tables(rows):
    """Returns the rows of `run` as a list of Table: errors of latents, and of predictions."""
    ahead = [
        x | {"name": f"{row['name']}, {x.get('name')}" if i else str(x.get("name"))}
        for row in rows
        for i, x in enumerate(map(mapping, listed(row.get("two_steps"))))
    ]
    unique = {}
    for row in ahead:  # copying is the same for all models
        unique.setdefault(row["name"], row)
    return [
        Table("latent algebra", ERRORS, rows),
        Table("two steps ahead, from a single state", TWO_STEPS, list(unique.values())),
    ]


def judge(rows, name):
    """Judges `ERRORS`, and whether sums of latents keep half of the gain over copying."""
    row = verdicts.by_name(rows).get(name)
    errors = {column.key: verdicts.measured(row, column.key) for column in ERRORS}
    if None in errors.values():
        return []
    text = ", ".join(f"{key} {verdicts.short(x, 2)}" for key, x in errors.items())
    good = [verdicts.below(x, 0.5) for x in errors.values()]
    bad = [verdicts.above(x, 0.5) for x in errors.values()]
    kept = verdicts.measured(verdicts.by_name(row.get("two_steps")).get(SUM), "kept")
    good.append(kept is not None and verdicts.above(kept, 0.5))
    bad.append(kept is not None and verdicts.below(kept, 0.5))
    text = f"errors: {text} (0: exact, 1: unrelated)"
    text += f"; two-step gain over copying kept by sums: {verdicts.short(kept, 2)}" if kept else ""
    answer = verdicts.overall(good, fails=any(bad))
    return [verdicts.Verdict("algebra", answer, text, "not measured")]

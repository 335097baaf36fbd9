"""Invariance: whether equal real actions have the same latent action in different scenes.

Latents of steps with nearly equal real actions are compared by their cosine, within an episode and
between episodes, and so are those of any two steps. The state's principal components, as many as a
latent has dimensions, and the real actions are compared in the same way. Noisy latents are the
posterior means.

Source: ours.
"""

import numpy as np
from scipy.spatial.distance import cdist

from lawm_jax.evaluate import metrics, probing, row_names, verdicts
from lawm_jax.evaluate.tables import Column, Table

CLOSE = 0.3  # maximum root mean square difference of nearly equal actions, standard deviations
STEPS = 4000  # maximum number of steps, since all pairs are compared
COLUMNS = (
    Column("same action, same episode", "within", 2, "higher"),
    Column("same action, another episode", "between", 2, "higher"),
    Column("any action, same episode", "any_within", 2),
    Column("any action, another episode", "any_between", 2),
    Column("kept", "kept", 2, "higher"),
)


def run(source):
    """Compares the latents of the models of a `context.Source`; None without real actions."""
    s, u, episodes = source.clips.s, source.clips.actions, source.clips.episodes
    if u is None or not source.pairs or not source.latents:
        return None
    inputs, u = {name: source.z(name) for name in source.latents}, probing.align(u, s.shape[1])
    width = inputs[source.latents[0]].shape[2]
    inputs[row_names.STATE] = probing.principal(probing.take(s, np.arange(len(s))), width)(s)
    inputs[row_names.REAL_ACTIONS] = u
    rows = measure(inputs, u, episodes)
    if rows is None:
        print(f"{source.name}: skipping invariance, since almost no two real actions are equal")
    return rows


def measure(inputs, u, episodes):
    """Measures the cosines of steps with nearly equal real actions.

    The steps compared are those with a partner, whose action is nearly equal, in their own and in
    another episode: the root mean square of the differences, in standard deviations of each action,
    is at most CLOSE. Inputs are centered: the cosine of unrelated ones is 0 on average.

    Args:
      inputs: name -> [n, T-1, k], such as latents.
      u: [n, T-1, U], real actions, aligned.
      episodes: [n] str, bootstrap groups.

    Returns:
      None if these steps are of fewer than 2 episodes; else one dict per input, with `name` and
      intervals of the mean cosine with
        within, between: steps of nearly equal actions, in the same and in other episodes.
        any_within, any_between: all other steps of the same episode, and of other episodes.
        gain: between - any_between.
        kept: (between - any_between) / (within - any_between): 1 if an action's latent is as much
          the same in other scenes as in its own, 0 if it is unrelated there. None where the
          interval of the denominator does not lie above 0.

    Raises:
      ValueError: inputs, u and episodes do not match each other, or u is not finite.
    """
    for name, x in inputs.items():
        if x.shape[:2] != u.shape[:2] or len(x) != len(episodes):
            expected = f"{u.shape[:2]} steps, like u, and {len(episodes)} episodes"
            raise ValueError(f"{name}: expected {expected}, got {x.shape}")
    if not np.isfinite(u).all():
        raise ValueError("u: expected finite values, got NaN or infinity")
    groups = np.repeat(episodes, u.shape[1])
    sampled = np.unique(np.linspace(0, len(groups) - 1, STEPS).round().astype(int))
    groups = groups[sampled]
    masks, chosen = _pairs(u.reshape(-1, u.shape[2])[sampled], groups)
    if len(set(groups[chosen])) < 2:
        return None
    rows = []
    for name, x in inputs.items():
        cosine = _cosines(x.reshape(-1, x.shape[2])[sampled])[chosen]
        values = {k: (cosine * mask).sum(1) / mask.sum(1) for k, mask in masks.items()}
        rows.append({"name": name} | _row(values, groups[chosen]))
    return rows


def _pairs(u, groups):
    """Finds which of m steps are compared: name -> bool [c, m], and the c rows, bool [m]."""
    u = u.astype(np.float64)
    scale = u.std(0)
    u = u[:, scale > 0] / scale[scale > 0]
    close = cdist(u, u) <= CLOSE * max(1, u.shape[1]) ** 0.5
    itself = np.eye(len(u), dtype=bool)
    same = (groups[:, None] == groups) & ~itself
    other = ~same & ~itself
    masks = {"within": same & close, "between": other & close}
    chosen = masks["within"].any(1) & masks["between"].any(1)
    masks |= {"any_within": same, "any_between": other}
    return {name: mask[chosen] for name, mask in masks.items()}, chosen


def _cosines(x):
    """Computes the cosines of centered rows: [m, k] -> [m, m]; 0 for a row that is the mean."""
    x = x.astype(np.float64)
    x = x - x.mean(0)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    return x @ x.T


def _row(values, groups):
    """Builds one row of `measure` from mean cosines, name -> [c]."""
    row = {name: metrics.interval(x, groups) for name, x in values.items()}
    gain = values["between"] - values["any_between"]
    most = values["within"] - values["any_between"]
    row["gain"], row["kept"] = metrics.interval(gain, groups), None
    if verdicts.above(metrics.interval(most, groups), 0):
        row["kept"] = metrics.ratio(gain, most, groups)
    return row


def tables(rows):
    """Returns the rows of `run` as a list of Table."""
    return [Table("cosine similarity of two steps", COLUMNS, rows)]


def judge(rows, name):
    """Judges whether `kept`, how much of an action's latent other scenes share, is above 0.5."""
    row = verdicts.by_name(rows).get(name)
    keys = "within", "between", "any_between", "gain"
    within, between, other, gain = (verdicts.measured(row, key) for key in keys)
    if None in (within, between, other, gain):
        return []
    kept = verdicts.measured(row, "kept")
    text = f"cosine of latents of equal actions: {verdicts.short(between, 2)} across episodes"
    text += f", {within['mean']:.2f} within one; any actions {other['mean']:.2f}"
    text += f"; kept {verdicts.short(kept, 2)}" if kept else ""
    if kept and verdicts.above(kept, 0.5):
        answer = verdicts.HOLDS
    elif verdicts.above(gain, 0):
        answer = verdicts.PARTLY
    else:
        answer = verdicts.FAILS if kept and verdicts.below(kept, 0.5) else verdicts.UNDECIDED
    return [verdicts.Verdict("same action", answer, text, "not measured")]

"""Locality: whether the latent of a local motion changes another scene where that motion was.

Part of the evaluation `transfer`.

Source: Garrido et al. 2026, section 5 and Figure 8, which shows pictures; the measure is ours.
"""

import numpy as np
import scipy.ndimage

from lawm_jax.evaluate import metrics, verdicts
from lawm_jax.evaluate.leakage import partners
from lawm_jax.evaluate.tables import Column, Table, string

NOTHING = 0.01  # effect / change below which latents have no effect
COLUMNS = (
    Column("transitions", "count", 0),
    Column("change in region", "share.region", 2, "higher"),
    Column("change in mirror image", "share.mirrored", 2, "lower"),
    Column("effect in region", "action.region", 2, "higher"),
    Column("effect in mirror image", "action.mirrored", 2, "lower"),
    Column("chance", "chance", 2),
    Column("effect / change", "effect", 2),
)


def measure(models, s, episodes, merge):
    """Measures whether a transferred latent acts at the image position of the source's motion.

    The latent of each transition of `transitions` is applied to a single state, the same step of a
    clip from another episode. Two changes are measured: the predicted change (prediction - target
    state) and, since some changes happen regardless of the action, the change due to the action
    (prediction - prediction with the mean latent of all clips).

    Args:
      models: name -> Batched, all with the encoder that computed s.
      s: float32 [n, T, N, D], states of clips.
      episodes: [n] str, bootstrap groups (the episodes of the source clips).
      merge: cells per side of a token.

    Returns:
      One dict per model, with `name`, `count` (number of transitions) and:
        share, action: for the predicted change and the change due to the action, {"region",
          "mirrored"}: intervals of the share of the change that lies in the region and in its
          left-right mirror image, which serves as a control region.
        chance: interval of the region's share of the image.
        effect: interval of the change due to the action / predicted change.
        note: a warning or None.
      If no transition qualifies, `count` is 0 and the intervals are None. If a change is zero in
      every prediction, its shares are None.

    Raises:
      ValueError: there are fewer than two episodes, or s cannot be split into cells.
    """
    clip, t, region, target = _applied(s, episodes, merge)
    nothing = {"region": None, "mirrored": None}
    if not len(clip):
        empty = {"share": nothing, "action": nothing, "chance": None, "effect": None}
        note = "no transition moves only one region of the image"
        return [{"name": name, "count": 0} | empty | {"note": note} for name in models]
    groups = np.asarray(episodes)[clip]
    chance, rows = metrics.interval(region.mean((1, 2)), groups), []
    for name, model in models.items():
        changes = _changes(model, s, clip, t, target, merge)
        row = {"name": name, "count": len(clip), "chance": chance, "effect": None, "note": None}
        for key, change in changes.items():
            row[key] = _shares(change, region, groups) if change.any() else nothing
        predicted, due = (change.sum((1, 2)) for change in changes.values())
        if predicted.any():
            row["effect"] = metrics.ratio(due, predicted, groups)
        if row["effect"] is None or row["effect"]["mean"] < NOTHING:
            row["note"] = "the latents have no effect"
        rows.append(row)
    return rows


def shares_of_effect(model, s, episodes, merge):
    """Computes where the change due to each transition's latent lies: see `measure`.

    Args:
      model: Batched.
      s, episodes, merge: as in `measure`.

    Returns:
      clip: [m] int, the clip of each transition; those whose latent has no effect are left out.
      inside, mirrored: [m], share of the change in the region and in its mirror image.
      chance: [m], the region's share of the image.
    """
    clip, t, region, target = _applied(s, episodes, merge)
    if not len(clip):
        return clip, *(np.zeros(0) for _ in range(3))
    change = _changes(model, s, clip, t, target, merge)["action"]
    nonzero = change.sum((1, 2)) > 0
    clip, change, region = clip[nonzero], change[nonzero], region[nonzero]
    inside, mirrored = (_share(change, x) for x in (region, region[..., ::-1]))
    return clip, inside, mirrored, region.mean((1, 2))


def example(s, episodes, merge):
    """Selects the transition of `transitions` with the highest score for a picture.

    The choice does not depend on the model. Arguments and errors are as in `measure`.

    Returns:
      source, t, target, region: the source clip and step of the latent, the target clip (at the
        same step t) and bool [rows, columns]; or None if no transition qualifies.
    """
    _check(episodes, len(s))
    other = partners(episodes, 1)[0]
    clip, t, region, score = transitions(s, merge)
    if not len(clip):
        return None
    best = score.argmax()
    return int(clip[best]), int(t[best]), int(other[clip[best]]), region[best]


def transitions(s, merge, most=64):
    """Finds transitions where only one region of the image moves, not overlapping its mirror image.

    The change of a cell is the mean absolute difference of its channels minus that of the median
    cell. The region is the cells with more than half the maximum change, dilated by one cell. It
    must contain half of the total change, and overlap its left-right mirror image in less than a
    tenth of its cells. On a coarse grid the region may still cover nearly half of the image, so
    compare shares with `chance`.

    Args:
      s: float32 [n, T, N, D], states of clips.
      merge: cells per side of a token.
      most: maximum number of transitions, evenly spaced among those that qualify.

    Returns:
      clip, t: [m] int, sorted; the transition is from step t to t + 1.
      region: bool [m, rows, columns].
      score: [m], change within the region times its share of the total change.
    """
    # One clip at a time: the differences of all clips at once would double the memory.
    change = np.stack([_size(np.diff(x, axis=0), merge) for x in s])
    change = np.maximum(change - np.median(change, axis=(2, 3), keepdims=True), 0)
    peak = change.max(axis=(2, 3), keepdims=True)
    region = scipy.ndimage.binary_dilation((change > peak / 2) & (peak > 0), np.ones((1, 1, 3, 3)))
    inside, total = (change * region).sum((2, 3)), change.sum((2, 3))
    overlap = (region & region[..., ::-1]).sum((2, 3)) < 0.1 * region.sum((2, 3))
    clip, t = np.nonzero(overlap & (inside >= 0.5 * total) & (total > 0))
    if len(clip) > most:
        keep = np.linspace(0, len(clip) - 1, most).round().astype(int)
        clip, t = clip[keep], t[keep]
    return clip, t, region[clip, t], inside[clip, t] ** 2 / total[clip, t]


def cells(x, merge):
    """Splits tokens into the cells of the encoder's grid: [..., N, D] -> [..., rows, columns, d].

    Inverts the merge in `world_model.encode`: a token holds merge x merge cells, and its D =
    merge^2 d channels are the concatenated channels of these cells in row-major order.

    Raises:
      ValueError: N is not a square, or merge^2 does not divide D.
    """
    *leading, N, D = x.shape
    side = round(N**0.5)
    if side**2 != N or D % merge**2:
        raise ValueError(
            f"x: expected a square number of tokens and a multiple of {merge**2} channels, got "
            f"{x.shape}"
        )
    x = x.reshape(*leading, side, side, merge, merge, D // merge**2)
    return np.moveaxis(x, -3, -4).reshape(*leading, side * merge, side * merge, -1)


def _applied(s, episodes, merge):
    """Finds the transitions whose latents are applied, and the states that they are applied to.

    Returns:
      clip, t, region: as from `transitions`.
      target: [m, 1, N, D], the same steps of clips from other episodes.
    """
    _check(episodes, len(s))
    other = partners(episodes, 1)[0]
    clip, t, region, _ = transitions(s, merge)
    return clip, t, region, s[other[clip], t][:, None]


def _changes(model, s, clip, t, target, merge):
    """Computes the change of each cell, [m, rows, columns], predicted and due to the action.

    Args:
      model: Batched.
      s, merge: as in `measure`.
      clip, t, target: from `_applied`.
    """
    z = model.infer(s)
    mean = np.broadcast_to(z.mean((0, 1)), (len(clip), 1, z.shape[2])).astype(z.dtype)
    prediction = model.predict(target, z[clip, t][:, None])
    return {
        "share": _size(prediction - target, merge)[:, 0],
        "action": _size(prediction - model.predict(target, mean), merge)[:, 0],
    }


def _shares(change, region, groups):
    """Computes the shares in the region and its mirror image, over nonzero changes."""
    nonzero = change.sum((1, 2)) > 0
    change, region, groups = change[nonzero], region[nonzero], groups[nonzero]
    masks = {"region": region, "mirrored": region[..., ::-1]}
    return {key: metrics.interval(_share(change, mask), groups) for key, mask in masks.items()}


def _share(change, mask):
    """Returns the share of a change [m, rows, columns] within a mask, [m]."""
    return (change * mask).sum((1, 2)) / change.sum((1, 2))


def _size(difference, merge):
    """Computes the mean absolute value of each cell: [..., N, D] -> [..., rows, columns]."""
    return np.abs(cells(difference, merge)).mean(-1)


def _check(episodes, n):
    if np.shape(episodes) != (n,):
        raise ValueError(f"episodes: expected {n} names, got {np.shape(episodes)}")


def tables(rows):
    """Returns the rows of `measure` as a list of Table."""
    return [Table("where a transferred latent acts", COLUMNS, rows)]


def judge(row):
    """Judges whether latents act locally.

    Locality holds if the effect's share in the region is above that in the mirror image and above
    the mean chance, and fails if it is below that in the mirror image. Anything else is undecided.
    """
    paper = "latents act where the original motion was (Figure 8, no numbers)"
    inside, mirror = (verdicts.measured(row, f"action.{x}") for x in ("region", "mirrored"))
    chance = verdicts.measured(row, "chance")
    if None in (inside, mirror, chance):
        note = string(row.get("note")) or "not measured"
        return verdicts.Verdict("locality", verdicts.UNDECIDED, note, paper)
    text = f"share of the effect in the moving region: {verdicts.short(inside, 2)}; "
    text += f"in the mirror image {verdicts.short(mirror, 2)}, by chance {chance['mean']:.2f}"
    better = verdicts.above(inside, mirror) and verdicts.above(inside, chance["mean"])
    answer = verdicts.overall([better], fails=verdicts.below(inside, mirror))
    return verdicts.Verdict("locality", answer, text, paper)

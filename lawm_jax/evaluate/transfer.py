"""Transfer: whether latent actions have the same effect in another clip, at the same position.

`cycle`: the latents of clip A are applied to clip B, and the latents inferred from that prediction
are applied to A again. `locality`: the latent of a local motion should change another scene at the
image position of that motion. Noisy latents are the posterior means.

Source: Garrido et al. 2026, section 5, Table 2 and Figure 8. The control with shuffled latents and
the locality measure are ours: the paper shows pictures.
"""

import numpy as np

from lawm_jax.evaluate import metrics, verdicts
from lawm_jax.evaluate.leakage import latent_l1, partners
from lawm_jax.evaluate.tables import Column, Table, by_metric, listed, mapping, string

# `cycle` reports no effect unless the lower bound of (shuffled - original) is above this fraction
# of the mean original error; `locality`, if the effect is below this fraction of the change.
NOTHING = 0.01
CYCLE = (
    Column("original", "original", 3, "lower"),
    Column("after cycle", "cycle", 3, "lower"),
    Column("shuffled", "shuffled"),
    Column("ratio", "ratio", 2, "lower"),
    Column("lost", "lost", 2, "lower"),
)
LOCALITY = (
    Column("transitions", "count", 0),
    Column("change in region", "share.region", 2, "higher"),
    Column("change in mirror image", "share.mirrored", 2, "lower"),
    Column("effect in region", "action.region", 2, "higher"),
    Column("effect in mirror image", "action.mirrored", 2, "lower"),
    Column("chance", "chance", 2),
    Column("effect / change", "effect", 2),
)


def run(source):
    """Evaluates the models of a `context.Source`: {"cycle": rows, "locality": rows}.

    With a decoder, the cycle of the main model is also measured in pixels, as in Table 2.
    """
    if not source.pairs:
        return None
    s, episodes, pixels = source.clips.s, source.clips.episodes, source.pixels
    rows = cycle(source.inferring, s, episodes)
    if pixels:
        alone, truth = {source.main: source.models[source.main]}, pixels.video[:, source.per_step :]
        asked = dict(distance=source.to_frames, truth=truth)
        rows += cycle(alone, pixels.s, pixels.episodes, **asked)
    where = locality(source.inferring, s, episodes, source.model.merge)
    return {"cycle": rows, "locality": where}


def tables(found):
    """Returns the results of `run` as a list of Table."""
    return cycle_tables(found["cycle"]) + locality_tables(found["locality"])


def judge(found, name):
    """Judges whether most information survives the cycle, and whether latents act locally.

    Transfer holds if the interval of `lost` is below 0.5, and fails if it is above, or if shuffling
    changes the mean error by less than `NOTHING`. Locality holds if the effect's share in the
    region is above that in the mirror image and above the mean chance, and fails if it is below
    that in the mirror image. Anything else is undecided.
    """
    found, judged = mapping(found), []
    if row := verdicts.by_name(listed(found.get("cycle"))).get(name):
        judged.append(_judge_cycle(row))
    if row := verdicts.by_name(listed(found.get("locality"))).get(name):
        judged.append(_judge_locality(row))
    return judged


def _judge_cycle(row):
    paper = "the error grows by 3 to 34 % in the cycle (Table 2)"
    lost = verdicts.measured(row, "lost")
    if lost is None:
        note = string(row.get("note")) or "no effect"
        errors = [verdicts.measured(row, key) for key in ("original", "shuffled")]
        known = all(errors) and errors[0]["mean"] > 0
        effect = errors[1]["mean"] / errors[0]["mean"] - 1 if known else 0
        answer = verdicts.FAILS if effect < NOTHING else verdicts.UNDECIDED
        return verdicts.Verdict("transfer", answer, note, paper)
    text = f"information lost to another clip and back: {verdicts.short(lost, 2)}"
    if verdicts.below(lost, 0.5):
        answer = verdicts.HOLDS
    elif verdicts.above(lost, 0.5):
        answer = verdicts.FAILS
    else:
        answer = verdicts.UNDECIDED
    return verdicts.Verdict("transfer", answer, text, paper)


def _judge_locality(row):
    paper = "latents act where the motion was (Figure 8, without numbers)"
    inside, mirror = (verdicts.measured(row, f"action.{x}") for x in ("region", "mirrored"))
    chance = verdicts.measured(row, "chance")
    if None in (inside, mirror, chance):
        note = string(row.get("note")) or "not measured"
        return verdicts.Verdict("locality", verdicts.UNDECIDED, note, paper)
    text = f"share of the effect where the motion was: {verdicts.short(inside, 2)}; "
    text += f"in the mirror image {verdicts.short(mirror, 2)}, by chance {chance['mean']:.2f}"
    if verdicts.below(inside, mirror):
        answer = verdicts.FAILS
    elif verdicts.above(inside, mirror) and verdicts.above(inside, chance["mean"]):
        answer = verdicts.HOLDS
    else:
        answer = verdicts.UNDECIDED
    return verdicts.Verdict("locality", answer, text, paper)


def cycle_tables(rows):
    """Returns the rows of `cycle` as a list of Table, one per metric."""
    return by_metric("transfer to another clip and back", CYCLE, rows)


def locality_tables(rows):
    """Returns the rows of `locality` as a list of Table."""
    return [Table("where a transferred latent acts", LOCALITY, rows)]


def cycle(models, s, episodes, context=1, distance=None, truth=None):
    """Measures how much information latent actions keep when transferred to another clip and back.

    The latents of clip A are rolled out from the start of clip B; the latents inferred from that
    rollout are rolled out from the start of A. The reference rollouts of A use the latents of A
    itself and those of a third clip. Steps within the context always use the latents of their own
    clip.

    Args:
      models: name -> Batched, all with the encoder that computed s.
      s: float32 [n, T, N, D], states of clips; each clip serves as A once, and `partners` gives its
        B and third clip.
      episodes: [n] str, bootstrap groups.
      context: number of true states that a rollout starts from.
      distance: (predicted s, true s), each [n, T - context, N, D] -> [n], error of each clip; its
        __name__ names the metric. None: the mean absolute difference.
      truth: targets of `distance`, such as the frames after the context; None: the true states.

    Returns:
      One dict per model, with `name`, `metric` and:
        original, cycle, shuffled: intervals of the error of A with its own latents, the transferred
          latents and the latents of the third clip.
        ratio: interval of cycle / original; None if `original` is zero for every clip.
        lost: interval of (cycle - original) / (shuffled - original), the fraction of the latents'
          information that is lost.
        note: if shuffling hardly changes the error, a warning that the latents have no effect
          (which makes any ratio 1); `lost` is then None.

    Raises:
      ValueError: there are fewer than three episodes, or no steps after the context.
    """
    if not 0 < context < s.shape[1]:
        raise ValueError(f"context: expected 1 to {s.shape[1] - 1} steps, got {context}")
    _check(episodes, len(s))
    metric = "latent L1" if distance is None else getattr(distance, "__name__", "distance")
    asked = episodes, context, distance, truth
    return [
        {"name": name, "metric": metric} | _cycle_row(*cycle_errors(model, s, *asked), episodes)
        for name, model in models.items()
    ]


def cycle_errors(model, s, episodes, context=1, distance=None, truth=None):
    """Computes the errors of `cycle`: of A with its own, transferred and third-clip latents.

    Arguments are as in `cycle`, for one model.

    Returns:
      Three arrays [n].
    """
    b, third = partners(episodes, 2)
    distance, truth = distance or latent_l1, s[:, context:] if truth is None else truth
    z, start = model.infer(s), s[:, :context]
    latents = z, transferred(model, start[b], z, z[b]), z[third]
    predicted = [_follow(model, start, z, x) for x in latents]
    return [np.asarray(distance(x, truth)) for x in predicted]


def transferred(model, start, z, own=None):
    """Infers latents again from their rollout in other clips.

    Args:
      model: Batched.
      start: [n, C, N, D], the first C states of the other clips.
      z: [n, T-1, A], latents to transfer.
      own: [n, T-1, A], latents of the other clips, used within the context; not needed if C is 1.

    Returns:
      [n, T-1, A].
    """
    ahead = _follow(model, start, z if own is None else own, z)
    return model.infer(np.concatenate([start, ahead], axis=1))


def _follow(model, start, own, latents):
    """Rolls out latents from a context `start` [n, C, N, D].

    The first C - 1 latents are those of `own`, the rest those of `latents`, both [n, T-1, A].
    """
    C = start.shape[1]
    return model.rollout(start, np.concatenate([own[:, : C - 1], latents[:, C - 1 :]], axis=1))


def _cycle_row(original, transferred, shuffled, episodes):
    """Builds one model's row of `cycle`, without `name` and `metric`.

    Args:
      original, transferred, shuffled: [n], errors of A with its own latents, the transferred
        latents and those of the third clip.
      episodes: [n] bootstrap groups.
    """
    gain = metrics.interval(shuffled - original, episodes)
    row = {
        "original": metrics.interval(original, episodes),
        "cycle": metrics.interval(transferred, episodes),
        "shuffled": metrics.interval(shuffled, episodes),
        "ratio": metrics.ratio(transferred, original, episodes) if original.any() else None,
    }
    if gain["low"] > NOTHING * row["original"]["mean"]:
        lost = metrics.ratio(transferred - original, shuffled - original, episodes)
        return row | {"lost": lost, "note": None}
    change = 100 * gain["mean"] / row["original"]["mean"] if original.any() else 0.0
    note = f"no clear effect of the latents: shuffling them changes the error by {change:.1f} %"
    return row | {"lost": None, "note": note}


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


def sources(s, merge, most=64):
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
      held: [m], change within the region times its share of the total change, a quality score.
    """
    # One clip at a time: the differences of all clips at once would double the memory.
    change = np.stack([_size(np.diff(x, axis=0), merge) for x in s])
    change = np.maximum(change - np.median(change, axis=(2, 3), keepdims=True), 0)
    peak = change.max(axis=(2, 3), keepdims=True)
    region = _grow((change > peak / 2) & (peak > 0))
    inside, total = (change * region).sum((2, 3)), change.sum((2, 3))
    overlap = (region & region[..., ::-1]).sum((2, 3)) < 0.1 * region.sum((2, 3))
    clip, t = np.nonzero(overlap & (inside >= 0.5 * total) & (total > 0))
    if len(clip) > most:
        keep = np.linspace(0, len(clip) - 1, most).round().astype(int)
        clip, t = clip[keep], t[keep]
    return clip, t, region[clip, t], inside[clip, t] ** 2 / total[clip, t]


def locality(models, s, episodes, merge):
    """Measures whether a transferred latent acts at the image position of the source's motion.

    The latent of each transition found by `sources` is applied to a single state, the same step of
    a clip from another episode. Two changes are measured: the predicted change (prediction - target
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
    _check(episodes, len(s))
    other = partners(episodes, 1)[0]
    clip, t, region, _ = sources(s, merge)
    nothing = {"region": None, "mirrored": None}
    if not len(clip):
        empty = {"share": nothing, "action": nothing, "chance": None, "effect": None}
        note = "no transition moves only one region of the image"
        return [{"name": name, "count": 0} | empty | {"note": note} for name in models]
    target, groups = s[other[clip], t][:, None], np.asarray(episodes)[clip]
    chance, rows = metrics.interval(region.mean((1, 2)), groups), []
    for name, model in models.items():
        changes = _changes(model, model.infer(s), clip, t, target, merge)
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
    """Computes where the change due to each transition's latent lies: see `locality`.

    Args:
      model: Batched.
      s, episodes, merge: as in `locality`.

    Returns:
      clip: [m] int, the clip of each transition; those whose latent has no effect are left out.
      inside, mirrored: [m], share of the change in the region and in its mirror image.
      chance: [m], the region's share of the image.
    """
    other = partners(episodes, 1)[0]
    clip, t, region, _ = sources(s, merge)
    if not len(clip):
        return clip, *(np.zeros(0) for _ in range(3))
    target = s[other[clip], t][:, None]
    change = _changes(model, model.infer(s), clip, t, target, merge)["action"]
    some = change.sum((1, 2)) > 0
    clip, change, region = clip[some], change[some], region[some]
    inside, mirrored = (_share(change, x) for x in (region, region[..., ::-1]))
    return clip, inside, mirrored, region.mean((1, 2))


def _changes(model, z, clip, t, target, merge):
    """Computes the change of each cell, [m, rows, columns], predicted and due to the action.

    Args:
      model: Batched.
      z: [n, T-1, A], inferred latents.
      clip, t: [m], transitions whose latents are applied.
      target: [m, 1, N, D], the states that they are applied to.
      merge: cells per side of a token.
    """
    mean = np.broadcast_to(z.mean((0, 1)), (len(clip), 1, z.shape[2])).astype(z.dtype)
    prediction = model.predict(target, z[clip, t][:, None])
    return {
        "share": _size(prediction - target, merge)[:, 0],
        "action": _size(prediction - model.predict(target, mean), merge)[:, 0],
    }


def example(s, episodes, merge):
    """Selects the transition of `sources` with the highest score for a picture.

    The choice does not depend on the model. Arguments and errors are as in `locality`.

    Returns:
      source, t, target, region: the source clip and step of the latent, the target clip (at the
        same step t) and bool [rows, columns]; or None if no transition qualifies.
    """
    _check(episodes, len(s))
    other = partners(episodes, 1)[0]
    clip, t, region, held = sources(s, merge)
    if not len(clip):
        return None
    best = held.argmax()
    return int(clip[best]), int(t[best]), int(other[clip[best]]), region[best]


def _size(difference, merge):
    """Computes the mean absolute value of each cell: [..., N, D] -> [..., rows, columns]."""
    return np.abs(cells(difference, merge)).mean(-1)


def _grow(region):
    """Dilates a region by its eight-neighborhood: bool [..., rows, columns]."""
    rows, columns = region.shape[-2:]
    padded = np.pad(region, [(0, 0)] * (region.ndim - 2) + [(1, 1), (1, 1)])
    shifts = [padded[..., i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return np.any(shifts, axis=0)


def _shares(change, region, groups):
    """Computes the shares in the region and its mirror image, over nonzero changes."""
    some = change.sum((1, 2)) > 0
    change, region, groups = change[some], region[some], groups[some]
    masks = {"region": region, "mirrored": region[..., ::-1]}
    return {key: metrics.interval(_share(change, mask), groups) for key, mask in masks.items()}


def _share(change, mask):
    """Returns the share of a change [m, rows, columns] within a mask, [m]."""
    return (change * mask).sum((1, 2)) / change.sum((1, 2))


def _check(episodes, n):
    if np.shape(episodes) != (n,):
        raise ValueError(f"episodes: expected {n} names, got {np.shape(episodes)}")

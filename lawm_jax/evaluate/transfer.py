"""Transfer: whether latent actions mean the same in another clip, and in the same place.

`cycle`: latents of A drive B, latents inferred from that prediction drive A again. `locality`:
a latent of something small that moves changes another scene where it was in the image.
Noisy latents are the means of their posteriors.

Source: Garrido et al. 2026, section 5, Table 2 and Figure 8. The control with shuffled latents and
the measure of locality are ours: the paper shows pictures.
"""

import numpy as np

from lawm_jax.evaluate import metrics
from lawm_jax.evaluate.leakage import latent_l1, partners
from lawm_jax.evaluate.tables import Column, Table

# Below this share of the error, what latents change is nothing.
NOTHING = 0.01
CYCLE = (
    Column("original", "original", 3, "lower"),
    Column("after cycle", "cycle", 3, "lower"),
    Column("shuffled", "shuffled"),
    Column("ratio", "ratio", 2, "lower"),
    Column("lost", "lost", 2, "lower"),
)
LOCALITY = (
    Column("cases", "count", 0),
    Column("change: own region", "share.region", 2, "higher"),
    Column("mirrored", "share.mirrored", 2, "lower"),
    Column("action: own region", "action.region", 2, "higher"),
    Column("mirrored", "action.mirrored", 2, "lower"),
    Column("chance", "chance", 2),
    Column("effect of the action", "effect", 2),
)


def run(source):
    """Asks the models of a `context.Source`: {"cycle": rows, "locality": rows}.

    With a decoder the model in question is also asked in frames, as in Table 2.
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
    """Lays out what `run` found: a list of Table."""
    return cycle_tables(found["cycle"]) + locality_tables(found["locality"])


def cycle_tables(rows):
    """Lays out rows of `cycle`: a list of Table, one for each metric."""
    metrics_ = dict.fromkeys(row.get("metric") for row in rows)
    return [
        Table(
            f"to another clip and back, {name}", CYCLE, [r for r in rows if r.get("metric") == name]
        )
        for name in metrics_
    ]


def locality_tables(rows):
    """Lays out rows of `locality`: a list of Table."""
    return [Table("where a transferred latent acts", LOCALITY, rows)]


def cycle(models, s, episodes, context=1, distance=None, truth=None):
    """Measures how much of latent actions survives a transfer to another clip and back.

    The latents of A drive the start of B; those inferred from that prediction drive the start of
    A. For comparison A is driven by its own latents, and by those of a third clip. The steps of
    the context always have their own clip's latents.

    Args:
      models: name -> Batched, all of the encoder that made s.
      s: float32 [n, T, N, D], states of clips; each is A once, with the B and the third clip of
        `partners`.
      episodes: [n] str, groups of the bootstrap.
      context: true steps that a rollout starts from.
      distance: (predicted s, true s), each [n, T - context, N, D] -> [n], error of each clip; its
        __name__ is the rows' metric. None: the mean absolute difference.
      truth: what `distance` compares predictions with, such as the frames of the steps after the
        context; None: the true states.

    Returns:
      One dict per model: `name`, `metric`, `original`, `cycle`, `shuffled` (intervals of A's error
      with its own, the transferred and the third clip's latents), `ratio` (interval of cycle /
      original; None if nothing is ever wrong), `lost` (interval of (cycle - original) / (shuffled
      - original), the share of the latents' information that is lost), and `note`: where shuffling
      changes hardly anything, it says that the latents do nothing, which makes any ratio 1, and
      `lost` is None.

    Raises:
      ValueError: fewer than three episodes, or a context that leaves nothing to predict.
    """
    if not 0 < context < s.shape[1]:
        raise ValueError(f"context: expected 1 to {s.shape[1] - 1} steps, got {context}")
    _check(episodes, len(s))
    pairs = partners(episodes, 2)
    metric = "latent L1" if distance is None else getattr(distance, "__name__", "distance")
    distance, truth = distance or latent_l1, s[:, context:] if truth is None else truth
    return [
        {"name": name, "metric": metric}
        | _cycle_row(*_cycle_errors(model, s, *pairs, context, distance, truth), episodes)
        for name, model in models.items()
    ]


def _cycle_errors(model, s, b, third, context, distance, truth):
    """Computes A's error [n] with its own, the transferred and the third clip's latents."""
    z = model.infer(s)

    def drive(start, own, led):
        z = np.concatenate([own[:, : context - 1], led[:, context - 1 :]], axis=1)
        return model.rollout(start[:, :context], z)

    start = s[b, :context]
    moved = np.concatenate([start, drive(start, z[b], z)], axis=1)
    error = lambda led: np.asarray(distance(drive(s, z, led), truth))  # noqa: E731
    return error(z), error(model.infer(moved)), error(z[third])


def _cycle_row(original, back, shuffled, episodes):
    """Makes a row of each clip's three errors."""
    gain = metrics.interval(shuffled - original, episodes)
    row = {
        "original": metrics.interval(original, episodes),
        "cycle": metrics.interval(back, episodes),
        "shuffled": metrics.interval(shuffled, episodes),
        "ratio": metrics.ratio(back, original, episodes) if original.any() else None,
    }
    if gain["low"] > NOTHING * row["original"]["mean"]:
        lost = metrics.ratio(back - original, shuffled - original, episodes)
        return row | {"lost": lost, "note": None}
    change = 100 * gain["mean"] / row["original"]["mean"] if original.any() else 0.0
    note = f"the latents do nothing here: shuffling them changes the error by {change:.1f} %"
    return row | {"lost": None, "note": note}


def cells(x, merge):
    """Lays tokens out as the cells of the encoder's grid: [..., N, D] -> [..., rows, columns, d].

    Undoes what `world_model.encode` does: a token holds merge x merge cells, its D = merge^2 d
    channels are those of one cell after the other, row by row.

    Raises:
      ValueError: N is no square, or merge^2 does not divide D.
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
    """Finds the transitions where one part of the image moves, away from its mirror image.

    A cell changes by the mean absolute difference of its channels, less that of the median cell.
    The region is the cells above half the maximum, grown by one cell. It must hold half of all
    change, and overlap its left-right mirror image in less than a tenth of its cells. On a coarse
    grid it may still be nearly half of the image, so shares only mean something beside `chance`.

    Args:
      s: float32 [n, T, N, D], states of clips.
      merge: cells per side of a token.
      most: transitions at most, evenly spread over those that qualify.

    Returns:
      clip, t: [m] int, in order; t leads to t + 1.
      region: bool [m, rows, columns].
      held: [m], the change within the region times its share of all change: how clean it is.
    """
    # One clip at a time: differences of all would double the memory.
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
    """Measures whether a transferred latent acts where its motion was in the source's image.

    The latent of each of `sources` drives the same step of a clip of another episode, from that
    one state. Two changes are looked at: the predicted one (prediction - the target's state), and,
    as some things happen whatever the action, the one due to the action (prediction - prediction
    with the mean latent of all clips).

    Args:
      models: name -> Batched, all of the encoder that made s.
      s: float32 [n, T, N, D], states of clips.
      episodes: [n] str, groups of the bootstrap (of the sources).
      merge: cells per side of a token.

    Returns:
      One dict per model: `name`, `count` (transitions), `share` and `action`, of the two changes:
      {"region", "mirrored"}, intervals of the share of it in the region and in its left-right
      mirror image, the place of a second candidate; `chance`, interval of the region's share of
      the image; `effect`, interval of the change due to the action / the predicted one; `note`.
      Where nothing qualifies, `count` is 0 and they are None; where nothing changes in any
      prediction, that change's shares are None.

    Raises:
      ValueError: fewer than two episodes, or s cannot be laid out as cells.
    """
    _check(episodes, len(s))
    other = partners(episodes, 1)[0]
    clip, t, region, _ = sources(s, merge)
    nothing = {"region": None, "mirrored": None}
    if not len(clip):
        empty = {"share": nothing, "action": nothing, "chance": None, "effect": None}
        note = "no transition moves one part of the image alone"
        return [{"name": name, "count": 0} | empty | {"note": note} for name in models]
    target, groups = s[other[clip], t][:, None], np.asarray(episodes)[clip]
    chance, rows = metrics.interval(region.mean((1, 2)), groups), []
    for name, model in models.items():
        z = model.infer(s)
        mean = np.broadcast_to(z.mean((0, 1)), (len(clip), 1, z.shape[2])).astype(z.dtype)
        prediction = model.predict(target, z[clip, t][:, None])
        changes = {
            "share": _size(prediction - target, merge)[:, 0],
            "action": _size(prediction - model.predict(target, mean), merge)[:, 0],
        }
        row = {"name": name, "count": len(clip), "chance": chance, "effect": None, "note": None}
        for key, change in changes.items():
            row[key] = _shares(change, region, groups) if change.any() else nothing
        predicted, due = (change.sum((1, 2)) for change in changes.values())
        if predicted.any():
            row["effect"] = metrics.ratio(due, predicted, groups)
        if row["effect"] is None or row["effect"]["mean"] < NOTHING:
            row["note"] = "the latents do nothing here"
        rows.append(row)
    return rows


def example(s, episodes, merge):
    """Picks the cleanest of `sources` for a picture: the same for every model.

    Args:
      s, episodes, merge: as in `locality`.

    Returns:
      source, t, target, region: the clip and step whose latent leads, the clip to drive from step
      t, and bool [rows, columns]; or None where nothing qualifies.

    Raises:
      ValueError: as in `locality`.
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
    """Adds the eight neighbours of each cell: bool [..., rows, columns]."""
    rows, columns = region.shape[-2:]
    padded = np.pad(region, [(0, 0)] * (region.ndim - 2) + [(1, 1), (1, 1)])
    shifts = [padded[..., i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return np.any(shifts, axis=0)


def _shares(change, region, groups):
    """Computes the shares in the region and its mirror image, over predictions that change."""
    some = change.sum((1, 2)) > 0
    change, region, groups = change[some], region[some], groups[some]
    share = lambda mask: (change * mask).sum((1, 2)) / change.sum((1, 2))  # noqa: E731
    masks = {"region": region, "mirrored": region[..., ::-1]}
    return {key: metrics.interval(share(mask), groups) for key, mask in masks.items()}


def _check(episodes, n):
    if np.shape(episodes) != (n,):
        raise ValueError(f"episodes: expected {n} names, got {np.shape(episodes)}")

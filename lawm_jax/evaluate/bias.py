"""Positional bias: whether latents act where a scene can move, or at fixed image positions.

A forward model may react to latents at the same image positions in every scene. Its response to a
scene is the deviation of its predictions at each position over latents of other clips. The part
that the maps of all scenes share is removed; the rest should lie where the scene moves. Noisy
latents are the posterior means.

Source: ours.
"""

import numpy as np

from lawm_jax.evaluate import metrics, verdicts
from lawm_jax.evaluate.locality import cells, transitions
from lawm_jax.evaluate.tables import Column, Table, string

LATENTS = 16  # applied to each scene
NOTHING = 0.01  # share of the response below which nothing is left without the bias
COLUMNS = (
    Column("scenes", "count", 0),
    Column("correlation across scenes", "correlation", 2, "lower"),
    Column("response in region", "before", 2, "higher"),
    Column("without bias", "after", 2, "higher"),
    Column("chance", "chance", 2),
    Column("remaining response", "left", 2),
)


def run(source):
    """Measures the models of a `context.Source`."""
    if not source.pairs:
        return None
    s, episodes = source.clips.s, source.clips.episodes
    return measure(source.inferring, s, episodes, source.model.merge)


def measure(models, s, episodes, merge):
    """Measures where predictions depend on the latent, with and without a positional bias.

    The scenes are single states, the first of each transition that moves one region of the image
    (`locality.transitions`). LATENTS latents of clips that give no scene are applied to each. The
    response at a cell is the root mean square, over channels, of the deviation over latents of the
    prediction. The bias is the median over scenes of the response at each cell; without bias, the
    response is what exceeds it.

    If a prediction is f(s, z) + b(z), with b at each cell the same for all scenes, and f depends on
    z at each cell in fewer than half of the scenes, then the median is the deviation of b. Without
    bias, all of the response then lies exactly where f depends on z. If f depends on z nowhere,
    the maps are equal: their correlation is 1 and nothing is left. A place that moves in most
    scenes, as under a fixed camera, counts as bias, so the share without bias is a cautious one.

    Args:
      models: name -> Batched, all with the encoder that computed s.
      s: float32 [n, T, N, D], states of clips, n at least 2.
      episodes: [n] str, bootstrap groups.
      merge: cells per side of a token.

    Returns:
      One dict per model, with `name`, `count` (number of scenes) and:
        correlation: interval of the correlation of a scene's map with those of scenes of other
          episodes; None if there are none.
        before, after: intervals of the share of the response in the region that moves in the
          scene's true next step, with and without the bias; 1 if all of it is there.
        chance: interval of the region's share of the image.
        left: interval of the response without bias / with it.
        note: a warning or None. If less than NOTHING is left, `after` is None.
      The intervals are None if there is no scene, or the response is zero in all scenes.

    Raises:
      ValueError: s cannot be split into cells, or there are fewer than 2 clips.
    """
    n = len(s)
    if n < 2 or len(episodes) != n:
        raise ValueError(f"s, episodes: expected at least 2 clips, got {n} and {len(episodes)}")
    donors = np.linspace(0, n - 1, min(LATENTS, max(2, n // 2))).round().astype(int)
    clip, t, region, _ = transitions(s, merge)
    kept = ~np.isin(clip, donors)
    scenes, region, groups = s[clip[kept], t[kept]], region[kept], np.asarray(episodes)[clip[kept]]
    rows = []
    for name, model in models.items():
        row = {"name": name, "count": len(scenes)}
        row |= dict.fromkeys(("correlation", "before", "after", "chance", "left", "note"))
        if len(scenes):
            z = model.infer(s)
            latents = z[donors, np.arange(len(donors)) % z.shape[1]]
            row |= _row(response(model.predict, scenes, latents, merge), region, groups)
        else:
            row["note"] = "no transition moves only one region of the image"
        rows.append(row)
    return rows


def response(predict, scenes, z, merge):
    """Computes by how much the prediction at each cell depends on the latent.

    Args:
      predict: s [k, 1, N, D], z [k, 1, A] -> [k, 1, N, D], the next states.
      scenes: [m, N, D], states.
      z: [k, A], the latents applied to each of them.
      merge: cells per side of a token.

    Returns:
      [m, rows, columns], root mean squares over channels of the deviation over latents.
    """
    maps = []
    for scene in scenes:
        predicted = predict(np.broadcast_to(scene, (len(z), 1, *scene.shape)), z[:, None])[:, 0]
        maps.append(np.sqrt(cells(predicted, merge).var(0).mean(-1)))
    return np.stack(maps)


def _row(maps, region, groups):
    """Builds one model's row of `measure` from responses and regions, [m, rows, columns]."""
    total = maps.sum((1, 2))
    if not total.any():
        return {"note": "the latents have no effect"}
    rest = np.maximum(maps - np.median(maps, axis=0), 0)
    row = {
        "correlation": correlation(maps, groups),
        "before": metrics.ratio((maps * region).sum((1, 2)), total, groups),
        "chance": metrics.interval(region.mean((1, 2)), groups),
        "left": metrics.ratio(rest.sum((1, 2)), total, groups),
    }
    if row["left"]["mean"] < NOTHING:
        return row | {"note": "the response is the same in all scenes"}
    return row | {"after": metrics.ratio((rest * region).sum((1, 2)), rest.sum((1, 2)), groups)}


def correlation(maps, groups):
    """Computes the mean correlation of each map with those of other groups.

    Args:
      maps: [m, rows, columns]; those that are constant are left out.
      groups: [m] str, the episode of each map.

    Returns:
      The interval over maps, or None if no two maps of different groups vary.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat = flat - flat.mean(1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1)
    flat, groups = flat[norm > 0] / norm[norm > 0, None], groups[norm > 0]
    other = groups[:, None] != groups
    if not other.any():
        return None
    return metrics.interval((flat @ flat.T * other).sum(1) / other.sum(1), groups)


def tables(rows):
    """Returns the rows of `run` as a list of Table."""
    return [Table("where predictions depend on the latent", COLUMNS, rows)]


def judge(rows, name):
    """Judges whether the response without bias lies where the scene moves, more than by chance."""
    row = verdicts.by_name(rows).get(name)
    if row is None:
        return []
    before, after = verdicts.measured(row, "before"), verdicts.measured(row, "after")
    chance, r = verdicts.measured(row, "chance"), verdicts.measured(row, "correlation")
    if after is None or chance is None:
        answer = verdicts.FAILS if before and chance else verdicts.UNDECIDED
        text = string(row.get("note")) or "not measured"
        return [verdicts.Verdict("beyond bias", answer, text, "not measured")]
    text = f"share of the response in the moving region: {verdicts.short(after, 2)} without bias"
    text += f", {before['mean']:.2f} with it" if before else ""
    text += f", {chance['mean']:.2f} by chance"
    text += f"; correlation across scenes {r['mean']:.2f}" if r else ""
    better, worse = (f(after, chance["mean"]) for f in (verdicts.above, verdicts.below))
    answer = verdicts.overall([better], fails=worse)
    return [verdicts.Verdict("beyond bias", answer, text, "not measured")]

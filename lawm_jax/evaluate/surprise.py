"""Surprise: whether the prediction error separates changes that no action explains from actions.

Held-out clips are manipulated in the middle: from one step on, a block of the image changes places
with another one (teleport), the color channels change places (color), or another clip continues
(cut). The score of the manipulated step should be above that of the same step of unchanged clips.
Scores are the error one step ahead, with latents inferred from the manipulated clip, and the
information in noisy latents. The baseline is copying the last frame.

The block is the one with the most motion in a 4 x 4 grid, and its partner is a random other one.
Noisy latents are the posterior means.

Source: ours; that of violated expectations, as in Riochet et al. 2018, "IntPhys".
"""

import numpy as np

from lawm_jax.evaluate import leakage, metrics, row_names, verdicts
from lawm_jax.evaluate.tables import Column, by_metric, listed, mapping

TELEPORT, COLOR, CUT = "an object teleports", "colors change", "a cut"
GRID = 4  # blocks per side of the image
SURE = 0.99  # AUC of copying that leaves nothing to gain
LEAST = 0.01  # gain over the AUC of copying below which it is negligible
COLUMNS = (
    Column("AUC of the error", "error", 3, "higher"),
    Column("minus copying", "paired", 3, "higher", signed=True),
    Column("AUC of nats", "nats", 3, "higher"),
)


def run(source):
    """Tests the models of a `context.Source`, except labeled ones."""
    if not source.pairs:
        return None
    video, episodes = source.clips.video, source.clips.episodes
    if video is None:
        print(f"{source.name}: skipping surprise, which requires video")
        return None
    step = source.clips.s.shape[1] // 2
    frame = step * source.per_step
    ordinary, rows = scores(source, source.clips.s, step), []
    for name, change in ((TELEPORT, teleport), (COLOR, swap_colors)):
        changed = scores(source, source.encode(change(video, frame)), step)
        rows += compare(changed, ordinary, episodes, name)
    return rows + compare(scores(source, source.cut[1], step), ordinary, episodes, CUT)


def scores(source, s, step):
    """Scores step `step` of clips s [n, T, N, D]: name of a row -> {"error", "nats"}, [n] each."""
    context, truth = s[:, : step + 1], s[:, step : step + 1]
    result = {row_names.COPY: {"error": leakage.latent_l1(s[:, step - 1 : step], truth)}}
    for name, model in source.inferring.items():
        result[name] = {"error": leakage.latent_l1(leakage.predict_step(model, s, step), truth)}
        nats = source.nats(name, context)
        if nats is not None:
            result[name]["nats"] = nats[:, -1].sum(1)
    return result


def teleport(video, frame):
    """Swaps the block with the most motion with another one.

    Args:
      video: uint8 [n, F, H, W, 3].
      frame: the first frame that is changed.

    Returns:
      A changed copy.
    """
    video, random = video.copy(), np.random.default_rng(0)
    h, w = (size // GRID for size in video.shape[2:4])
    for clip in video:
        moved = np.abs(np.diff(clip.astype(np.int16), axis=0)).sum((0, 3))
        moved = moved[: h * GRID, : w * GRID].reshape(GRID, h, GRID, w).sum((1, 3))
        first = moved.argmax()
        other = (first + random.integers(1, GRID**2)) % GRID**2
        places = [np.multiply(divmod(x, GRID), (h, w)) for x in (first, other)]
        a, b = (clip[frame:, y : y + h, x : x + w] for y, x in places)
        a[:], b[:] = b.copy(), a.copy()
    return video


def swap_colors(video, frame):
    """Permutes red, green and blue from a frame on; video is as in `teleport`."""
    return np.concatenate([video[:, :frame], video[:, frame:, ..., [1, 2, 0]]], 1)


def compare(manipulated, ordinary, episodes, metric):
    """Computes how well scores separate manipulated steps from ordinary ones.

    Args:
      manipulated, ordinary: row -> {"error": [n], "nats": [n] (of noisy latents only)}, scores of
        the same clips with and without the manipulation; one row is that of copying.
      episodes: [n], bootstrap groups.
      metric: name of the manipulation.

    Returns:
      One dict per row, with `name`, `metric` and:
        error, nats: intervals of the AUC of a score, the probability that it is higher in a
          manipulated clip than in an ordinary one, over all pairs of clips; None without nats.
        paired: interval of the AUC of the error minus that of copying; None for copying.
    """
    pairs = lambda name, key: (manipulated[name][key], ordinary[name][key])  # noqa: E731
    copy, rows = pairs(row_names.COPY, "error"), []
    for name, values in manipulated.items():
        row = {"name": name, "metric": metric, "nats": None, "paired": None}
        row["error"] = metrics.auc(*pairs(name, "error"), episodes)
        if "nats" in values:
            row["nats"] = metrics.auc(*pairs(name, "nats"), episodes)
        if name != row_names.COPY:
            row["paired"] = metrics.auc(*pairs(name, "error"), episodes, minus=copy)
        rows.append(row)
    return rows


def tables(rows):
    """Returns the rows of `run` as a list of Table, one per manipulation."""
    return by_metric("surprise", COLUMNS, rows)


def judge(rows, name):
    """Judges whether the error detects manipulations better than copying the last frame does.

    Manipulations that copying nearly always detects, with an AUC of at least `SURE`, are skipped.
    """
    texts, gains = [], []
    for metric in (TELEPORT, COLOR, CUT):
        group = [row for row in map(mapping, listed(rows)) if row.get("metric") == metric]
        by_name = verdicts.by_name(group)
        keys = (name, "error"), (name, "paired"), (row_names.COPY, "error")
        error, gain, copy = (verdicts.measured(by_name.get(row), key) for row, key in keys)
        if None in (error, gain, copy):
            continue
        texts.append(f"{metric} {verdicts.short(error, 2)} (copying {copy['mean']:.2f})")
        if copy["mean"] < SURE:
            gains.append(gain)
    if not texts:
        return []
    text = f"AUC of the error at manipulated steps: {', '.join(texts)}"
    better = [verdicts.above(gain, 0) for gain in gains]
    none = bool(gains) and all(verdicts.below(gain, LEAST) for gain in gains)
    answer = verdicts.overall(better, fails=none)
    return [verdicts.Verdict("surprise", answer, text, "not measured")]

"""Prediction: how much of the next states the latent actions explain, on held-out clips.

Noisy latents are the means of their posteriors, as in leakage and transfer.

Source: Garrido et al. 2026, section 5 and Figure 4.
"""

import numpy as np

from lawm_jax.evaluate import metrics
from lawm_jax.evaluate.metrics import show
from lawm_jax.report import row_names


def compare(models, s, episodes, pixels=None):
    """Compares models on the same clips, one step ahead and open loop.

    Args:
      models: name -> Batched; the first is the one in question. "deterministic", where present, is
        the lower bound that the paired differences refer to.
      s: [n, T, N, D], states of the clips.
      episodes: [n], the groups of the bootstrap.
      pixels: `Pixels` of the clips, or None.

    Returns:
      One dict per row, the first for copying the last state: `name`; `error`, the mean absolute
      error one step ahead with the latents that the inverse model infers (interval); `relative`
      (error / copying); `paired` (interval of the difference to the deterministic model), None for
      copying and where there is no such model; `rollout`, the errors 1 to T - 1 steps after the
      first state with predictions fed back (intervals; for copying, of the first state kept); and
      with `pixels` also `pixels`, what it measures of the rollouts, and a row for the decoder
      alone, true states decoded.
    """
    one_step = {row_names.COPY: per_step(s[:, :-1], s[:, 1:]).mean(1)}
    rolled = {row_names.COPY: np.repeat(s[:, :1], s.shape[1] - 1, 1)}
    for name, model in models.items():
        z = model.infer(s)
        one_step[name] = per_step(model.predict(s[:, :-1], z), s[:, 1:]).mean(1)
        rolled[name] = model.rollout(s[:, :1], z)
    copy, rows = one_step[row_names.COPY], []
    for name, error in one_step.items():
        later = per_step(rolled[name], s[:, 1:]).T
        paired = None
        bound = one_step.get(row_names.DETERMINISTIC)
        if bound is not None and name not in (row_names.COPY, row_names.DETERMINISTIC):
            paired = metrics.interval(error - bound, episodes)
        row = {
            "name": name,
            "error": metrics.interval(error, episodes),
            "relative": float(error.mean() / copy.mean()),
            "paired": paired,
            "rollout": [metrics.interval(x, episodes) for x in later],
        }
        if pixels:
            row["pixels"] = pixels.measure(rolled[name][pixels.chosen])
        rows.append(row)
    if pixels:
        rows.append({"name": row_names.DECODER_ALONE, "pixels": pixels.measure(pixels.s[:, 1:])})
    return rows


def per_step(a, b):
    """Computes the mean absolute difference of states, [n, T, N, D] each: [n, T]."""
    return np.abs(a - b).mean((2, 3))


def table(results):
    """Writes results (source -> rows of `compare`) as text for a terminal."""
    lines = []
    for source, rows in results.items():
        lines += [f"held-out one-step IDM error, {source} (mean absolute, [95 % interval])"]
        for row in rows:
            if "error" not in row:
                continue
            text = f"  {row['name']:<18}{show(row['error'], 4)}   {row['relative']:.3f} of copying"
            if row["paired"]:
                text += f"   minus deterministic: {show(row['paired'], 4, '+')}"
            lines.append(text)
        steps = len(rows[0]["rollout"])
        ahead = sorted({1, min(4, steps), steps})
        lines += [f"open loop, {source}: error {', '.join(map(str, ahead))} steps after the first"]
        for row in rows:
            text = f"  {row['name']:<18}"
            if "rollout" in row:
                text += "  ".join(f"{row['rollout'][k - 1]['mean']:.4f}" for k in ahead)
            if row.get("pixels"):
                pixels = {name: f"{x['mean']:.3g}" for name, x in row["pixels"].items()}
                text += "   " + ", ".join(f"{name} {x}" for name, x in pixels.items())
            lines.append(text)
    return "\n".join(lines)

"""Control: whether real actions, translated by a controller, lead the model as inferred latents do.

Source: Garrido et al. 2026, section 5 and Tables S1 and S2.
"""

import jax
import numpy as np

from lawm_jax import world_model
from lawm_jax.evaluate import batched, metrics
from lawm_jax.evaluate.metrics import show
from lawm_jax.report import row_names


def compare(models, s, actions, episodes, pixels=None, batch=16):
    """Compares open-loop rollouts from the clips' first state, led in different ways.

    A controller sees the states that the model predicts, never the true later ones.

    Args:
      models: name -> (model, params), such as "state" and "actions" for one model with one of its
        controllers each, and "labelled". The latents of the first are inferred, unless labelled,
        and its controller is also asked for no action.
      s: float32 [n, T, N, D], states of the clips.
      actions: float32 [n, T-1, U], the real actions between them.
      episodes: [n], the groups of the bootstrap.
      pixels: `Pixels` of the clips, or None.
      batch: clips at a time.

    Returns:
      One dict per row: `name`; `error`, the mean absolute error over all steps, and `rollout`, that
      of each (intervals); `paired`, the error less that of inferred latents (interval; None for
      these and where there are none); and with `pixels` also `pixels`, what it measures.

    Raises:
      ValueError: there is not one action between two states, or a model has no controller.
    """
    if actions is None or actions.shape[:2] != (len(s), s.shape[1] - 1):
        got = None if actions is None else actions.shape
        raise ValueError(f"actions: expected [{len(s)}, {s.shape[1] - 1}, U], got {got}")
    rolled = {row_names.COPY: np.repeat(s[:, :1], s.shape[1] - 1, 1)}
    first, (model, params) = next(iter(models.items()))
    if not model.latent.labelled:
        inferring = batched.batched(model, params, batch)
        rolled[row_names.INFERRED] = inferring.rollout(s[:, :1], inferring.infer(s))
    for name, one in models.items():
        rolled[name] = driven(*one, s[:, 0], actions, batch)
    rolled[f"{first}, {row_names.NO_ACTION}"] = driven(
        model, params, s[:, 0], np.zeros_like(actions), batch
    )
    errors, rows = {k: np.abs(x - s[:, 1:]).mean((2, 3)) for k, x in rolled.items()}, []
    inferred = errors.get(row_names.INFERRED)
    for name, error in errors.items():
        paired = None
        if inferred is not None and name != row_names.INFERRED:
            paired = metrics.interval((error - inferred).mean(1), episodes)
        row = {"name": name, "error": metrics.interval(error.mean(1), episodes), "paired": paired}
        row["rollout"] = [metrics.interval(x, episodes) for x in error.T]
        if pixels:
            row["pixels"] = pixels.measure(rolled[name][pixels.chosen])
        rows.append(row)
    return rows


def driven(model, params, s, actions, batch=16):
    """Rolls out from one state by real actions: [n, N, D] and [n, P, U] -> [n, P, N, D]."""

    @jax.jit
    def run(params, s, actions):
        z = np.zeros((len(s), 0, model.latent.dim), np.float32)
        cache = world_model.prefill(model, params, s[:, None], z)
        return world_model.rollout_actions(model, params, cache, actions)

    return batched.in_batches(run, params, batch)(s, actions)


def table(results):
    """Writes results (source -> rows of `compare`) for a terminal."""
    lines = []
    for source, rows in results.items():
        steps = len(rows[0]["rollout"])
        ahead = sorted({1, min(4, steps), steps})
        title = f"led by real actions, open loop, {source}: mean absolute error [95 % interval]"
        lines.append(f"{title}, {', '.join(map(str, ahead))} steps after the first")
        for row in rows:
            text = f"  {row['name']:<24}{show(row['error'], 4)}   "
            text += "  ".join(f"{row['rollout'][k - 1]['mean']:.4f}" for k in ahead)
            if row["paired"]:
                text += f"   minus inferred: {show(row['paired'], 4, '+')}"
            if row.get("pixels"):
                pixels = {name: f"{x['mean']:.3g}" for name, x in row["pixels"].items()}
                text += "   " + ", ".join(f"{name} {x}" for name, x in pixels.items())
            lines.append(text)
    return "\n".join(lines)

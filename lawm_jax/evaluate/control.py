"""Control: whether real actions, translated by a controller, lead the model as inferred latents do.

Source: Garrido et al. 2026, section 5 and Tables S1 and S2.
"""

import numpy as np

from lawm_jax.evaluate import metrics, prediction, row_names
from lawm_jax.evaluate.tables import Column, Table

COLUMNS = (
    Column("error", "error", 4, "lower"),
    Column("minus inferred latents", "paired", 4, "lower", signed=True),
)


def run(source):
    """Compares controllers, and models of labelled actions, of a `context.Source`."""
    models = source.controllers | source.labelled
    if source.main not in models and not source.controllers:
        return None
    by_frame = source.by_frame(models)
    if by_frame is None:
        print(f"{source.name}: control needs states of one frame each")
        return None
    models, clips, pixels = by_frame
    return compare(models, clips.s, clips.actions, clips.episodes, pixels)


def tables(rows):
    """Lays out rows of `compare`: a list of Table."""
    return [Table("led by real actions, open loop", COLUMNS, rows), *prediction.rollouts(rows)]


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
    from lawm_jax.evaluate import batched  # JAX, which who reads results has no need of

    rolled = {row_names.COPY: np.repeat(s[:, :1], s.shape[1] - 1, 1)}
    first, (model, params) = next(iter(models.items()))
    if not model.latent.labelled:
        inferring = batched.batched(model, params, batch)
        rolled[row_names.INFERRED] = inferring.rollout(s[:, :1], inferring.infer(s))
    for name, one in models.items():
        rolled[name] = batched.driven(*one, s[:, 0], actions, batch)
    rolled[f"{first}, {row_names.NO_ACTION}"] = batched.driven(
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

"""Control: how rollouts from real actions, through a controller, compare with inferred latents.

Source: Garrido et al. 2026, section 5 and Tables S1 and S2.
"""

import numpy as np

from lawm_jax.evaluate import comparisons, metrics, prediction, row_names, verdicts
from lawm_jax.evaluate.tables import Column, Table

COLUMNS = (
    Column("error", "error", 4, "lower"),
    Column("minus inferred latents", "paired", 4, "lower", signed=True),
    Column("minus no action", "no_action", 4, "lower", signed=True),
)
# Kinds, and names of their rows, see `train.models.controller_kind`.
CONTROLLERS = "state", "state, by prediction", "actions", "actions, by prediction"


def run(source):
    """Compares the controllers and the labeled models of a `context.Source`."""
    models = source.controllers | source.labelled
    if source.main not in models and not source.controllers:
        return None
    by_frame = source.by_frame(models)
    if by_frame is None:
        print(f"{source.name}: skipping control, which requires states of single frames")
        return None
    models, clips, pixels = by_frame
    return compare(models, clips.s, clips.actions, clips.episodes, pixels)


def tables(rows):
    """Returns the rows of `compare` as a list of Table."""
    return [
        Table("open-loop rollouts from real actions", COLUMNS, rows),
        *prediction.rollouts(rows),
    ]


def judge(rows, name):
    """Judges if the best controller beats no action, and loses less than half to inferred latents.

    Both are judged by paired differences, clip by clip. Half refers to the mean difference between
    no action and inferred latents or, for a labeled model, which infers none, to the error of no
    action.
    """
    rows = {key: row for key, row in verdicts.by_name(rows).items() if _error(row)}
    driven = [rows[key] for key in (*CONTROLLERS, name) if key in rows]
    idle = next((x for key, x in rows.items() if key.endswith(row_names.NO_ACTION)), None)
    if not driven or idle is None:
        return []
    best, idle = min(driven, key=lambda row: _error(row)["mean"]), _error(idle)
    inferred = _error(rows.get(row_names.INFERRED))
    gain, loss = (verdicts.measured(best, key) for key in ("no_action", "paired"))
    text = f"error with real actions: {verdicts.short(_error(best))}; no action {idle['mean']:.3f}"
    text += f" ({verdicts.short(gain, sign='+')})" if gain else ""
    middle = idle["mean"] / 2
    if inferred:
        text += f", inferred latents {inferred['mean']:.3f}"
        text += f" ({verdicts.short(loss, sign='+')})" if loss else ""
        middle += inferred["mean"] / 2
    # Results of older versions hold no paired differences.
    answer = verdicts.lower(gain) if gain else verdicts.lower(_error(best), idle)
    if inferred and loss:
        good = verdicts.below(loss, middle - inferred["mean"])
    else:
        good = verdicts.below(_error(best), middle)
    if answer == verdicts.HOLDS and inferred and inferred["mean"] >= middle:
        answer = verdicts.UNDECIDED  # inferred latents gain nothing
    elif answer == verdicts.HOLDS and not good:
        answer = verdicts.PARTLY
    paper = "LPIPS 0.10 with inferred latents, 0.11 with a controller (noisy, Table S1)"
    return [verdicts.Verdict("control", answer, text, paper)]


def _error(row):
    return verdicts.measured(row, "error")


def compare(models, s, actions, episodes, pixels=None, batch=16):
    """Compares open-loop rollouts of clips with real actions and with inferred latents.

    Rollouts start from the first state. A controller sees the predicted states, never the true
    later ones.

    Args:
      models: name -> (model, params), such as "state" and "actions" (one model with each of its
        controllers) and "labelled". The first model also provides the inferred latents, unless it
        is labeled, and a rollout with no action (zeros).
      s: float32 [n, T, N, D], states of the clips.
      actions: float32 [n, T-1, U], the real actions between states.
      episodes: [n], bootstrap groups.
      pixels: `Pixels` of the clips, or None.
      batch: clips per batch.

    Returns:
      One dict per row, with `name` and:
        error: interval of the mean absolute error over all steps.
        rollout: intervals of the error at each step.
        paired: interval of the error minus the error with inferred latents; None for that row and
          if it is absent.
        no_action: interval of the error minus the error with no action; None for that row.
        pixels: metrics of the decoded rollout, with `pixels`.

    Raises:
      ValueError: the number of actions is not T - 1, or a model has no controller.
    """
    rolled = roll_out(models, s, actions, batch)
    errors, rows = {k: np.abs(x - s[:, 1:]).mean((2, 3)) for k, x in rolled.items()}, []
    inferred = errors.get(row_names.INFERRED)
    idle = next(error for name, error in errors.items() if name.endswith(row_names.NO_ACTION))
    for name, error in errors.items():
        paired = {"paired": None, "test": None}
        if inferred is not None and name != row_names.INFERRED:
            paired = comparisons.paired((error - inferred).mean(1), episodes)
        row = {"name": name, "error": metrics.interval(error.mean(1), episodes)} | paired
        gain = None if error is idle else comparisons.paired((error - idle).mean(1), episodes)
        row["no_action"] = gain and gain["paired"]
        row["rollout"] = [metrics.interval(x, episodes) for x in error.T]
        if pixels:
            row["pixels"] = pixels.measure(rolled[name][pixels.chosen])
        rows.append(row)
    return rows


def roll_out(models, s, actions, batch=16):
    """Computes the rollouts that `compare` compares, name -> states [n, T-1, N, D].

    Arguments and errors are as in `compare`.
    """
    if actions is None or actions.shape[:2] != (len(s), s.shape[1] - 1):
        got = None if actions is None else actions.shape
        raise ValueError(f"actions: expected [{len(s)}, {s.shape[1] - 1}, U], got {got}")
    from lawm_jax.evaluate import batched  # imports JAX, which reading results does not need

    rolled = {row_names.COPY: np.repeat(s[:, :1], s.shape[1] - 1, 1)}
    first, (model, params) = next(iter(models.items()))
    if not model.latent.labelled:
        inferring = batched.batched(model, params, batch)
        rolled[row_names.INFERRED] = inferring.rollout(s[:, :1], inferring.infer(s))
    for name, loaded in models.items():
        rolled[name] = batched.driven(*loaded, s[:, 0], actions, batch)
    rolled[f"{first}, {row_names.NO_ACTION}"] = batched.driven(
        model, params, s[:, 0], np.zeros_like(actions), batch
    )
    return rolled

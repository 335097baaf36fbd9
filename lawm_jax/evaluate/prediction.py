"""Prediction: how well latent actions explain the next states of held-out clips.

Noisy latents are the posterior means, as in leakage and transfer.

Source: Garrido et al. 2026, section 5 and Figure 4.
"""

import numpy as np

from lawm_jax.data import words
from lawm_jax.evaluate import comparisons, metrics, row_names, verdicts
from lawm_jax.evaluate.tables import Column, Table, listed, mapping

COLUMNS = (
    Column("error", "error", 4, "lower"),
    Column("relative to copying", "relative", 3, "lower"),
    Column("minus deterministic", "paired", 4, "lower", signed=True),
)
PIXELS = {"psnr": Column("PSNR, dB", "pixels.psnr", 2, "higher")}
PIXELS["ssim"] = Column("SSIM", "pixels.ssim", 3, "higher")


def run(source):
    """Compares the models of a `context.Source`, also in pixels if it has a decoder."""
    return compare(source.models, source.clips.s, source.clips.episodes, source.pixels)


def tables(rows):
    """Returns the rows of `compare` as a list of Table."""
    return [Table("one step ahead", COLUMNS, rows), *rollouts(rows)]


def rollouts(rows):
    """Returns the `rollout` and `pixels` values of rows as a list of two Tables."""
    P = max((len(listed(row.get("rollout"))) for row in rows), default=0)
    steps = sorted({k for k in (1, 2, 4, 8, 16, 32) if k < P} | {P} - {0})
    ahead = tuple(
        Column(f"{words.counted(k, 'step')} ahead", f"rollout.{k - 1}", 3, "lower") for k in steps
    )
    names = dict.fromkeys(name for row in rows for name in mapping(row.get("pixels")))
    frames = tuple(
        PIXELS.get(name) or Column(f"{name} distance", f"pixels.{name}", 3, "lower")
        for name in names
    )
    return [
        Table("several steps ahead, open loop", ahead, rows),
        Table("decoded rollouts", frames, rows),
    ]


def judge(rows, name):
    """Judges whether latents explain more than copying and, if compared, than no latents."""
    rows = verdicts.by_name(rows)
    row = rows.get(name)
    error, gain = verdicts.measured(row, "relative"), verdicts.measured(row, "paired")
    if error is None:
        return []
    answer = verdicts.lower(error, 1)
    if answer == verdicts.HOLDS and gain:
        answer = verdicts.lower(gain)
    text = f"one-step error relative to copying: {verdicts.short(error)}"
    others = {k: verdicts.measured(x, "relative") for k, x in rows.items()}
    others = [
        f"{k} {x['mean']:.3f}" for k, x in others.items() if x and k not in (name, row_names.COPY)
    ]
    text += f" ({', '.join(others)})" if others else ""
    paper = "falls with capacity, toward unconstrained latents (Figure 4)"
    return [verdicts.Verdict("prediction", answer, text, paper)]


def compare(models, s, episodes, pixels=None):
    """Compares models on the same clips, one step ahead and in open-loop rollouts.

    Args:
      models: name -> Batched; the first is the main model. Paired differences are relative to the
        model named "deterministic", the paper's lower bound, if there is one.
      s: [n, T, N, D], states of the clips.
      episodes: [n], bootstrap groups.
      pixels: `Pixels` of the clips, or None.

    Returns:
      One dict per row, starting with copying the last frame (the baseline), with `name` and:
        error: interval of the mean absolute error one step ahead, with inferred latents.
        relative: interval of error / error of copying the last frame.
        paired: interval of the difference from the deterministic model's error; None for the
          baseline and if there is no such model.
        rollout: intervals of the error 1 to T - 1 steps after the first state, with predictions fed
          back; the baseline repeats the first state.
        pixels: with `pixels`, metrics of the decoded rollout as returned by `Pixels.measure`.
      With `pixels`, the last row holds the metrics of decoding the true states.
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
        paired = {"paired": None, "test": None}
        bound = one_step.get(row_names.DETERMINISTIC)
        if bound is not None and name not in (row_names.COPY, row_names.DETERMINISTIC):
            paired = comparisons.paired(error - bound, episodes)
        row = {
            "name": name,
            "error": metrics.interval(error, episodes),
            "relative": metrics.ratio(error, copy, episodes),
            "rollout": [metrics.interval(x, episodes) for x in later],
        } | paired
        if pixels:
            row["pixels"] = pixels.measure(rolled[name][pixels.chosen])
        rows.append(row)
    if pixels:
        rows.append({"name": row_names.DECODER_ALONE, "pixels": pixels.measure(pixels.s[:, 1:])})
    return rows


def per_step(a, b):
    """Computes the mean absolute difference of states, [n, T, N, D] each -> [n, T]."""
    return np.abs(a - b).mean((2, 3))

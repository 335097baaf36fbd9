"""Cycle: how much information latent actions keep when transferred to another clip and back.

The latents of clip A are applied to clip B, and the latents inferred from that prediction are
applied to A again. Part of the evaluation `transfer`.

Source: Garrido et al. 2026, section 5 and Table 2. The control with shuffled latents is ours.
"""

import numpy as np

from lawm_jax.evaluate import metrics, verdicts
from lawm_jax.evaluate.leakage import latent_l1, partners
from lawm_jax.evaluate.tables import Column, by_metric, string

# No effect is reported unless the lower bound of (shuffled - original) is above this fraction of
# the mean original error.
NOTHING = 0.01
COLUMNS = (
    Column("original", "original", 3, "lower"),
    Column("after cycle", "cycle", 3, "lower"),
    Column("shuffled", "shuffled"),
    Column("ratio", "ratio", 2, "lower"),
    Column("lost", "lost", 2, "lower"),
)


def measure(models, s, episodes, context=1, distance=None, truth=None):
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
    if np.shape(episodes) != (len(s),):
        raise ValueError(f"episodes: expected {len(s)} names, got {np.shape(episodes)}")
    metric = "latent L1" if distance is None else getattr(distance, "__name__", "distance")
    arguments = episodes, context, distance, truth
    return [
        {"name": name, "metric": metric} | _row(*errors(model, s, *arguments), episodes)
        for name, model in models.items()
    ]


def errors(model, s, episodes, context=1, distance=None, truth=None):
    """Computes the errors of `measure`: of A with its own, transferred and third-clip latents.

    Arguments are as in `measure`, for one model.

    Returns:
      Three arrays [n].
    """
    b, third = partners(episodes, 2)
    distance, truth = distance or latent_l1, s[:, context:] if truth is None else truth
    z, start = model.infer(s), s[:, :context]
    latents = z, transferred(model, start[b], z, z[b]), z[third]
    predicted = [_follow(model, start, z, x) for x in latents]
    return [np.asarray(distance(x, truth)) for x in predicted]


def transferred(model, start, z, before=None):
    """Infers latents again from their rollout in other clips.

    Args:
      model: Batched.
      start: [n, C, N, D], the first C states of the other clips.
      z: [n, T-1, A], latents to transfer.
      before: [n, T-1, A], the other clips' latents, used within the context; unused if C is 1.

    Returns:
      [n, T-1, A].
    """
    ahead = _follow(model, start, z if before is None else before, z)
    return model.infer(np.concatenate([start, ahead], axis=1))


def _follow(model, start, before, latents):
    """Rolls out latents from a context `start` [n, C, N, D].

    The first C - 1 latents are those of `before`, the rest those of `latents`, both [n, T-1, A].
    """
    C = start.shape[1]
    return model.rollout(start, np.concatenate([before[:, : C - 1], latents[:, C - 1 :]], axis=1))


def _row(original, transferred, shuffled, episodes):
    """Builds one model's row of `measure`, without `name` and `metric`.

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
        "ratio": metrics.ratio_or_none(transferred, original, episodes),
    }
    if verdicts.above(gain, NOTHING * row["original"]["mean"]):
        lost = metrics.ratio(transferred - original, shuffled - original, episodes)
        return row | {"lost": lost, "note": None}
    change = 100 * gain["mean"] / row["original"]["mean"] if original.any() else 0.0
    note = f"no clear effect of the latents: shuffling them changes the error by {change:.1f}%"
    return row | {"lost": None, "note": note}


def tables(rows):
    """Returns the rows of `measure` as a list of Table, one per metric."""
    return by_metric("transfer to another clip and back", COLUMNS, rows)


def judge(row):
    """Judges whether most information survives the cycle.

    Transfer holds if the interval of `lost` is below 0.5, and fails if it is above, or if shuffling
    changes the mean error by less than `NOTHING`. Anything else is undecided.
    """
    paper = "the error grows by 3 to 34% in the cycle (Table 2)"
    lost = verdicts.measured(row, "lost")
    if lost is not None:
        text = f"information lost in the transfer cycle: {verdicts.short(lost, 2)}"
        return verdicts.Verdict("transfer", verdicts.lower(lost, 0.5), text, paper)
    errors = [verdicts.measured(row, key) for key in ("original", "shuffled")]
    defined = all(errors) and errors[0]["mean"] > 0
    effect = errors[1]["mean"] / errors[0]["mean"] - 1 if defined else 0
    answer = verdicts.FAILS if effect < NOTHING else verdicts.UNDECIDED
    return verdicts.Verdict("transfer", answer, string(row.get("note")) or "no effect", paper)

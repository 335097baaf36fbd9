"""Ablation: how much of the gain over copying is due to the latent action of the current step.

Each control replaces the inferred latents z of a clip with those of another episode's clip, those
of the previous step of the same clip, zero, or random latents. A forward model that ignores z, or
needs no more than some z of its training distribution, is as good with a control.

For discrete latents, "zero" is the code nearest to zero, and a random latent is a code, drawn as
often as it is inferred. For all other kinds, also sparse ones, "zero" is the zero vector, and a
random latent is Gaussian, with the mean and deviation of each dimension over all clips. Noisy
latents are the posterior means.

Source: ours.
"""

import numpy as np

from lawm_jax.evaluate import comparisons, leakage, metrics, prediction, row_names, verdicts
from lawm_jax.evaluate.tables import Column, Table, parts, string

COLUMNS = (
    Column("error", "error", 4, "lower"),
    Column("relative to copying", "relative", 3, "lower"),
    Column("minus inferred", "paired", 4, "higher", signed=True),
    Column("share of the gain from z", "share", 2, "higher"),
)
LEAST = 0.05  # share of the gain below which the latent counts as not needed
OTHER, EARLIER = "another episode's", "previous step's"
ZERO, RANDOM = "zero", "random"


def run(source):
    """Ablates the latents of the models of a `context.Source`."""
    if not source.pairs or source.clips.s.shape[1] < 3:
        return None
    s, episodes = source.clips.s, source.clips.episodes
    rows = []
    for name in source.latents:
        z = source.z(name)
        model, params = source.loaded[name]
        zero = model.latent.quantize(params.get("latent"), np.zeros((1, 1, z.shape[2]), "f"))
        replaced = controls(z, episodes, np.asarray(zero), codes=model.latent.resets)
        rows.append(compare(source.models[name].predict, s, z, replaced, episodes) | {"name": name})
    error = prediction.per_step(s[:, :-1], s[:, 1:]).mean(1)
    return [{"name": row_names.COPY, "error": metrics.interval(error, episodes)}, *rows]


def controls(z, episodes, zero, codes=False):
    """Makes latents that do not describe what happens in a clip.

    Args:
      z: [n, T-1, A], inferred latents; T - 1 is at least 2.
      episodes: [n] str, from at least 2 episodes.
      zero: [1, 1, A], the latent that stands for zero.
      codes: whether z are codes, so that a random latent is a code, too.

    Returns:
      name -> [n, T-1, A]. The first step of a clip uses the clip's last latent.
    """
    flat, random = z.reshape(-1, z.shape[2]), np.random.default_rng(0)
    if codes:
        drawn = flat[random.integers(0, len(flat), z.shape[:2])]
    else:
        drawn = flat.mean(0) + flat.std(0) * random.standard_normal(z.shape, np.float32)
    return {
        OTHER: z[leakage.partners(episodes, 1)[0]],
        EARLIER: np.roll(z, 1, axis=1),
        ZERO: np.broadcast_to(zero, z.shape).astype(z.dtype),
        RANDOM: drawn,
    }


def compare(predict, s, z, controls, episodes):
    """Compares the error one step ahead with inferred latents and with those of controls.

    Args:
      predict: s [n, T-1, N, D], z [n, T-1, A] -> [n, T-1, N, D], the next states.
      s: [n, T, N, D], states of the clips.
      z: [n, T-1, A], inferred latents.
      controls: name -> [n, T-1, A].
      episodes: [n], bootstrap groups.

    Returns:
      dict of
        error, relative: intervals of the error with inferred latents, and of error / error of
          copying the last frame.
        gain: interval of the error of copying minus the error.
        controls: dicts of `name`, `error`, `relative` and `paired`, the interval of the control's
          error minus that with inferred latents.
        best: name of the control with the lowest mean error.
        share: interval of (error of the best control - error) / gain: 0 if that control is as good
          as the inferred latents, 1 if it is only as good as copying, above 1 if it is worse. None
          if the interval of the gain does not lie above 0.
    """
    errors = {
        name: prediction.per_step(predict(s[:, :-1], x), s[:, 1:]).mean(1)
        for name, x in ({"": z} | controls).items()
    }
    copy, error = prediction.per_step(s[:, :-1], s[:, 1:]).mean(1), errors.pop("")
    best = min(errors, key=lambda name: errors[name].mean())
    gain = metrics.interval(copy - error, episodes)
    row = _errors(error, copy, episodes) | {"gain": gain, "best": best}
    row["share"] = None
    if verdicts.above(gain, 0):
        row["share"] = metrics.ratio(errors[best] - error, copy - error, episodes)
    row["controls"] = [
        {"name": name} | _errors(x, copy, episodes) | comparisons.paired(x - error, episodes)
        for name, x in errors.items()
    ]
    return row


def _errors(error, copy, episodes):
    relative = metrics.ratio(error, copy, episodes)
    return {"error": metrics.interval(error, episodes), "relative": relative}


def tables(rows):
    """Returns the rows of `run` as a list of Table, with a row per control."""
    flat = [x for row in rows for x in (row, *parts([row], "controls"))]
    return [Table("one step ahead, with replaced latents", COLUMNS, flat)]


def judge(rows, name):
    """Judges whether at least half of the gain over copying needs the step's own latent."""
    row = verdicts.by_name(rows).get(name)
    gain, share = verdicts.measured(row, "gain"), verdicts.measured(row, "share")
    if gain is None:
        return []
    if share is None:
        text = f"no gain over copying to explain: {verdicts.short(gain, 4, '+')}"
        return [verdicts.Verdict("own latents", verdicts.UNDECIDED, text, "not measured")]
    if verdicts.above(share, 0.5):
        answer = verdicts.HOLDS
    elif verdicts.above(share, LEAST):
        answer = verdicts.PARTLY
    else:
        answer = verdicts.FAILS if verdicts.below(share, 0.5) else verdicts.UNDECIDED
    text = "share of the gain over copying due to the step's own latent: "
    text += f"{verdicts.short(share, 2)}; best control: {string(row.get('best'))}"
    return [verdicts.Verdict("own latents", answer, text, "not measured")]

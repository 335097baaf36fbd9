"""Leakage: whether latent actions encode the next frame instead of an action, tested at scene cuts.

No action explains a scene cut, so a model whose error stays low there has read the next frame from
the latent. The paper reports the error with a cut divided by the error without. A cut is also a
larger change than an ordinary step: the error of copying the last frame about doubles. Each row
therefore also gives the error at the cut relative to copying, and a control that copies the future,
with a ratio of 1, is added. Noisy latents are the posterior means.

Source: Garrido et al. 2026, section 5 and Table 1; the controls are ours.
"""

import numpy as np

from lawm_jax.evaluate import metrics, row_names, verdicts
from lawm_jax.evaluate.tables import Column, by_metric, real, string

# A leak is only detectable if the interval of the ratio of copying lies above this.
BIGGER = 1.1
LEAKING = 0.5  # models with a higher `leak` are flagged
COLUMNS = (
    Column("with cut", "with"),
    Column("without", "without"),
    Column("ratio", "ratio", 2),
    Column("relative to copying", "relative"),
    Column("leak", "leak", 2, "lower", signed=True),
)


def run(source):
    """Measures the models of a `context.Source`, also in pixels (as in Table 1) with a decoder."""
    if not source.pairs:
        return None
    s, episodes, first = source.clips.s, source.clips.episodes, source.clips.s.shape[1] // 2
    video, s_cut = source.cut
    rows = measure(source.inferring, s_cut, s, episodes, first)
    if source.pixels:
        chosen, k = source.pixels.chosen, source.per_step
        true = [x[chosen, first * k : (first + 1) * k] for x in (video, source.clips.video)]
        inputs = s_cut[chosen], s[chosen], episodes[chosen]
        rows += measure(source.inferring, *inputs, first, source.to_frames, truth=true)
    return rows


def tables(rows):
    """Returns the rows of `measure` as a list of Table, one per metric."""
    return by_metric("scene cuts", COLUMNS, rows)


def judge(rows, name):
    """Judges whether the error at a cut is that of copying the last frame or the future."""
    row = verdicts.by_name(rows).get(name)
    error = verdicts.measured(row, "relative")
    if error is None:
        return []
    paper = "the error at least doubles at a cut (Table 1)"
    flag, leak = string(row.get("flag")), row.get("leak")
    if not real(leak):
        verdict = verdicts.UNDECIDED, flag or "the error without a cut is zero"
    else:
        text = f"error at a cut: {verdicts.short(error)} relative to copying"
        if ratio := verdicts.measured(row, "ratio"):
            text += f", {ratio['mean']:.1f}x the uncut error"
        text += f"; leak {leak:+.2f} (0: like copying, 1: copies the future)"
        verdict = verdicts.FAILS if leak > LEAKING else verdicts.HOLDS, text
    return [verdicts.Verdict("no leakage", *verdict, paper)]


def partners(episodes, count):
    """Pairs each clip with clips from `count` different other episodes.

    The episodes form a ring in random order, and each is paired with those that follow it, so every
    episode is used equally often.

    Args:
      episodes: [n] str, the episode of each clip; the pairs depend on nothing else.
      count: partners per clip.

    Returns:
      [count, n] int, indices of clips.

    Raises:
      ValueError: there are fewer than count + 1 episodes.
    """
    names, index = np.unique(episodes, return_inverse=True)
    E = len(names)
    if E <= count:
        raise ValueError(f"episodes: expected at least {count + 1} different episodes, got {E}")
    random = np.random.default_rng(0)
    ring = [random.permutation(np.flatnonzero(index == e)) for e in random.permutation(E)]
    pairs = np.empty((count, len(index)), int)
    for place, clips in enumerate(ring):
        for k in range(count):
            pairs[k, clips] = np.resize(ring[(place + k + 1) % E], len(clips))
    return pairs


def stitch(video, episodes, tubelet=1):
    """Makes a scene cut in each clip: replaces its second half with that of another episode's clip.

    A clip of F frames has T = F / tubelet time steps. The cut lies before step T // 2 of both, so
    that no step mixes frames of two clips.

    Args:
      video: uint8 [n, F, H, W, 3]; or states [n, T, N, D], with tubelet=1.
      episodes: [n] str, the episode of each clip. They alone determine the pairs, see `partners`.
      tubelet: number of frames per time step.

    Returns:
      stitched: shape and dtype of `video`. Clip i has the steps before T // 2 of video[i] and those
        from T // 2 on of video[other[i]]; T // 2 is the argument `first` of `measure`.
      other: [n] int, the clip that follows the cut.

    Raises:
      ValueError: F is not a multiple of tubelet or is less than 2 * tubelet, or `episodes` does not
        have n names or has only one distinct name.
    """
    steps, rest = divmod(video.shape[1], tubelet)
    if rest or steps < 2:
        raise ValueError(
            f"video: expected a number of frames that is a multiple of tubelet={tubelet} and at "
            f"least {2 * tubelet}, to cut between two time steps, got {video.shape[1]} frames"
        )
    episodes = _two_or_more(episodes, len(video))
    other = partners(episodes, 1)[0]
    cut = steps // 2 * tubelet
    return np.concatenate([video[:, :cut], video[other, cut:]], axis=1), other


def measure(models, s_cut, s, episodes, first, distance=None, main=None, truth=None):
    """Compares the error at the first step after a scene cut with the error without a cut.

    The control that copies the future predicts the true next state plus seeded Laplace noise. The
    scale of the noise is the mean absolute error of the real model without a cut (the mean absolute
    value of Laplace noise is its scale).

    Args:
      models: name -> Batched, all with the encoder that computed the states.
      s_cut: float32 [n, T, N, D], states of the stitched clips.
      s: float32 [n, T, N, D], states of the original clips.
      episodes: [n] str, bootstrap groups: the episode of each clip's first half.
      first: index of the first step after the cut.
      distance: (predicted s, true s), each [n, 1, N, D] -> [n], error of each clip; its __name__
        names the metric. None: the mean absolute difference.
      main: names of the models that get a copies-the-future control; None: the first model.
      truth: targets of `distance` (such as frames) for the step after the cut and for the same step
        without a cut; None: the true states.

    Returns:
      One dict per row, starting with copying the last frame, with `name`, `metric` and:
        with, without: intervals of the error with and without a cut.
        ratio: interval of with / without.
        relative: interval of the error at the cut / error of copying at the cut; low values suggest
          a leak.
        leak: (ratio of copying - ratio) / (ratio of copying - 1): 0 for copying, 1 for copying the
          future, negative if latents help less at a cut than elsewhere, None if undetermined.
        flag: a warning or None.
      A ratio is None if its denominator is zero for every clip.

    Raises:
      ValueError: arguments do not match each other, or there is only one episode.
    """
    episodes = _two_or_more(episodes, len(s))
    metric = "latent L1" if distance is None else getattr(distance, "__name__", "distance")
    pairs = errors(models, s_cut, s, first, distance, main, truth)
    copy = pairs[row_names.COPY]
    copied, rows = metrics.ratio_or_none(*copy, episodes), []
    for name, (cut, without) in pairs.items():
        row = {"name": name, "metric": metric, "with": metrics.interval(cut, episodes)}
        row["without"] = metrics.interval(without, episodes)
        row["ratio"] = metrics.ratio_or_none(cut, without, episodes)
        row["relative"] = metrics.ratio_or_none(cut, copy[0], episodes)
        rows.append(row | _judge(row["ratio"], copied))
    return rows


def errors(models, s_cut, s, first, distance=None, main=None, truth=None):
    """Computes the errors of each clip at the first step after a cut and at the same step without.

    Arguments and errors are as in `measure`.

    Returns:
      name of a row -> (with a cut, without), [n] each.
    """
    distance = distance or latent_l1
    if s_cut.shape != s.shape:
        raise ValueError(f"s_cut: expected the shape of s, {s.shape}, got {s_cut.shape}")
    if not 0 < first < s.shape[1]:
        raise ValueError(f"first: expected 1 to {s.shape[1] - 1}, got {first}")
    real = s_cut[:, first : first + 1], s[:, first : first + 1]
    truth = real if truth is None else truth
    predicted = {row_names.COPY: (s_cut[:, first - 1 : first], s[:, first - 1 : first])}
    for name, model in models.items():
        predicted[name] = tuple(predict_step(model, x, first) for x in (s_cut, s))
    for name in list(models)[:1] if main is None else main:
        random, scale = np.random.default_rng(0), latent_l1(predicted[name][1], real[1]).mean()
        noisy = tuple(x + np.float32(scale) * _laplace(random, x.shape) for x in real)
        predicted[f"{row_names.COPIES_FUTURE} (error of {name})"] = noisy
    return {
        name: tuple(np.asarray(distance(*pair)) for pair in zip(states, truth, strict=True))
        for name, states in predicted.items()
    }


def predict_step(model, s, step):
    """Predicts a step of clips from the true past and the latents inferred up to that step.

    Args:
      model: Batched.
      s: float32 [n, T, N, D].
      step: 1 to T - 1.

    Returns:
      [n, 1, N, D].
    """
    z = model.infer(s[:, : step + 1])
    return model.predict(s[:, :step], z)[:, -1:]


def latent_l1(predicted, truth):
    """Computes the mean absolute difference of each clip, [n, ...] each -> [n]."""
    return np.abs(predicted - truth).mean(tuple(range(1, truth.ndim)))


def _laplace(random, shape):
    """Draws float32 Laplace noise of scale 1, as the difference of two exponentials."""
    draw = lambda: random.standard_exponential(shape, np.float32)  # noqa: E731
    return draw() - draw()


def _judge(ratio, copied):
    """Computes `leak` and `flag` from the ratios of a model and of copying the last frame."""
    if copied is None:
        return {"leak": None, "flag": "leakage is undetermined: nothing moves without a cut"}
    if not verdicts.above(copied, BIGGER):
        change = f"a cut changes the error of copying only by a factor of {copied['mean']:.2f}"
        return {"leak": None, "flag": f"leakage is undetermined: {change}"}
    if ratio is None:
        return {"leak": None, "flag": None}  # no error without a cut: the ratio is undefined
    leak = (copied["mean"] - ratio["mean"]) / (copied["mean"] - 1)
    return {"leak": leak, "flag": row_names.COPIES_FUTURE if leak > LEAKING else None}


def _two_or_more(episodes, n):
    episodes = np.asarray(episodes)
    if episodes.shape != (n,) or len(np.unique(episodes)) < 2:
        raise ValueError(
            f"episodes: expected the episode of each of {n} clips, at least 2 different ones, got "
            f"shape {episodes.shape} with {len(np.unique(episodes))} different"
        )
    return episodes

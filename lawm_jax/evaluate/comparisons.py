"""Statistics of comparisons: tests of paired differences, over seeds too, and corrections."""

import numpy as np
from scipy import stats

from lawm_jax.evaluate import metrics


def paired(difference, groups):
    """Tests a paired difference of two models or controls on the same clips.

    Args:
      difference: [n], the difference for each clip.
      groups: [n] labels, such as the episode of each clip.

    Returns:
      paired: the interval of the mean, see `metrics.interval`.
      test: None with fewer than 2 groups or if all groups differ equally, else a dict of `p`, the
        two-sided p-value of Student's t-test of the groups' means, and `d`, the effect size: their
        mean divided by their standard deviation (Cohen's d of paired differences).
    """
    difference = np.asarray(difference, np.float64)
    _, index = np.unique(groups, return_inverse=True)
    means = np.bincount(index, difference) / np.bincount(index)
    result = {"paired": metrics.interval(difference, groups), "test": None}
    deviation = means.std(ddof=1) if len(means) > 1 else 0.0
    if deviation > 0:
        d = float(means.mean() / deviation)
        p = float(2 * stats.t.sf(abs(d) * np.sqrt(len(means)), len(means) - 1))
        result["test"] = {"p": p, "d": d}
    return result


def crossed(values):
    """Computes a mean effect with a 95% interval that counts training seeds and held-out episodes.

    Seeds and episodes are two crossed random factors: every seed's model is evaluated on the same
    episodes. With the mean squares of both factors and of their interaction, the variance of the
    mean is MS(seeds) + MS(episodes) - MS(interaction), over the number of values; its degrees of
    freedom are Satterthwaite's. The variance is at least that of either factor alone.

    Args:
      values: [S, E], an effect for each of S seeds and E episodes, such as a paired difference of
        two models' errors; [S, 1] if an effect is not measured by episode.

    Returns:
      {"mean", "low", "high", "above", "below"}: the mean with its interval, and the one-sided
      p-values of the mean being above and below 0. With a single seed, the interval is over
      episodes only; bounds and p-values are None if there is a single value.

    Raises:
      ValueError: `values` is not [S, E] of finite numbers.

    Source: Satterthwaite 1946, "An approximate distribution of estimates of variance components".
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"values: expected [S, E] finite numbers, got {values.shape}")
    mean = float(values.mean())
    variance, freedom = _variance(values)
    if not freedom:
        return {"mean": mean, "low": None, "high": None, "above": None, "below": None}
    error = np.sqrt(variance)
    half = float(stats.t.ppf(0.975, freedom) * error)
    t = mean / error if error else np.copysign(np.inf, mean)
    if not mean:
        t = 0.0
    above, below = float(stats.t.sf(t, freedom)), float(stats.t.cdf(t, freedom))
    return {"mean": mean, "low": mean - half, "high": mean + half, "above": above, "below": below}


def _variance(values):
    """Returns the variance of the mean of [S, E] and its degrees of freedom, 0 for one value."""
    S, E = values.shape
    rows, columns, mean = values.mean(1), values.mean(0), values.mean()
    seeds = rows.var(ddof=1) / S if S > 1 else 0.0
    episodes = columns.var(ddof=1) / E if E > 1 else 0.0
    if S == 1 or E == 1:
        return seeds + episodes, max(S, E) - 1
    rest = np.square(values - rows[:, None] - columns + mean).sum() / ((S - 1) * (E - 1) * S * E)
    parts = seeds**2 / (S - 1) + episodes**2 / (E - 1) + rest**2 / ((S - 1) * (E - 1))
    variance = seeds + episodes - rest
    if variance <= max(seeds, episodes):
        larger = S if seeds > episodes else E
        return max(seeds, episodes), larger - 1
    return variance, variance**2 / parts

"""Statistics that the evaluations share, in numpy."""

import numpy as np


def interval(values, groups=None, level=0.95, samples=4000, seed=0):
    """Computes a mean with its bootstrap confidence interval.

    Args:
      values: [n] one number per clip; of a difference of two models on the same clips, this is
        the paired interval.
      groups: [n] hashable labels, such as the episode of each clip: whole groups are drawn, since
        clips of one episode resemble each other. None draws single values.
      level: of confidence.
      samples: bootstrap resamples.
      seed: of the resampling, so that the same values give the same interval.

    Returns:
      {"mean", "low", "high"}, floats; low and high are None where there is but one group.

    Raises:
      ValueError: no values, or not one group per value.

    Source: percentile bootstrap, Efron & Tibshirani 1993, chapter 13; over clusters, Davison &
    Hinkley 1997, section 3.8.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values: expected [n] with n at least 1, got {values.shape}")
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if len(groups) != len(values):
        raise ValueError(f"groups: expected {len(values)} labels, got {len(groups)}")
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    if len(sums) == 1:
        return {"mean": float(values.mean()), "low": None, "high": None}
    drawn = np.random.default_rng(seed).integers(0, len(sums), (samples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}

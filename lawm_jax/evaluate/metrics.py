"""Metrics shared by evaluations, in numpy and scipy: intervals, images, trajectories, plans."""

import numpy as np
import scipy.ndimage

from lawm_jax.data import poses

LEVEL = 0.95  # confidence level
SAMPLES = 4000  # bootstrap resamples, from a fixed seed, so that intervals are reproducible


def interval(values, groups=None):
    """Computes a mean with its 95% bootstrap confidence interval.

    Args:
      values: [n], one number per clip. For differences of two models on the same clips, the result
        is the paired interval.
      groups: [n] hashable labels, such as the episode of each clip. Whole groups are resampled,
        since clips of one episode are correlated. If None, values are resampled individually.

    Returns:
      {"mean", "low", "high", "groups"}: floats, and the number of groups. low and high are None if
      there is only one group. With few groups the interval is too narrow, see `verdicts.LEAST`.

    Raises:
      ValueError: there are no values, or `groups` differs from `values` in length.

    Source: percentile bootstrap, Efron & Tibshirani 1993, chapter 13; over clusters, Davison &
    Hinkley 1997, section 3.8.
    """
    values = _per_clip("values", values)
    # A mean is a ratio to ones.
    return _bootstrap(values, np.ones(len(values)), groups)


def ratio(a, b, groups=None):
    """Computes mean(a) / mean(b) with its bootstrap `interval`, resampling a and b jointly.

    Args:
      a, b: [n], one number per clip for the same clips, such as two errors.
      groups: as in `interval`, with the same resamples.

    Returns:
      As `interval`, of the ratio. low and high are None if there is only one group, or if b sums
      to 0 in some resample, since the ratio is then unbounded.

    Raises:
      ValueError: there are no values, a, b and groups differ in length, or the mean of b is 0.
    """
    a, b = _per_clip("a", a), _per_clip("b", b)
    if len(a) != len(b):
        raise ValueError(f"b: expected {len(a)} values, as many as a, got {len(b)}")
    if b.mean() == 0:
        raise ValueError("b: expected a nonzero mean, got 0")
    return _bootstrap(a, b, groups)


def ratio_or_none(a, b, groups=None):
    """Computes `ratio`, or None if b is zero for every clip; arguments are as there."""
    return ratio(a, b, groups) if np.any(b) else None


def auc(positive, negative, groups=None, minus=None):
    """Computes the area under the ROC curve of a score, with its bootstrap `interval`.

    Args:
      positive, negative: [n], a score of each clip in two conditions, of which the first should
        have the higher ones. All n^2 pairs of clips are compared; a tie counts half.
      groups: as in `interval`, with the same resamples.
      minus: another such pair of scores, for the paired difference of both areas.

    Returns:
      As `interval`: 0.5 for an uninformative score, 1 for one that always separates the conditions.

    Raises:
      ValueError: there are no values, or arguments differ in length.
    """
    wins = _wins(positive, negative)
    if minus is not None:
        wins = wins - _wins(*minus)
    groups = np.arange(len(wins)) if groups is None else np.asarray(groups)
    if len(groups) != len(wins):
        raise ValueError(f"groups: expected {len(wins)} labels, got {len(groups)}")
    member = np.unique(groups)[:, None] == groups
    G, size = len(member), member.sum(1)
    sums = member.astype(np.float64) @ wins @ member.T
    counts = np.apply_along_axis(np.bincount, 1, _resamples(G), minlength=G)  # draws per group
    areas = ((counts @ sums) * counts).sum(1) / np.square(counts @ size)
    return _with_bounds(wins.mean(), G, areas if G > 1 else None)


def _wins(positive, negative):
    """Compares all pairs, [n] and [n] -> [n, n]: 1 where the first is higher, 0.5 for a tie."""
    a, b = _per_clip("positive", positive), _per_clip("negative", negative)
    if len(a) != len(b):
        raise ValueError(f"negative: expected {len(a)} values, as many as positive, got {len(b)}")
    return np.sign(a[:, None] - b) / 2 + 0.5


def psnr(a, b):
    """Computes the peak signal-to-noise ratio of images, 10 log10(255^2 / mean squared error).

    Args:
      a, b: uint8 or floating point [..., H, W, 3] in the range 0..255.

    Returns:
      [...] float64, dB. It is capped at 100, the value for identical images, so that means over
      images are finite (a single value that is off by one gives 95 dB at 128 x 128 pixels).

    Raises:
      ValueError: a and b are not images of the same shape.
    """

    def one(x, y):
        error = max(np.square(x - y).mean(), 255**2 / 10**10)
        return 10 * np.log10(255**2 / error)

    return _picture_by_picture(one, a, b)


def ssim(a, b):
    """Computes the structural similarity of images with Gaussian windows of sigma 1.5.

    Args:
      a, b: uint8 or floating point [..., H, W, 3] in the range 0..255; H and W at least 11.

    Returns:
      [...] float64, -1..1: the mean over channels and over all windows inside the image.

    Raises:
      ValueError: a and b are not images of the same shape, or are too small.

    Source: Wang, Bovik, Sheikh & Simoncelli 2004, "Image quality assessment", section III,
    including windows of 11 x 11 and the constants; color is handled as in scikit-image.
    """
    if min(np.shape(a)[-3:-1], default=0) < 11:
        raise ValueError(f"a: expected [..., H, W, 3] with H and W at least 11, got {np.shape(a)}")
    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def blur(x):
        x = scipy.ndimage.correlate1d(x, window, 0)[5:-5]
        return scipy.ndimage.correlate1d(x, window, 1)[:, 5:-5]

    def one(x, y):
        mean_x, mean_y = blur(x), blur(y)
        product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
        covariance = blur(x * y) - product
        variances = blur(x * x + y * y) - squares  # the formula only needs their sum
        luminance = (2 * product + c1) / (squares + c1)
        return (luminance * (2 * covariance + c2) / (variances + c2)).mean()

    return _picture_by_picture(one, a, b)


def _picture_by_picture(function, a, b):
    """Maps function(a, b) -> float over pairs of [H, W, 3] float64, one by one to fit the cache."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim < 3 or a.shape[-1] != 3:
        raise ValueError(
            f"a, b: expected the same shape [..., H, W, 3], got {a.shape} and {b.shape}"
        )
    *shape, H, W, C = a.shape
    pairs = zip(a.reshape(-1, H, W, C), b.reshape(-1, H, W, C), strict=True)
    values = [function(x.astype(np.float64), y.astype(np.float64)) for x, y in pairs]
    return np.array(values, np.float64).reshape(shape)


def _per_clip(name, values):
    """Converts values to float64 and checks that the shape is [n], n at least 1."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name}: expected [n] with n at least 1, got {values.shape}")
    return values


def _bootstrap(a, b, groups):
    """Computes the interval of mean(a) / mean(b) by resampling groups with replacement."""
    groups = np.arange(len(a)) if groups is None else np.asarray(groups)
    if len(groups) != len(a):
        raise ValueError(f"groups: expected {len(a)} labels, got {len(groups)}")
    _, index = np.unique(groups, return_inverse=True)
    a_sums, b_sums = np.bincount(index, a), np.bincount(index, b)
    drawn = _resamples(len(a_sums))
    tops, bottoms = a_sums[drawn].sum(1), b_sums[drawn].sum(1)
    bounded = len(a_sums) > 1 and bottoms.all()
    return _with_bounds(a.mean() / b.mean(), len(a_sums), tops / bottoms if bounded else None)


def _resamples(groups):
    """Draws `groups` of as many groups with replacement: [SAMPLES, groups] int."""
    return np.random.default_rng(0).integers(0, groups, (SAMPLES, groups))


def _with_bounds(mean, groups, resampled):
    """Builds an interval from the values of all resamples, or None for no bounds."""
    low = high = None
    if resampled is not None:
        low, high = map(float, np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return {"mean": float(mean), "low": low, "high": high, "groups": groups}


def trajectory_errors(planned, true):
    """Computes trajectory errors of planned actions, without alignment.

    Poses, and so displacements, are in the frame of the start. ATE and RPE depend on headings only
    through the positions that they lead to, as in NWM, which gives all poses the same heading.

    Args:
      planned, true: [n, H, 3]: move forward, move left (meters), turn left (radians).

    Returns:
      ate: [n], meters: root mean square distance between positions after each step.
      rpe: [n], meters: root mean square difference of the displacements between successive
        positions, excluding the displacement from the start to the first position.
      yaw: [n], radians: absolute difference of the final headings, at most pi.

    Raises:
      ValueError: shapes differ, or there are fewer than 2 steps.

    Source: `WM_Planning_Evaluator` of github.com/facebookresearch/nwm, planning_eval.py (Bar et al.
    2025): APE and RPE of the package evo, translation, delta 1 frame; Sturm et al. 2012, "A
    Benchmark for the Evaluation of RGB-D SLAM Systems".
    """
    if planned.shape != true.shape or planned.ndim != 3 or planned.shape[1] < 2:
        raise ValueError(
            "planned, true: expected the same shape [n, H, 3] with H at least 2, got "
            f"{planned.shape} and {true.shape}"
        )
    a, b = poses.follow(planned), poses.follow(true)
    rms = lambda x: np.sqrt(np.square(x[..., :2]).sum(-1).mean(-1))  # noqa: E731
    turn = a[:, -1, 2] - b[:, -1, 2]
    moves = np.diff(a - b, axis=1)
    return rms(a - b), rms(moves), np.abs((turn + np.pi) % (2 * np.pi) - np.pi)


def action_score(error):
    """Computes the Action Score, max(0, 800 (0.1 - error)), of an interval of errors in meters.

    Source: Terver et al. 2025, "What Drives Success in Physical Planning with Joint-Embedding
    Predictive World Models?".
    """

    def score(x):
        return None if x is None else max(0.0, 800 * (0.1 - x))

    # A large error is a low score, so the bounds change places.
    flipped = {"mean": error["mean"], "low": error["high"], "high": error["low"]}
    return error | {key: score(x) for key, x in flipped.items()}

"""Two-sample tests: how far two sets of latents are apart."""

import numpy as np
from scipy.spatial.distance import cdist

from lawm_jax.evaluate import metrics

FOLDS = 5
MOST = 1000  # latents of each set in a test: the cost of the classifier is quadratic
HALVES = 200  # random halves of the inferred latents


def test(sampled, inferred, groups=None):
    """Tests how well a classifier distinguishes sampled from inferred latents.

    A support vector machine with a Gaussian kernel is trained on four fifths of the groups and
    tested on the rest. Its inputs are the standardized values and their absolute values, so it
    detects differences in means, spreads, tails and dependence. At most 1000 random latents of each
    set are used.

    Args:
      sampled: [m, A].
      inferred: [k, A].
      groups: [m + k] labels, such as the episode of the state that a latent was sampled for. Folds
        and intervals keep groups together. None: each latent is its own group.

    Returns:
      auc: interval of the probability that a sample scores above an inferred latent: 0.5 if they
        are indistinguishable, 1 if they are always distinguishable.
      energy_distance: in standard deviations of the inferred latents; unbiased, so for equal
        distributions it is about 0 and negative as often as positive.
      energy_null: 95th percentile of the energy distance between random halves of the inferred
        latents, split by group; None with one group.

    Raises:
      ValueError: the sets differ in width or have fewer than 5 latents, there is not one label per
        latent, or no fold holds both sets.

    Source: Lopez-Paz & Oquab 2017, "Revisiting Classifier Two-Sample Tests"; interval from DeLong
    et al. 1988, over clusters as in Obuchowski 1997; Szekely & Rizzo 2013, "Energy statistics".
    """
    m, k = len(sampled), len(inferred)
    if sampled.ndim != 2 or inferred.ndim != 2 or sampled.shape[1] != inferred.shape[1]:
        raise ValueError(
            f"sampled, inferred: expected [m, A] and [k, A], got {sampled.shape}, {inferred.shape}"
        )
    groups = np.arange(m + k) if groups is None else np.asarray(groups)
    if min(m, k) < FOLDS or len(groups) != m + k:
        raise ValueError(
            f"groups: expected one label per latent, and at least {FOLDS} latents in each set, "
            f"got {len(groups)} for {m} sampled and {k} inferred latents"
        )
    random = np.random.default_rng(0)
    rows = [random.permutation(x)[:MOST] for x in (m, k)]
    groups = groups[np.concatenate([rows[0], m + rows[1]])]
    fold_groups = groups if len(np.unique(groups)) > 1 else np.arange(len(groups))
    x, y = np.float64(sampled[rows[0]]), np.float64(inferred[rows[1]])
    deviation = y.std(0)
    deviation = np.maximum(deviation, 1e-6 * max(deviation.max(), 1e-12))
    x, y = (x - y.mean(0)) / deviation, (y - y.mean(0)) / deviation
    return {
        "auc": _auc(*_placements(x, y, fold_groups), groups),
        "energy_distance": energy_distance(x, y),
        "energy_null": _null(y, groups[len(x) :], random),
    }


def _placements(x, y, groups):
    """Computes each latent's placement among the latents of the other set, by cross-validation.

    A latent is scored by a classifier that was not trained on it, and compared within its fold
    only, since scores of different classifiers are not comparable.

    Returns:
      place: [m + k], for each x the share of the fold's y that score lower, for each y the share of
        the fold's x that score higher; NaN if the fold has only one set.
      label: [m + k], True for x.
    """
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    both, label = np.concatenate([x, y]), np.repeat([True, False], [len(x), len(y)])
    values = StandardScaler().fit_transform(np.concatenate([both, np.abs(both)], 1))
    place = np.full(len(both), np.nan)
    folds = min(FOLDS, len(np.unique(groups)))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for train, test in split.split(values, label, groups):
        if min(len(np.unique(label[train])), len(np.unique(label[test]))) < 2:
            continue  # nothing to train on or to compare with
        machine = SVC(class_weight="balanced").fit(values[train], label[train])
        score, is_sample = machine.decision_function(values[test]), label[test]
        wins = np.sign(score[is_sample][:, None] - score[~is_sample][None]) / 2 + 0.5
        place[test[is_sample]], place[test[~is_sample]] = wins.mean(1), wins.mean(0)
    return place, label


def _auc(place, label, groups):
    """Computes the interval of the area under the ROC curve from the results of `_placements`."""
    judged = ~np.isnan(place)
    place, label, groups = place[judged], label[judged], groups[judged]
    if not len(place):
        raise ValueError("groups: expected several that contain both sets, got groups of one set")
    means = place[label].mean(), place[~label].mean()
    share = np.where(label, label.mean(), 1 - label.mean())
    # The AUC is a mean of placements; this is the influence of each latent on it (DeLong et al.).
    influence = (place - np.where(label, *means)) / share
    result = metrics.interval(sum(means) / 2 + influence, groups)
    bounds = {key: result[key] for key in ("mean", "low", "high")}
    return result | {key: v and min(max(v, 0.0), 1.0) for key, v in bounds.items()}


def energy_distance(x, y):
    """Computes the unbiased energy distance of two samples, x [m, A] and y [k, A]: a float.

    2 E|x - y| - E|x - x'| - E|y - y'|, over pairs of distinct elements. The one-dimensional
    `scipy.stats.energy_distance` is the square root of the same, including the zero distance of
    each element to itself.

    Source: Szekely & Rizzo 2013, "Energy statistics: a class of statistics based on distances".
    """
    m, k = len(x), len(y)
    within = cdist(x, x).sum() / (m * (m - 1)) + cdist(y, y).sum() / (k * (k - 1))
    return float(2 * cdist(x, y).mean() - within)


def _null(y, groups, random):
    """Computes the 95th percentile of the energy distance between random halves of the groups."""
    _, index = np.unique(groups, return_inverse=True)
    count = index.max() + 1
    if count < 2:
        return None
    order = np.argsort(random.random((HALVES, count)), axis=1)
    a = (order < count // 2)[:, index].astype(np.float64)  # [HALVES, k], 1 for the first half
    b = 1 - a
    m, k = a.sum(1), b.sum(1)
    enough = (m > 1) & (k > 1)
    if not enough.any():
        return None
    between = cdist(y, y)
    near_a, near_b = a @ between, b @ between
    m, k = np.maximum(m, 2), np.maximum(k, 2)
    distances = 2 * (near_a * b).sum(1) / (m * k)
    distances -= (near_a * a).sum(1) / (m * (m - 1)) + (near_b * b).sum(1) / (k * (k - 1))
    return float(np.quantile(distances[enough], 0.95))

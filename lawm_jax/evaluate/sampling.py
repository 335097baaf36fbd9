"""Sampling: whether sampled latent actions have the distribution and the effect of inferred ones.

Here noisy latents are samples of their posteriors, not the posterior means: training matches the
aggregate posterior to N(0, I), and the forward model is trained on samples.

Source: Garrido et al. 2026, appendix B, which shows an embedding; the two-sample tests that measure
how far the two sets are apart are ours.
"""

import numpy as np
from scipy.spatial.distance import cdist

from lawm_jax.evaluate import metrics, verdicts
from lawm_jax.evaluate.tables import Column, Table

COLUMNS = (
    Column("AUC", "auc"),
    Column("energy distance", "energy_distance", 4, "lower"),
    Column("null (95th percentile)", "energy_null", 4),
    Column("change", "change"),
)
FOLDS = 5
MOST = 1000  # latents of each set in a test: the cost of the classifier is quadratic


def run(source):
    """Evaluates the samplers of the main model of a `context.Source` and sets `source.samples`."""
    if source.learned is None:
        return None
    known, learned = source.learned
    ways = source.model.latent.samplers(source.params.get("latent"))
    rows, source.samples = measure(
        source.models[source.main],
        ways,
        known,
        learned,
        source.clips.s,
        source.clips.episodes,
        source.codebook,
    )
    return rows


def tables(rows):
    """Returns the rows of `measure` as a list of Table."""
    return [Table("sampled versus inferred latents (AUC 0.5: indistinguishable)", COLUMNS, rows)]


def judge(rows, name):
    """Judges the sampler that is hardest to tell from inferred latents; `name` is not used."""
    rows = {key: verdicts.measured(row, "auc") for key, row in verdicts.by_name(rows).items()}
    rows = {key: auc for key, auc in rows.items() if auc and not key.startswith("inferred")}
    if not rows:
        return []
    best = min(rows, key=lambda key: abs(rows[key]["mean"] - 0.5))
    alike = rows[best]["low"] is not None and rows[best]["low"] <= 0.5
    text = f"AUC against inferred latents: {verdicts.short(rows[best], 2)} at best, by {best} "
    text += "(0.5: indistinguishable)"
    answer = verdicts.HOLDS if alike else verdicts.FAILS
    paper = "samples resemble latents at low capacity, not at high (Appendix B)"
    return [verdicts.Verdict("sampling", answer, text, paper)]


def two_sample(sampled, inferred, groups=None, seed=0):
    """Tests how well a classifier distinguishes sampled from inferred latents.

    A support vector machine with a Gaussian kernel is trained on four fifths of the groups and
    tested on the rest. Its inputs are the standardized values and their absolute values, so it
    detects differences in means, spreads, tails and dependence.

    Args:
      sampled: [m, A].
      inferred: [k, A].
      groups: [m + k] labels, such as the episode of the state that a latent was sampled for. Folds
        and intervals keep groups together. None: each latent is its own group.
      seed: seed of folds and subsets; at most 1000 random latents of each set are used.

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
    random = np.random.default_rng(seed)
    rows = [random.permutation(x)[:MOST] for x in (m, k)]
    groups = groups[np.concatenate([rows[0], m + rows[1]])]
    apart = groups if len(np.unique(groups)) > 1 else np.arange(len(groups))
    x, y = np.float64(sampled[rows[0]]), np.float64(inferred[rows[1]])
    deviation = y.std(0)
    deviation = np.maximum(deviation, 1e-6 * max(deviation.max(), 1e-12))
    x, y = (x - y.mean(0)) / deviation, (y - y.mean(0)) / deviation
    return {
        "auc": _auc(*_placements(x, y, apart, seed), groups),
        "energy_distance": energy_distance(x, y),
        "energy_null": _null(y, groups[len(x) :], random),
    }


def _placements(x, y, groups, seed):
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
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in split.split(values, label, groups):
        if min(len(np.unique(label[train])), len(np.unique(label[test]))) < 2:
            continue  # nothing to train on or to compare with
        machine = SVC(class_weight="balanced").fit(values[train], label[train])
        score, ours = machine.decision_function(values[test]), label[test]
        wins = np.sign(score[ours][:, None] - score[~ours][None]) / 2 + 0.5
        place[test[ours]], place[test[~ours]] = wins.mean(1), wins.mean(0)
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
    return {key: None if v is None else min(max(v, 0.0), 1.0) for key, v in result.items()}


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


def _null(y, groups, random, draws=200):
    """Computes the 95th percentile of the energy distance between random halves of the groups."""
    _, index = np.unique(groups, return_inverse=True)
    count = index.max() + 1
    if count < 2:
        return None
    order = np.argsort(random.random((draws, count)), axis=1)
    a = (order < count // 2)[:, index].astype(np.float64)  # [draws, k], 1 for the first half
    b = 1 - a
    m, k = a.sum(1), b.sum(1)
    enough = (m > 1) & (k > 1)
    if not enough.any():
        return None
    between = cdist(y, y)
    near_a, near_b = a @ between, b @ between
    m, k = np.maximum(m, 2), np.maximum(k, 2)
    found = 2 * (near_a * b).sum(1) / (m * k)
    found -= (near_a * a).sum(1) / (m * (m - 1)) + (near_b * b).sum(1) / (k * (k - 1))
    return float(np.quantile(found[enough], 0.95))


def measure(functions, ways, known, learned, s, episodes, codebook=None, seed=0, clips=64):
    """Evaluates every sampler of one model's latents on the held-out clips of one data source.

    Args:
      functions: the model's Batched; `draw` and `predict` are used.
      ways: name -> function (key, shape, training latents [k, A]) -> z, such as the `samplers` of
        the latent kind.
      known: [m, A], training latents from `draw`, to which samplers are fitted.
      learned: network and params of a prior, as returned by `priors.fit`.
      s: [n, T, N, D] float32, states of held-out clips.
      episodes: [n] str, the episode of each held-out clip.
      codebook: [K, A] of discrete latents: samples of the fitted samplers are mapped to the nearest
        code.
      seed: seed of all samples and fits.
      clips: number of held-out clips, evenly spaced, whose next states are predicted.

    Returns:
      rows: one dict per sampler: `name`, the results of `two_sample` against the inferred latents
        of the held-out clips, and `change`, mean |predicted - current state| with samples / the
        same with inferred latents. The samplers are `ways`, "Gaussian fit", "learned prior" (one
        sample per held-out state) and the reference "inferred, other episodes", which compares two
        halves of the inferred latents (`change` is None; omitted with fewer than 10 episodes).
        Empty if all latents are equal.
      samples: name -> [k, A], the inferred latents and those of each sampler.

    Raises:
      ValueError: there is not one episode per clip.
    """
    import jax  # not needed to read results

    from lawm_jax import latents
    from lawm_jax.evaluate import priors

    if len(episodes) != len(s):
        raise ValueError(f"episodes: expected {len(s)}, one per clip, got {len(episodes)}")
    z = functions.draw(s, seed)
    shape = z.shape
    groups = np.repeat(np.asarray(episodes), shape[1])
    inferred = priors.flat(z)
    if np.ptp(inferred, axis=0).max() == 0:
        return [], {}
    fitted = {
        "Gaussian fit": priors.gaussian,
        "learned prior": lambda key, shape, z: priors.draw(*learned, key, s[:, :-1]),
    }
    some = np.unique(np.linspace(0, len(s) - 1, min(clips, len(s))).round().astype(int))
    present = s[some, :-1]
    move = lambda z: float(np.abs(functions.predict(present, z[some]) - present).mean())  # noqa: E731
    moved = move(z)
    rows, samples = [], {"inferred": inferred}
    for i, (name, way) in enumerate((ways | fitted).items()):
        drawn = np.asarray(way(jax.random.key(seed + 1 + i), (len(inferred), shape[2]), known))
        if codebook is not None and name in fitted:
            drawn = np.asarray(codebook)[np.asarray(latents.nearest(codebook, drawn))]
        samples[name] = drawn
        row = {"name": name} | two_sample(drawn, inferred, np.tile(groups, 2), seed)
        rows.append(row | {"change": move(drawn.reshape(shape)) / moved if moved else None})
    labels = np.random.default_rng(seed).permutation(np.unique(groups))
    if len(labels) >= 2 * FOLDS:
        half = np.isin(groups, labels[::2])
        both = np.concatenate([groups[half], groups[~half]])
        row = two_sample(inferred[half], inferred[~half], both, seed)
        rows.append({"name": "inferred, other episodes"} | row | {"change": None})
    return rows, samples


def embed(sets, seed=0, method="pca"):
    """Embeds sets of latents in the plane, after standardizing each dimension over all sets.

    Args:
      sets: name -> [m, A].
      seed: seed of UMAP.
      method: "pca", or "umap" as in the paper. The first use of umap-learn takes half a minute; if
        it is not installed, PCA is used instead.

    Returns:
      points, name -> [m, 2] float32, and the method used, "PCA" or "UMAP".

    Raises:
      ValueError: the method is unknown, or there are fewer than 3 latents in total.

    Source: Garrido et al. 2026, appendix B; McInnes et al. 2018, "UMAP".
    """
    x = np.concatenate([np.asarray(z, np.float64) for z in sets.values()])
    if method not in ("pca", "umap") or len(x) < 3:
        raise ValueError(
            f"method: expected 'pca' or 'umap' and at least 3 latents, got {method!r} and {len(x)}"
        )
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)
    points, used = _umap(x, seed) if method == "umap" else (None, "PCA")
    if points is None:
        left, size, right = np.linalg.svd(x, full_matrices=False)
        # Signs of principal components are arbitrary: the largest entry of each is made positive.
        signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
        # Latents may have one dimension, or be constant: there are always two columns.
        points = np.pad(left * (size * signs), [(0, 0), (0, 2)])[:, :2]
    stops = np.cumsum([len(z) for z in sets.values()])[:-1]
    return dict(zip(sets, np.split(np.float32(points), stops), strict=True)), used


def _umap(x, seed):
    try:
        import umap
    except ImportError:
        return None, "PCA"
    return umap.UMAP(random_state=seed, n_jobs=1).fit_transform(x), "UMAP"

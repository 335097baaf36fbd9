"""Sampling: whether sampled latent actions have the distribution and the effect of inferred ones.

Here noisy latents are samples of their posteriors, not the posterior means: training matches the
aggregate posterior to N(0, I), and the forward model is trained on samples.

Source: Garrido et al. 2026, appendix B, which shows an embedding; the two-sample tests that measure
how far the two sets are apart are ours.
"""

import numpy as np

from lawm_jax.evaluate import two_sample, verdicts
from lawm_jax.evaluate.tables import Column, Table

COLUMNS = (
    Column("AUC", "auc"),
    Column("energy distance", "energy_distance", 4, "lower"),
    Column("null (95th percentile)", "energy_null", 4),
    Column("change", "change"),
)
CLIPS = 64  # maximum number of held-out clips, evenly spaced, whose next states are predicted


def run(source):
    """Evaluates the samplers of the main model of a `context.Source` and sets `source.samples`."""
    if source.learned is None:
        return None
    training, learned = source.learned
    samplers = source.model.latent.samplers(source.params.get("latent"))
    rows, source.samples = measure(
        source.models[source.main],
        samplers,
        training,
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
    text = f"best AUC against inferred latents: {verdicts.short(rows[best], 2)} "
    text += f"({best}; 0.5: indistinguishable)"
    low, answer = rows[best]["low"], verdicts.UNDECIDED
    if low is not None:
        answer = verdicts.HOLDS if low <= 0.5 else verdicts.FAILS
    paper = "samples resemble latents at low capacity, not at high (Appendix B)"
    return [verdicts.Verdict("sampling", answer, text, paper)]


def measure(functions, samplers, training, learned, s, episodes, codebook=None):
    """Evaluates every sampler of one model's latents on the held-out clips of one data source.

    Args:
      functions: the model's Batched; `draw` and `predict` are used.
      samplers: name -> function (key, shape, training latents [k, A]) -> z, such as the `samplers`
        of the latent kind.
      training: [m, A], training latents from `draw`, to which samplers are fitted.
      learned: network and params of a prior, as returned by `priors.fit`.
      s: [n, T, N, D] float32, states of held-out clips.
      episodes: [n] str, the episode of each held-out clip.
      codebook: [K, A] of discrete latents: samples of the fitted samplers are mapped to the nearest
        code.

    Returns:
      rows: one dict per sampler: `name`, the results of `two_sample.test` against the inferred
        latents of the held-out clips, and `change`, mean |predicted - current state| with samples /
        the same with inferred latents. They are `samplers`, "Gaussian fit", "learned prior"
        (one sample per held-out state) and the reference "inferred, other episodes", which compares
        two halves of the inferred latents (`change` is None; omitted with fewer than 10 episodes).
        Empty if all latents are equal.
      samples: name -> [k, A], the inferred latents and those of each sampler.

    Raises:
      ValueError: there is not one episode per clip.
    """
    from lawm_jax.evaluate import priors  # imports JAX, which reading results does not need

    if len(episodes) != len(s):
        raise ValueError(f"episodes: expected {len(s)}, one per clip, got {len(episodes)}")
    z = functions.draw(s, 0)
    inferred, groups = priors.flat(z), np.repeat(np.asarray(episodes), z.shape[1])
    if np.ptp(inferred, axis=0).max() == 0:
        return [], {}
    samples = _draw(samplers, training, learned, s, z.shape, codebook)
    chosen = np.unique(np.linspace(0, len(s) - 1, CLIPS).round().astype(int))
    present = s[chosen, :-1]

    def change(z):
        return float(np.abs(functions.predict(present, z[chosen]) - present).mean())

    moved, rows = change(z), []
    for name, x in samples.items():
        row = {"name": name} | two_sample.test(x, inferred, np.tile(groups, 2))
        rows.append(row | {"change": change(x.reshape(z.shape)) / moved if moved else None})
    return rows + _reference(inferred, groups), {"inferred": inferred} | samples


def _draw(samplers, training, learned, s, shape, codebook):
    """Draws latents of a shape (n, T-1, A) from every sampler: name -> [n (T-1), A]."""
    import jax

    from lawm_jax import latents
    from lawm_jax.evaluate import priors

    n, steps, A = shape
    fitted = {
        "Gaussian fit": priors.gaussian,
        "learned prior": lambda key, shape, z: priors.draw(*learned, key, s[:, :-1]),
    }
    samples = {}
    for i, (name, sample) in enumerate((samplers | fitted).items()):
        drawn = np.asarray(sample(jax.random.key(1 + i), (n * steps, A), training))
        if codebook is not None and name in fitted:
            drawn = np.asarray(codebook)[np.asarray(latents.nearest(codebook, drawn))]
        samples[name] = drawn
    return samples


def _reference(inferred, groups):
    """Compares the latents of two halves of the episodes: a row, or none if they are too few."""
    labels = np.random.default_rng(0).permutation(np.unique(groups))
    if len(labels) < 2 * two_sample.FOLDS:
        return []
    half = np.isin(groups, labels[::2])
    both = np.concatenate([groups[half], groups[~half]])
    row = two_sample.test(inferred[half], inferred[~half], both)
    return [{"name": "inferred, other episodes"} | row | {"change": None}]


def embed(sets, method="pca"):
    """Embeds sets of latents in the plane, after standardizing each dimension over all sets.

    Args:
      sets: name -> [m, A].
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
    points, used = _umap(x) if method == "umap" else (None, "PCA")
    if points is None:
        left, size, right = np.linalg.svd(x, full_matrices=False)
        # Signs of principal components are arbitrary: the largest entry of each is made positive.
        signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
        # Latents may have one dimension, or be constant: there are always two columns.
        points = np.pad(left * (size * signs), [(0, 0), (0, 2)])[:, :2]
    stops = np.cumsum([len(z) for z in sets.values()])[:-1]
    return dict(zip(sets, np.split(np.float32(points), stops), strict=True)), used


def _umap(x):
    try:
        import umap
    except ImportError:
        return None, "PCA"
    return umap.UMAP(random_state=0, n_jobs=1).fit_transform(x), "UMAP"

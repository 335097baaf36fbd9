"""Content: whether latent actions encode real actions (linear probe), and in how many dimensions.

Noisy latents are the posterior means.

Source: ours; the sparsity measure of Hoyer 2004, the effective dimension (participation ratio) as
in Gao et al. 2017, the effective rank as in Roy & Vetterli 2007, but of the covariance.
"""

import numpy as np
from scipy import stats

from lawm_jax.evaluate import probing, verdicts
from lawm_jax.evaluate.tables import Column, Table, listed, mapping, parts, real

LEAST = 0.01  # smallest gain in R² that counts; the ridge penalty alone may cause as much
# Dimensions below either are dead: KL in nats, and deviation relative to that of the largest.
DEAD_NATS, DEAD_SHARE = 0.01, 0.01
BESIDE = (
    Column("R² of latents", "latents", 2, "higher"),
    Column("of the state's components", "state", 2),
    Column("of both", "both", 2, "higher"),
    Column("added by latents", "added", 2, "higher", signed=True),
)
KNOWN = {  # columns of `describe`; other statistics are titled with their keys
    "dimension": Column("effective dimension", "latents.dimension", 2),
    "effective_rank": Column("effective rank", "latents.effective_rank", 2),
    "dead": Column("dead dimensions", "latents.dead", 0),
    "near_zero": Column("fraction near zero", "latents.near_zero", 2),
    "hoyer": Column("Hoyer sparsity", "latents.hoyer", 2),
    "codes used": Column("codes in use", "latents.codes used", 0),
    "codes of": Column("codes in total", "latents.codes of", 0),
}


def run(source):
    """Describes and probes the latents of the models of a `context.Source`."""
    rows, u = [], source.clips.actions
    s, episodes = source.clips.s, source.clips.episodes
    for name in source.latents:
        z = source.z(name)
        row = {"name": name, "latents": describe(z, *source.codes(name, z), source.nats(name))}
        row |= {"probe": None, "matched": None}
        if u is not None and source.pairs:
            aligned, states = probing.align(u, s.shape[1]), source.components(z.shape[2])
            row["probe"] = probing.probe(z, aligned, episodes)
            row["matched"] = probing.beside_state(z, aligned, states, episodes)
        rows.append(row)
    return rows


def tables(rows):
    """Returns the rows of `run` as a list of Table: the probes, and statistics of the latents."""
    probed, described = [], []
    for row in rows:
        probe = mapping(row.get("probe"))
        pairs = zip(*(listed(probe.get(key)) for key in ("names", "r2")), strict=False)
        probed.append({"name": row["name"], "probe": {str(name): r2 for name, r2 in pairs}})
        described.append({"name": row["name"], "latents": _flat(mapping(row.get("latents")))})
    names = dict.fromkeys(name for row in probed for name in row["probe"])
    r2 = tuple(Column(f"R² of {name}", f"probe.{name}", 2, "higher") for name in names)
    names = {k: v for row in described for k, v in row["latents"].items() if v is not None}
    use = tuple(
        KNOWN.get(name)
        or Column(name.replace("_", " "), f"latents.{name}", 0 if isinstance(x, int) else 2)
        for name, x in names.items()
        if not isinstance(x, list)
    )
    return [
        Table("linear probe", r2, probed),
        Table("linear probe, compared with the current state", BESIDE, parts(rows, "matched")),
        Table("statistics of the latents", use, described),
    ]


def judge(rows, name):
    """Judges what a probe predicts from latents, and whether it can from the current state, too."""
    row = verdicts.by_name(rows).get(name)
    return [] if row is None else _judge_probe(row) + _judge_beside(row)


def _judge_probe(row):
    """Judges whether a linear probe predicts all real actions (R² above 0.5), or some (above 0)."""
    probe, paper = mapping(row.get("probe")), "not measured"
    names = enumerate(listed(probe.get("names")))
    r2s = {str(x): verdicts.measured(probe, f"r2.{i}") for i, x in names}
    r2s = {x: r2 for x, r2 in r2s.items() if r2}
    if not r2s:
        dimension = mapping(row.get("latents")).get("dimension")
        text = "real actions are not known"
        text += f"; the latents use {dimension:.1f} dimensions" if real(dimension) else ""
        return [verdicts.Verdict("content", verdicts.UNDECIDED, text, paper)]
    good = [verdicts.above(r2, 0.5) for r2 in r2s.values()]
    some = any(verdicts.above(r2, 0) for r2 in r2s.values())
    answer = verdicts.PARTLY if some else verdicts.FAILS
    if all(good):
        answer = verdicts.HOLDS
    text = ", ".join(f"{x} {verdicts.short(r2, 2)}" for x, r2 in r2s.items())
    return [verdicts.Verdict("content", answer, f"R² of real actions: {text}", paper)]


def _judge_beside(row):
    """Judges whether latents predict every real action, or some, better than the state does."""
    gains = {
        str(x.get("name")): verdicts.measured(x, "added")
        for x in map(mapping, listed(mapping(row).get("matched")))
    }
    gains = {name: added for name, added in gains.items() if added}
    if not gains:
        return []
    more = [verdicts.above(added, LEAST) for added in gains.values()]
    none = all(verdicts.below(added, LEAST) for added in gains.values())
    text = ", ".join(f"{name} {verdicts.short(x, 2, '+')}" for name, x in gains.items())
    text = f"R² gain over the state's principal components: {text}"
    answer = verdicts.overall(more, fails=none)
    return [verdicts.Verdict("beyond PCA", answer, text, "not measured")]


def _flat(values):
    """Flattens nested dicts, except intervals: {"a": {"b": 1}} -> {"a b": 1}."""
    flat = {}
    for name, x in values.items():
        nested = isinstance(x, dict) and "mean" not in x
        flat |= {f"{name} {key}": y for key, y in x.items()} if nested else {name: x}
    return flat


def describe(z, codes=None, K=None, nats=None):
    """Computes statistics of how latent actions use their space.

    Args:
      z: [n, T-1, A] latent actions.
      codes: [n, T-1] int, the code of each discrete latent.
      K: number of codes.
      nats: [n, T-1, A], KL divergence of each dimension of noisy latents from the prior, from
        `latents.nats`.

    Returns:
      dict of `width` (A) and:
        dimension: participation ratio of the eigenvalues of the covariance: A for equal variance in
          all directions, 1 for a line, 0 for a constant.
        effective_rank: exp(entropy of the eigenvalues' shares), likewise; it counts directions of
          little variance for more than `dimension` does.
        dead: number of dimensions that carry less than DEAD_NATS on average, if noisy; otherwise
          of those whose deviation is at most DEAD_SHARE of the largest.
        norm: mean L2 norm.
        near_zero: share of values whose magnitude is at most a hundredth of the root mean square
          of all values.
        hoyer: mean Hoyer sparsity: 0 for equal magnitudes, 1 for a single nonzero value; None if
          all values are zero or A is 1.
        nats: mean of the sum over dimensions, or None.
        nats_by_dimension: [A] means, or None.
        codes: {"used", "of", "perplexity"} or None; the perplexity is 2^(entropy of code usage in
          bits), K for uniform usage.

    Raises:
      ValueError: z is not [n, T-1, A], or codes are given without K or are not in 0 to K - 1.
    """
    if z.ndim != 3 or not z.size:
        raise ValueError(f"z: expected [n, T-1, A], got {z.shape}")
    if codes is not None and (K is None or np.min(codes) < 0 or np.max(codes) >= K):
        raise ValueError(
            f"codes, K: expected codes from 0 to K - 1, got {np.min(codes)} to {np.max(codes)} "
            f"and K = {K}"
        )
    A = z.shape[-1]
    flat = z.reshape(-1, A).astype(np.float64)
    centered = flat - flat.mean(0)
    cov = centered.T @ centered / len(flat)
    squares = np.square(cov).sum()  # sum of squared eigenvalues; the trace is their sum
    by_dimension = None if nats is None else np.reshape(nats, (-1, A)).mean(0, dtype=np.float64)
    norm, rms = np.linalg.norm(flat, axis=1), np.sqrt(np.square(flat).mean())
    deviation = centered.std(0)
    dead = deviation <= DEAD_SHARE * deviation.max() if nats is None else by_dimension < DEAD_NATS
    nonzero = norm > 0
    hoyer = None
    if A > 1 and nonzero.any():
        l1 = np.abs(flat[nonzero]).sum(1)
        hoyer = float(((A**0.5 - l1 / norm[nonzero]) / (A**0.5 - 1)).mean())
    return {
        "width": A,
        "dimension": float(np.trace(cov) ** 2 / squares) if squares > 0 else 0.0,
        "effective_rank": _effective_rank(cov),
        "dead": int(dead.sum()),
        "norm": float(norm.mean()),
        "near_zero": float((np.abs(flat) <= 0.01 * rms).mean()),
        "hoyer": hoyer,
        "nats": None if nats is None else float(by_dimension.sum()),
        "nats_by_dimension": None if nats is None else by_dimension.tolist(),
        "codes": None if codes is None else _usage(np.asarray(codes), K),
    }


def _effective_rank(cov):
    """Computes exp(entropy) of the shares of a covariance's eigenvalues; 0 if all are zero."""
    values = np.linalg.eigvalsh(cov).clip(0)
    return float(np.exp(stats.entropy(values))) if values.any() else 0.0


def _usage(codes, K):
    counts = np.bincount(codes.ravel(), minlength=K)
    perplexity = float(np.exp(stats.entropy(counts)))
    return {"used": int(np.count_nonzero(counts)), "of": int(K), "perplexity": perplexity}

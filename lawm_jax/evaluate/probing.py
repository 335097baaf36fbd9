"""What latent actions encode: a linear probe for real actions, and statistics of the latent space.

Source: ours; linear probes after Alain & Bengio 2016, the sparsity measure of Hoyer 2004, the
effective dimension (participation ratio) as in Gao et al. 2017.
"""

import numpy as np

from lawm_jax.evaluate import metrics, verdicts
from lawm_jax.evaluate.tables import Column, Table, listed, mapping, real

# Ridge penalty per training row, on standardized latents: suppresses unused dimensions.
PENALTY = 1e-2
KNOWN = {  # columns of `describe`; other statistics are titled with their keys
    "dimension": Column("effective dimension", "latents.dimension", 2),
    "near_zero": Column("fraction near zero", "latents.near_zero", 2),
    "hoyer": Column("Hoyer sparsity", "latents.hoyer", 2),
    "codes used": Column("codes in use", "latents.codes used", 0),
    "codes of": Column("codes in total", "latents.codes of", 0),
}


def run(source):
    """Describes and probes the latents of the models of a `context.Source`."""
    rows, u = [], source.clips.actions
    for name in source.latents:
        z = source.models[name].infer(source.clips.s)
        row = {"name": name, "latents": describe(z, *source.codes(name, z), source.nats(name))}
        row["probe"] = None
        if u is not None and source.pairs:
            row["probe"] = probe(z, align(u, source.clips.s.shape[1]), source.clips.episodes)
        rows.append(row)
    return rows


def tables(rows):
    """Returns the rows of `run` as two Tables: the probe and the statistics of the latents."""
    probed, told = [], []
    for row in rows:
        probe = mapping(row.get("probe"))
        pairs = zip(*(listed(probe.get(key)) for key in ("names", "r2")), strict=False)
        probed.append({"name": row["name"], "probe": {str(name): r2 for name, r2 in pairs}})
        told.append({"name": row["name"], "latents": _flat(mapping(row.get("latents")))})
    names = dict.fromkeys(name for row in probed for name in row["probe"])
    r2 = tuple(Column(f"R² of {name}", f"probe.{name}", 2, "higher") for name in names)
    names = {k: v for row in told for k, v in row["latents"].items() if v is not None}
    use = tuple(
        KNOWN.get(name)
        or Column(name.replace("_", " "), f"latents.{name}", 0 if isinstance(x, int) else 2)
        for name, x in names.items()
    )
    return [Table("linear probe", r2, probed), Table("statistics of the latents", use, told)]


def judge(rows, name):
    """Judges whether a linear probe predicts all real actions (R² above 0.5), or some (above 0)."""
    row = verdicts.by_name(rows).get(name)
    if row is None:
        return []
    probe, paper = mapping(row.get("probe")), "not measured"
    names = enumerate(listed(probe.get("names")))
    found = {str(x): verdicts.measured(probe, f"r2.{i}") for i, x in names}
    found = {x: r2 for x, r2 in found.items() if r2}
    if not found:
        used = mapping(row.get("latents")).get("dimension")
        text = "real actions are not known"
        text += f"; the latents use {used:.1f} dimensions" if real(used) else ""
        return [verdicts.Verdict("content", verdicts.UNDECIDED, text, paper)]
    good = [verdicts.above(r2, 0.5) for r2 in found.values()]
    some = any(verdicts.above(r2, 0) for r2 in found.values())
    answer = verdicts.HOLDS if all(good) else verdicts.PARTLY if some else verdicts.FAILS
    text = ", ".join(f"{x} {verdicts.short(r2, 2)}" for x, r2 in found.items())
    return [verdicts.Verdict("content", answer, f"R² of real actions: {text}", paper)]


def _flat(values):
    """Flattens nested dicts, except intervals: {"a": {"b": 1}} -> {"a b": 1}."""
    flat = {}
    for name, x in values.items():
        nested = isinstance(x, dict) and "mean" not in x
        flat |= {f"{name} {key}": y for key, y in x.items()} if nested else {name: x}
    return flat


def align(u, steps):
    """Sums the real actions between consecutive time steps.

    A time step covers k frames. Latent t leads from step t to step t + 1, so it is aligned with the
    k actions from the last frame of step t to the last frame of step t + 1. Actions that are
    displacements add up; for velocities, the sum is k times the mean, which is equivalent for a
    linear probe.

    Args:
      u: [n, F-1, U]; u[:, f] leads from frame f to f + 1.
      steps: T, number of time steps in the F frames.

    Returns:
      [n, T-1, U].

    Raises:
      ValueError: F is not a multiple of T, or there are fewer than two steps.
    """
    n, between, U = u.shape
    k, rest = divmod(between + 1, steps)
    if rest or steps < 2:
        raise ValueError(
            f"u: expected k * {steps} - 1 actions, for at least 2 steps of k frames, got {between}"
        )
    return u[:, k - 1 : k - 1 + k * (steps - 1)].reshape(n, steps - 1, k, U).sum(2)


def probe(z, u, episodes, names=None):
    """Measures how well a linear map predicts real actions from latent actions.

    Ridge regression on standardized latents with two-fold cross-validation over episodes.

    Args:
      z: [n, T-1, A] latent actions.
      u: [n, T-1, U] real actions, aligned.
      episodes: [n] str, the episode of each clip.
      names: U names of the actions; None for "action 0", "action 1", ...

    Returns:
      {"names": list of U, "r2": list of U intervals of R²}. R² is 1 - squared error / squared error
      of predicting the mean of the training half: 0 or slightly below if the latents carry no
      information. An entry is None if its action always equals that mean.

    Raises:
      ValueError: z, u, episodes and names do not match each other, u is not finite, or there are
        fewer than two episodes.
    """
    n, steps, U = u.shape
    names = [f"action {i}" for i in range(U)] if names is None else [str(x) for x in names]
    if z.shape[:2] != (n, steps) or len(names) != U:
        raise ValueError(
            f"u, names: expected {z.shape[:2]} actions, like z, and a name per value, got "
            f"{u.shape} and {len(names)} names"
        )
    if not np.isfinite(u).all():
        raise ValueError("u: expected finite values, got NaN or infinity")
    unique, index = np.unique(episodes, return_inverse=True)
    if len(index) != n or len(unique) < 2:
        raise ValueError(
            f"episodes: expected {n} names from at least 2 episodes, got {len(index)} with "
            f"{len(unique)} different names"
        )
    # Puts a random half of the episodes, each with all its clips, into the second fold.
    second = np.random.default_rng(0).permutation(len(unique))[index] >= len(unique) / 2
    error, spread = np.empty((n, U)), np.empty((n, U))
    for test in (second, ~second):
        mean, predict = ridge(z[~test].reshape(-1, z.shape[2]), u[~test].reshape(-1, U))
        error[test] = np.square(predict(z[test]) - u[test]).sum(1)
        spread[test] = np.square(mean - u[test]).sum(1)
    r2 = [_r2(*pair, episodes) for pair in zip(error.T, spread.T, strict=True)]
    return {"names": names, "r2": r2}


def ridge(x, y):
    """Fits a linear map from x [m, A] to y [m, U] in float64, by ridge regression.

    Returns:
      The mean of y, and a function of [..., A] that returns the predicted [..., U].
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    center, scale, mean = x.mean(0), x.std(0), y.mean(0)
    scale = np.where(scale > 0, scale, 1)
    x = (x - center) / scale
    gram = x.T @ x / len(x) + PENALTY * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (y - mean) / len(x))
    return mean, lambda x: mean + (x - center) / scale @ weights


def _r2(error, spread, episodes):
    if not spread.any():
        return None
    wrong = metrics.ratio(error, spread, episodes)
    # A large error is a low R2, so the bounds change places.
    turned = {"mean": wrong["mean"], "low": wrong["high"], "high": wrong["low"]}
    return {key: None if value is None else 1 - value for key, value in turned.items()}


def describe(z, codes=None, K=None, nats=None):
    """Computes statistics of how latent actions use their space.

    Args:
      z: [n, T-1, A] latent actions.
      codes: [n, T-1] int, the code of each discrete latent.
      K: number of codes.
      nats: KL divergence of noisy latents from the prior, any shape: the cost returned by
        `infer_actions`, divided by beta.

    Returns:
      dict of `width` (A) and:
        dimension: participation ratio of the eigenvalues of the covariance: A for equal variance in
          all directions, 1 for a line, 0 for a constant.
        norm: mean L2 norm.
        near_zero: share of values whose magnitude is at most a hundredth of the root mean square
          of all values.
        hoyer: mean Hoyer sparsity: 0 for equal magnitudes, 1 for a single nonzero value; None if
          all values are zero or A is 1.
        nats: mean, or None.
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
    norm, rms = np.linalg.norm(flat, axis=1), np.sqrt(np.square(flat).mean())
    some = norm > 0
    hoyer = None
    if A > 1 and some.any():
        l1 = np.abs(flat[some]).sum(1)
        hoyer = float(((A**0.5 - l1 / norm[some]) / (A**0.5 - 1)).mean())
    return {
        "width": A,
        "dimension": float(np.trace(cov) ** 2 / squares) if squares > 0 else 0.0,
        "norm": float(norm.mean()),
        "near_zero": float((np.abs(flat) <= 0.01 * rms).mean()),
        "hoyer": hoyer,
        "nats": None if nats is None else float(np.mean(nats)),
        "codes": None if codes is None else _usage(np.asarray(codes), K),
    }


def _usage(codes, K):
    counts = np.bincount(codes.ravel(), minlength=K)
    used = counts[counts > 0] / counts.sum()
    perplexity = float(2 ** -(used * np.log2(used)).sum())
    return {"used": len(used), "of": int(K), "perplexity": perplexity}

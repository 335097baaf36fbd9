"""Linear probes: what a linear map predicts from latent actions, and from the state before them.

A policy acts on what it sees, so the current state already predicts real actions in part. The R² of
a probe of latents only counts as far as it exceeds that of as many principal components of the
state.

Source: linear probes after Alain & Bengio 2016; the comparison with the state is ours.
"""

import numpy as np

from lawm_jax.evaluate import metrics

# Ridge penalty per training row, on standardized inputs: suppresses unused dimensions.
PENALTY = 1e-2
ROWS = 1000  # maximum number of states to which principal components are fitted


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
    unique, count = np.unique(episodes), len(episodes)
    if count != n or len(unique) < 2:
        raise ValueError(
            f"episodes: expected {n} names from at least 2 episodes, got {count} with "
            f"{len(unique)} different names"
        )
    error, spread = errors([z, z], u, episodes)
    r2 = [_r2(*pair, episodes) for pair in zip(error.T, spread.T, strict=True)]
    return {"names": names, "r2": r2}


def second_fold(episodes):
    """Puts a random half of the episodes, each with all its clips, into the second fold: [n]."""
    names, index = np.unique(episodes, return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[index] >= len(names) / 2


def errors(inputs, u, episodes, tested=None):
    """Computes squared errors of a ridge regression by two-fold cross-validation over episodes.

    Args:
      inputs: [2, n, T-1, k], the inputs x of both folds.
      u: [n, T-1, U].
      episodes: [n] str.
      tested: like `inputs`, the inputs on which the ridge is tested; None for the same.

    Returns:
      error, spread: [n, U], of the ridge and of the training half's mean, sums over steps.
    """
    n, _, U = u.shape
    error, spread, second = np.empty((n, U)), np.empty((n, U)), second_fold(episodes)
    tested = inputs if tested is None else tested
    for x, y, test in zip(inputs, tested, (second, ~second), strict=True):
        mean, predict = ridge(x[~test].reshape(-1, x.shape[2]), u[~test].reshape(-1, U))
        error[test] = np.square(predict(y[test]) - u[test]).sum(1)
        spread[test] = np.square(mean - u[test]).sum(1)
    return error, spread


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
    unexplained = metrics.ratio(error, spread, episodes)
    # A large error is a low R2, so the bounds change places.
    flipped = {"mean": unexplained["mean"], "low": unexplained["high"], "high": unexplained["low"]}
    r2 = {key: None if value is None else 1 - value for key, value in flipped.items()}
    return r2 | {"groups": unexplained["groups"]}


def take(s, clips):
    """Selects at most ROWS evenly spaced states of clips s [n, T, N, D]: [m, N D].

    Args:
      s: the last step of a clip, which has no latent, is left out.
      clips: [k] int, indices of the clips to take them from.
    """
    steps = s.shape[1] - 1
    count = len(clips) * steps
    chosen = np.linspace(0, count - 1, min(ROWS, count)).round().astype(int)
    clip, step = np.divmod(chosen, steps)
    return s[np.asarray(clips)[clip], step].reshape(len(chosen), -1)


def principal(x, width):
    """Fits principal components to states x [m, N D].

    Returns:
      A function of clips [n, T, N, D] that returns the first `width` components of the states of
      all steps but the last, [n, T-1, width]: m - 1 components if that is less, and one that is
      zero if m is 1.
    """
    from sklearn.decomposition import PCA

    if len(x) < 2:
        return lambda s: np.zeros((len(s), s.shape[1] - 1, 1), s.dtype)
    fitted = PCA(min(width, len(x) - 1, x.shape[1]), random_state=0).fit(x)

    def project(s):
        parts = [s[i : i + 64, :-1] for i in range(0, len(s), 64)]
        parts = [fitted.transform(x.reshape(-1, x[0, 0].size)) for x in parts]
        return np.concatenate(parts).reshape(len(s), s.shape[1] - 1, -1)

    return project


def components(s, episodes, width):
    """Computes the state's components of both folds of `probe`, fitted out of fold.

    Args:
      s: [n, T, N, D], states of the clips.
      episodes: [n] str.
      width: number of components.

    Returns:
      [2, n, T-1, width], fitted to the clips outside the second fold, and to those in it.
    """
    second = second_fold(episodes)
    return [principal(take(s, np.flatnonzero(~x)), width)(s) for x in (second, ~second)]


def beside_state(z, u, states, episodes, names=None):
    """Probes latents, the state's components, and both together, on the same folds.

    Args:
      z: [n, T-1, A] latent actions.
      u: [n, T-1, U] real actions, aligned.
      states: from `components`.
      episodes: [n] str.
      names: U names of the actions; None for "action 0", "action 1", ...

    Returns:
      One dict per action: `name`, `latents`, `state` and `both`, intervals of R² as from
      `probe`, and `added`, the interval of R² of both minus R² of the state, paired over
      episodes. All are None for an action that always equals its mean.
    """
    inputs = {"latents": [z, z], "state": states}
    inputs["both"] = [np.concatenate([z, x], 2) for x in states]
    results = {name: errors(x, u, episodes) for name, x in inputs.items()}
    rows = []
    for i in range(u.shape[2]):
        row = {"name": names[i] if names else f"action {i}", "added": None}
        spread = results["both"][1][:, i]
        for name, (error, _) in results.items():
            row[name] = _r2(error[:, i], spread, episodes)
        if spread.any():
            gain = results["state"][0][:, i] - results["both"][0][:, i]
            row["added"] = metrics.ratio(gain, spread, episodes)
        rows.append(row)
    return rows

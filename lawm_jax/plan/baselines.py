"""Baseline plans that need no model. They are ours, not the paper's."""

import numpy as np

from lawm_jax.evaluate import row_names


def plans(start, goal, training, u, mean, std, hold=1, seed=0):
    """Computes the plans of all baselines: name -> [n, H, U].

    Args:
      start, goal: [n, N, D], states.
      training: `Clips` for training, with actions.
      u: [n, H, U], the true actions; plans have the same shape and dtype.
      mean, std: [H / hold, U], of the planner's initial Gaussian.
      hold: number of steps for which each action is repeated.
      seed: seed of the random actions.
    """
    noise = np.random.default_rng(seed).normal(size=(len(u), *mean.shape)).astype(u.dtype)
    return {
        row_names.NO_ACTION: np.zeros_like(u),
        row_names.MEAN_ACTION: np.broadcast_to(training.actions.mean((0, 1)), u.shape),
        row_names.RANDOM_ACTION: np.repeat(mean + std * noise, hold, 1),
        row_names.NEAREST: nearest(start, goal, training.s, training.actions, u.shape[1]),
    }


def nearest(start, goal, s, u, horizon):
    """Returns the actions of the training window whose end states are nearest to start and goal.

    Args:
      start, goal: [n, N, D].
      s: [m, T, N, D], states of training clips.
      u: [m, T-1, U], their actions.
      horizon: steps of a window.

    Returns:
      [n, horizon, U].

    Raises:
      ValueError: training clips are not longer than the horizon.
    """
    m, T = s.shape[:2]
    if T <= horizon:
        raise ValueError(
            f"horizon: expected less than the {T} steps of a training clip, got {horizon}"
        )
    mse = lambda x: ((s[None] - x[:, None, None]) ** 2).mean((3, 4))  # noqa: E731
    windows = []
    for first, last in zip(start, goal, strict=True):  # one at a time, to save memory
        distance = mse(first[None])[0, :, : T - horizon] + mse(last[None])[0, :, horizon:]
        clip, t = np.unravel_index(distance.argmin(), distance.shape)
        windows.append(u[clip, t : t + horizon])
    return np.stack(windows)

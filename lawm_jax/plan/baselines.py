"""Plans that need no model, to compare a model's plans with. They are ours, not the paper's."""

import numpy as np

from lawm_jax.evaluate import row_names


def plans(start, goal, training, u, mean, std, hold=1, seed=0):
    """Makes the plans of all baselines.

    Args:
      start, goal: [n, N, D], states.
      training: `Clips` of the training part, with actions.
      u: [n, H, U], the true actions, whose shape and dtype plans have.
      mean, std: [H / hold, U], of the planner's first Gaussian.
      hold: steps that each action is taken for.
      seed: of the random actions.

    Returns:
      name -> [n, H, U].
    """
    noise = np.random.default_rng(seed).normal(size=(len(u), *mean.shape)).astype(u.dtype)
    return {
        row_names.NO_ACTION: np.zeros_like(u),
        row_names.MEAN_ACTION: np.broadcast_to(training.actions.mean((0, 1)), u.shape),
        row_names.RANDOM_ACTION: np.repeat(mean + std * noise, hold, 1),
        row_names.NEAREST: nearest(start, goal, training.s, training.actions, u.shape[1]),
    }


def nearest(start, goal, s, u, horizon):
    """Retrieves actions: those of the training window whose first and last state are the nearest.

    Args:
      start, goal: [n, N, D].
      s: [m, T, N, D], states of training clips.
      u: [m, T-1, U], their actions.
      horizon: steps of a window.

    Returns:
      [n, horizon, U].

    Raises:
      ValueError: training clips are shorter than the horizon.
    """
    m, T = s.shape[:2]
    if T <= horizon:
        raise ValueError(f"horizon: expected less than the {T} steps of a clip, got {horizon}")
    to = lambda x: ((s[None] - x[:, None, None]) ** 2).mean((3, 4))  # noqa: E731
    found = []
    for first, last in zip(start, goal, strict=True):  # one by one: less memory
        distance = to(first[None])[0, :, : T - horizon] + to(last[None])[0, :, horizon:]
        clip, t = np.unravel_index(distance.argmin(), distance.shape)
        found.append(u[clip, t : t + horizon])
    return np.stack(found)

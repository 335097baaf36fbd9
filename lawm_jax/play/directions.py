"""Maps keys to directions of latents and to multiples of real actions."""

from typing import NamedTuple

import numpy as np


class Axes(NamedTuple):
    """Describes up to three directions in which latents are changed.

    Attributes:
      mean: [A], the latent between the two ends of every direction.
      directions: [k, A], in units of the latents' standard deviation along each.
      share: [k], share of the latents' variance along each.
      hints: k str, the real action that a direction follows most, with their correlation; or "".
    """

    mean: np.ndarray
    directions: np.ndarray
    share: np.ndarray
    hints: tuple


def principal(z, u=None, names=(), most=3):
    """Computes the principal directions of inferred latents.

    Args:
      z: [m, A], inferred latents.
      u: [m, U], the real actions of the same steps, or None. With them, a direction points the way
        of the action that correlates most with it.
      names: names of the U actions.
      most: maximum number of directions.

    Returns:
      An `Axes`; directions without variance are left out.
    """
    mean = z.mean(0)
    left, size, right = np.linalg.svd(z - mean, full_matrices=False)
    variance = size**2
    keep = min(most, int((variance > 1e-9 * max(variance.sum(), 1e-12)).sum()))
    directions, hints = right[:keep] * size[:keep, None] / np.sqrt(len(z)), []
    for i in range(keep):
        sign, hint = np.sign(right[i, np.abs(right[i]).argmax()]), ""
        if u is not None:
            with np.errstate(invalid="ignore", divide="ignore"):
                r = np.array([np.corrcoef(left[:, i], x)[0, 1] for x in u.T])
            best = int(np.nan_to_num(np.abs(r)).argmax())
            if abs(r[best]) > 0.3:
                sign, hint = np.sign(r[best]), f"{names[best]}, r = {abs(r[best]):.2f}"
        directions[i] *= sign
        hints.append(hint)
    return Axes(mean, directions, variance[:keep] / variance.sum(), tuple(hints))


def along(axes, values, size):
    """Returns the latent [A] at `values` [k] times `size` standard deviations along the axes."""
    return axes.mean + np.float32(size) * np.asarray(values, np.float32) @ axes.directions


def action(mean, std, values, size):
    """Returns a real action [U] at `values` [U] times `size` times its usual magnitude.

    The magnitude is the root mean square, so that 0 is no action and forward is forward, also where
    actions have a mean, as those of a walk.
    """
    return np.float32(size) * np.asarray(values, np.float32) * np.sqrt(mean**2 + std**2)

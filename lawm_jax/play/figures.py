"""Draws the notebooks' figures: frames, videos, curves, latent actions and states."""

import os
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np

from lawm_jax import world_model
from lawm_jax.data import mini
from lawm_jax.evaluate import figures, probing
from lawm_jax.play import directions, notebook

XYZ = "x, meters", "y, meters", "z, meters"  # axes of the embedded arm's hand


def strips(title, rows, columns=None):
    """Draws rows of frames below each other.

    Args:
      title: of the figure.
      rows: label -> [T, H, W, 3], uint8 frames.
      columns: column names; None numbers the steps.

    Returns:
      An `IPython.display.Image`.
    """
    rows = {label: np.asarray(frames) for label, frames in rows.items()}
    return _image(figures.strips, title, rows, columns)


def film(rows, fps=mini.FPS):
    """Writes clips side by side as a video.

    Args:
      rows: label -> [T, H, W, 3], uint8 frames; shorter clips show their last frame until the
        longest one ends.
      fps: steps per second.

    Returns:
      An `IPython.display.Video`, or None for no clips.
    """
    from IPython.display import Video

    if not rows:
        return None
    rows = {label: np.asarray(frames) for label, frames in rows.items()}
    most = max(map(len, rows.values()))
    rows = {k: np.concatenate([x, x[-1:].repeat(most - len(x), 0)]) for k, x in rows.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "film.mp4")
        figures.movie(path, rows, fps)
        return Video(pathlib.Path(path).read_bytes(), embed=True, mimetype="video/mp4")


def curves(panels):
    """Draws curves over the steps of a clip, see `figures.curves`: an `IPython.display.Image`."""
    return _image(figures.curves, panels)


def _image(draw, *args):
    """Returns the `IPython.display.Image` of a figure that `draw(path, *args)` writes."""
    from IPython.display import Image

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "figure.png")
        draw(path, *args)
        return Image(pathlib.Path(path).read_bytes())


def sweep(model, params, s, inferred, steps=7, size=1.0, most=2):
    """Repeats a latent action along each main direction of latent actions.

    Args:
      model, params: a world model with a decoder.
      s: [1, 1, N, D], the state to start from.
      inferred: [n, T-1, A], inferred latent actions, which define the directions.
      steps: number of steps.
      size: standard deviations of the latent action.
      most: maximum number of directions.

    Returns:
      label -> uint8 [steps + 1, H, W, 3], imagined frames, for both ways of each direction.
    """
    axes = directions.principal(np.asarray(inferred).reshape(-1, inferred.shape[-1]), most=most)
    names = [f"direction {i + 1} {sign}" for i in range(len(axes.directions)) for sign in "−+"]
    ends = np.concatenate([[-x, x] for x in axes.directions])
    z = jnp.repeat(jnp.asarray(axes.mean + size * ends)[:, None], steps, 1)
    start = jnp.repeat(jnp.asarray(s), len(ends), 0)
    ahead = notebook.compiled(world_model.rollout)(model, params, start, z)
    video = notebook.compiled(world_model.decode)(model, params, jnp.concatenate([start, ahead], 1))
    return dict(zip(names, np.asarray(video), strict=True))


def projections(inferred, z, most=3):
    """Projects latent actions z [T-1, A] onto the main directions of inferred ones [n, T-1, A].

    Returns:
      label -> [T-1], in standard deviations.
    """
    axes = directions.principal(np.asarray(inferred).reshape(-1, inferred.shape[-1]), most=most)
    size = np.square(axes.directions).sum(1)
    series = (np.asarray(z) - axes.mean) @ axes.directions.T / size
    return {
        f"direction {i + 1} ({axes.share[i]:.0%} of variance)": x for i, x in enumerate(series.T)
    }


def read_actions(z, u, test_z, test_u, names=XYZ):
    """Predicts real actions from latent actions with a linear map, beside the recorded actions.

    Args:
      z, u: [n, T-1, A] latent and [n, T-1, U] real actions, to fit the map to.
      test_z, test_u: [t, A] and [t, U] of a clip that is not among them.
      names: of the real actions.

    Returns:
      Panels for `curves`: name -> {"recorded": [t], "read from latent actions": [t]}.
    """
    z, u, test_u = (np.asarray(x) for x in (z, u, test_u))
    _, read = probing.ridge(z.reshape(-1, z.shape[-1]), u.reshape(-1, u.shape[-1]))
    predicted = read(np.asarray(test_z))
    return by_axis({"recorded": test_u, "read from latent actions": predicted}, names)


def by_axis(actions, names=XYZ):
    """Returns panels for `curves`, one per axis of real actions, of label -> [T, U]."""
    return {name: {key: u[:, i] for key, u in actions.items()} for i, name in enumerate(names)}


def colored(rows):
    """Colors states by their three main components, to look at states without a decoder.

    Args:
      rows: label -> [T, N, D], states of N tokens in a square; the components and the scale of
        colors are those of the first row.

    Returns:
      label -> uint8 [T, H, W, 3], one flat square per token.
    """
    rows = {label: np.asarray(s, np.float32) for label, s in rows.items()}
    first = next(iter(rows.values()))
    flat = first.reshape(-1, first.shape[-1])
    mean = flat.mean(0)
    basis = np.linalg.eigh(np.cov((flat - mean).T))[1][:, :-4:-1]
    low, high = np.percentile((flat - mean) @ basis, (2, 98), axis=0)
    side = round(first.shape[1] ** 0.5)
    cell, colored_rows = max(1, 128 // side), {}
    for label, s in rows.items():
        value = ((s - mean) @ basis - low) / np.maximum(high - low, 1e-9)
        value = np.rint(255 * value.clip(0, 1)).astype(np.uint8).reshape(-1, side, side, 3)
        colored_rows[label] = value.repeat(cell, 1).repeat(cell, 2)
    return colored_rows

"""Computes the videos and curves of the tabs Transfer, Sample and Look from clips."""

import numpy as np


def transfer(world, action, scene):
    """Applies the latent actions of one clip in the scene of another.

    Args:
      world: `World`.
      action, scene: two `library.Clip`, encoded.

    Returns:
      Pictures of the result, a list that begins with the scene's first state.
    """
    start = world.start(scene.video, scene.s)
    return [world.paint(start), *world.follow(start, action.z)[1]]


def sample(world, clip, inferred, count, steps, seed):
    """Samples futures of a clip's first state.

    Every latent is drawn in the state predicted before it, from the learned prior or, without one,
    from a Gaussian of inferred latents.

    Args:
      world: `World`.
      clip: `library.Clip`, encoded.
      inferred: [m, A], inferred latents.
      count, steps: number of futures, and of their steps.
      seed: int.

    Returns:
      A list of `count` lists of pictures, each beginning with the first state.
    """
    start, films, learned = world.start(clip.video, clip.s), [], world.model.prior is not None
    seeds = np.random.default_rng(seed).integers(2**31, size=(count, steps))
    drawn = None if learned else world.gaussian(seed, (count, steps, inferred.shape[1]), inferred)
    for i in range(count):

        def latent(t, state, i=i):
            return world.sample(int(seeds[i, t]), state) if learned else drawn[i, t]

        films.append([world.paint(start), *world.walk(start, steps, latent)[1]])
    return films


def look(world, source_axes, clip):
    """Describes the latents of a clip.

    Args:
      world: `World`.
      source_axes: `directions.Axes` onto which the latents are projected.
      clip: `library.Clip`, encoded.

    Returns:
      series: [k, F-1], the latents along each axis, in standard deviations.
      codes: [F-1] int, or None if latents are not discrete.
      effect: [F-1], mean absolute difference between the prediction with each latent and with the
        mean latent: the effective size of the step.
      change: [F-1], mean absolute difference between each state and the next.
    """
    mean, directions = source_axes.mean, source_axes.directions
    size = np.square(directions).sum(1)
    series = (clip.z - mean) @ directions.T / size
    codes = world.nearest(clip.z) if world.codes else None
    effect = []
    for t in range(len(clip.z)):
        past, before = list(clip.s[: t + 1]), list(clip.z[:t])
        with_z, without = (world.ahead(past, [*before, z])[0] for z in (clip.z[t], mean))
        effect.append(np.abs(with_z - without).mean())
    change = np.abs(np.diff(clip.s, axis=0)).mean((1, 2))
    return series.T, codes, np.array(effect), change

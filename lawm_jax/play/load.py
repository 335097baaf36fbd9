"""Loads a trained model with its controllers, prior and clips, ready to play."""

import time
import warnings

import jax
import numpy as np

from lawm_jax.plan import tasks
from lawm_jax.play import library, planning, shared
from lawm_jax.play import world as world_
from lawm_jax.train import exported, models, rundir

SLOW = 0.05  # seconds per step; with more, a held key gives fewer than 20 frames per second


def load(workdir, data=None, source=None, say=print):
    """Loads the model and clips of a page, and compiles the functions that it calls.

    Args:
      workdir: folder of a run or an exported model, the name of one that ships, or
        "ORGANIZATION/NAME" on the Hugging Face Hub.
      data: name -> data source to use instead of the run's own, or None.
      source: name of the only data source to use, or None for all.
      say: function that receives lines about the progress.

    Returns:
      A `shared.Shared`.

    Raises:
      FileNotFoundError: there is no such model.
      ValueError: the model is not conditioned on actions, or no data source has video.
    """
    begin, folder = time.monotonic(), exported.find(workdir)
    sources, frames, fps = library.open_sources(folder, data, source)
    say(f"{workdir}: loading the model, with clips of {', '.join(x.name for x in sources)}")
    config, prior = rundir.read_config(folder), True
    try:
        model, params = models.load(folder, controller="", prior=True)
    except (FileNotFoundError, ValueError) as error:
        model, params = models.load(folder, controller="")
        prior = str(error) if isinstance(error, ValueError) else ""
    controllers = {x.name: pair for x in sources if (pair := _controlled(folder, x, model))}
    by_frame = world_.by_frame(model)
    world = world_.World(model, params, tasks.window(config, by_frame), frames, controllers)
    say("compiling; this takes about ten seconds for a small model on a CPU")
    world.compile()
    for x in sources:
        x.fill(world)
    seconds = _seconds_per_step(world)
    notes = _notes(model, world, sources, seconds, prior)
    about = _about(workdir, model, config)
    say(f"ready after {time.monotonic() - begin:.0f} s; a step takes {1000 * seconds:.0f} ms")
    return shared.Shared(world, sources, planning.Planner(world), fps, about, notes)


def _controlled(folder, source, model):
    """Returns (model, params) that maps the real actions of a source to latents, or None."""
    if not source.names:
        return None
    if model.latent is not None and model.latent.labelled:
        trained = models.trained_on(folder, source.name, source.spec)
        return models.load(folder) if trained else None
    for controller in models.controllers_of(folder, source.name, source.spec):
        try:
            loaded, params = models.load(folder, controller=controller)
        except (FileNotFoundError, ValueError) as error:
            warnings.warn(f"skipping a controller: {error}", stacklevel=2)
            continue
        if loaded.controller.actions == len(source.names):
            return loaded, params
    return None


def _seconds_per_step(world):
    """Measures the median time of a step."""
    clip = np.zeros((1, world.model.size, world.model.size, 3), np.uint8)
    states, z = [world.encode(clip)[0]], np.zeros(world.model.latent.dim, np.float32)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        world.ahead(states, [z])
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _about(workdir, model, config):
    """Describes the model in one line."""
    kind, strength = model.latent.kind, model.latent.strength
    detail = f", strength {strength:g}" if strength else ""
    return (
        f"{workdir}: {kind} latents{detail}, {model.latent.dim} dimensions; {model.size} pixels, "
        f"{config['data'].get('fps', 4.0):g} frames per second"
    )


def _notes(model, world, sources, seconds, prior):
    """Lists missing and slow features, for the page."""
    notes = []
    if not world.paints:
        notes.append(
            "This model has no decoder, so its imagined frames cannot be shown. Train one with "
            "configs/decoder.py and place the run in W/decoder. The Look tab works without it."
        )
    if seconds > SLOW:
        notes.append(
            f"A step takes {1000 * seconds:.0f} ms on this machine ({jax.default_backend()}), so a "
            f"held key produces about {1 / seconds:.1f} frames per second."
        )
    if model.encoder.tubelet > 1:
        notes.append(
            "Each frame is one time step here, as in planning, although the encoder was trained on "
            f"steps of {model.encoder.tubelet} frames."
        )
    if isinstance(prior, str) and prior:
        notes.append(f"Ignoring the learned prior: {prior}")
    without = [x.name for x in sources if x.names and x.name not in world.controllers]
    if without and model.latent.inferred:
        notes.append(
            f"No controller for {', '.join(without)}, so real actions and the Plan tab are not "
            "available for it. Train one with configs/controller.py."
        )
    return notes

"""Measures a trained model on held-out clips, episode by episode, for studies.

Evaluations report intervals over episodes; a study also needs to pair models and to count seeds,
so it needs the value of every episode.
"""

import json
import os

import jax
import ml_collections
import numpy as np

from lawm_jax.data import catalog, paths
from lawm_jax.evaluate import (
    clips,
    context,
    control,
    cycle,
    leakage,
    locality,
    prediction,
    priors,
    row_names,
    two_sample,
)
from lawm_jax.train import models, rundir

TRAINING = 64  # training clips whose latents samplers may use


def measure(workdir, sources):
    """Measures a run and writes WORKDIR/measures.json.

    Args:
      workdir: folder of a world model's run, with controllers in WORKDIR/controller.
      sources: name -> data source, whose held-out clips are used.

    The file holds, for each source, `episodes`, a list of E names, and `values`: measure -> list of
    E means over clips (None if the episode has none), or a number that has no value by episode. See
    the functions below.
    """
    config = ml_collections.ConfigDict(rundir.read_world_model(workdir))
    config = catalog.with_sources(config, sources)
    loaded = models.load(workdir, controller="")
    result = {}
    for name, spec in sources.items():
        source = context.Source(config, name, {config.latent.kind: loaded}, folder=None)
        for folder in models.controllers_of(workdir, name, spec):
            kind = rundir.read_config(folder)["controller"]["kind"]
            source.controllers[kind] = models.load(workdir, controller=folder)
        values = one_step(source)
        if source.pairs and source.latents:
            values |= at_cut(source) | cycled(source) | acted(source) | auc(source)
        if source.controllers:
            values |= driven(source)
        result[name] = _by_episode(values, source.clips.episodes)
    path = os.path.join(workdir, "measures.json")
    paths.write(path, json.dumps(result, allow_nan=False))
    return path


def one_step(source):
    """Measures the error one step ahead, and that of copying: see `prediction`."""
    s, z = source.clips.s, source.z(source.main)
    predicted = source.models[source.main].predict(s[:, :-1], z)
    return {
        "error": prediction.per_step(predicted, s[:, 1:]).mean(1),
        "copying": prediction.per_step(s[:, :-1], s[:, 1:]).mean(1),
    }


def at_cut(source):
    """Measures errors at a scene cut and without one, of the model and of copying: `leakage`."""
    s = source.clips.s
    errors = leakage.errors(source.inferring, source.cut[1], s, s.shape[1] // 2, main=())
    model, copying = errors[source.main], errors[row_names.COPY]
    return {"cut": model[0], "uncut": model[1], "copying cut": copying[0]} | {
        "copying uncut": copying[1]
    }


def cycled(source):
    """Measures rollouts by own, transferred and other latents: `cycle`."""
    model = source.models[source.main]
    errors = cycle.errors(model, source.clips.s, source.clips.episodes)
    return dict(zip(("own", "cycled", "shuffled"), errors, strict=True))


def acted(source):
    """Measures the shares of a latent's effect, in the transitions of each clip: `locality`."""
    model, s = source.models[source.main], source.clips.s
    inputs = model, s, source.clips.episodes, source.model.merge
    clip, *shares = locality.shares_of_effect(*inputs)
    names = "effect inside", "effect mirrored", "effect by chance"
    return {name: (clip, x) for name, x in zip(names, shares, strict=True) if len(clip)}


def auc(source):
    """Measures how well a classifier separates samples from inferred latents: `sampling`."""
    model, batched = source.model, source.models[source.main]
    s, groups = source.clips.s, np.asarray(source.clips.episodes)
    z = batched.draw(s, 0)
    flat, groups = priors.flat(z), np.repeat(groups, z.shape[1])
    training = clips.training(source.config, source.name, source.encode, TRAINING)
    training, areas = priors.flat(batched.draw(training.s, 0)), {}
    if np.ptp(flat, axis=0).max() == 0:
        return areas
    for i, (name, sample) in enumerate(model.latent.samplers(source.params.get("latent")).items()):
        drawn = np.asarray(sample(jax.random.key(i + 1), flat.shape, training))
        tested = two_sample.test(drawn, flat, np.tile(groups, 2))
        areas[f"AUC of {name}"] = tested["auc"]["mean"]
    return areas


def driven(source):
    """Measures rollouts from real actions through each controller: `control`."""
    s, actions = source.clips.s, source.clips.actions
    rolled = control.roll_out(source.controllers, s, actions)
    errors = {name: np.abs(x - s[:, 1:]).mean((1, 2, 3)) for name, x in rolled.items()}
    return {f"driven, {name}": error for name, error in errors.items()}


def _by_episode(values, episodes):
    """Averages values over the clips of each episode.

    Args:
      values: name -> [n], a value per clip; or clips [m] and values [m]; or a number, which stays.
      episodes: [n] str.
    """
    names, index = np.unique(episodes, return_inverse=True)
    result = {"episodes": names.tolist(), "values": {}}
    for name, x in values.items():
        if np.ndim(x) == 0:
            result["values"][name] = float(x)
            continue
        clip, x = x if isinstance(x, tuple) else (np.arange(len(index)), x)
        count = np.bincount(index[clip], minlength=len(names))
        total = np.bincount(index[clip], x, minlength=len(names))
        result["values"][name] = [t / n if n else None for t, n in zip(total, count, strict=True)]
    return result

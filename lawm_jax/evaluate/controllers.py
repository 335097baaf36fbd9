"""Trains the controllers that `labels` compares, each on some of the labeled episodes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lawm_jax.configs import controller as recipe
from lawm_jax.evaluate import batched
from lawm_jax.nn.controller import Controller
from lawm_jax.train import objectives, optim, sharding

STEPS, BATCH = 300, 16  # clips of all time steps per batch


def fit(model, params, clips, counts, seed=0, steps=STEPS, batch=BATCH):
    """Trains a controller per number of episodes; larger sets of episodes contain the smaller ones.

    Network, loss and optimizer are those of `configs/controller.py:size=nano,kind=state`, for fewer
    steps. The scale of actions and latents is measured on the same episodes.

    Args:
      model, params: a world model with one time step per frame.
      clips: Clips with states of that model and real actions.
      counts: numbers of episodes.
      seed: seed of the order of episodes, parameters and batches.
      steps, batch: number of updates, clips per batch.

    Returns:
      count -> (model, params) with the controller.
    """
    config = recipe.get_config("size=nano,kind=state")
    network = config.controller.to_dict() | {"actions": clips.actions.shape[2]}
    network |= {"dtype": jnp.dtype(network["dtype"])}
    model = dataclasses.replace(model, controller=Controller(model.latent.dim, **network))
    tx, _ = optim.make(config.optim, steps)
    z, mesh = batched.batched(model, params).infer(clips.s), batched.mesh_of(params)
    objective, random = objectives.OBJECTIVES["controller"], np.random.default_rng(seed)
    order = random.permutation(np.unique(clips.episodes))

    @jax.jit
    def step(params, opt, s, u, z):
        loss = lambda params: objective.loss(model, params, None, dict(s=s, u=u, z=z), None)[0]  # noqa: E731
        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    result = {}
    for count in counts:
        chosen = np.flatnonzero(np.isin(clips.episodes, order[:count]))
        trained = objective.init_params(model, jax.random.key(seed), clips.s[:1])
        trained = _standardize(objective, model, trained, clips.actions[chosen], z[chosen])
        opt = tx.init(trained)
        for _ in range(steps):
            rows = random.choice(chosen, batch)
            trained, opt = step(trained, opt, clips.s[rows], clips.actions[rows], z[rows])
        trained = trained if mesh is None else sharding.distribute(mesh, trained)
        result[count] = model, params | trained
    return result


def _standardize(objective, model, params, u, z):
    """Sets the scale of actions u [n, T-1, U] and latents z [n, T-1, A] in initial parameters."""
    std = u.std((0, 1))
    scale = {"mean": u.mean((0, 1)), "std": np.where(std > 0, std, 1).astype(np.float32)}
    return objective.standardise(model, params, scale, lambda: {"z": jnp.asarray(z)})

"""Priors fitted to a model's inferred latent actions: a learned prior and a Gaussian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lawm_jax.data import catalog
from lawm_jax.evaluate import clips
from lawm_jax.nn import prior

TRAINING = 128  # clips per data source for fitting a prior


def fit_to_run(config, source):
    """Fits one prior to latents, drawn as in `sampling`, of training clips from all data sources.

    Args:
      config: the run's config.
      source: any `context.Source` of the run.

    Returns:
      The latents, [m, A], and (network, params) of the prior.
    """
    latents, states = [], []
    for name in catalog.names(config):
        loaded = clips.training(config, name, source.encode, TRAINING)
        latents.append(source.models[source.main].draw(loaded.s, config.seed))
        states.append(loaded.s.mean(2, keepdims=True))  # a prior only uses the mean token
    z, s = np.concatenate(latents), np.concatenate(states)
    return flat(z), fit(z, s)


def fit(z, s, seed=0, steps=1000, batch=128, rate=2e-3, network=None):
    """Trains a prior on the inferred latents of clips, and returns its network and params.

    Args:
      z: [n, T-1, A] float32, inferred latents of training clips.
      s: [n, T, N, D] float32, their states; the last step has no latent and is not used.
      seed: seed of parameters, noise and batches.
      steps, batch, rate: number of AdamW updates, transitions per batch, peak learning rate.
      network: the Prior to train; None for the default one.

    Raises:
      ValueError: z does not have one latent for every step of s except the last.
    """
    if z.ndim != 3 or s.ndim != 4 or z.shape[:2] != (s.shape[0], s.shape[1] - 1):
        raise ValueError(f"z: expected [n, T-1, A] for s [n, T, N, D] = {s.shape}, got {z.shape}")
    network = network or prior.Prior()
    start, run = jax.random.split(jax.random.key(seed))
    z, s = flat(z), pooled(s[:, :-1])
    params = jax.jit(prior.init, static_argnums=0)(network, start, z, s)
    return network, _train(network, params, run, z, s, steps, batch, rate)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _train(network, params, key, z, s, steps, batch, rate):
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps)
    tx = optax.adamw(schedule, weight_decay=0.04)
    scale = {"scale": params["scale"]}  # not trained, no weight decay
    weights = {name: p for name, p in params.items() if name != "scale"}

    def step(carry, key):
        weights, state = carry
        pick, noise = jax.random.split(key)
        rows = jax.random.randint(pick, (batch,), 0, len(z))
        loss = lambda w: prior.flow_loss(network, w | scale, noise, z[rows], s[rows])  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, tx.init(weights)), jax.random.split(key, steps))
    return weights | scale


def draw(network, params, key, s):
    """Samples a latent from a prior for each state of s [n, T, N, D]: [n T, A]."""
    return _sample(network, params, key, pooled(s))


_sample = jax.jit(prior.sample, static_argnums=0)


def flat(z):
    """Flattens clips and steps: [n, T-1, A] -> [n (T-1), A]."""
    return np.asarray(z, np.float32).reshape(-1, z.shape[-1])


def pooled(s):
    """Averages tokens, as the input of a prior: [n, T, N, D] -> [n T, 1, D]."""
    return np.asarray(s, np.float32).mean(2).reshape(-1, 1, s.shape[-1])


def gaussian(key, shape, z):
    """Samples from a Gaussian with the mean and covariance of latents z [k, A]: [..., A]."""
    mean, covariance = jnp.asarray(z.mean(0)), jnp.cov(z, rowvar=False).reshape(z.shape[1], -1)
    return jax.random.multivariate_normal(key, mean, covariance, shape[:-1], method="svd")

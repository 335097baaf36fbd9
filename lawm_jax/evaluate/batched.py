"""Wraps a trained model in numpy functions that process any number of clips in batches."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from lawm_jax import world_model
from lawm_jax.train import sharding


class Batched(NamedTuple):
    """Holds a model's functions on numpy arrays of any number n of clips.

    Attributes:
      infer: s [n, T, N, D] -> z [n, T-1, A], the mean latent actions. A labeled model,
        conditioned on real actions, maps the actions given to `batched`; s must be of their clips.
      predict: s [n, T, N, D], z [n, T, A] -> [n, T, N, D]; entry t predicts step t + 1 from the
        true past.
      rollout: s [n, T, N, D], z [n, T-1+P, A] -> [n, P, N, D], open loop.
      draw: s [n, T, N, D] and a seed -> z [n, T-1, A]. Noisy latents are sampled from their
        posteriors, whose aggregate training matches to N(0, I); other kinds are as in `infer`.
    """

    infer: Callable
    predict: Callable
    rollout: Callable
    draw: Callable | None = None


def batched(model, params, batch=16, actions=None):
    """Builds the `Batched` functions of a trained model; each is compiled once per clip shape.

    Args:
      model, params: the world model.
      batch: clips per batch.
      actions: float32 [n, T-1, U], the real actions of the clips, for a labeled model only.
    """

    def function(f):
        jitted = jax.jit(lambda params, *arrays: f(model, params, *arrays))
        return in_batches(jitted, params, batch)

    infer_actions = function(
        lambda model, params, s: world_model.infer_actions(model, params, s)[0]
    )
    map_actions, posterior = function(world_model.map_actions), function(_posterior)

    def infer(s):
        return map_actions(actions, s[:, :-1]) if model.latent.labelled else infer_actions(s)

    def draw(s, seed):
        if not model.latent.random:
            return infer(s)
        keys = jax.random.split(jax.random.key(seed), len(s))  # so draws do not depend on batch
        return posterior(s, np.asarray(jax.random.key_data(keys)))  # keys pass as numpy arrays

    return Batched(infer, function(world_model.predict), function(world_model.rollout), draw)


def _posterior(model, params, s, keys):
    """Samples the latents of clips s [n, T, N, D] with one key per clip, [n, ...]."""
    infer = lambda s, key: world_model.infer_actions(  # noqa: E731
        model, params, s[None], jax.random.wrap_key_data(key)
    )
    return jax.vmap(infer)(s, keys)[0][:, 0]


def encoder(model, params, batch=16):
    """Builds a function that encodes any number of clips.

    Args:
      model, params: the world model; only the encoder's parameters are used.
      batch: clips per batch.

    Returns:
      A function of video uint8 [n, F, H, W, 3] to states float32 [n, T, N, D], numpy arrays.
    """
    encode = jax.jit(lambda params, video: world_model.encode(model, params, video))
    return in_batches(encode, {"encoder": params["encoder"]}, batch)


def frame_encoder(model, params, batch=16):
    """Builds a function that encodes each frame of clips independently.

    With a video encoder, the state of a step depends on the other frames of the clip. A goal and
    the current observation are single images, so each is encoded as one time step, as in jepa-wms
    and V-JEPA 2-AC (`forward_target`), which repeat the image over a tubelet.

    Args:
      model, params, batch: as in `encoder`; one frame must be one time step of the model.

    Returns:
      A function of video uint8 [n, F, H, W, 3] to states float32 [n, F, N, D], numpy arrays.
    """
    encode = encoder(model, params, batch)

    def run(video):
        alone = encode(video.reshape(-1, 1, *video.shape[2:]))
        return alone.reshape(*video.shape[:2], *alone.shape[2:])

    return run


def driven(model, params, s, actions, batch=16):
    """Rolls out real actions from single states: [n, N, D], [n, P, U] -> [n, P, N, D]."""

    @jax.jit
    def run(params, s, actions):
        z = np.zeros((len(s), 0, model.latent.dim), np.float32)
        cache = world_model.prefill(model, params, s[:, None], z)
        return world_model.rollout_actions(model, params, cache, actions)

    return in_batches(run, params, batch)(s, actions)


def in_batches(function, params, batch=16):
    """Applies function(params, *arrays) to a batch of clips at a time, padding the last batch.

    If the parameters are on a mesh, as `lawm.load` places them, its devices share the clips.

    Args:
      function: params and arrays [batch, ...] -> an array [batch, ...].
      params: first argument of `function`.
      batch: clips per batch, per device of an accelerator; all devices of a CPU share them.

    Returns:
      A function of numpy arrays [n, ...] that returns a numpy array [n, ...].
    """
    mesh = mesh_of(params)
    if mesh is not None:
        per_device = batch if jax.default_backend() != "cpu" else -(-batch // mesh.size)
        batch = per_device * mesh.size

    def apply(*part):
        if mesh is None:
            return function(params, *part)
        part = sharding.place(mesh, dict(enumerate(part)))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for fused attention
            return function(params, *part.values())

    def run(*arrays):
        n = len(arrays[0])
        results = []
        for i in range(0, n, batch):
            part = [x[i : i + batch] for x in arrays]
            short = batch - len(part[0])
            part = [np.concatenate([x, np.repeat(x[-1:], short, 0)]) for x in part]
            results.append(np.asarray(apply(*part))[: batch - short])
        return np.concatenate(results)

    return run


def mesh_of(params):
    """Returns the mesh that the parameters are on, or None."""
    meshes = {getattr(getattr(x, "sharding", None), "mesh", None) for x in jax.tree.leaves(params)}
    return meshes.pop() if len(meshes) == 1 else None

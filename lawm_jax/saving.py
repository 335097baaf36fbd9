"""Whole models on disk: what `lawm.load` and `lawm.save` do."""

import dataclasses
import json

import jax
import jax.numpy as jnp

from lawm_jax import world_model
from lawm_jax.training import checkpoints, sharding


def load(workdir, step=None, mesh=None):
    """Loads a trained model, without its optimiser.

    Args:
      workdir: folder of a training run, or one that `save` wrote.
      step: which checkpoint; None takes the newest that can be read.
      mesh: from `make_mesh`, to spread the parameters over; None takes the first device.

    Returns:
      (model, params), params with the encoder's.

    Raises:
      FileNotFoundError: no config.json or no checkpoint in the folder.
      ValueError: no checkpoint can be read.
    """
    model = world_model.build(checkpoints.read_config(workdir))
    mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
    frames = 2 * model.encoder.tubelet
    video = jax.ShapeDtypeStruct((1, frames, model.size, model.size, 3), jnp.uint8)
    store = checkpoints.Checkpoints(workdir, write=False)
    try:
        if store.latest is None:
            raise FileNotFoundError(f"{store.folder}: no checkpoint here")
        if "encoder" in store.parts(store.latest if step is None else step):
            options = json.loads(model.text)
            options["encoder"]["weights"] = ""  # shapes alone: public weights are not read
            drawn = dataclasses.replace(model, text=json.dumps(options))
            make, frozen = lambda key: world_model.init(drawn, key, video), {}
        else:  # a training run stores no encoder, it is frozen
            frozen = {"encoder": world_model.init_encoder(model, video)}
            s = world_model.state_shape(model, frozen["encoder"], video)
            make = lambda key: world_model.init_trainable(model, key, s)  # noqa: E731
        like = jax.eval_shape(make, jax.random.key(0))
        place = lambda tree: jax.tree.map(  # noqa: E731
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            tree,
            sharding.state_sharding(mesh, tree),
        )
        restored = store.restore({"params": place(like)}, step=step)
    finally:
        store.close()
    frozen = jax.device_put(frozen, sharding.state_sharding(mesh, frozen))
    return model, restored[1]["params"] | frozen


def save(workdir, model, params):
    """Saves a model with all its parameters, the encoder's too, so that `load` finds it.

    Args:
      workdir: a folder that holds no run yet; it is made.
      model: from `build`.
      params: as returned by `init` or `load`.

    Raises:
      ValueError: the folder holds checkpoints already.
    """
    store = checkpoints.Checkpoints(workdir)
    try:
        if store.latest is not None:
            raise ValueError(f"{store.folder}: expected no checkpoints, found step {store.latest}")
        checkpoints.write_config(workdir, json.dumps(json.loads(model.text), indent=1))
        store.save(0, {"params": params}, wait=True)
    finally:
        store.close()

"""Loads and saves whole models: `lawm.load` and `lawm.save`."""

import dataclasses
import json
import os
import shlex
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from lawm_jax import latents, world_model
from lawm_jax.data import catalog, paths
from lawm_jax.nn.prior import Prior
from lawm_jax.train import checkpoints, exported, objectives, rundir, sharding


def load(workdir, step=None, mesh=None, decoder=None, controller=None, prior=False):
    """Loads a trained model, without its optimizer state.

    Args:
      workdir: folder of a training run, or of a model that `save` or `save_pretrained` wrote, local
        or gs://BUCKET/FOLDER; or "nano", the model that ships with the package; or
        "ORGANIZATION/NAME" on the Hugging Face Hub, which is downloaded once.
      step: step of the checkpoint; None takes the newest readable one.
      mesh: from `make_mesh`, to shard the parameters over; None uses the first device.
      decoder: folder of a run that trained a decoder for the same encoder. None uses
        WORKDIR/decoder if it exists, else the model's own decoder, if any.
      controller: folder of a run that trained a controller for this model, or its name in
        WORKDIR/controller. None uses WORKDIR/controller if it holds exactly one, "" uses none.
      prior: whether to add the prior that `lawm_jax.evaluate` fitted to the latents, for
        `sample_actions` with states. A model with a prior has another hash.

    Returns:
      (model, params), including the parameters of the encoder, decoder, prior and controller.

    Raises:
      FileNotFoundError: there is no such model, or the folder holds no config.json, no checkpoint
        or, if requested, no prior.
      ValueError: no checkpoint is readable, the decoder belongs to another encoder, the controller
        to another model, or the prior to another step or is unreadable. If `controller` is None, a
        controller that does not fit gives a warning instead.
    """
    workdir = exported.find(workdir)
    config = rundir.read_config(workdir)
    model, objective = world_model.build(config), objectives.named(config)
    mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
    frames = 2 * model.encoder.tubelet
    video = jax.ShapeDtypeStruct((1, frames, model.size, model.size, 3), jnp.uint8)
    store = checkpoints.reader(workdir)
    try:
        if "encoder" in store.parts(store.latest if step is None else step):
            drawn = dataclasses.replace(model, weights="")  # for its shapes: reads no weights
            make, frozen = lambda key: world_model.init(drawn, key, video), {}
        else:  # a training run does not store the frozen encoder
            frozen = {"encoder": world_model.init_encoder(model, video)}
            s = world_model.state_shape(model, frozen["encoder"], video)
            make = lambda key: objective.init_params(model, key, s)  # noqa: E731
        like = jax.eval_shape(make, jax.random.key(0))
        place = lambda tree: jax.tree.map(  # noqa: E731
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            tree,
            sharding.state_sharding(mesh, tree),
        )
        restored = store.restore({"params": place(like)}, step=step)
    finally:
        store.close()
    params = complete(model, restored[1]["params"] | _place(frozen, mesh), mesh)
    if decoder is None:
        decoder = rundir.decoder(workdir)
    if decoder:
        model, params = _with_decoder(model, params, decoder, mesh)
    if prior:
        model, params = with_prior(model, params, workdir, restored[0], mesh)
    return _with_controller(model, params, workdir, controller, restored[0], mesh)


def warm_start(workdir, like, params):
    """Replaces initial parameters with those of a trained model where names and shapes agree.

    Args:
      workdir: folder of a run, or of an exported model.
      like: shapes of `params`, with shardings.
      params: initial parameters.

    Returns:
      The parameters, and a description of those that fit, for the log.

    Raises:
      FileNotFoundError: the folder holds no checkpoint.
      ValueError: no parameter fits, or the checkpoint is damaged.
    """
    store = checkpoints.reader(workdir)
    try:
        step = store.latest
        source, target = flatten_dict(store.shapes(step), sep="/"), flatten_dict(like, sep="/")
        mesh = next(iter(target.values())).sharding.mesh
        shardings = sharding.state_sharding(mesh, source)
        placed = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name])
            for name, x in source.items()
        }
        _, restored = store.restore({"params": unflatten_dict(placed, sep="/")}, step=step)
    finally:
        store.close()
    fit = [name for name, x in target.items() if name in source and source[name].shape == x.shape]
    if not fit:
        raise ValueError(f"init_from: expected parameters that match the config, got {workdir}")
    arrays, new = flatten_dict(restored["params"], sep="/"), flatten_dict(params, sep="/")
    new |= {name: arrays[name].astype(target[name].dtype) for name in fit}
    report = f"initialized from {workdir}, step {step}: {_describe_fit(source, target, fit)}"
    return unflatten_dict(new, sep="/"), report


def _describe_fit(source, target, fit):
    """Describes which arrays of `target` are taken from `source`, those in `fit`, and the rest."""
    size = lambda names: sum(target[name].size for name in names) / 1e6  # noqa: E731
    text = f"{len(fit)} of {len(target)} arrays match "
    text += f"({size(fit):.2f} of {size(target):.2f} M parameters)"
    other = {
        name: "different shape" if name in source else "new" for name in target.keys() - {*fit}
    }
    parts = sorted({f"{'/'.join(name.split('/')[:2])} ({why})" for name, why in other.items()})
    text += f"; randomly initialized: {', '.join(parts)}" if parts else ""
    unused = sorted({"/".join(name.split("/")[:2]) for name in source.keys() - {*fit}})
    return text + (f"; not used: {', '.join(unused)}" if unused else "")


def complete(model, params, mesh):
    """Adds the embedded decoder's parameters if they are missing, placed on the mesh."""
    if model.decoder is None or "decoder" in params:
        return params
    return params | _place(world_model.init_decoder(model, None, None), mesh)


def controllers_of(workdir, name, spec):
    """Finds a world model's controllers that were trained on a given source.

    Args:
      workdir: folder of the world model, with WORKDIR/controller or WORKDIR/controller/NAME.
      name, spec: the source, as in a config's `data.sources`; a match of either is enough.

    Returns:
      folder -> kind (see `controller_kind`), with controllers that see the state first.
    """
    folders = [folder for folder in rundir.controllers(workdir) if trained_on(folder, name, spec)]
    kinds = {folder: controller_kind(folder) for folder in folders}
    return dict(sorted(kinds.items(), key=lambda item: not item[1].startswith("state")))


def controller_kind(folder):
    """Returns "state" or "actions", with ", by prediction" for that loss, of a controller's run."""
    config = rundir.read_config(folder)
    by_prediction = config["objective"] == "controller_by_prediction"
    return config["controller"]["kind"] + (", by prediction" if by_prediction else "")


def trained_on(folder, name, spec):
    """Returns whether a run has a checkpoint and was trained on a source's real actions."""
    if not rundir.has_checkpoint(folder):
        return False
    config = rundir.read_config(folder)
    latent = config.get("latent")
    labelled = latent and latents.make(**latent).labelled
    if "controller" not in config and not labelled:
        return False
    data = config["data"]
    if data["videos"]:
        return same_source(data["videos"], spec)
    names = [key for key, weight in data["mixture"].items() if weight > 0]
    return len(names) == 1 and (names[0] == name or same_source(data["sources"][names[0]], spec))


def same_source(spec, other):
    """Returns whether two source specs are equal up to the spelling of relative paths."""
    return catalog.absolute(spec) == catalog.absolute(other)


def _with_decoder(model, params, folder, mesh):
    """Adds the decoder trained by the run in `folder`."""
    folder = paths.expand(folder)
    other, other_params = load(folder, mesh=mesh)
    encoders = [world_model.to_config(x)["encoder"] for x in (model, other)]
    for key in ("name", "weights", "causal", "normalise"):
        expected, got = (encoder.get(key) for encoder in encoders)
        if _absolute(expected) != _absolute(got):
            raise ValueError(
                f"{folder}: expected a decoder for an encoder with {key} {expected!r}, got {got!r}"
            )
    if "decoder" not in other_params:
        raise ValueError(f"{folder}: expected a run of configs/decoder.py, got no decoder")
    model = dataclasses.replace(model, decoder=other.decoder)
    return model, params | {"decoder": other_params["decoder"]}


def _absolute(x):
    """Returns the absolute path of an encoder's weights, and any other x unchanged."""
    return paths.absolute(x) if isinstance(x, str) else x


def _with_controller(model, params, workdir, name, step, mesh):
    """Adds a controller trained for this model by another run."""
    if name is None:
        folders = rundir.controllers(workdir)
        folder = folders[0] if len(folders) == 1 else ""
    else:
        folder = rundir.controller(workdir, name)
        if folder and not paths.is_dir(folder):
            folders = {os.path.basename(path): path for path in rundir.controllers(workdir)}
            names = [k if rundir.controller(workdir, k) == x else x for k, x in folders.items()]
            raise FileNotFoundError(
                f"{folder}: not found; expected a run's folder or the name of a controller of "
                f"{workdir} ({', '.join(names) or 'it has none'})"
            )
    if not folder:
        return model, params
    config = rundir.read_config(folder)
    if "controller" not in config:
        raise ValueError(f"{folder}: expected a run of configs/controller.py, got no controller")
    if not rundir.has_checkpoint(folder):
        raise FileNotFoundError(
            f"{folder}: expected a trained controller, got a run without checkpoints"
        )
    other = world_model.build(config)
    parts = "encoder", "weights", "merge", "normalise", "inverse", "latent"  # repeat may differ
    changed = [
        key for key in parts if _absolute(getattr(model, key)) != _absolute(getattr(other, key))
    ]
    seed = rundir.read_config(workdir)["seed"]
    if config.get("model_seed", seed) != seed:  # older controllers don't know it
        changed.append("seed")
    if config["model_step"] != step:
        changed.append("model_step")
    if changed:
        problem = (
            f"{folder}: was trained for a different model, which differs in {', '.join(changed)}"
        )
        if name is not None:
            raise ValueError(problem)
        warnings.warn(f"{problem}; ignoring the controller", stacklevel=3)
        return model, params
    other, other_params = load(folder, mesh=mesh)
    model = dataclasses.replace(model, controller=other.controller)
    return model, params | {"controller": other_params["controller"]}


def save_prior(workdir, step, prior, params):
    """Saves a learned prior next to its model, for `load(workdir, prior=True)`.

    Args:
      workdir: folder of the model's run.
      step: step of the checkpoint that the prior was fitted to.
      prior, params: from `priors.fit`.
    """
    arrays = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
    options = json.dumps({"width": prior.width, "depth": prior.depth})
    metadata = {"prior": options, "step": str(step)}
    paths.write(rundir.prior(workdir), safetensors.numpy.save(arrays, metadata))


def with_prior(model, params, workdir, step, mesh):
    """Adds the prior in the folder of a run, which must have been fitted to this step."""
    path = rundir.prior(workdir)
    if not paths.exists(path):
        raise FileNotFoundError(
            f"{path}: expected a learned prior, got none; fit one with "
            f"`python -m lawm_jax.evaluate --only sampling --workdir {shlex.quote(str(workdir))}`"
        )
    try:
        with paths.local_copy(path) as copy, safetensors.safe_open(copy, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fitted, options = int(metadata["step"]), json.loads(metadata["prior"])
        if not (isinstance(options, dict) and {type(x) for x in options.values()} == {int}):
            raise ValueError(options)
        network = Prior(width=options["width"], depth=options["depth"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a learned prior written by `save_prior`, got {error!r}"
        ) from error
    if fitted != step:
        raise ValueError(f"{path}: expected the prior of step {step}, got that of step {fitted}")
    model = dataclasses.replace(model, prior=network)
    return model, params | {"prior": _place(unflatten_dict(arrays, sep="/"), mesh)}


def _place(tree, mesh):
    return sharding.distribute(mesh, tree)


def save(workdir, model, params):
    """Saves a model with all its parameters, including the encoder's, for `load`.

    Args:
      workdir: folder without a run; created if missing.
      model: from `build`.
      params: as returned by `init` or `load`.

    Raises:
      ValueError: the folder already holds checkpoints.
    """
    store = checkpoints.Checkpoints(workdir)
    try:
        if store.latest is not None:
            raise ValueError(f"{store.folder}: expected no checkpoints, got step {store.latest}")
        rundir.write_config(workdir, json.dumps(world_model.to_config(model), indent=1))
        store.save(0, {"params": params}, wait=True)
    finally:
        store.close()

"""How real actions come in: a controller's training, and what measures them."""

import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax import latents, world_model
from lawm_jax.data import paths
from lawm_jax.train import checkpoints, models


def complete(config):
    """Adds to a controller's config what its world model fixes.

    Args:
      config: nested dict as in configs/controller.py; `model` is the folder of the world model.

    Returns:
      The config with the world model's sections `encoder` (but for `repeat`), `inverse` and
      `latent`, its `data.size` and `data.resize`, and `model_step`, the step of its checkpoint.

    Raises:
      FileNotFoundError: there is no run, or no checkpoint in its folder.
      ValueError: no folder is named, or its model infers no latent actions.
    """
    folder = paths.expand(config["model"])
    if not folder:
        raise ValueError("model: expected --config.model=FOLDER of a trained world model, got none")
    theirs = checkpoints.read_config(folder)
    if "predictor" not in theirs or not latents.make(**theirs["latent"]).inferred:
        got = theirs.get("latent", {}).get("kind", "none at all")
        raise ValueError(f"model: expected one that infers latent actions, got {folder}: {got}")
    size = {key: theirs["data"][key] for key in ("size", "resize")}
    return config | {
        "model": folder,
        "encoder": theirs["encoder"] | config["encoder"],
        "data": config["data"] | size,
        "inverse": theirs["inverse"],
        "latent": theirs["latent"],
        "model_step": checkpoints.newest(folder),
    }


def init_frozen(config):
    """Loads what a controller's training needs and does not change.

    Args:
      config: from `complete`.

    Returns:
      {"encoder", "inverse"}, and for discrete latents "latent".
    """
    params = models.load(config["model"], config["model_step"], controller="")[1]
    parts = {key: params[key] for key in ("encoder", "inverse", "latent") if key in params}
    return jax.device_get(parts)  # the caller spreads it over all processes' devices


def labels(model):
    """Returns U, the width of the real actions that a model's training needs, or 0."""
    if model.predictor is None:
        return model.controller.actions if model.controller is not None else 0
    return model.latent.dim if model.latent.labelled else 0


def statistics(config):
    """Reads mean and deviation of the real actions to train on.

    Args:
      config: nested dict; its `data` names one source.

    Returns:
      {"mean": [U], "std": [U]} float32; the std of a dimension that never changes is 1.

    Raises:
      ValueError: there are several sources, or its statistics.json is missing or other data's; the
        text gives the command that makes it.
    """
    import ml_collections

    from lawm_jax.data import pipeline

    measured = pipeline.statistics_of(ml_collections.ConfigDict(config))["actions"]
    mean, std = (np.array(measured[key], np.float32) for key in ("mean", "std"))
    return {"mean": mean, "std": np.where(std > 0, std, np.float32(1))}


def measure(model, params, actions, targets):
    """Sets what standardises actions and latents in freshly drawn parameters.

    Args:
      model: WorldModel whose training needs real actions.
      params: from `world_model.init_trainable`.
      actions: from `statistics`.
      targets: [B, T, A], latents of the first batch, for a controller; else None.

    Returns:
      The parameters. A controller's latents get one deviation for all dimensions, so that the ones
      that hardly vary count as little as they do in the world model.
    """
    if model.predictor is not None:
        return params | {"latent": actions}
    flat = targets.reshape(-1, targets.shape[-1])
    mean = flat.mean(0)
    std = jnp.sqrt(jnp.square(flat - mean[None]).mean())
    scale = {f"action_{key}": value for key, value in actions.items()}
    scale |= {"latent_mean": mean, "latent_std": jnp.maximum(std, 1e-6)}
    return {"controller": params["controller"] | {"scale": scale}}


def trained(workdir, name, spec):
    """Finds the controllers of a world model that were trained on one source.

    Args:
      workdir: of the world model; they are in WORKDIR/controller or WORKDIR/controller/NAME.
      name, spec: of the source, as in a config's `data.sources`; one of them must be theirs.

    Returns:
      folder -> kind, those of kind "state" first.
    """
    known = [folder for folder in models.controllers(workdir) if knows(folder, name, spec)]
    found = {folder: checkpoints.read_config(folder)["controller"]["kind"] for folder in known}
    return dict(sorted(found.items(), key=lambda item: item[1] != "state"))


def knows(folder, name, spec):
    """Tells whether a run with checkpoints was trained on the real actions of a source."""
    if not models.trained(folder):
        return False
    config = checkpoints.read_config(folder)
    latent = config.get("latent")
    if "controller" not in config and not (latent and latents.make(**latent).labelled):
        return False
    data = config["data"]
    if data["videos"]:
        return data["videos"] == spec
    names = [key for key, weight in data["mixture"].items() if weight > 0]
    return len(names) == 1 and (names[0] == name or data["sources"][names[0]] == spec)


def infer(model, frozen, s):
    """Infers a controller's targets: s [B, T, N, D] -> [B, T-1, A], means or codes."""
    return world_model.infer_actions(model, frozen, s)[0]


def loss(model, params, frozen, s, u):
    """Computes a controller's loss.

    Args:
      model: WorldModel with a controller and an inverse model.
      params: {"controller"}.
      frozen: from `init_frozen`.
      s: [B, T, N, D].
      u: [B, T-1, U], real actions.

    Returns:
      The scalar loss, and metrics. `error` is the loss: the mean squared difference to the latents
      that the inverse model infers (noisy: their means; discrete: their codes), in units of the
      latents' variance; `mean_latent` is that of the latents' mean.

    Source: Garrido et al. 2026, appendix A (L2 to the IDM's latents).
    """
    z = infer(model, frozen, s)
    scale = jax.lax.stop_gradient(params["controller"]["scale"])
    guess = model.controller.apply({"params": params["controller"]}, u, s[:, :-1])
    unit = jnp.square(scale["latent_std"])
    error = jnp.square(guess - z).mean() / unit
    mean = jnp.square(scale["latent_mean"][None, None] - z).mean() / unit
    return error, {"error": error, "mean_latent": mean}

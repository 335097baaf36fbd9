"""Objectives: training a world model, a controller of real actions, or a pixel decoder.

A config names its objective, which provides everything that the training loop does differently.
Each has the methods of `WorldModel`; a new objective is a class and a line in `OBJECTIVES`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax import latents, world_model
from lawm_jax.nn import perceptual
from lawm_jax.train import checkpoints, exported, rundir


class WorldModel:
    """Trains the inverse dynamics model and the predictor (Garrido et al. 2026, section 3).

    Attributes:
      measures_targets: whether `standardise` uses the first batch.
    """

    measures_targets = False

    def init_frozen(self, model, video, trained):
        """Returns the parameters that training uses but does not change, as numpy or JAX arrays.

        Args:
          model: world_model.WorldModel.
          video: uint8 [B, F, H, W, 3], or a jax.ShapeDtypeStruct of it.
          trained: parameters of the trained world model `config.model`, or None.

        Raises:
          FileNotFoundError: public weights are not on disk and cannot be downloaded.
        """
        del trained
        return {"encoder": world_model.init_encoder(model, video)}

    def init_params(self, model, key, s):
        """Initializes the parameters to train, for states shaped like `s`."""
        return world_model.init_dynamics(model, key, s)

    def actions(self, model):
        """Returns U, the width of the real actions required in a batch, or 0 for none."""
        return model.latent.dim if model.latent.labelled else 0

    def standardise(self, model, params, actions, inputs):
        """Sets the scale of real actions and targets in the initial parameters.

        Called only if `actions` is not 0.

        Args:
          model: world_model.WorldModel.
          params: from `init_params`.
          actions: from `action_statistics`.
          inputs: function without arguments that returns `inputs` for the first batch.

        Returns:
          The parameters.
        """
        del model, inputs
        return params | {"latent": actions}

    def noise(self, model, batch, key):
        """Samples the random numbers of the loss, [B, ...] with a row per clip, or None."""
        if "states" in batch:
            B, T = batch["states"].shape[:2]
        else:
            B, F = batch["video"].shape[:2]
            T = F if model.repeat else F // model.encoder.tubelet
        return model.latent.noise(key, (B, T - 1, model.latent.dim))

    def inputs(self, model, frozen, batch):
        """Computes the inputs of the loss that do not depend on the trained parameters."""
        return {"s": states(model, frozen, batch), "u": batch.get("actions")}

    def batchwise(self, model):
        """Returns whether the loss needs the latents of the whole global batch."""
        return model.latent.batchwise

    def loss(self, model, params, frozen, inputs, noise, others=None):
        """Computes the loss of a batch, or of a part of it.

        Args:
          model: world_model.WorldModel.
          params: trained parameters, with the structure of `init_params`.
          frozen: from `init_frozen`.
          inputs: from `inputs`.
          noise: from `noise`.
          others: latents of the rest of the global batch, see `world_model.loss`.

        Returns:
          The loss and metrics, float32 scalars.
        """
        del frozen
        return world_model.loss(model, params, inputs["s"], noise, inputs["u"], others)

    def describe(self, model, config):
        """Returns a short description of the model that is trained, for the log."""
        del config
        latent = model.latent
        return f"{latent.kind} latents ({latent.dim} dimensions, strength {latent.strength:g})"


class Controller:
    """Trains a controller, which maps a real action and the state to a latent action.

    Source: Garrido et al. 2026, section 5 and appendix A (L2 loss to the IDM's latents).
    """

    measures_targets = True

    def init_frozen(self, model, video, trained):
        """Returns the encoder, inverse dynamics model and codebook of `trained`."""
        del model, video
        parts = {key: trained[key] for key in ("encoder", "inverse", "latent") if key in trained}
        return jax.device_get(parts)  # the caller distributes it over all processes

    def init_params(self, model, key, s):
        return world_model.init_controller(model, key, s)

    def actions(self, model):
        return model.controller.actions

    def standardise(self, model, params, actions, inputs):
        """Sets the scale of actions, and of latents from the first batch.

        All latent dimensions share one standard deviation, so that dimensions that hardly vary have
        as little weight in the loss as they have in the world model.
        """
        z = inputs()["z"].reshape(-1, model.latent.dim)
        mean = z.mean(0)
        std = jnp.sqrt(jnp.square(z - mean[None]).mean())
        scale = {f"action_{key}": value for key, value in actions.items()}
        scale |= {"latent_mean": mean, "latent_std": jnp.maximum(std, 1e-6)}
        return {"controller": params["controller"] | {"scale": scale}}

    def noise(self, model, batch, key):
        return None

    def inputs(self, model, frozen, batch):
        """Adds the targets "z": means of noisy latents, codes of discrete latents."""
        s = states(model, frozen, batch)
        z = world_model.infer_actions(model, frozen, s)[0]
        return {"s": s, "u": batch["actions"], "z": z}

    def batchwise(self, model):
        return False

    def loss(self, model, params, frozen, inputs, noise, others=None):
        """Computes the mean squared error to the latents that the inverse dynamics model infers.

        `error`, the loss, is divided by the variance of the latents; `mean_latent` is the error of
        always predicting the mean latent.
        """
        z, controller = inputs["z"], {"params": params["controller"]}
        guess = model.controller.apply(controller, inputs["u"], inputs["s"][:, :-1])
        scale = jax.lax.stop_gradient(params["controller"]["scale"])
        unit = jnp.square(scale["latent_std"])
        error = jnp.square(guess - z).mean() / unit
        mean = jnp.square(scale["latent_mean"][None, None] - z).mean() / unit
        return error, {"error": error, "mean_latent": mean}

    def describe(self, model, config):
        return f"controller of {config['model']} (kind {model.controller.kind})"


class ControllerByPrediction(Controller):
    """Trains a controller by the error of the rollouts of the frozen forward model that it drives.

    Not in the paper. The forward model may react strongly to directions of a latent that hardly
    vary, and not at all to others; the L2 loss to latents weights all of them alike. Predictions
    are open loop, as in planning.
    """

    def init_frozen(self, model, video, trained):
        """Adds the forward model to the frozen parameters."""
        frozen = super().init_frozen(model, video, trained)
        return frozen | jax.device_get({"predictor": trained["predictor"]})

    def loss(self, model, params, frozen, inputs, noise, others=None):
        """Computes the mean absolute error of rollouts from the first state of each clip.

        `copy` is the error of copying the first state.
        """
        first, later = inputs["s"][:, :1], inputs["s"][:, 1:]
        context = world_model.prefill(model, frozen, first, inputs["z"][:, :0])
        both = frozen | {"controller": params["controller"]}
        predicted = world_model.rollout_actions(model, both, context, inputs["u"])
        error = jnp.abs(predicted - later).mean()
        return error, {"error": error, "copy": jnp.abs(first - later).mean()}

    def describe(self, model, config):
        begin = "" if config.get("init_from") else ", from random parameters (no --init_from)"
        return f"{super().describe(model, config)}, by prediction{begin}"


class Decoder:
    """Trains a pixel decoder for a frozen encoder.

    Source: Garrido et al. 2026, section 3 and appendix A (L1 and a perceptual loss).
    """

    measures_targets = False

    def init_frozen(self, model, video, trained):
        """Adds the perceptual network if the loss has a perceptual term."""
        frozen = {"encoder": world_model.init_encoder(model, video)}
        if model.decoder.weight:
            frozen["perceptual"] = perceptual.load(model.decoder.perceptual)[1]
        return frozen

    def init_params(self, model, key, s):
        return world_model.draw_decoder(model, key, s)

    def actions(self, model):
        return 0

    def noise(self, model, batch, key):
        """Samples numbers [B, F] whose order selects the frames for the perceptual loss.

        Raises:
          ValueError: the batch holds encoded states instead of video.
        """
        if "video" not in batch:
            raise ValueError(f"data: expected video to train a decoder on, got {sorted(batch)}")
        return jax.random.uniform(key, batch["video"].shape[:2])

    def inputs(self, model, frozen, batch):
        """Returns the states, and the frames at the model's size."""
        return {
            "s": world_model.encode(model, frozen, batch["video"]),
            "video": world_model.crop(model, batch["video"]),
        }

    def batchwise(self, model):
        return False

    def loss(self, model, params, frozen, inputs, noise, others=None):
        """Computes the L1 error plus `weight` times the perceptual distance.

        The distance is computed on `frames` random frames of each clip, or on all if `frames` is 0.
        Metrics: `error`, the mean absolute error on the scale 0 to 1; `psnr` in dB, from the
        batch's mean squared error; and `perceptual`.
        """
        target, painted = inputs["video"], world_model.decode_float(model, params, inputs["s"])
        error = jnp.abs(painted - target).mean() / 255
        square = jnp.square(jnp.clip(painted, 0, 255) - target).mean()
        metrics = {"error": error, "psnr": 20 * jnp.log10(255.0) - 10 * jnp.log10(square)}
        decoder = model.decoder
        if not decoder.weight:
            return error, metrics
        if 0 < decoder.frames < target.shape[1]:
            pick = noise.argsort(axis=1)[:, : decoder.frames, None, None, None]
            painted = jnp.take_along_axis(painted, pick, axis=1)
            target = jnp.take_along_axis(target, pick, axis=1)
        network = perceptual.NETWORKS[decoder.perceptual]
        distance = perceptual.distance(network, frozen["perceptual"], painted, target)
        metrics["perceptual"] = distance.mean()
        return error + decoder.weight * metrics["perceptual"], metrics

    def describe(self, model, config):
        return "pixel decoder"


OBJECTIVES = {
    "world_model": WorldModel(),
    "controller": Controller(),
    "controller_by_prediction": ControllerByPrediction(),
    "decoder": Decoder(),
}


def named(config):
    """Returns the objective that a config names; raises ValueError if it is unknown."""
    if config["objective"] not in OBJECTIVES:
        names = ", ".join(OBJECTIVES)
        raise ValueError(f"objective: expected one of {names}, got {config['objective']!r}")
    return OBJECTIVES[config["objective"]]


def states(model, frozen, batch):
    """Returns a batch's states, encoding its video if needed: [B, T, N, D] float32."""
    if "states" in batch:
        return batch["states"].astype(jnp.float32)
    return world_model.encode(model, frozen, batch["video"])


def complete(config):
    """Adds the settings of the trained world model `config["model"]` to a controller's config.

    Args:
      config: nested dict as in configs/controller.py; `model` is the folder of a world model's run,
        or another model that `exported.find` finds.

    Returns:
      The config with the world model's `encoder` (except `repeat`), `inverse`, `latent`,
      `data.size` and `data.resize`, and with `model_step`, the step of its newest checkpoint, and
      `model_seed`; with its `predictor`, too, if the objective uses it.

    Raises:
      FileNotFoundError: there is no such model, or its folder holds no run or no checkpoint.
      ValueError: `model` is empty, or the world model does not infer latent actions, or infers
        discrete ones and the controller is to be trained by prediction.
    """
    if not config["model"]:
        raise ValueError("model: expected --config.model=FOLDER of a trained world model, got none")
    folder = exported.find(config["model"])
    trained = rundir.read_config(folder)
    got = trained["objective"]
    if got == "world_model":
        got = f"latent.kind {trained['latent']['kind']}"
    if trained["objective"] != "world_model" or not latents.make(**trained["latent"]).inferred:
        raise ValueError(
            f"model: expected a world model that infers latent actions, got {folder} with {got}"
        )
    size = {key: trained["data"][key] for key in ("size", "resize")}
    if config["objective"] == "controller_by_prediction":
        if trained["latent"]["kind"] == "discrete":  # codes have no gradient
            raise ValueError(
                "objective: expected controller (loss=latent) for discrete latents, got "
                "controller_by_prediction"
            )
        config = config | {"predictor": trained["predictor"]}
    return config | {
        "model": folder,
        "encoder": trained["encoder"] | config["encoder"],
        "data": config["data"] | size,
        "inverse": trained["inverse"],
        "latent": trained["latent"],
        "model_step": checkpoints.newest(folder),
        "model_seed": trained["seed"],
    }


def action_statistics(config):
    """Reads the mean and standard deviation of the real actions in the training data.

    Args:
      config: nested dict; its `data` names one source.

    Returns:
      {"mean": [U], "std": [U]} float32; the std of a constant dimension is 1.

    Raises:
      ValueError: there are several sources, or the source's statistics.json is missing or belongs
        to other data; the message gives the command that creates it.
    """
    import ml_collections

    from lawm_jax.data import pipeline

    measured = pipeline.statistics_of(ml_collections.ConfigDict(config))["actions"]
    mean, std = (np.array(measured[key], np.float32) for key in ("mean", "std"))
    return {"mean": mean, "std": np.where(std > 0, std, np.float32(1))}

"""The latent action world model: video -> states s -> latent actions z -> next states -> loss.

This is the file to read. Everything is a pure function of a `WorldModel` (a static recipe) and
its parameters (a plain nested dict); shapes use the letters explained in `lawm_jax/__init__.py`.
"""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax import latents, weights
from lawm_jax.nn.blocks import layer_norm
from lawm_jax.nn.inverse import InverseDynamics
from lawm_jax.nn.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class WorldModel:
    """Holds the recipe of a world model: hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      encoder: frozen video or image encoder.
      inverse: inverse dynamics model, None when the latent is deterministic.
      predictor: forward model.
      latent: kind, width and strength of the latent action.
      resize, size: frames' short side before the centre crop, and the crop, in pixels.
      merge: m x m neighbouring tokens become one (space to depth).
      normalise: whether states and predictions pass a LayerNorm without parameters.
      repeat: whether each frame fills a whole tubelet, so that one frame is one time step.
      text: the model's part of the config as JSON, so that `save` and `load` need nothing else.
    """

    encoder: nn.Module
    inverse: nn.Module | None
    predictor: nn.Module
    latent: latents.Latent
    resize: int
    size: int
    merge: int = 1
    normalise: bool = True
    repeat: bool = False
    text: str = ""


def build(config):
    """Builds the recipe that a config describes.

    Args:
      config: ConfigDict or mapping with the sections `encoder`, `inverse`, `predictor`, `latent`
        and `data` (of which only `size` and `resize` count), as in configs/lawm.py.

    Returns:
      A WorldModel; equal configs give equal, equally hashed models.

    Raises:
      ValueError: an unknown kind, or sizes that do not fit each other.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    parts = {key: dict(config[key]) for key in ("encoder", "inverse", "predictor", "latent")}
    parts["data"] = {key: config["data"][key] for key in ("resize", "size")}
    text = json.dumps(parts, sort_keys=True)
    options = parts["encoder"]
    merge, normalise, repeat = (options.pop(k) for k in ("merge", "normalise", "repeat"))
    encoder = weights.make_encoder(**{k: v for k, v in options.items() if k != "weights"})
    size, resize = parts["data"]["size"], parts["data"]["resize"]
    if size % (encoder.patch * merge) or resize < size:
        raise ValueError(
            f"data.size, data.resize: expected a multiple of {encoder.patch * merge} (patch x "
            f"merge) and a short side at least as long, got {size} and {resize}"
        )
    latent = latents.Latent(**parts["latent"])
    inverse = None
    if latent.kind != "deterministic":
        inverse = InverseDynamics(latent.features, **_network("inverse", parts["inverse"]))
    predictor = Predictor(**_network("predictor", parts["predictor"]))
    return WorldModel(
        encoder, inverse, predictor, latent, resize, size, merge, normalise, repeat, text
    )


def _network(name, options):
    if options["width"] % options["heads"]:
        raise ValueError(
            f"{name}.width: expected a multiple of {name}.heads, got {options['width']} and "
            f"{options['heads']}"
        )
    return options | {"dtype": jnp.dtype(options["dtype"])}


def init(model, key, video):
    """Makes a model's parameters: the encoder's public weights, the rest drawn at random.

    Args:
      model: WorldModel.
      key: PRNG key.
      video: uint8 [B, F, H, W, 3], or its shape and dtype (jax.ShapeDtypeStruct).

    Returns:
      {"encoder", "predictor", and unless deterministic "inverse", if discrete "latent"}.

    Raises:
      ValueError: the video's shape does not fit the model.
      FileNotFoundError: the encoder's weights are not on disk and cannot be had.
    """
    encoder = init_encoder(model, video)
    return {"encoder": encoder} | init_trainable(model, key, state_shape(model, encoder, video))


def init_encoder(model, video):
    """Makes the frozen encoder's parameters; `video` as in `init`."""
    options = json.loads(model.text)["encoder"]
    if options["weights"]:
        found = weights.load_encoder(options["weights"], options["causal"], options["dtype"])
        if found[0] != model.encoder:
            raise ValueError(
                f"encoder.name: expected that of {options['weights']}, which holds {found[0]}; got "
                f"{options['name']}: {model.encoder}"
            )
        return found[1]
    shape = jax.eval_shape(lambda v: _prepare(model, v), video)
    init = jax.jit(lambda key: model.encoder.init(key, jnp.zeros((1, *shape.shape[1:])))["params"])
    return init(jax.random.key(0))


def state_shape(model, encoder, video):
    """Returns the jax.ShapeDtypeStruct of `encode`'s result, without computing it."""
    return jax.eval_shape(lambda p, v: encode(model, {"encoder": p}, v), encoder, video)


def init_trainable(model, key, s):
    """Draws the parameters that training changes, for states of the shape of `s`; can be jitted."""
    B, T, N, D = 1, *s.shape[1:]
    inverse, predictor, latent = jax.random.split(key, 3)
    s, z = jnp.zeros((B, T, N, D)), jnp.zeros((B, T, model.latent.dim))
    params = {"predictor": model.predictor.init(predictor, s, z)["params"]}
    if model.inverse is not None:
        params["inverse"] = model.inverse.init(inverse, s)["params"]
    if model.latent.kind == "discrete":
        K = int(model.latent.strength)
        codebook = jax.random.normal(latent, (K, model.latent.dim))
        params["latent"] = {"codebook": codebook, "idle": jnp.zeros(K)}
    return params


def _prepare(model, video):
    """Resizes, crops, normalises and repeats frames: [B, F, H, W, 3] -> what the encoder takes."""
    if video.ndim != 5 or video.shape[-1] != 3:
        raise ValueError(f"video: expected [B, F, H, W, 3], got {video.shape}")
    B, F, H, W, _ = video.shape
    tubelet = model.encoder.tubelet
    if not model.repeat and F % tubelet:
        raise ValueError(f"video: expected a multiple of {tubelet} frames, got {F}")
    x = video.astype(jnp.float32)
    if (H, W) != (model.size, model.size):
        scale = model.resize / min(H, W)
        h, w = round(H * scale), round(W * scale)
        x = jax.image.resize(x, (B, F, h, w, 3), "linear", antialias=True)
        top, left = (h - model.size) // 2, (w - model.size) // 2
        x = x[:, :, top : top + model.size, left : left + model.size]
    row = lambda v: jnp.array(v).reshape(1, 1, 1, 1, 3)  # noqa: E731
    x = (x - row(model.encoder.mean)) / row(model.encoder.std)
    return jnp.repeat(x, tubelet, axis=1) if model.repeat else x


def encode(model, params, video):
    """Turns video into states with the frozen encoder.

    Frames of another size are resized (short side to model.resize, bilinear) and centre-cropped.

    Args:
      model, params: of the world model; only params["encoder"] is used.
      video: uint8 [B, F, H, W, 3], RGB.

    Returns:
      s: [B, T, N, D] float32; T = F / tubelet, or F when frames are repeated.

    Raises:
      ValueError: not [B, F, H, W, 3], or F is no multiple of the tubelet.

    Source: Garrido et al. 2026, section 3 (f_theta).
    """
    s = model.encoder.apply({"params": params["encoder"]}, _prepare(model, video))
    s = s.astype(jnp.float32)
    if model.normalise:
        s = layer_norm(s)
    B, T, N, D = s.shape
    m, side = model.merge, round(N**0.5)
    s = s.reshape(B, T, side // m, m, side // m, m, D)
    return s.transpose(0, 1, 2, 4, 3, 5, 6).reshape(B, T, N // m**2, m**2 * D)


def _describe(model, params, s):
    """Runs the inverse dynamics model: s [B, T, N, D] -> [B, T-1, features]."""
    if s.ndim != 4 or s.shape[1] < 2:
        raise ValueError(f"s: expected [B, T, N, D] with at least 2 time steps, got {s.shape}")
    if model.inverse is None:
        return jnp.zeros((s.shape[0], s.shape[1] - 1, model.latent.features))
    return model.inverse.apply({"params": params["inverse"]}, s)


def _restrict(model, params, h, key):
    """Limits what the latent carries: h [B, T, features] -> z [B, T, A], cost [B, T]."""
    strength = model.latent.strength
    if model.latent.kind == "discrete":
        strength = params["latent"]["codebook"]
    return latents.KINDS[model.latent.kind](h, key, strength)


def infer_actions(model, params, s, key=None):
    """Infers the latent action between each state and the next.

    Args:
      model, params: of the world model.
      s: [B, T, N, D].
      key: PRNG key of a noisy latent's sample; None gives its mean.

    Returns:
      z: [B, T-1, A] float32; z[:, t] leads step t to t + 1.
      cost: [B, T-1], what the latent costs in the training loss.

    Raises:
      ValueError: s is not [B, T, N, D] with T at least 2.

    Source: Garrido et al. 2026, section 3 (g_phi).
    """
    return _restrict(model, params, _describe(model, params, s), key)


def predict(model, params, s, z):
    """Predicts the state after each step, every step from the true past (teacher forcing).

    Args:
      model, params: of the world model.
      s: [B, T, N, D].
      z: [B, T, A].

    Returns:
      [B, T, N, D] float32; entry t predicts step t + 1 from s[:, :t + 1] and z[:, :t + 1].

    Raises:
      ValueError: z does not have a latent of the model's width for every step of s.

    Source: Garrido et al. 2026, section 3 (p_psi).
    """
    if s.ndim != 4 or z.shape != (*s.shape[:2], model.latent.dim):
        raise ValueError(
            f"z: expected {(*s.shape[:2], model.latent.dim)} for s of shape {s.shape}, got "
            f"{z.shape}"
        )
    return _finish(model, model.predictor.apply({"params": params["predictor"]}, s, z))


def _finish(model, prediction):
    """Normalises a prediction like a state, before the loss and before it is fed back."""
    if not model.normalise:
        return prediction
    *shape, D = prediction.shape
    return layer_norm(prediction.reshape(*shape, model.merge**2, -1)).reshape(*shape, D)


def rollout(model, params, s, z):
    """Predicts states open loop: each prediction is fed back, past keys and values are cached.

    Args:
      model, params: of the world model.
      s: [B, T, N, D], the context.
      z: [B, T-1+P, A], latents of the context's own steps and of the P steps to predict.

    Returns:
      [B, P, N, D] float32, steps T to T + P - 1.

    Raises:
      ValueError: z holds no step to predict, or is not of the model's width.
    """
    B, T, N, D = s.shape
    P = z.shape[1] - (T - 1)
    if z.ndim != 3 or P < 1 or z.shape[2] != model.latent.dim or z.shape[0] != B:
        raise ValueError(
            f"z: expected [{B}, at least {T}, {model.latent.dim}] for a context of {T} steps, got "
            f"{z.shape}"
        )
    apply = lambda *args, **kw: model.predictor.apply(  # noqa: E731
        {"params": params["predictor"]}, *args, **kw
    )
    first, cache = apply(s, z[:, :T], keep=True)
    first = _finish(model, first[:, -1:])
    room = [(0, 0)] * 2 + [(0, P - 1)] + [(0, 0)] * 3
    cache = jax.tree.map(lambda x: jnp.pad(x, room), cache)

    def step(carry, z):
        state, cache, t = carry
        state, cache = apply(state, z[:, None], cache, t)
        state = _finish(model, state)
        return (state, cache, t + 1), state[:, 0]

    later = jnp.moveaxis(z[:, T:], 1, 0)
    _, states = jax.lax.scan(step, (first, cache, jnp.int32(T)), later)
    return jnp.concatenate([first, jnp.moveaxis(states, 0, 1)], axis=1)


def loss(model, params, s, key):
    """Computes the training loss: prediction error plus the price of the latents.

    Args:
      model, params: of the world model.
      s: [B, T, N, D], the global batch (the regularisers' statistics are over all of it).
      key: PRNG key of noisy latents.

    Returns:
      The scalar loss, and metrics: `error` (mean absolute prediction error over all elements),
      `cost` (the latents' mean price), `copy` (the error of copying the last state), and for
      discrete latents `latents` [B, T-1, A], before quantisation.

    Source: Garrido et al. 2026, section 3. It does not say whether the L1 norm over a state is a
    sum or a mean; ours is the mean.
    """
    h = _describe(model, params, s)
    z, cost = _restrict(model, params, h, key)
    error = jnp.abs(predict(model, params, s[:, :-1], z) - s[:, 1:]).mean()
    metrics = {"error": error, "cost": cost.mean(), "copy": jnp.abs(s[:, 1:] - s[:, :-1]).mean()}
    if model.latent.kind == "discrete":
        metrics["latents"] = h
    return error + metrics["cost"], metrics


def sample_actions(model, params, key, shape):
    """Draws latent actions without looking at video.

    Args:
      model, params: of the world model.
      key: PRNG key.
      shape: (..., A).

    Returns:
      z: [..., A] float32. Discrete: codes in use, uniformly. Noisy: N(0, I). Sparse: Langevin
      dynamics on the energy. Deterministic: zero.

    Raises:
      ValueError: unconstrained latents have no distribution to draw from, or A is wrong.

    Source: Garrido et al. 2026, appendix B.
    """
    kind, strength = model.latent.kind, model.latent.strength
    if shape[-1] != model.latent.dim:
        raise ValueError(f"shape: expected a last axis of {model.latent.dim}, got {tuple(shape)}")
    if kind == "none":
        raise ValueError("model: unconstrained latents have no distribution to draw from")
    if kind == "deterministic":
        return jnp.zeros(shape)
    if kind == "noisy":
        return jax.random.normal(key, shape)
    if kind == "sparse":
        return latents.langevin(key, shape, strength)
    codebook, idle = params["latent"]["codebook"], params["latent"]["idle"]
    in_use = jnp.where(idle <= idle.min() + model.latent.reset_after / 2, 0.0, -jnp.inf)
    return codebook[jax.random.categorical(key, in_use, shape=shape[:-1])]

"""The latent action world model: video -> states s -> latent actions z -> next states -> loss.

Start reading here. All functions are pure: they take a `WorldModel` (static) and its parameters
(a nested dict). `lawm_jax/__init__.py` explains the letters used for shapes.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax import latents
from lawm_jax.nn import pretrained
from lawm_jax.nn.blocks import layer_norm
from lawm_jax.nn.controller import KINDS as CONTROLLERS
from lawm_jax.nn.controller import Controller
from lawm_jax.nn.decoder import Decoder
from lawm_jax.nn.inverse import InverseDynamics
from lawm_jax.nn.predictor import Predictor
from lawm_jax.nn.prior import Prior, sample


@dataclasses.dataclass(frozen=True)
class WorldModel:
    """Describes the networks and preprocessing of a world model; a static argument for `jax.jit`.

    Attributes:
      encoder: frozen video or image encoder.
      weights: public weights of the encoder, see `pretrained.load_encoder`; "" for random weights.
      inverse: inverse dynamics model, or None if latents are deterministic or labeled.
      predictor: forward model, or None if only a decoder or a controller is trained.
      latent: kind of latent action, see `latents`, or None if only a decoder is trained.
      resize: short side of the resized frames, in pixels.
      size: side of the center crop, in pixels.
      merge: merges m x m neighboring tokens into one (space to depth).
      normalise: whether states and predictions pass through a LayerNorm without parameters.
      repeat: whether each frame is repeated to fill a tubelet, so that a time step is one frame.
      decoder: states -> pixels, trained separately, or None.
      prior: learned distribution of latents given the state, trained afterwards, or None.
      controller: real actions -> latent actions, trained separately, or None.
    """

    encoder: nn.Module
    weights: str
    inverse: nn.Module | None
    predictor: nn.Module | None
    latent: latents.Unconstrained | None
    resize: int
    size: int
    merge: int = 1
    normalise: bool = True
    repeat: bool = False
    decoder: nn.Module | None = None
    prior: nn.Module | None = None
    controller: nn.Module | None = None


def build(config):
    """Builds a world model from a config.

    Args:
      config: ConfigDict or nested dict with the sections `encoder` and `data` (only its `size` and
        `resize` are used), and any of `inverse`, `predictor` and `latent` (configs/lawm.py),
        `decoder` (configs/decoder.py), `controller` (configs/controller.py, after
        `objectives.complete`) and `prior`.

    Returns:
      A WorldModel; equal configs give equal models with equal hashes. The embedded encoder comes
      with its decoder; `load` adds a decoder to other encoders.

    Raises:
      ValueError: a kind is unknown, or sizes are inconsistent.
    """
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    parts = {key: dict(config[key]) for key in PARTS if key in config}
    options, size, resize = parts["encoder"], config["data"]["size"], config["data"]["resize"]
    merge, normalise, repeat = (options.pop(k) for k in ("merge", "normalise", "repeat"))
    weights = options.pop("weights")
    encoder = pretrained.make_encoder(**options)
    if size % (encoder.patch * merge) or resize < size:
        raise ValueError(
            f"data.size, data.resize: expected a size divisible by {encoder.patch * merge} (patch "
            f"x merge) and a resize of at least that size, got {size} and {resize}"
        )
    inverse = predictor = latent = controller = None
    if "predictor" in parts:
        predictor = Predictor(**_network("predictor", parts["predictor"]))
    if "latent" in parts:
        latent = latents.make(**parts["latent"])
        if latent.inferred:
            inverse = InverseDynamics(latent.features, **_network("inverse", parts["inverse"]))
    if "controller" in parts:
        controller = Controller(latent.dim, **_network("controller", parts["controller"]))
        if controller.kind not in CONTROLLERS:
            raise ValueError(
                f"controller.kind: expected one of {CONTROLLERS}, got {controller.kind!r}"
            )
    decoder = None
    if "decoder" in parts:
        decoder = Decoder(encoder.patch, encoder.tubelet, **_network("decoder", parts["decoder"]))
    elif weights == "embedded" and not normalise:
        decoder = _embedded_decoder(encoder)
    prior = Prior(**parts["prior"]) if "prior" in parts else None
    networks = dict(inverse=inverse, predictor=predictor, decoder=decoder)
    view = dict(resize=resize, size=size, merge=merge, normalise=normalise, repeat=repeat)
    apart = dict(prior=prior, controller=controller)
    return WorldModel(encoder, weights, latent=latent, **networks, **apart, **view)


PARTS = ("encoder", "inverse", "predictor", "latent", "decoder", "prior", "controller")


def to_config(model):
    """Returns the config (a nested dict) from which `build` builds an equal model."""
    view = {key: getattr(model, key) for key in ("weights", "merge", "normalise", "repeat")}
    config = {"data": {"resize": model.resize, "size": model.size}}
    config["encoder"] = pretrained.options_of(model.encoder) | view
    if model.latent is not None:
        config["latent"] = latents.options_of(model.latent)
    for name in ("inverse", "predictor", "decoder", "prior", "controller"):
        network = getattr(model, name)
        if network is None or (name == "decoder" and _has_embedded_decoder(model)):
            continue
        fields = {field.name for field in dataclasses.fields(network)} - GIVEN
        options = {key: getattr(network, key) for key in sorted(fields)}
        if "dtype" in options:
            options["dtype"] = jnp.dtype(options["dtype"]).name
        config[name] = options
    return config


# Attributes of networks that are set by `build` or Flax, not by the config.
GIVEN = {"features", "patch", "tubelet", "parent", "name"}


def _embedded_decoder(encoder):
    options = _network("decoder", pretrained.embedded_decoder())
    return Decoder(encoder.patch, encoder.tubelet, **options)


def _has_embedded_decoder(model):
    """Returns whether the model's decoder is the one embedded in the package."""
    embedded = model.weights == "embedded" and not model.normalise
    return embedded and model.decoder == _embedded_decoder(model.encoder)


def _network(name, options):
    if options["width"] % options["heads"]:
        raise ValueError(
            f"{name}.width: expected a multiple of {name}.heads, got {options['width']} and "
            f"{options['heads']}"
        )
    return options | {"dtype": jnp.dtype(options["dtype"])}


def init(model, key, video):
    """Initializes parameters: public weights for the encoder, random values for the other networks.

    Args:
      model: WorldModel.
      key: PRNG key.
      video: uint8 [B, F, H, W, 3], or a jax.ShapeDtypeStruct of it.

    Returns:
      A dict with the parameters of each part that the model has: "encoder", "predictor", "inverse",
      "latent" (discrete or labeled latents only), "decoder", "prior" and "controller".

    Raises:
      ValueError: the shape of the video does not fit the model.
      FileNotFoundError: the encoder's weights are not on disk and cannot be downloaded.
    """
    encoder = init_encoder(model, video)
    s = state_shape(model, encoder, video)
    params = {"encoder": encoder} | init_decoder(model, jax.random.fold_in(key, 1), s)

    @jax.jit  # otherwise JAX compiles its hundreds of operations one by one
    def draw(key):
        drawn = {}
        if model.prior is not None:
            z, s1 = jnp.zeros((1, model.latent.dim)), jnp.zeros((1, *s.shape[2:]))
            prior = model.prior.init(jax.random.fold_in(key, 2), z, jnp.zeros(1), s1)
            drawn["prior"] = prior["params"]
        if model.controller is not None:
            drawn |= init_controller(model, jax.random.fold_in(key, 3), s)
        return drawn | (init_dynamics(model, key, s) if model.predictor is not None else {})

    return params | draw(key)


def init_decoder(model, key, s):
    """Returns {"decoder": params}, embedded or random; {} if the model has no decoder."""
    if model.decoder is None:
        return {}
    if _has_embedded_decoder(model):
        return {"decoder": pretrained.embedded_decoder_params()}
    return draw_decoder(model, key, s)


def draw_decoder(model, key, s):
    """Returns {"decoder": params} with random parameters, for states shaped like `s`."""
    cells = _cells(model, jnp.zeros((1, *s.shape[1:])))
    return {"decoder": model.decoder.init(key, cells)["params"]}


def init_controller(model, key, s):
    """Returns {"controller": params} with random parameters and an identity `scale`."""
    u = jnp.zeros((1, 1, model.controller.actions))
    return {"controller": model.controller.init(key, u, jnp.zeros((1, 1, *s.shape[2:])))["params"]}


def init_encoder(model, video):
    """Returns the parameters of the frozen encoder, see `_as_computed`; `video` as in `init`."""
    if model.weights:
        options = pretrained.options_of(model.encoder)
        name, _ = options.pop("name"), options.pop("remat", "")
        encoder, params = pretrained.load_encoder(model.weights, **options)
        if encoder != model.encoder:
            raise ValueError(
                f"encoder.name: expected the encoder of {model.weights}, {encoder}, got {name}: "
                f"{model.encoder}"
            )
        return _as_computed(model, params)
    return jax.jit(lambda: draw_encoder(model, video))()


def draw_encoder(model, video):
    """Returns random encoder parameters, with the structure of the public weights."""
    shape = jax.eval_shape(lambda v: _prepare(model, v), video)
    drawn = model.encoder.init(jax.random.key(0), jnp.zeros((1, *shape.shape[1:])))["params"]
    return _as_computed(model, drawn)


def _as_computed(model, encoder):
    """Returns frozen parameters in the dtype in which they are used, which changes no result.

    Layers cast their kernels and biases to their dtype; norms compute in float32.
    """
    dtype = getattr(model.encoder, "dtype", jnp.float32)

    def cast(path, x):
        norm = any("norm" in entry.key for entry in path)
        return x if norm else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, encoder)


def state_shape(model, encoder, video):
    """Returns the shape and dtype of `encode`'s result (jax.ShapeDtypeStruct)."""
    return jax.eval_shape(lambda p, v: encode(model, {"encoder": p}, v), encoder, video)


def init_dynamics(model, key, s):
    """Initializes the predictor, inverse dynamics model and latent for states shaped like `s`.

    Returns:
      {"predictor": params}, and "inverse" and "latent" if the latent has them; can be jitted.
    """
    B, T, N, D = 1, *s.shape[1:]
    inverse, predictor, latent = jax.random.split(key, 3)
    s, z = jnp.zeros((B, T, N, D)), jnp.zeros((B, T, model.latent.dim))
    params = {"predictor": model.predictor.init(predictor, s, z)["params"]}
    if model.inverse is not None:
        params["inverse"] = model.inverse.init(inverse, s)["params"]
    latent_params = model.latent.init(latent)
    return params | ({"latent": latent_params} if latent_params else {})


def _floating(**arrays):
    """Raises ValueError if an array (given by argument name) is not floating point."""
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: expected floating point, got {x.dtype}")


def crop(model, video):
    """Resizes the short side and crops the center: [B, F, H, W, 3] -> float32, side model.size."""
    if video.dtype != jnp.uint8:
        raise ValueError(
            f"video: expected uint8 RGB values from 0 to 255, got {video.dtype}; convert it first, "
            "because the scale of other dtypes is unknown"
        )
    if video.ndim != 5 or video.shape[-1] != 3:
        raise ValueError(f"video: expected [B, F, H, W, 3], got {video.shape}")
    B, F, H, W, _ = video.shape
    x = video.astype(jnp.float32)
    if (H, W) == (model.size, model.size):
        return x
    scale = model.resize / min(H, W)
    h, w = round(H * scale), round(W * scale)
    x = jax.image.resize(x, (B, F, h, w, 3), "linear", antialias=True)
    top, left = (h - model.size) // 2, (w - model.size) // 2
    return x[:, :, top : top + model.size, left : left + model.size]


def _prepare(model, video):
    """Crops, normalizes and repeats frames: [B, F, H, W, 3] -> input of the encoder."""
    x, tubelet = crop(model, video), model.encoder.tubelet
    if not model.repeat and x.shape[1] % tubelet:
        raise ValueError(f"video: expected a multiple of {tubelet} frames, got {x.shape[1]}")
    row = lambda v: jnp.array(v).reshape(1, 1, 1, 1, 3)  # noqa: E731
    x = (x - row(model.encoder.mean)) / row(model.encoder.std)
    return jnp.repeat(x, tubelet, axis=1) if model.repeat else x


def encode(model, params, video):
    """Encodes video into states with the frozen encoder.

    Frames of another size are resized (short side to model.resize, bilinear) and center-cropped.

    Args:
      model, params: the world model; only params["encoder"] is used.
      video: uint8 [B, F, H, W, 3], RGB.

    Returns:
      s: [B, T, N, D] float32; T = F / tubelet, or F if frames are repeated.

    Raises:
      ValueError: video is not uint8 (the scale of other dtypes is unknown) or not [B, F, H, W, 3],
        or F is not a multiple of the tubelet.

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


def _cells(model, s):
    """Reverses the merging of tokens: [B, T, N, D] -> [B, T, m^2 N, D / m^2]."""
    B, T, N, D = s.shape
    m, side = model.merge, round(N**0.5)
    s = s.reshape(B, T, side, side, m, m, D // m**2).transpose(0, 1, 2, 4, 3, 5, 6)
    return s.reshape(B, T, N * m**2, D // m**2)


def decode_float(model, params, s):
    """Decodes states to float32 pixels from 0 to 255, not clipped or rounded, for training."""
    if model.decoder is None:
        raise ValueError(
            "model: has no decoder; train one with configs/decoder.py and load it with "
            "load(workdir, decoder=FOLDER)"
        )
    _floating(s=s)
    if s.ndim != 4:
        raise ValueError(f"s: expected [B, T, N, D], got {s.shape}")
    video = model.decoder.apply({"params": params["decoder"]}, _cells(model, s))
    if model.repeat:
        video = video[:, model.encoder.tubelet - 1 :: model.encoder.tubelet]
    return 127.5 * (video + 1)


def decode(model, params, s):
    """Decodes states into images.

    Args:
      model, params: the world model; only params["decoder"] is used.
      s: [B, T, N, D].

    Returns:
      video: uint8 [B, F, H, W, 3], RGB; F = T * tubelet, or T if frames are repeated.

    Raises:
      ValueError: the model has no decoder, or s is not floating point [B, T, N, D].

    Source: Garrido et al. 2026, section 3 (decoder).
    """
    return jnp.clip(jnp.round(decode_float(model, params, s)), 0, 255).astype(jnp.uint8)


def _inverse_features(model, params, s):
    """Applies the inverse dynamics model: s [B, T, N, D] -> [B, T-1, features]."""
    if s.ndim != 4 or s.shape[1] < 2:
        raise ValueError(f"s: expected [B, T, N, D] with at least 2 time steps, got {s.shape}")
    _floating(s=s)
    if model.latent.labelled:
        raise ValueError(
            "model: uses labeled actions, which cannot be inferred from states; pass them to "
            "`map_actions`"
        )
    if model.inverse is None:
        return jnp.zeros((s.shape[0], s.shape[1] - 1, model.latent.features))
    return model.inverse.apply({"params": params["inverse"]}, s)


def _restrict(model, params, h, key, others=None):
    """Limits the information in latents: h [B, T, features] -> z [B, T, A], cost [B, T].

    `key` is a PRNG key, the noise that was drawn with one, or None.
    """
    noise = key
    if key is not None and not jnp.issubdtype(key.dtype, jnp.floating):
        noise = model.latent.noise(key, (*h.shape[:-1], model.latent.dim))
    return model.latent.restrict(params.get("latent"), h, noise, others)


def infer_actions(model, params, s, key=None):
    """Infers the latent action between each state and the next.

    Args:
      model, params: the world model.
      s: [B, T, N, D].
      key: PRNG key for sampling noisy latents; None returns their mean.

    Returns:
      z: [B, T-1, A] float32; z[:, t] is the latent action between steps t and t + 1.
      cost: [B, T-1], the latents' term of the training loss.

    Raises:
      ValueError: s is not [B, T, N, D] with T at least 2, or the model's actions are labeled.

    Source: Garrido et al. 2026, section 3 (g_phi).
    """
    return _restrict(model, params, _inverse_features(model, params, s), key)


def map_actions(model, params, u, s):
    """Maps real actions to latent actions, independently for each step.

    Args:
      model, params: a world model with a controller (`load(workdir, controller=FOLDER)`), or one
        trained on labeled actions, which only standardizes them.
      u: [B, T, U] float32, real actions in the units of the controller's training data.
      s: [B or 1, T, N, D], the state in which each action is taken; a batch of 1 is shared by all
        actions and processed once. An action spans one frame: with a video encoder whose time steps
        span several, encode s with `dataclasses.replace(model, repeat=True)`, as in training.

    Returns:
      z: [B, T, A] float32; z[:, t] is the latent action (if discrete, the nearest code) for u[:, t]
      in state s[:, t].

    Raises:
      ValueError: the model has no controller, or u or s has the wrong shape.

    Source: Garrido et al. 2026, section 5 (controllers).
    """
    labelled = model.latent is not None and model.latent.labelled
    if not labelled and model.controller is None:
        raise ValueError(
            "model: has no controller; train one with configs/controller.py and "
            "--config.model=WORKDIR, and load it, or one of several, with load(WORKDIR, "
            "controller=NAME)"
        )
    U = model.latent.dim if labelled else model.controller.actions
    _floating(u=u, s=s)
    if u.ndim != 3 or u.shape[2] != U:
        raise ValueError(f"u: expected [B, T, {U}], got {u.shape}")
    D = _token_width(params)
    fits = s.ndim == 4 and len(s) in (1, len(u)) and s.shape[1] == u.shape[1]
    if not fits or D not in (None, s.shape[3]):
        size = "1" if len(u) == 1 else f"{len(u)} or 1"
        raise ValueError(f"s: expected [{size}, {u.shape[1]}, N, {D or 'D'}], got {s.shape}")
    if labelled:
        return _restrict(model, params, u, None)[0]
    z = model.controller.apply({"params": params["controller"]}, u, s)
    return model.latent.quantize(params.get("latent"), z)


def _token_width(params):
    """Returns D of the states that the networks take, or None if no network reads states."""
    for name in ("controller", "predictor"):
        if "embed" in params.get(name, ()):
            return params[name]["embed"]["kernel"].shape[0]
    return None


def predict(model, params, s, z):
    """Predicts the next state at every step from the true past states (teacher forcing).

    Args:
      model, params: the world model.
      s: [B, T, N, D].
      z: [B, T, A].

    Returns:
      [B, T, N, D] float32; entry t predicts step t + 1 from s[:, :t + 1] and z[:, :t + 1].

    Raises:
      ValueError: the shape of z is not [B, T, A].

    Source: Garrido et al. 2026, section 3 (p_psi).
    """
    if s.ndim != 4 or z.shape != (*s.shape[:2], model.latent.dim):
        raise ValueError(
            f"z: expected {(*s.shape[:2], model.latent.dim)} for s of shape {s.shape}, got "
            f"{z.shape}"
        )
    _floating(s=s, z=z)
    return _finish(model, model.predictor.apply({"params": params["predictor"]}, s, z))


def _finish(model, prediction):
    """Normalizes a prediction like an encoded state."""
    if not model.normalise:
        return prediction
    *shape, D = prediction.shape
    return layer_norm(prediction.reshape(*shape, model.merge**2, -1)).reshape(*shape, D)


class Cache(NamedTuple):
    """Holds the context of rollouts, as computed by `prefill`.

    Attributes:
      state: [B, 1, N, D], the last state of the context.
      past: () or ((keys, values),), of the earlier steps, [depth, B, heads, T-1, N, head_dim] each.
    """

    state: jax.Array
    past: Any

    @property
    def steps(self):
        """The number of steps before the last state."""
        return self.past[0][0].shape[3] if self.past else 0


def prefill(model, params, s, z):
    """Prefills the key-value cache so that many rollouts share one context.

    Args:
      model, params: the world model.
      s: [B, T, N, D], the context.
      z: [B, T-1, A], the latent actions between the states of the context.

    Returns:
      A Cache. The last step has no keys yet, because they depend on the next latent action.

    Raises:
      ValueError: s is not [B, T, N, D], or the shape of z is not [B, T-1, A].
    """
    if s.ndim != 4 or z.shape != (s.shape[0], s.shape[1] - 1, model.latent.dim):
        raise ValueError(
            f"s, z: expected [B, T, N, D] and [B, T-1, {model.latent.dim}], got {s.shape} and "
            f"{z.shape}"
        )
    _floating(s=s, z=z)
    if s.shape[1] == 1:
        return Cache(s, ())
    _, past = model.predictor.apply({"params": params["predictor"]}, s[:, :-1], z, keep=True)
    return Cache(s[:, -1:], (past,))


def rollout_latents(model, params, cache, z):
    """Rolls out latent actions open loop from a cached context: each prediction is fed back.

    The keys and values of a shared context are stored once, not P times. The loop over steps is
    unrolled, which runs fastest, but 31 steps of the nano model take 11 s to compile.

    Args:
      model, params: the world model.
      cache: from `prefill`, with a batch of 1 or P contexts.
      z: [P, H, A], latent actions from the last state of the context on.

    Returns:
      [P, H, N, D] float32, the state predicted after each latent action.

    Raises:
      ValueError: z has no steps, has the wrong width or does not fit the cache.
    """
    B, A = len(cache.state), model.latent.dim
    if z.ndim != 3 or z.shape[1] < 1 or z.shape[2] != A or B not in (1, len(z)):
        size = "P" if B == 1 else B
        raise ValueError(f"z: expected [{size}, at least 1, {A}], got {z.shape}")
    _floating(z=z)
    return _continue(model, params, cache, z.shape[1], lambda t, state: z[:, t : t + 1])


def rollout_actions(model, params, cache, u, window=None):
    """Rolls out real actions open loop from a cached context.

    `map_actions` maps each action to a latent action, given the state predicted before it.

    Args:
      model, params: a world model with a controller, or one trained on labeled actions.
      cache: from `prefill`, with a batch of 1 or P contexts.
      u: [P, H, U], real actions from the last state of the context on, in the dataset's units.
      window: maximum number of steps that a prediction attends to, or None for all. Later
        predictions are computed from the last `window` states, without the cache and with time
        positions from 0. Training uses T - 1 steps; later time positions are new to the model.

    Returns:
      [P, H, N, D] float32, the state predicted after each action.

    Raises:
      ValueError: u has no steps or does not fit the cache; the rollout exceeds `window` and the
        context has more than one state; or for the reasons of `map_actions`.

    Source: Garrido et al. 2026, section 6 (planning through a controller). The window slides as in
    `EncPredWM.unroll` of github.com/facebookresearch/jepa-wms.
    """
    B, before = len(cache.state), cache.steps
    if u.ndim != 3 or u.shape[1] < 1 or B not in (1, len(u)):
        size = "P" if B == 1 else B
        raise ValueError(f"u: expected [{size}, at least 1, U], got {u.shape}")
    if window is not None and (window < 1 or (before and before + u.shape[1] > window)):
        raise ValueError(
            f"window: expected None or at least {max(1, before + u.shape[1])} steps for a context "
            f"of {before + 1} states and {u.shape[1]} actions, got {window}"
        )

    def latent(t, state):
        return map_actions(model, params, u[:, t : t + 1], state)

    return _continue(model, params, cache, u.shape[1], latent, window)


def _continue(model, params, cache, steps, latent, window=None):
    """Predicts `steps` steps, feeding each prediction back: [P, steps, N, D].

    `latent(t, state [B, 1, N, D])` returns the latent action [P, 1, A] of step t. The first
    `window` steps extend the cache; each later one is predicted from the last `window` states.
    """
    state, past, generated = *cache, None  # `generated`: keys and values of predicted steps
    states, latents = [], []  # states[t] follows latents[t]
    for t in range(steps):
        latents.append(latent(t, state))
        if window is None or t < window:
            caches = past if generated is None else (*past, generated)
            state, new = model.predictor.apply(
                {"params": params["predictor"]}, state, latents[t], caches, keep=True
            )
            state = _finish(model, state)
            if generated is not None:  # [depth, P, heads, steps, N, head_dim]
                new = jax.tree.map(lambda *x: jnp.concatenate(x, axis=3), generated, new)
            generated = new
        else:
            s, z = (jnp.concatenate(x[-window:], axis=1) for x in (states, latents))
            state = predict(model, params, s, z)[:, -1:]
        states.append(state)
    return jnp.concatenate(states, axis=1)


def rollout(model, params, s, z):
    """Rolls out latent actions open loop, with a separate context for each clip.

    Args:
      model, params: the world model.
      s: [B, T, N, D], the context.
      z: [B, T-1+P, A], latent actions of the context and of the P steps to predict.

    Returns:
      [B, P, N, D] float32, steps T to T + P - 1.

    Raises:
      ValueError: s is not of 4 dimensions; z has no steps to predict or the wrong width.
    """
    if s.ndim != 4:
        raise ValueError(f"s: expected [B, T, N, D], got {s.shape}")
    B, T = s.shape[:2]
    if z.ndim != 3 or z.shape[1] < T or z.shape[2] != model.latent.dim or z.shape[0] != B:
        raise ValueError(
            f"z: expected [{B}, at least {T}, {model.latent.dim}] for a context of {T} steps, got "
            f"{z.shape}"
        )
    return rollout_latents(model, params, prefill(model, params, s, z[:, : T - 1]), z[:, T - 1 :])


def loss(model, params, s, key, u=None, others=None):
    """Computes the training loss: the prediction error plus the cost of the latents.

    Args:
      model, params: the world model.
      s: [B, T, N, D], the global batch, over which the regularizers compute statistics.
      key: PRNG key for noisy latents, or their noise, [B, T-1, A] from N(0, I).
      u: [B, T-1, U], real actions; required if actions are labeled, otherwise ignored.
      others: [B', T-1, A], sparse latents of the rest of the global batch, see `latents.sparse`.

    Returns:
      The scalar loss, and metrics: `error` (mean absolute prediction error over all elements),
      `cost` (mean cost of the latents), `copy` (error of predicting no change) and, for discrete
      latents, `latents` [B, T-1, A], before quantization.

    Raises:
      ValueError: s or u does not fit the model.

    Source: Garrido et al. 2026, section 3. The paper does not say whether the L1 norm of a state is
    a sum or a mean; this is the mean.
    """
    if model.latent.labelled:
        if u is None or u.shape != (s.shape[0], s.shape[1] - 1, model.latent.dim):
            want = [s.shape[0], s.shape[1] - 1, model.latent.dim]
            raise ValueError(f"u: expected {want}, got {None if u is None else u.shape}")
        _floating(s=s, u=u)
        h = u
    else:
        h = _inverse_features(model, params, s)
    z, cost = _restrict(model, params, h, key, others)
    error = jnp.abs(predict(model, params, s[:, :-1], z) - s[:, 1:]).mean()
    metrics = {"error": error, "cost": cost.mean(), "copy": jnp.abs(s[:, 1:] - s[:, :-1]).mean()}
    if model.latent.resets:
        metrics["latents"] = h
    return error + metrics["cost"], metrics


def sample_actions(model, params, key, shape, s=None):
    """Samples latent actions, without knowing the next states.

    Args:
      model, params: the world model.
      key: PRNG key.
      shape: (..., A).
      s: [..., N, D], the states in which the actions are taken, to sample from the learned prior.
        The model must have one (`lawm_jax.evaluate` trains it, `load(workdir, prior=True)` loads
        it). None samples independently of states.

    Returns:
      z: [..., A] float32, from the learned prior if s is given. Otherwise discrete latents are
      uniform over the codes in use, noisy ones are N(0, I), sparse ones follow Langevin dynamics on
      the energy, and deterministic ones are zero.

    Raises:
      ValueError: A is wrong; s has the wrong shape or there is no learned prior; or s is None and
        latents are unconstrained or labeled, which have no other distribution.

    Source: Garrido et al. 2026, appendix B.
    """
    if model.latent is None:
        raise ValueError("model: expected a world model, got only a decoder")
    if shape[-1] != model.latent.dim:
        raise ValueError(
            f"shape: expected a last axis of size {model.latent.dim}, got {tuple(shape)}"
        )
    if s is not None:
        if model.prior is None or s.shape[:-2] != tuple(shape[:-1]):
            raise ValueError(
                f"s: expected a model with a learned prior and s of shape "
                f"[{', '.join(map(str, shape[:-1]))}, N, D], got a model "
                f"{'without' if model.prior is None else 'with'} a learned prior and {s.shape}"
            )
        _floating(s=s)
        z = sample(model.prior, params["prior"], key, s.reshape(-1, *s.shape[-2:])).reshape(shape)
        return model.latent.quantize(params.get("latent"), z)
    return model.latent.sample(params.get("latent"), key, shape)

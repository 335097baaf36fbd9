"""The world that a trained model imagines: compiled functions to step, control and show it.

Contains no web code. Every time step is one frame, as in planning, because a person's actions and
real actions lead from one frame to the next.
"""

import dataclasses

import jax
import numpy as np

from lawm_jax import latents as latents_
from lawm_jax import world_model
from lawm_jax.evaluate import priors
from lawm_jax.train import cpu

KEPT = 2**26  # bytes of states that an `Imagined` keeps for `undo`


class World:
    """Holds a trained model as compiled functions of numpy arrays, without a batch axis.

    Attributes:
      model, params: the world model, with one time step per frame.
      window: maximum number of steps in the model's context, see `tasks.window`.
      frames: F, the number of frames of a clip; shorter ones are padded, so that each function is
        compiled once.
      controllers: name of a data source -> (model, params) that map its real actions to latents.
      paints: whether the model has a decoder, without which no state can be shown.
      codes: K, the number of codes of discrete latents, or 0.
    """

    def __init__(self, model, params, window, frames, controllers=None):
        """Prepares the functions; each is compiled when it is first called, or by `compile`.

        Args:
          model, params: a world model with a predictor and actions.
          window, frames: see the attributes.
          controllers: name of a data source -> (model, params), from `models.load`.

        Raises:
          ValueError: the model has no predictor, or is not conditioned on actions.
        """
        latent = model.latent
        if model.predictor is None or not (latent.inferred or latent.labelled):
            kind = "no predictor" if model.predictor is None else f"{latent.kind} latents"
            raise ValueError(
                f"workdir: expected a world model that is conditioned on actions, got {kind}"
            )
        self.model, self.params, self.window, self.frames = by_frame(model), params, window, frames
        self.controllers = {name: (by_frame(m), p) for name, (m, p) in (controllers or {}).items()}
        self.paints = model.decoder is not None
        codebook = params["latent"]["codebook"] if latent.resets else ()
        self.codes, self._codebook = len(codebook), np.asarray(codebook)
        self._compiled = {}

    def encode(self, video):
        """Encodes up to F frames of one clip, uint8 [f, H, W, 3] -> s float32 [f, N, D]."""
        count = self.frames if len(video) > 1 else 1
        padded = np.concatenate([video, np.repeat(video[-1:], count - len(video), 0)])
        encode = self._jit("encode", world_model.encode, "encoder")
        return np.asarray(encode(padded[None]))[0, : len(video)]

    def start(self, video, s):
        """Returns the state [N, D] of a clip's first frame, encoded independently of the others.

        Args:
          video, s: frames of the clip, and its states from `encode`.
        """
        return s[0] if self.model.encoder.alone else self.encode(video[:1])[0]

    def infer(self, s):
        """Infers latent actions, s [f, N, D] -> z float32 [f-1, A]."""
        padded = np.concatenate([s, np.repeat(s[-1:], self.frames - len(s), 0)])
        infer = self._jit("infer", _infer, "inverse", "latent")
        return np.asarray(infer(padded[None]))[0, : len(s) - 1]

    def ahead(self, states, latents):
        """Predicts the next state from the last `window` states, as rollouts with a window do.

        Args:
          states: list of [N, D], at least one.
          latents: list of as many [A]; the last one leads to the predicted state.

        Returns:
          The state [N, D] and, if the model has a decoder, its picture uint8 [size, size, 3].
        """
        states, latents = states[-self.window :], latents[-self.window :]
        s = np.zeros((self.window, *states[0].shape), np.float32)
        z = np.zeros((self.window, self.model.latent.dim), np.float32)
        # Attention is causal in time: the padding after the last state changes nothing.
        s[: len(states)], z[: len(states)] = states, latents
        predict = self._jit("ahead", _ahead, "predictor", "decoder")
        state, picture = predict(s[None], z[None], len(states) - 1)
        return np.asarray(state), np.asarray(picture) if self.paints else None

    def follow(self, state, latents):
        """Rolls out latents z [T, A] from a state; returns the T states and pictures, two lists."""
        return self.walk(state, len(latents), lambda t, _: latents[t])

    def drive(self, name, state, actions):
        """Rolls out real actions u [T, U] of a data source, as `follow`."""
        return self.walk(state, len(actions), lambda t, now: self.map(name, actions[t], now))

    def walk(self, state, steps, latent):
        """Rolls out `steps` latents latent(t, state), as `follow`."""
        states, latents, pictures = [state], [], []
        for t in range(steps):
            latents.append(latent(t, states[-1]))
            state, picture = self.ahead(states, latents)
            states.append(state)
            pictures.append(picture)
        return states[1:], pictures

    def paint(self, state):
        """Decodes a state [N, D] to a picture, uint8 [size, size, 3]; None without a decoder."""
        if not self.paints:
            return None
        paint = self._jit("paint", world_model.decode, "decoder")
        return np.asarray(paint(state[None, None]))[0, -1]

    def map(self, name, u, state):
        """Maps a real action u [U] of a data source, taken in a state [N, D], to a latent [A]."""
        model, params = self.controllers[name]
        parts = {key: params[key] for key in ("controller", "predictor", "latent") if key in params}
        if name not in self._compiled:
            function = jax.jit(lambda parts, *x: world_model.map_actions(model, parts, *x))
            self._compiled[name] = function
        u = np.asarray(u, np.float32)
        return np.asarray(self._compiled[name](parts, u[None, None], state[None, None]))[0, 0]

    def action_scale(self, name):
        """Returns mean and std [U] of a data source's real actions, measured in training."""
        model, params = self.controllers[name]
        if model.latent.labelled:
            scale = params["latent"]["mean"], params["latent"]["std"]
        else:
            scale = [params["controller"]["scale"][f"action_{x}"] for x in ("mean", "std")]
        return tuple(np.asarray(x) for x in scale)

    def code(self, number):
        """Returns a code [A] of discrete latents."""
        return self._codebook[number]

    def nearest(self, z):
        """Returns the codes nearest to latents [..., A] of discrete latents, int [...]."""
        return np.asarray(latents_.nearest(self._codebook, z))

    def sample(self, seed, state):
        """Samples a latent [A] from the learned prior, to take in a state [N, D]."""
        draw = self._jit("sample", _sample, "prior", "latent")
        return np.asarray(draw(jax.random.key(seed), state[None]))[0]

    def gaussian(self, seed, shape, inferred):
        """Samples latents [..., A] from a Gaussian with the moments of latents [m, A]."""
        z = priors.gaussian(jax.random.key(seed), shape, inferred)
        return np.asarray(self.model.latent.quantize(self.params.get("latent"), z))

    def compile(self):
        """Compiles the functions that the page calls."""
        blank = np.zeros((self.frames, self.model.size, self.model.size, 3), np.uint8)
        s = self.encode(blank)
        state = self.start(blank, s)
        if self.model.latent.inferred:
            self.infer(s)
        self.ahead([state], [np.zeros(self.model.latent.dim, np.float32)])
        self.paint(state)
        for name in self.controllers:
            self.map(name, self.action_scale(name)[0], state)

    def _jit(self, name, function, *parts):
        """Returns a compiled function(model, params, ...) of the remaining arguments."""
        if name not in self._compiled:
            model = self.model
            params = {key: self.params[key] for key in parts if key in self.params}
            run = jax.jit(
                lambda params, *x: function(model, params, *x), compiler_options=cpu.options()
            )
            self._compiled[name] = lambda *x: run(params, *x)
        return self._compiled[name]


def _infer(model, params, s):
    return world_model.infer_actions(model, params, s)[0]


def _ahead(model, params, s, z, last):
    """Predicts the state after step `last` [N, D] and decodes it, or returns None as picture."""
    s = jax.lax.dynamic_slice_in_dim(world_model.predict(model, params, s, z), last, 1, 1)
    picture = None if model.decoder is None else world_model.decode(model, params, s)[0, -1]
    return s[0, 0], picture


def _sample(model, params, key, s):
    return world_model.sample_actions(model, params, key, (1, model.latent.dim), s)


def by_frame(model):
    """Returns the model with one time step per frame."""
    return dataclasses.replace(model, repeat=model.encoder.tubelet > 1)


class Imagined:
    """Holds a rollout that a person drives step by step.

    Attributes:
      count: number of steps since the start.
      state: [N, D], the last state.
    """

    def __init__(self, world, start):
        """Starts from a real state [N, D]."""
        self.world, self.start = world, start
        self.reset()

    def reset(self):
        """Returns to the start."""
        self.count, self._states, self._latents = 0, [self.start], []

    @property
    def state(self):
        return self._states[-1]

    def step(self, z):
        """Takes one step with a latent action [A]; returns the picture, or None, see `World`."""
        state, picture = self.world.ahead(self._states, [*self._latents, z])
        self._states.append(state)
        self._latents.append(z)
        self.count += 1
        # Older states than these are not needed, except to undo.
        most = max(self.world.window, KEPT // state.nbytes)
        del self._states[: -most - 1], self._latents[:-most]
        return picture

    def undo(self):
        """Takes back the last step; does nothing at the start, or once the memory ends."""
        if self._latents:
            self._states.pop()
            self._latents.pop()
            self.count -= 1

    def picture(self):
        """Returns the picture of the last state, or None, see `World`."""
        return self.world.paint(self.state)

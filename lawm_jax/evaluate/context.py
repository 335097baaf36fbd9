"""The input of evaluations: the held-out clips of one data source and the models to compare."""

import dataclasses
import functools

import jax
import numpy as np

from lawm_jax import latents
from lawm_jax.evaluate import batched, clips, leakage, pixels, probing


class StaticClips(ValueError):
    """Signals that nothing changes in any clip of a data source."""


class Source:
    """Holds the clips of one data source and the models, and computes shared results once.

    Attributes:
      config, name, loaded, folder, distance, embedding: the arguments of `__init__`.
      main, model, params: the main model, which is under evaluation: its name, model and
        parameters.
      clips: `Clips`.
      models: name -> Batched, for all of `loaded`.
      labelled: name -> (model, params) of the labeled models, conditioned on real actions.
      inferring: name -> Batched of all other models.
      latents: names of the models that infer latent actions.
      per_step: frames per time step.
      pixels: `Pixels`, or None if there is no video or no decoder.
      pairs: whether latents can be compared across clips of different episodes.
      learned: training latents and the prior fitted to them (see `priors.fit_to_run`), or None.
      controllers: kind -> (model, params), the main model with each of its controllers.
      samples: name -> latents, set by `sampling` for the embedding picture.
      peers: the list of all Sources under evaluation, this one included.
    """

    def __init__(
        self, config, name, loaded, folder, distance="effnet", embedding="pca", without=()
    ):
        """Reads and encodes the held-out clips.

        Args:
          config: the run's config.
          name: name of the data source.
          loaded: name -> (model, params); the first is the main model.
          folder: output folder for pictures.
          distance: perceptual distance, see `perceptual.load`.
          embedding: see `sampling.embed`.
          without: see `clips.held_out`.

        Raises:
          StaticClips: nothing changes in any clip.
          ValueError: no clip can be read.
        """
        self.config, self.name, self.loaded, self.folder = config, name, loaded, folder
        self.distance, self.embedding = distance, embedding
        self.main, (self.model, self.params) = next(iter(loaded.items()))
        self.encode = batched.encoder(self.model, self.params)
        self.clips = clips.held_out(config, name, self.encode, without=without)
        if not np.diff(self.clips.s, axis=1).any():
            raise StaticClips(
                f"{name}: expected held-out clips that change from frame to frame at data.fps, got "
                "clips whose states never change, so there is nothing to predict"
            )
        self.models = {
            key: batched.batched(*value, actions=self.clips.actions)
            for key, value in loaded.items()
        }
        # Real actions are known for the original clips only, not after a cut or a transfer.
        self.labelled = {key: pair for key, pair in loaded.items() if pair[0].latent.labelled}
        self.inferring = {k: model for k, model in self.models.items() if k not in self.labelled}
        self.latents = [key for key, (model, _) in loaded.items() if model.latent.inferred]
        self.per_step = 1 if self.model.repeat else self.model.encoder.tubelet
        self.pixels = None
        if self.clips.video is not None and self.model.decoder is not None:
            self.pixels = pixels.Pixels(self.model, self.params, self.clips, distance)
        self.learned, self.controllers, self.samples = None, {}, {}
        self.peers, self._z, self._components = [self], {}, {}
        count = len(set(self.clips.episodes))
        self.pairs = self.main in self.inferring and count > 2

    @functools.cached_property
    def cut(self):
        """Clips with a scene cut in the middle: video (or states if there is none), and states."""
        video = self.clips.video
        # Stored states are cut too, although a video encoder would give other states after the cut.
        raw, step = (self.clips.s, 1) if video is None else (video, self.per_step)
        stitched, _ = leakage.stitch(raw, self.clips.episodes, step)
        return stitched, stitched if video is None else self.encode(stitched)

    @property
    def to_frames(self):
        """A distance (predicted states, frames) -> [n], whose __name__ labels rows."""
        distance = lambda s, frames: self.pixels.to_frames(s, frames)  # noqa: E731
        distance.__name__ = f"{self.distance}, decoded to frames"
        return distance

    @property
    def codebook(self):
        """The codes [K, A] of the main model, or None if its latents are not discrete."""
        return self.params["latent"].get("codebook") if "latent" in self.params else None

    def z(self, name):
        """Returns the mean latents of a model for all clips, [n, T-1, A]; inferred once."""
        if name not in self._z:
            self._z[name] = self.models[name].infer(self.clips.s)
        return self._z[name]

    def components(self, width):
        """Returns `probing.components` of the clips, as wide as latents; computed once."""
        if width not in self._components:
            clips = self.clips
            self._components[width] = probing.components(clips.s, clips.episodes, width)
        return self._components[width]

    def codes(self, name, z):
        """Returns the codes of a model's latents z [n, T-1, A], and K; None if not discrete."""
        model, params = self.loaded[name]
        if not model.latent.resets:
            return None, None
        codebook = params["latent"]["codebook"]
        return np.asarray(latents.nearest(codebook, z)), len(codebook)

    def nats(self, name, s=None):
        """Returns the KL of each dimension of noisy latents from N(0, 1), [n, T-1, A], or None.

        Args:
          name: name of the model.
          s: [n, T, N, D], other clips than the source's.
        """
        model, params = self.loaded[name]
        if not model.latent.random:
            return None

        def function(params, s):
            return latents.nats(model.inverse.apply({"params": params["inverse"]}, s))

        return batched.in_batches(jax.jit(function), params)(self.clips.s if s is None else s)

    def by_frame(self, models):
        """Makes each frame a time step, since real actions lead from one frame to the next.

        Args:
          models: name -> (model, params).

        Returns:
          The models, the clips and their `Pixels` (or None); or None if the data source holds
          states of several frames.
        """
        repeat = self.model.encoder.tubelet > 1
        if self.model.repeat == repeat:
            return models, self.clips, self.pixels
        if self.clips.video is None:
            return None
        frame_wise = lambda model: dataclasses.replace(model, repeat=repeat)  # noqa: E731
        models = {key: (frame_wise(model), params) for key, (model, params) in models.items()}
        model = frame_wise(self.model)
        clips = self.clips._replace(s=batched.encoder(model, self.params)(self.clips.video))
        if self.pixels is None:
            return models, clips, None
        return models, clips, pixels.Pixels(model, self.params, clips, self.distance)

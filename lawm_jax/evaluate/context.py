"""All questions asked of one source's held-out clips; what several need is computed once."""

import dataclasses
import functools
import os

import jax
import numpy as np

from lawm_jax import latents, world_model
from lawm_jax.data import pipeline
from lawm_jax.evaluate import (
    batched,
    clips,
    control,
    leakage,
    pictures,
    pixels,
    prediction,
    probing,
    sampling,
    transfer,
)
from lawm_jax.report import figures

TRAINING = 128  # clips of each source that the learned prior is fitted to


class Source:
    """Asks one source's clips all questions; what several of them need is computed once."""

    def __init__(
        self, config, name, loaded, folder, distance="effnet", embedding="pca", without=()
    ):
        """Reads and encodes the held-out clips.

        Args:
          config: the run's.
          name: of the source.
          loaded: name -> (model, params); the first is the one in question.
          folder: for pictures.
          distance: perceptual, see `perceptual.load`.
          embedding: see `sampling.embed`.
          without: see `clips.held_out`.

        Raises:
          ValueError: nothing changes in any clip.
        """
        self.config, self.name, self.loaded, self.folder = config, name, loaded, folder
        self.embedding = embedding
        self.main, (self.model, self.params) = next(iter(loaded.items()))
        self.distance = distance
        self.encode = batched.encoder(self.model, self.params)
        self.clips = clips.held_out(config, name, self.encode, without=without)
        if not np.diff(self.clips.s, axis=1).any():
            raise ValueError(
                f"{name}: the states of its held-out clips never change, so there is nothing to "
                "predict; expected video that changes from frame to frame at data.fps"
            )
        make = lambda x: batched.batched(*x, actions=self.clips.actions)  # noqa: E731
        self.models = {key: make(value) for key, value in loaded.items()}
        # Real actions are known of the clips as they were, and not after a cut or a transfer.
        labelled = {key for key, (model, _) in loaded.items() if model.latent.labelled}
        self.inferring = {k: model for k, model in self.models.items() if k not in labelled}
        self.per_step = 1 if self.model.repeat else self.model.encoder.tubelet
        video, self.pixels = self.clips.video, None
        if video is not None and self.model.decoder is not None:
            self.pixels = pixels.Pixels(self.model, self.params, self.clips, distance)
        self.learned = None  # training latents, and the prior fitted to them
        self.controllers = {}  # kind -> (model, params), the model in question with a controller
        self.samples = {}  # latents drawn in every way, for a picture
        count = len(set(self.clips.episodes))
        self.pairs = self.main in self.inferring and count > 2  # of clips can be asked about
        if self.main in labelled:
            print(f"{name}: real actions are known of whole clips: no cuts, transfers and pictures")
        elif not self.pairs:
            print(f"{name}: cuts and transfers need clips of 3 videos, there are {count}")

    @functools.cached_property
    def cut(self):
        """Clips with a cut in the middle: video (or states where there is none), and states."""
        video = self.clips.video
        # Stored states are cut, too, though a video encoder would have made others after the cut.
        raw, step = (self.clips.s, 1) if video is None else (video, self.per_step)
        stitched, _ = leakage.stitch(raw, self.clips.episodes, step)
        return stitched, stitched if video is None else self.encode(stitched)

    def prediction(self):
        """Prediction, in states and, where there is a decoder, in frames."""
        return prediction.compare(self.models, self.clips.s, self.clips.episodes, self.pixels)

    def leakage(self):
        """Leakage, in states and, where there is a decoder, in frames as the paper's Table 1."""
        if not self.pairs:
            return None
        s, first = self.clips.s, self.clips.s.shape[1] // 2
        rows = leakage.measure(self.inferring, self.cut[1], s, self.clips.episodes, first)
        if self.pixels:
            some, after = (
                self.pixels.chosen,
                slice(first * self.per_step, (first + 1) * self.per_step),
            )
            seen = [self.cut[1][some], s[some], self.clips.episodes[some]]
            true = [video[some, after] for video in (self.cut[0], self.clips.video)]
            rows += leakage.measure(self.inferring, *seen, first, self.to_frames, truth=true)
        return rows

    @property
    def to_frames(self):
        """A distance (predicted states, frames) -> [n], named as rows should call it."""
        distance = lambda s, frames: self.pixels.to_frames(s, frames)  # noqa: E731
        distance.__name__ = f"{self.distance}, decoded to frames"
        return distance

    def transfer(self):
        """Transfer and back, in states and frames as the paper's Table 2; locality."""
        if not self.pairs:
            return None
        s, episodes, pixels = self.clips.s, self.clips.episodes, self.pixels
        cycle = transfer.cycle(self.inferring, s, episodes)
        if pixels:
            alone = {self.main: self.models[self.main]}
            asked = dict(distance=self.to_frames, truth=pixels.video[:, self.per_step :])
            cycle += transfer.cycle(alone, pixels.s, pixels.episodes, **asked)
        locality = transfer.locality(self.inferring, s, episodes, self.model.merge)
        return {"cycle": cycle, "locality": locality}

    def content(self):
        """What the latents hold: their use of space, and a linear probe for real actions."""
        rows, u = [], self.clips.actions
        for name, (model, params) in self.loaded.items():
            if not model.latent.inferred:
                continue
            z = self.models[name].infer(self.clips.s)
            codes = K = nats = None
            if model.latent.resets:
                codebook = params["latent"]["codebook"]
                codes, K = np.asarray(latents.nearest(codebook, z)), len(codebook)
            if model.latent.random:
                nats = self.cost(name) / model.latent.strength
            row = {"name": name, "latents": probing.describe(z, codes, K, nats), "probe": None}
            if u is not None and self.pairs:
                aligned = probing.align(u, self.clips.s.shape[1])
                row["probe"] = probing.probe(z, aligned, self.clips.episodes)
            rows.append(row)
        return rows

    def cost(self, name):
        """Returns what each latent costs in training, [n, T-1]."""
        model, params = self.loaded[name]
        cost = jax.jit(lambda params, s: world_model.infer_actions(model, params, s)[1])
        return batched.in_batches(cost, params)(self.clips.s)

    def control(self):
        """Control, where there are controllers, or actions are labelled."""
        models = self.controllers | {
            key: one for key, one in self.loaded.items() if one[0].latent.labelled
        }
        if self.main not in models and not self.controllers:
            return None
        clips, seen, repeat = self.clips, self.pixels, self.model.encoder.tubelet > 1
        if self.model.repeat != repeat:  # a real action leads from frame to frame
            if clips.video is None:
                print(f"{self.name}: control needs states of one frame each")
                return None
            each = lambda model: dataclasses.replace(model, repeat=repeat)  # noqa: E731
            models = {key: (each(model), params) for key, (model, params) in models.items()}
            model = each(self.model)
            clips = clips._replace(s=batched.encoder(model, self.params)(clips.video))
            if seen:
                seen = pixels.Pixels(model, self.params, clips, self.distance)
        return control.compare(models, clips.s, clips.actions, clips.episodes, seen)

    def sampling(self):
        """Sampling, of the model in question."""
        if self.learned is None:
            return None
        known, network = self.learned
        codebook = self.params["latent"]["codebook"] if "latent" in self.params else None
        rows, self.samples = sampling.measure(
            self.models[self.main],
            self.model.latent.samplers(self.params.get("latent")),
            known,
            network,
            self.clips.s,
            self.clips.episodes,
            codebook,
        )
        return rows

    def pictures(self):
        """Pictures and films of the models that infer latents."""
        if self.samples:
            points, method = sampling.embed(self.samples, method=self.embedding)
            points = {
                f"{name}, {method}" if name == "inferred" else name: x[:1000]
                for name, x in points.items()
            }
            figures.embedding(os.path.join(self.folder, f"embedding_{self.name}.png"), points)
        if self.main not in self.inferring:
            return
        if self.pixels is None:
            why = (
                "it holds states" if self.clips.video is None else "no decoder: configs/decoder.py"
            )
            print(f"{self.name}: no pictures, {why}")
            return
        latent = self.model.latent
        label = lambda name: f"{name}, {latent.strength:g}" if name == self.main else name  # noqa: E731
        models = {label(name): model for name, model in self.inferring.items()}
        fps = self.config.data.fps / self.per_step
        pictures.draw(
            self.folder,
            self.name,
            models,
            self.clips,
            self.pixels,
            self.model.merge,
            *(self.cut if self.pairs else (None, None)),
            fps,
        )


def fit_prior(config, source):
    """Fits one prior to latents of training clips of all sources, drawn as `sampling` draws them.

    Args:
      config: the run's.
      source: any Source of the run.

    Returns:
      The latents, [m, A], and (network, params) of the prior.
    """
    latents, states = [], []
    for name in pipeline.names(config):
        found = clips.training(config, name, source.encode, TRAINING)
        latents.append(source.models[source.main].draw(found.s, config.seed))
        states.append(found.s.mean(2, keepdims=True))  # all that a prior sees of a state
    z, s = np.concatenate(latents), np.concatenate(states)
    return sampling.flat(z), sampling.fit(z, s)

"""Decodes predictions to pixels and compares them with the video."""

import jax
import numpy as np

from lawm_jax import world_model
from lawm_jax.evaluate import batched, metrics
from lawm_jax.nn import perceptual


class Pixels:
    """Decodes predicted states of some clips of a data source and computes image metrics.

    Attributes:
      distance: name of the perceptual distance.
      chosen: [m] int, indices of the clips, evenly spaced; a subset, since decoding is slow.
      video: uint8 [m, F, H, W, 3], the frames of the clips.
      per_step: frames per time step.
    """

    def __init__(self, model, params, clips, distance="effnet", most=48):
        """Selects the clips.

        Args:
          model, params: a world model with a decoder.
          clips: `Clips` with video of the model's size.
          distance: see `perceptual.load`.
          most: maximum number of clips.
        """
        self.distance = distance
        self.chosen = np.unique(np.linspace(0, len(clips.s) - 1, most).round().astype(int))
        self.s, self.episodes = clips.s[self.chosen], clips.episodes[self.chosen]
        self.video = clips.video[self.chosen]
        self.per_step = 1 if model.repeat else model.encoder.tubelet
        decode = jax.jit(lambda params, s: world_model.decode(model, params, s))
        self.decode = batched.in_batches(decode, {"decoder": params["decoder"]})
        network, weights = perceptual.load(distance)
        measure = jax.jit(lambda weights, a, b: perceptual.distance(network, weights, a, b))
        self.perceptual = batched.in_batches(measure, weights)

    def frames(self, s, ahead):
        """Decodes the predictions [m, P, N, D] that follow a context [m, C, N, D] to frames."""
        return self.decode(np.concatenate([s, ahead], 1))[:, s.shape[1] * self.per_step :]

    def measure(self, ahead):
        """Compares predictions of steps 1 to T - 1 of the chosen clips with the video.

        Args:
          ahead: [m, T-1, N, D].

        Returns:
          "psnr" (dB), "ssim" and the name of the perceptual distance -> interval of the mean over
          clips.
        """
        painted, true = self.frames(self.s[:, :1], ahead), self.video[:, self.per_step :]
        values = {
            "psnr": metrics.psnr(painted, true),
            "ssim": metrics.ssim(painted, true),
            self.distance: self.perceptual(painted, true),
        }
        return {key: metrics.interval(x.mean(1), self.episodes) for key, x in values.items()}

    def to_frames(self, s, frames):
        """Computes the perceptual distance between decoded predictions and video frames.

        Args:
          s: [k, P, N, D].
          frames: uint8 [k, P * per_step, H, W, 3], the frames of the same steps.

        Returns:
          [k], means over frames.
        """
        return self.perceptual(self.decode(s), frames).mean(1)

"""How the pixel decoder is trained: on a frozen encoder, by pixels and a perceptual distance."""

import jax
import jax.numpy as jnp

from lawm_jax import world_model
from lawm_jax.nn import perceptual


def init_frozen(model, video):
    """Makes what the decoder's training needs and does not change.

    Args:
      model: WorldModel with a decoder and no forward model.
      video: uint8 [B, F, H, W, 3], or its shape and dtype.

    Returns:
      {"encoder"}, and "perceptual" where the decoder's loss has a perceptual part.

    Raises:
      FileNotFoundError: weights that are not on disk.
    """
    frozen = {"encoder": world_model.init_encoder(model, video)}
    if model.decoder.weight:
        frozen["perceptual"] = perceptual.load(model.decoder.perceptual)[1]
    return frozen


def loss(model, params, frozen, video, key):
    """Computes the decoder's loss on frames of the model's size.

    Args:
      model: WorldModel with a decoder. Its decoder's `perceptual` names the distance,
        see `perceptual.load`; `weight` is its price; it is taken on `frames` frames of each clip,
        drawn at random, or on all (0).
      params: {"decoder"}.
      frozen: from `init_frozen`.
      video: uint8 [B, F, H, W, 3].
      key: PRNG key that draws those frames, or the numbers that do, [B, F] uniform from 0 to 1.

    Returns:
      The scalar loss, and metrics: `error`, the mean absolute error on the scale 0..1, `psnr` in dB
      of the batch's mean squared error, and `perceptual`.

    Source: Garrido et al. 2026, section 3 and appendix A (L1 and a perceptual loss).
    """
    target = world_model.crop(model, video)
    painted = world_model.paint(model, params, world_model.encode(model, frozen, video))
    error = jnp.abs(painted - target).mean() / 255
    square = jnp.square(jnp.clip(painted, 0, 255) - target).mean()
    metrics = {"error": error, "psnr": 20 * jnp.log10(255.0) - 10 * jnp.log10(square)}
    decoder = model.decoder
    if not decoder.weight:
        return error, metrics
    B, F = target.shape[:2]
    if 0 < decoder.frames < F:
        drawn = jnp.issubdtype(key.dtype, jnp.floating)
        order = key if drawn else jax.random.uniform(key, (B, F))
        order = order.argsort(axis=1)[:, : decoder.frames]
        pick = order[:, :, None, None, None]
        painted = jnp.take_along_axis(painted, pick, axis=1)
        target = jnp.take_along_axis(target, pick, axis=1)
    network = perceptual.NETWORKS[decoder.perceptual]
    metrics["perceptual"] = perceptual.distance(
        network, frozen["perceptual"], painted, target
    ).mean()
    return error + decoder.weight * metrics["perceptual"], metrics

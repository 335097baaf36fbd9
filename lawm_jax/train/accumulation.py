"""Gradient accumulation: the gradient of a large batch, one part of it at a time."""

import jax
import jax.numpy as jnp


def split(tree, parts):
    """Splits batches into parts: [B, ...] -> [parts, B / parts, ...].

    Part i has clips i, i + parts, ...: a device's clips are neighbours, so that each device has its
    share of every part and none is moved.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def join(x):
    """Undoes `split`: [parts, B / parts, ...] -> [B, ...]."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def others(x, part):
    """Returns the rows of all parts but one: x [parts, b, ...] -> [(parts - 1) * b, ...]."""
    order = (part + 1 + jnp.arange(len(x) - 1)) % len(x)
    return x[order].reshape(-1, *x.shape[2:])


def value_and_grad(objective, params, parts, count):
    """Computes the mean over parts of a loss, its metrics and its gradient.

    Args:
      objective: function (params, part) -> loss, metrics; its mean over parts is the loss of the
        whole batch.
      params: to differentiate by; gradients are added in their dtype, float32.
      parts: tree of arrays [count, ...], looped over.
      count: number of parts.

    Returns:
      (loss, metrics), grads, as `jax.value_and_grad(..., has_aux=True)` has them. Metrics are means
      but for `latents`, which are those of the whole batch in its order, and `psnr`, which is that
      of the mean squared error.
    """
    differentiate = jax.value_and_grad(objective, has_aux=True)

    def add(total, part):
        found, grads = differentiate(params, part)
        return jax.tree.map(jnp.add, total, grads), found

    total, (values, metrics) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    grads = jax.tree.map(lambda x: x / count, total)
    means = {name: x.mean() for name, x in metrics.items() if name not in ("latents", "psnr")}
    if "latents" in metrics:
        means["latents"] = join(metrics["latents"])
    if "psnr" in metrics:
        means["psnr"] = -10 * jnp.log10((10 ** (-metrics["psnr"] / 10)).mean())
    return (values.mean(), means), grads

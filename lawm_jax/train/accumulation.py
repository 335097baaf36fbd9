"""Gradient accumulation: the gradient of a large batch, computed in parts."""

import jax
import jax.numpy as jnp


def split(tree, parts):
    """Splits batches into parts: [B, ...] -> [parts, B / parts, ...].

    Part i holds clips i, i + parts, ...: each device's clips are contiguous in the batch, so every
    part contains an equal share of them and no data moves between devices.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def join(x):
    """Reverses `split`: [parts, B / parts, ...] -> [B, ...]."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def others(x, part):
    """Returns the rows of all parts but one: x [parts, b, ...] -> [(parts - 1) * b, ...]."""
    order = (part + 1 + jnp.arange(len(x) - 1)) % len(x)
    return x[order].reshape(-1, *x.shape[2:])


def value_and_grad(objective, params, parts, count):
    """Computes a loss, its metrics and its gradient, averaged over parts.

    Args:
      objective: function (params, part) -> loss, metrics; the mean loss is the batch's loss.
      params: parameters to differentiate; gradients are summed in their dtype, float32.
      parts: tree of arrays [count, ...].
      count: number of parts.

    Returns:
      (loss, metrics), grads, like `jax.value_and_grad(..., has_aux=True)`. Metrics are means,
      except `latents` (of the whole batch, in its order) and `psnr` (of the mean squared error).
    """
    differentiate = jax.value_and_grad(objective, has_aux=True)

    def add(total, part):
        outputs, grads = differentiate(params, part)
        return jax.tree.map(jnp.add, total, grads), outputs

    total, (values, metrics) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
    grads = jax.tree.map(lambda x: x / count, total)
    means = {name: x.mean() for name, x in metrics.items() if name not in ("latents", "psnr")}
    if "latents" in metrics:
        means["latents"] = join(metrics["latents"])
    if "psnr" in metrics:
        means["psnr"] = -10 * jnp.log10((10 ** (-metrics["psnr"] / 10)).mean())
    return (values.mean(), means), grads

"""One training step, a pure function of parameters, optimizer state and batch."""

import jax
import jax.numpy as jnp
import optax

from lawm_jax import world_model
from lawm_jax.train import accumulation, optim
from lawm_jax.train.objectives import OBJECTIVES


def train_step(
    model, tx, frozen, state, batch, accumulate=1, objective=OBJECTIVES["world_model"], ema=0.0
):
    """Performs one training step on one global batch.

    Args:
      model: WorldModel (static under jit).
      tx: optax.GradientTransformation, from `optim.make` (static).
      frozen: fixed parameters, from the objective's `init_frozen`; {"encoder"} for a world model.
      state: {"params", "opt", "step" int32, "key"}, and "raw" if `ema` is not 0: the parameters
        that the optimizer updates, of which "params" is then the average.
      batch: {"video": uint8 [B, F, H, W, 3]}, or {"states": [B, T, N, D]} encoded earlier; and
        "actions" [B, T-1, U] if the model trains on real actions.
      accumulate: number of equal parts in which the batch is processed, to save memory. Up to
        rounding, the result is that of the whole batch: noise, codes and the regularizers'
        statistics are those of the whole batch. Sparse latents are inferred twice for this.
      objective: one of `objectives.OBJECTIVES` (static).
      ema: decay of the exponential moving average, 0 for none (static).

    Returns:
      The next state, and metrics, float32 scalars: `loss`, `grad_norm`, `update_norm`, the metrics
      of the loss and, for discrete latents, `codes`, the number of codes in use.

    Source: Garrido et al. 2026, sections 3 and 4.
    """
    old = state["raw"] if ema else state["params"]
    key, noise, reset = jax.random.split(state["key"], 3)
    noise = objective.noise(model, batch, noise)
    if accumulate == 1:
        inputs = objective.inputs(model, frozen, batch)
        loss = lambda params: objective.loss(model, params, frozen, inputs, noise)  # noqa: E731
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(old)
    else:
        (value, metrics), grads = _accumulated(
            objective, model, frozen, old, batch, noise, accumulate
        )
    updates, opt = tx.update(grads, state["opt"], old)
    params = optax.apply_updates(old, updates)
    norms = {"grad_norm": optim.global_norm(grads), "update_norm": optim.global_norm(updates)}
    metrics = metrics | {"loss": value} | norms
    if "latents" in metrics:
        idle, h = old["latent"]["idle"], metrics.pop("latents")
        latent, more = model.latent.update(params["latent"], idle, h, reset)
        params, metrics = params | {"latent": latent}, metrics | more
    new = {"params": params, "opt": opt, "step": state["step"] + 1, "key": key}
    if ema:
        new |= {"params": average(state["params"], params, state["step"], ema), "raw": params}
    return new, metrics


def average(mean, params, step, decay):
    """Updates an exponential moving average of parameters, whose decay grows with the step.

    In step t, counted from 0, the decay is min(decay, (1 + t) / (10 + t)), so that the initial
    parameters are soon forgotten. Integers, such as the ages of codes, are copied.

    Source: TensorFlow's `ExponentialMovingAverage` with `num_updates`.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))

    def update(old, new):
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return (old + (1 - decay) * (new - old)).astype(new.dtype)

    return jax.tree.map(update, mean, params)


def _accumulated(objective, model, frozen, params, batch, noise, count):
    """Computes the loss, metrics and gradient of a batch in `count` parts, see `train_step`."""
    parts = {"batch": accumulation.split(batch, count), "number": jnp.arange(count)}
    if noise is not None:
        parts["noise"] = accumulation.split(noise, count)
    z = None
    if objective.batchwise(model):

        def infer(part):
            s = objective.inputs(model, frozen, part)["s"]
            return world_model.infer_actions(model, params, s)[0]

        z = jax.lax.map(infer, parts["batch"])

    def loss(params, part):
        others = None if z is None else accumulation.others(z, part["number"])
        inputs = objective.inputs(model, frozen, part["batch"])
        return objective.loss(model, params, frozen, inputs, part.get("noise"), others)

    return accumulation.value_and_grad(loss, params, parts, count)


def make_state(model, tx, s, key, objective=OBJECTIVES["world_model"], ema=0.0):
    """Initializes the training state for encoded states shaped like `s`; can be jitted."""
    init, key = jax.random.split(key)
    params = objective.init_params(model, init, s)
    state = {"params": params, "opt": tx.init(params), "step": jnp.int32(0), "key": key}
    return state | {"raw": params} if ema else state

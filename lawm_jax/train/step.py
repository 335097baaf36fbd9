"""One training step, a pure function of parameters, optimizer state and batch."""

import jax
import jax.numpy as jnp
import optax

from lawm_jax import world_model
from lawm_jax.train import accumulation, optim
from lawm_jax.train.objectives import OBJECTIVES


def train_step(model, tx, frozen, state, batch, accumulate=1, objective=OBJECTIVES["world_model"]):
    """Performs one training step on one global batch.

    Args:
      model: WorldModel (static under jit).
      tx: optax.GradientTransformation, from `optim.make` (static).
      frozen: fixed parameters, from the objective's `init_frozen`; {"encoder"} for a world model.
      state: {"params", "opt", "step" int32, "key"}.
      batch: {"video": uint8 [B, F, H, W, 3]}, or {"states": [B, T, N, D]} encoded earlier; and
        "actions" [B, T-1, U] if the model trains on real actions.
      accumulate: number of equal parts in which the batch is processed, to save memory. Up to
        rounding, the result is that of the whole batch: noise, codes and the regularizers'
        statistics are those of the whole batch. Sparse latents are inferred twice for this.
      objective: one of `objectives.OBJECTIVES` (static).

    Returns:
      The next state, and metrics, float32 scalars: `loss`, `grad_norm`, `update_norm`, the metrics
      of the loss and, for discrete latents, `codes`, the number of codes in use.

    Source: Garrido et al. 2026, sections 3 and 4.
    """
    key, noise, reset = jax.random.split(state["key"], 3)
    noise = objective.noise(model, batch, noise)
    if accumulate == 1:
        inputs = objective.inputs(model, frozen, batch)
        loss = lambda params: objective.loss(model, params, frozen, inputs, noise)  # noqa: E731
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
    else:
        (value, metrics), grads = _accumulated(
            objective, model, frozen, state["params"], batch, noise, accumulate
        )
    updates, opt = tx.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    norms = {"grad_norm": optim.global_norm(grads), "update_norm": optim.global_norm(updates)}
    metrics = metrics | {"loss": value} | norms
    if "latents" in metrics:
        idle, h = state["params"]["latent"]["idle"], metrics.pop("latents")
        latent, more = model.latent.update(params["latent"], idle, h, reset)
        params, metrics = params | {"latent": latent}, metrics | more
    return {"params": params, "opt": opt, "step": state["step"] + 1, "key": key}, metrics


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


def make_state(model, tx, s, key, objective=OBJECTIVES["world_model"]):
    """Initializes the training state for encoded states shaped like `s`; can be jitted."""
    init, key = jax.random.split(key)
    params = objective.init_params(model, init, s)
    return {"params": params, "opt": tx.init(params), "step": jnp.int32(0), "key": key}

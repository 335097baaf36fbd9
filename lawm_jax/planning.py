"""Planners: pure functions that search for the cheapest plan under any cost function."""

import jax
import jax.numpy as jnp


def cem(cost, key, mean, std, samples=300, elites=10, iterations=15):
    """Plans by the cross-entropy method.

    Each iteration draws plans from a Gaussian and refits it to the cheapest ones; the mean itself
    is always among the candidates. One `lax.scan`: jit it, or call it inside a jitted function.

    Args:
      cost: function of plans [P, T, U] float32 -> [P], lower is better; it must be traceable.
      key: PRNG key.
      mean, std: [T, U], of the first Gaussian, in the units of the plan.
      samples, elites, iterations: P, how many of them the Gaussian is refitted to, and how often.

    Returns:
      plan: [T, U], the cheapest one seen.
      cost: its cost, a scalar.

    Raises:
      ValueError: `mean` and `std` differ in shape, or elites are not fewer than samples.

    Source: Rubinstein 1999; settings of Garrido et al. 2026, section 6.
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    if mean.ndim != 2 or mean.shape != std.shape:
        raise ValueError(f"mean, std: expected one shape [T, U], got {mean.shape} and {std.shape}")
    if not 0 < elites < samples:
        raise ValueError(f"elites: expected 1 to samples - 1 = {samples - 1}, got {elites}")

    def iterate(carry, key):
        mean, std, best, best_cost = carry
        noise = jax.random.normal(key, (samples - 1, *mean.shape))
        plans = jnp.concatenate([mean[None], mean[None] + std[None] * noise])
        costs = cost(plans)
        negative, order = jax.lax.top_k(-costs, elites)
        elite = plans[order]
        better = -negative[0] < best_cost
        best = jnp.where(better, elite[0], best)
        best_cost = jnp.minimum(-negative[0], best_cost)
        return (elite.mean(0), elite.std(0), best, best_cost), None

    start = (mean, std, mean, jnp.float32(jnp.inf))
    (_, _, plan, cost_of_plan), _ = jax.lax.scan(iterate, start, jax.random.split(key, iterations))
    return plan, cost_of_plan

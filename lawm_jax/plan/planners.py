"""Planners: pure functions that search for the plan with the lowest cost, for any cost function.

All planners take (cost, key, mean, std, ...) and return the best plan and its cost. Each is a
single `lax.scan` with no host callbacks: jit it or call it inside a jitted function. The initial
mean is the first candidate, so the returned plan never costs more (except with `cem`'s `average`
and `keep_mean`).

An infinite cost means infeasible, and NaN counts as infinite; infeasible plans are neither returned
nor used to update the search. All planners but the gradient-based ones depend on the order of costs
only, so a penalty of any size works as well as infinity. If all plans are infeasible, the initial
mean is returned with an infinite cost. Plans are float32 and within the bounds, and costs are
compared in float32, regardless of JAX's default precision.

* Several tasks: `jax.vmap` over key, mean, std and the variables that `cost` closes over; each task
  has its own `chunk`.
* Several devices: use `spread` to shard the cost or, with more tasks than devices, the tasks.
* Low-dimensional plans: search in fewer dimensions and expand plans in `cost`. For a straight line
  of h steps, use `lambda total: cost(jnp.repeat(total / h, h, axis=1))` with mean and std [1, U].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

HUGE = 1e15  # gradients are clipped to this magnitude


def cem(
    cost,
    key,
    mean,
    std,
    samples=300,
    elites=10,
    iterations=15,
    momentum=0.0,
    low=-np.inf,
    high=np.inf,
    chunk=None,
    average=False,
    keep_mean=True,
):
    """Plans with the cross-entropy method.

    Each iteration samples plans from a Gaussian and refits it to the cheapest ones (the elites);
    the mean is one of the candidates. The standard deviation is the unbiased estimate, with
    n - 1, as in jepa-wms, V-JEPA 2, NWM and stable-worldmodel: with 10 elites, the biased estimate
    would halve it in 15 iterations. With one elite it is 0. If there are fewer feasible plans than
    elites, the missing elites contribute the old standard deviation.

    Args:
      cost: function of plans [P, T, U] float32 -> [P], lower is better; it must be traceable.
      key: PRNG key.
      mean, std: [T, U], of the initial Gaussian, in units of the plan.
      samples, elites, iterations: number of candidates P, of elites, and of iterations.
      momentum: weight of the old mean and std in the update, in [0, 1).
      low, high: bounds of a plan, a number or [U], static under jit; candidates are clipped.
      chunk: maximum number of candidates evaluated at once, which bounds the memory; None for all.
      average: whether to return the final mean, as jepa-wms, V-JEPA 2 and NWM do, instead of the
        cheapest plan seen; if the final mean is infeasible, the cheapest plan is returned.
      keep_mean: whether the mean is one of the candidates; it is in jepa-wms and is not in NWM.

    Returns:
      plan: [T, U], the cheapest plan seen.
      cost: its cost, a scalar.

    Raises:
      ValueError: `mean` and `std` differ in shape, `elites` is not less than `samples`, an option
        is out of range, or `cost` does not return [P].

    Source: Rubinstein 1999; settings of Garrido et al. 2026, section 6; momentum of De Boer et al.
    2005, "A Tutorial on the Cross-Entropy Method" (smoothed updating).
    """
    mean, std, clip = _check(mean, std, low, high, iterations, chunk)
    settings = samples, elites, iterations, momentum, chunk
    end = _refit(cost, key, mean, std, clip, *settings, keep_mean=keep_mean)
    if not average:
        return end.best
    mean = clip(end.mean[None])
    mean_cost = _checked(cost)(mean)[0]
    feasible = jnp.isfinite(mean_cost)
    plan, least = end.best
    return jnp.where(feasible, mean[0], plan), jnp.where(feasible, mean_cost, least)


def icem(
    cost,
    key,
    mean,
    std,
    samples=300,
    elites=10,
    iterations=15,
    momentum=0.1,
    low=-np.inf,
    high=np.inf,
    chunk=None,
    exponent=2.0,
    keep=0.3,
    decay=1.25,
):
    """Plans with the sample-efficient cross-entropy method, for few candidates and long plans.

    It changes `cem` in three ways: noise is correlated in time, so that candidates explore farther;
    some elites are kept as candidates, without evaluating them again; the population shrinks.

    Args:
      cost, key, mean, std, samples, elites, iterations, momentum, low, high: as in `cem`.
      chunk: as in `cem`; the population shrinks by whole chunks. None for 2 * elites, the minimum
        population.
      exponent: the power of the noise is proportional to frequency ** -exponent: 0 is white noise,
        2 a random walk.
      keep: fraction of the elites that is kept.
      decay: factor by which the population shrinks per iteration, down to 2 * elites.

    Returns:
      plan, cost: as in `cem`.

    Raises:
      ValueError: as in `cem`.

    Source: Pinneri et al. 2020, "Sample-efficient Cross-Entropy Method for Real-time Planning". In
    the paper the noise has period T, so it is nearly white for short plans, and the mean is a
    candidate in the last iteration only. To reuse elites of the previous time step, pass them as
    `mean`.
    """
    mean, std, clip = _check(mean, std, low, high, iterations, chunk)
    if not (exponent >= 0 and 0 <= keep <= 1 and decay >= 1):
        raise ValueError(
            "exponent, keep, decay: expected at least 0, from 0 to 1, and at least 1, got "
            f"{exponent}, {keep} and {decay}"
        )
    end = _refit(
        cost,
        key,
        mean,
        std,
        clip,
        samples,
        elites,
        iterations,
        momentum,
        chunk=chunk or max(1, 2 * elites),
        exponent=exponent,
        kept=round(keep * elites),
        decay=decay,
    )
    return end.best


def mppi(
    cost,
    key,
    mean,
    std,
    samples=300,
    iterations=15,
    temperature=0.05,
    low=-np.inf,
    high=np.inf,
    chunk=None,
):
    """Plans with model predictive path integrals: the mean is a weighted average of all candidates.

    Args:
      cost, key, mean, std, samples, iterations, low, high, chunk: as in `cem`; std stays fixed.
      temperature: scale in the weights exp(-rank / temperature); the rank of a candidate is the
        fraction of candidates with a lower cost. Ranks work for costs of any scale, and penalties
        on infeasible plans do not hide differences between feasible ones.

    Returns:
      plan, cost: as in `cem`.

    Raises:
      ValueError: as in `cem`.

    Source: Williams et al. 2017, "Information Theoretic MPC for Model-Based Reinforcement
    Learning", where the weights are exp(-cost / temperature), with a temperature per cost function;
    the control cost is left to `cost`.
    """
    mean, std, clip = _check(mean, std, low, high, iterations, chunk)
    if samples < 2 or temperature <= 0:
        raise ValueError(
            "samples, temperature: expected at least 2 and a positive number, got "
            f"{samples} and {temperature}"
        )

    def iterate(carry, key):
        mean, best = carry
        noise = jax.random.normal(key, (samples - 1, *mean.shape), jnp.float32)
        plans = clip(jnp.concatenate([mean[None], mean[None] + std[None] * noise]))
        costs = _in_chunks(_checked(cost), plans, chunk)
        cheaper = jnp.searchsorted(jnp.sort(costs), costs, method="sort").astype(jnp.float32)
        weights = jnp.exp(-cheaper / jnp.float32(temperature * samples)) * jnp.isfinite(costs)
        total = weights.sum()  # at least 1 if any plan is feasible
        new = jnp.einsum("p,ptu->tu", weights, plans) / jnp.maximum(total, 1)
        mean = jnp.where(total > 0, new, mean)
        return (mean, _cheapest(best, plans, costs)), None

    start = (mean, _initial_best(clip(mean[None])[0]))
    (_, best), _ = jax.lax.scan(iterate, start, jax.random.split(key, iterations))
    return best


def gradient(
    cost,
    key,
    mean,
    std,
    samples=8,
    iterations=50,
    rate=0.1,
    low=-np.inf,
    high=np.inf,
    chunk=None,
):
    """Plans by gradient descent (Adam) on the cost, from several initial plans in parallel.

    Args:
      cost, key, mean, std, low, high, chunk: as in `cem`. The first initial plan is the mean, the
        others are sampled from the Gaussian; all are clipped to the bounds after each step.
      samples: number of initial plans.
      iterations: number of evaluations of each plan.
      rate: initial step size in units of std, with cosine decay to 0.

    Returns:
      plan, cost: as in `cem`.

    Raises:
      ValueError: as in `cem`.

    Source: Kingma & Ba 2015, "Adam"; for plans in a latent world model, Srinivas et al. 2018,
    "Universal Planning Networks".
    """
    mean, std, clip = _check(mean, std, low, high, iterations, chunk)
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    noise = jax.random.normal(key, (samples - 1, *mean.shape), jnp.float32)
    starts = jnp.concatenate([mean[None], mean[None] + std[None] * noise])
    return _descend(cost, starts, std, clip, iterations, rate, chunk)


def cem_gradient(
    cost,
    key,
    mean,
    std,
    samples=300,
    elites=10,
    iterations=5,
    momentum=0.0,
    low=-np.inf,
    high=np.inf,
    chunk=None,
    steps=20,
    rate=0.05,
):
    """Plans with a few iterations of `cem`, then refines its elites by gradient descent.

    Args:
      cost, key, mean, std, samples, elites, iterations, momentum, low, high, chunk: as in `cem`.
      steps, rate: `iterations` and `rate` of `gradient`, in units of the initial std.

    Returns:
      plan, cost: as in `cem`.

    Raises:
      ValueError: as in `cem`.

    Source: Bharadhwaj et al. 2020, "Model-Predictive Control via Cross-Entropy and Gradient-Based
    Optimization", which takes gradient steps within each iteration.
    """
    mean, std, clip = _check(mean, std, low, high, iterations, chunk)
    end = _refit(cost, key, mean, std, clip, samples, elites, iterations, momentum, chunk)
    starts = jnp.concatenate([end.best[0][None], end.elite[:-1]])
    return _descend(cost, starts, std, clip, steps, rate, chunk)


def spread(function, mesh):
    """Returns `function` for any P, with the rows of its arguments sharded over all devices.

    Args:
      function: maps arrays [P, ...] to arrays [P, ...], each row independently, such as a cost
        of plans or a planner of P tasks. Variables that it closes over, such as parameters, are
        replicated.
      mesh: jax.sharding.Mesh, the devices.
    """
    if mesh.size == 1:
        return function
    parts = PartitionSpec(mesh.axis_names)
    local = jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=parts, check_vma=False)

    def run(*rows):
        P = len(jax.tree.leaves(rows)[0])
        outputs = local(*jax.tree.map(lambda x: _filled(x, -P % mesh.size), rows))
        return jax.tree.map(lambda x: x[:P], outputs)

    return run


def _check(mean, std, low, high, iterations, chunk):
    """Checks common arguments; returns mean and std as float32 and a function that clips plans."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    if mean.ndim != 2 or mean.shape != std.shape:
        raise ValueError(
            f"mean, std: expected the same shape [T, U], got {mean.shape} and {std.shape}"
        )
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    if not {low.shape, high.shape} <= {(), mean.shape[1:]} or np.any(low > high):
        raise ValueError(
            f"low, high: expected a number or {mean.shape[1]} numbers, low at most high, got {low} "
            f"and {high}"
        )
    if iterations < 1 or chunk is not None and chunk < 1:
        raise ValueError(f"iterations, chunk: expected at least 1, got {iterations} and {chunk}")
    low, high = (np.broadcast_to(x, (1, 1, mean.shape[1])) for x in (low, high))
    return mean, std, lambda plans: jnp.clip(plans, low, high)


class _Search(NamedTuple):
    """Holds the state of a cross-entropy search.

    Attributes:
      mean, std: [T, U], of the Gaussian.
      elite, costs: [E, T, U] and [E], the elites of the last iteration and their costs.
      best: the cheapest plan seen and its cost.
    """

    mean: jax.Array
    std: jax.Array
    elite: jax.Array
    costs: jax.Array
    best: tuple


def _refit(
    cost,
    key,
    mean,
    std,
    clip,
    samples,
    elites,
    iterations,
    momentum,
    chunk,
    exponent=0.0,
    kept=0,
    decay=1.0,
    keep_mean=True,
):
    """Runs a cross-entropy search and returns its final _Search.

    Args:
      cost, key, mean, std, samples, elites, iterations, momentum, chunk, keep_mean: as in `cem`.
      clip: function from `_check`.
      exponent, decay: as in `icem`; 0 and 1 for `cem`.
      kept: number of elites that are kept as candidates.
    """
    if not 0 < elites < samples:
        raise ValueError(f"elites: expected 1 to samples - 1 = {samples - 1}, got {elites}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: expected at least 0 and less than 1, got {momentum}")

    def iterate(last, x):
        mean, std, best = last.mean, last.std, last.best
        key, size = x
        first = mean[None][: int(keep_mean)]
        noise = colored_noise(key, (samples - len(first), *mean.shape), exponent)
        plans = clip(jnp.concatenate([first, mean[None] + std[None] * noise]))
        if decay == 1:
            costs = _in_chunks(_checked(cost), plans, chunk)
        else:  # shapes are fixed within a scan, but whole chunks can be skipped
            skip = lambda plans: jnp.full(len(plans), jnp.inf, jnp.float32)  # noqa: E731
            run = lambda x: jax.lax.cond(x[1][0] < size, _checked(cost), skip, x[0])  # noqa: E731
            costs = _in_chunks(run, (plans, jnp.arange(samples)), chunk)
        plans = jnp.concatenate([last.elite[:kept], plans])
        negative, order = jax.lax.top_k(-jnp.concatenate([last.costs[:kept], costs]), elites)
        elite, costs = plans[order], -negative
        new_mean, new_std = _gaussian(mean, std, elite, jnp.isfinite(costs))
        mean = momentum * mean + (1 - momentum) * new_mean
        std = momentum * std + (1 - momentum) * new_std
        return _Search(mean, std, elite, costs, _cheapest(best, elite, costs)), None

    sizes = np.maximum(samples / decay ** np.arange(iterations), 2 * elites).astype(np.int32)
    first = clip(mean[None])
    no_elites = jnp.repeat(first, elites, axis=0), jnp.full(elites, jnp.inf, jnp.float32)
    start = _Search(mean, std, *no_elites, _initial_best(first[0]))
    return jax.lax.scan(iterate, start, (jax.random.split(key, iterations), sizes))[0]


def _gaussian(mean, std, elite, feasible):
    """Refits mean and std [T, U] to the elites [E, T, U] that are feasible [E].

    Infeasible elites do not affect the mean, and contribute the old variance to the std.
    """
    count = feasible.sum(dtype=jnp.int32).astype(jnp.float32)
    part = feasible[:, None, None].astype(jnp.float32)
    new = jnp.where(count > 0, (part * elite).sum(0) / jnp.maximum(count, 1), mean)
    missing = jnp.minimum(len(elite) - count, len(elite) - 1)
    squares = (part * jnp.square(elite - new[None])).sum(0) + missing * jnp.square(std)
    return new, jnp.where(count > 0, jnp.sqrt(squares / max(len(elite) - 1, 1)), std)


def _descend(cost, plans, std, clip, iterations, rate, chunk):
    """Runs Adam on plans [P, T, U], in units of std [T, U]; returns the best (plan, cost)."""
    if not rate > 0:
        raise ValueError(f"rate: expected a positive number, got {rate}")
    adam = optax.adam(optax.cosine_decay_schedule(rate, iterations))

    def total(plans):
        costs = _checked(cost)(plans)
        return costs.sum(), costs

    def gradients(plans):
        (_, costs), grads = jax.value_and_grad(total, has_aux=True)(plans)
        # Adam squares gradients, and float32 overflows at 3e38.
        return costs, jnp.clip(jnp.nan_to_num(grads), -HUGE, HUGE)

    def iterate(carry, _):
        plans, state, best = carry
        costs, grads = _in_chunks(gradients, plans, chunk)
        step, state = adam.update(grads, state)
        return (clip(plans + std[None] * step), state, _cheapest(best, plans, costs)), None

    plans = clip(plans)
    start = (plans, adam.init(plans), _initial_best(plans[0]))
    return jax.lax.scan(iterate, start, None, iterations)[0][-1]


def colored_noise(key, shape, exponent):
    """Draws Gaussian noise [P, T, U] of variance 1, its power frequency ** -exponent in time.

    The noise has period 2 T; the power at frequency 0 is that of the lowest frequency, 1 / (2 T).
    """
    if exponent == 0:
        return jax.random.normal(key, shape, jnp.float32)
    P, T, U = shape
    frequency = np.maximum(np.abs(np.fft.fftfreq(2 * T)), 1 / (2 * T))
    power = frequency**-exponent
    gain = np.sqrt(power / power.mean()).astype(np.float32)
    white = jnp.fft.fft(jax.random.normal(key, (P, 2 * T, U), jnp.float32), axis=1)
    return jnp.fft.ifft(white * gain[None, :, None], axis=1).real[:, :T]


def _checked(cost):
    """Wraps `cost` to return float32 [P], with NaN as infinity and -infinity as the minimum."""

    def checked(plans):
        costs = cost(plans)
        if costs.shape != (len(plans),):
            raise ValueError(
                f"cost: expected a function that returns [{len(plans)}], got {costs.shape}"
            )
        costs = jnp.maximum(costs.astype(jnp.float32), jnp.finfo(jnp.float32).min)
        return jnp.where(jnp.isnan(costs), jnp.inf, costs)

    return checked


def _in_chunks(function, plans, chunk):
    """Applies a function of [P, ...] to equal parts of at most `chunk` rows, sequentially."""
    P = len(jax.tree.leaves(plans)[0])
    parts = -(-P // (chunk or P))
    size = -(-P // parts)
    if parts == 1:
        return function(plans)
    split = lambda x: _filled(x, parts * size - P).reshape(parts, size, *x.shape[1:])  # noqa: E731
    join = lambda x: x.reshape(parts * size, *x.shape[2:])[:P]  # noqa: E731
    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, plans)))


def _filled(x, count):
    """Appends `count` copies of the last row of x [P, ...]."""
    return jnp.concatenate([x, jnp.repeat(x[-1:], count, axis=0)])


def _initial_best(mean):
    """Returns the initial best (plan, cost): the mean at an infinite cost."""
    return mean, jnp.float32(jnp.inf)


def _cheapest(best, plans, costs):
    """Returns the cheapest (plan, cost) among the best so far and new candidates."""
    i = costs.argmin()
    plan, cost = best
    return jnp.where(costs[i] < cost, plans[i], plan), jnp.minimum(costs[i], cost)

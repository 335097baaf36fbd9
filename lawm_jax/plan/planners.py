"""Planners: pure functions that search for the cheapest plan under any cost function.

All take (cost, key, mean, std, ...) and return the plan and its cost. Each is one `lax.scan` with
no host callbacks: jit it, or call it inside a jitted function. The mean that a search starts from
is its first candidate, so the plan is never worse.

Any cost will do. Infinite means infeasible, and a cost that is not a number counts as infinite:
such plans are neither returned nor do they move the search. Planners but those by gradients only
compare costs, so that a penalty of any size on infeasible plans does as well as infinity. Where all
plans are infeasible the mean comes back, at an infinite cost. Plans are float32 and within the
bounds, and costs are compared in float32, whatever JAX's default precision.

* Several tasks at once: `jax.vmap` over key, mean, std and what `cost` closes over; each task has
  its own `chunk`.
* Several devices: `spread` the cost over them or, of more tasks than devices, the tasks.
* Plans of fewer numbers: search for those, and let `cost` make plans of them. A straight line of h
  steps is `lambda total: cost(jnp.repeat(total / h, h, axis=1))` with mean and std of [1, U].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

HUGE = 1e15  # a slope beyond it counts as this


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
):
    """Plans by the cross-entropy method.

    Each iteration draws plans from a Gaussian and refits it to the cheapest ones; the mean itself
    is always among the candidates. The deviation is the unbiased one (n - 1), as in jepa-wms,
    V-JEPA 2, NWM and stable-worldmodel: the biased one of 10 elites would halve it in 15
    iterations. Of one elite it is 0. Where fewer plans are feasible than elites are asked for, the
    missing ones keep the old deviation.

    Args:
      cost: function of plans [P, T, U] float32 -> [P], lower is better; it must be traceable.
      key: PRNG key.
      mean, std: [T, U], of the first Gaussian, in the units of the plan.
      samples, elites, iterations: P, how many of them the Gaussian is refitted to, and how often.
      momentum: weight of the old mean and std in the new ones, 0 to less than 1.
      low, high: bounds of a plan, a number or [U], known when traced; candidates are clipped.
      chunk: candidates evaluated at a time, at most; it bounds the memory. None for all.
      average: whether to return the last Gaussian's mean, as jepa-wms, V-JEPA 2 and NWM do, not the
        cheapest plan seen; an infeasible mean gives way to this one.

    Returns:
      plan: [T, U], the cheapest one seen.
      cost: its cost, a scalar.

    Raises:
      ValueError: `mean` and `std` differ in shape, elites are not fewer than samples, or an option
        is out of its range; `cost` does not return [P].

    Source: Rubinstein 1999; settings of Garrido et al. 2026, section 6; momentum of De Boer et al.
    2005, "A Tutorial on the Cross-Entropy Method" (smoothed updating).
    """
    mean, std, clip = _check(mean, std, low, high, iterations, chunk)
    end = _refit(cost, key, mean, std, clip, samples, elites, iterations, momentum, chunk)
    if not average:
        return end.best
    last = clip(end.mean[None])
    price = _prices(cost)(last)[0]
    feasible = jnp.isfinite(price)
    plan, least = end.best
    return jnp.where(feasible, last[0], plan), jnp.where(feasible, price, least)


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
    """Plans by the sample-efficient cross-entropy method: for few candidates and long plans.

    `cem` with three changes: noise is correlated in time, so that candidates go somewhere; some
    elites stay among the candidates, and are not evaluated again; the population shrinks.

    Args:
      cost, key, mean, std, samples, elites, iterations, momentum, low, high: as in `cem`.
      chunk: as in `cem`; the population shrinks by whole chunks. None for 2 elites, its least size.
      exponent: the noise's power falls as frequency ** -exponent: 0 is white, 2 a random walk.
      keep: share of the elites that stay.
      decay: factor by which the population shrinks in each iteration, down to 2 elites.

    Returns:
      plan: [T, U], the cheapest one seen.
      cost: its cost, a scalar.

    Raises:
      ValueError: as `cem`.

    Source: Pinneri et al. 2020, "Sample-efficient Cross-Entropy Method for Real-time Planning".
    There, noise has the period T, so that of short plans is nearly white, and the mean joins the
    candidates in the last iteration only. Elites of an earlier time step are the caller's `mean`.
    """
    mean, std, clip = _check(mean, std, low, high, iterations, chunk)
    if not (exponent >= 0 and 0 <= keep <= 1 and decay >= 1):
        raise ValueError(
            "exponent, keep, decay: expected at least 0, 0 to 1 and at least 1, got "
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
    """Plans by model predictive path integrals: the mean of all candidates, the cheap ones first.

    Args:
      cost, key, mean, std, samples, iterations, low, high, chunk: as in `cem`; std stays.
      temperature: of the weights exp(-rank / temperature), a candidate's rank being the share of
        candidates that are cheaper: it fits any cost, and no penalty on others blinds it to the
        differences between feasible plans.

    Returns:
      plan: [T, U], the cheapest one seen.
      cost: its cost, a scalar.

    Raises:
      ValueError: as `cem`.

    Source: Williams et al. 2017, "Information Theoretic MPC for Model-Based Reinforcement
    Learning", whose weights are exp(-cost / temperature), with a temperature for each cost; the
    cost of the controls themselves is left to `cost`.
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
        costs = _in_chunks(_prices(cost), plans, chunk)
        cheaper = jnp.searchsorted(jnp.sort(costs), costs, method="sort").astype(jnp.float32)
        weights = jnp.exp(-cheaper / jnp.float32(temperature * samples)) * jnp.isfinite(costs)
        total = weights.sum()  # at least 1, that of the cheapest, unless none is feasible
        new = jnp.einsum("p,ptu->tu", weights, plans) / jnp.maximum(total, 1)
        mean = jnp.where(total > 0, new, mean)
        return (mean, _cheapest(best, plans, costs)), None

    start = (mean, _nothing(clip(mean[None])[0]))
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
    """Plans by gradient descent (Adam) through the cost, from several starts in parallel.

    Args:
      cost, key, mean, std, low, high, chunk: as in `cem`; the first start is the mean, the others
        are drawn from the Gaussian, all are clipped to the bounds after each step.
      samples: number of starts.
      iterations: evaluations of each start.
      rate: size of the first step, in units of std; it falls to 0 along a cosine.

    Returns:
      plan: [T, U], the cheapest one seen.
      cost: its cost, a scalar.

    Raises:
      ValueError: as `cem`.

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
    """Plans by a few iterations of `cem`, then refines its elites by gradient descent.

    Args:
      cost, key, mean, std, samples, elites, iterations, momentum, low, high, chunk: as in `cem`.
      steps, rate: `iterations` and `rate` of `gradient`, in units of the first std.

    Returns:
      plan: [T, U], the cheapest one seen.
      cost: its cost, a scalar.

    Raises:
      ValueError: as `cem`.

    Source: Bharadhwaj et al. 2020, "Model-Predictive Control via Cross-Entropy and Gradient-Based
    Optimization"; theirs takes the gradient steps within each iteration.
    """
    mean, std, clip = _check(mean, std, low, high, iterations, chunk)
    end = _refit(cost, key, mean, std, clip, samples, elites, iterations, momentum, chunk)
    starts = jnp.concatenate([end.best[0][None], end.elite[:-1]])
    return _descend(cost, starts, std, clip, steps, rate, chunk)


def spread(function, mesh):
    """Makes all devices compute a part of a function's rows each.

    Args:
      function: of arrays [P, ...] to arrays [P, ...], each row for itself, such as a cost of plans,
        or a planner of P tasks; what it closes over, such as parameters, is on all devices.
      mesh: jax.sharding.Mesh, the devices.

    Returns:
      The same function, for any P.
    """
    if mesh.size == 1:
        return function
    parts = PartitionSpec(mesh.axis_names)
    local = jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=parts, check_vma=False)

    def run(*rows):
        P = len(jax.tree.leaves(rows)[0])
        found = local(*jax.tree.map(lambda x: _filled(x, -P % mesh.size), rows))
        return jax.tree.map(lambda x: x[:P], found)

    return run


def _check(mean, std, low, high, iterations, chunk):
    """Checks what all planners take: mean and std as float32, and a function that clips plans."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    if mean.ndim != 2 or mean.shape != std.shape:
        raise ValueError(f"mean, std: expected one shape [T, U], got {mean.shape} and {std.shape}")
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    if not {low.shape, high.shape} <= {(), mean.shape[1:]} or np.any(low > high):
        raise ValueError(
            f"low, high: expected a number or {mean.shape[1]} of them, low at most high, got {low} "
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
      elite, costs: [E, T, U] and [E], the cheapest plans of the last iteration.
      best: the cheapest plan seen, and its cost.
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
):
    """Searches by refitting a Gaussian to the elites: the last _Search.

    Args:
      cost, key, mean, std, samples, elites, iterations, momentum, chunk: as in `cem`.
      clip: from `_check`.
      exponent, decay: as in `icem`; 0 and 1 are `cem`.
      kept: number of elites that stay among the candidates.
    """
    if not 0 < elites < samples:
        raise ValueError(f"elites: expected 1 to samples - 1 = {samples - 1}, got {elites}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: expected 0 to less than 1, got {momentum}")

    def iterate(last, x):
        mean, std, best = last.mean, last.std, last.best
        key, size = x
        noise = _noise(key, (samples - 1, *mean.shape), exponent)
        plans = clip(jnp.concatenate([mean[None], mean[None] + std[None] * noise]))
        if decay == 1:
            costs = _in_chunks(_prices(cost), plans, chunk)
        else:  # shapes cannot shrink within a scan, but whole chunks can be skipped
            skip = lambda plans: jnp.full(len(plans), jnp.inf, jnp.float32)  # noqa: E731
            price = lambda x: jax.lax.cond(x[1][0] < size, _prices(cost), skip, x[0])  # noqa: E731
            costs = _in_chunks(price, (plans, jnp.arange(samples)), chunk)
        plans = jnp.concatenate([last.elite[:kept], plans])
        negative, order = jax.lax.top_k(-jnp.concatenate([last.costs[:kept], costs]), elites)
        elite, costs = plans[order], -negative
        new_mean, new_std = _gaussian(mean, std, elite, jnp.isfinite(costs))
        mean = momentum * mean + (1 - momentum) * new_mean
        std = momentum * std + (1 - momentum) * new_std
        return _Search(mean, std, elite, costs, _cheapest(best, elite, costs)), None

    sizes = np.maximum(samples / decay ** np.arange(iterations), 2 * elites).astype(np.int32)
    first = clip(mean[None])
    nobody = jnp.repeat(first, elites, axis=0), jnp.full(elites, jnp.inf, jnp.float32)
    start = _Search(mean, std, *nobody, _nothing(first[0]))
    return jax.lax.scan(iterate, start, (jax.random.split(key, iterations), sizes))[0]


def _gaussian(mean, std, elite, feasible):
    """Refits mean and std [T, U] to the elites [E, T, U] that are feasible [E].

    Those that are missing count as drawn from the old Gaussian, but for the mean.
    """
    count = feasible.sum(dtype=jnp.int32).astype(jnp.float32)
    part = feasible[:, None, None].astype(jnp.float32)
    new = jnp.where(count > 0, (part * elite).sum(0) / jnp.maximum(count, 1), mean)
    missing = jnp.minimum(len(elite) - count, len(elite) - 1)
    squares = (part * jnp.square(elite - new[None])).sum(0) + missing * jnp.square(std)
    return new, jnp.where(count > 0, jnp.sqrt(squares / max(len(elite) - 1, 1)), std)


def _descend(cost, plans, std, clip, iterations, rate, chunk):
    """Runs Adam from plans [P, T, U], steps in units of std [T, U]: the best (plan, cost)."""
    if not rate > 0:
        raise ValueError(f"rate: expected a positive number, got {rate}")
    adam = optax.adam(optax.cosine_decay_schedule(rate, iterations))

    def total(plans):
        costs = _prices(cost)(plans)
        return costs.sum(), costs

    def slope(plans):
        (_, costs), slopes = jax.value_and_grad(total, has_aux=True)(plans)
        # Adam squares them: float32 ends at 3e38.
        return costs, jnp.clip(jnp.nan_to_num(slopes), -HUGE, HUGE)

    def iterate(carry, _):
        plans, state, best = carry
        costs, slopes = _in_chunks(slope, plans, chunk)
        step, state = adam.update(slopes, state)
        return (clip(plans + std[None] * step), state, _cheapest(best, plans, costs)), None

    plans = clip(plans)
    start = (plans, adam.init(plans), _nothing(plans[0]))
    return jax.lax.scan(iterate, start, None, iterations)[0][-1]


def _noise(key, shape, exponent):
    """Draws Gaussian noise [P, T, U] of variance 1, its power frequency ** -exponent in time.

    It has the period 2 T and the power of frequency 1 / (2 T) also at frequency 0.
    """
    if exponent == 0:
        return jax.random.normal(key, shape, jnp.float32)
    P, T, U = shape
    frequency = np.maximum(np.abs(np.fft.fftfreq(2 * T)), 1 / (2 * T))
    power = frequency**-exponent
    gain = np.sqrt(power / power.mean()).astype(np.float32)
    white = jnp.fft.fft(jax.random.normal(key, (P, 2 * T, U), jnp.float32), axis=1)
    return jnp.fft.ifft(white * gain[None, :, None], axis=1).real[:, :T]


def _prices(cost):
    """Returns the function plans [P, T, U] -> [P] that `cost` should be: float32, and a number."""

    def price(plans):
        costs = cost(plans)
        if costs.shape != (len(plans),):
            raise ValueError(f"cost: expected a function to [{len(plans)}], got {costs.shape}")
        costs = jnp.maximum(costs.astype(jnp.float32), jnp.finfo(jnp.float32).min)
        return jnp.where(jnp.isnan(costs), jnp.inf, costs)

    return price


def _in_chunks(function, plans, chunk):
    """Applies a function of [P, ...] to equal parts of at most `chunk`, one after the other."""
    P = len(jax.tree.leaves(plans)[0])
    parts = -(-P // (chunk or P))
    size = -(-P // parts)
    if parts == 1:
        return function(plans)
    split = lambda x: _filled(x, parts * size - P).reshape(parts, size, *x.shape[1:])  # noqa: E731
    join = lambda x: x.reshape(parts * size, *x.shape[2:])[:P]  # noqa: E731
    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, plans)))


def _filled(x, count):
    """Repeats the last of x [P, ...] `count` times more."""
    return jnp.concatenate([x, jnp.repeat(x[-1:], count, axis=0)])


def _nothing(mean):
    """Returns the best (plan, cost) before anything is seen."""
    return mean, jnp.float32(jnp.inf)


def _cheapest(best, plans, costs):
    """Returns the cheaper one of the best (plan, cost) so far and of those just seen."""
    i = costs.argmin()
    plan, cost = best
    return jnp.where(costs[i] < cost, plans[i], plan), jnp.minimum(costs[i], cost)

"""Plans with a world model: the cost is the distance of the predicted end state to the goal.

Source: Garrido et al. 2026, section 6.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lawm_jax import world_model
from lawm_jax.plan import planners
from lawm_jax.train import cpu

PLANNERS = {
    "cem": planners.cem,
    "icem": planners.icem,
    "mppi": planners.mppi,
    "gradient": planners.gradient,
    "cem_gradient": planners.cem_gradient,
}
# Share of the device memory for candidates, and the assumed memory if a device does not report it.
SHARE, MEMORY = 0.25, 2**34
# State elements that a CPU predicts at once, few enough that all activations fit its caches:
# 1.5 times as fast as 300 candidates of nano at once on one core of a busy machine, and equally
# fast on two idle cores.
AT_ONCE_ON_CPU = 2**19
# Tasks per device in one program: XLA (jaxlib 0.10) keeps 45 MB per task until the program ends.
PER_DEVICE_ON_CPU = 4


def search(
    model,
    params,
    start,
    goal,
    mean,
    std,
    planner="cem",
    options=None,
    hold=1,
    seed=0,
    window=None,
    progress=None,
):
    """Plans all episodes, minimizing the L2 distance between the last predicted state and the goal.

    Args:
      model, params: a world model that `world_model.map_actions` accepts.
      start, goal: float32 [n, N, D], states.
      mean, std: [H, U], of the planner's initial Gaussian, in units of the actions.
      planner: one of `PLANNERS`.
      options: dict of keyword arguments of the planner.
      hold: number of steps for which each action of the plan is repeated.
      seed: seed of the planner.
      window: maximum number of steps in the model's context, see `world_model.rollout_actions`.
      progress: function called with the number of episodes in each group that is planned, or None.

    Returns:
      u: float32 [n, H hold, U].
      distance: float32 [n], root mean square difference between the predicted end state and the
        goal.

    Raises:
      ValueError: start and goal differ in shape, the model has no controller, or the planner or one
        of its options is unknown.
    """
    n, run = len(start), make_search(model, std, planner, options, hold, window)
    keys, mean = jax.random.split(jax.random.key(seed), n), np.repeat(mean[None], n, 0)
    size = min(n, PER_DEVICE_ON_CPU * jax.device_count()) if jax.default_backend() == "cpu" else n
    groups = np.arange(-(-n // size) * size).clip(max=n - 1).reshape(-1, size)
    found = []
    for i in groups:
        found.append(run(params, keys[i], start[i], goal[i], mean[i]))
        if progress:
            jax.block_until_ready(found[-1])
            progress(len(set(i.tolist())))  # the last group may repeat an episode
    u, distance = (np.concatenate(parts)[:n] for parts in zip(*found, strict=True))
    return u, distance


def make_search(model, std, planner="cem", options=None, hold=1, window=None):
    """Builds the function behind `search`, compiled once for many searches on all devices.

    Args:
      model, std, planner, options, hold, window: as in `jitted`.

    Returns:
      A function as `jitted` returns.

    Raises:
      ValueError: as in `search`, in part when the function is called.
    """
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    run, everywhere = jitted(model, std, mesh, planner, options, hold, window)
    return lambda *args: run(*jax.device_put(args, everywhere))


def jitted(model, std, mesh, planner="cem", options=None, hold=1, window=None):
    """Builds the jitted function of a search.

    Tasks are sharded over all devices or, if there are fewer tasks than devices, candidates are.

    Args:
      model, std, planner, options, hold, window: as in `search`. The option `chunk`, by default
        from `most_candidates`, is the number of candidates predicted at once by each device or,
        if candidates are sharded, by all devices together.
      mesh: jax.sharding.Mesh with one axis, of devices that need not be attached to compile.

    Returns:
      A function of params, keys [n], start and goal [n, N, D] and the means [n, H, U] of the
      planner's initial Gaussians that returns u and distance as in `search`; and the sharding of
      its arguments.

    Raises:
      ValueError: as in `search`, in part when the function is called.
    """
    if planner not in PLANNERS:
        raise ValueError(f"planner: expected one of {tuple(PLANNERS)}, got {planner!r}")
    options, known = dict(options or {}), inspect.signature(PLANNERS[planner]).parameters
    if not options.keys() <= known.keys():
        raise ValueError(f"options: expected options of {planner}, got {sorted(options)}")
    samples = options.get("samples", known["samples"].default)
    device = mesh.devices.flat[0]

    @functools.partial(jax.jit, compiler_options=cpu.options(device.platform))
    def run(params, keys, start, goal, mean):
        if start.ndim != 3 or start.shape != goal.shape:
            raise ValueError(
                f"start, goal: expected states of the same shape [n, N, D], got {start.shape} and "
                f"{goal.shape}"
            )
        n, N, D = start.shape
        most = most_candidates(model, N, D, std.shape[0] * hold, window, device)
        shard_tasks = n >= mesh.size  # else candidates, for which devices wait for one another
        chunk = options.get("chunk") or min(most if shard_tasks else most * mesh.size, samples)
        solve = functools.partial(PLANNERS[planner], **options | {"chunk": chunk})

        def solve_task(task):
            key, start, goal, mean = task
            cost = _cost(model, params, start, goal, hold, window)
            cost = cost if shard_tasks else planners.spread(cost, mesh)
            plan, least = solve(cost, key, mean, std)
            return jnp.repeat(plan, hold, axis=0), least

        def solve_some(*tasks):
            at_once = 1 if "chunk" in options else max(1, min(n, most // samples))
            return jax.lax.map(solve_task, tasks, batch_size=at_once)

        solve_all = planners.spread(solve_some, mesh) if shard_tasks else solve_some
        return solve_all(keys, start, goal, mean)

    return run, NamedSharding(mesh, PartitionSpec())


def _cost(model, params, start, goal, hold, window):
    """Builds the cost of plans [P, H, U] from a state [N, D]: [P], L2 distance to the goal."""
    no_latents = jnp.zeros((1, 0, model.latent.dim))
    cache = world_model.prefill(model, params, start[None, None], no_latents)

    def cost(plans):
        u = jnp.repeat(plans, hold, axis=1)
        last = world_model.rollout_actions(model, params, cache, u, window)[:, -1]
        return jnp.sqrt(jnp.square(last - goal[None]).mean((1, 2)))

    return cost


def candidate_bytes(model, N, D, steps, window=None):
    """Estimates the memory of one candidate during the prediction of its states.

    Args:
      model, N, D: WorldModel, tokens per state and their width.
      steps: number of predicted steps.
      window: as in `world_model.rollout_actions`.

    Returns:
      Bytes of the key-value cache of all blocks, twice, since adding a step copies it; of the
      states; and of the activations of one block (twice the MLP's hidden layer of 4 widths, the
      peak) with its float32 attention logits.
    """
    predictor = model.predictor
    depth, width, heads = (getattr(predictor, x, 1) for x in ("depth", "width", "heads"))
    size = np.dtype(getattr(predictor, "dtype", np.float32)).itemsize
    cached = min(steps, window or steps)
    kept = 2 * 2 * depth * cached * N * width * size
    states = 4 * (steps + 2) * N * D
    # Once the window slides, all of its steps are recomputed at once.
    tokens = N * (cached if window and steps > window else 1)
    block = 2 * 4 * tokens * width * size + 4 * heads * tokens * cached * N
    return kept + states + block


def most_candidates(model, N, D, steps, window=None, device=None):
    """Returns the number of candidates to predict at once, limited by device memory and caches."""
    device = device or jax.devices()[0]
    stats = (device.memory_stats() or {}) if device in jax.local_devices() else {}
    room = SHARE * (stats.get("bytes_limit", MEMORY) - stats.get("bytes_in_use", 0))
    most = int(room // candidate_bytes(model, N, D, steps, window))
    if device.platform == "cpu":
        most = min(most, AT_ONCE_ON_CPU // (N * D))
    return max(1, most)

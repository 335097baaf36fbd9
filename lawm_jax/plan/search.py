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
    straight=False,
    past=None,
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
      straight: whether plans are expanded by `straight_line` instead of repeated.
      past: the context before `start`: states [n, C-1, N, D] and latent actions [n, C-1, A], each
        leading to the next state. The model then sees the last C states at every step, and
        `window` is unused. None for no context.

    Returns:
      u: float32 [n, H hold, U].
      distance: float32 [n], root mean square difference between the predicted end state and the
        goal.

    Raises:
      ValueError: start and goal differ in shape, the model has no controller, or the planner or one
        of its options is unknown.
    """
    n, run = len(start), make_search(model, std, planner, options, hold, window, straight=straight)
    keys, mean = jax.random.split(jax.random.key(seed), n), np.repeat(mean[None], n, 0)
    return in_groups(run, params, (keys, start, goal, mean, *(past or ())), at_once(n), progress)


def at_once(n):
    """Returns how many of n tasks to plan in one program."""
    return min(n, PER_DEVICE_ON_CPU * jax.device_count()) if jax.default_backend() == "cpu" else n


def in_groups(run, params, tasks, size, progress=None):
    """Plans any number of tasks in groups of one size, for which the function is compiled once.

    Args:
      run: from `make_search`.
      params, tasks: its arguments; those after params are arrays of n tasks.
      size: number of tasks in a group; the last group repeats its last task.
      progress: as in `search`.

    Returns:
      u, distance: as in `search`.
    """
    n = len(tasks[0])
    groups = np.arange(-(-n // size) * size).clip(max=n - 1).reshape(-1, size)
    results = []
    for i in groups:
        results.append(run(params, *(x[i] for x in tasks)))
        if progress:
            jax.block_until_ready(results[-1])
            progress(len(set(i.tolist())))  # the last group may repeat an episode
    u, distance = (np.concatenate(parts)[:n] for parts in zip(*results, strict=True))
    return u, distance


def make_search(
    model, std, planner="cem", options=None, hold=1, window=None, *, straight=False, nearest=False
):
    """Builds the function behind `search`, compiled once for many searches on all devices.

    Args:
      model, std, planner, options, hold, window, straight, nearest: as in `jitted`.

    Returns:
      A function as `jitted` returns.

    Raises:
      ValueError: as in `search`, in part when the function is called.
    """
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    run, everywhere = jitted(
        model, std, mesh, planner, options, hold, window, straight=straight, nearest=nearest
    )
    return lambda *args: run(*jax.device_put(args, everywhere))


def jitted(
    model,
    std,
    mesh,
    planner="cem",
    options=None,
    hold=1,
    window=None,
    *,
    straight=False,
    nearest=False,
):
    """Builds the jitted function of a search.

    Tasks are sharded over all devices or, if there are fewer tasks than devices, candidates are.

    Args:
      model, std, planner, options, hold, window, straight: as in `search`. The option `chunk`, by
        default from `most_candidates`, is the number of candidates predicted at once by each device
        or, if candidates are sharded, by all devices together.
      mesh: jax.sharding.Mesh with one axis, of devices that need not be attached to compile.
      nearest: whether a plan's cost is the distance of the predicted state nearest to the goal, not
        of the last one, so that a plan may reach the goal after any of its steps.

    Returns:
      A function of params, keys [n], start and goal [n, N, D], the means [n, H, U] of the
      planner's initial Gaussians and, if there is a context, its states and latents, that returns
      u and distance as in `search`; and the sharding of its arguments.

    Raises:
      ValueError: as in `search`, in part when the function is called.
    """
    if planner not in PLANNERS:
        raise ValueError(f"planner: expected one of {tuple(PLANNERS)}, got {planner!r}")
    options, parameters = dict(options or {}), inspect.signature(PLANNERS[planner]).parameters
    if not options.keys() <= parameters.keys():
        raise ValueError(f"options: expected options of {planner}, got {sorted(options)}")
    samples = options.get("samples", parameters["samples"].default)
    expand = functools.partial(straight_line if straight else _repeated, hold=hold)
    device = mesh.devices.flat[0]

    @functools.partial(jax.jit, compiler_options=cpu.options(device.platform))
    def run(params, keys, start, goal, mean, *past):
        if start.ndim != 3 or start.shape != goal.shape:
            raise ValueError(
                f"start, goal: expected states of the same shape [n, N, D], got {start.shape} and "
                f"{goal.shape}"
            )
        n, N, D = start.shape
        context = past[0].shape[1] + 1 if past else window
        most = most_candidates(model, N, D, std.shape[0] * hold, context, device)
        shard_tasks = n >= mesh.size  # sharded candidates make devices wait for each other
        chunk = options.get("chunk") or min(most if shard_tasks else most * mesh.size, samples)
        solve = functools.partial(PLANNERS[planner], **options | {"chunk": chunk})

        def solve_task(task):
            key, start, goal, mean, *past = task
            if past:
                predict = _from_context(model, params, start, *past)
            else:
                predict = from_start(model, params, start, window)
            cost = goal_cost(lambda plans: predict(expand(plans)), goal, nearest)
            cost = cost if shard_tasks else planners.spread(cost, mesh)
            plan, least = solve(cost, key, mean, std)
            return expand(plan[None])[0], least

        def solve_some(*tasks):
            at_once = 1 if "chunk" in options else max(1, min(n, most // samples))
            return jax.lax.map(solve_task, tasks, batch_size=at_once)

        solve_all = planners.spread(solve_some, mesh) if shard_tasks else solve_some
        return solve_all(keys, start, goal, mean, *past)

    return run, NamedSharding(mesh, PartitionSpec())


def straight_line(plans, hold):
    """Expands single actions to straight lines that turn only at their ends, as NWM does.

    Args:
      plans: [P, 1, 3]: the move of each step along x and y in the frame of the start, in meters,
        and the turn in the last step, in radians.
      hold: number of steps, at least 2.

    Returns:
      [P, hold, 3]: the same move at each step. The first step also turns into the direction of the
      move, and the last one by the turn.

    Source: `generate_actions` of github.com/facebookresearch/nwm, planning_eval.py.
    """
    x, y, turn = jnp.moveaxis(plans[:, 0], 1, 0)
    turns = jnp.zeros((len(plans), hold)).at[:, 0].set(jnp.arctan2(y, x)).at[:, -1].add(turn)
    return jnp.stack([*(jnp.broadcast_to(a[:, None], turns.shape) for a in (x, y)), turns], -1)


def _repeated(plans, hold):
    return jnp.repeat(plans, hold, axis=1)


def goal_cost(predict, goal, nearest=False):
    """Builds the cost of plans: the L2 distance of a predicted state to the goal.

    Args:
      predict: function of plans [P, H, U] to the states that they lead to, [P, T, N, D].
      goal: [N, D].
      nearest: whether that state is the one nearest to the goal, instead of the last one.

    Returns:
      A function of plans [P, H, U] to costs [P].
    """

    def cost(plans):
        states = predict(plans)
        states = states if nearest else states[:, -1:]
        return jnp.sqrt(jnp.square(states - goal[None, None]).mean((2, 3))).min(1)

    return cost


def from_start(model, params, start, window=None):
    """Builds the function of actions u [P, T, U] to the states [P, T, N, D] after one [N, D]."""
    no_latents = jnp.zeros((1, 0, model.latent.dim))
    cache = world_model.prefill(model, params, start[None, None], no_latents)
    return lambda u: world_model.rollout_actions(model, params, cache, u, window)


def _from_context(model, params, start, s, z):
    """Builds the function of `from_start` for a state after a context s [C-1, N, D], z [C-1, A].

    Every step is predicted from the last C states, with time positions from 0.
    """
    context = jnp.concatenate([s, start[None]])

    def ahead(u):
        def step(carry, action):
            states, latents = carry
            new = world_model.map_actions(model, params, action[:, None], states[:, -1:])
            latents = jnp.concatenate([latents, new], 1)
            state = world_model.predict(model, params, states, latents)[:, -1:]
            return (jnp.concatenate([states[:, 1:], state], 1), latents[:, 1:]), state[:, 0]

        first = (jnp.broadcast_to(x[None], (len(u), *x.shape)) for x in (context, z))
        return jax.lax.scan(step, tuple(first), u.swapaxes(0, 1))[1].swapaxes(0, 1)

    return ahead


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
    context = min(steps, window or steps)
    cache = 2 * 2 * depth * context * N * width * size
    states = 4 * (steps + 2) * N * D
    # Once the window slides, all of its steps are recomputed at once.
    tokens = N * (context if window and steps > window else 1)
    block = 2 * 4 * tokens * width * size + 4 * heads * tokens * context * N
    return cache + states + block


def most_candidates(model, N, D, steps, window=None, device=None):
    """Returns the number of candidates to predict at once, limited by device memory and caches."""
    device = device or jax.devices()[0]
    stats = (device.memory_stats() or {}) if device in jax.local_devices() else {}
    available = SHARE * (stats.get("bytes_limit", MEMORY) - stats.get("bytes_in_use", 0))
    most = int(available // candidate_bytes(model, N, D, steps, window))
    if device.platform == "cpu":
        most = min(most, AT_ONCE_ON_CPU // (N * D))
    return max(1, most)

"""Plans with a world model: a plan costs as much as it is predicted to end away from the goal.

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
# Share of a device's memory that candidates may take, and what a device has that does not tell.
SHARE, MEMORY = 0.25, 2**34
# Numbers in the states that a CPU predicts at a time. All that is computed of so few fits its
# caches: 1.5 times as fast as 300 candidates of nano at once on a core of a busy machine, the same
# on two quiet ones.
AT_ONCE_ON_CPU = 2**19
# Tasks of a device in one program: XLA (jaxlib 0.10) keeps 45 MB for each until the program ends.
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
):
    """Plans for all episodes: the last predicted state should be the goal, by L2 distance.

    Args:
      model, params: of a world model that `world_model.map_actions` takes.
      start, goal: float32 [n, N, D], states.
      mean, std: [H, U], of the planner's first Gaussian, in the actions' own units.
      planner: one of `PLANNERS`.
      options: of the planner, by name.
      hold: steps that each action of the plan is taken for.
      seed: of the planner.
      window: steps that the model reads, at most, see `world_model.rollout_actions`.

    Returns:
      u: float32 [n, H hold, U].
      distance: float32 [n], root mean square over the state, of the state that the model predicts
        at the end and the goal.

    Raises:
      ValueError: the goal is not of the start's size, the model has no controller, or the planner
        or one of its options is unknown.
    """
    n, run = len(start), searcher(model, std, planner, options, hold, window)
    keys, mean = jax.random.split(jax.random.key(seed), n), np.repeat(mean[None], n, 0)
    size = min(n, PER_DEVICE_ON_CPU * jax.device_count()) if jax.default_backend() == "cpu" else n
    groups = np.arange(-(-n // size) * size).clip(max=n - 1).reshape(-1, size)
    found = [run(params, keys[i], start[i], goal[i], mean[i]) for i in groups]
    u, distance = (np.concatenate(parts)[:n] for parts in zip(*found, strict=True))
    return u, distance


def searcher(model, std, planner="cem", options=None, hold=1, window=None):
    """Makes the function behind `search`, compiled once for as many searches as one likes.

    Tasks are shared out among all devices or, where they are fewer, candidates.

    Args:
      model, std, planner, options, hold, window: as in `search`. The option `chunk`, by default
        what `most_candidates` says, is the number of candidates that all devices together predict
        at a time, or each device where it has tasks of its own.

    Returns:
      A function of params, keys [n], start and goal [n, N, D], and the means [n, H, U] of the
      planner's first Gaussians, to u and distance as of `search`.

    Raises:
      ValueError: as `search`, some when the function is called.
    """
    if planner not in PLANNERS:
        raise ValueError(f"planner: expected one of {tuple(PLANNERS)}, got {planner!r}")
    options, known = dict(options or {}), inspect.signature(PLANNERS[planner]).parameters
    if not options.keys() <= known.keys():
        raise ValueError(f"options: expected those of {planner}, got {sorted(options)}")
    samples = options.get("samples", known["samples"].default)
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    everywhere = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, compiler_options=cpu.options())
    def run(params, keys, start, goal, mean):
        if start.ndim != 3 or start.shape != goal.shape:
            raise ValueError(
                f"start, goal: expected states of one shape [n, N, D], got {start.shape} and "
                f"{goal.shape}"
            )
        n, N, D = start.shape
        most = most_candidates(model, N, D, std.shape[0] * hold, window)
        alone = n >= mesh.size  # each device has tasks of its own, and waits for no other
        chunk = options.get("chunk") or min(most if alone else most * mesh.size, samples)
        solve = functools.partial(PLANNERS[planner], **options | {"chunk": chunk})

        def plan(task):
            key, start, goal, mean = task
            cost = _cost(model, params, start, goal, hold, window)
            plan, least = solve(cost if alone else planners.spread(cost, mesh), key, mean, std)
            return jnp.repeat(plan, hold, axis=0), least

        def plan_all(*tasks):
            together = 1 if "chunk" in options else max(1, min(n, most // samples))
            return jax.lax.map(plan, tasks, batch_size=together)

        return (planners.spread(plan_all, mesh) if alone else plan_all)(keys, start, goal, mean)

    return lambda *args: run(*jax.device_put(args, everywhere))


def _cost(model, params, start, goal, hold, window):
    """Makes the cost of plans [P, H, U] from one state [N, D]: [P], L2 distance to the goal."""
    no_latents = jnp.zeros((1, 0, model.latent.dim))
    cache = world_model.prefill(model, params, start[None, None], no_latents)

    def cost(plans):
        u = jnp.repeat(plans, hold, axis=1)
        last = world_model.rollout_actions(model, params, cache, u, window)[:, -1]
        return jnp.sqrt(jnp.square(last - goal[None]).mean((1, 2)))

    return cost


def candidate_bytes(model, N, D, steps, window=None):
    """Estimates the memory that one candidate takes while its states are predicted.

    Args:
      model: WorldModel.
      N, D: tokens, and numbers in each, of a state.
      steps: that are predicted.
      window: as in `world_model.rollout_actions`.

    Returns:
      Bytes: keys and values of all steps and blocks, and a copy of them, which adding a step takes;
      the states; and the activations of one block (4 widths of the MLP, which is the most that is
      there at once, twice) with its attention's float32 logits.
    """
    predictor = model.predictor
    depth, width, heads = (getattr(predictor, x, 1) for x in ("depth", "width", "heads"))
    size = np.dtype(getattr(predictor, "dtype", np.float32)).itemsize
    cached = min(steps, window or steps)
    kept = 2 * 2 * depth * cached * N * width * size
    states = 4 * (steps + 2) * N * D
    # Steps beyond the window are computed from all of it at once.
    tokens = N * (cached if window and steps > window else 1)
    block = 2 * 4 * tokens * width * size + 4 * heads * tokens * cached * N
    return kept + states + block


def most_candidates(model, N, D, steps, window=None):
    """Returns how many candidates a device predicts at a time: as its memory and caches allow."""
    device = jax.devices()[0]
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    room = SHARE * (stats.get("bytes_limit", MEMORY) - stats.get("bytes_in_use", 0))
    most = int(room // candidate_bytes(model, N, D, steps, window))
    if device.platform == "cpu":
        most = min(most, AT_ONCE_ON_CPU // (N * D))
    return max(1, most)

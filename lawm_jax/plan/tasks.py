"""E6 and E7: plans of real actions that should lead from one state to another, and how they err.

A plan is judged by the true actions of the clip that its first and last state are of, not by where
the model believes that it leads.

Source: Garrido et al. 2026, section 6; the baselines but V-JEPA 2-AC's are ours.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lawm_jax import world_model
from lawm_jax.data import poses
from lawm_jax.evaluate import batched, metrics
from lawm_jax.evaluate import clips as clips_
from lawm_jax.evaluate.metrics import show
from lawm_jax.plan import planners
from lawm_jax.train import cpu

PLANNERS = {
    name: getattr(planners, name) for name in ("cem", "icem", "mppi", "gradient", "cem_gradient")
}
# The paper's settings of CEM, for manipulation and navigation; other planners have their own.
REACH = dict(samples=300, elites=10, iterations=15)
WALK = dict(samples=120, elites=5, iterations=1, average=True)
# Share of a device's memory that candidates may take, and what a device has that does not tell.
SHARE, MEMORY = 0.25, 2**34
# Numbers in the states that a CPU predicts at a time. All that is computed of so few fits its
# caches: 1.5 times as fast as 300 candidates of nano at once on a core of a busy machine, the same
# on two quiet ones.
AT_ONCE_ON_CPU = 2**19
# Tasks of a device in one program: XLA (jaxlib 0.10) keeps 45 MB for each until the program ends.
PER_DEVICE_ON_CPU = 4


def load(config, name, model, params, count, frames, training):
    """Loads the clips to plan on, and those of training; each picture is encoded alone.

    Args:
      config: a run's, of clips to train on.
      name: of the source.
      model, params: whose encoder it is; one frame is one time step.
      count, training: numbers of clips, of held-out and of training ones.
      frames: of a held-out clip, whose last state may be a goal.

    Returns:
      clips, training: `Clips`.

    Raises:
      ValueError: the source holds states of a video encoder, which depend on frames between start
        and goal; or as `clips.fixed`.
    """
    import ml_collections

    encode = batched.frame_encoder(model, params)
    short = ml_collections.ConfigDict(config.to_dict())
    short.data.frames = frames
    held_out = clips_.fixed(short, name, encode, count)
    if held_out.video is None and not model.encoder.alone:
        raise ValueError(f"{name}: expected video, to encode start and goal alone, got states")
    return held_out, clips_.training(config, name, encode, training)


def window(config, model):
    """Returns how many steps a forward model reads in training: all of a clip's but the last.

    Args:
      config: nested dict, of its run.
      model: WorldModel.
    """
    frames = 1 if config["encoder"]["repeat"] else model.encoder.tubelet
    return max(1, config["data"]["frames"] // frames - 1)


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
        spread = functools.partial(planners.spread, mesh=mesh)
        chunk = options.get("chunk") or min(most if alone else most * mesh.size, samples)
        solve = functools.partial(PLANNERS[planner], **options | {"chunk": chunk})

        def one(episode):
            key, start, goal, mean = episode
            nothing = jnp.zeros((1, 0, model.latent.dim))
            cache = world_model.prefill(model, params, start[None, None], nothing)

            def cost(plans):
                u = jnp.repeat(plans, hold, axis=1)
                last = world_model.rollout_actions(model, params, cache, u, window)[:, -1]
                return jnp.sqrt(jnp.square(last - goal[None]).mean((1, 2)))

            plan, found = solve(cost if alone else spread(cost), key, mean, std)
            return jnp.repeat(plan, hold, axis=0), found

        def each(*episodes):
            tasks = 1 if "chunk" in options else max(1, min(n, most // samples))
            return jax.lax.map(one, episodes, batch_size=tasks)

        return (spread(each) if alone else each)(keys, start, goal, mean)

    return lambda *args: run(*jax.device_put(args, everywhere))


def gaussian(training, horizon, held=False):
    """Measures the Gaussian that plans are first drawn from.

    Args:
      training: `Clips` of the training part, of more than `horizon` steps.
      horizon: steps of a plan.
      held: whether one action is taken for all of them.

    Returns:
      mean, std: [H, U]. Held, H is 1 and they are those of windows' mean actions; else the mean
      is 0 and the deviation that of all actions.
    """
    if not held:
        std = np.repeat(training.actions.std((0, 1))[None], horizon, 0)
        return np.zeros_like(std), std
    sums = np.pad(training.actions.cumsum(1), [(0, 0), (1, 0), (0, 0)])
    windows = (sums[:, horizon:] - sums[:, :-horizon]) / horizon
    return windows.mean((0, 1))[None], windows.std((0, 1))[None]


def nearest(start, goal, s, u, horizon):
    """Retrieves actions: those of the training window whose first and last state are the nearest.

    Args:
      start, goal: [n, N, D].
      s: [m, T, N, D], states of training clips.
      u: [m, T-1, U], their actions.
      horizon: steps of a window.

    Returns:
      [n, horizon, U].

    Raises:
      ValueError: training clips are shorter than the horizon.
    """
    m, T = s.shape[:2]
    if T <= horizon:
        raise ValueError(f"horizon: expected less than the {T} steps of a clip, got {horizon}")
    to = lambda x: ((s[None] - x[:, None, None]) ** 2).mean((3, 4))  # noqa: E731
    found = []
    for first, last in zip(start, goal, strict=True):  # one by one: less memory
        distance = to(first[None])[0, :, : T - horizon] + to(last[None])[0, :, horizon:]
        clip, t = np.unravel_index(distance.argmin(), distance.shape)
        found.append(u[clip, t : t + horizon])
    return np.stack(found)


def reach(
    models,
    clips,
    training,
    horizon=3,
    planner="cem",
    options=None,
    bound=None,
    seed=0,
    windows=None,
):
    """Plans manipulation (E6), and compares with what needs no model.

    The planner's first Gaussian has mean 0 and the standard deviation of training actions. jepa-wms
    takes a deviation of 0.1 on DROID, clips positions at 0.1 and the gripper at 0.75, plans on
    every 8th frame of Franka clips and returns the last mean (`average`); here plans are not
    clipped unless `bound` says so, and the cheapest one seen is returned.

    Args:
      models: name -> (model, params), each with a controller or of labelled actions, and all of one
        encoder.
      clips: `Clips` whose state `horizon` steps after the first one is the goal.
      training: `Clips` of the training part, of more than `horizon` steps.
      horizon: steps of a plan.
      planner, options, seed: as in `search`; those of CEM are `REACH` but for what is given.
      bound: of a plan's numbers, in standard deviations of training actions; None for none.
      windows: name -> most steps that the model reads, see `world_model.rollout_actions`; None for
        all.

    Returns:
      One dict per row, baselines first: `name`; `error`, the L1 distance of the planned from the
      true actions' sums of x, y and z, metres (interval); `score`, see `score`; `correlation` of
      these sums over episodes, x, y and z, each None where plans don't differ; `paired`, the error
      less that of no action (interval); `clips`, the error of each clip, for other comparisons of
      the same clips; and of plans by a model `distance` to the goal that it sees left (interval),
      of others None.

    Raises:
      ValueError: as `search`, or horizon or actions do not fit the clips.

    Source: Garrido et al. 2026, section 6.
    """
    u = true_actions("clips", clips, horizon, least=3)
    true_actions("training", training, horizon, least=3)
    first = gaussian(training, horizon)
    options = (REACH if planner == "cem" else {}) | _bounds(first, bound) | (options or {})
    plans = _plans(models, clips, training, u, first, planner, options, 1, seed, windows)
    moved = u[:, :, :3].sum(1)
    errors = {
        name: np.abs(plan[:, :, :3].sum(1) - moved).sum(1) for name, (plan, _) in plans.items()
    }
    mean, rows = lambda x: metrics.interval(x, clips.episodes), []
    for name, (plan, distance) in plans.items():
        error = mean(errors[name])
        row = {"name": name, "error": error, "score": score(error)}
        row["correlation"] = _correlation(plan[:, :, :3].sum(1), moved)
        row["paired"] = mean(errors[name] - errors["no action"])
        row["clips"] = errors[name].tolist()
        rows.append(row | {"distance": None if distance is None else mean(distance)})
    return rows


def walk(
    models,
    clips,
    training,
    horizon=8,
    planner="cem",
    options=None,
    bound=None,
    seed=0,
    spacing=None,
    windows=None,
):
    """Plans navigation (E7), and compares with what needs no model.

    Plans hold one action over all steps: a straight line, or an arc where it turns. The planner's
    first Gaussian is that of the mean actions of training windows of `horizon` steps. NWM's plans
    are straight lines with all of the turn in the last step, its Gaussians fixed tuples for each
    data set, and its context 4 frames; here it is one.

    Args:
      models, clips, training, horizon, planner, options, bound, seed, windows: as in `reach`;
        actions are moves forward, to the left (metres) and turns to the left (radians), options of
        CEM `WALK`, and bounds lie around the Gaussian's mean, in its deviations.
      spacing: metres between two waypoints, to give errors in this unit too, or None.

    Returns:
      One dict per row: `name`, `paired` (of `ate`, with the mean action), `clips` (of `ate`) and
      `distance` as in `reach`; `ate` and `rpe`, metres, see `trajectory_errors`; with a spacing
      also `ate_waypoints` and `rpe_waypoints`; `yaw`, the absolute error of the last heading,
      radians (intervals); `correlation` over episodes of the last x, y and yaw. "truth, held" is
      the mean of the true actions: about the best that one held action can do.

    Raises:
      ValueError: as `reach`.

    Source: Garrido et al. 2026, section 6; Bar et al. 2025, "Navigation World Models".
    """
    u = true_actions("clips", clips, horizon, exactly=3)
    true_actions("training", training, horizon, exactly=3)
    first = gaussian(training, horizon, held=True)
    options = (WALK if planner == "cem" else {}) | _bounds(first, bound) | (options or {})
    held = np.repeat(u.mean(1, keepdims=True), horizon, 1)
    plans = _plans(models, clips, training, u, first, planner, options, horizon, seed, windows)
    plans = {"truth, held": (held, None)} | plans
    errors = {name: trajectory_errors(plan, u) for name, (plan, _) in plans.items()}
    mean, rows = lambda x: metrics.interval(x, clips.episodes), []
    for name, (plan, distance) in plans.items():
        ate, rpe, yaw = errors[name]
        row = {"name": name, "ate": mean(ate), "rpe": mean(rpe), "yaw": mean(yaw)}
        if spacing:
            row |= {f"{k}_waypoints": mean(x / spacing) for k, x in (("ate", ate), ("rpe", rpe))}
        last, true = (poses.follow(x)[:, -1] for x in (plan, u))
        row["correlation"] = _correlation(last, true)
        row["paired"] = mean(ate - errors["mean action"][0])
        row["clips"] = ate.tolist()
        rows.append(row | {"distance": None if distance is None else mean(distance)})
    return rows


def score(error):
    """Computes the Action Score, max(0, 800 (0.1 - error)), of an error's interval, metres.

    Source: Terver et al. 2025, "What Drives Success in Physical Planning with Joint-Embedding
    Predictive World Models?".
    """
    of = lambda x: None if x is None else max(0.0, 800 * (0.1 - x))  # noqa: E731
    return {"mean": of(error["mean"]), "low": of(error["high"]), "high": of(error["low"])}


def trajectory_errors(planned, true):
    """Computes how far the poses that actions lead to are off, without alignment.

    Positions are in the frame of the start, and so are displacements: headings count by where they
    lead alone, as in NWM, which gives all poses the same one.

    Args:
      planned, true: [n, H, 3], forward, to the left (metres), turn to the left (radians).

    Returns:
      ate: [n], metres: root mean square distance of positions after each step.
      rpe: [n], metres: root mean square difference of the displacements between successive ones of
        these positions; the displacement to the first one does not count.
      yaw: [n], radians: absolute difference of the last headings, at most pi.

    Raises:
      ValueError: shapes differ, or there are fewer than 2 steps.

    Source: `WM_Planning_Evaluator` of github.com/facebookresearch/nwm, planning_eval.py (Bar et al.
    2025): APE and RPE of the package evo, translation, delta 1 frame; Sturm et al. 2012, "A
    Benchmark for the Evaluation of RGB-D SLAM Systems".
    """
    if planned.shape != true.shape or planned.ndim != 3 or planned.shape[1] < 2:
        raise ValueError(
            f"planned, true: expected [n, at least 2, 3], got {planned.shape} and {true.shape}"
        )
    a, b = poses.follow(planned), poses.follow(true)
    rms = lambda x: np.sqrt(np.square(x[..., :2]).sum(-1).mean(-1))  # noqa: E731
    turn = a[:, -1, 2] - b[:, -1, 2]
    moves = np.diff(a - b, axis=1)
    return rms(a - b), rms(moves), np.abs((turn + np.pi) % (2 * np.pi) - np.pi)


def true_actions(name, clips, horizon, least=0, exactly=None):
    """Returns the actions [n, horizon, U] that clips begin with.

    Args:
      name: of the argument that the clips are, for errors.
      clips: `Clips` with an action for each step.
      horizon: number of actions.
      least, exactly: what U has to be.

    Raises:
      ValueError: the clips have no such actions, or too few steps.
    """
    T = clips.s.shape[1]
    if clips.actions is None or clips.actions.shape[1] != T - 1:
        got = None if clips.actions is None else clips.actions.shape
        raise ValueError(f"{name}: expected {T - 1} actions for {T} states, got {got}")
    U = clips.actions.shape[2]
    if U < least or exactly not in (None, U):
        raise ValueError(f"{name}: expected actions of {exactly or least} numbers, got {U}")
    if not 0 < horizon < T:
        raise ValueError(f"horizon: expected 1 to {T - 1}, those of the {name}, got {horizon}")
    return clips.actions[:, :horizon]


def _bounds(gaussian, bound):
    """Returns a planner's low and high, `bound` deviations about the mean; none for None."""
    (mean, *_), (std, *_) = gaussian
    return {} if bound is None else {"low": mean - bound * std, "high": mean + bound * std}


def _plans(models, clips, training, u, gaussian, planner, options, hold, seed, windows):
    """Makes all plans: name -> (actions [n, horizon, U], distance [n] or None)."""
    n, horizon, U = u.shape
    start, goal, (mean, std) = clips.s[:, 0], clips.s[:, horizon], gaussian
    noise = np.random.default_rng(seed).normal(size=(n, *mean.shape)).astype(u.dtype)
    found = {
        "no action": np.zeros_like(u),
        "mean action": np.broadcast_to(training.actions.mean((0, 1)), u.shape),
        "random action": np.repeat(mean + std * noise, hold, 1),
        "nearest neighbour": nearest(start, goal, training.s, training.actions, horizon),
    }
    found = {name: (plan, None) for name, plan in found.items()}
    for name, (model, params) in models.items():
        asked = mean, std, planner, options, hold, seed, (windows or {}).get(name)
        found[name] = search(model, params, start, goal, *asked)
    return found


def _correlation(a, b):
    """Computes Pearson's correlation of each column of [n, k], None where one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    some = size > 1e-9 * len(a)
    return [
        float(x / s) if ok else None for x, s, ok in zip((a * b).sum(0), size, some, strict=True)
    ]


def table(results):
    """Writes results for a terminal.

    Args:
      results: source -> a list of {"horizon", "rows"}, rows of `reach` or `walk`.
    """
    lines = []
    for source, plans in results.items():
        for plan in plans:
            lines.append(f"plans of {plan['horizon']} steps, {source} [95 % interval]")
            for row in plan["rows"]:
                pairs = zip(_axes(row), row["correlation"], strict=True)
                pairs = " ".join(f"{k} {'-' if r is None else f'{r:.2f}'}" for k, r in pairs)
                lines.append(f"  {row['name']:<18}{_errors(row)}   correlation {pairs}")
    return "\n".join(lines)


def _axes(row):
    return ("x", "y", "z") if "error" in row else ("x", "y", "yaw")


def _errors(row):
    if "error" in row:
        paired = (
            ""
            if row["name"] == "no action"
            else f"   less no action's: {show(row['paired'], sign='+')}"
        )
        return f"error {show(row['error'])} m, score {show(row['score'], digits=1)}{paired}"
    text = f"ATE {show(row['ate'])} m, RPE {show(row['rpe'])} m, "
    if "ate_waypoints" in row:
        ate, rpe = (show(row[f"{key}_waypoints"], digits=2) for key in ("ate", "rpe"))
        text += f"in waypoints {ate} and {rpe}, "
    return text + f"last yaw off by {show(row['yaw'], digits=2)} rad"

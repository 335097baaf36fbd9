"""Planning tasks, manipulation and navigation: how close plans are to the true actions.

Plans are compared with the true actions of the clip that the start and goal states come from, not
by the end state that the model predicts.

Source: Garrido et al. 2026, section 6; all baselines except V-JEPA 2-AC's are ours.
"""

import functools

import numpy as np

from lawm_jax.data import poses
from lawm_jax.evaluate import batched, comparisons, metrics, row_names
from lawm_jax.evaluate import clips as clips_
from lawm_jax.plan import baselines, protocols, search

PAPER = protocols.PROTOCOLS["paper"]
# The paper's settings of CEM for manipulation and navigation; other planners use their defaults.
REACH = dict(samples=300, elites=10, iterations=15)
WALK = dict(samples=120, elites=5, iterations=1, average=True)


def load(config, name, model, params, count, frames, training, listed=None):
    """Loads held-out clips to plan on and training clips, encoding each frame independently.

    Args:
      config: a run's config, which defines the training clips.
      name: name of the data source.
      model, params: the model whose encoder is used; one frame must be one time step.
      count, training: number of held-out and of training clips.
      frames: frames of a held-out clip; the last state can be a goal.
      listed: function of (config, name, encode) that loads other clips of `frames` frames instead
        of `count` held-out ones, or None.

    Returns:
      clips, training: `Clips`.

    Raises:
      ValueError: the data source holds states of a video encoder, which depend on frames between
        start and goal; or as in `clips.fixed` or `listed`.
    """
    import ml_collections

    encode = batched.frame_encoder(model, params)
    short = ml_collections.ConfigDict(config.to_dict())
    short.data.frames = frames
    held_out = (listed or functools.partial(clips_.fixed, count=count))(short, name, encode)
    if held_out.video is None and not model.encoder.alone:
        raise ValueError(
            f"{name}: expected video, to encode start and goal independently, got states"
        )
    return held_out, clips_.training(config, name, encode, training)


def window(config, model):
    """Returns the number of steps that a forward model sees in training: those of a clip less 1.

    `config` is the config of the model's run, a nested dict.
    """
    frames = 1 if config["encoder"]["repeat"] else model.encoder.tubelet
    return max(1, config["data"]["frames"] // frames - 1)


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
    progress=None,
    protocol=PAPER,
):
    """Plans manipulation with models and compares the plans with baselines that need no model.

    By default the planner's initial Gaussian has mean 0 and the standard deviation of training
    actions, plans are only clipped if `bound` is given, and the cheapest plan seen is returned.

    Args:
      models: name -> (model, params), each with a controller or labeled, all with the same
        encoder.
      clips: `Clips`; the goal is the state `horizon` steps after the first one.
      training: `Clips` for training, of more than `horizon` steps.
      horizon: steps of a plan.
      planner, options, seed: as in `search.search`; options of CEM default to `REACH`.
      bound: limit of plans in standard deviations of training actions; None for no limit.
      windows: name -> maximum number of steps in the model's context, see
        `world_model.rollout_actions`; None for all.
      progress: as in `search.search`; called for each model.
      protocol: a `protocols.Protocol`; `options` and `bound` take precedence.

    Returns:
      One dict per row, baselines first, with `name` and:
        error: interval of the L1 distance, in meters, between the sums over steps of the x, y and z
          of planned and true actions.
        score: see `metrics.action_score`.
        correlation: correlation of these sums over episodes, for x, y and z; None if undefined.
        paired: interval of the error minus the error of no action.
        clips: error of each clip, for other paired comparisons.
        distance: interval of the predicted end state's distance to the goal; None for baselines.

    Raises:
      ValueError: as in `search.search`, or horizon or actions do not match the clips.

    Source: Garrido et al. 2026, section 6.
    """
    u = true_actions("clips", clips, horizon, least=3)
    true_actions("training", training, horizon, least=3)
    initial = _initial(protocol, training, horizon, held=False)
    options = _options(protocol, REACH, planner, initial, bound, options)
    settings = planner, options, 1, seed, windows, progress, protocol
    plans = _plans(models, clips, None, training, u, initial, *settings)
    moved = u[:, :, :3].sum(1)
    deviations = {name: np.abs((plan - u).sum(1)) for name, (plan, _) in plans.items()}
    errors = {name: x[:, :3].sum(1) for name, x in deviations.items()}

    def interval(x):
        return metrics.interval(x, clips.episodes)

    rows = []
    for name, (plan, distance) in plans.items():
        error = interval(errors[name])
        row = {"name": name, "error": error, "score": metrics.action_score(error)}
        row["correlation"] = _correlation(plan[:, :, :3].sum(1), moved)
        row |= comparisons.paired(errors[name] - errors[row_names.NO_ACTION], clips.episodes)
        if u.shape[2] == 7:
            row["orientation"] = interval(deviations[name][:, 3:6].sum(1))
            row["gripper"] = interval(deviations[name][:, 6])
        row["clips"] = errors[name].tolist()
        rows.append(row | {"distance": None if distance is None else interval(distance)})
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
    progress=None,
    protocol=PAPER,
):
    """Plans navigation with models and compares the plans with baselines that need no model.

    By default each plan repeats a single action, which gives a straight line or, if it turns, an
    arc, and the planner's initial Gaussian has the mean and standard deviation, over all training
    windows of `horizon` steps, of each window's mean action.

    Args:
      models, planner, seed, windows, progress, protocol: as in `reach`.
      clips, training: as in `reach`, with actions [n, T-1, 3]: move forward, move left (meters),
        turn left (radians). The first `protocol.context` states of clips are known, and the goal is
        `horizon` steps after the last of them.
      horizon: number of steps, at least 2.
      options: as in `reach`; those of CEM default to `WALK`.
      bound: maximum distance of an action from the Gaussian's mean, in its standard deviations, or
        None.
      spacing: meters between waypoints; if given, errors are also reported in waypoints.

    Returns:
      One dict per row, with `name`, `clips` (ATE) and `distance` as in `reach` and:
        ate, rpe: intervals in meters, see `metrics.trajectory_errors`.
        ate_waypoints, rpe_waypoints: the same in waypoints, if `spacing` is given.
        yaw: interval of the absolute error of the final heading, radians.
        correlation: correlation of the final x, y and yaw over episodes.
        paired: interval of the ATE minus that of the mean action.
      The first row, "truth, held", repeats the mean of the true actions of each clip. It
      approximates the best result that a single repeated action allows.

    Raises:
      ValueError: as in `reach`, or `horizon` is 1.

    Source: Garrido et al. 2026, section 6; Bar et al. 2025, "Navigation World Models".
    """
    if horizon < 2:
        raise ValueError(f"horizon: expected at least 2 steps, got {horizon}")
    true_actions("clips", clips, horizon + protocol.context - 1, exactly=3)
    true_actions("training", training, horizon, exactly=3)
    past, clips = _split(clips, protocol.context - 1)
    u = clips.actions[:, :horizon]
    initial = _initial(protocol, training, horizon, held=True)
    options = _options(protocol, WALK, planner, initial, bound, options)
    held = np.repeat(u.mean(1, keepdims=True), horizon, 1)
    settings = planner, options, horizon, seed, windows, progress, protocol
    plans = _plans(models, clips, past, training, u, initial, *settings)
    plans = {row_names.TRUTH_HELD: (held, None)} | plans
    errors = {name: metrics.trajectory_errors(plan, u) for name, (plan, _) in plans.items()}

    def interval(x):
        return metrics.interval(x, clips.episodes)

    rows = []
    for name, (plan, distance) in plans.items():
        ate, rpe, yaw = errors[name]
        row = {"name": name, "ate": interval(ate), "rpe": interval(rpe), "yaw": interval(yaw)}
        if spacing:
            row |= {
                f"{k}_waypoints": interval(x / spacing) for k, x in (("ate", ate), ("rpe", rpe))
            }
        last, true = (poses.follow(x)[:, -1] for x in (plan, u))
        row["correlation"] = _correlation(last, true)
        row |= comparisons.paired(ate - errors[row_names.MEAN_ACTION][0], clips.episodes)
        row["clips"] = ate.tolist()
        rows.append(row | {"distance": None if distance is None else interval(distance)})
    return rows


def gaussian(training, horizon, held=False):
    """Computes the initial Gaussian of planners from training actions.

    Args:
      training: `Clips` for training, of more than `horizon` steps.
      horizon: steps of a plan.
      held: whether a plan repeats a single action.

    Returns:
      mean, std: [H, U]. If held, H is 1 and they are those of the mean actions of windows;
      otherwise, the mean is 0 and the std that of all actions.
    """
    if not held:
        std = np.repeat(training.actions.std((0, 1))[None], horizon, 0)
        return np.zeros_like(std), std
    sums = np.pad(training.actions.cumsum(1), [(0, 0), (1, 0), (0, 0)])
    windows = (sums[:, horizon:] - sums[:, :-horizon]) / horizon
    return windows.mean((0, 1))[None], windows.std((0, 1))[None]


def true_actions(name, clips, horizon, least=0, exactly=None):
    """Returns the first `horizon` actions of clips, [n, horizon, U].

    Args:
      name: argument name of the clips in error messages.
      clips: `Clips` with one action per step.
      horizon: number of actions.
      least, exactly: minimum or exact value of U.

    Raises:
      ValueError: the clips have no such actions or too few steps.
    """
    T = clips.s.shape[1]
    if clips.actions is None or clips.actions.shape[1] != T - 1:
        got = None if clips.actions is None else clips.actions.shape
        raise ValueError(f"{name}: expected {T - 1} actions for {T} states, got {got}")
    U = clips.actions.shape[2]
    if U < least or exactly not in (None, U):
        raise ValueError(f"{name}: expected actions of {exactly or least} values, got {U}")
    if not 0 < horizon < T:
        raise ValueError(f"horizon: expected 1 to {T - 1}, the actions of {name}, got {horizon}")
    return clips.actions[:, :horizon]


def _initial(protocol, training, horizon, held):
    """Returns mean and std [H, U] of a protocol's initial Gaussian; arguments as in `gaussian`."""
    mean, std = gaussian(training, horizon, held)
    if protocol.std is None:
        return mean, std
    return tuple(np.broadcast_to(x, mean.shape) for x in (protocol.mean, protocol.std))


def _options(protocol, usual, planner, gaussian, bound, options):
    """Returns the planner's options: the given ones, then the bounds, then the protocol's."""
    chosen = dict(protocol.options or usual) if planner == "cem" else {}
    mean, std = gaussian[0][0], gaussian[1][0]  # the same for all steps
    if bound is not None:
        chosen |= {"low": mean - bound * std, "high": mean + bound * std}
    elif protocol.limits:
        if len(mean) > len(protocol.limits):
            raise ValueError(
                f"training: expected actions of at most {len(protocol.limits)} values, for which "
                f"the protocol has limits, got {len(mean)}"
            )
        high = np.array(protocol.limits[: len(mean)])
        chosen |= {"low": -high, "high": high}
    return chosen | (options or {})


def _split(clips, before):
    """Splits clips into the first `before` steps (None if 0) and the rest."""
    if not before:
        return None, clips
    video = clips.video
    first = clips._replace(s=clips.s[:, :before], actions=clips.actions[:, :before], video=None)
    rest = clips._replace(s=clips.s[:, before:], actions=clips.actions[:, before:])
    return first, rest._replace(video=None if video is None else video[:, before:])


def _plans(
    models,
    clips,
    past,
    training,
    u,
    gaussian,
    planner,
    options,
    hold,
    seed,
    windows,
    progress,
    protocol,
):
    """Computes all plans: name -> (actions [n, horizon, U], distance [n] or None)."""
    start, goal, (mean, std) = clips.s[:, 0], clips.s[:, u.shape[1]], gaussian
    plans = baselines.plans(start, goal, training, u, mean, std, hold, seed)
    if protocol.straight:
        drawn = search.straight_line(plans[row_names.RANDOM_ACTION][:, :1], hold)
        plans[row_names.RANDOM_ACTION] = moves_of_line(drawn)
    plans = {name: (plan, None) for name, plan in plans.items()}
    for name, (model, params) in models.items():
        window = protocol.window or (windows or {}).get(name)
        settings = mean, std, planner, options, hold, seed, window, progress, protocol.straight
        context = None
        if past is not None:  # latents are inferred; a labeled model maps the true actions
            infer = batched.batched(model, params, actions=past.actions).infer
            context = past.s, infer(np.concatenate([past.s, start[:, None]], 1))
        plan, distance = search.search(model, params, start, goal, *settings, context)
        plans[name] = (moves_of_line(plan) if protocol.straight else plan), distance
    return plans


def moves_of_line(u):
    """Converts a straight line in the frame of the start to motions in the vehicle's own frame.

    Args:
      u: [n, H, 3], from `search.straight_line`.

    Returns:
      The actions [n, H, 3] that `poses.follow` integrates to that line: after the first step, which
      turns into the direction of the line, each step moves forward.
    """
    moves = np.array(u)
    moves[:, 1:, 0], moves[:, 1:, 1] = np.hypot(moves[:, 1:, 0], moves[:, 1:, 1]), 0.0
    return moves


def _correlation(a, b):
    """Computes Pearson's correlation of each column of [n, k]; None if one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    varies = size > 1e-9 * len(a)
    return [
        float(x / s) if ok else None for x, s, ok in zip((a * b).sum(0), size, varies, strict=True)
    ]

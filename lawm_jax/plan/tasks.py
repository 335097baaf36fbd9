"""Planning tasks, manipulation and navigation: how far plans are from the true actions.

A plan is judged by the true actions of the clip that its first and last state are of, not by where
the model believes that it leads.

Source: Garrido et al. 2026, section 6; the baselines but V-JEPA 2-AC's are ours.
"""

import numpy as np

from lawm_jax.data import poses
from lawm_jax.evaluate import batched, metrics, row_names
from lawm_jax.evaluate import clips as clips_
from lawm_jax.plan import baselines, search

# The paper's settings of CEM, for manipulation and navigation; other planners have their own.
REACH = dict(samples=300, elites=10, iterations=15)
WALK = dict(samples=120, elites=5, iterations=1, average=True)


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
    """Plans manipulation, and compares with what needs no model.

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
      planner, options, seed: as in `search.search`; those of CEM are `REACH` but for what is given.
      bound: of a plan's numbers, in standard deviations of training actions; None for none.
      windows: name -> most steps that the model reads, see `world_model.rollout_actions`; None for
        all.

    Returns:
      One dict per row, baselines first: `name`; `error`, the L1 distance of the planned from the
      true actions' sums of x, y and z, metres (interval); `score`, see `metrics.action_score`;
      `correlation` of these sums over episodes, x, y and z, each None where plans don't differ;
      `paired`, the error less that of no action (interval); `clips`, the error of each clip, for
      other comparisons of the same clips; and of plans by a model `distance` to the goal that it
      sees left (interval), of others None.

    Raises:
      ValueError: as `search.search`, or horizon or actions do not fit the clips.

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
        row = {"name": name, "error": error, "score": metrics.action_score(error)}
        row["correlation"] = _correlation(plan[:, :, :3].sum(1), moved)
        row["paired"] = mean(errors[name] - errors[row_names.NO_ACTION])
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
    """Plans navigation, and compares with what needs no model.

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
      `distance` as in `reach`; `ate` and `rpe`, metres, see `metrics.trajectory_errors`; with a
      spacing also `ate_waypoints` and `rpe_waypoints`; `yaw`, the absolute error of the last
      heading, radians (intervals); `correlation` over episodes of the last x, y and yaw. "truth,
      held" is the mean of the true actions: about the best that one held action can do.

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
    plans = {row_names.TRUTH_HELD: (held, None)} | plans
    errors = {name: metrics.trajectory_errors(plan, u) for name, (plan, _) in plans.items()}
    mean, rows = lambda x: metrics.interval(x, clips.episodes), []
    for name, (plan, distance) in plans.items():
        ate, rpe, yaw = errors[name]
        row = {"name": name, "ate": mean(ate), "rpe": mean(rpe), "yaw": mean(yaw)}
        if spacing:
            row |= {f"{k}_waypoints": mean(x / spacing) for k, x in (("ate", ate), ("rpe", rpe))}
        last, true = (poses.follow(x)[:, -1] for x in (plan, u))
        row["correlation"] = _correlation(last, true)
        row["paired"] = mean(ate - errors[row_names.MEAN_ACTION][0])
        row["clips"] = ate.tolist()
        rows.append(row | {"distance": None if distance is None else mean(distance)})
    return rows


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
    start, goal, (mean, std) = clips.s[:, 0], clips.s[:, u.shape[1]], gaussian
    plans = baselines.plans(start, goal, training, u, mean, std, hold, seed)
    plans = {name: (plan, None) for name, plan in plans.items()}
    for name, (model, params) in models.items():
        asked = mean, std, planner, options, hold, seed, (windows or {}).get(name)
        plans[name] = search.search(model, params, start, goal, *asked)
    return plans


def _correlation(a, b):
    """Computes Pearson's correlation of each column of [n, k], None where one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    some = size > 1e-9 * len(a)
    return [
        float(x / s) if ok else None for x, s, ok in zip((a * b).sum(0), size, some, strict=True)
    ]

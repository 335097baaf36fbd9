"""Closed loop: real actions in a simulator, planned anew at every step, towards a goal's picture.

The goal is what the data's own policy sees some steps later in the same scene, so it can be
reached. Every way of acting begins at the very same start: simulators are deterministic, so the
same seed and first actions lead there again.

Source: planning with a receding horizon as in Assran et al. 2025, "V-JEPA 2"; the tasks are ours.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from lawm_jax.envs import policies
from lawm_jax.evaluate import metrics, row_names
from lawm_jax.plan import tasks
from lawm_jax.plan.search import searcher


class Task(NamedTuple):
    """Describes what is asked of every episode.

    Attributes:
      places: function without arguments to an endless iterator of what `_scene` draws from.
      steps: of the policy from start to goal.
      radius: m, where a goal counts as reached.
      axes: how many numbers of a simulator's state are a position (m), the first ones.
      held: whether a plan holds one action, as `tasks.walk` does.
    """

    places: Callable
    steps: int
    radius: float
    axes: int
    held: bool

    @property
    def limit(self):
        """How many steps may be taken."""
        return 2 * self.steps


class Scene(NamedTuple):
    """Describes an episode.

    Attributes:
      group: str, seed or level: the groups of the bootstrap.
      make: function without arguments to a new simulator, always in the same state.
      before: actions that bring it to the start.
      policy: float64 [steps, U], those of the policy that lead on to the goal.
      picture: uint8 [H, W, 3], what it sees there.
      goal: float32 [axes] m, where that is.
    """

    group: str
    make: Callable
    before: list
    policy: np.ndarray
    picture: np.ndarray
    goal: np.ndarray


def _pandas():
    """Yields scenes that no training episode shows."""
    for seed in itertools.count(policies.PANDA_SEEDS["test"]):
        make = functools.partial(policies.Panda, seed)
        yield str(seed), make, policies.reach, np.random.default_rng([seed, 3]), 16


def _walks():
    """Yields levels that no training episode shows, one after the other, then the next seed."""
    for seed in itertools.count():
        for level in policies.nav_levels("test"):
            make = functools.partial(policies.Navigation, level, seed)
            yield level, make, policies.roam, np.random.default_rng([seed, 3]), 80


TASKS = {
    "panda": Task(_pandas, steps=5, radius=0.05, axes=3, held=False),
    "nav": Task(_walks, steps=8, radius=0.5, axes=2, held=True),
}


def scenes(task, count):
    """Draws the first episodes of a task, always the same ones.

    Those are passed over whose goal is less than two radii from the start, and walks that are dark
    or lead through a teleporter or out of the level.

    Args:
      task: a `Task`.
      count: number of episodes.

    Returns:
      A list of `Scene`.

    Raises:
      ImportError: the simulator is missing; says how to install it.
    """
    found = (_scene(task, *place) for place in task.places())
    return list(itertools.islice((scene for scene in found if scene), count))


def _scene(task, group, make, policy, random, most):
    """Draws a scene that starts after less than `most` steps of policy(simulator, random), or None.

    From the start on only the first three numbers of an action are taken, those that labels have:
    the Panda's gripper stays as it is.
    """
    simulator = make()
    try:
        acting, before = policy(simulator, random), []
        for action in itertools.islice(acting, int(random.integers(1, most))):
            simulator.step(action)
            before.append(action)
        path, dark = [simulator.state[: task.axes]], simulator.render().mean() < 40
        actions = []
        for action in itertools.islice(acting, task.steps):
            actions.append(np.array(action[:3], np.float64))
            simulator.step(actions[-1])
            path.append(simulator.state[: task.axes])
        picture = simulator.render().copy()
    except policies.LeftLevel:
        return None
    finally:
        simulator.close()
    length = lambda x: np.linalg.norm(x, axis=-1)  # noqa: E731
    near = length(path[-1] - path[0]) < 2 * task.radius
    if near or dark or picture.mean() < 40 or length(np.diff(path, axis=0)).max() > 1:
        return None
    return Scene(group, make, before, np.stack(actions), picture, path[-1])


def start(scene):
    """Returns a simulator at the start of a scene; it has to be closed before the next is made."""
    simulator = scene.make()
    for action in scene.before:
        simulator.step(action)
    return simulator


def lead(scene, act, steps):
    """Lets a way of acting lead a simulator from a scene's start.

    Args:
      scene: a `Scene`.
      act: function of the step's number and of the simulator, of which it may see the picture, to
        an action [U].
      steps: number of them.

    Returns:
      float64 [steps + 1], distance to the goal (m) at the start and after each step; one who walks
      out of the level stays where that happened.
    """
    simulator = start(scene)
    away = lambda: np.linalg.norm(simulator.state[: len(scene.goal)] - scene.goal)  # noqa: E731
    distances = [float(away())]
    try:
        for t in range(steps):
            simulator.step(act(t, simulator))
            distances.append(float(away()))
    except policies.LeftLevel:
        pass
    finally:
        simulator.close()
    return np.array(distances + distances[-1:] * (steps + 1 - len(distances)))


def evaluate(
    models,
    encode,
    task,
    scenes,
    training,
    horizon,
    planner="cem",
    options=None,
    bound=None,
    seed=0,
    done=None,
    windows=None,
):
    """Leads every scene by every model, and by what needs none.

    At each step a model's plan starts from what is seen, and its first action is taken. The search
    begins at the last plan, one step on. Plans stay within the range of training actions.

    Args:
      models: name -> (model, params), as in `tasks.reach`.
      encode: function of video uint8 [1, 1, H, W, 3] to states [1, 1, N, D], the models' own.
      task: a `Task`.
      scenes: list of `Scene`, from `scenes`.
      training: `Clips` of the training part, of more than `horizon` steps.
      horizon: steps of a plan.
      planner, options, bound: as in `tasks.reach` or, held, `tasks.walk`.
      seed: of planners and random actions.
      windows: as in `tasks.reach`.
      done: function that is told the number of finished scenes after each, or None.

    Returns:
      One dict per row, baselines first: `name`; `success`, the share of scenes that end within the
      radius, and `reached`, of those that were there after any step; `distance` to the goal at the
      end, m, and `paired`, this less that of no action (intervals); `path`, the mean distance at
      the start and after each step. "policy" repeats the policy's actions and then rests: what the
      simulator's own accuracy allows.

    Raises:
      ValueError: as `search.search`, or training clips have not one action per step or are too
        short.
    """
    tasks.true_actions("training", training, horizon)
    mean, std = tasks.gaussian(training, horizon, task.held)
    low, high = training.actions.min((0, 1)), training.actions.max((0, 1))
    if bound is not None:
        low = np.maximum(low, mean[0] - bound * std[0])
        high = np.minimum(high, mean[0] + bound * std[0])
    usual = (tasks.WALK if task.held else tasks.REACH) if planner == "cem" else {}
    settings = usual | {"low": low, "high": high} | (options or {})
    hold = horizon if task.held else 1
    asked, windows = (std, planner, settings, hold), windows or {}
    searches = {
        name: functools.partial(searcher(model, *asked, windows.get(name)), params)
        for name, (model, params) in models.items()
    }
    paths = {}
    for i, scene in enumerate(scenes):
        key = jax.random.fold_in(jax.random.key(seed), i)
        ways = _without_model(scene, training.actions, np.random.default_rng([seed, i]))
        for name, search in searches.items():
            ways[name] = _planned(search, encode, scene, mean, key)
        for name, act in ways.items():
            paths.setdefault(name, []).append(lead(scene, act, task.limit))
        if done:
            done(i + 1)
    return _rows(paths, task.radius, [scene.group for scene in scenes])


def _without_model(scene, actions, random):
    """Returns ways of acting that see nothing: name -> act as in `lead`."""
    actions = actions.reshape(-1, actions.shape[-1])
    nothing, mean, own = np.zeros_like(actions[0]), actions.mean(0), scene.policy
    return {
        row_names.NO_ACTION: lambda t, simulator: nothing,
        row_names.MEAN_ACTION: lambda t, simulator: mean,
        row_names.RANDOM_ACTION: lambda t, simulator: actions[random.integers(len(actions))],
        row_names.POLICY: lambda t, simulator: own[t] if t < len(own) else nothing,
    }


def _planned(search, encode, scene, mean, key):
    """Returns the way of acting that plans at every step, as `act` in `lead`."""
    see = lambda picture: encode(picture[None, None])[:, 0]  # noqa: E731
    goal, last = see(scene.picture), mean

    def act(t, simulator):
        nonlocal last
        keys = jax.random.fold_in(key, t)[None]
        u = np.asarray(search(keys, see(simulator.render()), goal, last[None])[0][0])
        # One step on; a held plan stays.
        last = np.concatenate([u[1:], mean[-1:]])[: len(mean)]
        return u[0]

    return act


def _rows(paths, radius, groups):
    """Summarises paths, name -> a list of [steps + 1] per scene."""
    interval, rows = lambda x: metrics.interval(x, groups), []
    paths = {name: np.stack(path) for name, path in paths.items()}
    for name, path in paths.items():
        row = {"name": name, "success": interval(path[:, -1] <= radius)}
        row["reached"] = interval(path[:, 1:].min(1) <= radius)
        row["distance"] = interval(path[:, -1])
        row["paired"] = interval(path[:, -1] - paths[row_names.NO_ACTION][:, -1])
        rows.append(row | {"path": path.mean(0).tolist()})
    return rows

"""Closed-loop control in a simulator: replans real actions at every step toward a goal image.

The goal is the image that the data's own policy reaches some steps later in the same scene, so it
is reachable. All agents start from the same state: simulators are deterministic, so the same seed
and first actions reproduce it.

Source: planning with a receding horizon as in Assran et al. 2025, "V-JEPA 2"; the tasks are ours.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from lawm_jax.envs import policies
from lawm_jax.evaluate import comparisons, metrics, row_names
from lawm_jax.plan import tasks
from lawm_jax.plan.search import make_search


class Task(NamedTuple):
    """Describes a closed-loop task.

    Attributes:
      places: function without arguments that returns an endless iterator of arguments for `_scene`.
      steps: number of policy steps from start to goal.
      radius: m, distance at which a goal counts as reached.
      axes: number of leading entries of the simulator's state that are a position (m).
      held: whether a plan repeats a single action, as in `tasks.walk`.
    """

    places: Callable
    steps: int
    radius: float
    axes: int
    held: bool

    @property
    def limit(self):
        """The maximum number of steps of an episode."""
        return 2 * self.steps


class Scene(NamedTuple):
    """Describes an episode.

    Attributes:
      group: str, seed or level, used as bootstrap group.
      make: function without arguments that returns a new simulator, always in the same state.
      before: actions from the initial state to the start.
      policy: float64 [steps, U], the policy's actions from the start to the goal.
      picture: uint8 [H, W, 3], the image at the goal.
      goal: float32 [axes] m, the position of the goal.
    """

    group: str
    make: Callable
    before: list
    policy: np.ndarray
    picture: np.ndarray
    goal: np.ndarray


def _panda_places():
    """Yields scenes that are in no training episode."""
    for seed in itertools.count(policies.PANDA_SEEDS["test"]):
        make = functools.partial(policies.Panda, seed)
        yield str(seed), make, policies.reach, np.random.default_rng([seed, 3]), 16


def _nav_places():
    """Yields levels that are in no training episode: all levels for one seed, then the next."""
    for seed in itertools.count():
        for level in policies.nav_levels("test"):
            make = functools.partial(policies.Navigation, level, seed)
            yield level, make, policies.roam, np.random.default_rng([seed, 3]), 80


TASKS = {
    "panda": Task(_panda_places, steps=5, radius=0.05, axes=3, held=False),
    "nav": Task(_nav_places, steps=8, radius=0.5, axes=2, held=True),
}


def draw_scenes(task, count):
    """Returns the first episodes of a task, always the same ones, as a list of `Scene`.

    Skips scenes whose goal is less than two radii from the start, and walks that are dark, pass
    through a teleporter or leave the level.

    Args:
      task: a `Task`.
      count: number of episodes.

    Raises:
      ImportError: the simulator is missing; the message explains how to install it.
    """
    drawn = (_scene(task, *place) for place in task.places())
    return list(itertools.islice((scene for scene in drawn if scene), count))


def _scene(task, group, make, policy, random, most):
    """Draws a scene that starts after fewer than `most` policy steps; None if it is unsuitable.

    After the start, only the first three entries of actions are used, as in the labels: the Panda's
    gripper does not move.
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
    """Returns a simulator at the start of a scene; close it before creating the next one."""
    simulator = scene.make()
    for action in scene.before:
        simulator.step(action)
    return simulator


def run_episode(scene, agent, steps):
    """Runs an agent in the simulator from a scene's start.

    Args:
      scene: a `Scene`.
      agent: function of the step index and the simulator (for its image) that returns an action.
      steps: number of steps.

    Returns:
      float64 [steps + 1], distance to the goal (m) at the start and after each step. An agent that
      leaves the level keeps its last distance.
    """
    simulator = start(scene)
    distance = lambda: np.linalg.norm(simulator.state[: len(scene.goal)] - scene.goal)  # noqa: E731
    distances = [float(distance())]
    try:
        for t in range(steps):
            simulator.step(agent(t, simulator))
            distances.append(float(distance()))
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
    progress=None,
    windows=None,
):
    """Runs every model and every baseline in each scene.

    At each step, a model plans from the current image and takes the first action of the plan. The
    search is initialized with the previous plan shifted by one step. Plans are limited to the range
    of training actions.

    A held plan can't slow down, so it would pass a goal that is nearer than its end. Its cost is
    therefore the distance of the predicted state that is nearest to the goal, and its Gaussian, see
    `gaussian`, is centered at standing still at each step. If no held plan leads nearer to the goal
    than the image itself, the action is 0.

    Args:
      models: name -> (model, params), as in `tasks.reach`.
      encode: function of video uint8 [1, 1, H, W, 3] to states [1, 1, N, D], with the models'
        encoder.
      task: a `Task`.
      scenes: list of `Scene`, from `draw_scenes`.
      training: `Clips` for training, of more than `horizon` steps.
      horizon: steps of a plan.
      planner, options, bound: as in `tasks.reach` or, for held tasks, `tasks.walk`.
      seed: seed of planners and random actions.
      windows: as in `tasks.reach`.
      progress: function called with the number of finished scenes after each scene, or None.

    Returns:
      One dict per row, baselines first, with `name` and:
        success: interval of the share of scenes that end within the radius.
        reached: interval of the share of scenes within the radius after any step.
        distance: interval of the final distance to the goal, m.
        paired: interval of the final distance minus that of no action.
        path: mean distance at the start and after each step.
      The row "policy" repeats the policy's actions and then stands still; it shows the accuracy
      that the simulator allows.

    Raises:
      ValueError: as in `search.search`, or training clips do not have one action per step or are
        too short.
    """
    tasks.true_actions("training", training, horizon)
    mean, std = gaussian(training, horizon, task.held)
    low, high = training.actions.min((0, 1)), training.actions.max((0, 1))
    if bound is not None:
        low = np.maximum(low, mean[0] - bound * std[0])
        high = np.minimum(high, mean[0] + bound * std[0])
    usual = (tasks.WALK if task.held else tasks.REACH) if planner == "cem" else {}
    settings = usual | {"low": low, "high": high} | (options or {})
    hold = horizon if task.held else 1
    arguments, windows = (std, planner, settings, hold), windows or {}
    searches = {
        name: functools.partial(
            make_search(model, *arguments, windows.get(name), nearest=task.held), params
        )
        for name, (model, params) in models.items()
    }
    encode_image = lambda picture: encode(picture[None, None])[:, 0]  # noqa: E731
    paths = {}
    for i, scene in enumerate(scenes):
        key = jax.random.fold_in(jax.random.key(seed), i)
        agents = _without_model(scene, training.actions, np.random.default_rng([seed, i]))
        for name, search in searches.items():
            agents[name] = planned(search, encode_image, scene.picture, mean, key)
        for name, agent in agents.items():
            paths.setdefault(name, []).append(run_episode(scene, agent, task.limit))
        if progress:
            progress(i + 1)
    return summarize(paths, task.radius, [scene.group for scene in scenes])


def gaussian(training, horizon, held):
    """Computes the planner's initial Gaussian, as `tasks.gaussian`, but always with mean 0.

    The second moment of held actions is that of training, so that candidates go back as often as
    ahead.
    """
    mean, std = tasks.gaussian(training, horizon, held)
    return (np.zeros_like(mean), np.hypot(mean, std)) if held else (mean, std)


def _without_model(scene, actions, random):
    """Returns agents that ignore the image: name -> `agent` as in `run_episode`."""
    actions = actions.reshape(-1, actions.shape[-1])
    zero, mean, policy = np.zeros_like(actions[0]), actions.mean(0), scene.policy
    return {
        row_names.NO_ACTION: lambda t, simulator: zero,
        row_names.MEAN_ACTION: lambda t, simulator: mean,
        row_names.RANDOM_ACTION: lambda t, simulator: actions[random.integers(len(actions))],
        row_names.POLICY: lambda t, simulator: policy[t] if t < len(policy) else zero,
    }


def planned(search, encode_image, picture, mean, key):
    """Returns an agent that plans at every step.

    Args:
      search: function from `make_search`, of all arguments but params.
      encode_image: function of an image uint8 [H, W, 3] to its state [1, N, D].
      picture: uint8 [H, W, 3], the image at the goal.
      mean: [H / hold, U], of the planner's initial Gaussian.
      key: PRNG key.

    Returns:
      `agent` as in `run_episode`.
    """
    goal, last = encode_image(picture), mean

    def act(t, simulator):
        nonlocal last
        keys, s = jax.random.fold_in(key, t)[None], encode_image(simulator.render())
        u, distance = (np.asarray(x[0]) for x in search(keys, s, goal, last[None]))
        if len(mean) == len(u):  # not held
            last = np.concatenate([u[1:], mean[-1:]])
        elif distance >= np.sqrt(np.square(s - goal).mean()):
            return np.zeros_like(u[0])
        return u[0]

    return act


def summarize(paths, radius, groups):
    """Makes the rows of `evaluate`.

    Args:
      paths: name -> list of [steps + 1], distances to the goal as returned by `run_episode`.
      radius: m, distance at which a goal counts as reached.
      groups: the bootstrap group of each scene.
    """
    rows, interval = [], functools.partial(metrics.interval, groups=groups)
    paths = {name: np.stack(path) for name, path in paths.items()}
    for name, path in paths.items():
        row = {"name": name, "success": interval(path[:, -1] <= radius)}
        row["reached"] = interval(path[:, 1:].min(1) <= radius)
        row["distance"] = interval(path[:, -1])
        difference = path[:, -1] - paths[row_names.NO_ACTION][:, -1]
        row |= comparisons.paired(difference, groups)
        rows.append(row | {"path": path.mean(0).tolist()})
    return rows

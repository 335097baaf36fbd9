"""Plans real actions to a goal for the tab Plan, imagined and in the simulator."""

import importlib.util

import jax
import numpy as np

from lawm_jax.data import catalog
from lawm_jax.plan import closed_loop, search, tasks
from lawm_jax.plan import run as plan_run

# Few candidates reach about as well as the paper's many (docs/results.md), in about a second.
# Walks, with their single action, are planned as in the paper.
OPTIONS = dict(samples=96, elites=10, iterations=6)
SCENES = 6  # number of simulated scenes
NEEDS = {"panda": "mujoco", "nav": "vizdoom"}


class Planner:
    """Plans real actions with a `World`; each length of plan is compiled once."""

    def __init__(self, world):
        self.world, self._searches, self._scenes = world, {}, {}

    def missing(self, source):
        """Returns why a `library.Source` cannot be planned in, or ""."""
        name = source.name
        if name in self.world.controllers:
            return ""
        return (
            f"Planning needs a controller for {name}, which maps real actions to latent actions: "
            f"python -m lawm_jax.train --config configs/controller.py:source={name} "
            f"--config.model=W --workdir W/controller/{name}"
        )

    def missing_simulator(self, source):
        """Returns why a plan for a `library.Source` cannot be executed in a simulator, or ""."""
        kind = catalog.parse(source.name, source.spec).kind
        if kind != "mini" or source.task not in closed_loop.TASKS:
            return f"{source.name} has no simulator; only mini:panda and mini:nav have one."
        if importlib.util.find_spec(NEEDS[source.task]) is None:
            return (
                f"The simulator of {source.name} needs {NEEDS[source.task]}: "
                "pip install 'lawm_jax[sim]'"
            )
        return ""

    def plan(self, source, clip, first, last, seed=0):
        """Plans from one frame of a clip to a later one.

        The planner's Gaussian is that of the source's clips, as in `tasks.gaussian`; walks repeat
        one action, as there.

        Args:
          source, clip: `library.Source` with a controller, and one of its clips.
          first, last: numbers of the start and goal frames.
          seed: int.

        Returns:
          u: [H, U], the planned actions.
          pictures: list of H + 1, the imagined start and steps; entries are None without a decoder.
          distance: of the imagined end, and of the start, to the goal, root mean squares.
        """
        encode = self.world.encode
        alone = self.world.model.encoder.alone
        start, goal = (
            clip.s[i] if alone else encode(clip.video[i : i + 1])[0] for i in (first, last)
        )
        run, mean = self._search(source, last - first)
        key = jax.random.split(jax.random.key(seed), 1)
        u = np.asarray(run(key, start[None], goal[None], mean[None])[0][0])
        states, pictures = self.world.drive(source.name, start, u)
        distance = lambda s: float(np.sqrt(np.square(s - goal).mean()))  # noqa: E731
        return u, [self.world.paint(start), *pictures], (distance(states[-1]), distance(start))

    def act(self, source, number):
        """Acts in the simulator toward a goal, replanning at every step.

        Args:
          source: `library.Source` with a controller and a simulator.
          number: int, which scene.

        Returns:
          pictures: list of uint8 [H, W, 3], the simulator's image before each step.
          goal: uint8 [H, W, 3], the picture of the goal.
          distances: [steps + 1], meters to the goal at the start and after each step.
          radius: meters within which the goal counts as reached.

        Raises:
          ImportError: the simulator is missing.
        """
        task = closed_loop.TASKS[source.task]
        number %= SCENES
        if len(self._scenes.get(source.task, ())) <= number:
            self._scenes[source.task] = closed_loop.draw_scenes(task, number + 1)
        scene = self._scenes[source.task][number]
        (horizon,) = plan_run.CLOSED[source.task]
        run, mean = self._search(source, horizon, acting=True)
        encode_image = lambda picture: self.world.encode(picture[None])  # noqa: E731
        act = closed_loop.planned(run, encode_image, scene.picture, mean, jax.random.key(0))
        pictures = []

        def agent(t, simulator):
            pictures.append(simulator.render().copy())
            return act(t, simulator)

        distances = closed_loop.run_episode(scene, agent, task.limit)
        return pictures, scene.picture, distances, task.radius

    def _search(self, source, steps, acting=False):
        """Returns the search for plans of `steps` steps, and the mean of its Gaussian [H, U]."""
        model, params = self.world.controllers[source.name]
        held = source.task is not None and plan_run.TASKS[source.task][0] == "walk"
        mean, std = tasks.gaussian(source, steps, held)
        limits = dict(low=mean[0] - 3 * std[0], high=mean[0] + 3 * std[0])
        if acting:
            mean, std = closed_loop.gaussian(source, steps, held)
        key = source.name, steps, acting
        if key not in self._searches:
            hold = steps if held else 1
            options = (tasks.WALK if held else OPTIONS) | limits
            settings = std, "cem", options, hold, self.world.window
            run = search.make_search(model, *settings, nearest=acting and held)
            self._searches[key] = lambda *x: run(params, *x)
        return self._searches[key], mean

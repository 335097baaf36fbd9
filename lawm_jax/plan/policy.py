"""Plans within stable-worldmodel: a policy that its `World` can evaluate.

    world.set_policy(Policy(model, params, horizon=5))
    world.evaluate(dataset=dataset, episodes_idx=..., goal_offset=25, eval_budget=50)

This module does not import that package, whose policies take and return numpy arrays.

Source: `BasePolicy` and `World` of github.com/galilai-group/stable-worldmodel (0.1.1).
"""

import collections

import jax
import numpy as np

from lawm_jax.evaluate import batched
from lawm_jax.plan import search


class Policy:
    """Plans toward a goal image with a world model, in every environment of a `World`.

    Each environment executes a part of its plan before it plans again. If a step of the model spans
    several steps of the environment, as with the package's `frameskip`, its real action is theirs,
    concatenated.
    """

    def __init__(
        self, model, params, horizon, execute=None, planner="cem", options=None, window=None, seed=0
    ):
        """Takes a world model and the planner's settings.

        Args:
          model, params: a world model with a controller, or a labeled one.
          horizon: number of steps of a plan.
          execute: number of steps of a plan that are executed before the next plan; None for all.
          planner, options, window: as in `search.search`. The initial Gaussian has mean 0, or the
            rest of the previous plan, and the standard deviation of the training actions; plans
            keep to the environment's action space.
          seed: seed of the planner.

        Raises:
          ValueError: the model has no controller, or `execute` exceeds `horizon`.
        """
        execute = horizon if execute is None else execute
        if not 0 < execute <= horizon:
            raise ValueError(f"execute: expected 1 to horizon = {horizon} steps, got {execute}")
        self._model, self._params, self._execute = model, params, execute
        self._std = np.repeat(action_std(model, params)[None], horizon, axis=0)
        self._settings = planner, options or {}, window
        self._encode = batched.frame_encoder(model, params)
        self._key = jax.random.key(seed)

    def set_env(self, env):
        """Prepares for a pool of environments; called by `World.set_policy`.

        Args:
          env: has `num_envs` and `single_action_space`, a box with a shape, `low` and `high`.

        Raises:
          ValueError: the model's real actions aren't those of whole steps of the environment.
        """
        space, (_, U) = env.single_action_space, self._std.shape
        self._width = int(np.prod(space.shape))
        if U % self._width:
            raise ValueError(
                f"env: expected actions whose width divides the model's, {U}, got {self._width}"
            )
        bounds = {key: np.tile(np.ravel(getattr(space, key)), U // self._width) for key in BOUNDS}
        planner, options, window = self._settings
        self._search = search.make_search(
            self._model, self._std, planner, bounds | options, window=window
        )
        self._shape = env.num_envs, *space.shape
        self._waiting = [collections.deque() for _ in range(env.num_envs)]
        self._means = np.zeros((env.num_envs, *self._std.shape), np.float32)

    def get_action(self, infos, **_):
        """Returns the next action of every environment, planning where none is left.

        Args:
          infos: dict with `pixels` and `goal`, uint8 [n, 1, H, W, 3]; optionally `terminated`
            [n, 1], environments that need no action, and `_needs_flush` [n], those that were reset,
            which is removed.

        Returns:
          float32 [n, ...], in the environment's action space; 0 where no action is needed.
        """
        n = self._shape[0]
        for i in np.flatnonzero(infos.pop("_needs_flush", np.zeros(n))):
            self._waiting[i].clear()
            self._means[i] = 0
        ended = np.reshape(infos.get("terminated", np.zeros(n)), n).astype(bool)
        idle = [i for i in range(n) if not ended[i] and not self._waiting[i]]
        if idle:
            self._plan(idle, *(np.asarray(infos[key])[idle, -1:] for key in ("pixels", "goal")))
        no_action = np.zeros(self._width, np.float32)
        actions = [no_action if ended[i] else self._waiting[i].popleft() for i in range(n)]
        return np.stack(actions).reshape(self._shape)

    def _plan(self, indices, pictures, goals):
        """Plans for some environments: pictures and goals uint8 [n, 1, H, W, 3]."""
        start, goal = (self._encode(x)[:, 0] for x in (pictures, goals))
        self._key, key = jax.random.split(self._key)
        keys = jax.random.split(key, len(indices))
        tasks, size = (keys, start, goal, self._means[indices]), search.at_once(self._shape[0])
        u, _ = search.in_groups(self._search, self._params, tasks, size)
        for i, plan in zip(indices, u, strict=True):
            self._waiting[i].extend(plan[: self._execute].reshape(-1, self._width))
            self._means[i] = 0
            self._means[i, : len(plan) - self._execute] = plan[self._execute :]


BOUNDS = "low", "high"


def action_std(model, params):
    """Returns the standard deviation [U] of the real actions that a model was trained on.

    Raises:
      ValueError: the model has no controller and is not labeled.
    """
    if model.latent is not None and model.latent.labelled:
        return np.asarray(params["latent"]["std"])
    if model.controller is None:
        raise ValueError("model: expected a controller, or a labeled model, got neither")
    return np.abs(np.asarray(params["controller"]["scale"]["action_std"]))

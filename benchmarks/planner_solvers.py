"""Makes the planners that the planner benchmark (planner.py) compares."""

import contextlib
import functools
import io

import numpy as np

from benchmarks import timing
from benchmarks.planner_tasks import H, first_std

ELITES = 10


def ours(model, params, cached=True, planner=None, **options):
    """Returns a function, (task, seed) -> (plan [H, U], cost), that plans with lawm_jax."""
    import jax
    import jax.numpy as jnp

    import lawm_jax as lawm
    from lawm_jax import world_model
    from lawm_jax.plan import planners
    from lawm_jax.train import cpu

    planner, std = planner or functools.partial(lawm.cem, average=True), first_std(params)
    mesh = lawm.make_mesh()
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.device_put(params, everywhere)

    @functools.partial(jax.jit, compiler_options=cpu.options())
    def run(params, key, s, z, goal):
        cache = lawm.prefill(model, params, s, z)

        def drive(plans):
            return world_model.rollout_actions(model, params, cache, plans)[:, -1]

        def recompute(plans):
            states, latents = (jnp.broadcast_to(x, (len(plans), *x.shape[1:])) for x in (s, z))
            for t in range(H):
                new = lawm.map_actions(model, params, plans[:, t : t + 1], states[:, -1:])
                latents = jnp.concatenate([latents, new], axis=1)
                new = lawm.predict(model, params, states, latents)[:, -1:]
                states = jnp.concatenate([states, new], axis=1)
            return states[:, -1]

        def cost(plans):
            last = (drive if cached else recompute)(plans)
            return jnp.sqrt(jnp.square(last - goal).mean((1, 2)))

        return planner(planners.spread(cost, mesh), key, jnp.zeros_like(std), std, **options)

    def plan(task, seed):
        found = run(params, *jax.device_put((jax.random.key(seed), *task), everywhere))
        return np.asarray(found[0]), float(found[1])

    return plan


def theirs(sizes, arrays, samples, iterations, compiled=False):
    """Returns a function, (task, seed) -> (plan [H, U], None), that plans with CEMSolver."""
    import gymnasium as gym
    import torch

    from benchmarks import torch_model

    if torch.version.cuda is None:
        # stable-worldmodel imports torchvision, which is not used here. PyPI's build is for
        # CUDA and cannot be imported with a CPU-only torch, which lacks these two operators.
        for name in "nms", "qnms":
            with contextlib.suppress(RuntimeError):
                torch.library.define(
                    f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor"
                )
    from stable_worldmodel import PlanConfig
    from stable_worldmodel.solver import CEMSolver

    torch.set_num_threads(timing.cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = torch_model.load(sizes, arrays).to(device, dtype)
    if compiled:
        model.get_cost = torch.compile(model.get_cost)
    options = dict(num_samples=samples, topk=ELITES, n_steps=iterations, device=device)
    space = gym.spaces.Box(-np.inf, np.inf, (1, sizes["actions"]))

    def plan(task, seed):
        solver = CEMSolver(model, batch_size=1, seed=seed, **options)
        solver.configure(
            action_space=space, n_envs=1, config=PlanConfig(horizon=H, receding_horizon=H)
        )
        info = dict(zip(("states", "latents", "goal"), map(torch.tensor, task), strict=True))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints timings
            found = solver.solve(info)["actions"][0]
        return found.float().numpy() * np.abs(arrays["std"]), None

    return plan

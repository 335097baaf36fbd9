"""Makes models, tasks and costs for the planner benchmark (planner.py)."""

import os

import numpy as np

H = 3  # steps of a plan
STATES = {"tiny": (4, 32), "nano": (16, 448), "large": (256, 1024)}  # tokens, features


def make_model(workdir=None, size="nano"):
    """Returns a world model with a controller, and its parameters."""
    import jax

    import lawm_jax as lawm
    from configs import controller
    from configs import lawm as config
    from lawm_jax import world_model

    if workdir:
        return lawm.load(workdir, controller=os.path.join(workdir, "controller", "panda"))
    c = config.get_config(f"size={size}")
    c.controller = controller.get_config(f"size={size}").controller
    if jax.default_backend() != "cpu":
        c.predictor.dtype = c.controller.dtype = "bfloat16"
    model = lawm.build(c)
    s = jax.ShapeDtypeStruct((1, 2, *STATES[size]), np.float32)

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, 3)
        params = world_model.init_dynamics(model, keys[0], s)
        params |= world_model.init_controller(model, keys[1], s)
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(keys[2], len(leaves))  # so zero-initialized layers have an effect
        noisy = [
            x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(tree, noisy)

    return model, draw(jax.random.key(0))


def make_tasks(model, params, workdir, count, context, size="nano"):
    """Returns `count` tasks: states [1, T, N, D], latents [1, T-1, A], goal [1, N, D]; T = context.

    The goal is the state H steps later in a clip or, for a random model, the final state of a
    random plan plus noise, which no plan reaches.
    """
    import jax

    import lawm_jax as lawm
    from lawm_jax import world_model
    from lawm_jax.train import rundir

    T = context
    if workdir:
        import ml_collections

        c = ml_collections.ConfigDict(rundir.read_config(workdir))
        c.data.update(videos="", frames=T + H, batch=count, workers=0)
        c.data.sources = ml_collections.ConfigDict({"panda": "mini:panda"})
        c.data.mixture = ml_collections.ConfigDict({"panda": 1.0})
        s = jax.jit(lambda p, video: lawm.encode(model, p, video))(
            params, next(lawm.clips(c))["video"]
        )
        z = lawm.infer_actions(model, params, s)[0]
        return [(s[i, None, :T], z[i, None, : T - 1], s[i, None, -1]) for i in range(count)]
    tasks, std = [], first_std(params)

    @jax.jit
    def draw(params, key):
        keys = jax.random.split(key, 4)
        s = jax.random.normal(keys[0], (1, T, *STATES[size]))
        z = jax.random.normal(keys[1], (1, T - 1, model.latent.dim))
        u = std[None] * jax.random.normal(keys[2], (1, *std.shape))
        cache = lawm.prefill(model, params, s, z)
        goal = world_model.rollout_actions(model, params, cache, u)[:, -1]
        return s, z, goal + 0.5 * jax.random.normal(keys[3], goal.shape)

    for i in range(count):
        tasks.append(draw(params, jax.random.key(100 + i)))
    return tasks


def first_std(params):
    """Returns the initial standard deviations [H, U], from the controller's training actions."""
    std = np.abs(np.asarray(params["controller"]["scale"]["action_std"]))
    return np.repeat(std[None], H, axis=0)


def price(model, params, plans, tasks):
    """Computes the costs of plans [H, U], one per task, under lawm_jax's model."""
    import jax
    import jax.numpy as jnp

    import lawm_jax as lawm
    from lawm_jax import world_model

    @jax.jit
    def cost(params, plan, s, z, goal):
        cache = lawm.prefill(model, params, s, z)
        last = world_model.rollout_actions(model, params, cache, plan[None])[:, -1]
        return jnp.sqrt(jnp.square(last - goal).mean())

    return [float(cost(params, plan, *task)) for plan, task in zip(plans, tasks, strict=True)]

"""Makes the training steps that train_step.py compares and scaling.py varies."""

import functools

import numpy as np

from benchmarks import timing


def make_config(size, devices=1):
    """Returns the config for a size and a number of devices."""
    from configs import lawm

    c = lawm.get_config(f"size={'nano' if size == 'wide' else size}")
    c.mesh.update(data=-1, fsdp=1)
    if size == "wide":
        c.data.update(size=256, batch=4)
        c.predictor.update(width=192, heads=3, depth=6)
        c.inverse.update(width=192, heads=3, depth=4)
    if size == "tiny":
        c.encoder.update(name="vjepa2_tiny", merge=1, normalise=True)
        c.data.batch = 2 * devices
    if size == "large":
        c.data.batch = 8 * devices
    if size in ("tiny", "large"):
        c.encoder.weights = ""  # random weights
    return c.to_dict()


def ours(config, devices, steps):
    """Returns a function that runs `steps` lawm_jax training steps from states on `devices`.

    Also returns the model, its initial parameters and the states. The function has the attributes
    `program`, the compiled step, and `flops`, those of a step on all devices.
    """
    import jax

    from lawm_jax import world_model
    from lawm_jax.aot.flops import count
    from lawm_jax.train import cpu, optim, sharding
    from lawm_jax.train.step import make_state, train_step

    model, mesh = world_model.build(config), sharding.make_mesh(devices=devices)
    tx, _ = optim.make(config["optim"], config["steps"])
    data = config["data"]
    video = jax.ShapeDtypeStruct((data["batch"], data["frames"], *2 * [data["size"]], 3), np.uint8)
    encoder = world_model.init_encoder(model, video)
    s = world_model.state_shape(model, encoder, video)
    states = np.random.default_rng(0).normal(size=s.shape).astype(np.float32)
    make = functools.partial(make_state, model, tx, s)
    shardings = sharding.state_sharding(mesh, jax.eval_shape(make, jax.random.key(0)))
    state = jax.jit(make, out_shardings=shardings)(jax.random.key(0))
    params = jax.device_get(state["params"])
    batch = sharding.place(mesh, {"states": states})

    def once(state, batch):
        return train_step(model, tx, {}, state, batch)

    own = jax.ShapeDtypeStruct((len(states) // mesh.size, *states.shape[1:]), states.dtype)
    flops = mesh.size * count(once, state, {"states": own})[0]
    step = jax.jit(once, donate_argnums=0, out_shardings=(shardings, None))
    step = step.lower(state, batch).compile(cpu.options())

    def train(number):
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        return float(metrics["loss"])

    train.program, train.flops = step, flops
    return train, model, params, states


def theirs(model, params, states, config, steps, compiled=False):
    """Returns a function that runs `steps` of the same training steps in PyTorch."""
    import torch

    from benchmarks import torch_training
    from lawm_jax.train import optim

    torch.set_num_threads(timing.cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wrap = torch.compile if compiled else lambda function: function
    _, share = optim.make(config["optim"], config["steps"])
    share = np.asarray([share(step) for step in range(1000)]).tolist()  # avoids XLA calls
    copy = torch_training.make(model, params).to(device)
    optimiser = torch_training.Optimiser(
        copy, config["optim"], share.__getitem__, wrap(torch_training.orthogonalise)
    )
    loss, s = wrap(copy), torch.tensor(states, device=device)
    shape = (len(s), s.shape[1] - 1, model.latent.dim)

    def train(number):
        for _ in range(steps):
            value = loss(s, torch.randn(shape, device=device))
            value.backward()
            optimiser.step()
        return value.item()

    return train

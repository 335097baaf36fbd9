"""Benchmarks the training step: python -m benchmarks.train_step [--sizes S] [--json FILE].

Compares the training step (forward, backward, Muon and AdamW in float32) with a PyTorch version
that has the same loss, gradients and updates (torch_training.py), eager and with torch.compile. All
take turns in one process on the same random states; no video is read. lawm_jax also runs with one
JAX device per CPU core, data parallel. The ratio is that of the fastest variants of both in the
same round, the median over rounds; rounds are added until its 95 % interval is 4 % wide. Sizes:

  nano   configs/lawm.py:size=nano: width 128, 3 + 2 blocks, 8 steps of 16 tokens, batch 8
  wide   width 192, 6 + 4 blocks, 8 steps of 64 tokens, batch 4
  large  the paper's: V-JEPA 2 ViT-L encodes 16 frames to 8 steps of 256 tokens, width 1024, 24 + 12
         blocks, bfloat16, 8 clips per device; lawm_jax only, with its FLOP/s as a fraction of those
         of a plain matrix product, and a profile
  tiny   a tiny model, measured like large, for testing

Defaults to nano and wide on a CPU, and to large on other devices, which was not run. Needs
`pip install -e '.[torch]'` and a C++ compiler; about 6 minutes on 2 cores.
"""

import dataclasses
import functools
import os

import numpy as np
from absl import app, flags

from benchmarks import timing

SIZES = flags.DEFINE_list(
    "sizes", None, "Sizes to measure. Default: nano and wide on a CPU, large on other devices."
)
JSON = flags.DEFINE_string("json", None, "JSON file to append the results to.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Minimum number of rounds per comparison.", 1)
LIMIT = flags.DEFINE_integer("limit", 60, "Maximum number of rounds per comparison.", 1)
STEPS = flags.DEFINE_integer("steps", 10, "Number of steps per round.", 1)
PROFILE = flags.DEFINE_integer("profile", 0, "Number of longest lawm_jax operations to print.", 0)

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU
COMPARED = "nano", "wide"  # sizes compared with PyTorch, on states


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

    Also returns the model, its initial parameters and the states.
    """
    import jax

    from lawm_jax import world_model
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
    step = jax.jit(
        lambda state, batch: train_step(model, tx, {}, state, batch),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    step = step.lower(state, batch).compile(cpu.options())

    def train(number):
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        return float(metrics["loss"])

    train.text = step.as_text()
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


def compare(size, rounds, steps, longest):
    """Times lawm_jax and PyTorch in turn; returns the results, and the ratio as text."""
    import jax

    config = make_config(size)
    alone, model, params, states = ours(config, jax.devices()[:1], steps)
    rows = {"lawm_jax": alone}
    if 1 < jax.device_count() and len(states) % jax.device_count() == 0:
        rows["lawm_jax, a device per core"] = ours(config, jax.devices(), steps)[0]
    copy = functools.partial(theirs, model, params, states, config, steps)
    rows |= {"PyTorch": copy(), "PyTorch, compiled": copy(compiled=True)}
    found = timing.in_turn(rows, rounds, LIMIT.value, "lawm_jax")
    middle, (low, high) = timing.ratio(found, "lawm_jax")
    number = len(found["lawm_jax"]["seconds"])
    print(f"{size}: {len(states)} clips of states {states.shape[1:]}, {number} rounds")
    for name, row in found.items():
        assert np.isfinite(row["results"]).all(), f"{name}: the loss is not finite"
        row["busy cores"] = timing.busy(row)
        row["clips/s"] = [steps * len(states) / seconds for seconds in row.pop("seconds")]
        row["CPU seconds of a step"] = [cpu / steps for cpu in row.pop("CPU seconds")]
        row["losses"] = row.pop("results")
        print(
            f"  {name:30}{np.median(row['clips/s']):9.2f} clips/s, "
            f"{np.median(row['CPU seconds of a step']):.4f} CPU seconds per step, "
            f"{row['busy cores']:.2f} busy cores, first call {row['first']:.1f} s",
            flush=True,
        )
    if longest:
        timing.show(timing.profile(lambda: alone(0), alone.text, steps), longest)
    found["ratio"] = {"median": middle, "interval": [low, high]}
    return found, f"{middle:.2f} x PyTorch [{low:.2f}, {high:.2f}]"


def whole(size, rounds, steps, longest):
    """Times lawm_jax's step from video; returns the results, and the fraction of peak as text.

    The peak is the measured FLOP/s of a large matrix product in the model's dtype. The FLOPs of a
    step are counted without rematerialization.
    """
    import jax

    from lawm_jax.aot.flops import count
    from lawm_jax.train import loop
    from lawm_jax.train.step import train_step

    config = make_config(size, jax.device_count())
    run = loop.Run.load(config)
    (key, x), random = *run.batch.items(), np.random.default_rng(0)
    batch = run.place({key: random.integers(0, 256, x.shape, np.uint8)})
    once = {k: getattr(run.model, k).clone(remat="") for k in ("predictor", "inverse")}
    once = dataclasses.replace(run.model, **once)
    flops, _ = count(lambda *args: train_step(once, run.tx, *args), run.frozen, run.like, run.batch)
    with run.compiling():
        state = run.begin()

    def train(number):
        nonlocal state
        for _ in range(steps):
            state, metrics = run.step(run.frozen, state, batch)
        return float(jax.device_get(metrics["loss"]))

    multiply, work = timing.product(config["predictor"]["dtype"])
    found = timing.in_turn({"lawm_jax": train, "peak": multiply}, rounds)
    seconds = {name: np.median(row["seconds"]) for name, row in found.items()}
    peak = work / seconds["peak"]
    speed = steps * flops / seconds["lawm_jax"]
    row = {
        "first": found["lawm_jax"]["first"],
        "clips/s": [steps * x.shape[0] / s for s in found["lawm_jax"]["seconds"]],
        "FLOPs of a step": flops,
        "FLOP/s": speed,
        "FLOP/s of a product": peak,
    }
    print(
        f"{size}: {x.shape[0]} clips {x.shape[1:]}, {np.median(row['clips/s']):.2f} clips/s, "
        f"{speed / 1e12:.3f} of {peak / 1e12:.3f} TFLOP/s, first call {row['first']:.1f} s"
    )
    profile = timing.profile(lambda: train(0), run.step.as_text(), steps)
    timing.show(profile, longest or 20)
    row["ms of operations"] = profile[:50]
    return {"lawm_jax": row}, f"{speed / peak:.2f} of the peak"


def main(argv):
    """Runs all comparisons and prints the results."""
    del argv
    import jax

    from lawm_jax.train import cpu

    cpu.keep_memory()
    cpu.device_per_core()
    sizes = SIZES.value or (COMPARED if jax.default_backend() == "cpu" else ["large"])
    results = timing.about("jax", *(["torch"] if set(sizes) & set(COMPARED) else []))
    results["a product on all cores"] = timing.together()
    print(f"all cores together: {results['a product on all cores']:.2f} x the products of one core")
    headline = []
    for size in sizes:
        measure = compare if size in COMPARED else whole
        results[size], text = measure(size, ROUNDS.value, STEPS.value, PROFILE.value)
        headline.append(f"{size} {text}")
    timing.save(JSON.value, results)
    print(", ".join(headline))


if __name__ == "__main__":
    app.run(main)

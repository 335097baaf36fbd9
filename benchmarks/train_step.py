"""Benchmarks the training step: python -m benchmarks.train_step [--sizes S] [--json FILE].

Compares the training step (forward, backward, Muon and AdamW in float32) with a PyTorch version
that has the same loss, gradients and updates (torch_training.py), eager and with torch.compile. All
alternate in one process on the same random states; no video is read. lawm_jax also runs with one
JAX device per CPU core, data parallel. The ratio is that of the fastest variants of both in the
same round, the median over rounds; rounds are added until its 95% interval is 4% wide. Sizes:

  nano   configs/lawm.py:size=nano: width 128, 3 + 2 blocks, 8 steps of 16 tokens, batch 8
  wide   width 192, 6 + 4 blocks, 8 steps of 64 tokens, batch 4
  large  the paper's: V-JEPA 2 ViT-L encodes 16 frames to 8 steps of 256 tokens, width 1024, 24 + 12
         blocks, bfloat16, 8 clips per device; lawm_jax only, with its FLOP/s as a fraction of those
         of a plain matrix product, and a profile
  tiny   a tiny model, measured like large, for testing

Defaults to nano and wide on a CPU, and to large on other devices (not tested). Requires
`pip install -e '.[torch]'` and a C++ compiler; takes about 6 minutes on 2 cores.
"""

import dataclasses
import functools
import os

import numpy as np
from absl import flags

from benchmarks import timing
from benchmarks.train_steps import make_config, ours, theirs
from lawm_jax.train import command
from lawm_jax.train.flags import define_names, define_output

SIZES = define_names(
    "sizes",
    None,
    ["tiny", "nano", "wide", "base", "large", "huge", "giant"],
    "Sizes to measure. Default: nano and wide on a CPU, large on other devices.",
)
JSON = define_output("json", "JSON file to append the results to.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Minimum number of rounds per comparison.", 1)
LIMIT = flags.DEFINE_integer("limit", 60, "Maximum number of rounds per comparison.", 1)
STEPS = flags.DEFINE_integer("steps", 10, "Number of steps per round.", 1)
PROFILE = flags.DEFINE_integer("profile", 0, "Number of longest lawm_jax operations to print.", 0)

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU
COMPARED = "nano", "wide"  # sizes compared with PyTorch, on states


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
        timing.show(timing.profile(lambda: alone(0), alone.program.as_text(), steps), longest)
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
    command.run(main)

"""Measures how compute costs scale: python -m benchmarks.scaling [--json FILE].

Each curve varies one quantity of a nano model and measures CPU seconds, which depend less on other
load than wall time does: those of a training step from states, as a function of frames, tokens per
frame, clips and virtual devices that share the same batch; and those of a plan, as a function of
candidates. The exponent is the slope of log cost over log quantity, with a 95% interval from a
bootstrap over rounds; the exponent expected from FLOPs or candidates is printed next to it. Takes
about 8 minutes on 2 cores.
"""

import numpy as np
from absl import flags

from benchmarks import timing
from lawm_jax.train import command
from lawm_jax.train.flags import define_names, define_output

JSON = define_output("json", "JSON file to append the results to.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of rounds.", 1)
STEPS = flags.DEFINE_integer("steps", 4, "Number of training steps per round.", 1)
DEVICES = 8

TRAINING = {  # curve -> values, and the config's key or None for the number of devices
    "frames": ((4, 8, 16, 32), "frames"),
    "tokens": ((128, 192, 256, 384), "size"),
    "clips": ((2, 4, 8, 16, 32), "batch"),
    "devices": ((1, 2, 4, 8), None),
}
CANDIDATES = (75, 150, 300, 600)
ALL = [*TRAINING, "candidates"]
CURVES = define_names("curves", None, ALL, "Names of the curves to measure. Default: all.")


def training(name, steps):
    """Prepares the training steps of a curve.

    Returns:
      value -> (function for `timing.in_turn`, FLOPs of its call, temporary bytes of a device).
    """
    import jax

    from benchmarks import train_steps

    values, key = TRAINING[name]
    found = {}
    for value in values:
        config = train_steps.make_config("nano")
        if key:
            config["data"][key] = value
        config["data"]["resize"] = config["data"]["size"]
        devices = jax.devices()[: 1 if key else value]
        train, *_ = train_steps.ours(config, devices, steps)
        memory = train.program.memory_analysis().temp_size_in_bytes
        x = (value // 32) ** 2 if name == "tokens" else value  # a token is 32 x 32 pixels
        found[x] = train, steps * train.flops, memory
    return found


def planning():
    """Prepares plans; returns as `training`, but candidates for FLOPs, and no bytes."""
    from benchmarks import planner_solvers, planner_tasks

    model, params = planner_tasks.make_model()
    task, *_ = planner_tasks.make_tasks(model, params, None, 1, context=1)
    found = {}
    for samples in CANDIDATES:
        plan = planner_solvers.ours(model, params, samples=samples, elites=10, iterations=2)
        found[samples] = lambda i, plan=plan: plan(task, i)[1], samples, None
    return found


def measure(calls, rounds):
    """Times the calls of a curve in turn.

    Args:
      calls: as returned by `training`.
      rounds: number of rounds.

    Returns:
      dict: "values", "CPU seconds" [values, rounds], "FLOPs" [values], "temporary bytes" [values].
    """
    rows = timing.in_turn({x: call for x, (call, _, _) in calls.items()}, rounds)
    return {
        "values": [*rows],
        "CPU seconds": [row["CPU seconds"] for row in rows.values()],
        "FLOPs": [flops for _, flops, _ in calls.values()],
        "temporary bytes": [memory for *_, memory in calls.values()],
    }


def exponent(values, costs):
    """Returns the slope of the logarithm of costs [values] over that of the values."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def summarize(curve):
    """Adds the exponents to a curve: "exponent", its "interval" and "expected" (of the FLOPs)."""
    values, seconds = curve["values"], np.array(curve["CPU seconds"])
    draws = np.random.default_rng(0).integers(seconds.shape[1], size=(2000, seconds.shape[1]))
    slopes = [exponent(values, np.median(seconds[:, draw], axis=1)) for draw in draws]
    return curve | {
        "exponent": exponent(values, np.median(seconds, axis=1)),
        "interval": np.percentile(slopes, (2.5, 97.5)).tolist(),
        "expected": exponent(values, curve["FLOPs"]),
    }


def main(argv):
    """Measures all curves and prints their exponents."""
    del argv
    import jax

    jax.config.update("jax_num_cpu_devices", DEVICES)
    found = timing.about("jax")
    for name in CURVES.value or ALL:
        calls = planning() if name == "candidates" else training(name, STEPS.value)
        curve = measure(calls, ROUNDS.value)
        found[name] = curve = summarize(curve)
        low, high = curve["interval"]
        print(
            f"{name:12} {curve['values']}: CPU seconds ^ {curve['exponent']:.2f} "
            f"[{low:.2f}, {high:.2f}], expected {curve['expected']:.2f}",
            flush=True,
        )
    timing.save(JSON.value, found)


if __name__ == "__main__":
    command.run(main)

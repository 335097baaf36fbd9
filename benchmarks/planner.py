"""Benchmarks planning: python -m benchmarks.planner [--workdir W] [--json FILE].

Compares lawm_jax's `cem` with the released `CEMSolver` of stable-worldmodel, on a PyTorch copy of
the same network (torch_model.py), eager and with torch.compile. Like the models of that package,
the copy recomputes the whole sequence at every step. Both alternate, with the nano model and a
state controller: 3 steps, 300 samples, 10 elites, 15 iterations, one task at a time, with the same
initial Gaussian, cost, dtype and cores. The first plan, which compiles, is not counted. lawm_jax
also plans in chunks, which fit a CPU's caches. The ratio is that of the fastest variants of both in
the same round, the median over rounds; rounds are added until its 95% interval is 4% wide. Further
comparisons: a context of 4 states, lawm_jax without cache and shared context, its other planners
with default options, and the memory of a process that only plans.

W is a run with a Panda controller; without W, the network and the states are random. --size=large
plans with lawm_jax only, with a random model of the paper's size, by CEM and by iCEM with a tenth
of the model calls. Requires `pip install -e '.[bench,torch]'` and a C++ compiler, except for large;
takes about 8 minutes. On a GPU, both use bfloat16 (not tested).

Reported costs are of the returned plans, the means of the last Gaussian, under lawm_jax's model.
"""

import functools
import os

import numpy as np
from absl import flags

from benchmarks import planner_memory, timing
from benchmarks.planner_solvers import ELITES, ours, theirs
from benchmarks.planner_tasks import first_std, make_model, make_tasks, price
from lawm_jax.train import command
from lawm_jax.train.flags import define_output

WORKDIR = flags.DEFINE_string("workdir", None, "Run with a Panda controller.")
SIZE = flags.DEFINE_enum(
    "size",
    "nano",
    ["nano", "large", "tiny"],
    "Model size; tiny is measured like large, for testing.",
)
JSON = define_output("json", "JSON file to append the results to.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Minimum number of rounds per comparison.", 1)
LIMIT = flags.DEFINE_integer("limit", 15, "Maximum number of rounds of the main comparison.", 1)
SAMPLES = flags.DEFINE_integer("samples", 300, "Number of candidates.", 20)

ITERATIONS = 15
FEW = 3  # iterations if only the ratio of speeds matters
CHUNK = 60  # per device: activations fit a core's cache; chunks do not speed up the copy
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU


def in_turn(planners, tasks, rounds, limit=0):
    """Times planners, name -> function of a task and a seed, in turn on the same tasks.

    Returns:
      The rows of `timing.in_turn`, with the plans as "results", and "plans/s" of each round.
    """
    calls = {
        name: lambda i, plan=plan: plan(tasks[i % len(tasks)], i)[0]
        for name, plan in planners.items()
    }
    rows = timing.in_turn(calls, rounds, limit, "lawm_jax")
    for row in rows.values():
        row["plans/s"] = [1 / seconds for seconds in row["seconds"]]
    return rows


def show(title, rows, base=None):
    """Prints a comparison."""
    print(f"{title}, {len(next(iter(rows.values()))['seconds'])} rounds")
    speed = {name: np.median(row["plans/s"]) for name, row in rows.items()}
    for name, row in rows.items():
        cpu, busy = np.median(row["CPU seconds"]), timing.busy(row)
        text = f"  {name:34}{speed[name]:8.3f} plans/s, {cpu:.2f} CPU seconds, {busy:.2f} busy "
        text += f"cores, first plan {row['first']:.1f} s"
        print(
            text + (f", {speed[base] / speed[name]:.2f} x the time of {base}" if base else ""),
            flush=True,
        )


def speeds(rows):
    """Returns the timings of a comparison that are saved."""
    kept = "first", "plans/s", "CPU seconds"
    return {
        name: {key: row[key] for key in kept} | {"busy cores": timing.busy(row)}
        for name, row in rows.items()
    }


def compare(model, params, sizes, arrays, context, iterations, chunk, limit):
    """Times lawm_jax and CEMSolver in turn; returns a title, rows of `in_turn`, and the tasks."""
    rounds, samples = ROUNDS.value, SAMPLES.value
    options = dict(samples=samples, elites=ELITES, iterations=iterations)
    copy = functools.partial(theirs, sizes, arrays, samples, iterations)
    planners = {
        "lawm_jax": ours(model, params, **options, chunk=chunk),
        "lawm_jax, all at once": ours(model, params, **options),
        "CEMSolver": copy(),
        "CEMSolver, compiled": copy(compiled=True),
    }
    if context > 1:
        planners["lawm_jax, all computed anew"] = ours(model, params, False, **options, chunk=chunk)
    tasks = make_tasks(model, params, WORKDIR.value, max(rounds, 2), context)
    rows = in_turn(planners, tasks, rounds, limit)
    title = f"context of {context}, {iterations} iterations"
    show(title, rows, "lawm_jax")
    return title, rows, tasks


def costs(model, params, rows, tasks):
    """Computes the costs of all planners' plans, and of no action, on each round's task."""
    rounds, still = ROUNDS.value, np.zeros_like(first_std(params))
    tasks, plans = tasks[:rounds], {name: row["results"][:rounds] for name, row in rows.items()}
    plans["no action"] = [still] * rounds
    found = {name: price(model, params, each, tasks) for name, each in plans.items()}
    for name, values in found.items():
        print(f"  {name:34}cost {np.mean(values):.4f}", flush=True)
    return found


def alone(size):
    """Times lawm_jax's CEM, and iCEM with a tenth of the model calls, with a random model."""
    import jax

    from lawm_jax.plan import planners

    model, params = make_model(size=size)
    tasks = make_tasks(model, params, None, max(ROUNDS.value, 2), 1, size)
    few = SAMPLES.value * ITERATIONS // 10
    planners = {
        "cem": ours(model, params, samples=SAMPLES.value, iterations=ITERATIONS, chunk=CHUNK),
        "icem": ours(model, params, planner=planners.icem, samples=few // 10, iterations=10),
    }
    rows = in_turn(planners, tasks, ROUNDS.value)
    show(f"{size}, lawm_jax alone", rows)
    stats = jax.devices()[0].memory_stats() or {}
    return {"size": size, "peak bytes": stats.get("peak_bytes_in_use")} | speeds(rows)


def main(argv):
    """Runs all comparisons and prints the results."""
    del argv
    import jax

    from lawm_jax.plan import planners
    from lawm_jax.train import cpu

    cpu.device_per_core()
    if SIZE.value != "nano":
        timing.save(JSON.value, timing.about("jax") | alone(SIZE.value))
        return
    from benchmarks import torch_model

    model, params = make_model(WORKDIR.value)
    sizes = torch_model.sizes(model, params)
    parts = {key: params[key] for key in ("predictor", "controller")}
    arrays = torch_model.state_dict(parts | {"std": first_std(params)[0]})
    results = timing.about("jax", "torch", "stable-worldmodel") | {
        "model": "trained" if WORKDIR.value else "at random",
        "samples": SAMPLES.value,
    }
    results["a product on all cores"] = timing.together()
    print(f"all cores together: {results['a product on all cores']:.2f} x the products of one core")
    copy, chunk = (model, params, sizes, arrays), CHUNK * jax.device_count()
    title, rows, tasks = compare(*copy, 1, ITERATIONS, chunk, LIMIT.value)
    results |= {title: speeds(rows), "costs": costs(model, params, rows, tasks)}
    middle, (low, high) = timing.ratio(rows, "lawm_jax")
    results["ratio"] = {"median": middle, "interval": [low, high]}
    title, others, _ = compare(*copy, 4, FEW, chunk, 0)
    results[title] = speeds(others)
    others = {
        name: ours(model, params, planner=getattr(planners, name))
        for name in ("icem", "mppi", "gradient", "cem_gradient")
    }
    others = in_turn(others, tasks, min(ROUNDS.value, 3))
    show("other lawm_jax planners, default options", others)
    results["other planners"] = speeds(others)
    results["resident MB, before and at most"] = planner_memory.compare(
        tasks[0], sizes, arrays, SAMPLES.value, WORKDIR.value
    )
    timing.save(JSON.value, results)
    print(f"{middle:.2f} x CEMSolver, the fastest variants of both [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    command.run(main)

"""Benchmarks planning: python -m benchmarks.planner [--workdir W] [--json FILE].

Compares lawm_jax's `cem` with the released `CEMSolver` of stable-worldmodel, on a PyTorch copy of
the same network (torch_model.py), eager and with torch.compile. Like the models of that package,
the copy recomputes the whole sequence at every step. Both plan in turn with the nano model and a
state controller: 3 steps, 300 samples, 10 elites, 15 iterations, one task at a time, with the same
initial Gaussian, cost, dtype and cores. The first plan, which compiles, is not counted. lawm_jax
also plans in chunks, which fit a CPU's caches. The ratio is that of the fastest variants of both
in the same round, the median over rounds; rounds are added until its 95 % interval is 4 % wide.
Further comparisons: a context of 4 states, lawm_jax without cache and shared context, its other
planners at their defaults, and the memory of a process that only plans.

W is a run with a Panda controller; without it, network and states are random. --size=large plans
with lawm_jax only, with a random model of the paper's size, by CEM and by iCEM with a tenth of the
model calls. Needs `pip install -e '.[bench,torch]'` and a C++ compiler, except for large; about 8
minutes. On a GPU, both use bfloat16, which was not run.

Reported costs are of the returned plans, the means of the last Gaussian, under lawm_jax's model.
"""

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
from absl import app, flags

from benchmarks import timing

WORKDIR = flags.DEFINE_string("workdir", None, "Run with a Panda controller.")
SIZE = flags.DEFINE_enum(
    "size",
    "nano",
    ["nano", "large", "tiny"],
    "Model size; tiny is measured like large, for testing.",
)
JSON = flags.DEFINE_string("json", None, "JSON file to append the results to.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Minimum number of rounds per comparison.", 1)
LIMIT = flags.DEFINE_integer("limit", 15, "Maximum number of rounds of the main comparison.", 1)
SAMPLES = flags.DEFINE_integer("samples", 300, "Number of candidates.", 20)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
H, ELITES, ITERATIONS = 3, 10, 15
FEW = 3  # iterations if only the ratio of speeds matters
CHUNK = 60  # per device: activations fit a core's cache; chunks do not speed up the copy
STATES = {"tiny": (4, 32), "nano": (16, 448), "large": (256, 1024)}  # tokens, features
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU


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
            copies = lambda x: jnp.broadcast_to(x, (len(plans), *x.shape[1:]))  # noqa: E731
            states, latents = copies(s), copies(z)
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


def memory(folder, name, samples, chunk=None):
    """Plans in a separate process; returns its resident MB before the first plan, and the peak."""
    options = dict(folder=folder, name=name, samples=samples, chunk=chunk)
    code = f"from benchmarks import planner; planner.print_memory(**{options!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_memory(folder, name, samples, chunk):
    """Plans once, with 2 iterations; prints the resident MB before and the peak, as JSON."""
    stored = dict(np.load(os.path.join(folder, "task.npz")))
    task = [stored.pop(name) for name in ("states", "latents", "goal")]
    with open(os.path.join(folder, "sizes.json"), encoding="utf-8") as file:
        given = json.load(file)
    if name == "ours":
        from lawm_jax.train import cpu

        cpu.device_per_core()
        model, params = make_model(given["workdir"])
        plan = ours(model, params, samples=samples, elites=ELITES, iterations=2, chunk=chunk)
    else:
        plan = theirs(given["sizes"], stored, samples, 2, compiled=name == "compiled")
    before = _resident("VmRSS")
    plan(task, 0)
    print(json.dumps([before, _resident("VmHWM")]))


def _resident(field):
    """Returns a memory field of /proc/self/status, in MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return round(int(next(line for line in file if line.startswith(field)).split()[1]) / 1024)


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


def memories(task, sizes, arrays):
    """Measures the memory of processes that only plan."""
    samples, found = SAMPLES.value, {}
    cases = {
        f"lawm_jax, {samples} samples": ("ours", samples),
        f"lawm_jax, {10 * samples} samples": ("ours", 10 * samples),
        f"lawm_jax, {10 * samples}, chunk={samples}": ("ours", 10 * samples, samples),
        f"CEMSolver, {samples} samples": ("theirs", samples),
        f"CEMSolver, {10 * samples} samples": ("theirs", 10 * samples),
        f"CEMSolver, compiled, {samples}": ("compiled", samples),
    }
    with tempfile.TemporaryDirectory() as folder:
        task = dict(zip(("states", "latents", "goal"), map(np.asarray, task), strict=True))
        np.savez(os.path.join(folder, "task.npz"), **arrays, **task)
        with open(os.path.join(folder, "sizes.json"), "w", encoding="utf-8") as file:
            json.dump({"sizes": sizes, "workdir": WORKDIR.value}, file)
        for name, case in cases.items():
            found[name] = memory(folder, *case)
            print(f"  {name:34}{found[name][0]:6} MB before, peak {found[name][1]} MB", flush=True)
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
    results["resident MB, before and at most"] = memories(tasks[0], sizes, arrays)
    timing.save(JSON.value, results)
    print(f"{middle:.2f} x CEMSolver, the fastest variants of both [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    app.run(main)

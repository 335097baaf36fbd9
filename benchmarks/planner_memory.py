"""Measures the memory of processes that only plan, for the planner benchmark (planner.py)."""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.planner_solvers import ELITES, ours, theirs
from benchmarks.planner_tasks import make_model


def compare(task, sizes, arrays, samples, workdir):
    """Measures and prints the memory of processes that only plan.

    Args:
      task: one of `planner_tasks.make_tasks`.
      sizes, arrays: of the PyTorch copy, see torch_model.py.
      samples: number of candidates; ten times as many are measured, too.
      workdir: run to load, or None for a random model.

    Returns:
      name -> [resident MB before the first plan, peak].
    """
    found = {}
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
            json.dump({"sizes": sizes, "workdir": workdir}, file)
        for name, case in cases.items():
            found[name] = measure(folder, *case)
            print(f"  {name:34}{found[name][0]:6} MB before, peak {found[name][1]} MB", flush=True)
    return found


def measure(folder, name, samples, chunk=None):
    """Plans in a separate process; returns its resident MB before the first plan, and the peak."""
    options = dict(folder=folder, name=name, samples=samples, chunk=chunk)
    code = f"from benchmarks import planner_memory; planner_memory.print_memory(**{options!r})"
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

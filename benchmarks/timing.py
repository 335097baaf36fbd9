"""Times and profiles functions, and saves results, for the other benchmarks."""

import collections
import datetime
import glob
import gzip
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time

import numpy as np


def in_turn(functions, rounds, limit=0, ours=None):
    """Times functions in interleaved rounds, so that other load affects all of them equally.

    Args:
      functions: name -> function of the round's index, which returns when its work is done.
      rounds: minimum number of rounds.
      limit: maximum number of rounds; adds rounds until the interval of `ratio` is narrow.
      ours: see `ratio`.

    Returns:
      name -> {"first": seconds of the first call, which compiles, before all rounds; "seconds" and
      "CPU seconds": of each round; "results": the function's result in each round}.
    """
    rows = {}
    for name, function in functions.items():
        begin = time.perf_counter()
        function(0)
        first = time.perf_counter() - begin
        rows[name] = {"first": first, "seconds": [], "CPU seconds": [], "results": []}
    for i in itertools.count():
        if i >= rounds and (i >= limit or _is_narrow(*ratio(rows, ours)[1])):
            return rows
        for name, function in functions.items():
            begin, cpu = time.perf_counter(), time.process_time()
            result = function(i)
            rows[name]["seconds"].append(time.perf_counter() - begin)
            rows[name]["CPU seconds"].append(time.process_time() - cpu)
            rows[name]["results"].append(result)


def ratio(rows, ours):
    """Computes the speedup of the fastest of our functions over the fastest other function.

    Args:
      rows: as returned by `in_turn`.
      ours: prefix of the names of our functions.

    Returns:
      The median over rounds of the ratio of both times in a round, and its 95% interval, from a
      bootstrap over rounds.
    """
    fastest = [
        min((row["seconds"] for row in part), key=np.median)
        for part in (
            [row for name, row in rows.items() if name.startswith(ours) == mine]
            for mine in (True, False)
        )
    ]
    ratios = np.divide(fastest[1], fastest[0])
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(np.median(ratios)), (float(low), float(high))


def _is_narrow(low, high):
    return high - low < 0.04 * low


def busy(row):
    """Returns the median over rounds of the number of busy cores, from a row of `in_turn`."""
    return float(np.median(np.divide(row["CPU seconds"], row["seconds"])))


MULTIPLY = """
import os, sys, time
import numpy as np

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(sys.argv[1])]})
a = np.full((256, 256), 1e-3, np.float32)
for line in sys.stdin:
    count, end = 0, time.perf_counter() + float(line)
    while time.perf_counter() < end:
        a @ a
        count += 1
    print(count, flush=True)
"""


def together(rounds=9, seconds=0.4):
    """Measures the throughput of matrix products on all cores relative to that on one core.

    It is the number of cores if they are physical cores, and about 1.4 if two share a physical core
    (simultaneous multithreading), as on most small cloud machines, which may not report it.

    Returns:
      The median over rounds.
    """
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", MULTIPLY, str(core)],
            env=os.environ | dict.fromkeys(threads, "1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for core in range(cores())
    ]

    def count(workers, seconds):
        for worker in workers:
            print(seconds, file=worker.stdin, flush=True)
        return sum(int(worker.stdout.readline()) for worker in workers)

    count(workers, 0.1)  # warms up all workers
    found = [count(workers, seconds) / count(workers[:1], seconds) for _ in range(rounds)]
    for worker in workers:
        worker.communicate()
    return float(np.median(found))


def product(dtype):
    """Makes a measure of the peak: a large matrix product, as fast on every device.

    Returns:
      A function for `in_turn` that multiplies, and the number of its FLOPs on all devices.
    """
    import jax
    import jax.numpy as jnp

    n, times = 512 if jax.default_backend() == "cpu" else 8192, 20
    a = jnp.full((n, n), 1e-3, dtype)
    run = jax.jit(lambda a: jax.lax.fori_loop(0, times, lambda _, x: x @ a, a))
    return lambda _: run(a).block_until_ready(), times * 2 * n**3 * jax.device_count()


def about(*packages):
    """Returns the date, machine, commit and package versions, to be stored with results."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{cores()} x {_processor()}",
        "commit": commit.stdout.strip(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def cores():
    """Returns the number of cores that this process may use."""
    has = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has else os.cpu_count()


def _processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))


def save(path, results):
    """Appends results to the list "days" in a JSON file, unless the path is None."""
    if not path:
        return
    days = []
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            days = json.load(file)["days"]
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"days": [*days, results]}, file, indent=1)


def profile(function, text, steps=1):
    """Profiles the operations of a compiled program.

    Args:
      function: runs the program; called once without arguments, and returns when it is done.
      text: the program's HLO, `compiled.as_text()`.
      steps: number of times that `function` runs the program.

    Returns:
      [(milliseconds per step, operation)], the longest first. Operations are named by the end of
      their path in the program, with a mark on those of the backward pass; the times of several
      threads or devices add up.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            function()
        (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    paths = dict(re.findall(r"%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", text))
    times = collections.Counter()
    for event in events:
        operation = event.get("args", {}).get("hlo_op", "")
        # Loops and calls are left out: their bodies' operations are listed separately.
        if operation and not re.match(r"(while|call|conditional)[.\d]*$", operation):
            times[_shorten(paths.get(operation, operation))] += event["dur"] / 1e3 / steps
    return [(time, name) for name, time in times.most_common()]


def show(profile, longest):
    """Prints the longest operations of a profile and their shares of the total time."""
    total = sum(spent for spent, _ in profile)
    print(f"  {total:.2f} ms of operations per step, of which")
    for spent, name in profile[:longest]:
        print(f"  {spent:10.2f} ms {spent / total:6.1%}  {name}")


def _shorten(path):
    """Shortens an operation's path: "jit(f)/transpose(jvp(A))/B/C/dot" -> "C/dot, backward"."""
    return "/".join(path.split("/")[-2:]) + (", backward" if "transpose(" in path else "")

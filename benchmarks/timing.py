"""What the benchmarks share: timing in turn, where time goes, and what was measured on what."""

import collections
import glob
import gzip
import importlib.metadata
import json
import os
import re
import subprocess
import tempfile
import time


def in_turn(functions, rounds):
    """Times functions in turn, so that whatever else the machine does slows all of them alike.

    Args:
      functions: name -> function of the number of the round, which returns when its work is done.
      rounds: number of rounds.

    Returns:
      name -> {"first": seconds of a call before all rounds, which compiles, "seconds": of each
      round, "results": what each round returned}.
    """
    rows = {}
    for name, function in functions.items():
        begin = time.perf_counter()
        function(0)
        rows[name] = {"first": time.perf_counter() - begin, "seconds": [], "results": []}
    for i in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            result = function(i)
            rows[name]["seconds"].append(time.perf_counter() - begin)
            rows[name]["results"].append(result)
    return rows


def about(*packages):
    """Returns {"machine", "commit", "versions"}, to be stored with results."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "machine": f"{cores()} x {_processor()}",
        "commit": commit.stdout.strip(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def cores():
    """Returns how many cores this process may use."""
    has = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has else os.cpu_count()


def _processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))


def save(path, results):
    """Writes results as JSON, unless the path is None."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


def profile(function, text, steps=1):
    """Measures where the time of a compiled function goes.

    Args:
      function: called without arguments, once; returns when its work is done.
      text: the compiled program's, `compiled.as_text()`.
      steps: how often the function runs it.

    Returns:
      (milliseconds of a step, operation), the longest first. Operations are named by the end of
      their path in the program (forward and backward are told apart); the times of several threads
      or devices add up.
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
        # A loop or a call lasts as long as what it holds, which is listed too.
        if operation and not re.match(r"(while|call|conditional)[.\d]*$", operation):
            times[_shorten(paths.get(operation, operation))] += event["dur"] / 1e3 / steps
    return [(time, name) for name, time in times.most_common()]


def show(profile, longest):
    """Prints the longest operations of a profile, and what share of all operations they are."""
    total = sum(spent for spent, _ in profile)
    print(f"  {total:.2f} ms of operations a step, of which")
    for spent, name in profile[:longest]:
        print(f"  {spent:10.2f} ms {spent / total:6.1%}  {name}")


def _shorten(path):
    """Shortens an operation's path: "jit(f)/transpose(jvp(A))/B/C/dot" -> "C/dot, backward"."""
    return "/".join(path.split("/")[-2:]) + (", backward" if "transpose(" in path else "")

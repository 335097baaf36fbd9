"""Runs the commands of a study one after the other; the same commands resume it."""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time

from lawm_jax.train import rundir


@contextlib.contextmanager
def claimed(workdir):
    """Locks the workdir until all processes of this study have ended.

    The runs share compiled programs in W/cache, unless JAX_COMPILATION_CACHE_DIR names a folder.
    """
    os.makedirs(workdir, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(workdir, "cache"))
    with open(os.path.join(workdir, "lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"{workdir}: a study, or a command that it started, is still running there")
        os.set_inheritable(lock.fileno(), True)
        yield


def show(stored, runs):
    """Prints the commands of all unfinished runs; arguments as in `run_all`."""
    todo = [run for run in runs if result(run) is None]
    for line in (stored if todo else []) + [line for run in todo for line in run.commands]:
        print(_shown(line))


def run_all(stored, runs, each):
    """Prints the amount of work and runs the commands of all unfinished runs.

    Args:
      stored: command lines that come first, each a list.
      runs: list of `commands.Run`.
      each: sentence that says what a run does.
    """
    todo = [run for run in runs if result(run) is None]
    for run in todo:
        for folder, steps in run.steps.items():
            begun = _read(rundir.config(folder)).get("steps", steps)
            if begun != steps:
                sys.exit(
                    f"{folder}: expected {begun} steps as before, or a new --workdir, got {steps}"
                )
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them done. {each}", flush=True)
    for line in stored if todo else []:
        _call(line)
    begin = last = time.monotonic()
    for done, run in enumerate(todo, 1):
        for line in run.commands:
            _call(line)
            for folder, steps in run.steps.items():
                if f"--workdir={folder}" in line and _newest(folder) < steps:
                    sys.exit(f"{folder}: stopped early; run the same command to resume the study")
        before, last = last, time.monotonic()
        _record(run, (last - before) / 60)
        minutes = (time.monotonic() - begin) / done / 60
        left = f"{minutes:.1f} minutes per run, {minutes * (len(todo) - done):.0f} minutes left"
        print(f"{done} of {len(todo)} runs: {left}", flush=True)


def result(run):
    """Returns a run's saved results, or None if the settings or checkpoints have changed."""
    found = _read(os.path.join(run.folder, "study.json"))
    same = found.get("settings") == run.settings
    return found if same and found["checkpoints"] == [*map(_newest, run.steps)] else None


def _record(run, minutes):
    """Saves a finished run's results with its settings, checkpoints and minutes in study.json."""
    found = {"settings": run.settings, "checkpoints": [*map(_newest, run.steps)]}
    found["minutes"] = round(minutes, 2)
    for name, (path, key) in run.results.items():
        found[name] = _read(path) if key is None else _read(path)[key]
    path = os.path.join(run.folder, "study.json")
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1, allow_nan=False)
    os.replace(f"{path}.new", path)


def _call(line):
    """Runs a command; forwards SIGTERM to it, and exits if it was stopped or failed."""
    print(f"\n$ {_shown(line)}", flush=True)
    asked = []
    process = subprocess.Popen(line, close_fds=False)  # inherits the lock

    def stop(*_):
        asked.append(True)
        process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked or code:
        sys.exit(
            "stopped; run the same command to resume" if asked else f"failed with exit code {code}"
        )


def _shown(line):
    return shlex.join(["python", *line[1:]])


def _newest(folder):
    """Returns the step of a run's latest checkpoint, 0 without any; does not initialize JAX."""
    path = rundir.checkpoints(folder)
    names = os.listdir(path) if os.path.isdir(path) else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def _read(path):
    """Loads a JSON file, {} if it does not exist."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)

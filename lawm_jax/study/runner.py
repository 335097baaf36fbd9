"""Runs the commands of a study; the same commands resume it."""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent import futures

from lawm_jax.data import paths, words
from lawm_jax.train import rundir

_STOPPED = "stopped; run the same command to resume"


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
    """Prints the commands of all unfinished runs; arguments as in `run_all`.

    Also prints how many are left, to stderr.
    """
    todo = [run for run in runs if result(run) is None]
    print(f"{words.counted(len(runs), 'run')}, {len(todo)} remaining", file=sys.stderr)
    for line in (stored if todo else []) + [line for run in todo for line in run.commands]:
        print(_shown(line))


def run_all(stored, runs, each, jobs=1):
    """Prints the amount of work and runs the commands of all unfinished runs.

    Args:
      stored: command lines that come first, each a list.
      runs: list of `commands.Run`.
      each: sentence that describes a run.
      jobs: number of runs at a time. If more than one, their output is in FOLDER.log, and on Linux
        each has an equal part of the CPU cores.
    """
    todo = [run for run in runs if result(run) is None]
    for run in todo:
        for folder, steps in run.steps.items():
            previous = _read(rundir.config(folder)).get("steps", steps)
            if previous != steps:
                text = f"expected {previous} steps, as before, or a new --workdir, got {steps}"
                sys.exit(f"{folder}: {text}")
    before = len(runs) - len(todo)
    print(f"{words.counted(len(runs), 'run')}, {before} already done. {each}", flush=True)
    with _Processes() as processes:
        for line in stored if todo else []:
            processes.call(line)
        begin, pinned = time.monotonic(), _pin_threads(jobs)
        with futures.ThreadPoolExecutor(jobs, initializer=pinned) as pool:
            try:
                submitted = {pool.submit(_finish, processes, run, jobs): run for run in todo}
                if todo and jobs > 1:
                    print(f"output: {os.path.dirname(todo[0].folder)}/*.log", flush=True)
                for done, task in enumerate(futures.as_completed(submitted), 1):
                    task.result()
                    minutes = (time.monotonic() - begin) / done / 60
                    remaining = words.counted(round(minutes * (len(todo) - done)), "minute")
                    print(
                        f"{os.path.basename(submitted[task].folder)} is done, {before + done} "
                        f"of {words.counted(len(runs), 'run')}; {minutes:.1f} minutes per run, "
                        f"{remaining} left",
                        flush=True,
                    )
            except BaseException:
                processes.stop()
                raise


def _pin_threads(jobs):
    """Returns a function that gives the calling thread and its processes a part of the cores."""
    if jobs == 1 or not hasattr(os, "sched_setaffinity"):  # macOS
        return None
    cores = sorted(os.sched_getaffinity(0))
    parts = iter([cores[i::jobs] or cores for i in range(jobs)])
    return lambda: os.sched_setaffinity(0, next(parts))


def _finish(processes, run, jobs):
    """Runs all commands of a run and saves its results."""
    begin = time.monotonic()
    for line in run.commands:
        processes.call(line, f"{run.folder}.log" if jobs > 1 else None)
        for folder, steps in run.steps.items():
            if f"--workdir={folder}" in line and _newest(folder) < steps:
                sys.exit(f"{folder}: stopped early; run the same command to resume the study")
    _record(run, (time.monotonic() - begin) / jobs / 60)


def result(run):
    """Returns a run's saved results, or None if the settings or checkpoints have changed."""
    saved = _read(os.path.join(run.folder, "study.json"))
    same = saved.get("settings") == run.settings
    return saved if same and saved["checkpoints"] == [*map(_newest, run.steps)] else None


def _record(run, minutes):
    """Saves a run's results in study.json with its settings, checkpoints and machine's minutes."""
    saved = {"settings": run.settings, "checkpoints": [*map(_newest, run.steps)]}
    saved["minutes"] = round(minutes, 2)
    for name, (path, key) in run.results.items():
        saved[name] = _read(path) if key is None else _read(path)[key]
    path = os.path.join(run.folder, "study.json")
    paths.write(path, json.dumps(saved, indent=1, allow_nan=False))


class _Processes:
    """Runs commands, in several threads if asked, and forwards SIGTERM to all of them."""

    def __enter__(self):
        self._running, self._stopped = [], False
        self._before = signal.signal(signal.SIGTERM, self.stop)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._before)

    def stop(self, *_):
        """Stops the running commands and starts no more."""
        self._stopped = True
        for process in list(self._running):  # threads remove those that end
            process.terminate()

    def call(self, line, log=None):
        """Runs a command; exits if it was stopped or failed.

        Args:
          line: list.
          log: path of the file to append its output to; None for the terminal.
        """
        if self._stopped:
            sys.exit(_STOPPED)
        if log:
            os.makedirs(os.path.dirname(log), exist_ok=True)
        with open(log, "a", encoding="utf-8") if log else contextlib.nullcontext() as file:
            print(f"\n$ {_shown(line)}", file=file, flush=True)
            # It inherits the lock.
            process = subprocess.Popen(line, close_fds=False, stdout=file, stderr=file)
            self._running.append(process)
            if self._stopped:  # since the check above
                process.terminate()
            code = process.wait()
            self._running.remove(process)
        if self._stopped or code:
            hint = f"; see {log}" if log else ""
            sys.exit(_STOPPED if self._stopped else f"failed with exit code {code}{hint}")


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

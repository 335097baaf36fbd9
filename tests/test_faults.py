"""What can happen to a run of two processes, and that it loses nothing: pytest -m faults.

Every run here ends up with the log and the parameters of one that nothing happened to, bit for bit.
LAWM_KILLS is the number of random kills, by default 20; LAWM_FAULTS_JSON a file for their count.
"""

import itertools
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT

import lawm_jax as lawm

pytestmark = pytest.mark.faults

STEPS, EVERY = 120, 5
CONFIG = "configs/lawm.py:size=tiny,latent=noisy"
SMALL = dict(steps=STEPS, log_every=1, checkpoint_every=EVERY, seed=0)
SMALL |= {"data.size": 32, "encoder.merge": 1, "predictor.depth": 1, "inverse.depth": 1}
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
DEADLINE = 120  # seconds in which all have to notice that one is gone


class Job:
    """Two processes of one run, or `count` of them, on this machine."""

    def __init__(self, workdir, fault=None, count=2, alone=False, limit=None, **options):
        """Starts it; `alone`, without the launcher, which ends all when one ends."""
        self.workdir, self.output = workdir, workdir.parent / f"{workdir.name}.{time.monotonic()}"
        flags = [f"--config.{key}={value}" for key, value in (SMALL | options).items()]
        module = ["tests/faulty.py", fault] if fault else ["-m", "lawm_jax.train"]
        command = [sys.executable, *module, f"--config={CONFIG}", *flags, f"--workdir={workdir}"]
        given = dict(cwd=ROOT, stderr=subprocess.STDOUT, start_new_session=True)
        if limit:
            given["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        self.at = self.last
        with open(self.output, "w") as file:
            if not alone:
                launch = ["bash", "launch/local_processes.sh", str(count), "--"]
                self.all = [
                    subprocess.Popen(launch + command, env=ENVIRONMENT, stdout=file, **given)
                ]
                return
            port = str(random.Random().randrange(20_000, 30_000))
            group = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_CPU_DEVICES": "1"}
            group["JAX_NUM_PROCESSES"] = str(count)
            self.all = [
                subprocess.Popen(
                    command,
                    env=ENVIRONMENT | group | {"JAX_PROCESS_ID": str(i)},
                    stdout=file,
                    **given,
                )
                for i in range(count)
            ]

    @property
    def last(self):
        """The last step that is logged, or 0."""
        path = self.workdir / "metrics.jsonl"
        steps = re.findall(r'"step": (\d+)', path.read_text()) if path.exists() else []
        return int(steps[-1]) if steps else 0

    def wait_for(self, steps, timeout=300):
        """Waits until that many steps were taken, or the job has ended."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and not self.ended() and self.last < self.at + steps:
            time.sleep(0.02)

    def ended(self):
        return all(process.poll() is not None for process in self.all)

    def pids(self):
        """Returns the process ids of the trainers, in order of their numbers."""
        if len(self.all) > 1:
            return [process.pid for process in self.all]
        found = {}
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                line = (path / "cmdline").read_bytes().decode().split("\0")
                environ = dict(
                    x.split("=", 1) for x in (path / "environ").read_text().split("\0") if "=" in x
                )
            except (OSError, UnicodeDecodeError):
                continue
            if f"--workdir={self.workdir}" in line and "python" in line[0] and path.name.isdigit():
                found[int(environ.get("JAX_PROCESS_ID", 0))] = int(path.name)
        return [found[i] for i in sorted(found)]

    def kill(self, which, number=signal.SIGKILL):
        """Sends a signal to the processes of these numbers."""
        pids = self.pids()
        for i in which:
            if i < len(pids):
                os.kill(pids[i], number)

    def wait(self, timeout=DEADLINE):
        """Waits for the end: the exit codes. It is an error that it does not end."""
        try:
            return [process.wait(timeout) for process in self.all]
        except subprocess.TimeoutExpired:
            text = self.text
            for process in self.all:
                os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"it hangs:\n{text[-3000:]}")

    @property
    def text(self):
        return self.output.read_text()


def log(workdir):
    """Reads metrics.jsonl: step -> metrics, without the speed."""
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("clips_per_s", None)
    steps = [row.pop("step") for row in rows]
    assert steps == sorted(set(steps))
    return dict(zip(steps, rows, strict=True))


def newest(workdir):
    """Returns the step of the newest checkpoint."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return max(int(name) for name in names if name.isdigit())


def finish(workdir, **options):
    """Runs what is left of a run."""
    job = Job(workdir, **options)
    assert job.wait(600) == [0], job.text


def begin(workdir, steps, **options):
    """Starts a run and kills it after so many steps, or a few more, and a checkpoint."""
    job = Job(workdir, **options)
    job.wait_for(steps)
    job.kill([0, 1])
    assert job.wait() != [0], job.text


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Returns the folder of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    finish(folder)
    return folder


def assert_same(workdir, expected):
    assert log(workdir) == log(expected)
    (_, got), (_, wanted) = (lawm.load(path) for path in (workdir, expected))
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_random_kills_change_nothing(straight, tmp_path):
    kills = int(os.environ.get("LAWM_KILLS", "20"))
    rng, runs, moments, begin = random.Random(0), 0, {}, time.monotonic()
    for run in itertools.count():
        workdir, done = tmp_path / f"run{run}", False
        while not done and sum(moments.values()) < kills:
            job = Job(workdir)
            starting = rng.random() < 0.1  # before it takes a step
            if not starting:
                job.wait_for(1)
            time.sleep(rng.uniform(0, 8 if starting else 2))
            if done := job.ended():
                assert job.wait() == [0], job.text
                continue
            # Before the kill: what a save leaves that is not done has no final name yet.
            saving = any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))
            who = rng.choice([(0,), (1,), (0, 1)])
            job.kill(who)
            code = job.wait()
            assert code != [0] or job.last == STEPS, job.text
            moment = "starting" if starting else "saving" if saving else "training"
            name = f"{moment}, {'both' if len(who) == 2 else f'process {who[0]}'}"
            moments[name] = moments.get(name, 0) + 1
        if not done:
            finish(workdir)
        assert_same(workdir, straight)
        runs += 1
        shutil.rmtree(workdir)
        if sum(moments.values()) >= kills:
            break
    found = {"kills": kills, "seed": 0, "runs": runs, "divergences": 0, "moments": moments}
    found |= {"steps": STEPS, "checkpoint_every": EVERY, "seconds": round(time.monotonic() - begin)}
    print(json.dumps(found))
    if path := os.environ.get("LAWM_FAULTS_JSON"):
        pathlib.Path(path).write_text(json.dumps(found, indent=1))


@pytest.mark.parametrize("who", [0, 1])
def test_a_dead_peer_ends_the_other_in_time_without_a_launcher_too(who, straight, tmp_path):
    job = Job(tmp_path / "run", alone=True)
    job.wait_for(7)
    job.kill([who])
    codes = job.wait()  # fails where it hangs
    assert codes[who] == -signal.SIGKILL and codes[1 - who] != 0, job.text
    finish(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize("who", [0, 1])
def test_a_preempted_process_makes_all_save_and_stop(who, straight, tmp_path):
    job = Job(tmp_path / "run", alone=True, checkpoint_every=100_000)
    job.wait_for(7)
    job.kill([who], signal.SIGTERM)
    assert job.wait() == [128 + signal.SIGTERM] * 2, job.text
    assert newest(tmp_path / "run") == job.last >= 7
    finish(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


def test_a_full_disk_ends_the_run_with_an_error_and_the_last_state_kept(straight, tmp_path):
    begin(tmp_path / "run", 20)
    job = Job(tmp_path / "run", limit=2**14)  # no file may grow beyond it
    assert job.wait(300) != [0], job.text
    assert re.search(r"File too large|No space left|EFBIG", job.text), job.text[-3000:]
    finish(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize("damage", ["cut", "half deleted"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, straight, tmp_path):
    begin(tmp_path / "run", 30)
    folder = tmp_path / "run" / "checkpoints"
    step = newest(tmp_path / "run")
    files = sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())
    for path in files if damage == "cut" else files[::2]:
        if damage == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()
    job = Job(tmp_path / "run")
    assert job.wait(300) == [0], job.text
    assert f"can't read step {step}" in job.text
    assert_same(tmp_path / "run", straight)


def test_a_run_continues_in_one_process_on_another_mesh_and_in_two(straight, tmp_path, monkeypatch):
    begin(tmp_path / "run", 20)
    monkeypatch.setitem(ENVIRONMENT, "JAX_NUM_CPU_DEVICES", "2")
    begin(tmp_path / "run", 20, count=1)  # as many devices
    same = newest(tmp_path / "run") + 1
    begin(tmp_path / "run", 20, **{"mesh.data": 2, "mesh.fsdp": 2})  # 4 devices
    monkeypatch.delitem(ENVIRONMENT, "JAX_NUM_CPU_DEVICES")
    finish(tmp_path / "run")
    got, expected = log(tmp_path / "run"), log(straight)
    assert {step: got[step] for step in range(1, same)} == {s: expected[s] for s in range(1, same)}
    for step, row in expected.items():  # sums of four parts round differently
        assert got[step]["loss"] == pytest.approx(row["loss"], rel=1e-3)


@pytest.mark.parametrize("fault", ["clock", "stall"])
def test_a_clock_that_jumps_and_a_slow_peer_change_nothing(fault, straight, tmp_path):
    finish(tmp_path / "run", fault=fault)
    assert_same(tmp_path / "run", straight)


def test_a_number_that_is_not_finite_ends_all_and_the_last_state_is_kept(straight, tmp_path):
    job = Job(tmp_path / "run", "nan")
    assert job.wait() != [0], job.text
    assert re.search(r"FloatingPointError: step 12: .*checkpoint of step 10", job.text)
    finish(tmp_path / "run")
    assert_same(tmp_path / "run", straight)

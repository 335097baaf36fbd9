"""A run's folder in a bucket: nothing is lost there, and all commands read and write it.

The bucket is emulated (tests/gcs.py): pip install gcsfs gcp-storage-emulator.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT, run_module

import lawm_jax as lawm
from lawm_jax.data import frames, paths, reader
from lawm_jax.train import checkpoints, exported, lines, loop, rundir

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # the emulator has one kind
pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

NAME = "size=tiny,latent=noisy"
STEPS, EVERY = 12, 5


@pytest.fixture(scope="module", autouse=True)
def bucket():
    """Starts the emulator, and has all libraries and subprocesses use it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "gcs.py"), str(port)]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://127.0.0.1:{port}")
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        yield
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def options(videos):
    """What the config of these runs changes."""
    options = {"steps": STEPS, "log_every": 1, "checkpoint_every": EVERY, "data.videos": videos}
    return options | {"data.size": 32, "encoder.merge": 1, "data.batch": 8}


@pytest.fixture(scope="module")
def config(get_config, options):
    config = get_config(NAME)
    config.update_from_flattened_dict(options)
    return config


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory, one_device):
    """An uninterrupted run in a local folder: its log and parameters."""
    workdir = str(tmp_path_factory.mktemp("straight") / "run")
    _, params = loop.fit(config, workdir)
    return log(workdir), jax.device_get(params)


@pytest.fixture(scope="module")
def killed(config, options, straight):
    """A run in the bucket that was killed after step 6 and continued: URL, log, and parameters."""
    workdir = "gs://bucket/runs/killed"
    process = start(options, workdir)
    wait_for(process, workdir, EVERY + 1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    _, params = loop.fit(config, workdir)
    return workdir, log(workdir), jax.device_get(params)


def start(options, workdir, *before):
    """Starts the command line, in which lines are uploaded every 0.1 s."""
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    flags += [f"--config=configs/lawm.py:{NAME}", f"--workdir={workdir}"]
    code = "import sys; from lawm_jax.train import __main__, command, lines; lines.PERIOD = 0.1; "
    code += "sys.argv[0] = __main__.__file__; command.run(__main__.main, resumes=True)"
    command = [*before, sys.executable, "-c", code, flags[-2], *flags[:-2], flags[-1]]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(process, workdir, step):
    """Waits until the log in the bucket holds a step."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        if max(log(workdir), default=0) >= step:
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate()[0].decode())


def log(workdir):
    """Reads metrics.jsonl, without the speed: {step: metrics}."""
    path = rundir.metrics(workdir)
    content = rundir.read_lines(path) if paths.exists(path) else b""
    rows = [json.loads(row) for row in content.splitlines()]
    steps = [row.pop("step") for row in rows]
    assert steps == sorted(set(steps))
    return dict(zip(steps, [row | {"clips_per_s": 0} for row in rows], strict=True))


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)


def damage(url, step):
    """Cuts every file of a checkpoint's parameters to half its length."""
    import fsspec

    bucket = fsspec.filesystem("gs", skip_instance_cache=True)
    for path in bucket.find(f"{rundir.checkpoints(url)}/{step}/params"):
        content = bucket.cat_file(path)
        bucket.pipe_file(path, content[: len(content) // 2])


def test_a_killed_run_continues_bit_for_bit_in_a_bucket(killed, straight):
    _, found, params = killed
    assert found == straight[0] and list(found) == [*range(1, STEPS + 1)]
    assert_same(params, straight[1])


def test_the_layout_is_that_of_a_local_folder_with_parts_of_the_log(killed):
    workdir = killed[0]
    names = {"checkpoints", "config.json", "metrics.jsonl", "tensorboard"}
    assert set(paths.names(workdir)) == names
    assert set(paths.names(rundir.checkpoints(workdir))) == {"5", "10", "12"}
    parts = paths.names(rundir.metrics(workdir))
    assert parts == [f"{i:08}.jsonl" for i in range(len(parts))] and len(parts) == 2


def test_a_model_loads_from_a_bucket(killed):
    workdir, _, params = killed
    assert_same(lawm.load(workdir)[1], params)
    assert checkpoints.newest(f"{workdir}/") == STEPS


def test_a_damaged_checkpoint_is_computed_again_and_replaced(killed, config, straight):
    workdir = killed[0]
    damage(workdir, STEPS)
    with pytest.warns(UserWarning, match=f"can't read step {STEPS}"):
        _, params = loop.fit(config, workdir)
    assert_same(params, straight[1])
    assert log(workdir) == straight[0]
    assert set(paths.names(rundir.checkpoints(workdir))) == {"5", "10", "12"}
    store = checkpoints.Checkpoints(workdir, write=False)
    assert store.shapes(STEPS)
    store.close()


@pytest.mark.parametrize("error", [ValueError("UNAVAILABLE: no route"), ConnectionError("reset")])
def test_a_lost_network_is_no_damage(killed, error, monkeypatch):
    def fail(*args, **options):
        raise error

    store = checkpoints.Checkpoints(killed[0])
    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
    with pytest.raises(type(error)):
        store.restore({"params": {}})
    assert store.damaged == set()
    store.close()


def steps(folder):
    return [json.loads(row)["step"] for row in rundir.read_lines(folder).splitlines()]


def write(parts, *numbers):
    for number in numbers:
        parts.write(json.dumps({"step": number}) + "\n")


def test_a_log_in_parts_keeps_only_the_lines_up_to_the_step_it_continues_after(monkeypatch):
    monkeypatch.setattr(lines, "PART", 30)  # two lines
    folder = "gs://bucket/log/metrics.jsonl"
    for begin, added, expected in [
        (0, (1, 2, 3), [1, 2, 3]),
        (2, (4, 6, 7, 8, 9), [1, 2, 4, 6, 7, 8, 9]),
        (5, (), [1, 2, 4]),
        (0, (1,), [1]),
    ]:
        parts = lines.open_steps(folder, begin)
        for number in added:
            write(parts, number)
            parts.flush()
        parts.close()
        assert steps(folder) == expected
    assert len(paths.names(folder)) == 1


def test_a_line_is_uploaded_soon_and_each_line_once(monkeypatch):
    monkeypatch.setattr(lines, "PERIOD", 0.02)
    monkeypatch.setattr(lines, "PART", 100)
    folder = "gs://bucket/soon/metrics.jsonl"
    parts = lines.open_steps(folder, 0)
    for number in range(1, 100):
        write(parts, number)
        time.sleep(0.002)
    end = time.monotonic() + 20
    while len(parts.lines) > parts.uploaded and time.monotonic() < end:
        time.sleep(0.01)
    assert steps(folder) == [*range(1, 100)]  # before it is closed
    parts.close()
    assert steps(folder) == [*range(1, 100)] and len(paths.names(folder)) > 1
    assert lines.PERIOD < 60


def test_lines_that_cannot_be_uploaded_are_kept_and_tried_again(monkeypatch):
    monkeypatch.setattr(lines, "PERIOD", 0.02)
    folder, upload, failing = "gs://bucket/lost/metrics.jsonl", paths.write, [True]

    def fail(path, content):
        if failing:
            raise ConnectionError("reset")
        upload(path, content)

    monkeypatch.setattr(paths, "write", fail)
    parts = lines.open_steps(folder, 0)
    write(parts, 1)
    with pytest.raises(OSError, match="metrics.jsonl/00000000.jsonl: can't be written"):
        parts.flush()
    failing.clear()
    write(parts, 2)
    parts.close()
    assert steps(folder) == [1, 2]


def test_an_unreadable_file_is_reported_once_by_all_processes():
    path = "gs://bucket/broken/skipped.jsonl"
    for _ in range(2):  # as in two processes
        failures = reader.Failures(path)
        for name in ("a.mp4", "b.mp4"):
            failures.add("videos", frames.UnreadableVideo(name, "broken"))
    rows = [json.loads(row) for row in rundir.read_lines(path).splitlines()]
    expected = [{"source": "videos", "path": x, "reason": "broken"} for x in ("a.mp4", "b.mp4")]
    assert sorted(rows, key=lambda row: row["path"]) == expected


def test_what_others_write_is_seen_at_once():
    assert paths.names("gs://bucket/seen") == []
    code = "from lawm_jax.data import paths; paths.write('gs://bucket/seen/a/b.txt', 'text')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert paths.names("gs://bucket/seen") == ["a"] and paths.is_dir("gs://bucket/seen/a")
    assert paths.exists("gs://bucket/seen/a/b.txt") and not paths.exists("gs://bucket/seen/a/b")
    with paths.local_copy("gs://bucket/seen/a/b.txt") as copy:
        assert open(copy).read() == "text"
    assert not os.path.exists(copy)


def test_a_bucket_that_does_not_exist_is_an_error_in_one_line(options):
    with pytest.raises(OSError, match="workdir: expected a bucket.*gs://none: it does not exist"):
        rundir.folder("gs://none/run")
    with pytest.raises(FileNotFoundError, match="gs://bucket/none: not found; expected a run's"):
        exported.find("gs://bucket/none")
    for name in ("report", "evaluate"):
        where = ["gs://bucket/none"] if name == "report" else ["--workdir=gs://bucket/none"]
        run = run_module(name, *where)
        assert run.returncode == 1 and "gs://bucket/none" in run.stderr.splitlines()[-1]
        assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_all_commands_read_and_write_a_run_in_a_bucket(killed):
    workdir = killed[0]
    parts = "--only=prediction", "--only=sampling", "--only=pictures"
    run = run_module("evaluate", f"--workdir={workdir}", *parts)
    assert run.returncode == 0, run.stderr
    assert f"{workdir}/report" in run.stdout
    run = run_module("report", workdir)
    assert run.returncode == 0, run.stderr
    page = paths.at(f"{rundir.report(workdir)}/page.html").read_text()
    assert page.count("data:image/png") > 2 and "No run has" not in page
    found = json.loads(paths.at(rundir.evaluation(workdir, "about")).read_text())
    assert found["step"] == STEPS
    lawm.save_pretrained("gs://bucket/shared", workdir)
    expected, got = lawm.load(workdir, prior=True), lawm.load("gs://bucket/shared", prior=True)
    assert got[0] == expected[0] and "prior" in got[1]
    assert_same(got[1], jax.device_get(expected[1]))


@pytest.mark.faults
def test_random_kills_change_nothing_in_a_bucket(config, options, straight):
    kills, rng = int(os.environ.get("LAWM_KILLS", "20")), random.Random(0)
    begin = time.monotonic()
    whole = start(options, "gs://bucket/runs/whole")
    assert whole.communicate()[1] is None and whole.returncode == 0
    takes, done, finished = time.monotonic() - begin, 0, 0
    while done < kills:
        workdir, left = f"gs://bucket/runs/random{finished}", 3
        while left and done < kills:
            process = start(options, workdir)
            time.sleep(rng.uniform(0.3, 1.1) * takes)
            process.kill()
            if process.wait() == 0:
                break
            left, done = left - 1, done + 1
        _, params = loop.fit(config, workdir)
        assert_same((log(workdir), jax.device_get(params)), straight)
        finished += 1
    print(f"{kills} kills of {finished} runs, 0 divergences, {time.monotonic() - begin:.0f} s")


@pytest.mark.slow
def test_two_processes_killed_together_continue_as_one_that_was_not(options, tmp_path, monkeypatch):
    workdir, launch = "gs://bucket/runs/two", ["bash", "launch/local_processes.sh", "2", "--"]
    small = options | {"steps": 8, "checkpoint_every": 4}
    both = start(small, workdir, "setsid", *launch)
    with monkeypatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "2")
        alone = start(small, tmp_path / "alone")
    wait_for(both, workdir, 5)
    os.killpg(both.pid, signal.SIGKILL)
    both.wait()
    both = start(small, workdir, *launch)
    out = both.communicate(timeout=300)[0].decode()
    assert both.returncode == 0, out
    assert "resuming after step 4" in out
    assert alone.wait() == 0
    assert log(workdir) == log(tmp_path / "alone")

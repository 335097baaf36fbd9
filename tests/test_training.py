"""A whole run: its log, and that it continues bit for bit whatever interrupted it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT

import lawm_jax as lawm
from lawm_jax.nn import pretrained
from lawm_jax.train import logs, loop, rundir, sharding

NAME = "size=tiny,latent=discrete,strength=8"
STEPS, EVERY = 30, 5
WORK = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/backend_compile_duration")


@pytest.fixture(scope="module")
def options(videos):
    """What the config of these runs changes."""
    return {
        "steps": STEPS,
        "log_every": 1,
        "checkpoint_every": EVERY,
        "data.videos": videos,
        "data.size": 32,
        "encoder.merge": 1,
        "latent.reset_after": 100,
    }


@pytest.fixture(scope="module")
def config(get_config, options):
    """Returns a function that makes the config, with more changes."""

    def make(name=NAME, **more):
        c = get_config(name)
        c.update_from_flattened_dict(options | more)
        return c

    return make


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory, one_device):
    """An uninterrupted run: folder, result, and traces and compilations before and in each step."""
    workdir, compiled, events = tmp_path_factory.mktemp("straight") / "run", [], []

    class Run(loop.Run):
        @contextlib.contextmanager
        def compiling(self):
            with super().compiling():
                yield
            compiled.append(len(events))
            inner = self.step

            def step(*args):
                before = len(events)
                out = inner(*args)
                compiled.append(len(events) - before)
                return out

            self.step = step

    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **kw: events.append(name) if name in WORK else None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Run", Run)
        model, params = loop.fit(config(), str(workdir))
    return dict(workdir=workdir, model=model, params=jax.device_get(params), compiled=compiled)


def rewind(straight, workdir, step):
    """Copies the run as it was at `step`, but for lines of later steps in metrics.jsonl."""
    shutil.copytree(straight["workdir"], workdir)
    for folder in (workdir / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    return workdir


def lines(workdir):
    """Reads metrics.jsonl, without the speed: {step: metrics}."""
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [row.pop("step") for row in rows]
    assert steps == sorted(set(steps))
    for row in rows:
        row.pop("clips_per_s", None)
    return dict(zip(steps, rows, strict=True))


def assert_equals(straight, workdir, params):
    """Checks that a run has the log and the parameters of the uninterrupted one, bit for bit."""
    assert lines(workdir) == lines(straight["workdir"])
    assert np.ptp([row["loss"] for row in lines(workdir).values()]) > 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), straight["params"])


def damage(workdir, step):
    """Cuts every file of a checkpoint to half its length, as a full disk may."""
    for path in (workdir / "checkpoints" / str(step)).rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def start(options, workdir, output):
    """Starts the command line in another process."""
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    command = [sys.executable, "-m", "lawm_jax.train", f"--config=configs/lawm.py:{NAME}", *flags]
    with open(output, "w") as file:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )


def wait_for(process, workdir, step, output):
    """Waits until the log holds a step."""
    path, end = workdir / "metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, output.read_text()
        rows = path.read_text().splitlines() if path.exists() else []
        if rows and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.005)
    raise AssertionError(output.read_text())


def test_each_logged_step_is_one_json_object(straight):
    rows = (straight["workdir"] / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    names = {"step", "loss", "error", "cost", "copy", "grad_norm", "update_norm", "codes", "lr"}
    for i, row in enumerate(rows):
        assert names | ({"clips_per_s"} if i else set()) <= set(row)
        assert row["loss"] == pytest.approx(row["error"] + row["cost"], rel=1e-5)
        assert 1 <= row["codes"] <= 8 and row["error"] > 0 and row["grad_norm"] > 0
        warm = 3  # steps, 10 % of 30
        cosine = 0.01 + 0.99 * (1 + np.cos(np.pi * (i - warm) / (STEPS - warm))) / 2
        assert row["lr"] == pytest.approx(2e-3 * (i / warm if i < warm else cosine), rel=1e-4)


def test_a_code_counts_as_unused_after_half_the_time_to_its_reset(straight):
    codes = [row["codes"] for row in lines(straight["workdir"]).values()]
    assert codes[:2] == [8, 8]  # 24 latents a step, and the reset is at 100
    assert min(codes[2:5]) < 8 and max(codes[5:]) > min(codes)


def test_nothing_is_compiled_in_any_step(straight):
    before, *steps = straight["compiled"]
    assert before >= 2  # a trace and a compilation: the events are seen
    assert steps == [0] * STEPS


def test_the_same_command_says_that_the_run_is_done(straight, config, capsys):
    _, params = loop.fit(config(), str(straight["workdir"]))
    assert f"all {STEPS} steps are already done" in capsys.readouterr().out
    assert_equals(straight, straight["workdir"], params)


def test_another_config_in_the_same_folder_is_an_error(straight, config, tmp_path):
    with pytest.raises(
        ValueError,
        match="got other values: data.fps was 4.0, is 2.0, latent.strength was 8.0, is 9.0$",
    ):
        loop.fit(config(NAME[:-1] + "9", **{"data.fps": 2.0}), str(straight["workdir"]))
    workdir = rewind(straight, tmp_path / "run", STEPS)
    loop.fit(config(log_every=3), str(workdir))  # may change


def test_a_run_of_networks_with_an_option_that_went_is_loaded_and_continued(
    straight, config, tmp_path
):
    workdir = rewind(straight, tmp_path / "run", 25)
    old = json.loads((workdir / "config.json").read_text())
    for section in ("predictor", "inverse"):
        old[section]["unroll"] = 1
    del old["objective"]  # runs had none
    (workdir / "config.json").write_text(json.dumps(old))
    model, _ = lawm.load(workdir)
    assert model == straight["model"]
    _, params = loop.fit(config(), str(workdir))
    assert_equals(straight, workdir, params)


def test_a_url_that_can_hold_no_run_is_an_error_instead_of_a_folder_of_that_name(
    config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="workdir: expected a local folder.*got 's3://bucket/run'"):
        loop.fit(config(), "s3://bucket/run")
    for name in ("gs://bucket/lr[1]", "gs://bucket/ü", "gs://bucket", "gs://bucket/a#b"):
        with pytest.raises(ValueError, match="expected gs://BUCKET/FOLDER of ASCII.*got 'gs://"):
            loop.fit(config(), name)
    assert list(tmp_path.iterdir()) == []


def test_a_run_continues_bit_for_bit_and_drops_what_it_logged_after_its_checkpoint(
    straight, config, tmp_path, capsys
):
    workdir = rewind(straight, tmp_path / "run", 20)
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 31, "lo')  # as a killed process may leave it
    _, params = loop.fit(config(), str(workdir))
    assert "resuming after step 20" in capsys.readouterr().out
    assert_equals(straight, workdir, params)


def test_a_log_keeps_only_the_lines_up_to_the_step_it_continues_after(tmp_path):
    metrics = {"loss": 2.0, "error": 1.0, "copy": 2.0}
    path = tmp_path / "metrics.jsonl"
    for begin, steps, expected in [
        (0, (1, 2, 3), [1, 2, 3]),
        (2, (4, 6), [1, 2, 4, 6]),
        (5, (), [1, 2, 4]),
        (0, (1,), [1]),
    ]:
        log = logs.Log(str(tmp_path), 10, 8, begin)
        for step in steps:
            log.step(step, metrics)
        log.close()
        assert [json.loads(row)["step"] for row in path.read_text().splitlines()] == expected


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 12])
def test_a_killed_run_equals_one_that_was_not(straight, config, options, tmp_path, step):
    # Before the first checkpoint, or two steps after one.
    workdir, output = tmp_path / "run", tmp_path / "output"
    process = start(options, workdir, output)
    wait_for(process, workdir, step, output)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    _, params = loop.fit(config(), str(workdir))
    assert_equals(straight, workdir, params)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_saves_says_so_by_its_status_and_continues(
    straight, config, options, tmp_path, number
):
    workdir, output = tmp_path / "run", tmp_path / "output"
    process = start(options, workdir, output)
    wait_for(process, workdir, 6, output)
    process.send_signal(number)
    assert process.wait(120) == 128 + number, output.read_text()  # not done: start it again
    assert ("Ctrl-C again stops at once" in output.read_text()) == (number == signal.SIGINT)
    assert "on request; run the same command to resume" in output.read_text()
    saved = max(int(folder.name) for folder in (workdir / "checkpoints").iterdir())
    assert 6 <= saved < STEPS and max(lines(workdir)) == saved
    _, params = loop.fit(config(), str(workdir))
    assert_equals(straight, workdir, params)


def test_two_processes_do_not_train_in_one_folder(config, tmp_path):
    hold = f"""
from lawm_jax.train import rundir
with rundir.claimed({str(tmp_path)!r}):
    print("claimed", flush=True)
    input()
"""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other = subprocess.Popen([sys.executable, "-c", hold], cwd=ROOT, **pipes)
    assert other.stdout.readline() == "claimed\n"
    with pytest.raises(ValueError, match="another process is training there"):
        loop.fit(config(), str(tmp_path))
    assert not any(tmp_path.iterdir())
    other.kill()
    other.wait()
    with rundir.claimed(str(tmp_path)):  # free again
        pass


def test_a_run_that_cannot_begin_claims_no_folder(config, tmp_path):
    wrong = config(**{"data.videos": str(tmp_path / "typo")})
    with pytest.raises(ValueError, match="no such file or folder: .*typo"):
        loop.fit(wrong, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_nan_stops_the_run_with_the_last_good_state_kept(straight, config, tmp_path, monkeypatch):
    when = 25  # a step that saves
    workdir, make = rewind(straight, tmp_path / "run", 20), optax.warmup_cosine_decay_schedule

    def faulty(*args):
        """Makes a schedule that spoils the update of one step, whose loss is still good."""
        schedule = make(*args)
        return lambda step: jnp.where(step == when - 1, jnp.nan, schedule(step))

    with monkeypatch.context() as patch:
        patch.setattr(optax, "warmup_cosine_decay_schedule", faulty)
        with pytest.raises(FloatingPointError, match=f"step {when}: .*that of step 20"):
            loop.fit(config(), str(workdir))
    assert [folder.name for folder in (workdir / "checkpoints").iterdir()] == ["20"]
    assert max(lines(workdir)) == when - 1
    _, params = lawm.load(workdir)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    _, params = loop.fit(config(), str(workdir))
    assert_equals(straight, workdir, params)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_continues(straight, config, tmp_path):
    workdir = rewind(straight, tmp_path / "run", 25)
    damage(workdir, 25)
    with pytest.warns(UserWarning, match="can't read step 25"):
        _, params = loop.fit(config(), str(workdir))
    assert (workdir / "checkpoints" / "25.damaged").exists()
    assert_equals(straight, workdir, params)


def test_a_damaged_last_checkpoint_is_computed_again(straight, config, tmp_path):
    workdir = rewind(straight, tmp_path / "run", STEPS)
    damage(workdir, STEPS)
    with pytest.warns(UserWarning, match=f"can't read step {STEPS}"):
        _, params = loop.fit(config(), str(workdir))
    assert_equals(straight, workdir, params)


def test_a_run_without_a_readable_checkpoint_is_an_error(straight, config, tmp_path):
    workdir = rewind(straight, tmp_path / "run", 20)
    damage(workdir, 20)
    with (
        pytest.warns(UserWarning, match="can't read step 20"),
        pytest.raises(ValueError, match="no checkpoint can be read: step 20"),
    ):
        loop.fit(config(), str(workdir))


def test_loading_gives_the_model_and_parameters_of_a_step(straight):
    model, params = lawm.load(straight["workdir"])
    assert model == straight["model"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), straight["params"])
    _, before = lawm.load(straight["workdir"], step=20)
    assert (before["latent"]["codebook"] != params["latent"]["codebook"]).any()


def test_loading_falls_back_from_a_damaged_checkpoint(straight, tmp_path):
    workdir = rewind(straight, tmp_path / "run", STEPS)
    damage(workdir, STEPS)
    with pytest.warns(UserWarning, match=f"can't read step {STEPS}"):
        _, params = lawm.load(workdir)
    _, expected = lawm.load(straight["workdir"], step=25)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert (workdir / "checkpoints" / "30").exists()  # to set it aside is up to the run


def test_loading_leaves_a_checkpoint_alone_that_is_being_written(straight, tmp_path):
    workdir = rewind(straight, tmp_path / "run", 25)
    unfinished = workdir / "checkpoints" / "30"
    shutil.copytree(workdir / "checkpoints" / "25", unfinished)
    for mark in unfinished.rglob("commit_success.txt"):
        mark.unlink()
    before = sorted(unfinished.rglob("*"))
    _, params = lawm.load(workdir)
    _, expected = lawm.load(straight["workdir"], step=25)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert sorted(unfinished.rglob("*")) == before


def test_loading_where_there_is_no_run_is_an_error_and_makes_nothing(straight, tmp_path):
    with pytest.raises(FileNotFoundError, match="not found; expected a run.s folder, nano, or"):
        lawm.load(tmp_path / "nowhere")
    shutil.copy(straight["workdir"] / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint found"):
        lawm.load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_saved_model_loads_as_it_was_without_the_public_weights(straight, tmp_path, monkeypatch):
    lawm.save(tmp_path / "copy", straight["model"], straight["params"])
    with monkeypatch.context() as patch:
        patch.delattr(pretrained, "load_encoder")
        model, params = lawm.load(tmp_path / "copy")
    assert model == straight["model"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), straight["params"])
    with pytest.raises(ValueError, match="expected no checkpoints, got step 0"):
        lawm.save(tmp_path / "copy", model, params)


def test_parameters_load_onto_another_mesh(straight, devices, monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 64)
    mesh = lawm.make_mesh(data=2, fsdp=4, devices=devices)
    _, params = lawm.load(straight["workdir"], mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), straight["params"])
    kernel = params["predictor"]["stack"]["blocks"]["fc1"]["kernel"]  # [2, 32, 128]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 32, 32)}


def test_a_run_continues_on_another_mesh(straight, config, devices, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: devices)
    workdir = rewind(straight, tmp_path / "run", 25)
    loop.fit(config(**{"mesh.data": 2, "mesh.fsdp": 4}), str(workdir))
    got, expected = lines(workdir), lines(straight["workdir"])
    assert got.keys() == expected.keys()
    for step, row in expected.items():
        assert got[step]["loss"] == pytest.approx(row["loss"], rel=1e-4)

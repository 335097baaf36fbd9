"""Checkpoints: which folders hold them, that they are read again, and that processes agree."""

import json
import os
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

import lawm_jax as lawm
from lawm_jax.data import metadata
from lawm_jax.train import checkpoints, loop, objectives, resume, rundir

STATE = {"params": {"net": {"w": jnp.arange(6.0), "b": jnp.ones(2)}}, "step": jnp.int32(4)}
LIKE = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), jax.device_put(STATE)
)
GOOD = [
    "plain",
    "a b",
    "ünï 日本",
    "100%",
    "%41",
    "{a,b}",
    "a#b",
    "quo'te\"",
    "$HOME",
    "-x",
    "a;b|c&d",
]
BAD = ["lr[0.1]", "a[b", "back\\slash", "star*", "what?", "gs:", "new\nline", "\ud800"]


@pytest.mark.parametrize("name", GOOD)
def test_a_folder_of_an_odd_name_holds_checkpoints(name, tmp_path):
    store = checkpoints.Checkpoints(tmp_path / name)
    store.save(4, STATE, wait=True)
    store.close()
    store = checkpoints.Checkpoints(tmp_path / name, write=False)
    step, found = store.restore(LIKE)
    store.close()
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, found, STATE)


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_would_lose_them_is_refused_before_anything_is_written(
    name, get_config, tmp_path
):
    for folder in (tmp_path / name, tmp_path / name / "inner"):
        with pytest.raises(ValueError, match="^workdir: expected a path without .*, got"):
            loop.fit(get_config("size=tiny"), folder)
        with pytest.raises(ValueError, match="^workdir: expected a path without"):
            lawm.save(folder, types.SimpleNamespace(text="{}"), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "parts, expected",
    [
        (["predictor", "latent"], "world_model"),
        (["predictor", "controller", "decoder"], "world_model"),
        (["inverse", "latent", "controller"], "controller"),
        (["decoder"], "decoder"),
    ],
)
def test_the_objective_of_an_older_config_is_told_by_its_networks(parts, expected):
    assert rundir.upgrade({part: {} for part in parts})["objective"] == expected


def test_an_unknown_objective_is_an_error():
    with pytest.raises(ValueError, match="objective: expected one of world_model, .*got 'magic'"):
        objectives.named({"objective": "magic"})


def test_the_current_folders_own_name_counts_too(get_config, tmp_path, monkeypatch):
    (tmp_path / "runs[1]").mkdir()
    monkeypatch.chdir(tmp_path / "runs[1]")
    with pytest.raises(ValueError, match="workdir: expected a path without"):
        loop.fit(get_config("size=tiny"), "run")


def test_a_tilde_is_the_home_folder_wherever_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert rundir.folder("~/run") == str(tmp_path / "run")
    rundir.write_config("~/run", '{"encoder": {}, "data": {}, "objective": "decoder"}')
    assert rundir.read_config("~/run")["objective"] == "decoder"
    store = checkpoints.Checkpoints("~/run")
    store.save(1, STATE, wait=True)
    store.close()
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
    assert checkpoints.newest("~/run") == 1
    assert not (tmp_path / "~").exists()


def test_the_first_checkpoint_that_cannot_be_read_again_ends_the_run(tmp_path, monkeypatch):
    store = checkpoints.Checkpoints(tmp_path / "run")
    wait = store.manager.wait_until_finished

    def lose():
        wait()
        for path in (tmp_path / "run" / "checkpoints" / "1" / "params").rglob("*"):
            if path.is_file() and path.name != "_METADATA":
                os.truncate(path, 0)

    monkeypatch.setattr(store.manager, "wait_until_finished", lose)
    with pytest.raises(OSError, match="params: was saved, but can't be read back"):
        store.save(1, STATE)


def test_only_the_first_checkpoint_is_read_again(tmp_path, monkeypatch):
    store, read = checkpoints.Checkpoints(tmp_path / "run"), []
    restore = ocp.PyTreeCheckpointHandler.restore

    def record(handler, place, **options):
        read.append(place.parts[-2:])
        return restore(handler, place, **options)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", record)
    for step in (1, 2, 3):
        store.save(step, STATE)
    store.close()
    assert read == [("1", "params")]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"data": {}}', b'{"encoder": 3, "data": {}}']
)
def test_a_damaged_config_of_a_run_names_its_path(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config.json: .*expected .*, got"):
        lawm.load(tmp_path)


def test_json_nested_too_deeply_is_damaged_too(tmp_path):
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="x.json: expected a thing as JSON, got: .*recursion"):
        metadata.load(tmp_path / "x.json", "a thing")


def test_a_damaged_prior_names_its_path(get_config, tmp_path):
    from lawm_jax.train import models

    path = tmp_path / "prior.safetensors"
    for data in (b"", b"junk" * 10):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="prior.safetensors: expected a learned prior"):
            models.with_prior(None, {}, str(tmp_path), 1, None)
    for given in (None, {"step": "1"}, {"step": "1", "prior": "["}, {"step": "1", "prior": "3"}):
        save_file({"x": np.zeros(2)}, path, given)
        with pytest.raises(ValueError, match="prior.safetensors: expected a learned prior"):
            models.with_prior(None, {}, str(tmp_path), 1, None)
    prior = json.dumps({"width": 8, "depth": 1})
    save_file({"x": np.zeros(2)}, path, {"step": "2", "prior": prior})
    with pytest.raises(ValueError, match="expected the prior of step 1, got that of step 2"):
        models.with_prior(None, {}, str(tmp_path), 1, None)


@pytest.mark.parametrize("error", [NameError("x"), RuntimeError("RESOURCE_EXHAUSTED: 9 GiB")])
def test_our_own_error_is_no_damaged_checkpoint(tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error

    store = checkpoints.Checkpoints(tmp_path / "run")
    store.save(1, STATE, wait=True)
    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
    with pytest.raises(type(error)):
        store.restore(LIKE)
    store.close()


def test_steps_that_change_are_warned_about(get_config, tmp_path):
    config = json.loads(get_config("size=tiny").to_json())
    (tmp_path / "run").mkdir()
    assert resume.check_config(str(tmp_path / "run"), config) == config
    rundir.write_config(str(tmp_path / "run"), json.dumps(config))
    (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
    with pytest.warns(UserWarning, match="is 30; from here on, the learning rate follows"):
        resume.check_config(str(tmp_path / "run"), config | {"steps": 30})


def test_a_run_keeps_the_batch_that_it_began_with_on_other_devices(get_config, tmp_path):
    config = json.loads(get_config("size=base").to_json())
    data = config["data"]
    each = data["batch_per_device"]
    stored = resume.check_config(str(tmp_path), config)
    assert stored["data"]["batch"] == each * jax.device_count()
    stored["data"]["batch"] = 1024  # as runs had it before, whose config knew neither of these
    del stored["data"]["batch_per_device"], stored["optim"]["accumulate"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    assert resume.check_config(str(tmp_path), config)["data"]["batch"] == 1024
    with pytest.raises(ValueError, match="got other values: data.batch was 1024, is 8$"):
        resume.check_config(str(tmp_path), config | {"data": data | {"batch": 8}})


def test_a_run_that_began_before_an_option_existed_continues_with_its_default(get_config, tmp_path):
    config = json.loads(get_config("size=tiny").to_json())
    before = json.loads(json.dumps(config))
    del before["predictor"]["block"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    assert resume.check_config(str(tmp_path), config) == config
    config["predictor"]["block"] = 128
    with pytest.raises(ValueError, match="got other values: predictor.block was 0, is 128$"):
        resume.check_config(str(tmp_path), config)


TWO = """
import os, sys, warnings
import jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, rank, heartbeat_timeout_seconds=20)
from lawm_jax.train import checkpoints, sharding
from jax.experimental import multihost_utils
sharding.SMALL = 4
mesh = sharding.make_mesh(data=1, fsdp=4)

compare = multihost_utils.assert_equal

def refuse(*args, **kwargs):
    raise RuntimeError("compared over processes")

multihost_utils.assert_equal = refuse
state = {"params": {"w": np.arange(16.0, dtype=np.float32).reshape(4, 4), "b": np.ones(3)}}
spread = sharding.distribute(mesh, state)
multihost_utils.assert_equal = compare  # which barriers need
w = spread["params"]["w"]
assert {s.data.shape for s in w.addressable_shards} == {(1, 4)}
for shard in w.addressable_shards:
    np.testing.assert_array_equal(shard.data, state["params"]["w"][shard.index])
store = checkpoints.Checkpoints(folder)
for step in (1, 2, 3):
    store.save(step, jax.tree.map(lambda x: x * step, spread), wait=True)
read = ocp.StandardCheckpointHandler.restore

def broken(handler, place, **options):  # one process alone can't read the newest one
    if rank == 1 and place.parts[-2] == "3":
        raise OSError("Input/output error")
    return read(handler, place, **options)

ocp.StandardCheckpointHandler.restore = broken
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), spread)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    step, found = store.restore(like)
texts = [str(w.message) for w in caught if "can't read step" in str(w.message)]
assert len(texts) == 1 and ("Input/output" in texts[0]) == (rank == 1), texts
for shard in found["params"]["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, 2 * state["params"]["w"][shard.index])
store.close()
print("step", step, sorted(os.listdir(folder + "/checkpoints")), flush=True)
"""


def test_processes_take_the_same_checkpoint_where_one_of_them_cannot_read_the_newest(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), port, str(tmp_path / "run")],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in both:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error[-3000:]
        assert out.splitlines()[-1] == "step 2 ['1', '2', '3.damaged']"

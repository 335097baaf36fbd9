"""Options of a run: averaged parameters, held-out losses, kept checkpoints, warm start, a trace."""

import itertools
import json
import os
import re
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import lawm_jax as lawm
from lawm_jax.data import pipeline
from lawm_jax.train import checkpoints, logs, loop, resume, rundir

NAME = "size=tiny,latent=noisy"
OPTIONS = {"steps": 8, "log_every": 4, "checkpoint_every": 2, "data.size": 32, "encoder.merge": 1}


@pytest.fixture(scope="module")
def config(get_config, videos):
    """Returns a function that makes the config of a short run, with more changes."""

    def make(name=NAME, **more):
        c = get_config(name)
        changes = {key.replace("__", "."): value for key, value in more.items()}
        c.update_from_flattened_dict(OPTIONS | {"data.videos": videos} | changes)
        return c

    return make


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory, one_device):
    """A run without options: its folder and its parameters."""
    workdir = tmp_path_factory.mktemp("plain") / "run"
    model, params = loop.fit(config(), str(workdir))
    return workdir, jax.device_get(params)


def lines(workdir):
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, rows)}


def params_at(workdir, step):
    return flatten_dict(jax.device_get(lawm.load(str(workdir), step=step)[1]), sep="/")


# The average of parameters


@pytest.fixture(scope="module")
def averaged(config, tmp_path_factory, one_device):
    """A run whose parameters are averaged."""
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    loop.fit(config(optim__ema=0.6, checkpoint_every=1, checkpoint_keep_period=1), str(workdir))
    return workdir


def test_the_average_of_parameters_is_what_a_checkpoint_gives_and_trains_as_without(
    averaged, plain, config, tmp_path, one_device
):
    for step, row in lines(averaged).items():
        loss = lines(plain[0])[step]["loss"]
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
    raw_dir = tmp_path / "raw"
    every = dict(checkpoint_every=1, checkpoint_keep_period=1)
    loop.fit(config(**every), str(raw_dir))
    mean = None
    for step in range(1, 9):
        raw = params_at(raw_dir, step)
        if mean is None:  # decay 0.1 in step 0, from the initial parameters
            mean = params_at(averaged, 1)
            continue
        decay = min(0.6, step / (9 + step))
        mean = {name: decay * x + (1 - decay) * raw[name] for name, x in mean.items()}
        found = params_at(averaged, step)
        for name, x in mean.items():
            np.testing.assert_allclose(found[name], x, rtol=1e-3, atol=2e-4, err_msg=name)
    assert any(np.abs(mean[name] - raw[name]).max() > 1e-3 for name in mean)


def test_a_run_with_an_average_continues_bit_for_bit(averaged, config, tmp_path, one_device):
    half = config(optim__ema=0.6, checkpoint_every=1, checkpoint_keep_period=1)
    store = checkpoints.Checkpoints(averaged, write=False)
    assert store.latest == 8
    store.close()
    work = tmp_path / "run"

    shutil.copytree(averaged, work)
    for step in range(5, 9):
        shutil.rmtree(work / "checkpoints" / str(step))
    loop.fit(half, str(work))
    for name, x in params_at(work, 8).items():
        np.testing.assert_array_equal(x, params_at(averaged, 8)[name], err_msg=name)


def test_another_decay_is_another_config(averaged, config):
    with pytest.raises(ValueError, match=r"other values: optim\.ema was"):
        loop.fit(config(), str(averaged))


def test_a_run_from_before_there_was_an_average_continues(plain, config, tmp_path, one_device):

    work = tmp_path / "run"
    shutil.copytree(plain[0], work)
    old = json.loads((work / "config.json").read_text())
    del old["optim"]["ema"], old["eval_every"], old["checkpoint_keep_period"]
    (work / "config.json").write_text(json.dumps(old))
    for step in (6, 8):
        shutil.rmtree(work / "checkpoints" / str(step))
    _, params = loop.fit(config(), str(work))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), plain[1])


# Losses on held-out clips


def test_a_held_out_loss_is_logged_and_changes_nothing_else(plain, config, tmp_path, one_device):
    work = tmp_path / "run"
    changes = dict(eval_every=3, data__holdout=0.05)
    _, params = loop.fit(config(**changes), str(work))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), plain[1])
    found = lines(work)
    assert [step for step, row in found.items() if "held_out_loss" in row] == [3, 6, 8]
    for step in (3, 6, 8):
        assert {"held_out_error", "held_out_copy"} <= found[step].keys()
    assert found[8]["held_out_copy"] == pytest.approx(found[3]["held_out_copy"])  # the same clips
    assert found[8]["held_out_loss"] != found[3]["held_out_loss"]


def test_the_held_out_loss_is_that_of_clips_that_training_does_not_see(config, tmp_path):
    flipped = config(eval_every=4, data__augment__flip=0.5)
    c = json.loads(flipped.to_json_best_effort())
    run = loop.Run.load(c)
    held_out = loop.HeldOut(run, c)
    seen, unseen = (set(pipeline.identities(flipped, "videos", x)) for x in ("train", "test"))
    assert unseen and seen.isdisjoint(unseen)
    clips = itertools.islice(pipeline.clips(config(), "test"), 8)  # as they are, not mirrored
    for batch, expected in zip(held_out.batches, clips, strict=True):
        np.testing.assert_array_equal(batch["video"], expected["video"])
    params = run.begin()["params"]
    values = []
    for number, batch in enumerate(held_out.batches):
        placed = run.place(batch)
        noise = run.objective.noise(run.model, placed, jax.random.key(number))
        inputs = run.objective.inputs(run.model, run.frozen, placed)
        values.append(run.objective.loss(run.model, params, run.frozen, inputs, noise)[0])
    found = held_out(params)["held_out_loss"]
    np.testing.assert_allclose(found, np.mean(jax.device_get(values)), rtol=1e-4)


# Checkpoints, a warm start and a trace


def test_checkpoints_of_a_period_are_kept(config, tmp_path, one_device):
    work = tmp_path / "run"
    loop.fit(config(checkpoint_every=1, checkpoint_keep_period=4), str(work))
    kept = sorted(int(path.name) for path in (work / "checkpoints").iterdir())
    assert kept == [4, 6, 7, 8]


def test_a_warm_start_takes_what_fits_and_says_what_does_not(
    plain, config, tmp_path, capsys, one_device
):
    work = tmp_path / "run"
    changed = config(steps=1, predictor__depth=1, optim__muon=0.0, optim__adamw=0.0)
    _, params = loop.fit(changed, str(work), init_from=str(plain[0]))
    said = capsys.readouterr().out
    found = re.search(
        r"step 8: (\d+) of (\d+) arrays match .*; randomly initialized: (.*); not used: (.*)", said
    )
    assert "predictor/stack" in found[4] and "inverse" not in found[4]
    assert 0 < int(found[1]) < int(found[2])
    assert "predictor/stack (different shape)" in found[3] and "inverse" not in found[3]
    mine, theirs = flatten_dict(jax.device_get(params)), flatten_dict(plain[1])
    fit = [k for k in mine if k in theirs and mine[k].shape == theirs[k].shape]
    assert len([k for k in fit if k[0] != "encoder"]) >= int(found[1])
    for name in fit:  # a learning rate of 0 leaves them
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=str(name))
    assert json.loads((work / "config.json").read_text())["init_from"] == str(plain[0])
    loop.fit(changed, str(work))  # the same run, without naming it again
    assert json.loads((work / "config.json").read_text())["init_from"] == str(plain[0])
    fresh = str(tmp_path / "fresh")
    loop.fit(config(steps=1), fresh)
    with pytest.warns(UserWarning, match="fresh: --init_from is ignored, as the run exists"):
        loop.fit(config(steps=2), fresh, init_from=str(plain[0]))
    assert "init_from" not in json.loads((tmp_path / "fresh" / "config.json").read_text())


def test_a_warm_start_takes_an_exported_model_too(config, tmp_path, capsys, one_device, get_config):
    c = get_config("size=nano,latent=noisy")
    c.update_from_flattened_dict({"steps": 1, "data.batch": 2})
    c.data.mixture.nav = 0.0
    loop.fit(c, str(tmp_path / "run"), init_from="nano")
    said = capsys.readouterr().out
    found = re.search(r"step \d+: (\d+) of (\d+) arrays match", said)
    assert "not used" not in said
    assert found[1] == found[2]


def test_a_warm_start_of_nothing_that_fits_is_an_error(plain, config, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        loop.fit(config(), str(tmp_path / "a"), init_from=str(tmp_path / "nowhere"))
    assert not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty/checkpoints: no checkpoint found"):
        loop.fit(config(), str(tmp_path / "a"), init_from=str(tmp_path / "empty"))
    assert not (tmp_path / "a").exists()


def test_a_trace_of_the_steps_is_written(config, tmp_path, capsys, one_device):
    work = tmp_path / "run"
    loop.fit(config(), str(work), profile=2)
    assert "trace of steps 6 to 7" in capsys.readouterr().out
    (trace,) = (work / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_a_run_that_ends_while_it_is_traced_writes_its_trace(config, tmp_path, one_device):
    work = tmp_path / "run"
    loop.fit(config(steps=logs.Trace.FIRST), str(work), profile=50)
    assert list((work / "profile").rglob("*.xplane.pb"))
    assert rundir.profile(work) == str(work / "profile")


def test_a_run_without_a_checkpoint_may_begin_again_with_another_config(config, tmp_path):
    work = tmp_path / "run"
    first = json.loads(config().to_json_best_effort())
    resume.check_config(str(work), first)
    rundir.write_config(str(work), json.dumps(first))
    changed = json.loads(config(data__size=64).to_json_best_effort())
    assert resume.check_config(str(work), changed)["data"]["size"] == 64
    (work / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"other values: .*data\.size was"):
        resume.check_config(str(work), changed)


def test_a_run_is_continued_and_its_data_found_from_every_folder(
    plain, config, videos, tmp_path, monkeypatch, capsys, one_device
):
    work, here = tmp_path / "run", os.path.dirname(os.path.realpath(videos))
    shutil.copytree(plain[0], work)
    shutil.rmtree(work / "checkpoints" / "8")
    relative = os.path.basename(videos)
    before = json.loads((work / "config.json").read_text())  # as runs were written once
    before["data"]["videos"], before["data"]["sources"] = relative, {"x": "records:x"}
    (work / "config.json").write_text(json.dumps(before))
    monkeypatch.chdir(here)
    typed = {"data__videos": relative, "data__sources": {"x": "records:x"}, "data__batch": 0}
    _, params = loop.fit(config(**typed), str(work))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), plain[1])
    said = capsys.readouterr().out
    assert f"batches of 8 clips of 4 frames of {relative};" in said  # as it was typed

    monkeypatch.chdir(tmp_path)
    stored = rundir.read_config(work)
    assert stored["data"]["videos"] == f"{here}/{relative}"
    assert stored["data"]["sources"] == {"x": f"records:{here}/x"}
    assert next(pipeline.episodes(ml_collections.ConfigDict(stored), "videos"))
    typed = {"data__sources": {"x": f"records:{os.path.relpath(here)}/x"}}
    again = config(data__videos=os.path.relpath(f"{here}/{relative}"), **typed)
    loop.fit(again, str(work))
    assert "all 8 steps are already done" in capsys.readouterr().out
    os.makedirs(relative)  # another folder of that name
    message = f"data.videos was '{here}/{relative}', is '{tmp_path}/{relative}'"
    with pytest.raises(ValueError, match=re.escape(message)):
        loop.fit(config(data__videos=relative, **typed), str(work))


def test_a_workdir_that_is_a_file_is_an_error(config, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="workdir: expected a folder, got a file"):
        loop.fit(config(), str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError, match="expected the folder of a model, got a file"):
        lawm.load(str(tmp_path / "file"))

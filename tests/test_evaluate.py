"""What of other data is evaluated, where some run may have been trained on it."""

import json
import os
import shutil
import subprocess
import sys
import types

import conftest
import ml_collections
import numpy as np
import pytest

import configs.lawm
from lawm_jax.data import pipeline
from lawm_jax.evaluate import clips, context
from lawm_jax.evaluate import run as evaluate_run
from lawm_jax.report import results


def run(folder, videos="", mixture=(), holdout=0.05, sources=None, **parts):
    """Writes the config of a run with a checkpoint."""
    (folder / "checkpoints" / "4").mkdir(parents=True)
    config = configs.lawm.get_config("size=tiny").to_dict()
    sources = sources or dict(a="lerobot:/a", b="lerobot:/b")
    config["data"] |= dict(videos=videos, sources=sources, mixture=dict(mixture), holdout=holdout)
    (folder / "config.json").write_text(json.dumps(config | parts))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    """A model of a, a bound of videos, one of labelled actions of b, and a controller."""
    model = run(tmp_path, mixture=[("a", 1.0), ("b", 0.0)], latent={"kind": "noisy", "dim": 16})
    bounds = tmp_path / "bounds"
    films = run(bounds / "none", videos="/films/*", holdout=0.1, latent={"kind": "none", "dim": 16})
    latent = {"kind": "labelled", "dim": 3}
    labels = run(bounds / "labelled", mixture=[("b", 1.0)], holdout=0.02, latent=latent)
    kind = {"kind": "state"}
    run(tmp_path / "controller", videos="droid:/d", holdout=0.2, latent={}, controller=kind)
    return model, [films, labels]


@pytest.mark.parametrize(
    "given,share,who",
    [
        ({"new": "lerobot:/new"}, 1.0, ""),
        ({"new": "lerobot:/a"}, 0.05, "model"),
        ({"a": "lerobot:/new"}, 1.0, ""),  # for lack of labels, another source of that name
        ({"new": "/films/*"}, 0.1, "none"),
        ({"new": "lerobot:/b"}, 0.02, "labelled"),  # the model's weight of it is 0
        ({"b": "lerobot:/moved"}, 0.02, "labelled"),
        ({"new": "droid:/d"}, 0.2, "controller"),
        ({"new": "lerobot:/a", "b": "lerobot:/b"}, 0.02, "labelled"),
    ],
)
def test_what_a_run_was_trained_on_is_never_evaluated_and_that_is_said(
    runs, capsys, given, share, who
):
    assert evaluate_run.unseen(given, *runs)[0] == share
    said = capsys.readouterr().out
    assert ("was trained on it, what that held out" in said) == (share < 1)
    assert who == "model" or who in said


@pytest.mark.parametrize("spec", ["{}/", "day", "videos:{}", "{}/**/*.mp4", "link", "./day/*.mp4"])
def test_files_of_training_are_never_held_out_however_the_folder_is_spelt(
    videos, tmp_path, monkeypatch, capsys, spec
):
    folder = tmp_path / "day"
    shutil.copytree(videos, folder)
    shutil.copy(folder / "0.mp4", tmp_path / "new.mp4")
    (tmp_path / "link").symlink_to("day")
    monkeypatch.chdir(tmp_path)
    model = run(tmp_path / "run", videos=str(folder), holdout=0.3)
    config = ml_collections.ConfigDict(json.loads((tmp_path / "run" / "config.json").read_text()))
    trained = {os.path.basename(path) for path in pipeline.identities(config, "videos")}
    share, without = evaluate_run.unseen({"x": spec.format(folder)}, model, [])
    assert share == 1 and {os.path.basename(path) for path in without["x"]} <= trained
    assert f"was trained on {len(without['x'])} of its items" in capsys.readouterr().out
    config.data.update(videos="", holdout=share)
    config.data.sources = ml_collections.ConfigDict({"x": spec.format(folder)})
    config.data.mixture = ml_collections.ConfigDict({"x": 1.0})
    states = lambda video: np.zeros((len(video), 4, 1, 1), np.float32)  # noqa: E731
    found = clips.held_out(config, "x", states, without=without["x"])
    names = {os.path.basename(path) for path in found.episodes}
    assert names and names.isdisjoint(trained)


def test_data_that_is_gone_is_said_not_to_be_comparable(tmp_path, capsys):
    model = run(tmp_path, videos=str(tmp_path / "gone"))
    assert evaluate_run.unseen({"x": "elsewhere/*"}, model, []) == (1.0, {"x": set()})
    assert "cannot tell whether a run was trained on it" in capsys.readouterr().out


def test_every_evaluation_is_one_that_the_report_reads():
    shown = {*results.PARTS, "control", "pictures"}
    assert set(evaluate_run.PARTS) <= shown
    code = "from lawm_jax.evaluate import __main__, run; assert __main__.PARTS == list(run.PARTS)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=conftest.ROOT)


def test_clips_in_which_nothing_changes_are_refused(tiny, monkeypatch):
    model, params, s = tiny("noisy")
    still = types.SimpleNamespace(s=np.repeat(s[:, :1], 4, axis=1))
    monkeypatch.setattr(clips, "held_out", lambda *_, **__: still)
    with pytest.raises(ValueError, match="films: the states of its held-out clips never change"):
        context.Source({}, "films", {"noisy": (model, params | {"encoder": {}})}, "")

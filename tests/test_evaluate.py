"""What of other data is evaluated, where some run may have been trained on it."""

import functools
import json
import os
import pathlib
import re
import shutil
import time
import types

import conftest
import ml_collections
import numpy as np
import pytest

import configs.lawm
from lawm_jax.data import pipeline
from lawm_jax.evaluate import clips, controllers, evaluations, labels, tables, verdicts
from lawm_jax.evaluate import run as evaluate_run
from lawm_jax.report import __main__ as report


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
    assert ("was trained on it; evaluating only its held-out part" in said) == (share < 1)
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
    said, same = capsys.readouterr().out, spec == "day"  # the run's own source, by another name
    assert share == (0.3 if same else 1)
    assert {os.path.basename(path) for path in without["x"]} <= trained
    assert (f"was trained on {len(without['x'])} of its items" in said) != same
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
    assert "cannot check whether a run was trained on it" in capsys.readouterr().out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Returns the folder of a tiny model's run of the embedded walks, with random parameters."""
    folder = tmp_path_factory.mktemp("small")
    config = configs.lawm.get_config("size=tiny")
    config.data.mixture = ml_collections.ConfigDict({"panda": 1.0, "nav": 0.0})
    conftest.write_run(config, folder)
    return str(folder)


@pytest.fixture
def few(monkeypatch):
    """Lets evaluations look at 4 clips of each source."""
    held_out = functools.partial(clips.held_out, most=4, items=4)
    monkeypatch.setattr(clips, "held_out", held_out)
    return held_out


def test_a_new_evaluation_is_a_module_and_a_line(small, few, monkeypatch, capsys):
    column = tables.Column("distance", "distance", 2, "lower")
    module = types.ModuleType("distance", "Distance: how far states lie from zero.")
    module.run = lambda source: [
        {"name": source.main, "distance": float(np.abs(source.clips.s).mean())}
    ]
    module.tables = lambda rows: [tables.Table("from zero", (column,), rows)]
    module.judge = lambda rows, name: [
        verdicts.Verdict("distance", verdicts.HOLDS, f"{rows[0]['distance']:.3f} of {name}", "none")
    ]
    monkeypatch.setitem(evaluations.EVALUATIONS, "distance", module)
    evaluate_run.evaluate(small, only=["distance"])
    text = capsys.readouterr().out
    found = json.loads(pathlib.Path(small, "eval", "distance.json").read_text())
    (row,) = found["panda"]
    shown = f"{row['distance']:.2f}"
    assert row["distance"] > 0 and f"✓ distance    {row['distance']:.3f} of noisy" in text
    assert "from zero" not in text
    evaluate_run.evaluate(small, only=["distance"], verbose=True)
    text = capsys.readouterr().out
    assert "panda, from zero" in text and shown in text
    page = report.build([small])
    assert "<h2>Distance</h2>" in page and "distance ↓" in page and shown in page
    assert "how far states lie from zero" in page


def test_a_run_is_compared_with_the_controls_of_its_latents(small, monkeypatch, capsys):
    held_out = functools.partial(clips.held_out, most=16, items=4)
    monkeypatch.setattr(clips, "held_out", held_out)
    asked = "ablation", "bias", "algebra", "content", "flow", "scene", "invariance"
    evaluate_run.evaluate(small, only=asked)
    out = capsys.readouterr().out
    claims = "own latents", "beyond bias", "algebra", "content ", "beyond PCA", "flow ", "no scene"
    assert all(claim in out for claim in claims) and "same action" in out
    found = {
        path.stem: json.loads(path.read_text())["panda"]
        for path in pathlib.Path(small, "eval").glob("*.json")
        if path.stem in asked
    }
    copy, noisy = found["ablation"]
    assert copy["name"] == "copy last frame" and len(noisy["controls"]) == 4
    (row,) = found["content"]
    assert len(row["matched"]) == 3 and len(row["latents"]["nats_by_dimension"]) == 16
    names = [row["name"] for row in found["scene"]]
    assert names == ["noisy", "the state's components", "real actions"]
    assert all(row["chance"] == 0.25 for row in found["scene"])
    page = report.build([small])
    assert len(found["algebra"][0]["two_steps"]) == 4 and found["flow"][0]["flow"][0]["latents"]
    assert [row["name"] for row in found["invariance"]] == names
    headings = "Ablation of the latent actions", "Scene in the latent actions", "Bias", "Flow"
    for heading in (*headings, "Algebra", "Invariance"):
        assert f"<h2>{heading}</h2>" in page
    assert "noisy 1e-5, previous step&#x27;s" in page


def test_slow_evaluations_of_a_run_are_in_its_report(small, monkeypatch, capsys):
    monkeypatch.setattr(clips, "held_out", functools.partial(clips.held_out, most=12, items=4))
    monkeypatch.setattr(labels, "COUNTS", (1, 2))
    monkeypatch.setattr(controllers, "fit", functools.partial(controllers.fit, steps=2))
    evaluate_run.evaluate(small, only=["surprise", "distractors", "labels"])
    out = capsys.readouterr().out
    assert all(claim in out for claim in (" surprise ", " distractors ", " few labels: "))
    found = {
        name: json.loads(pathlib.Path(small, "eval", f"{name}.json").read_text())["panda"]
        for name in ("surprise", "distractors", "labels")
    }
    assert len(found["surprise"]) == 3 * 2 and all(row["error"] for row in found["surprise"])
    assert all(0 <= row["nats"]["mean"] <= 1 for row in found["surprise"][1::2])
    kinds = {row["metric"] for row in found["distractors"]}
    assert kinds == {"moving background", "camera shake", "color drift"}
    assert {row["episodes"] for row in found["labels"]} == {None, 1, 2}
    page = report.build([small])
    for heading in ("Surprise", "Distractors", "Labeled episodes"):
        section = page.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]
        assert "<table" in section and "Not measured" not in section


def test_clips_in_which_nothing_changes_are_refused_and_end_no_other_evaluation(
    small, few, monkeypatch, capsys
):
    def held_out(config, name, encode, without=()):
        found = few(config, name, encode, without=without)
        return (
            found._replace(s=np.repeat(found.s[:, :1], found.s.shape[1], 1))
            if name in still
            else found
        )

    monkeypatch.setattr(clips, "held_out", held_out)
    still = {"a"}
    given = {"a": "mini:panda", "b": "mini:nav"}
    evaluate_run.evaluate(small, only=["prediction"], data=given)
    assert "skipping a: expected held-out clips that change" in capsys.readouterr().out
    assert "b" in json.loads(pathlib.Path(small, "eval", "prediction.json").read_text())
    still = {"a", "b"}
    with pytest.raises(ValueError, match="data: expected a source whose held-out clips change"):
        evaluate_run.evaluate(small, only=["prediction"], data=given)


def test_slow_evaluations_run_on_request_only_and_each_one_says_how_long_it_took(
    small, few, monkeypatch, capsys
):
    ran = []

    def asked(name):
        module = types.ModuleType(name, "Asks nothing.")
        module.run = lambda source: ran.append(name) or time.sleep(0.3 if name == "b" else 0)
        return module

    known = {name: asked(name) for name in "abc"}
    for module in evaluate_run, evaluations:
        monkeypatch.setattr(module, "EVALUATIONS", known)
        monkeypatch.setattr(module, "SLOW", ("b", "c"))
    monkeypatch.setattr(evaluate_run.pictures, "draw", lambda source: ran.append("pictures"))
    evaluate_run.evaluate(small)
    assert ran == ["a", "pictures"]
    assert capsys.readouterr().out.endswith("; --all adds b, c\n")
    ran.clear()
    evaluate_run.evaluate(small, only=["a", "b"])
    out = capsys.readouterr().out
    about = json.loads(pathlib.Path(small, "eval", "about.json").read_text())
    assert ran == ["a", "b"] and about["parts"].keys() == {"encoding", "a", "b", "pictures"}
    assert 0.3 <= about["parts"]["b"] and about["parts"]["a"] < 0.1
    parts = {name: about["parts"][name] for name in ("encoding", "a", "b")}  # of this call
    assert sum(parts.values()) <= about["seconds"] + 1
    slowest = max(parts, key=parts.get)
    last = rf"evaluated in {about['seconds']} s; slowest: {slowest} \d+ s\n"
    assert re.fullmatch(last, out.splitlines(keepends=True)[-1])


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(small, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(evaluate_run.models, "load", None)
    with pytest.raises(ValueError, match=f"workdir: expected a folder to write to, got {small}"):
        evaluate_run.evaluate(small)


def test_all_and_only_are_not_asked_together():
    asked = conftest.run_module("evaluate", "--workdir=x", "--all", "--only=prediction")
    assert asked.returncode == 2 and "expected --all or --only, got both" in asked.stderr

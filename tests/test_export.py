"""Latent actions, states and labels as files for other programs."""

import csv
import json
import os
import pathlib

import ml_collections
import numpy as np
import pytest
from conftest import write_run

import lawm_jax as lawm
from lawm_jax.data import pipeline
from lawm_jax.export import arrays, lary
from lawm_jax.export import run as export_run
from lawm_jax.train import rundir


@pytest.fixture(scope="module")
def run(tmp_path_factory, get_config, one_device):
    """A run of discrete latents, on the Panda."""
    folder = tmp_path_factory.mktemp("runs") / "model"
    config = get_config("size=tiny,latent=discrete,strength=8")
    config.data.mixture = ml_collections.ConfigDict({"panda": 1.0})
    write_run(config, folder)
    return str(folder)


def loaded(out, inside):
    with np.load(os.path.join(out, inside), allow_pickle=False) as file:
        return dict(file)


def test_arrays_are_what_the_library_infers_and_describe_themselves(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_run, "BATCH", 4)
    monkeypatch.setattr(arrays, "PART", 1)  # a part per batch
    export_run.export(run, str(tmp_path / "out"), limit=6)
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["step"] == 1 and about["skipped"] == 0 and about["latent"]["kind"] == "discrete"
    assert about["sources"]["panda"]["source"] == "mini:panda" and about["model"] == run
    model, params = lawm.load(run)
    config = ml_collections.ConfigDict(rundir.read_config(run))
    seen = {}
    for split in ("train", "test"):
        told = about["sources"]["panda"][split]
        parts = [loaded(tmp_path / "out", part) for part in told["parts"]]
        assert told["clips"] == 6 and [len(x["latents"]) for x in parts] == [4, 2]
        rows = {key: np.concatenate([x[key] for x in parts]) for key in parts[0]}
        for key, x in rows.items():
            assert told["arrays"][key]["shape"] == list(x.shape[1:]) and key in about["arrays"]
            assert told["arrays"][key]["dtype"] == ("str" if x.dtype.kind == "U" else str(x.dtype))
        # Six episodes over the whole split, the first clip of each.
        clips = list(pipeline.episodes(config, "panda", split, most=6))
        clips = [clip for clip in clips if clip["start"] == 0]
        assert rows["episode"].tolist() == [str(clip["episode"]) for clip in clips]
        for key in ("actions", "state"):
            np.testing.assert_array_equal(rows[key], np.stack([clip[key] for clip in clips]))
        s = lawm.encode(model, params, np.stack([clip["video"] for clip in clips]))
        np.testing.assert_allclose(rows["states"], s, atol=1e-5)
        z, _ = lawm.infer_actions(model, params, s)
        np.testing.assert_allclose(rows["latents"], z, atol=1e-5)
        codebook = np.asarray(params["latent"]["codebook"])
        np.testing.assert_allclose(codebook[rows["codes"]], rows["latents"], atol=1e-6)
        seen[split] = set(rows["episode"])
    assert not seen["train"] & seen["test"]


def test_video_without_labels_is_exported_without_and_broken_files_are_counted(
    run, videos, tmp_path
):
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in pathlib.Path(videos).iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "broken.mp4").write_bytes(b"no video")
    data = {"street": str(folder)}
    export_run.export(run, str(tmp_path / "a"), data=data, states=False)
    about = json.loads((tmp_path / "a" / "export.json").read_text())
    rows = [loaded(tmp_path / "a", about["sources"]["street"][x]["parts"][0]) for x in lary.SPLITS]
    assert [set(x) for x in rows] == [{"latents", "codes", "episode", "start"}] * 2
    assert sum(len(set(x["episode"])) for x in rows) == 6 and about["skipped"] == 1
    (line,) = (tmp_path / "a" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["path"].endswith("broken.mp4")
    export_run.export(run, str(tmp_path / "b"), "lary", data)
    table = tmp_path / "b" / "data" / "val_la_street_1_model.csv"
    assert "action" not in next(csv.DictReader(table.open()))
    assert not (tmp_path / "b" / "regression_relative").exists()


def test_lary_has_the_files_of_larybenchs_regression(run, tmp_path):
    """As its reader finds them with DATA_DIR=OUT and LARY_LA_DIR=OUT/latent_actions."""
    out, data = tmp_path / "lary", {"Arm": "mini:panda"}
    export_run.export(run, str(tmp_path / "arrays"), data=data, limit=3)
    export_run.export(run, str(out), "lary", data, limit=3)
    targets = {}
    for split, ours in (("train", "train"), ("val", "test")):
        known = loaded(tmp_path / "arrays", f"Arm/{ours}/00000.npz")
        table = out / "data" / f"{split}_la_Arm_1_model.csv"
        rows = list(csv.DictReader(table.open()))
        assert len(rows) == known["latents"].shape[0] * known["latents"].shape[1] == 9
        tokens = [loaded(out / "latent_actions", row["la_path"]) for row in rows]
        assert {os.path.dirname(row["la_path"]) for row in rows} == {f"Arm/{split}/model"}
        flat = known["latents"].reshape(-1, 1, known["latents"].shape[-1])
        np.testing.assert_array_equal([x["tokens"] for x in tokens], flat)
        np.testing.assert_array_equal([x["indices"] for x in tokens], known["codes"].reshape(-1, 1))
        folder = out / "regression_relative" / "arm"  # in lower case
        u = np.stack([np.load(folder / row["action"], allow_pickle=False) for row in rows])
        assert u.dtype == np.float32 and u.shape == (len(rows), 7)
        np.testing.assert_array_equal(u[:, :3], known["actions"].reshape(-1, 3))
        assert not u[:, 3:].any()
        assert [int(row["step"]) for row in rows[:3]] == [0, 1, 2]
        targets[split] = u.astype(np.float64)
    stats = json.loads((folder / "relative_action_stats_arm.json").read_text())
    expected = [*targets["train"].std(0)[:3], 1, 1, 1, 1]
    np.testing.assert_allclose(stats["mean"], targets["train"].mean(0), atol=1e-12)
    np.testing.assert_allclose(stats["std"], expected, rtol=1e-9)


def test_actions_of_several_frames_per_step_are_those_between_the_steps(tmp_path):
    u = np.random.default_rng(0).normal(size=(2, 7, 7))  # 8 frames, 4 steps
    batch = {"latents": np.zeros((2, 3, 5)), "episode": ["a", "b"], "start": [0.0, 0.0]}
    lary.write(tmp_path / "a", "arm", "train", [batch | {"actions": u}], "model", 2)
    files = sorted((tmp_path / "a" / "regression_relative/arm/actions/train").iterdir())
    found = np.stack([np.load(path) for path in files]).reshape(2, 3, 7)
    np.testing.assert_allclose(found[:, 1], u[:, 3] + u[:, 4], rtol=1e-6)
    wide = batch | {"actions": np.zeros((2, 3, 8))}
    with pytest.raises(ValueError, match="at most 7 values, .* got 8; use --to arrays"):
        lary.write(tmp_path / "b", "arm", "train", [wide], "model", 1)


def test_an_export_that_fails_leaves_what_was_there(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (tmp_path / "out.part").mkdir()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(arrays, "write", fail)
    with pytest.raises(OSError, match="no space"):
        export_run.export(run, str(out), limit=1)
    assert os.listdir(tmp_path) == ["out.part"]
    (tmp_path / "file").write_text("")
    with pytest.raises(
        export_run.Refused, match="out: expected a folder to write to, got .*file/x"
    ):
        export_run.export(run, str(tmp_path / "file" / "x"), limit=1)


def test_what_cannot_be_exported_is_refused(run, get_config, tmp_path):
    with pytest.raises(export_run.Refused, match="out: expected a folder that does not exist"):
        export_run.export(run, str(tmp_path))
    with pytest.raises(export_run.Refused, match="out: expected a local folder, got gs://b/c"):
        export_run.export(run, "gs://b/c")
    with pytest.raises(ValueError, match="calvin: expected a name other than .* got calvin"):
        export_run.export(run, str(tmp_path / "a"), "lary", {"calvin": "mini:panda"}, limit=1)
    bound = tmp_path / "bound"
    config = get_config("size=tiny,latent=deterministic")
    rundir.write_config(str(bound), config.to_json_best_effort())
    with pytest.raises(export_run.Refused, match="infers latent actions, got deterministic"):
        export_run.export(str(bound), str(tmp_path / "a"))
    assert os.listdir(tmp_path) == ["bound"]

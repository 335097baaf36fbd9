"""The commands of the documentation, on small data."""

import json
import os
import re

import av
import jax
import numpy as np
import pytest
from conftest import ROOT, run_module

import lawm_jax as lawm

SHORT = ["--config.steps=6", "--config.log_every=1", "--config.checkpoint_every=3"]


def run(*command):
    """Runs a module of the package in another process; returns its output."""
    result = run_module(*command, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def film(path, width, height, rate, codec, frames=40, pixels="yuv420p"):
    """Writes a bright square that wanders over a gradient."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        background = np.linspace(0, 120, width)[None, :, None] * np.ones((height, 1, 3))
        for i in range(frames):
            image = background.astype(np.uint8)
            x, y = (5 * i) % (width - 20), (3 * i) % (height - 20)
            image[y : y + 20, x : x + 20] = 255, 60, 10
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as users have them: formats, sizes and rates mixed, some files broken."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "deeper").mkdir()
    film(folder / "wide.mp4", 160, 90, 10, "libx264")
    film(folder / "tall.mov", 90, 160, 10, "libx264")
    film(folder / "deeper" / "old.avi", 128, 96, 12, "mpeg4")
    film(folder / "deeper" / "web.webm", 96, 96, 8, "libvpx")
    film(folder / "deeper" / "box.mkv", 100, 76, 15, "libx264", frames=60)
    whole = (folder / "wide.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "letter.mov").write_text("not a film")
    (folder / "notes.txt").write_text("not a film either, and not asked for")
    return folder


def test_training_on_a_folder_of_mixed_and_broken_videos_then_evaluating(folder, tmp_path):
    workdir = tmp_path / "run"
    config = "--config=configs/lawm.py:size=tiny,latent=noisy"
    videos = f"--config.data.videos={folder}/**/*"
    train = ["train", config, videos, *SHORT, f"--workdir={workdir}"]
    out = run(*train)
    assert "noisy latents" in out and "step 6/6" in out
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    skipped = [json.loads(row) for row in (workdir / "skipped.jsonl").read_text().splitlines()]
    reasons = {os.path.basename(row["path"]): row["reason"] for row in skipped}
    assert set(reasons) <= {"cut.mp4", "empty.mp4", "letter.mov"} and len(reasons) >= 2
    assert "all 6 steps are already done" in run(*train)

    out = run("evaluate", f"--workdir={workdir}")
    told = " ".join(out.split())  # without line breaks
    assert (
        "? prediction 1 episode is too few to judge; 8 needed; one-step error relative to copying: "
        in told
    )
    result = json.loads((workdir / "eval" / "prediction.json").read_text())["videos"]
    assert [row["name"] for row in result] == ["copy last frame", "noisy", "decoder alone"]
    assert all(row["error"]["mean"] > 0 for row in result[:2])
    why = "videos: skipping leakage and transfer, which need clips from at least 3 videos"
    assert why in out
    pictures = {path.name for path in (workdir / "report").iterdir()}
    kinds = {f"{kind}_videos" for kind in ("rollout", "transfer", "cycle")}
    films = {f"{kind}.{suffix}" for kind in kinds for suffix in ("png", "mp4")}
    assert pictures == films | {"loss.png", "embedding_videos.png"}
    assert all((workdir / "report" / name).stat().st_size > 3000 for name in pictures)
    run("report", str(workdir))
    assert "noisy" in (workdir / "report" / "page.html").read_text()


@pytest.mark.slow
def test_the_embedded_data_trains_and_compares_with_the_bounds(tmp_path):
    work = tmp_path / "run"
    folders = {"noisy": work, "deterministic": work / "bounds" / "deterministic"}
    for kind, folder in folders.items():
        config = f"--config=configs/lawm.py:size=tiny,latent={kind}"
        run("train", config, *SHORT, f"--workdir={folder}")
    out = run("evaluate", f"--workdir={work}")
    assert re.search(r"one-step error relative to copying: [^\n]*\(deterministic ", out)
    parts = "prediction", "ablation", "leakage", "transfer", "content", "scene", "sampling"
    results = {part: json.loads((work / "eval" / f"{part}.json").read_text()) for part in parts}
    assert all(found.keys() == {"nav", "panda"} for found in results.values())
    for name, rows in results["prediction"].items():
        *rows, floor = rows
        assert [row["name"] for row in rows] == ["copy last frame", "noisy", "deterministic"]
        # Six small steps from the identity change little, for the better or the worse.
        assert all(0.8 < row["relative"]["mean"] < 1.2 for row in rows)
        assert floor["pixels"].keys() == {"psnr", "ssim", "effnet"}
        copies, honest = results["leakage"][name][-1], results["leakage"][name][1]
        assert copies["flag"] == "copies the future" and honest["flag"] is None
        cycle = {(row["name"], row["metric"]) for row in results["transfer"][name]["cycle"]}
        metrics = {
            ("noisy", "latent L1"),
            ("noisy", "effnet, decoded to frames"),
            ("deterministic", "latent L1"),
        }
        assert cycle == metrics
        content = results["content"][name][0]
        assert content["name"] == "noisy" and len(content["probe"]["r2"]) == 3
        assert len(content["matched"]) == 3 and len(content["latents"]["nats_by_dimension"]) == 16
        assert [row["name"] for row in results["ablation"][name]] == ["copy last frame", "noisy"]
        scene = {row["name"]: row for row in results["scene"][name]}
        assert scene.keys() == {"noisy", "the state's components", "real actions"}
        assert scene["the state's components"]["source"]["mean"] > 0.9
        assert {"N(0, I)", "learned prior"} <= {row["name"] for row in results["sampling"][name]}
        kinds = "rollout", "transfer", "cycle", "cut", "embedding"
        assert all((work / "report" / f"{kind}_{name}.png").exists() for kind in kinds)
    about = json.loads((work / "eval" / "about.json").read_text())
    assert about["step"] == 6 and about["parameters"] > 10_000

    model, params = lawm.load(work, prior=True)  # that was fitted
    s = jax.random.normal(jax.random.key(0), (3, 4, 448))
    z = lawm.sample_actions(model, params, jax.random.key(1), (3, 16), s)
    assert z.shape == (3, 16) and np.isfinite(z).all()

    before = {part: (work / "eval" / f"{part}.json").read_text() for part in parts}
    run("evaluate", f"--workdir={work}", *[f"--only={part}" for part in parts])
    assert before == {part: (work / "eval" / f"{part}.json").read_text() for part in parts}
    run("evaluate", f"--workdir={work}", "--only=prediction", "--data=rooms=mini:nav")
    merged = json.loads((work / "eval" / "prediction.json").read_text())
    assert merged.keys() == {"nav", "panda", "rooms"} and merged["rooms"] == merged["nav"]


def test_the_documented_config_mixes_sources(folder, tmp_path):
    code = re.search(r"# mine.py.*?(?=```)", (ROOT / "docs" / "data.md").read_text(), re.S)[0]
    assert "droid:/data/droid/1.0.1" in code and "videos:/data/web" in code
    code = code.replace("droid:/data/droid/1.0.1", "mini:panda").replace("/data/web", str(folder))
    (tmp_path / "mine.py").write_text(code)
    config = f"--config={tmp_path}/mine.py:size=tiny"
    out = run("train", config, *SHORT, f"--workdir={tmp_path}/run")
    assert "step 6/6" in out
    run("evaluate", f"--workdir={tmp_path}/run", "--only=prediction")
    results = json.loads((tmp_path / "run/eval/prediction.json").read_text())
    assert results.keys() == {"robot", "web"}


def test_a_wrong_flag_is_answered_with_the_right_one(tmp_path):
    flags = "--config=configs/lawm.py:size=tiny", "--config.data.video=x", f"--workdir={tmp_path}"
    result = run_module("train", *flags)
    assert result.returncode == 2 and "did you mean --config.data.videos?" in result.stderr

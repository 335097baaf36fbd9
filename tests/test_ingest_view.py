"""Ingest: the view of training, flags out of range, two at once, and what it is given to read."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import run_module
from test_data import F, config, every, write
from test_ingest import ROOT

from lawm_jax.data import pipeline
from lawm_jax.ingest import plans, shards


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    for i in range(3):
        write(root / f"{i}.mp4", every(20, 4), size=(200, 150), first=100 * i)
    return root


def read(spec, split="train", **data):
    clips = pipeline.episodes(config(spec, **data), "videos", split)
    return {(clip["episode"], round(float(clip["start"]), 3)): clip["video"] for clip in clips}


def both(films, out, quality, **data):
    """Reads the same clips from raw video and from records."""
    for split in "train", "test":
        raw, stored = read(films, split, **data), read(f"records:{out}", split, **data)
        same = raw.keys() & stored.keys()
        assert same
        yield from ((raw[key], stored[key]) for key in same)


@pytest.mark.parametrize("size, resize", [(64, 73), (64, 64), (128, 146)])
def test_records_show_what_raw_video_shows(films, tmp_path, size, resize):
    plan = dict(size=size, resize=resize, frames=8, least=F, holdout=0.2)
    for quality, most in (0, 0), (90, 3.0):
        out = tmp_path / f"{quality}"
        shards.ingest(plans.Plan(str(films), quality=quality, **plan), str(out), show=False)
        assert json.loads((out / "info.json").read_text())["resize"] == resize
        for raw, stored in both(films, out, quality, size=size, resize=resize):
            error = np.abs(raw.astype(int) - stored).mean()
            assert error == 0 if quality == 0 else 0 < error < most


def test_uncropped_records_are_cropped_as_raw_video_is(films, tmp_path, caplog):
    out, plan = tmp_path / "out", dict(size=128, frames=8, least=F, quality=0, holdout=0.2)
    shards.ingest(plans.Plan(str(films), resize=128, **plan), str(out), show=False)
    far = [np.abs(a.astype(int) - b).mean() for a, b in both(films, out, 0, size=64, resize=64)]
    near = [np.abs(a.astype(int) - b).mean() for a, b in both(films, out, 0, size=64, resize=73)]
    crossed = read(films, size=64, resize=64), read(f"records:{out}", size=64, resize=73)
    wrong = [
        np.abs(crossed[0][k].astype(int) - crossed[1][k]).mean()
        for k in crossed[1]
        if k in crossed[0]
    ]
    assert max(far) < 6 and max(near) < 6 and min(wrong) > 2 * max(near)
    assert "enlarged to size 64 and resize 73; ingest with --resize 146" in caplog.text
    # Records of before `resize` was written: taken for uncropped.
    info = json.loads((out / "info.json").read_text())
    del info["resize"]
    (out / "info.json").write_text(json.dumps(info))
    old = read(f"records:{out}", size=64, resize=64)
    assert "has no size or no resize" in caplog.text and old
    for key, shown in read(films, size=64, resize=64).items():
        assert np.abs(shown.astype(int) - old.get(key, shown)).mean() < 6


def test_records_of_a_closer_crop_are_refused(films, tmp_path):
    plan = plans.Plan(str(films), size=64, resize=73, frames=8, least=F, quality=0, holdout=0.2)
    shards.ingest(plan, str(tmp_path / "out"), show=False)
    with pytest.raises(ValueError, match="data.resize: .*set data.resize to 73, or .* --resize 64"):
        read(f"records:{tmp_path}/out", size=64, resize=64)


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"size": 0}, "size: expected 8 to 8192 pixels, got 0"),
        ({"size": -64}, "size: expected 8 to 8192 pixels, got -64"),
        ({"size": 64, "resize": 63}, "resize: expected at least size = 64, got 63"),
        ({"fps": -4.0}, "fps: expected more than 0"),
        ({"fps": 0.0}, "fps: expected more than 0"),
        ({"fps": float("nan")}, "fps: expected more than 0"),
        ({"fps": float("inf")}, "fps: expected more than 0"),
        ({"frames": 1, "least": 1}, "frames: expected at least 2, got 1"),
        ({"least": 1}, "least: expected 2 to frames = 128, got 1"),
        ({"quality": 101}, "quality: expected 0 to 100, got 101"),
        ({"holdout": 2.0}, "holdout: expected 0 to 1, got 2"),
        ({"holdout": -0.1}, "holdout: expected 0 to 1"),
        ({"holdout": float("nan")}, "holdout: expected 0 to 1"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"limit": 0.0}, "limit: expected at least 1 second, got 0"),
        ({"part": (8, 8)}, "part: expected i/n with 0 <= i < n, got 8/8"),
        ({"part": (-1, 2)}, "part: expected i/n with 0 <= i < n, got -1/2"),
        ({"part": (0, 0)}, "part: expected i/n with 0 <= i < n, got 0/0"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, wrong, text):
    options = {key: wrong.pop(key) for key in ("workers", "limit", "part") if key in wrong}
    plan = plans.Plan("nowhere", **wrong)
    with pytest.raises(ValueError) as caught:
        shards.ingest(plan, str(tmp_path / "out"), **options)
    assert text in str(caught.value) and not list(tmp_path.iterdir())


def command(*options, **variables):
    return run_module("ingest", *options, env=os.environ | variables)


@pytest.mark.parametrize(
    "flag", ["--size=0", "--limit=0", "--part=3", "--part=-1/2", "--part=1/0x2", "--holdout=2"]
)
def test_a_flag_out_of_range_is_one_line_and_a_usage_error(films, tmp_path, flag):
    got = command(f"--videos={films}", f"--out={tmp_path}/out", flag)
    assert got.returncode == 2 and got.stdout == "" and not list(tmp_path.iterdir())
    line, hint = got.stderr.splitlines()
    name = "python -m lawm_jax.ingest"
    assert line.startswith(f"{name}: error: {flag.partition('=')[0]}: expected ")
    assert hint == f"try `{name} --help`"


def test_the_flags_default_to_the_view_of_training_and_expand_tildes(films, tmp_path, get_config):
    (tmp_path / "films").symlink_to(films)
    options = "--videos=~/films", "--out=~/out", "--size=64", "--frames=8", "--least=4"
    got = command(*options, "--workers=1", HOME=str(tmp_path))
    assert got.returncode == 0 and f"{tmp_path}/out: 3 of 3 items" in got.stdout
    info = json.loads((tmp_path / "out/info.json").read_text())
    training = get_config("size=base,latent=noisy").data
    training.size = 64
    assert info["resize"] == training.resize == 73
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", "out"]
    assert not list((tmp_path / "out").glob(".*"))  # nor a lock left


def test_a_config_gives_the_view_and_is_not_contradicted(films, tmp_path, get_config):
    options = f"--videos={films}", "--config=lawm.py:size=tiny", "--frames=8", "--least=4"
    got = command(*options, f"--out={tmp_path}/out", "--workers=1")
    assert got.returncode == 0, got.stderr
    info = json.loads((tmp_path / "out/info.json").read_text())
    training = get_config("size=tiny,latent=noisy").data
    assert {key: info[key] for key in ("fps", "size", "resize")} == {
        key: training[key] for key in ("fps", "size", "resize")
    }
    got = command(*options, f"--out={tmp_path}/other", "--size=64")
    assert got.returncode == 2 and "--size: expected either this or --config" in got.stderr


def test_two_at_once_into_one_folder_are_refused_and_two_parts_are_not(films, tmp_path):
    code = """
import sys, time
from lawm_jax.ingest import folder
out, i, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with folder.claim_part(out, (i, n)):
    print("locked", flush=True)
    time.sleep(60)
"""
    out = str(tmp_path / "out")
    plan = plans.Plan(str(films), size=48, resize=48, frames=8, least=F, quality=0)
    held = subprocess.Popen(
        [sys.executable, "-c", code, out, "0", "2"], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        held.stdout.readline()
        for part in (0, 2), (0, 1):
            with pytest.raises(BlockingIOError, match="another process is ingesting into it"):
                shards.ingest(plan, out, part=part, show=False)
        assert shards.ingest(plan, out, part=(1, 2), show=False) is None
    finally:
        held.kill()
        held.wait()
    assert shards.ingest(plan, out, part=(0, 2), show=False)["total_items"] == 3

"""Ingest: any source into records, and records as a source."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import COMPUTES_MORE, ROOT
from test_data import SIZE, F, config, every, numbers, same, take, write

from lawm_jax.data import catalog, mini, pipeline, records, video
from lawm_jax.ingest import plans, shards

PLAN = dict(size=SIZE, resize=SIZE, frames=12, least=F, quality=0)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """41 videos of 4 fps, of 5 to 24 frames, one with a name in Latin-1, and three broken ones."""
    root = tmp_path_factory.mktemp("films")
    for i in range(41):
        write(root / f"{i:02}.mp4", every(5 + i % 20, 4), first=10 * i)
    os.rename(root / "40.mp4", os.fsencode(root) + b"/40\xe9.mp4")
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("This is no video.\n" * 100)
    write(root / "short.mp4", every(3, 4))
    return root


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    """A labelled set with the layout of lawm_mini, of 40 and 20 episodes."""
    root = tmp_path_factory.mktemp("robot") / "robot"
    for split, count in ("train", 40), ("test", 20):
        for i in range(count):
            path = write(root / split / f"{i:04}.mp4", every(10 + i % 5, 4), first=5 * i)
            number = 5.0 * i + np.arange(10 + i % 5)[:, None]
            np.savez(path[:-4] + ".npz", actions=number[:-1].repeat(3, 1) + 0.5, state=number)
    return root


def ingest(source, out, workers=2, **plan):
    return shards.ingest(
        plans.Plan(f"{source}", **{**PLAN, **plan}), str(out), workers=workers, show=False
    )


def content(out):
    """Lists what the records of a folder hold, in order: (split, episode, start, numbers)."""
    found = []
    for split in "train", "test":
        source = catalog.source(config(f"records:{out}"), "videos", split)
        parts = [part for item in source.items for part in source.parts(item, 999)]
        found += [(split, p["episode"], p["start"], numbers(p["video"])) for p in parts]
    return found


def rows(out):
    return [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]


def test_records_hold_every_frame_of_every_readable_video_once(films, tmp_path):
    info = ingest(films, tmp_path / "out")
    frames = {}
    for split, episode, start, shown in content(tmp_path / "out"):
        assert start == pytest.approx(len(frames.setdefault((split, episode), [])) / 4, abs=2e-3)
        frames[split, episode] += shown
    train, test = video.split_videos(str(films), 0.05)
    expected = {("train", path) for path in train} | {("test", path) for path in test}
    broken = {key for key in expected if not os.path.basename(key[1])[0].isdigit()}
    assert frames.keys() == expected - broken and len(broken) == 3
    for (_, path), shown in frames.items():
        i = int(os.path.basename(path)[:2])
        assert shown == list(range(10 * i, 10 * i + 5 + i % 20))
    report = {row["path"]: row for row in rows(tmp_path / "out")}
    assert report.keys() == {path for _, path in expected}
    reasons = {os.path.basename(path): row["reason"] for path, row in report.items()}
    assert {name for name, reason in reasons.items() if reason} == {
        os.path.basename(path) for _, path in broken
    }
    assert reasons["empty.mp4"] == "empty file"
    assert reasons["short.mp4"] == f"too short: 3 frames, but a record needs {F}"
    assert (info["total_items"], info["total_bad"]) == (44, 3)


def test_ingested_clips_are_those_of_the_source_with_their_labels(robot, tmp_path):
    ingest(f"mini:{robot}", tmp_path / "out")
    for split in "train", "test":
        direct = config(sources={"robot": f"mini:{robot}"}, mixture={"robot": 1.0})
        wanted = list(pipeline.episodes(direct, "robot", split))
        got = list(pipeline.episodes(config(f"records:{tmp_path}/out"), "videos", split))
        for clip in wanted + got:
            del clip["source"]
        # Episodes of 13 and 14 steps are two records of 7: clips can't straddle them.
        whole = {clip["episode"] for clip in wanted if int(clip["episode"][-8:-4]) % 5 < 3}
        same(*([clip for clip in clips if clip["episode"] in whole] for clips in (got, wanted)))
        assert len(whole) in (24, 12)
        for clip in got:
            shown = numbers(clip["video"])
            np.testing.assert_array_equal(clip["state"][:, 0], shown)
            np.testing.assert_array_equal(clip["actions"][:, 0], np.array(shown[:-1]) + 0.5)


def test_records_are_the_same_for_any_number_of_workers_and_machines(robot, tmp_path):
    ingest(f"mini:{robot}", tmp_path / "one", workers=1)
    ingest(f"mini:{robot}", tmp_path / "three", workers=3)
    plan = plans.Plan(f"mini:{robot}", **PLAN)
    assert shards.ingest(plan, str(tmp_path / "two"), part=(1, 2), show=False) is None
    with pytest.raises(ValueError, match="the ingest is incomplete"):
        pipeline.clips(config(f"records:{tmp_path}/two"))
    assert shards.ingest(plan, str(tmp_path / "two"), part=(0, 2), show=False)
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            for other in "two", "three":
                copy = tmp_path / other / path.relative_to(tmp_path / "one")
                assert copy.read_bytes() == path.read_bytes()


COMMAND = [sys.executable, "-m", "lawm_jax.ingest"]


def command(*options):
    return [*COMMAND, f"--size={SIZE}", f"--resize={SIZE}", *map(str, options)]


def test_killed_and_started_again_it_leaves_no_holes_and_no_duplicates(robot, tmp_path):
    ingest(f"mini:{robot}", tmp_path / "whole", frames=128)
    out = tmp_path / "killed"
    options = f"--source=mini:{robot}", f"--out={out}", f"--least={F}", "--workers=1"
    for wanted in 1, 2, 3:
        process = subprocess.Popen(command(*options), cwd=ROOT, start_new_session=True)
        while len(list(out.glob("t*/*.json"))) < wanted and process.poll() is None:
            time.sleep(0.002)
        if wanted < 3:
            os.kill(process.pid, signal.SIGKILL)  # its worker lives on, and must do no harm
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "info.json").exists()
    subprocess.run(command(*options), cwd=ROOT, check=True)
    assert content(out) == content(tmp_path / "whole")
    assert rows(out) == rows(tmp_path / "whole") and not list(out.glob("*/*.partial*"))
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*.array_record")}
    subprocess.run(command(*options), cwd=ROOT, check=True)
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/*.array_record")}


def test_another_source_or_other_options_are_refused(robot, tmp_path):
    ingest(f"mini:{robot}", tmp_path)
    with pytest.raises(ValueError, match="expected a new folder.* size: 48, now 32"):
        ingest(f"mini:{robot}", tmp_path, size=32)


def test_files_that_block_or_kill_their_reader_cost_themselves_only(robot, tmp_path):
    source = tmp_path / "robot"
    for path in robot.rglob("000[0-3].*"):
        target = source / path.relative_to(robot)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for name in "train/0001.npz", "train/0002.npz":  # opening them blocks for good
        (source / name).unlink()
        os.mkfifo(source / name)
    plan = plans.Plan(f"mini:{source}", **PLAN)
    info = shards.ingest(plan, str(tmp_path / "out"), limit=3.0, show=False)
    assert info["total_bad"] == 2
    reasons = [(row["path"][-14:], row["reason"]) for row in rows(tmp_path / "out")]
    assert [name for name, reason in reasons if reason == "no progress in 3 s"] == [
        "train/0001.mp4",
        "train/0002.mp4",
    ]
    assert sum(reason is None for _, reason in reasons) == 6


def test_a_reader_that_dies_is_reported_and_replaced(robot, tmp_path):
    source = tmp_path / "robot"
    for path in robot.rglob("000[0-3].*"):
        target = source / path.relative_to(robot)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    blocked = source / "train/0001.npz"
    blocked.unlink()
    os.mkfifo(blocked)
    options = f"--source=mini:{source}", f"--out={tmp_path}/out", f"--least={F}", "--workers=1"
    process, writer = subprocess.Popen(command(*options), cwd=ROOT), None
    while writer is None and process.poll() is None:
        try:
            writer = os.open(blocked, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it yet
            time.sleep(0.01)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    for child in children.split():
        if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGSEGV)
    process.wait()
    os.close(writer)
    assert process.returncode == 0
    bad = {row["path"][-14:]: row["reason"] for row in rows(tmp_path / "out") if row["reason"]}
    assert bad == {"train/0001.mp4": "its reader was killed by signal 11"}


def test_checking_alone_writes_nothing_but_the_report(films, robot, tmp_path):
    info = ingest(films, tmp_path, write=False)
    assert info["total_bad"] == 3 and len(rows(tmp_path)) == 44
    assert not list(tmp_path.rglob("*.array_record")) and not (tmp_path / "info.json").exists()


def test_nothing_readable_is_an_error(tmp_path):
    for name in "a.mp4", "b.mp4":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="none of 2 items can be read.*report.jsonl"):
        ingest(tmp_path, tmp_path / "out")


def test_jpeg_records_are_close_to_the_frames_and_decode_only_those_of_the_clip(robot, tmp_path):
    ingest(f"mini:{robot}", tmp_path / "raw")
    ingest(f"mini:{robot}", tmp_path / "jpeg", quality=20)
    pair = [
        list(pipeline.episodes(config(f"records:{tmp_path}/{kind}"), "videos"))
        for kind in ("raw", "jpeg")
    ]
    for raw, jpeg in zip(*pair, strict=True):
        assert numbers(raw["video"]) == numbers(jpeg["video"])
        difference = raw["video"].astype(float) - jpeg["video"]
        assert 0 < np.abs(difference).mean() < 4
    source = catalog.source(config(f"records:{tmp_path}/jpeg"), "videos")
    with source.open(0) as episode:
        stored = records.unpack(source.open.read(0))
        stored["jpeg"][stored["ends"][3] :] = 0  # of later frames nothing is left
        record = records.arrays(stored, np.arange(4), source.view)
        assert numbers(record["video"]) == numbers(
            episode.arrays(np.arange(4), source.view)["video"]
        )


def test_a_damaged_record_is_reported_and_replaced(robot, tmp_path):
    ingest(f"mini:{robot}", tmp_path / "out")
    shard = tmp_path / "out/train/00001.array_record"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\0" * (len(data) // 2 - len(data) // 3)
    shard.write_bytes(data)
    (tmp_path / "out/train/00002.array_record").unlink()
    log = tmp_path / "skipped.jsonl"
    stream = pipeline.clips(config(f"records:{tmp_path}/out"), skipped=str(log))
    for batch in take(stream, 30):
        assert batch["video"].shape == (4, F, SIZE, SIZE, 3)
    names = {json.loads(line)["path"].split("[")[0] for line in log.read_text().splitlines()}
    assert names == {str(shard), str(shard).replace("00001", "00002")}


def test_records_are_read_at_a_fraction_of_their_rate_with_all_actions(robot, tmp_path):
    ingest(f"mini:{robot}", tmp_path / "out")
    half = config(f"records:{tmp_path}/out", frames=3, fps=2.0)
    clips = list(pipeline.episodes(half, "videos"))
    assert len({clip["episode"] for clip in clips}) > 2
    for clip in clips:
        shown = np.array(numbers(clip["video"]))
        assert np.diff(shown).tolist() == [2, 2]
        np.testing.assert_array_equal(clip["state"][:, 0], shown)
        actions = clip["actions"].reshape(2, 2, 3)  # steps, actions of a step, their width
        np.testing.assert_array_equal(actions[..., 0], [[n + 0.5, n + 1.5] for n in shown[:-1]])
    drawn = next(pipeline.clips(half))["video"]
    assert all(np.diff(numbers(video)).tolist() == [2, 2] for video in drawn)


def test_a_wrong_rate_a_wrong_folder_and_wrong_flags_are_answered(robot, tmp_path):
    ingest(f"mini:{robot}", tmp_path / "out")
    with pytest.raises(ValueError, match="data.fps: expected 4, the rate .* fraction of it, got 3"):
        pipeline.clips(config(f"records:{tmp_path}/out", fps=3.0))
    with pytest.raises(ValueError, match="expected a folder written by lawm_jax.ingest"):
        pipeline.clips(config(f"records:{tmp_path}"))
    for options, text in (
        (["--out=x"], "expected --videos or --source"),
        ([f"--source=mini:{robot}"], "--out: expected a folder"),
    ):
        failed = subprocess.run(command(*options), cwd=ROOT, capture_output=True, text=True)
        assert failed.returncode and text in failed.stdout + failed.stderr


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """Twenty walks of lawm_mini, and their folder once the tiny encoder's states are stored."""
    root = tmp_path_factory.mktemp("states")
    for split, count in ("train", 16), ("test", 4):
        (root / "walks" / split).mkdir(parents=True)
        for number in range(count):
            for suffix in ".mp4", ".npz":
                name = f"{number:04}{suffix}"
                embedded = pathlib.Path(mini.FOLDER, "nav", split, name)
                (root / "walks" / split / name).symlink_to(embedded)
    options = f"--source=mini:{root}/walks", f"--out={root}/out"
    encoder = ["--encoder=configs/lawm.py:size=tiny"]
    subprocess.run([*COMMAND, *options, *encoder], cwd=ROOT, check=True)
    return root


@pytest.fixture(scope="module")
def clip_states(states):
    """The same walks, as states of a video encoder: of each frame, and of those before it."""
    encoder = ["--encoder=configs/lawm.py:size=tiny", "--encoder.encoder.name=vjepa2_tiny"]
    encoder += ["--encoder.encoder.weights=", "--encoder.encoder.merge=1"]
    options = f"--source=mini:{states}/walks", f"--out={states}/clips"
    subprocess.run([*COMMAND, *options, *encoder], cwd=ROOT, check=True)
    return states


def video_encoder(settings):
    settings.encoder.update(name="vjepa2_tiny", weights="", merge=1)
    return settings


@pytest.mark.parametrize("kind", ["each frame", "each clip"])
def test_stored_states_are_those_of_the_clips(kind, request, get_config):
    from lawm_jax import world_model

    settings = get_config("size=tiny")
    states, folder = request.getfixturevalue("states"), "out"
    if kind == "each clip":
        states, folder = request.getfixturevalue("clip_states"), "clips"
        video_encoder(settings)
    settings.data.sources = {"walks": f"mini:{states}/walks"}
    settings.data.mixture = {"walks": 1.0}
    clips = list(pipeline.episodes(settings, "walks"))
    settings.data.videos = f"records:{states}/{folder}"
    stored = list(pipeline.episodes(settings, "videos"))
    assert len(stored) == len(clips) == 4 * 64 // 4
    model = world_model.build(settings)
    params = {"encoder": world_model.init_encoder(model, np.stack([clips[0]["video"]]))}
    encode = jax.jit(lambda video: world_model.encode(model, params, video))
    for first in range(0, len(clips), 16):
        some, others = clips[first : first + 16], stored[first : first + 16]
        s = encode(np.stack([clip["video"] for clip in some]))
        got = np.stack([clip["states"] for clip in others]).astype(np.float32)
        np.testing.assert_allclose(got, s, rtol=2**-8, atol=1e-5)  # bfloat16 has 8 bits
        for clip, other in zip(some, others, strict=True):
            np.testing.assert_array_equal(clip["actions"], other["actions"])
            np.testing.assert_array_equal(clip["state"], other["state"])
            assert (clip["episode"], clip["start"]) == (other["episode"], other["start"])


def test_clips_of_states_of_single_frames_start_anywhere_and_have_any_length(states, get_config):
    settings = get_config("size=tiny")
    settings.data.frames = 7
    settings.data.sources = {"walks": f"mini:{states}/walks", "states": f"records:{states}/out"}
    walks = catalog.source(settings, "walks", "train")
    stored = catalog.source(settings, "states", "train")
    assert len(stored.items) == len(walks.items) == 16
    starts = set()
    for i in range(16):
        clip, other = (s.clip(s.items[i], np.random.default_rng(i)) for s in (walks, stored))
        assert other["states"].shape[0] == 7 and clip["start"] == other["start"]
        np.testing.assert_array_equal(clip["actions"], other["actions"])
        starts.add(other["start"])
    assert len(starts) > 8


def test_training_reads_stored_states_as_if_they_were_video(
    states, get_config, tmp_path, one_device
):
    import lawm_jax as lawm
    from lawm_jax.evaluate import batched, clips, prediction
    from lawm_jax.train import loop

    settings = get_config("size=tiny")
    settings.data.videos = f"records:{states}/out"
    model, params = loop.fit(settings, str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 20 and rows[-1]["error"] < 0.999 * rows[-1]["copy"]
    encode = jax.jit(functools.partial(lawm.encode, model, params), compiler_options=COMPUTES_MORE)
    stored = clips.held_out(settings, "videos", encode)
    assert stored.video is None
    settings.data.sources = {"walks": f"mini:{states}/walks"}
    seen = clips.held_out(settings, "walks", encode)
    assert list(stored.episodes) == list(seen.episodes)
    model = {"model": batched.batched(model, params)}
    rows = [prediction.compare(model, x.s, x.episodes)[1] for x in (stored, seen)]
    assert rows[0]["error"]["mean"] == pytest.approx(rows[1]["error"]["mean"], rel=1e-2)


def test_states_of_another_encoder_or_clip_are_refused(states, clip_states, get_config):
    settings = get_config("size=tiny")
    settings.data.videos = f"records:{states}/out"
    settings.encoder.merge = 4
    with pytest.raises(ValueError, match="encoder: expected .*'merge': 2.*states of .*'merge': 4"):
        pipeline.clips(settings)
    settings = video_encoder(get_config("size=tiny"))
    settings.data.videos = f"records:{clip_states}/clips"
    settings.data.frames = 8
    with pytest.raises(ValueError, match="data.frames: expected 4, the clip length .*, got 8"):
        pipeline.clips(settings)
    settings = get_config("size=tiny")
    settings.data.sources.walks = f"records:{states}/out"
    settings.data.mixture.walks = 1.0
    with pytest.raises(ValueError, match="data.mixture: expected the same video shape"):
        pipeline.clips(settings)

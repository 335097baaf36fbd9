"""Streams of clips from video files and labelled sets; see `drawing` for the films."""

import concurrent.futures
import gc
import io
import json
import logging
import os
import pathlib
import subprocess
import sys

import av
import ml_collections
import numpy as np
import pytest
from drawing import draw, every, numbers, write  # noqa: F401

from lawm_jax.data import catalog, mini, pipeline, video

F, SIZE = 4, 48  # 4 frames at 4 fps: clips span 0.75 s


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A folder that holds those of `folder` and of `broken`."""
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def folder(everything):
    """A folder of good videos of every kind; their numbers start at 0."""
    root = everything / "good"
    write(root / "a.mp4", every(24, 10), (65, 49), pixels="yuv444p")
    write(root / "b.avi", every(30, 15), codec="mpeg4")
    write(root / "c.MOV", every(60, "30000/1001"), (48, 80), options={"g": "250"})
    write(root / "deep/d.webm", every(24, 12), (64, 48), codec="libvpx-vp9")
    write(root / "deep/e.mkv", every(8, 4), options={"g": "1"})
    write(root / "deep/er/f.mpg", every(50, 25), (64, 48), codec="mpeg2video")
    return root


@pytest.fixture(scope="module")
def broken(everything):
    """A folder, and a map from the broken videos in it to a part of each one's reason."""
    root = everything / "bad"
    write(root / "short.mp4", every(2, 4))
    write(root / "one.mp4", every(1, 4))
    whole = open(write(root / "cut.mp4", every(24, 10)), "rb").read()
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "empty.avi").write_bytes(b"")
    (root / "text.mp4").write_text("This is not a video.\n" * 100)
    (root / "playlist.mp4").write_text(
        "#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with av.open(str(root / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    return root, {
        "short.mp4": "0.5 s long, but a clip needs more than 0.75 s",
        "one.mp4": "0.25 s long, but a clip needs more than 0.75 s",
        "cut.mp4": "nvalid data",
        "empty.avi": "empty file",
        "text.mp4": "nvalid data",
        "playlist.mp4": "nvalid data",
        "sound.mkv": "no video stream",
    }


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A set with the layout of lawm_mini whose labels count frames."""
    root = tmp_path_factory.mktemp("mini")
    for part, name in enumerate(("nav", "panda")):
        for split, episodes in ("train", 3), ("test", 2):
            for episode in range(episodes):
                first = 100 * part + 20 * episode
                path = write(root / name / split / f"{episode:04}.mp4", every(16, 4), first=first)
                count = np.float32(first + np.arange(16))[:, None]
                labels = {"actions": count[:-1].repeat(3, 1) + 0.5, "state": count.repeat(5, 1)}
                np.savez(path[:-4] + ".npz", **labels)
    return root


def config(videos="", seed=0, labelled="", augment=(), **data):
    off = dict(crop=False, area=(0.3, 1.0), ratio=(0.75, 1.35), flip=0.0, jitter=0.0, cut=0.0)
    defaults = dict(frames=F, fps=4.0, resize=SIZE, size=SIZE, batch=4, holdout=0.2, workers=0)
    defaults["sources"] = {name: f"mini:{labelled}/{name}" for name in ("panda", "nav")}
    defaults |= {"mixture": {"panda": 1.0, "nav": 2.0}, "augment": off | dict(augment)}
    data = {**defaults, "videos": str(videos), **data}
    return ml_collections.ConfigDict({"seed": seed, "data": data})


def take(stream, count):
    return [next(stream) for _ in range(count)]


def same(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_a_single_video_serves_both_splits_and_says_so(folder, caplog):
    only = config(folder / "a.mp4")
    with caplog.at_level(logging.WARNING):
        assert next(pipeline.clips(only, "test"))["video"].shape == (4, F, SIZE, SIZE, 3)
    assert "the only video: it is used for training and testing" in caplog.text


def test_a_mixed_folder_gives_full_batches_and_reports_each_broken_file_once(
    everything, folder, broken, tmp_path, caplog
):
    log = tmp_path / "work" / "skipped.jsonl"
    root, reasons = broken
    train, _ = video.split_videos(str(everything), 0.0)
    with caplog.at_level(logging.WARNING):
        stream = pipeline.clips(config(everything, holdout=0.0), skipped=str(log))
        for batch in take(stream, 12):
            assert batch.keys() == {"video", "source", "episode", "start"}
            assert batch["video"].shape == (4, F, SIZE, SIZE, 3)
            assert batch["video"].dtype == np.uint8
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    wanted = {str(root / name) for name in reasons} & set(train)
    assert sorted(line["path"] for line in lines) == sorted(wanted) and len(wanted) >= 6
    for line in lines:
        assert reasons[os.path.basename(line["path"])] in line["reason"]
        assert caplog.text.count(line["path"]) == 1
    assert f"skipped file ({len(lines)} so far): " in caplog.text


def test_nothing_readable_is_an_error_that_names_the_pattern_and_the_reasons(broken):
    root, reasons = broken
    with pytest.raises(ValueError) as caught:
        pipeline.clips(config(root / "**/*.mp4", holdout=0.0))
    assert f"data.videos='{root}/**/*.mp4'" in str(caught.value)
    assert "can be read" in str(caught.value) and "Invalid data" in str(caught.value)
    with pytest.raises(ValueError, match=f"no such file or folder: '{root}/nowhere'"):
        pipeline.clips(config(root / "nowhere"))
    (root / "empty").mkdir()
    for nothing in "empty", "*.nothing":
        with pytest.raises(ValueError, match="no file with one of the suffixes"):
            pipeline.clips(config(root / nothing))


def test_a_stream_resumes_from_its_state_with_the_same_batches(
    everything, folder, broken, labelled
):
    for settings in config(everything, holdout=0.0), config(labelled=labelled):
        stream = pipeline.clips(settings)
        take(stream, 3)
        state = stream.get_state()
        assert state == {"examples": 12}  # the number of examples: broken files don't shift it
        later = take(stream, 3)
        fresh = pipeline.clips(settings)
        fresh.set_state(state)
        same(take(fresh, 3), later)
        stream.set_state(state)
        same(take(stream, 2), later[:2])


def processes_share(settings):
    """Asserts that 2 and 4 processes read the parts of the batches of one; returns those."""
    whole = take(pipeline.clips(settings), 4)
    for count in 2, 4:
        shares = [
            take(pipeline.clips(settings, process_index=i, process_count=count), 4)
            for i in range(count)
        ]
        for step, batch in enumerate(whole):
            for key in batch:
                parts = np.concatenate([share[step][key] for share in shares])
                np.testing.assert_array_equal(parts, batch[key])
    return whole


def test_one_two_and_four_processes_read_the_same_global_batches(
    everything, folder, broken, labelled
):
    for settings in config(everything, holdout=0.0), config(labelled=labelled):
        processes_share(settings)
    with pytest.raises(ValueError, match="data.batch: expected a multiple of 3, got 4"):
        pipeline.clips(settings, process_count=3)


def test_threads_and_worker_processes_do_not_change_the_order(
    everything, folder, broken, monkeypatch
):
    settings = config(everything, holdout=0.0)
    wanted = take(pipeline.clips(settings), 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    same(take(pipeline.clips(settings), 3), wanted)
    settings.data.workers = 2
    stream = pipeline.clips(settings)
    same(take(stream, 2), wanted[:2])
    state = stream.get_state()
    same(take(stream, 1), wanted[2:])
    stream.set_state(state)
    same(take(stream, 1), wanted[2:])
    stream.close()


def test_epochs_and_seeds_differ_in_order_and_in_starts(labelled):
    settings = config(labelled=labelled, mixture={"nav": 1.0}, batch=3)

    def epochs(seed):
        settings.seed = seed
        batches = take(pipeline.clips(settings), 8)
        return [[numbers(clip)[0] for clip in batch["video"]] for batch in batches]

    first = epochs(0)
    for epoch in first:
        assert sorted(number // 20 for number in epoch) == [0, 1, 2]  # each episode once
    assert len({tuple(number // 20 for number in epoch) for epoch in first}) > 1
    assert len({number for epoch in first for number in epoch}) > 8
    assert epochs(0) == first != epochs(1)


def test_labels_belong_to_their_frames_and_weights_of_the_mixture_hold(labelled):
    batches = take(pipeline.clips(config(labelled=labelled, batch=6)), 3)
    for batch in batches:
        labels = {"actions", "state"}
        assert batch.keys() == {"video", "source", "episode", "start"} | labels
        assert batch["actions"].dtype == np.float32 and batch["actions"].shape == (6, F - 1, 3)
        assert batch["source"].dtype == np.int32
        assert np.bincount(batch["source"]).tolist() == [4, 2]  # nav twice as often as panda
        for clip, actions, source in zip(
            batch["video"], batch["actions"], batch["source"], strict=True
        ):
            shown = numbers(clip)
            assert np.diff(shown).tolist() == [1] * (F - 1) and shown[0] // 100 == source
            np.testing.assert_array_equal(actions[:, 0], np.array(shown[:-1]) + 0.5)


def test_evaluation_clips_are_fixed_and_carry_labels(labelled, folder):
    clips = list(pipeline.episodes(config(labelled=labelled), "panda"))
    number = lambda clip: int(os.path.basename(clip["episode"])[:4])  # noqa: E731
    assert [(number(clip), clip["start"]) for clip in clips] == [
        (episode, start) for episode in (0, 1) for start in (0, 4, 8, 12)
    ]
    for clip in clips:
        wanted = 100 + 20 * number(clip) + clip["start"] + np.arange(F)
        assert numbers(clip["video"]) == wanted.tolist() and clip["source"] == "panda"
        np.testing.assert_array_equal(clip["state"][:, 0], wanted)
        np.testing.assert_array_equal(clip["actions"][:, 0], wanted[:-1] + 0.5)
    settings = config(folder, holdout=0.5)
    found = [(clip["episode"], clip["start"]) for clip in pipeline.episodes(settings, "videos")]
    assert {path for path, _ in found} == set(video.split_videos(str(folder), 0.5)[1])
    assert len(found) == 2 * len({path for path, _ in found})  # of 2 s each
    with pytest.raises(ValueError, match="expected names from data.sources, got 'sofa'"):
        next(pipeline.episodes(config(labelled=labelled), "sofa"))


def test_a_large_source_is_evaluated_on_items_that_are_evenly_spread(folder):
    settings = config(folder, holdout=0.9)
    items = video.split_videos(str(folder), 0.9)[1]
    for most, wanted in (1, items[:1]), (3, items[::2]), (9, items):
        clips = pipeline.episodes(settings, "videos", most=most)
        assert list(dict.fromkeys(clip["episode"] for clip in clips)) == wanted
    assert len(items) == 5


def test_many_threads_may_read_labels(labelled):
    source = mini.source("nav", str(labelled / "nav"), "train", config().data, view=None)
    read = lambda _: source.clip(source.items[0], np.random.default_rng(0))  # noqa: E731
    switch, collect = sys.getswitchinterval(), gc.get_threshold()
    call = lambda *_: None  # noqa: E731
    gc.callbacks.append(call)  # JAX has one, too: threads may change while garbage is collected
    gc.set_threshold(50)
    sys.setswitchinterval(1e-5)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(read, range(3000)))) == 3000
    finally:
        gc.callbacks.remove(call)
        gc.set_threshold(*collect)
        sys.setswitchinterval(switch)


def test_labels_that_do_not_fit_are_reported(labelled, tmp_path):
    path = write(tmp_path / "nav/test/0000.mp4", every(8, 4))
    source = catalog.source(config(labelled=tmp_path), "nav", "test")
    with pytest.raises(video.UnreadableVideo, match="labels: "):
        source.clip(path, np.random.default_rng(0))
    labels = pathlib.Path(path[:-4] + ".npz")
    np.savez(labels, actions=np.zeros((8, 3)), state=np.zeros((8, 2)))
    with pytest.raises(video.UnreadableVideo, match="expected 7 actions, one per step, got 8"):
        source.clip(path, np.random.default_rng(0))
    np.savez_compressed(labels, actions=np.ones((7, 3)), state=np.ones((8, 2)))
    good = labels.read_bytes()
    start = good.index(b"actions.npy") + 11 + 20  # behind the name and zip64's field
    method = good.replace(b"\x08\0", b"\x63\0")  # of the compression, wherever it stands
    flipped = good[:start] + bytes(255 - x for x in good[start : start + 40]) + good[start + 40 :]
    array = io.BytesIO()
    np.save(array, np.zeros((8, 3)))
    for content in (array.getvalue(), good[:100], flipped, method, b""):
        labels.write_bytes(content)
        with pytest.raises(video.UnreadableVideo, match="labels: "):
            source.clip(path, np.random.default_rng(0))
    labels.write_bytes(good)
    assert source.clip(path, np.random.default_rng(0))["actions"].shape[-1] == 3


def test_importing_the_data_modules_loads_neither_grain_nor_pyav():
    code = "import sys, lawm_jax.data.pipeline; assert not {'grain', 'av'} & set(sys.modules)"
    root = pathlib.Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


class Noise:
    """A source of 6 items of noise, of which the last two are for tests."""

    def __init__(self, name, where, split, data, view, level="1"):
        self.name, self.level, self.shape = (
            f"{name} {where}",
            float(level),
            (data.frames, view.size),
        )
        self.items = ("a", "b", "c", "d") if split == "train" else ("e", "f")

    def clip(self, item, random):
        F, size = self.shape
        video = (self.level * random.integers(0, 256, (F, size, size, 3))).astype(np.uint8)
        return {"video": video, "episode": item, "start": 0.0}

    def fixed(self, item):
        yield self.clip(item, np.random.default_rng(0))


def test_a_new_source_is_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(catalog.KINDS, "noise", Noise)
    settings = config("", sources={"x": "noise:here?level=0.5"}, mixture={"x": 1.0})
    batch = next(pipeline.clips(settings))
    assert batch["video"].shape == (settings.data.batch, F, SIZE, SIZE, 3)
    assert 100 < batch["video"].max() < 128
    found = list(pipeline.episodes(settings, "x"))
    assert [clip["episode"] for clip in found] == ["e", "f"]
    with pytest.raises(ValueError, match="data.sources.x=.*unexpected keyword argument 'loud'"):
        catalog.source(config("", sources={"x": "noise:here?loud=1"}, mixture={"x": 1.0}), "x")

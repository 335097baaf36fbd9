"""Tests of lawm_jax.data. Each frame carries its number as 3 x 3 black and white blocks."""

import fractions
import json
import logging
import os
import pathlib
import struct
import subprocess
import sys

import av
import ml_collections
import numpy as np
import pytest

from lawm_jax.data import frames, pipeline, video

F, SIZE = 4, 48  # 4 frames at 4 fps: clips span 0.75 s


def draw(number, width, height):
    """Draws a number in the centre square of a picture uint8 [H, W, 3]."""
    image = np.full((height, width, 3), 128, np.uint8)
    side = min(width, height)
    rows = np.arange(side) * 3 // side
    bits = (number >> np.arange(9).reshape(3, 3)) & 1
    top, left = (height - side) // 2, (width - side) // 2
    square = 255 * bits[rows][:, rows].astype(np.uint8)
    image[top : top + side, left : left + side] = square[..., None]
    return image


def numbers(clip):
    """Reads the numbers back from uint8 [F, S, S, 3]."""
    side = clip.shape[1]
    centres = side // 6 + np.arange(3) * side // 3
    bits = clip[:, centres][:, :, centres].mean(-1) > 128
    return (bits.reshape(len(clip), 9) << np.arange(9)).sum(-1).tolist()


def write(path, times, size=(64, 48), codec="libx264", pixels="yuv420p", first=0, options=None):
    """Writes a video whose frame i, shown from times[i] (seconds), is number first + i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [fractions.Fraction(time).limit_denominator(1001) for time in times]
    rate = 1 / (times[1] - times[0]) if len(times) > 1 else fractions.Fraction(4)
    base = fractions.Fraction(1, 1000) if len(set(np.diff(times))) > 1 else 1 / rate
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = base
        for number, time in enumerate(times, first):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def every(count, rate):
    return [i / fractions.Fraction(rate) for i in range(count)]


def read(path, start, resize=SIZE, size=SIZE):
    return video.read_clip(path, start, F, 4.0, frames.View(size, resize))


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
        "short.mp4": "0.5 s long, needs more than 0.75 s",
        "one.mp4": "0.25 s long, needs more than 0.75 s",
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


def test_a_video_of_the_clips_own_rate_gives_exactly_its_frames(folder):
    path = str(folder / "deep/e.mkv")
    for start in range(5):
        clip = read(path, start / 4)
        assert numbers(clip["video"]) == [start, start + 1, start + 2, start + 3]
        assert clip["start"] == start / 4
    assert clip["video"].dtype == np.uint8 and clip["video"].shape == (F, SIZE, SIZE, 3)


@pytest.mark.parametrize(
    "name, rate, count",
    [("a.mp4", 10, 24), ("b.avi", 15, 30), ("c.MOV", 30000 / 1001, 60), ("deep/d.webm", 12, 24)]
    + [("deep/er/f.mpg", 25, 50)],
)
def test_frames_are_those_on_screen_at_the_wanted_times(folder, name, rate, count):
    path = str(folder / name)
    exact = not name.endswith(".mpg")  # which states no duration: FFmpeg estimates it
    assert video.duration(path) == pytest.approx(count / rate, abs=0.05 if exact else 1.0)
    for start in (0.0, 0.31, 0.77, 1.01):
        wanted = np.floor((start + np.arange(F) / 4) * rate + 0.02).astype(int).tolist()
        assert numbers(read(path, start)["video"]) == wanted
    last = numbers(read(path, lambda latest: latest)["video"])[-1]
    assert last == count - 1 or not exact


def test_frames_of_a_variable_rate_video_are_those_on_screen(tmp_path):
    times = [0, 0.1, 0.15, 0.6, 0.65, 0.7, 1.5, 1.55, 2.2]
    for name in "vfr.mkv", "vfr.mp4":
        path = write(tmp_path / name, times)
        for start in (0.0, 0.12, 0.68, 0.9, 1.2):
            wanted = np.searchsorted(times, start + np.arange(F) / 4 + 1e-3) - 1
            assert numbers(read(path, start)["video"]) == wanted.tolist()


def test_seeking_between_keyframes_gives_what_reading_from_the_start_gives(tmp_path):
    path = write(tmp_path / "b.mp4", every(120, 10), options={"g": "30", "bf": "3"})
    for start in (2.9, 3.0, 3.04, 5.95, 6.0, 11.2):
        wanted = np.floor((start + np.arange(F) / 4) * 10 + 0.02).astype(int).tolist()
        assert numbers(read(path, start)["video"]) == wanted


def test_the_start_is_drawn_from_the_whole_video(folder):
    seen = []
    path = str(folder / "deep/e.mkv")
    read(path, lambda latest: seen.append(latest) or 0.0)
    assert seen == [pytest.approx(2.0 - 0.75)]


@pytest.mark.parametrize("name, place", [("cut.mkv", 0.9), ("cut.avi", 0.5)])
def test_a_video_that_was_cut_is_read_up_to_where_it_ends(tmp_path, name, place):
    path = write(tmp_path / name, every(40, 10), (160, 120), "mpeg4", options={"g": "5"})
    whole = open(path, "rb").read()
    (tmp_path / name).write_bytes(whole[: len(whole) * 7 // 10])
    assert numbers(read(path, 0.0)["video"]) == [0, 2, 5, 7]
    later = numbers(read(path, lambda latest: place * latest)["video"])
    assert 5 < later[0] < later[-1] < 28 and set(np.diff(later)) == {2, 3}
    with pytest.raises(video.UnreadableVideo, match="no frame at|damaged frame") as caught:
        read(path, 3.2)
    assert caught.value.start == 3.2


@pytest.mark.parametrize("degrees, turns", [(90, 3), (180, 2), (270, 1)])
def test_a_video_that_its_metadata_rotates_comes_upright(tmp_path, degrees, turns):
    path = write(tmp_path / "phone.mp4", every(8, 4), first=0b000001011)
    upright = read(path, 0.0)["video"]
    data = bytearray(open(path, "rb").read())
    sine, cosine = round(np.sin(np.radians(degrees))), round(np.cos(np.radians(degrees)))
    at = data.index(b"tkhd") + 44  # the display matrix, clockwise
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0]
    data[at : at + 24] = struct.pack(">6i", *matrix)
    open(path, "wb").write(data)
    turned = read(path, 0.0)["video"]
    wanted = np.rot90(upright, turns, axes=(1, 2))
    assert np.abs(turned.astype(int) - wanted).max() <= 2


def test_a_picture_of_the_wanted_size_is_left_alone_and_others_are_scaled_then_cropped(tmp_path):
    path = write(tmp_path / "a.mkv", every(8, 4), (48, 48), "ffv1", "bgr0", first=340)
    wanted = np.stack([draw(340 + i, 48, 48) for i in range(F)])
    np.testing.assert_array_equal(read(path, 0.0, resize=56)["video"], wanted)
    larger = read(path, 0.0, resize=64, size=32)["video"]  # the centre quarter, at 4/3 of its size
    assert larger.shape == (F, 32, 32, 3)
    middle = 255 * ((340 + np.arange(F)) >> 4 & 1)
    assert np.all(larger[:, 8:24, 8:24] == middle[:, None, None, None])
    with pytest.raises(ValueError, match="resize: expected at least size = 64, got 48"):
        read(path, 0.0, size=64)


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(2, 1)
        image = np.zeros((48, 48, 3), np.uint8)
        image[:, 12:36] = 255  # the centre square once pixels are 2:1
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    assert read(str(path), 0.0, resize=96, size=80)["video"].min() > 200


def test_every_kind_of_broken_video_is_refused_with_its_reason(broken):
    root, reasons = broken
    for name, reason in reasons.items():
        with pytest.raises(video.UnreadableVideo, match=reason) as caught:
            read(str(root / name), lambda latest: latest / 2)
        assert caught.value.start is None
    with pytest.raises(video.UnreadableVideo, match="No such file"):
        read("http://127.0.0.1:9/a.mp4", 0.0)


def test_videos_are_found_by_folder_glob_file_and_list(folder, tmp_path):
    names = ["a.mp4", "b.avi", "c.MOV", "deep/d.webm", "deep/e.mkv", "deep/er/f.mpg"]
    paths = [str(folder / name) for name in names]
    (folder / "notes.txt").write_text("no video")
    assert video.find_videos(str(folder)) == paths
    assert video.find_videos(f"{folder}/**/*.m*") == [paths[0], paths[4], paths[5]]
    assert video.find_videos(paths[3]) == [paths[3]]
    assert video.find_videos([paths[1], str(folder / "*.avi"), paths[0]]) == paths[:2]
    with pytest.raises(ValueError, match="none.*mp4"):
        video.find_videos(str(tmp_path / "none*.mp4"))


def test_the_split_is_disjoint_stable_and_close_to_its_fraction(tmp_path):
    def files(root, count):
        for i in range(count):
            (root / f"{i % 7}").mkdir(parents=True, exist_ok=True)
            (root / f"{i % 7}/{i}.mp4").touch()
        train, test = video.split_videos(str(root), 0.2)
        assert not set(train) & set(test) and len(train) + len(test) == count
        return {os.path.relpath(path, root) for path in test}

    few, many = files(tmp_path / "a", 40), files(tmp_path / "a", 300)
    assert few <= many and 40 <= len(many) <= 80
    assert files(tmp_path / "elsewhere", 300) == many
    for count in 2, 3:
        for holdout in 0.0, 1.0:
            files(tmp_path / f"{count}", count)
            sides = video.split_videos(str(tmp_path / f"{count}"), holdout)
            assert min(map(len, sides)) == 1
    assert video.split_videos(str(tmp_path / "2/0/0.mp4"), 0.2) == (
        [str(tmp_path / "2/0/0.mp4")],
        [str(tmp_path / "2/0/0.mp4")],
    )


def test_a_single_video_serves_both_splits_and_says_so(folder, caplog):
    only = config(folder / "a.mp4")
    with caplog.at_level(logging.WARNING):
        assert next(pipeline.clips(only, "test"))["video"].shape == (4, F, SIZE, SIZE, 3)
    assert "the only video: it is used for training and for testing" in caplog.text


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
    assert f"skipped file {len(lines)}, " in caplog.text


def test_nothing_readable_is_an_error_that_names_the_pattern_and_the_reasons(broken):
    root, reasons = broken
    with pytest.raises(ValueError) as caught:
        pipeline.clips(config(root / "**/*.mp4", holdout=0.0))
    assert f"data.videos='{root}/**/*.mp4'" in str(caught.value)
    assert "can be read" in str(caught.value) and "Invalid data" in str(caught.value)
    with pytest.raises(ValueError, match="no file with a suffix"):
        pipeline.clips(config(root / "nowhere"))


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


def test_one_two_and_four_processes_read_the_same_global_batches(
    everything, folder, broken, labelled
):
    for settings in config(everything, holdout=0.0), config(labelled=labelled):
        whole = take(pipeline.clips(settings), 4)
        for count in 2, 4:
            shares = [
                take(pipeline.clips(settings, process_index=i, process_count=count), 4)
                for i in range(count)
            ]
            for step, batch in enumerate(whole):
                for key in batch:
                    parts = np.stack([share[step][key] for share in shares], 1)
                    np.testing.assert_array_equal(parts.reshape(batch[key].shape), batch[key])
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
    with pytest.raises(ValueError, match="expected names of data.sources, got 'sofa'"):
        next(pipeline.episodes(config(labelled=labelled), "sofa"))


def test_labels_that_do_not_fit_are_reported(labelled, tmp_path):
    path = write(tmp_path / "nav/test/0000.mp4", every(8, 4))
    source = pipeline.source(config(labelled=tmp_path), "nav", "test")
    with pytest.raises(video.UnreadableVideo, match="its labels"):
        source.clip(path, np.random.default_rng(0))
    np.savez(path[:-4] + ".npz", actions=np.zeros((8, 3)), state=np.zeros((8, 2)))
    with pytest.raises(video.UnreadableVideo, match="8 actions for 8 states"):
        source.clip(path, np.random.default_rng(0))


def test_importing_the_data_modules_loads_neither_grain_nor_pyav():
    code = "import sys, lawm_jax.data.pipeline; assert not {'grain', 'av'} & set(sys.modules)"
    root = pathlib.Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)

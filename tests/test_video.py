"""Reading video files: which frames come, from where, and what is refused."""

import collections
import dataclasses
import fractions
import functools
import itertools
import json
import math
import os
import pathlib
import shutil
import socket
import struct
import sys
import time
from typing import NamedTuple

import av
import fsspec
import numpy as np
import pytest
import test_data
from drawing import draw, every, numbers, write
from test_data import SIZE, F

from lawm_jax.data import container, decode, frames, lists, pipeline, video

everything, folder, broken = test_data.everything, test_data.folder, test_data.broken
VIEW = frames.View(SIZE, SIZE)
LAYERS = {"temporal-layers": 3, "b-adapt": 0, "bframes": 7, "keyint": 60, "b-pyramid": 1}
LAG = {"deadline": "good", "cpu-used": "5", "lag-in-frames": "8", "auto-alt-ref": "1", "g": "20"}


def x264(**options):
    return {"g": "20", "x264-params": ":".join(f"{k}={v}" for k, v in options.items())}


def x265(**options):
    options = {"log-level": "none", "keyint": 20, "bframes": 4} | options
    return {"preset": "superfast", "x265-params": ":".join(f"{k}={v}" for k, v in options.items())}


# Every way of referring to other frames; of each: file, codec, its options.
FILMS = {
    "pyramid.mp4": ("libx264", x264(scenecut=0, bframes=5, ref=5)),
    "pyramid.mkv": ("libx264", x264(scenecut=0, bframes=5, ref=5)),
    "strict.mov": ("libx264", x264(bframes=6, ref=6) | {"b-pyramid": "strict"}),
    "open.mp4": ("libx264", x264(**{"open-gop": 1, "scenecut": 0, "bframes": 4})),
    "open.ts": ("libx264", x264(**{"open-gop": 1, "scenecut": 0, "bframes": 4})),
    "interlaced.mp4": ("libx264", x264(tff=1, bframes=3)),
    "baseline.mp4": ("libx264", {"profile": "baseline", "g": "20"}),
    "open.hevc.mp4": ("libx265", x265(**{"open-gop": 1, "b-pyramid": 1})),
    "layers.hevc.mp4": ("libx265", x265(**LAYERS)),
    "hevc.ts": ("libx265", x265()),
    "mpeg2.ts": ("mpeg2video", {"bf": "2", "g": "12"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "2", "g": "12"}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "reordered.avi": ("mpeg4", {"bf": "2", "g": "12"}),
    "vp8.webm": ("libvpx", LAG),
    "vp9.webm": ("libvpx-vp9", LAG),
    "av1.mp4": ("libsvtav1", {"preset": "12", "g": "20"}),
    "jpeg.avi": ("mjpeg", {}),
    "edited.mp4": ("libx264", x264(scenecut=0, bframes=5, ref=5)),
    "variable.mp4": ("libx264", x264(bframes=3)),
    "variable.mkv": ("libx264", x264(bframes=3)),
}
# What the packets of these say can't be relied on: the last two have one timestamp, a stripe is
# refreshed in place of keyframes, AVI has no timestamps, and all frames claim to be keyframes.
DOUBTFUL = {
    "mpeg2.mpg": ("mpeg2video", {"bf": "2", "g": "12"}),
    "refresh.mp4": ("libx264", x264(**{"intra-refresh": 1})),
    "unordered.avi": ("libx264", x264(bframes=3)),
    "claims.mp4": ("mpeg4", {"g": "12"}),
}


def pan(path, codec, options, count=75, size=(96, 64)):
    """Writes a camera's pan over noise, with two cuts: 25 frames per second, or a variable rate."""
    random = np.random.default_rng(0)
    ground = np.kron(random.integers(0, 256, (160, 160, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    variable = "variable" in path.name
    times = np.cumsum(random.uniform(0.004, 0.1, count)) if variable else np.arange(count) / 25
    base = fractions.Fraction(1, 1000 if variable else 25)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = base
        for i, at in enumerate(times):
            x, y = 2 * i % 90 + 60 * (i // 30), int(40 + 30 * math.sin(i / 9))
            image = np.ascontiguousarray(ground[y : y + size[1], x : x + size[0]])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(at / base), base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.fixture(scope="module")
def pans(tmp_path_factory):
    """Returns a function: name -> path, times and pictures of all frames, by PyAV alone."""
    root = tmp_path_factory.mktemp("pans")

    @functools.cache
    def make(name):
        pan(root / name, *(FILMS | DOUBTFUL)[name])
        if name == "edited.mp4":  # the edit list starts between two keyframes
            data = bytearray((root / name).read_bytes())
            at = data.index(b"elst") + 16
            data[at : at + 4] = struct.pack(">I", 512 * 28)
            (root / name).write_bytes(data)
        with av.open(str(root / name)) as file:
            stream = file.streams.video[0]
            decoded = list(file.decode(stream))
            times = [float((f.pts - decoded[0].pts) * stream.time_base) for f in decoded]
            if name == "unordered.avi":
                times = np.arange(len(decoded)) / 25
            if name == "claims.mp4":
                data = open(root / name, "rb").read()
                (root / name).write_bytes(data.replace(b"stss", b"free"))
            return str(root / name), np.array(times), [f.to_ndarray() for f in decoded]

    return make


def windows(times):
    """Lists starts, rates and counts; some start at a frame."""
    random = np.random.default_rng(0)
    for rate, count in itertools.product((1.0, 4.0, 7.3, 25.0, 60.0), (1, 2, 5, 16)):
        latest = times[-1] - (count - 1) / rate
        if latest > 0:
            yield random.uniform(0, latest), rate, count
            yield times[random.integers(np.searchsorted(times, latest, "right"))], rate, count


def check(name, pans):
    """Compares what is decoded with a search among all frames."""
    path, times, pictures = pans(name)
    for start, rate, count in windows(times):
        wanted = np.searchsorted(times, start + np.arange(count) / rate + 1e-3, "right") - 1
        wanted = np.maximum(wanted, 0)  # before the first one
        with OPENED(path) as film:
            asked = decode.Times(start, rate, count)
            got = list(decode.shown(film, asked, lambda frame: frame.to_ndarray()))
        assert len(got) == count
        for picture, number in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(picture, pictures[number])


OPENED = container.opened


def refuse(*args):  # a file is opened again where every frame is decoded
    raise AssertionError("every frame is decoded")


@pytest.mark.parametrize("name", FILMS)
def test_frames_are_bit_for_bit_those_of_decoding_everything(pans, monkeypatch, name):
    monkeypatch.setattr(container, "opened", refuse)
    check(name, pans)


@pytest.mark.parametrize("name", ["pyramid.mp4", "open.mp4", "open.hevc.mp4", "variable.mkv"])
def test_frames_are_the_same_where_few_packets_fit_into_the_memory(pans, monkeypatch, name):
    monkeypatch.setattr(container, "opened", refuse)
    for packets in 12, 13, 14, 18:
        monkeypatch.setattr(decode, "PACKETS", packets)
        check(name, pans)


@pytest.mark.parametrize("name", DOUBTFUL)
def test_where_packets_cannot_be_relied_on_every_frame_is_decoded(pans, name):
    check(name, pans)


@pytest.mark.parametrize("name", ["pyramid.mp4", "open.mp4", "mpeg2.ts", "vp9.webm"])
def test_decoding_everything_gives_the_same_frames(pans, monkeypatch, name):
    def doubt(*args):
        raise decode.Doubtful
        yield

    monkeypatch.setattr(decode, "plan_packets", doubt)
    check(name, pans)


class Reel:
    """A film of packets alone, in random groups of frames that refer to others in any order."""

    average_rate = 25

    def __init__(self, random, groups, delay=8):
        self.all, first, made = [], 0, collections.defaultdict(list)
        for group in range(groups):
            length = int(random.integers(1, 30))
            order = [0]  # of the frames of a group, as decoded: no frame moves far
            order += sorted(range(1, length), key=lambda i: i + random.uniform(0, 6))
            leading = int(random.integers(0, 4)) if group else 0  # shown before their keyframe
            for i in order:
                made[group].append((first + leading + i, i == 0))
            made[group][1:1] = [(first + i, False) for i in random.permutation(leading)]
            first += leading + length
        packets = [(pts, key, g) for g in made for pts, key in made[g]]
        for place, (pts, key, group) in enumerate(packets):
            dts = place - delay if place % 50 or not place else None
            self.all.append(Packet(int(pts), dts, key, group, place))

    def packets(self, start):
        keys = [p for p in self.all if p.is_keyframe and p.pts <= max(0, start) * 25]
        return iter(self.all[keys[-1].place :]), start <= 0

    def seconds(self, pts):
        return pts / 25

    def display_time(self, packet):
        return 1 / 25


class Packet(NamedTuple):
    pts: int
    dts: int
    is_keyframe: bool
    group: int
    place: int
    size: int = 1
    is_discard: bool = False


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_holds_all_that_wanted_frames_may_refer_to(monkeypatch, seed):
    random = np.random.default_rng(seed)
    reel = Reel(random, 12)
    last = max(packet.pts for packet in reel.all)
    monkeypatch.setattr(decode, "PACKETS", int(random.integers(14, 60)))
    for fps in 2.0, 6.0, 30.0:
        start = random.uniform(0, last / 50)
        times = decode.Times(start, fps, int(random.integers(1, (last / 25 - start) * fps)))
        wanted = np.floor((start + np.arange(times.count) / fps + 1e-3) * 25).astype(int)
        planned, began = [], -1
        for packet, count, enters in decode.plan_packets(reel, times, grace=False):
            assert count == (wanted == packet.pts).sum()
            assert enters == (packet.place != planned[-1].place + 1 if planned else True)
            planned.append(packet)
            began = packet.place if enters else began
            if count:  # its group from the keyframe on, and the one before where it leads
                key = next(p for p in reel.all if p.group == packet.group)
                group = packet.group - (packet.pts < key.pts)
                assert began <= next(p.place for p in reel.all if p.group == group)
        assert set(wanted) <= {packet.pts for packet in planned}
        assert len(planned) < len(reel.all)


def test_packets_whose_order_cannot_be_told_are_doubted_not_collected():
    late = Reel(np.random.default_rng(0), 200, delay=3000)  # shown long after they are decoded
    with pytest.raises(decode.Doubtful):
        list(decode.plan_packets(late, decode.Times(0.0, 4.0, math.inf), grace=False))
    again = Reel(np.random.default_rng(0), 200)
    back = lambda p: p._replace(pts=p.pts - 1400, dts=p.dts and p.dts - 1400)  # noqa: E731
    again.all[1500:] = map(back, again.all[1500:])
    with pytest.raises(decode.Doubtful):
        list(decode.plan_packets(again, decode.Times(0.0, 4.0, math.inf), grace=False))


def test_only_wanted_frames_and_what_they_refer_to_are_decoded(pans, monkeypatch):
    plan, planned = decode.plan_packets, []
    monkeypatch.setattr(
        decode, "plan_packets", lambda *args: (planned.append(p) or p for p in plan(*args))
    )
    for name, start, least, most in (
        ("jpeg.avi", 0.5, 8, 8),  # keyframes only
        ("baseline.mp4", 0.0, 36, 60),  # up to the last wanted one before each keyframe
        ("pyramid.mp4", 2.0, 0, 40),  # of a clip of one GOP, nothing before or after
    ):
        planned.clear()
        path, times, _ = pans(name)
        with container.opened(path) as film:
            asked = decode.Times(start, 4.0, 8 if start < 1 else 2)
            assert len(list(decode.shown(film, asked, lambda frame: frame))) == asked.count
        assert least <= len(planned) <= most, name


def read(path, start, resize=SIZE, size=SIZE):
    return video.read_clip(path, start, F, 4.0, frames.View(size, resize))


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
    for path in str(root / "none.mp4"), "http:a.mp4", "file:" + str(root / "one.mp4"):
        with pytest.raises(video.UnreadableVideo, match="No such file"):
            read(path, 0.0)


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


def test_a_file_that_takes_too_long_is_refused_and_load_does_not_matter(folder, monkeypatch):
    path = str(folder / "a.mp4")
    monkeypatch.setattr(container, "LIMIT", 0.2)
    picture = frames.Scaler.frame

    def slow(*args):
        time.sleep(0.1)  # as on a busy machine: no CPU time
        return picture(*args)

    monkeypatch.setattr(frames.Scaler, "frame", slow)
    assert numbers(read(path, 0.0)["video"]) == [0, 2, 5, 7]

    def busy(*args):
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass
        return picture(*args)

    monkeypatch.setattr(frames.Scaler, "frame", busy)
    with pytest.raises(video.UnreadableVideo, match="reading took more than 0.2 s") as caught:
        read(path, 0.0)
    assert caught.value.start is None
    source = video.Videos("videos", (path,), F, 4.0, VIEW)
    assert [len(part["video"]) for part in source.parts(path, 5)] == [5, 5]  # a limit for each
    monkeypatch.setattr(container, "LIMIT", 0.0)
    with pytest.raises(video.UnreadableVideo, match="reading took more than 0 s"):
        video.duration(cut_off(path, folder.parent / "silent.mkv"))


def cut_off(path, to):
    """Writes the frames of a video as a live stream, whose header knows no duration."""
    with av.open(path) as old, av.open(str(to), "w", options={"live": "1"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return str(to)


def test_the_length_of_a_file_whose_header_is_silent_is_that_of_its_packets(folder):
    path = cut_off(str(folder / "a.mp4"), folder.parent / "live.mkv")
    with av.open(path) as file:
        assert file.duration is None
    assert video.duration(path) == pytest.approx(2.4, abs=0.01)
    assert numbers(read(path, lambda latest: latest)["video"])[-1] == 23


def test_a_picture_larger_than_any_camera_makes_is_refused(tmp_path, monkeypatch):
    path = pathlib.Path(write(tmp_path / "a.avi", every(8, 4), codec="mjpeg", pixels="yuvj420p"))
    data, header = path.read_bytes(), b"\xff\xc0\0\x11\x08"
    assert header + struct.pack(">2H", 48, 64) in data
    path.write_bytes(data.replace(header + struct.pack(">2H", 48, 64), header + b"\xff" * 4))
    with pytest.raises(video.UnreadableVideo):  # of 65535 x 65535, 12 GB
        read(str(path), 0.0)
    path = pathlib.Path(write(tmp_path / "b.avi", every(8, 4), codec="rawvideo"))
    stated, large = struct.pack("<2i", 64, 48), struct.pack("<2i", 20000, 20000)
    path.write_bytes(path.read_bytes().replace(stated, large))
    with pytest.raises(video.UnreadableVideo):
        read(str(path), 0.0)
    monkeypatch.setattr(frames, "MAX_PIXELS", 3071)
    with pytest.raises(video.UnreadableVideo, match="frames too large: 64 x 48 pixels"):
        read(write(tmp_path / "c.mp4", every(8, 4)), 0.0)


@pytest.fixture
def visitors():
    """A port, and a function that tells whether anybody came."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def came():
            try:
                server.accept()[0].close()
            except TimeoutError:
                return False
            return True

        yield server.getsockname()[1], came


def test_no_file_makes_the_reader_open_another_file_or_url(folder, tmp_path, visitors):
    port, came = visitors
    secret = tmp_path / "secret.mp4"
    shutil.copy(folder / "a.mp4", secret)
    url = f"http://127.0.0.1:{port}/a.ts"
    dash = "<AdaptationSet mimeType='video/mp4'><Representation id='1' bandwidth='1'><BaseURL>"
    playlists = {
        "hls": f"#EXTM3U\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
        "hls-file": f"#EXTM3U\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile 'secret.mp4'\n",
        "dash": f"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        f"mediaPresentationDuration='PT9S'><Period>{dash}{url}</BaseURL></Representation>"
        "</AdaptationSet></Period></MPD>",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nt=0 0\nm=video {port} RTP/AVP 96\n"
        "c=IN IP4 127.0.0.1\na=rtpmap:96 H264/90000\n",
        "asx": f"<asx version='3.0'><entry><ref href='{url}'/></entry></asx>",
        "pls": f"[playlist]\nFile1={url}\nNumberOfEntries=1\n",
    }
    for name, text in playlists.items():
        for suffix in ".mp4", ".mkv", ".mov":
            (tmp_path / (name + suffix)).write_text(text)
            with pytest.raises(video.UnreadableVideo):
                read(str(tmp_path / (name + suffix)), 0.0)
    for address in f"concat:{secret}|{secret}", f"subfile,,start,0,end,0,,:{secret}", "pipe:0":
        with pytest.raises(video.UnreadableVideo, match="No such file"):
            read(address, 0.0)
    with fsspec.open("memory://traps/hls.mp4", "w") as file:
        file.write(playlists["hls"])
    with pytest.raises(video.UnreadableVideo):
        read("memory://traps/hls.mp4", 0.0)
    assert not came()


def test_a_movie_that_keeps_its_data_in_another_file_is_refused(folder, tmp_path):
    data = bytearray((folder / "c.MOV").read_bytes())
    shutil.copy(folder / "c.MOV", tmp_path / "other.mov")
    at = data.index(b"dref")
    assert data[at + 16 : at + 24] == b"url \0\0\0\1"  # in this very file
    record = bytearray(150)
    record[130:134] = struct.pack(">2H", 1, 1)  # levels from here to a common folder, and back
    name = b"/folder/other.mov"
    record += struct.pack(">2H", 2, len(name)) + name + b"\0" + struct.pack(">2H", 0xFFFF, 0)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    data[at + 12 : at + 24] = entry
    for box in b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov":
        where = data.rindex(box, 0, at + 4) - 4
        length = struct.unpack(">I", data[where : where + 4])[0] + len(entry) - 12
        data[where : where + 4] = struct.pack(">I", length)
    media = data.index(b"mdat") + 4  # without it, only the other file has any
    data[media : media + 1000] = bytes(1000)
    path = str(tmp_path / "trap.mov")
    pathlib.Path(path).write_bytes(data)
    with av.open(path, options={"enable_drefs": "1"}) as file:
        assert len(list(file.decode(video=0))) == 60  # FFmpeg opens it, if asked to
    with pytest.raises(video.UnreadableVideo):
        read(path, 0.0)


def test_lists_of_all_kinds_give_the_same_items(folder, tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [("a.mp4", "", ""), ("sub/b.avi", "0.5", "1.75"), (str(folder / "c.MOV"), "", "1.5")]
    rows += [("a.mp4", "1", ""), ("memory://x/a.mp4", "", ""), ("a b,#.mp4", "", "")]
    text = "\n".join("\t".join(row).rstrip("\t") for row in rows)
    (tmp_path / "lines.txt").write_text(text.replace("\n", "\r\n", 2) + "\n\n")
    quoted = [f'{i},"{path}",{start},{end}\n' for i, (path, start, end) in enumerate(rows)]
    (tmp_path / "table.csv").write_text("id,path,start,end\n" + "".join(quoted))
    table = {"id": range(6), "path": [path for path, _, _ in rows]}
    for column, name in (1, "start"), (2, "end"):
        table[name] = [float(row[column]) if row[column] else None for row in rows]
    parquet.write_table(pyarrow.table(table), tmp_path / "table.parquet")
    wanted = [
        str(tmp_path / "a.mp4"),
        (str(tmp_path / "sub/b.avi"), 0.5, 1.75),
        (str(folder / "c.MOV"), 0.0, 1.5),
        (str(tmp_path / "a.mp4"), 1.0, math.inf),
        "memory://x/a.mp4",
        str(tmp_path / "a b,#.mp4"),
    ]
    names = [wanted[0], f"{tmp_path}/sub/b.avi#t=0.5,1.75", f"{folder}/c.MOV#t=0,1.5"]
    for name in "lines.txt", "table.csv", "table.parquet":
        found = video.find_videos(str(tmp_path / name))
        assert list(found) == wanted and [str(item) for item in found][:3] == names


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.txt", "", "expected a list of videos, got an empty list"),
        ("a.txt", "a.mp4\n\nb.mp4\tx\n", "line 3: expected a number of seconds, got 'x'"),
        ("a.txt", "a.mp4\t3\t3\n", "line 1: expected 0 <= start < end, got 'a.mp4' from 3 to 3"),
        ("a.txt", "a.mp4\nb.mp4\t3\t2", "line 2: expected 0 <= start < end"),
        ("a.txt", "a.mp4\t-1\t2", "line 1: expected 0 <= start < end"),
        ("a.txt", "a.mp4\tnan\t2", "line 1: expected 0 <= start < end"),
        ("a.txt", "a.mp4\n\t1\t2", "line 2: expected a path"),
        ("a.txt", "a.mp4\t1\t2\t3", "line 1: expected path, start and end"),
        ("a.txt", "sofa://a.mp4", "sofa://"),
        ("a.csv", "file,start\na.mp4,1\n", "expected a column 'path', got file, start"),
        ("a.csv", "path,start\na.mp4,1\nb.mp4,one\n", "row 2: expected a number of seconds"),
        ("a.csv", "path,end\na.mp4,1\n,2\n", "row 2: expected a path"),
        ("a.csv", "path,end\n", "got an empty list"),
        ("a.csv", "", "mpty"),
        ("a.parquet", "no parquet", "Parquet"),
    ],
)
def test_an_error_in_a_list_names_the_list_and_the_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        video.find_videos(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value) and message in str(caught.value)


def test_a_list_that_is_missing_or_not_alone_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match="none.txt: No such file"):
        video.find_videos(str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="expected either a single list file or a list"):
        video.find_videos([str(folder), str(tmp_path / "a.csv")])
    shutil.copytree(folder, tmp_path / "folder.txt")
    assert len(video.find_videos(str(tmp_path / "folder.txt"))) == 6


def test_all_parts_of_a_file_are_on_one_side_that_does_not_depend_on_the_folder(tmp_path):
    def sides(root):
        root.mkdir()
        lines = [f"{i % 50}.mp4\t{i}\t{i + 1}" for i in range(500)]
        (root / "a.txt").write_text("\n".join(lines))
        train, test = video.split_videos(str(root / "a.txt"), 0.2)
        assert len(train) + len(test) == 500
        train, test = ({os.path.relpath(i.path, root) for i in side} for side in (train, test))
        assert not train & test and 3 <= len(test) <= 20 and len(train | test) == 50
        return test

    assert sides(tmp_path / "a") == sides(tmp_path / "b")
    for i in range(50):
        (tmp_path / "b" / f"{i}.mp4").touch()
    alone = video.split_videos(str(tmp_path / "b"), 0.2)[1]
    assert {os.path.basename(path) for path in alone} == sides(tmp_path / "c")
    (tmp_path / "one.txt").write_text("a.mp4\t0\t1\na.mp4\t1\t2")
    train, test = video.split_videos(str(tmp_path / "one.txt"), 0.2)
    assert train == test and len(train) == 2


def test_a_file_is_on_one_side_of_the_split_however_a_list_spells_it(tmp_path):
    spellings = "{}.mp4", "./{}.mp4", "sub/../{}.mp4", f"{tmp_path}/{{}}.mp4"
    lines = [spelling.format(i) for i in range(20) for spelling in spellings]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    train, test = video.split_videos(str(tmp_path / "a.txt"), 0.3)
    train, test = ({os.path.realpath(path) for path in side} for side in (train, test))
    assert not train & test and len(train | test) == 20
    (tmp_path / "once.txt").write_text("\n".join(f"{i}.mp4" for i in range(20)))
    assert set(video.split_videos(str(tmp_path / "once.txt"), 0.3)[1]) == test
    (tmp_path / "one.txt").write_text("\n".join(spelling.format(0) for spelling in spellings))
    train, test = video.split_videos(str(tmp_path / "one.txt"), 0.3)
    assert train == test and len(train) == 4


def test_a_long_list_takes_little_memory_and_time(tmp_path):
    import pyarrow

    count, line = 200_000, "videos/some/folder/{:08}.mp4"
    (tmp_path / "a.txt").write_text("\n".join(line.format(i) for i in range(count)))
    before, begin = pyarrow.total_allocated_bytes(), time.process_time()
    items = video.find_videos(str(tmp_path / "a.txt"))
    assert time.process_time() - begin < 2
    bytes_per_item = (pyarrow.total_allocated_bytes() - before) / count
    assert bytes_per_item < 1.5 * (len(line.format(0)) + 8)
    assert items[123_456] == f"{tmp_path}/videos/some/folder/00123456.mp4"


def test_clips_of_a_part_lie_within_it(folder):
    item = lists.Part(str(folder / "c.MOV"), 0.5, 1.5)
    source = video.Videos("videos", (item,), F, 4.0, VIEW)
    starts = []
    for seed in range(30):
        clip = source.clip(item, np.random.default_rng(seed))
        assert clip["episode"] == f"{folder}/c.MOV#t=0.5,1.5"
        starts.append(clip["start"])
        wanted = np.floor((clip["start"] + np.arange(F) / 4) * 30000 / 1001 + 0.02)
        assert numbers(clip["video"]) == wanted.tolist()
    assert 0.5 <= min(starts) < 0.55 and 0.7 < max(starts) <= 0.75
    assert [clip["start"] for clip in source.fixed(item)] == [0.5]
    wide = dataclasses.replace(source, frames=2)
    assert [clip["start"] for clip in wide.fixed(item)] == [0.5, 1.0]
    short = item._replace(end=1.2)
    reason = "#t=0.5,1.2: 0.7 s long, but a clip needs more than 0.75 s"
    for read in source.clip, lambda item, _: next(source.fixed(item)):
        with pytest.raises(video.UnreadableVideo, match=reason):
            read(short, np.random.default_rng(0))
    with pytest.raises(video.UnreadableVideo, match="but a clip needs more than"):
        source.clip(item._replace(start=5.0, end=math.inf), np.random.default_rng(0))


@pytest.fixture
def cloud(folder):
    """Copies the folder of good videos to memory://cloud."""
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/cloud", recursive=True)
    yield "memory://cloud"
    system.rm("/cloud", recursive=True)


def test_videos_of_a_remote_file_system_are_found_split_and_read(folder, cloud):
    local, remote = video.find_videos(str(folder)), video.find_videos(cloud)
    assert remote == [path.replace(str(folder), "memory:///cloud") for path in local]
    assert video.find_videos(f"{cloud}/**/*.m*") == [remote[i] for i in (0, 4, 5)]
    assert video.find_videos(remote[3]) == [remote[3]]
    for mine, theirs in zip(
        *(video.split_videos(x, 0.4) for x in (str(folder), cloud)), strict=True
    ):
        assert [path.replace(str(folder), "memory:///cloud") for path in mine] == theirs
    for path, url in zip(local, remote, strict=True):
        assert video.duration(url) == video.duration(path)
        for start in 0.0, 0.6, 1.1:
            np.testing.assert_array_equal(read(url, start)["video"], read(path, start)["video"])
    with pytest.raises(ValueError, match="no file with one of the suffixes"):
        video.find_videos("memory://cloud/*.webm")
    with pytest.raises(video.UnreadableVideo, match="none.mp4"):
        read("memory://cloud/none.mp4", 0.0)
    fsspec.filesystem("memory").pipe("/cloud/empty.mp4", b"")
    with pytest.raises(video.UnreadableVideo, match="empty file"):
        read("memory://cloud/empty.mp4", 0.0)


def test_paths_in_a_remote_list_are_relative_to_it(folder, cloud):
    fsspec.filesystem("memory").pipe("/cloud/lists/a.txt", b"../a.mp4\t0.5\nmemory://cloud/b.avi")
    items = video.find_videos(f"{cloud}/lists/a.txt")
    assert list(items) == [("memory://cloud/lists/../a.mp4", 0.5, math.inf), "memory://cloud/b.avi"]
    fsspec.filesystem("memory").pipe("/cloud/a.txt", b"a.mp4")
    (item,) = video.find_videos(f"{cloud}/a.txt")
    np.testing.assert_array_equal(
        read(item, 0.5)["video"], read(str(folder / "a.mp4"), 0.5)["video"]
    )


@pytest.mark.parametrize("where", ["gs://bucket/**/*.mp4", "gs://bucket/a.txt", "list"])
def test_a_file_system_that_is_not_installed_is_named(where, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):  # which other tests may have loaded
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    (tmp_path / "list.txt").write_text("a.mp4\ngs://bucket/a.mp4")
    with pytest.raises(ValueError, match="gs://.*gcsfs"):
        video.find_videos(where if where != "list" else str(tmp_path / "list.txt"))


def test_a_clip_of_a_remote_video_fetches_only_blocks_around_it(tmp_path, monkeypatch):
    path, fetched = str(tmp_path / "a.mov"), []
    pan(pathlib.Path(path), "mjpeg", {}, size=(320, 240))
    size = os.path.getsize(path)

    class Slow(fsspec.AbstractFileSystem):
        protocol = "slow"

        def info(self, path, **_):
            return {"name": path, "size": os.path.getsize(path), "type": "file"}

        def _open(self, path, mode="rb", **options):
            return SlowFile(self, path, mode, **options)

    class SlowFile(fsspec.spec.AbstractBufferedFile):
        def _fetch_range(self, start, end):
            fetched.append(end - start)
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read(end - start)

    fsspec.register_implementation("slow", Slow, clobber=True)
    monkeypatch.setattr(container, "BLOCK", 2**12)
    there, here = (video.read_clip(x, 1.2, F, 25.0, VIEW) for x in (f"slow://{path}", path))
    np.testing.assert_array_equal(there["video"], here["video"])
    assert max(fetched) <= 2**12 and sum(fetched) < size / 3

    monkeypatch.setattr(
        SlowFile, "_fetch_range", lambda *_: (_ for _ in ()).throw(KeyError("lost"))
    )
    with pytest.raises(video.UnreadableVideo, match="lost"):
        read(f"slow://{path}", 1.2)


def parts(path, most, least=0, fps=4.0):
    source = video.Videos("videos", (path,), F, fps, VIEW)
    return list(source.parts(path, most, least))


@pytest.mark.parametrize("name", ["pyramid.mp4", "variable.mkv", "open.ts", "unordered.avi"])
def test_parts_are_the_frames_of_clips_without_gap_or_overlap(pans, name):
    path, times, _ = pans(name)
    for fps, most in (4.0, 5), (10.0, 7), (60.0, 64):
        found = parts(path, most, fps=fps)
        lengths = [len(part["video"]) for part in found]
        assert lengths[:-1] == [most] * (len(lengths) - 1)
        assert sum(lengths) == math.ceil((times[-1] + 0.039) * fps)
        done = 0
        for part in found:
            assert part["start"] == pytest.approx(done / fps) and part["episode"] == path
            clip = video.read_clip(path, part["start"], len(part["video"]), fps, VIEW)
            np.testing.assert_array_equal(part["video"], clip["video"])
            done += len(part["video"])


def test_parts_hold_each_frame_of_a_video_of_their_rate_once(folder, tmp_path):
    for name in "a.mp4", "a.mkv", "a.avi", "a.webm":
        codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(name[2:], "libx264")
        path = write(tmp_path / name, every(21, 4), codec=codec)
        assert [numbers(part["video"]) for part in parts(path, 8)] == [
            list(range(8)),
            list(range(8, 16)),
            list(range(16, 21)),
        ]
        lengths = lambda *args, path=path: [len(p["video"]) for p in parts(path, *args)]  # noqa: E731
        assert lengths(10, 5) == [10, 6, 5] and lengths(10, 0) == [10, 10, 1]
        assert lengths(20, 20) == [20, 1] and lengths(21, 5) == [21] and lengths(64, 5) == [21]
        part = lists.Part(path, 1.0, 3.0)
        assert [numbers(p["video"]) for p in parts(part, 5)] == [[4, 5, 6, 7, 8], [9, 10, 11]]
        with pytest.raises(video.UnreadableVideo, match="no frame at 9 s"):
            parts(lists.Part(path, 9.0, math.inf), 5)


def test_parts_are_read_in_one_pass_and_hold_no_more_frames_than_they_say(pans, monkeypatch):
    path, _, _ = pans("pyramid.mp4")
    made, entry, entries = [], decode.entry_packets, []
    picture = frames.Scaler.frame
    monkeypatch.setattr(frames.Scaler, "frame", lambda *args: made.append(1) or picture(*args))
    monkeypatch.setattr(decode, "entry_packets", lambda *args: entries.append(1) or entry(*args))
    source = video.Videos("videos", (path,), F, 25.0, VIEW)
    for number, part in enumerate(source.parts(path, 10, 3), 1):
        assert len(made) <= 10 * number + 3 + 2  # what is decoded at once with the last one
        assert len(part["video"]) <= 10
    assert sum(made) == 75 and len(entries) == 1


def test_parts_of_a_damaged_video_come_up_to_the_damage(tmp_path):
    path = write(tmp_path / "a.mkv", every(60, 10), (160, 120), "mpeg4", options={"g": "5"})
    whole = open(path, "rb").read()
    middle = len(whole) // 2
    (tmp_path / "a.mkv").write_bytes(whole[:middle] + bytes(3000) + whole[middle + 3000 :])
    source = video.Videos("videos", (path,), F, 10.0, VIEW)
    shown = []
    with pytest.raises(video.UnreadableVideo, match="at .* s: "):
        for part in source.parts(path, 8):
            shown += numbers(part["video"])
    assert shown == list(range(len(shown))) and 20 < len(shown) < 40


def test_a_frame_that_lasts_for_hours_is_damage_not_a_million_frames(tmp_path):
    path = write(tmp_path / "a.mkv", [0, 0.25, 0.5, 100, 4000, 4000.25])
    source = video.Videos("videos", (path,), F, 4.0, VIEW)
    shown = []
    with pytest.raises(
        video.UnreadableVideo, match="a frame is shown for 3.9e.03 s, longer than 600 s"
    ):
        for part in source.parts(path, 64):
            shown += numbers(part["video"])
    assert shown == [0, 1] + [2] * 398
    assert numbers(read(path, 50.0)["video"]) == [2] * F


def test_a_list_is_streamed_and_evaluated_like_any_source_also_by_workers(folder, tmp_path):
    for name in "a.mp4", "c.MOV", "b.avi":
        shutil.copy(folder / name, tmp_path / name)
    rows = [f"a.mp4\t{i / 10}\t{i / 10 + 1}" for i in range(12)] + ["c.MOV", "b.avi", "none.mp4\t1"]
    (tmp_path / "list.txt").write_text("\n".join(rows))
    config = test_data.config(tmp_path / "list.txt", holdout=0.0)
    log = tmp_path / "skipped.jsonl"
    batches = test_data.take(pipeline.clips(config, skipped=str(log)), 8)
    train, test = video.split_videos(str(tmp_path / "list.txt"), 0.0)
    assert list(test) == [str(tmp_path / "b.avi")]  # by its hash
    for batch in batches:
        for number, start in zip(batch["episode"], batch["start"], strict=True):
            if isinstance(train[number], lists.Part):
                assert train[number].start <= start <= train[number].end - 0.75 + 1e-6
    paths = [json.loads(line)["path"] for line in log.read_text().splitlines()]
    assert paths == [f"{tmp_path}/none.mp4"]
    config.data.workers = 2
    stream = pipeline.clips(config)
    test_data.same(test_data.take(stream, 8), batches)
    stream.close()
    found = [clip["episode"] for clip in pipeline.episodes(config, "videos", "train")]
    assert set(found) == {str(item) for item in train} - {f"{tmp_path}/none.mp4#t=1"}

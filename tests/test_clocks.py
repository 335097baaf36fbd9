"""Time 0 is the first frame, and a clip is of one piece, in every container that is read."""

import collections
import fractions
import os

import av
import fsspec
import numpy as np
import pytest
from drawing import draw, every, numbers, write
from test_data import SIZE

from lawm_jax.data import container, frames, video

VIEW = frames.View(SIZE, SIZE)
RATE, COUNT = 10, 60
# file: codec, options, codec of the sound
FILMS = {
    "h264.mp4": ("libx264", {"g": "20", "bf": "2"}, "aac"),
    "h264.mov": ("libx264", {"g": "20", "bf": "2"}, "aac"),
    "h264.mkv": ("libx264", {"g": "20", "bf": "2"}, "mp2"),
    "vp8.webm": ("libvpx", {"g": "20"}, "libopus"),
    "h264.ts": ("libx264", {"g": "20", "bf": "2"}, "mp2"),
    "h264.m2ts": ("libx264", {"g": "20"}, "mp2"),
    "mpeg2.vob": ("mpeg2video", {"g": "12", "bf": "2"}, "mp2"),
    "mpeg4.avi": ("mpeg4", {"g": "12"}, "mp2"),
    "reordered.avi": ("mpeg4", {"g": "12", "bf": "2"}, "mp2"),
    "h264.avi": ("libx264", {"g": "20", "bf": "2"}, "mp2"),
    "jpeg.avi": ("mjpeg", {}, "mp2"),
    "h264.flv": ("libx264", {"g": "20", "bf": "2"}, "aac"),
    "wmv2.wmv": ("wmv2", {"g": "12"}, "mp2"),
    "vp8.ogv": ("libvpx", {"g": "12"}, "libopus"),
}


def late(path, codec, options, sound, seconds):
    """Writes numbered frames from `seconds` on, beside sound that begins at 0."""
    width, height = (64, 48) if "mpeg2" not in codec else (64, 64)
    rate = 25 if codec == "mpeg2video" else RATE
    with av.open(str(path), "w") as file:
        shown = file.add_stream(codec, rate=rate, options=options)
        shown.width, shown.height = width, height
        shown.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        shown.codec_context.time_base = fractions.Fraction(1, rate)
        shown.codec_context.bit_rate = 4_000_000
        heard = file.add_stream(sound, rate=48000)
        heard.layout, done = "mono", 0
        for i in range(COUNT):
            while done < (seconds + i / rate) * 48000:
                size = heard.codec_context.frame_size or 1024
                quiet = av.AudioFrame(heard.codec_context.format.name, "mono", samples=size)
                quiet.sample_rate, quiet.pts = 48000, done
                quiet.time_base = fractions.Fraction(1, 48000)
                for plane in quiet.planes:
                    plane.update(bytes(plane.buffer_size))
                file.mux(heard.encode(quiet))
                done += size
            frame = av.VideoFrame.from_ndarray(draw(i, width, height), format="rgb24")
            frame.pts = i + round(seconds * rate)
            frame.time_base = fractions.Fraction(1, rate)
            file.mux(shown.encode(frame))
        file.mux(shown.encode(None))
        file.mux(heard.encode(None))
    return str(path), rate


def whole(path, rate):
    source = video.Videos("videos", [path], 8, float(rate), VIEW)
    return [number for part in source.parts(path, 32) for number in numbers(part["video"])]


@pytest.mark.parametrize("seconds", [0.6, 7.0])
@pytest.mark.parametrize("name", FILMS)
def test_time_0_is_the_first_frame_where_the_sound_begins_before_it(tmp_path, name, seconds):
    path, rate = late(tmp_path / name, *FILMS[name], seconds)
    assert whole(path, rate) == list(range(COUNT))
    for start in np.arange(0, 0.6, 0.15):
        clip = video.read_clip(path, float(start), 4, 4.0, VIEW)["video"]
        wanted = np.floor((start + np.arange(4) / 4) * rate + 1e-3 * rate + 1e-6).astype(int)
        assert numbers(clip) == wanted.tolist()
    fixed = list(video.Videos("videos", [path], 3, 4.0, VIEW).fixed(path))
    assert fixed[0]["start"] == 0 and numbers(fixed[0]["video"])[0] == 0
    for clip in fixed:
        wanted = np.floor((clip["start"] + np.arange(3) / 4) * rate + 1e-3 * rate + 1e-6).astype(
            int
        )
        assert numbers(clip["video"]) == wanted.tolist()


@pytest.mark.parametrize(
    "name, first",
    [(name, first) for name in ("a.mp4", "a.mov", "b.mp4") for first in (-3, 5000)]
    + [("b.mp4", -700), ("a.mkv", 5000), ("a.mkv", 3), ("a.ts", 5000), ("a.flv", 37)],
)
def test_timestamps_may_begin_anywhere(tmp_path, name, first):
    """Packets that are shifted by any number of ticks."""
    source = write(tmp_path / "source.mp4", every(COUNT, RATE), options={"g": "20", "bf": "2"})
    options = {"avoid_negative_ts": "disabled", "use_editlist": "0", "muxdelay": "0"}
    if name[0] == "a" or first > 0:
        del options["use_editlist"]
    path = str(tmp_path / name)
    with av.open(source) as old, av.open(path, "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        ticks = round(first / 10 / old.streams.video[0].time_base)
        for packet in old.demux(video=0):
            if not packet.size:
                continue
            packet.pts += ticks
            packet.dts += ticks
            packet.stream = stream
            new.mux(packet)
    with av.open(path) as file:
        base = file.streams.video[0].time_base
        decoded = list(file.decode(video=0))
        times = np.array([float((f.pts - decoded[0].pts) * base) for f in decoded])
        shown = [numbers(frames.Scaler(VIEW).frame(frame)[None])[0] for frame in decoded]
    got = whole(path, RATE)
    wanted = [shown[np.searchsorted(times, i / RATE + 1e-3, "right") - 1] for i in range(len(got))]
    assert got == wanted and got[-1] == COUNT - 1
    for start in 0.0, 1.3, 2.9:
        clip = numbers(video.read_clip(path, start, 4, 4.0, VIEW)["video"])
        at = start + np.arange(4) / 4
        assert clip == [shown[np.searchsorted(times, t + 1e-3, "right") - 1] for t in at]


JOINED = {
    "a.ts": ("libx264", {"g": "20", "bf": "2"}),
    "a.mpg": ("mpeg2video", {"g": "12", "bf": "2", "b": "4000000"}),
    "a.flv": ("libx264", {"g": "20", "bf": "2"}),
    "a.mkv": ("libx264", {"g": "20", "bf": "2"}),
    "a.webm": ("libvpx", {"g": "20"}),
    "a.ogv": ("libvpx", {"g": "20"}),
    "a.wmv": ("wmv2", {"g": "12"}),
    "a.mp4": ("libx264", {"g": "20", "bf": "2"}),
    "a.mxf": ("mpeg2video", {"g": "12", "bf": "2", "b": "4000000"}),
    "intra.mxf": ("mpeg2video", {"g": "1", "b": "4000000"}),
}
CONTINUED = {
    "a.avi": ("mpeg4", {"g": "12"}),
    "reordered.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "h264.avi": ("libx264", {"g": "20", "bf": "2"}),
    "a.gif": ("gif", {}),
}


def joined(folder, name, codec, options, rate):
    """Writes a file of the bytes of two films, with frames from 0 and from 200 on."""
    data = b""
    size = (96, 96) if codec == "mpeg2video" else (64, 48)  # as small as its bit rate allows
    for part, first in enumerate((0, 200)):
        path = folder / f"{part}{name}"
        pixels = "rgb8" if codec == "gif" else "yuv420p"
        write(path, every(COUNT, rate), size, codec, pixels, first, options)
        data += path.read_bytes()
    (folder / name).write_bytes(data)
    return str(folder / name)


@pytest.mark.parametrize("name", JOINED)
def test_a_clip_of_two_films_that_were_joined_is_of_one_of_them(tmp_path, name):
    codec, options = JOINED[name]
    rate = 25 if codec == "mpeg2video" else RATE
    path = joined(tmp_path, name, codec, options, rate)
    shown, said = [], ""
    try:
        source = video.Videos("videos", [path], 8, float(rate), VIEW)
        for part in source.parts(path, 16):
            shown += numbers(part["video"])
    except video.UnreadableVideo as error:
        said = error.reason
    assert shown == list(range(COUNT))
    if name.endswith("mxf"):
        assert "a timestamp is repeated" in said
    elif name[2:] in ("ts", "mpg", "mkv", "webm"):  # of the others FFmpeg reads only the first
        assert "timestamps jump backward" in said
    counts = collections.Counter()
    for start in np.arange(0, (COUNT - 4) / rate, 0.13):
        try:
            clip = numbers(video.read_clip(path, float(start), 4, float(rate), VIEW)["video"])
        except video.UnreadableVideo:
            counts["refused"] += 1
            continue
        at = np.floor((start + np.arange(4) / rate) * rate + 1e-3 * rate + 1e-6).astype(int)
        assert clip in (at.tolist(), (200 + at).tolist())
        counts["read"] += 1
    assert counts["read"] > 4 * counts["refused"]


@pytest.mark.parametrize("name", CONTINUED)
def test_two_films_that_were_joined_are_read_to_the_end_where_ffmpeg_goes_on(tmp_path, name):
    codec, options = CONTINUED[name]
    path = joined(tmp_path, name, codec, options, RATE)
    with av.open(path) as file:
        decoded = [frames.Scaler(VIEW).frame(frame)[None] for frame in file.decode(video=0)]
    shown = [numbers(frame)[0] for frame in decoded]
    assert shown == [*range(COUNT), *range(200, 200 + COUNT)]
    assert whole(path, RATE) == shown
    assert video.duration(path) == pytest.approx(2 * COUNT / RATE, abs=0.11)
    fsspec.filesystem("memory").pipe(f"/{name}", (tmp_path / name).read_bytes())
    (tmp_path / "a.tar").write_bytes(bytes(512) + (tmp_path / name).read_bytes() + bytes(512))
    part = container.Slice(str(tmp_path / "a.tar"), name, 512, os.path.getsize(path))
    for place in path, f"memory://{name}", part:
        for start in np.arange(0, 2 * COUNT - 4, 7.3 if place == path else 31) / RATE:
            first = int(start * RATE + 1e-3 * RATE + 1e-6)
            clip = video.read_clip(place, float(start), 4, float(RATE), VIEW)["video"]
            assert numbers(clip) == shown[first : first + 4]
        middle = video.read_clip(place, lambda latest: latest / 2, 4, float(RATE), VIEW)
        assert middle["start"] == pytest.approx((COUNT - 1.5) / RATE, abs=0.06)


def test_a_film_whose_clock_jumps_ahead_ends_there(tmp_path):
    source = write(tmp_path / "a.ts", every(COUNT, RATE), options={"g": "20", "bf": "0"})
    path = str(tmp_path / "b.ts")
    with av.open(source) as old, av.open(path, "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.dts is not None:
                late = 90_000 * 3600 if number >= 40 else 0
                packet.pts, packet.dts = packet.pts + late, packet.dts + late
                packet.stream = stream
                new.mux(packet)
    shown = []
    with pytest.raises(
        video.UnreadableVideo, match="timestamps jump forward by 3.6e.03 s at 3.. s"
    ):
        for part in video.Videos("videos", [path], 8, float(RATE), VIEW).parts(path, 16):
            shown += numbers(part["video"])
    assert shown == list(range(40))
    for place in 0.0, 0.5, 1.0:
        clip = video.read_clip(path, lambda latest, place=place: place * latest, 4, 4.0, VIEW)
        clip = numbers(clip["video"])
        assert set(np.diff(clip)) <= {1, 2, 3} and not clip[0] < 40 <= clip[-1]


@pytest.mark.parametrize("codec", ["mpeg2video", "mpeg1video"])
def test_program_streams_with_frames_out_of_order_are_read_frame_by_frame(tmp_path, codec):
    options = {"g": "12", "bf": "2", "b": "3000000"}
    path = write(tmp_path / "a.mpg", every(250, 25), (96, 96), codec, options=options)
    assert whole(path, 25) == list(range(250))
    random = np.random.default_rng(0)
    for start in [*random.uniform(0, 8, 20), *random.integers(0, 200, 20) / 25]:
        wanted = np.floor((start + np.arange(4) / 4) * 25 + 0.025).astype(int)
        assert numbers(video.read_clip(path, start, 4, 4.0, VIEW)["video"]) == wanted.tolist()


def test_undecodable_metadata_does_not_make_a_film_unreadable(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(write(tmp_path / "b.mp4", every(COUNT, RATE))) as old:
        with av.open(str(path), "w") as new:
            new.metadata["title"] = "ABCDEFGH"
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
    data = path.read_bytes()
    assert b"ABCDEFGH" in data
    path.write_bytes(data.replace(b"ABCDEFGH", b"caf\xe9 \xff\xfe\xe9"))
    assert whole(str(path), RATE) == list(range(COUNT))


def test_every_suffix_that_can_be_written_here_is_found_and_read_and_the_rest_is_said(
    tmp_path, caplog
):
    codecs = {"asf": "wmv2", "wmv": "wmv2", "gif": "gif", "dv": "dvvideo", "webm": "libvpx"}
    codecs |= dict.fromkeys(("mpg", "vob", "mxf", "m2v", "mpeg"), "mpeg2video")
    codecs |= dict.fromkeys(("ogg", "ogv"), "libvpx")
    codecs |= dict.fromkeys(("avi", "mpeg4", "3gp"), "mpeg4")
    suffixes = "3g2 3gp asf avi dv f4v flv gif m2ts m2v m4v mkv mov mp4 mpg mxf ogv ts vob webm wmv"
    for suffix in suffixes.split():
        codec = codecs.get(suffix, "libx264")
        size = (720, 576) if codec == "dvvideo" else (96, 96)
        pixels = "rgb8" if codec == "gif" else "yuv420p"
        assert f".{suffix}" in video.SUFFIXES
        path = write(tmp_path / f"a.{suffix}", every(50, 25), size, codec, pixels)
        assert numbers(video.read_clip(path, 0.0, 4, 4.0, VIEW)["video"]) == [0, 6, 12, 18]
    for name in "a.txt", "b.TXT", "c.json", "readme":
        (tmp_path / name).write_text("")
    for _ in range(2):
        assert len(video.find_videos(str(tmp_path))) == 21
    assert caplog.text.count("without a video suffix") == 1
    assert "2 .txt" in caplog.text and "1 .json" in caplog.text and "1 no suffix" in caplog.text


@pytest.mark.parametrize("name", ["[2024]", "what?", "a*b", "[!x]"])
def test_a_folder_is_found_by_its_name_whatever_signs_are_in_it(tmp_path, name):
    for folder in name, "2", "whatX", "aXb":
        os.makedirs(tmp_path / folder / "deep", exist_ok=True)
        (tmp_path / folder / "a.mp4").touch()
        (tmp_path / folder / "deep/b.mp4").touch()
    both = [str(tmp_path / name / "a.mp4"), str(tmp_path / name / "deep/b.mp4")]
    for pattern in "", "/", "/**/*.mp4":
        assert video.find_videos(f"{tmp_path}/{name}{pattern}") == both
    assert video.find_videos(f"{tmp_path}/{name}/*.mp4") == both[:1]
    assert len(video.find_videos(f"{tmp_path}/*/*.mp4")) == 4
    assert video.find_videos(f"{tmp_path}/[0-9]/*.mp4") == [f"{tmp_path}/2/a.mp4"]

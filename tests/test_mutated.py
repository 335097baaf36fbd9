"""Damaged and absurd video files never crash, hang or fill the memory."""

import collections
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from drawing import every, write
from test_data import SIZE, F, config, take

from lawm_jax.data import frames, pipeline, video

FILES, SEED = 500, 2026
ODD = 0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF


def originals(root):
    """Writes small good films of many kinds; returns their bytes by name."""
    x265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=8"}
    films = [
        write(root / "h264.mp4", every(24, 10), options={"g": "8"}),
        write(root / "long.mov", every(40, 10), (96, 64), options={"g": "40", "bf": "3"}),
        write(root / "hevc.mp4", every(16, 8), codec="libx265", options=x265),
        write(root / "ten.mkv", every(16, 8), pixels="yuv420p10le"),
        write(root / "vp9.webm", every(16, 8), codec="libvpx-vp9", options={"cpu-used": "8"}),
        write(root / "mpeg4.avi", every(30, 15), codec="mpeg4", options={"g": "10"}),
        write(root / "jpeg.avi", every(16, 8), codec="mjpeg", pixels="yuvj420p"),
        write(root / "mpeg2.mpg", every(50, 25), codec="mpeg2video", options={"bf": "2"}),
        write(root / "stream.ts", every(24, 10), options={"g": "8"}),
        write(root / "odd.mkv", every(16, 8), (71, 53), "ffv1", "bgr0"),
        write(root / "rate.mkv", [0, 0.1, 0.15, 0.6, 0.65, 0.7, 1.5, 1.55, 2.2]),
        write(root / "one.mp4", every(1, 4)),
    ]
    with av.open(str(root / "sound.mp4"), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("aac", rate=8000)
        for _ in range(8):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    films.append(str(root / "sound.mp4"))
    return {os.path.basename(film): pathlib.Path(film).read_bytes() for film in films}


def cut(data, random):
    return data[: random.integers(len(data))]


def drop(data, random):
    """Deletes a piece from within."""
    at = random.integers(len(data))
    return data[:at] + data[at + 1 + random.integers(200) :]


def flip(data, random):
    """Changes some bytes, anywhere."""
    changed = bytearray(data)
    for at in random.integers(len(data), size=random.integers(1, 20)):
        changed[at] = random.integers(256)
    return bytes(changed)


def head(data, random):
    """Changes some bytes of the header or the index."""
    changed = bytearray(data)
    places = [at for at in (data.find(b"moov"), data.find(b"hdrl"), 0) if at >= 0]
    for at in places[0] + random.integers(800, size=random.integers(1, 6)):
        changed[at % len(data)] = random.integers(256)
    return bytes(changed)


def swap(data, random):
    """Exchanges two pieces."""
    a, b, size = *sorted(random.integers(len(data), size=2)), random.integers(1, 300)
    return (
        data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
    )


# Where a container says how large, how long and how many: a name, the first field's offset from
# it, and the number of 32-bit fields.
BOXES = {
    b"tkhd": (4, 21), b"mvhd": (4, 8), b"mdhd": (4, 6), b"stsz": (4, 6), b"stts": (4, 5),
    b"stsc": (4, 6), b"stco": (4, 4), b"ctts": (4, 6), b"stss": (4, 4), b"elst": (4, 8),
    b"avcC": (0, 12), b"hvcC": (0, 30), b"avc1": (4, 20), b"moov": (-4, 1), b"mdat": (-4, 1),
    b"stsd": (-4, 4), b"trak": (-4, 1), b"dref": (4, 5),
    b"avih": (4, 14), b"strh": (4, 14), b"strf": (0, 11), b"idx1": (0, 12), b"movi": (-4, 3),
    b"\x18\x53\x80\x67": (4, 2), b"\x16\x54\xae\x6b": (4, 2), b"\x1f\x43\xb6\x75": (4, 2),
    b"\x2a\xd7\xb1": (3, 2), b"\x44\x89": (2, 3), b"\x1c\x53\xbb\x6b": (4, 5), b"\xb0": (1, 2),
    b"\xba": (1, 2), b"\xae": (1, 3), b"\x63\xa2": (2, 6), b"\x1a\x45\xdf\xa3": (4, 8),
    b"\0\0\1\xb3": (4, 2), b"\0\0\1\xba": (4, 3), b"\0\0\1\xe0": (4, 4), b"G\x40\x00": (3, 6),
    b"G\x50\x00": (3, 10),
}  # fmt: skip


def fields(data, random):
    """Puts absurd numbers where the container says how large, how long and how many."""
    changed = bytearray(data)
    there = [name for name in BOXES if name in data] or [b"moov"]
    for _ in range(random.integers(1, 4)):
        name = there[random.integers(len(there))]
        first, count = BOXES[name]
        places = [match.start() for match in re.finditer(re.escape(name), data)]
        place = places[random.integers(len(places))] if places else 0
        at = max(0, place + first + 4 * int(random.integers(count)))
        value = ODD[random.integers(len(ODD))]
        number = struct.pack("<I" if data[:4] == b"RIFF" else ">I", value)
        changed[at : at + 4] = number[: len(changed[at : at + 4])]
    return bytes(changed)


MUTATIONS = [cut, drop, flip, flip, head, head, swap, fields, fields, fields, fields]


def mutate(root, count, seed):
    """Fills a folder with `count` files: some good, most of them not."""
    random = np.random.default_rng(seed)
    good = originals(root / "originals")
    folder = root / "mutated"
    folder.mkdir()
    for number in range(count):
        name = list(good)[number % len(good)]
        data = good[name]
        for _ in range(random.choice([0, 1, 1, 1, 1, 2, 3])):
            data = MUTATIONS[random.integers(len(MUTATIONS))](data, random) or b"\0"
        data = b"" if random.random() < 0.01 else data
        suffix = os.path.splitext(name)[1]
        if suffix not in video.SUFFIXES or random.random() < 0.1:
            suffix = video.SUFFIXES[random.integers(len(video.SUFFIXES))]
        (folder / f"{number:05}-{name.replace('.', '-')}{suffix}").write_bytes(data)
    return folder


def read(folder):
    """Reads a clip, the length and all parts of each file of a folder: run in another process.

    Prints JSON: `reasons`, of each file why it can't be read, or ""; `slowest`, the longest time of
    the thread for a file, in seconds; `peak`, of the memory, in bytes.
    """
    view, reasons, slowest = frames.View(SIZE, SIZE), {}, 0.0
    for number, name in enumerate(sorted(os.listdir(folder))):
        print(name, file=sys.stderr, flush=True)  # the last one is the one that crashed
        path, before = os.path.join(folder, name), time.thread_time()
        source = video.Videos("videos", (path,), F, 4.0, view)
        try:
            clip = source.clip(path, np.random.default_rng(number))
            assert clip["video"].shape == (F, SIZE, SIZE, 3) and clip["video"].dtype == np.uint8
            assert 0 <= clip["start"] < np.inf and 0 < video.duration(path) < np.inf
            reasons[name] = ""
        except video.UnreadableVideo as error:
            reasons[name] = str(error.reason)
        try:
            for _, part in zip(range(100), source.parts(path, 5, 2), strict=False):
                assert part["video"].shape[1:] == (SIZE, SIZE, 3) and len(part["video"]) <= 5
        except video.UnreadableVideo:
            pass
        slowest = max(slowest, time.thread_time() - before)
    # Not getrusage: its maximum includes the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
    print(json.dumps({"reasons": reasons, "slowest": slowest, "peak": peak}))


def read_in_a_process(folder, timeout=60):
    here = pathlib.Path(__file__).parent
    code = f"import test_mutated; test_mutated.read({str(folder)!r})"
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def mutated(tmp_path_factory):
    return mutate(tmp_path_factory.mktemp("mutated"), FILES, SEED)


def test_damaged_and_absurd_files_give_a_clip_or_a_reason_and_cost_little(mutated):
    result = read_in_a_process(mutated)
    assert len(result["reasons"]) == FILES
    assert result["peak"] < 2**30
    assert result["slowest"] < 10
    kinds = collections.Counter(re.sub(r"[-\d.e+]+", "#", r) for r in result["reasons"].values())
    assert kinds[""] > FILES / 5  # the mutations leave some alive
    assert len(kinds) > 8 and max(kinds.values()) < FILES / 2  # and kill in many ways


@pytest.fixture(scope="module")
def some(mutated, tmp_path_factory):
    """A folder of some of them, and the reasons of those there of which no clip can be read."""
    folder, hopeless = tmp_path_factory.mktemp("some"), {}
    for path in sorted(mutated.iterdir())[:120]:
        link = folder / path.name
        link.symlink_to(path)
        try:
            video.read_clip(str(link), 0.0, F, 4.0, frames.View(SIZE, SIZE))
        except video.UnreadableVideo as error:
            if error.start is None:
                hopeless[str(link)] = error.reason
    assert 30 < len(hopeless) < 90
    return folder, hopeless


def test_the_pipeline_counts_each_unreadable_file_once_with_its_reason(some, tmp_path):
    folder, hopeless = some
    log = tmp_path / "skipped.jsonl"
    stream = pipeline.clips(config(folder, holdout=0.0), skipped=str(log))
    for batch in take(stream, 60):  # two epochs
        assert batch["video"].shape == (4, F, SIZE, SIZE, 3)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    skipped = {line["path"]: line["reason"] for line in lines}
    assert len(skipped) == len(lines) and all(skipped.values())
    train, _ = video.split_videos(str(folder), 0.0)
    assert hopeless.keys() & train <= skipped.keys() <= set(train)
    assert all(skipped[path] == reason for path, reason in hopeless.items() if path in train)


def test_a_folder_of_unreadable_files_only_is_an_error_at_the_start(some, tmp_path):
    for path in some[1]:
        (tmp_path / os.path.basename(path)).symlink_to(path)
    with pytest.raises(ValueError, match=r"none of \d+ files can be read: .*; \.\.\."):
        pipeline.clips(config(tmp_path, holdout=0.0))

"""Benchmarks reading of clips: python -m benchmarks.data [--json FILE].

Compares the speed of reading raw H.264 (1280 x 720, 30 frames/s, a keyframe every 250 frames) with
lawm_jax, decord, PyAV and OpenCV; the same video ingested at 64, 128 and 256 pixels; and stored
states. The readers alternate on the same clips of 16 frames at 4 frames/s with random starts.
Requires `decord` and `opencv-python-headless` (pip install -e '.[bench]'); takes about 12 minutes.

Clips per second are medians over rounds, per second of CPU time of one thread or, with 2 workers,
of wall time. Resident memory is that of a training process while it reads 10,000 clips.
"""

import concurrent.futures
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time

import av
import numpy as np
import psutil
from absl import flags

from benchmarks import timing
from lawm_jax.data import mp4
from lawm_jax.train import command
from lawm_jax.train.flags import define_output

JSON = define_output("json", "JSON file to append the results to.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of rounds per comparison.", 5)
CLIPS = flags.DEFINE_integer("clips", 16, "Number of raw clips per round.", 1)
MEMORY = flags.DEFINE_integer("memory", 10_000, "Number of clips per memory measurement.", 100)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
F, FPS, SIZE = 16, 4.0, 256
COPIES = 32  # of the video to ingest: with 4 items, Grain's shuffle takes 5 ms per item
SECONDS, RATE, WIDTH, HEIGHT = 60, 30, 1280, 720


def make_film(path):
    """Writes a video of a camera that pans over a textured plane with moving objects."""
    random = np.random.default_rng(0)
    ground = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.float32)
    for size in 8, 32, 128, 512:  # like natural images, strongest at low frequencies
        patch = random.normal(size=(2 * HEIGHT // size + 1, 2 * WIDTH // size + 1, 3))
        ground += np.kron(patch, np.ones((size, size, 1)))[: 2 * HEIGHT, : 2 * WIDTH] * size**0.5
    ground = np.clip(128 + 2.0 * ground, 0, 255).astype(np.uint8)

    def frames():
        for i in range(SECONDS * RATE):
            top = int((0.5 + 0.5 * np.sin(i / 90)) * HEIGHT)
            left = int((0.5 + 0.5 * np.sin(i / 140 + 1)) * WIDTH)
            picture = ground[top : top + HEIGHT, left : left + WIDTH].copy()
            for thing in range(4):
                y = int((0.5 + 0.4 * np.sin(i / (20 + 7 * thing) + thing)) * (HEIGHT - 160))
                x = int((0.5 + 0.4 * np.cos(i / (25 + 5 * thing))) * (WIDTH - 160))
                picture[y : y + 160, x : x + 160] = ground[-160:, thing * 160 :][:, :160]
            noise = random.integers(-7, 8, (HEIGHT, WIDTH, 1), np.int16)  # like sensor noise
            picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
            yield picture

    mp4.write(path, frames(), RATE, {"preset": "veryfast", "crf": "23", "g": "250"})
    return path


def with_lawm(path, start):
    """Reads a clip with lawm_jax, as training does."""
    from lawm_jax.data import frames, video

    return video.read_clip(path, start, F, FPS, frames.View(SIZE, SIZE))["video"]


def with_decord(path, start):
    """Reads the same frames with decord, which also resizes them."""
    import decord

    reader = decord.VideoReader(path, decord.cpu(0), WIDTH * SIZE // HEIGHT, SIZE, num_threads=1)
    frames = reader.get_batch(_numbers(start)).asnumpy()
    left = (frames.shape[2] - SIZE) // 2
    return frames[:, :, left : left + SIZE]


def with_pyav(path, start):
    """Reads the same frames with PyAV as documented: seek, decode, select, resize."""
    wanted = _numbers(start)
    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        container.seek(int(start / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if round(frame.time * RATE) == wanted[len(frames)]:
                width = WIDTH * SIZE // HEIGHT
                image = frame.to_ndarray(format="rgb24", width=width, height=SIZE)
                frames.append(image[:, (width - SIZE) // 2 :][:, :SIZE])
                if len(frames) == F:
                    return np.stack(frames)


def with_opencv(path, start):
    """Reads the same frames with OpenCV."""
    import cv2

    cv2.setNumThreads(1)
    wanted, frames = set(_numbers(start)), []
    reader = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    reader.set(cv2.CAP_PROP_POS_FRAMES, min(wanted))
    for number in range(min(wanted), max(wanted) + 1):
        reader.grab()
        if number in wanted:
            image = cv2.resize(reader.retrieve()[1], (WIDTH * SIZE // HEIGHT, SIZE))
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            frames.append(image[:, (image.shape[1] - SIZE) // 2 :][:, :SIZE])
    return np.stack(frames)


def _numbers(start):
    """Returns the indices of the frames shown at the clip's times."""
    return np.floor((start + np.arange(F) / FPS) * RATE + 0.03).astype(int).tolist()


def in_turn(readers, rounds):
    """Times readers in interleaved rounds.

    Args:
      readers: name -> (function that reads a clip at a position in [0, 1), calls per round).
      rounds: number of rounds.

    Returns:
      name -> clips per second of CPU time, a list with one number per round.
    """
    random = np.random.default_rng(1)
    speeds = {name: [] for name in readers}
    for _ in range(rounds):
        places = random.random(max(calls for _, calls in readers.values()))
        for name, (read, calls) in readers.items():
            read(0.5)
            begin = time.process_time()
            for place in places[:calls]:
                read(place)
            speeds[name].append(calls / (time.process_time() - begin))
    return speeds


def ingest(films, folder, *options):
    """Ingests videos in a separate process."""
    command = [sys.executable, "-m", "lawm_jax.ingest", f"--videos={films}", f"--out={folder}"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return folder


def config(videos, size=SIZE, **data):
    """Returns the nano config for a data source."""
    from configs import lawm

    c = lawm.get_config("size=nano")
    c.data.update(videos=videos, size=size, frames=F, **data)
    return c


def source_reader(videos, size):
    """Returns a function that maps a number in [0, 1) to a random clip of a source."""
    from lawm_jax.data import catalog

    source = catalog.source(config(videos, size), "videos")

    def read(place):
        random = np.random.default_rng(int(place * 2**32))
        clip = source.clip(source.items[int(random.integers(len(source.items)))], random)
        return clip["states" if source.encoder else "video"]

    return read


def with_workers(videos, size, seconds=10.0):
    """Returns the pipeline's clips per second of wall time with 2 worker processes."""
    from lawm_jax.data import pipeline

    stream = pipeline.clips(config(videos, size, workers=2, batch=16))
    for _ in range(4):
        next(stream)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        next(stream)
        count += 16
    elapsed = time.perf_counter() - begin
    stream.close()
    return count / elapsed


def with_processes(read, film, places):
    """Returns a raw-video reader's clips per second of wall time in 2 processes."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        list(pool.map(read, [film] * 4, places[:4]))
        begin = time.perf_counter()
        for _ in pool.map(_drop, [read] * len(places), [film] * len(places), places):
            pass
        return len(places) / (time.perf_counter() - begin)


def _drop(read, film, place):
    """Reads a clip and discards it: transfer between processes is not measured."""
    read(film, place)


def memory(videos, size, count):
    """Returns the resident MB of a process after each tenth of reading `count` clips."""
    code = f"from benchmarks import data; data.print_memory({videos!r}, {size}, {count})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_memory(videos, size, count):
    """Reads `count` clips and prints this process's resident MB after each tenth, as JSON."""
    from lawm_jax.data import pipeline

    stream, seen = pipeline.clips(config(videos, size, batch=20)), []
    for step in range(1, count // 20 + 1):
        next(stream)
        if step % (count // 200) == 0:
            seen.append(round(psutil.Process().memory_info().rss / 2**20))
    print(json.dumps(seen))


def ingested(film, folder):
    """Ingests a video at several sizes and as states; returns name -> (data.videos, data.size)."""
    films, places = os.path.join(folder, "films"), {}
    os.mkdir(films)
    for copy in range(COPIES):
        os.link(film, os.path.join(films, f"{copy}.mp4"))
    for size in 64, 128, 256:
        out = os.path.join(folder, str(size))
        ingest(films, out, f"--size={size}", f"--resize={size}")
        places[f"ingested, {size} px"] = f"records:{out}", size
    out = os.path.join(folder, "states")
    ingest(films, out, "--encoder=configs/lawm.py:size=nano", f"--encoder.data.frames={F}")
    places["states of nano"] = f"records:{out}", 128
    return places


def main(argv):
    """Runs all comparisons and prints the results."""
    del argv
    results = timing.about("av", "decord", "grain")
    with tempfile.TemporaryDirectory() as folder:
        film = make_film(os.path.join(folder, "film.mp4"))
        places = ingested(film, folder)
        raw = {"lawm_jax": with_lawm, "decord": with_decord}
        raw |= {"PyAV": with_pyav, "OpenCV": with_opencv}
        latest, calls = SECONDS - F / FPS, CLIPS.value
        readers = {
            f"raw 720p, {name}": (lambda place, read=read: read(film, place * latest), calls)
            for name, read in raw.items()
        }
        clips = [read(0.37)[:].astype(float) for read, _ in readers.values()]
        assert all(np.abs(clip - clips[0]).mean() < 6 for clip in clips), (
            "expected the same frames from all readers"
        )
        readers |= {name: (source_reader(*place), 20 * calls) for name, place in places.items()}
        speeds = in_turn(readers, ROUNDS.value)
        decord = np.median(speeds["raw 720p, decord"])
        results["clips per CPU second"] = speeds
        for name, values in speeds.items():
            middle = np.median(values)
            print(f"{name:28}{middle:9.2f} clips/s {middle / decord:9.2f} x decord", flush=True)
        starts = (np.random.default_rng(2).random(4 * calls) * latest).tolist()
        workers = {
            f"raw 720p, {name}, alone": with_processes(read, film, starts)
            for name, read in raw.items()
        }
        workers |= {
            name: with_workers(*place)
            for name, place in {"raw 720p, lawm_jax": (film, SIZE), **places}.items()
        }
        results["clips per second, 2 workers"] = workers
        for name, value in workers.items():
            print(f"{name:28}{value:9.2f} clips/s with 2 workers", flush=True)
        embedded = os.path.join(ROOT, "lawm_jax", "assets", "lawm_mini", "panda", "train")
        results["resident MB"] = resident = {
            name: memory(*place, MEMORY.value)
            for name, place in {"raw 128 px": (embedded, 128), **places}.items()
        }
        for name, values in resident.items():
            print(f"{name:28}{values} MB over {MEMORY.value} clips")
    timing.save(JSON.value, results)
    lawm = np.median(speeds["raw 720p, lawm_jax"])
    large = np.median(speeds["ingested, 256 px"])
    print(f"raw: {lawm / decord:.2f} x decord, ingested at 256 px: {large / decord:.1f} x decord")


if __name__ == "__main__":
    command.run(main)

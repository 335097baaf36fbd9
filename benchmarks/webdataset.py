"""Benchmarks reading of tar shards: python -m benchmarks.webdataset [--json FILE].

Reads random clips of 4 frames from 10,000 short videos (128 x 128, H.264, 2 s at 10 frames/s), in
tar files of 1,000 videos and in a folder, alternating. Then indexes 100,000 tar files of 10 videos
each (hard links to a few files), and opens them again with the index, each in a separate process.
Takes about 10 minutes on 2 cores and 1 GB of disk space.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time

import numpy as np
import psutil
from absl import flags

from benchmarks import data, timing
from lawm_jax.data import mp4
from lawm_jax.train import command

SHARDS = flags.DEFINE_integer("shards", 100_000, "Number of tar files to start with.", 10)

VIDEOS, EACH = 10_000, 1000  # videos, and those in a tar file
LINKS = 20_000  # names of a tar file; some file systems allow 65,000


def make_videos(folder, count=50):
    """Writes `VIDEOS` videos, of which `count` differ, into a folder; returns their paths."""
    random, made = np.random.default_rng(0), []
    for number in range(count):
        path = os.path.join(os.path.dirname(folder), f"{number}.mp4")
        ground = random.integers(0, 256, (24, 24, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        pictures = (ground[i : i + 128, 2 * i : 2 * i + 128] for i in range(20))
        mp4.write(path, (np.ascontiguousarray(one) for one in pictures), 10, {"g": "10"})
        made.append(open(path, "rb").read())
    os.mkdir(folder)
    for number in range(VIDEOS):
        with open(os.path.join(folder, f"{number:06}.mp4"), "wb") as file:
            file.write(made[number % count])
    return sorted(os.path.join(folder, name) for name in os.listdir(folder))


def pack(path, files):
    """Writes a tar file of videos, each with a JSON file, as webdataset does."""
    with tarfile.open(path, "w") as tar:
        for file in files:
            name = os.path.basename(file)
            tar.add(file, name)
            tar.addfile(tarfile.TarInfo(name.replace(".mp4", ".json")))


def config(where):
    """Returns the nano config for clips of 4 frames of a data source."""
    c = data.config(where, 128, batch=16, resize=128)
    c.data.frames = 4
    return c


def reader(where):
    """Returns a function that maps a number in [0, 1) to a random clip of a source."""
    from lawm_jax.data import catalog

    source = catalog.source(config(where), "videos")

    def read(place):
        random = np.random.default_rng(int(place * 2**32))
        return source.clip(source.items[int(place * len(source.items))], random)["video"]

    return read


def start(where):
    """Opens a source in a process of its own; returns its seconds, sizes and memory."""
    code = f"from benchmarks import webdataset; webdataset.print_start({where!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_start(where):
    """Opens a source, reads a batch, and prints the time and memory that this takes, as JSON."""
    from lawm_jax.data import catalog, pipeline

    config("mini:panda")  # imports the config's packages
    before, begin = psutil.Process().memory_info().rss, time.perf_counter()
    source = catalog.source(config(where), "videos")
    opened, taken = time.perf_counter() - begin, psutil.Process().memory_info().rss
    begin = time.perf_counter()
    next(pipeline.clips(config(where)))
    found = {"videos": len(source.items), "seconds to open": opened}
    found |= {"seconds to open again and read a batch": time.perf_counter() - begin}
    after = psutil.Process().memory_info().rss
    found |= {"MB before": before / 2**20, "MB opened": taken / 2**20, "MB read": after / 2**20}
    print(json.dumps({key: round(value, 2) for key, value in found.items()}))


def link(folder, files, count):
    """Makes `count` tar files of 10 videos, hard links of a few; returns their source."""
    os.mkdir(folder)
    for number in range(count):
        path = os.path.join(folder, f"{number:06}.tar")
        if number % LINKS == 0:
            pack(path, files[number // LINKS * 10 :][:10])
            first = path
        else:
            os.link(first, path)
    return f"webdataset:{folder}/{{{0:06}..{count - 1:06}}}.tar"


def main(argv):
    """Runs the comparison and the starts, and prints the results."""
    del argv
    results = timing.about("av", "grain", "fsspec", "pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = os.path.join(folder, "cache")
        videos, shards = os.path.join(folder, "videos"), os.path.join(folder, "shards")
        files = make_videos(videos)
        os.mkdir(shards)
        for number in range(VIDEOS // EACH):
            pack(os.path.join(shards, f"{number:06}.tar"), files[number * EACH :][:EACH])
        begin = time.perf_counter()
        reader(f"webdataset:{shards}")
        results["seconds to index 10 tar files"] = time.perf_counter() - begin
        places = {"folder": videos, "tar files": f"webdataset:{shards}"}
        places["tar files, through fsspec"] = f"webdataset:file://{shards}"
        readers = {name: (reader(where), 20 * data.CLIPS.value) for name, where in places.items()}
        speeds = data.in_turn(readers, data.ROUNDS.value)
        results["clips per CPU second"] = speeds
        for name, values in speeds.items():
            ratio = np.median(np.divide(values, speeds["folder"]))
            print(f"{name:28}{np.median(values):9.1f} clips/s {ratio:9.2f} x folder", flush=True)
        where = link(os.path.join(folder, "many"), files, SHARDS.value)
        results["starts"] = {name: start(where) for name in ("first", "second", "third")}
        for name, found in results["starts"].items():
            print(f"{name} start with {SHARDS.value} tar files: {found}", flush=True)
    timing.save(data.JSON.value, results)
    middle = np.median(np.divide(speeds["tar files"], speeds["folder"]))
    seconds = results["starts"]["third"]["seconds to open"]
    print(f"tar files: {middle:.2f} x folder, {SHARDS.value} of them open in {seconds:.1f} s")


if __name__ == "__main__":
    command.run(main)

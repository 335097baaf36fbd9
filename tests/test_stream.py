"""The stream of batches: mixtures, order, processes, resume, memory. Sources here are made up."""

import collections
import dataclasses
import errno
import itertools
import json
import threading
import time

import numpy as np
import pytest
import scipy.stats
from drawing import every, write
from test_data import config, same, take

from lawm_jax.data import catalog, frames, pipeline, reader, records
from lawm_jax.ingest import plans, shards


@dataclasses.dataclass
class Numbers:
    """A source whose clips show which item, start and draw they are."""

    name: str
    items: range
    width: int = 0  # of the actions; 0: unlabelled
    bad: tuple = ()
    size: int = 4
    reads: int = 0
    pause: float = 0.0

    def clip(self, item, random):
        if item in self.bad:
            raise frames.UnreadableVideo(f"{self.name}/{item}", "broken")
        self.reads += 1
        time.sleep(self.pause)
        video = np.full((2, self.size, self.size, 3), random.integers(256), np.uint8)
        clip = {"video": video, "episode": item, "start": random.random()}
        if self.width:
            clip["actions"] = np.full((1, self.width), item, np.float32)
            clip["state"] = np.full((2, 3), item, np.float32)
        return clip


@pytest.fixture
def numbers(monkeypatch):
    """Lets `data.sources` name made-up sources: a function (**sources) -> config."""

    def make(weights, seed=0, batch=8, **sources):
        named = lambda name, where, split, data, view: sources[where]  # noqa: E731
        monkeypatch.setitem(catalog.KINDS, "numbers", named)
        specs = {name: f"numbers:{name}" for name in sources}
        return config(seed=seed, batch=batch, sources=specs, mixture=weights)

    return make


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_shares_of_a_mixture_hold_in_every_stretch_of_examples(numbers, share):
    settings = numbers(
        {"robot": share, "web": 1 - share},
        robot=Numbers("robot", range(7)),
        web=Numbers("web", range(50)),
    )
    ranks = np.concatenate([batch["source"] for batch in take(pipeline.clips(settings), 25)])
    assert np.mean(ranks == 0) == share  # ranks follow the names, in order
    for first in range(0, 200, 20):
        assert abs(np.sum(ranks[first : first + 20] == 0) - 20 * share) <= 1


def test_every_item_comes_once_an_epoch_in_a_new_order(numbers):
    stream = pipeline.clips(numbers({"web": 1.0}, web=Numbers("web", range(40))))
    epochs = [np.concatenate([b["episode"] for b in take(stream, 5)]) for _ in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(40)) and list(epoch) != list(range(40))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_stream_continues_with_another_number_of_processes(numbers):
    settings = numbers(
        {"robot": 0.3, "web": 0.7},
        robot=Numbers("robot", range(7), bad=(3,)),
        web=Numbers("web", range(50), bad=(1, 2, 40)),
    )
    whole = take(pipeline.clips(settings), 9)
    for before, after in (1, 2), (2, 1), (4, 2), (2, 8):
        streams = [
            pipeline.clips(settings, process_index=i, process_count=before) for i in range(before)
        ]
        for stream in streams:
            take(stream, 5)
        states = [json.loads(json.dumps(stream.get_state())) for stream in streams]
        assert states == [{"examples": 40}] * before
        streams = [
            pipeline.clips(settings, process_index=i, process_count=after) for i in range(after)
        ]
        for stream in streams:
            stream.set_state(states[0])
        for step in range(5, 9):
            shares = [next(stream) for stream in streams]
            for key, value in whole[step].items():
                parts = np.concatenate([share[key] for share in shares])
                np.testing.assert_array_equal(parts, value)
    with pytest.raises(ValueError, match="examples: expected a multiple of 8, got 12"):
        streams[0].set_state({"examples": 12})


def test_a_stream_continues_with_another_number_of_workers(videos):
    settings = config(videos, batch=4)
    whole = take(pipeline.clips(settings), 4)
    settings.data.workers = 2
    stream = pipeline.clips(settings)
    same(take(stream, 2), whole[:2])
    state = stream.get_state()
    stream.close()
    for workers in 0, 1:
        settings.data.workers = workers
        stream = pipeline.clips(settings)
        stream.set_state(state)
        same(take(stream, 2), whole[2:])
        stream.close()


def test_batches_hold_what_all_sources_share(numbers):
    plain = {"video", "source", "episode", "start"}
    for widths, keys in {
        (3, 3): plain | {"actions", "state"},
        (3, 7): plain | {"state"},
        (3, 0): plain,
    }.items():
        a, b = (Numbers(str(width), range(5), width) for width in widths)
        batch = next(pipeline.clips(numbers({"a": 1.0, "b": 1.0}, a=a, b=b)))
        assert batch.keys() == keys
    settings = numbers({"a": 1.0}, a=Numbers("a", range(5), 3))
    settings.data.augment.flip = 0.5  # a mirror image has other actions
    assert next(pipeline.clips(settings)).keys() == plain
    sources = {"a": Numbers("a", range(5)), "b": Numbers("b", range(5), size=6)}
    with pytest.raises(ValueError, match="expected the same video shape in all sources, got"):
        pipeline.clips(numbers({"a": 1.0, "b": 1.0}, **sources))


def test_clips_that_wait_for_their_batch_are_bounded_in_bytes(numbers, monkeypatch):
    monkeypatch.setattr(pipeline, "BUFFER_BYTES", 10 * (2 * 64 * 64 * 3))
    source = Numbers("web", range(500), size=64)
    stream = pipeline.clips(numbers({"web": 1.0}, batch=64, web=source))
    next(stream)
    time.sleep(0.5)  # time to read ahead
    assert source.reads <= 1 + 64 + 2 * 10


@pytest.mark.parametrize("kind", [TypeError, AttributeError, KeyError, AssertionError, ImportError])
def test_an_error_of_the_code_ends_the_run(numbers, kind):
    source = Numbers("web", range(20))
    read = source.clip

    def clip(item, random):
        if item == 7:
            raise kind("a bug")
        return read(item, random)

    source.clip = clip
    with pytest.raises(kind, match="a bug"):
        take(pipeline.clips(numbers({"web": 1.0}, web=source)), 10)


def test_what_the_system_fails_to_give_for_now_changes_nothing(numbers, no_pause, tmp_path):
    """A reader that fails every 7th time gives the batches of one that never does."""
    wanted = take(pipeline.clips(numbers({"web": 1.0}, web=Numbers("web", range(20)))), 10)
    source, calls = Numbers("web", range(20)), itertools.count(1)
    read = source.clip

    def clip(item, random):
        if next(calls) % 7 == 0:
            cause = (TimeoutError("slow"), OSError(errno.ESTALE, "stale"))[item % 2]
            raise frames.UnreadableVideo(str(item), "for now") from cause
        return read(item, random)

    source.clip = clip
    log = tmp_path / "skipped.jsonl"
    same(take(pipeline.clips(numbers({"web": 1.0}, web=source), skipped=str(log)), 10), wanted)
    assert not log.exists()


def test_a_file_that_the_system_never_gives_is_tried_every_time_and_an_outage_ends_the_run(
    numbers, no_pause
):
    source, silent = Numbers("web", range(20)), {7}
    read, tries = source.clip, []

    def clip(item, random):
        if item in silent:
            tries.append(item)
            raise frames.UnreadableVideo(str(item), "broken disk") from OSError(errno.EIO, "disk")
        return read(item, random)

    source.clip = clip
    stream = pipeline.clips(numbers({"web": 1.0}, batch=20, web=source))
    for _ in range(3):
        assert 7 not in next(stream)["episode"]
    assert len(tries) >= 3 * 5
    silent.update(range(20))
    with pytest.raises(frames.UnreadableVideo, match="broken disk"):
        take(stream, 3)


def test_another_file_in_place_of_a_broken_one_costs_nothing_of_the_source_size():
    items = range(2**31 - 1)  # a permutation takes 16 GB
    source = Numbers("web", items, bad=range(500))
    read = reader.Reader(source, "train", 0, 0.0, reader.Failures(None))
    clips = [read(3, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert clips[0]["episode"] == clips[1]["episode"] != clips[2]["episode"]
    assert clips[0]["episode"] >= 500
    few = Numbers("web", range(30), bad=range(29))
    read = reader.Reader(few, "train", 0, 0.0, reader.Failures(None))
    assert all(read(i, np.random.default_rng(i))["episode"] == 29 for i in range(30))
    few.bad = range(30)
    with pytest.raises(ValueError, match="no readable file is left"):
        read(0, np.random.default_rng(0))


def test_skipped_files_are_listed_once_over_threads_processes_and_restarts(tmp_path):
    path = tmp_path / "skipped.jsonl"
    path.write_text('{"source": "web", "path": "0", "reason": "before"}\n{"half')

    def work():
        failures = reader.Failures(str(path))
        for i in range(50):
            failures.add("web", frames.UnreadableVideo(str(i), "broken"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, half, *rest = path.read_text().splitlines()
    assert half == '{"half'
    rows = [json.loads(line) for line in [first, *rest]]
    assert sorted(int(row["path"]) for row in rows) == list(range(50))
    assert rows[0]["reason"] == "before"


def test_clips_of_records_are_drawn_by_file_and_then_evenly_from_all_of_it():
    lengths = [[8, 8, 4], [5], [3], [8]]  # frames of the records of four videos; a clip has 4
    files = records.Files(lengths, 4)
    assert len(files) == 4
    random = np.random.default_rng(0)
    draws = np.array([files.pick(0, random) for _ in range(11000)])
    counts = np.bincount(draws, minlength=3)  # of 5, 5 and 1 places to start at
    assert scipy.stats.chisquare(counts, np.array([5, 5, 1]) * 1000).pvalue > 1e-3
    assert [files.pick(number, random) for number in (1, 2, 3)] == [3, 4, 5]


def test_records_and_the_videos_that_they_were_made_from_give_clips_of_each_equally_often(tmp_path):
    for name, count in ("long", 160), ("a", 12), ("b", 12), ("c", 12):
        write(tmp_path / f"{name}.mp4", every(count, 4), (32, 32))
    plan = plans.Plan(
        str(tmp_path), fps=4.0, size=32, resize=32, frames=8, least=4, quality=0, holdout=0.0
    )
    shards.ingest(plan, str(tmp_path / "out"), show=False)
    shares = []
    for spec in str(tmp_path), f"records:{tmp_path}/out":
        settings = config(spec, holdout=0.0, size=32, resize=32)
        source = catalog.source(settings, "videos")
        stream = pipeline.clips(settings)
        epochs = [np.concatenate([next(stream)["episode"] for _ in range(3)]) for _ in range(4)]
        clips = [
            source.clip(source.items[i], np.random.default_rng(0))
            for i in sum(map(list, epochs), [])
        ]
        shares.append(collections.Counter(str(clip["episode"]) for clip in clips))
    assert shares[0] == shares[1] and set(shares[0].values()) == {16}

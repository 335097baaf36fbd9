"""LeRobot's data sets, v2.0, v2.1 and v3.0: row i and frame i of each episode stay together.

The sets are written with their real layout: github.com/huggingface/lerobot. Frames carry numbers
that go on from episode to episode, and so do actions and states.
"""

import base64
import json
import os
import pathlib
import pickle
import shutil
import tarfile

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_data
from drawing import compressed
from test_data import SIZE, F, config, draw, every, numbers, take

from lawm_jax.data import catalog, frames, lerobot, pipeline
from lawm_jax.ingest import plans, shards

CAMERA, STATE = "observation.images.front", "observation.state"
LENGTHS = 20, 31, 17, 26
FPS = 12  # so a clip of 4 Hz has every third frame, and spans 10 rows
PATHS = {
    "v2": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "v3": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}


def action(number):
    return np.stack([number, 0.5 - np.asarray(number)], -1).astype(np.float32)


def state(number):
    return np.stack([number, np.sqrt(number), np.ones_like(number)], -1).astype(np.float32)


def png(number):
    return compressed(draw(number, 64, 48), "PNG")


def table(episode, first, length, features, fps=FPS):
    """Returns the rows of an episode, as LeRobot stores them."""
    number = np.arange(first, first + length)
    columns = {
        "timestamp": pa.array((np.arange(length) / fps).astype(np.float32)),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(number),
        "task_index": pa.array(np.zeros(length, np.int64)),
    }
    for key, values in ("action", action(number)), (STATE, state(number)):
        if key in features:
            width = values.shape[1]
            columns[key] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
    if features[CAMERA]["dtype"] == "image":
        images = [{"bytes": png(i), "path": f"frame-{i:06d}.png"} for i in number]
        columns[CAMERA] = pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table(columns)


def write(
    root, version="v2.1", kind="video", lengths=LENGTHS, rate=FPS, drop=(), jitter=0.0, **info
):
    """Writes a data set; episode 0 begins with frame 0.

    Args:
      version: of the format.
      kind: dtype of the camera's feature, "video" or "image".
      lengths: of the episodes.
      rate: frames a second, a number or a str that is a fraction.
      drop: features to leave out.
      jitter: how far v3's `from_timestamp` miss the frames, in frames.
      info: entries of info.json to replace.
    """
    old = version < "v3"
    fps = 1 / float(every(2, rate)[1])
    ends = np.cumsum(lengths)
    firsts = ends - lengths
    shape = {"shape": [48, 64, 3], "names": ["height", "width", "channel"]}
    vector = {"dtype": "float32", "names": None}
    features = {
        CAMERA: {"dtype": kind, **shape},
        "action": {**vector, "shape": [2]},
        STATE: {**vector, "shape": [3]},
        "timestamp": {**vector, "shape": [1]},
        "task": {"dtype": "string", "shape": [1], "names": None},
    }
    features = {key: value for key, value in features.items() if key not in drop}
    tables = [
        table(i, *place, features, fps) for i, place in enumerate(zip(firsts, lengths, strict=True))
    ]
    data_path, video_path = PATHS[version[:2]]
    entries = {
        "codebase_version": version,
        "total_episodes": len(lengths),
        "fps": fps if fps % 1 else int(fps),
        "splits": {"train": f"0:{len(lengths)}"},
        "chunks_size": 2 if old else 1000,
        "data_path": data_path,
        "video_path": video_path if kind == "video" else None,
        "features": features,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(entries | info))

    def place(folder, template, files):
        """Yields the path of each file and the episodes that it holds."""
        for number, mine in enumerate(files):
            where = dict(chunk_index=number % 2, file_index=number // 2, video_key=CAMERA)
            where |= dict(episode_index=mine[0], episode_chunk=mine[0] // 2)
            for i in mine:
                rows[i] |= {f"{folder}/{key}": where[key] for key in ("chunk_index", "file_index")}
            path = root / template.format(**where)
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path, mine

    rows = [
        {"episode_index": i, "tasks": ["do it"], "length": length}
        | {"dataset_from_index": int(end) - length, "dataset_to_index": int(end)}
        for i, (length, end) in enumerate(zip(lengths, ends, strict=True))
    ]
    count = len(lengths)
    alone = [[i] for i in range(count)]
    for path, mine in place(
        "data", data_path, alone if old else [range(count - 1), range(count - 1, count)]
    ):
        size = 7 if kind == "video" else None  # rows of one group, or all
        pq.write_table(pa.concat_tables([tables[i] for i in mine]), path, row_group_size=size)
    shared = [range(1), range(1, count)]
    for path, mine in place(f"videos/{CAMERA}", video_path, alone if old else shared):
        if kind == "video":
            total = sum(lengths[i] for i in mine)
            test_data.write(path, every(total, rate), first=firsts[mine[0]], options={"g": "2"})
            for i in mine:
                start = (firsts[i] - firsts[mine[0]] + jitter * (-1) ** i) / fps
                rows[i][f"videos/{CAMERA}/from_timestamp"] = max(0.0, start)
                rows[i][f"videos/{CAMERA}/to_timestamp"] = max(0.0, start) + lengths[i] / fps
    if old:
        keys = "episode_index", "tasks", "length"
        lines = [json.dumps({key: row[key] for key in keys}) for row in rows]
        (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
        return root
    for number, some in enumerate((rows[:1], rows[1:])):
        path = root / f"meta/episodes/chunk-000/file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(some), path)
    return root


def settings(root, options="", **data):
    sources = {"robot": f"lerobot:{root}{options and '?'}{options}"}
    return config(mixture={"robot": 1.0}, sources=sources, **data)


def check(clip, episode, start, stride=3, lengths=LENGTHS, count=F):
    """Checks that a clip is that of some rows of an episode."""
    first = sum(lengths[:episode]) + start
    shown = first + stride * np.arange(count)
    assert numbers(clip["video"]) == shown.tolist()
    assert clip["video"].dtype == np.uint8 and clip["video"].shape == (count, SIZE, SIZE, 3)
    assert clip["actions"].dtype == clip["state"].dtype == np.float32
    np.testing.assert_array_equal(clip["state"], state(shown))
    # As DINO-WM has it: rearrange(actions, "(n f) d -> n (f d)", f=stride), of all but the last.
    recorded = action(first + np.arange(count * stride)).reshape(count, stride * 2)
    np.testing.assert_array_equal(clip["actions"], recorded[:-1])
    assert (clip["episode"], clip["start"]) == (episode, start)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same episodes in each version of the format, with videos and with images."""
    root = tmp_path_factory.mktemp("lerobot")
    return {
        (version, kind): write(root / f"{version}-{kind}", version, kind, jitter=0.2)
        for version in ("v2.0", "v2.1", "v3.0")
        for kind in ("video", "image")
    }


VERSIONS = pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
KINDS = pytest.mark.parametrize("kind", ["video", "image"])


@VERSIONS
@KINDS
def test_every_step_of_every_episode_has_its_own_frame_actions_and_state(sets, version, kind):
    found = catalog.source(settings(sets[version, kind], fps=12.0, holdout=0.0), "robot")
    other = catalog.source(settings(sets[version, kind], fps=12.0, holdout=0.0), "robot", "test")
    assert sorted(found.items + other.items) == [0, 1, 2, 3]
    for episode, length in enumerate(LENGTHS):
        parts = list(found.parts(episode, length))
        assert len(parts) == 1
        check(parts[0], episode, 0, stride=1, count=length)


@VERSIONS
@KINDS
def test_clips_are_those_of_their_start_at_the_rate_of_the_config(sets, version, kind):
    found = catalog.source(settings(sets[version, kind], holdout=0.0), "robot")
    random = np.random.default_rng(0)
    starts = set()
    for episode in range(4):
        for _ in range(12):
            clip = found.clip(episode, random)
            check(clip, episode, clip["start"])
            starts.add((episode, clip["start"]))
        first, *rest = found.fixed(episode)
        assert [first["start"], *(clip["start"] for clip in rest)] == [
            start for start in (0, 12, 24) if start + 10 <= LENGTHS[episode]
        ]
        for clip in (first, *rest):
            check(clip, episode, clip["start"])
    assert len(starts) > 20


@VERSIONS
def test_parts_hold_every_third_row_of_an_episode(sets, version):
    found = catalog.source(settings(sets[version, "video"], holdout=0.0), "robot")
    for episode, length in enumerate(LENGTHS):
        parts = list(found.parts(episode, 4))
        assert [part["start"] for part in parts] == [*range(0, length, 12)]
        counts = [len(part["video"]) for part in parts]
        assert sum(counts) == -(-length // 3) and max(counts) == 4
        for part, count in zip(parts, counts, strict=True):
            check(part, episode, part["start"], count=count)


@pytest.mark.parametrize("fps, stride", [("30000/1001", 8), (10, 3), (4, 1), (5, 1), (6, 2)])
def test_frames_are_right_at_any_rate(tmp_path, fps, stride):
    lengths = 60, 40, 50
    for version in "v2.1", "v3.0":
        root = write(tmp_path / version, version, lengths=lengths, rate=fps, jitter=0.2)
        found = catalog.source(settings(root, holdout=0.0), "robot")
        for episode in range(3):
            for clip in found.fixed(episode):
                check(clip, episode, clip["start"], stride, lengths)
            latest = lengths[episode] - 1 - (F - 1) * stride
            clip = found.clip(episode, At(-1))
            check(clip, episode, latest, stride, lengths)


class At:
    """Draws a given number, counted from the end where it is negative."""

    def __init__(self, place):
        self.place = place

    def integers(self, high):
        return range(high)[self.place]


def test_batches_hold_labels_of_their_frames(sets):
    for root in sets.values():
        stream = pipeline.clips(settings(root, holdout=0.0))
        for batch in take(stream, 3):
            assert batch["actions"].shape == (4, F - 1, 6) and batch["state"].shape == (4, F, 3)
            for i, clip in enumerate(batch["video"]):
                shown = np.array(numbers(clip))
                np.testing.assert_array_equal(batch["state"][i], state(shown))
                np.testing.assert_array_equal(batch["actions"][i, :, :2], action(shown[:-1]))
                np.testing.assert_array_equal(batch["actions"][i, :, 4:], action(shown[:-1] + 2))


@KINDS
def test_a_set_without_labels_gives_video_timed(tmp_path, kind):
    for version in "v2.1", "v3.0":
        root = write(tmp_path / version, version, kind, drop=("action", STATE))
        clip = next(pipeline.episodes(settings(root, holdout=1.0), "robot"))
        assert clip.keys() == {"video", "source", "episode", "start"}
        first = sum(LENGTHS[: clip["episode"]])
        assert numbers(clip["video"]) == [first, first + 3, first + 6, first + 9]


def test_features_are_chosen_by_name(sets, tmp_path):
    root = sets["v3.0", "video"]

    def keys(options):
        return next(pipeline.episodes(settings(root, options), "robot")).keys()

    plain = {"video", "source", "episode", "start"}
    assert keys("") == plain | {"actions", "state"}
    assert keys(f"camera={CAMERA}&actions=none") == keys("actions=none") == plain | {"state"}
    swapped = next(pipeline.episodes(settings(root, f"actions={STATE}&state=action"), "robot"))
    assert swapped["actions"].shape == (F - 1, 9) and swapped["state"].shape == (F, 2)
    twice = next(pipeline.episodes(settings(root, "state=action"), "robot"))
    np.testing.assert_array_equal(twice["state"][:-1], twice["actions"][:, :2])
    for options, message in {
        "camera=hand": rf"camera: expected one of \['{CAMERA}'\], got 'hand'",
        "actions=speed": r"actions: expected one of \['action', '.*'\] or 'none', got 'speed'",
        "state=task": "state: expected one of .* got 'task'",
        "wrist=1": "wrist",
    }.items():
        with pytest.raises(ValueError, match=message):
            keys(options)
    two = write(tmp_path / "two", features={key: {"dtype": "image"} for key in ("left", "right")})
    with pytest.raises(ValueError, match=r"camera: expected one of \['left', 'right'\], got ''"):
        pipeline.clips(settings(two))


def test_labels_of_several_axes_are_flattened_and_those_of_none_become_one(tmp_path):
    root = write(tmp_path / "a", lengths=(12, 12))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"] |= {"pose": {"dtype": "float32", "shape": [2, 2]}, "grip": {"dtype": "bool"}}
    (root / "meta/info.json").write_text(json.dumps(info))
    pose = np.arange(48.0).reshape(12, 2, 2)
    for path in root.glob("data/*/*.parquet"):
        rows = pq.read_table(path)
        rows = rows.append_column("pose", pa.array(pose.tolist()))
        pq.write_table(rows.append_column("grip", pa.array(np.arange(12) % 2 == 0)), path)
    clip = next(pipeline.episodes(settings(root, "actions=grip&state=pose"), "robot"))
    np.testing.assert_array_equal(clip["state"], pose[:10:3].reshape(4, 4))
    np.testing.assert_array_equal(clip["actions"], [[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def test_without_a_view_only_labels_are_read(sets):
    for root in sets.values():
        data = settings(root, holdout=0.0).data
        found = lerobot.source("x", str(root), "train", data, None)
        clip = found.clip(1, At(-1))
        assert clip.keys() == {"episode", "start", "actions", "state"}
        np.testing.assert_array_equal(clip["state"][:, 0], [41, 44, 47, 50])


def test_the_split_is_disjoint_and_goes_by_the_episodes_number(tmp_path, sets):
    for version in "v2.1", "v3.0":
        root = tmp_path / version
        shutil.copytree(sets[version, "image"], root)
        sides = [
            [catalog.source(settings(r, holdout=0.5), "robot", s).items for s in ("train", "test")]
            for r in (root, sets[version, "image"], sets["v2.0", "video"])
        ]
        assert sides[0] == sides[1] == sides[2]
        train, test = sides[0]
        assert train and test and sorted(train + test) == [0, 1, 2, 3]


def test_broken_episodes_are_reported_once_and_the_run_goes_on(tmp_path):
    root = write(tmp_path / "set", lengths=(20, 20, 20, 20, 20, 20, 20, 9))
    data, videos = (sorted(root.glob(f"{kind}/**/*.[mp]*")) for kind in ("data", "videos"))
    reasons = {"7": "9 steps, but a clip needs 10"}
    videos[1].unlink()
    reasons["1"] = "episode_000001.mp4: No such file"
    whole = data[2].read_bytes()
    data[2].write_bytes(whole[: len(whole) // 2])
    reasons["2"] = "episode_000002.parquet: Parquet magic bytes not found"
    data[3].unlink()
    reasons["3"] = "No such file"
    shutil.copy(data[0], data[4])
    reasons["4"] = "have an unexpected episode_index"
    rows = pq.read_table(data[5])
    pq.write_table(rows.slice(0, 12), data[5])
    reasons["5"] = "expected at least 20 rows, got 12"
    videos[6].write_bytes(b"no video")
    reasons["6"] = "nvalid data"
    log = tmp_path / "skipped.jsonl"
    train = catalog.source(settings(root, holdout=0.0), "robot").items
    assert len(train) == 7 and 0 in train
    for batch in take(pipeline.clips(settings(root, holdout=0.0), skipped=str(log)), 4):
        assert (batch["episode"] == train.index(0)).all() and len(batch["video"]) == 4
    found = {line["path"]: line["reason"] for line in map(json.loads, log.open())}
    assert sorted(found) == sorted(str(item) for item in train if item)
    assert len(log.read_text().splitlines()) == len(found)
    for path, reason in found.items():
        assert reasons[path] in reason
    log.unlink()
    for split in "train", "test":
        clips = pipeline.episodes(settings(root), "robot", split, skipped=str(log))
        assert {clip["episode"] for clip in clips} <= {0}
    found = {line["path"]: line["reason"] for line in map(json.loads, log.open())}
    assert found.keys() == reasons.keys()


def test_rows_that_do_not_belong_to_their_frames_are_refused(tmp_path):
    root = write(tmp_path / "set", "v3.0")
    path = root / "meta/episodes/chunk-000/file-001.parquet"
    right = pq.read_table(path)

    def change(key, values):
        rows = right.set_column(right.column_names.index(key), key, pa.array(values))
        pq.write_table(rows, path)
        return catalog.source(settings(root, holdout=0.0, fps=12.0), "robot")

    read = lambda found, episode: list(found.parts(episode, 100))[0]  # noqa: E731
    found = change("dataset_from_index", [20, 50, 68])  # one row early
    check(read(found, 1), 1, 0, stride=1, count=31)
    with pytest.raises(
        frames.UnreadableVideo, match=r"rows \[50 66\] have an unexpected episode_index"
    ):
        read(found, 2)
    swapped = root / "data/chunk-000/file-000.parquet"
    rows = pq.read_table(swapped)
    pq.write_table(rows.take([*range(23), 24, 23, *range(25, 68)]), swapped)
    with pytest.raises(frames.UnreadableVideo, match="have an unexpected frame_index"):
        read(found, 1)
    pq.write_table(rows, swapped)
    found = change("length", [33, 17, 26])  # two rows of the next one
    with pytest.raises(frames.UnreadableVideo, match="have an unexpected episode_index"):
        read(found, 1)
    # A frame fewer than rows: the video of the next episode begins too early.
    starts = np.array(right[f"videos/{CAMERA}/from_timestamp"])
    found = change(f"videos/{CAMERA}/from_timestamp", starts - [0, 1 / FPS, 0])
    with pytest.raises(frames.UnreadableVideo, match="more rows than frames"):
        read(found, 1)
    clips = list(found.fixed(1))
    assert len(clips) > 1
    for clip in clips:
        check(clip, 1, clip["start"], stride=1)


def test_the_order_of_the_metadata_does_not_matter(tmp_path, sets):
    for version in "v2.1", "v3.0":
        root = tmp_path / version
        shutil.copytree(sets[version, "video"], root)
        if version == "v3.0":
            path = root / "meta/episodes/chunk-000/file-001.parquet"
            pq.write_table(pq.read_table(path).take([2, 0, 1]), path)
        else:
            path = root / "meta/episodes.jsonl"
            path.write_text("\n".join(reversed(path.read_text().split("\n"))))
        found = catalog.source(settings(root, holdout=0.0), "robot")
        for episode in range(4):
            check(next(found.fixed(episode)), episode, 0)


def unreadable(root):
    """Checks the clips of episode 0, of 40 rows, and lists the starts of those that are damaged."""
    found = catalog.source(settings(root, holdout=0.0, fps=12.0), "robot")
    lost = []
    for start in range(37):
        try:
            check(found.clip(0, At(start)), 0, start, 1, (40, 40))
        except frames.UnreadableVideo as error:
            assert error.path == "0" and error.start == start
            lost.append(start)
    return lost


def test_damage_spoils_only_the_clips_that_meet_it(tmp_path):
    root = write(tmp_path / "video", "v3.0", lengths=(40, 40))
    path = min(root.glob("videos/*/*/*"))
    with av.open(str(path)) as container:
        packets = {round(p.pts * p.time_base * FPS): p for p in container.demux(video=0) if p.size}
        first, size = packets[20].pos, packets[20].size
    with path.open("r+b") as file:
        file.seek(first + 8)
        file.write(bytes(size - 8))
    lost = unreadable(root)
    assert {17, 18, 19, 20} <= set(lost) <= set(range(15, 24))

    root = write(tmp_path / "image", "v3.0", "image", lengths=(40, 40))
    path = min(root.glob("data/*/*"))
    options = dict(row_group_size=8, compression="none", use_dictionary=False)
    pq.write_table(pq.read_table(path), path, **options)
    image = png(20)
    first = path.read_bytes().index(image)
    with path.open("r+b") as file:
        file.seek(first + len(image) // 2)
        file.write(bytes(20))
    assert unreadable(root) == [17, 18, 19, 20]
    group = pq.read_metadata(path).row_group(4)  # rows 32 to 39
    with path.open("r+b") as file:
        for column in range(group.num_columns):
            file.seek(group.column(column).data_page_offset)
            file.write(b"\xff" * 20)
    assert unreadable(root) == [17, 18, 19, 20, *range(29, 37)]


def test_labels_that_are_no_numbers_are_refused(tmp_path):
    root = write(tmp_path / "set", lengths=(12, 12), kind="image")
    paths = sorted(root.glob("data/*/*.parquet"))
    right = pq.read_table(paths[0])

    def reason(key, values):
        rows = right.drop_columns([key])
        if values is not None:
            rows = rows.append_column(key, values)
        pq.write_table(rows, paths[0])
        found = catalog.source(settings(root, holdout=0.0), "robot")
        with pytest.raises(frames.UnreadableVideo) as caught:
            next(found.fixed(0))
        assert caught.value.path == "0"
        return caught.value.reason

    holes = action(np.arange(12)).tolist()
    holes[4] = [np.nan, 0]
    assert "actions at step 3: expected finite numbers" in reason("action", pa.array(holes))
    holes[4] = None
    assert "inhomogeneous" in reason("action", pa.array(holes))
    assert "action" in reason("action", None)
    assert "action: expected numbers, got string" in reason("action", pa.array(["fast"] * 12))
    nowhere = pa.array([{"bytes": None, "path": "/etc/hostname"}] * 12)
    assert f"{CAMERA}: expected the bytes of an image" in reason(CAMERA, nowhere)
    assert "JPEG or PNG" in reason(CAMERA, pa.array([{"bytes": b"?", "path": ""}] * 12))


def test_a_path_out_of_the_folder_is_refused_at_the_start(tmp_path):
    outside = write(tmp_path / "outside")
    for number, (key, template) in enumerate(
        [
            ("data_path", "../outside/data/chunk-000/episode_000000.parquet"),
            ("data_path", str(outside / "data/chunk-000/episode_000000.parquet")),
            ("video_path", "videos/../../outside/videos/{video_key}.mp4"),
            ("video_path", "videos/{video_key.__class__}.mp4"),
            ("video_path", "videos/{0}/{episode_index:06d}.mp4"),
            ("data_path", "data/{episode_index:9999999999d}.parquet"),
            ("data_path", "data/{secret}.parquet"),
        ]
    ):
        root = write(tmp_path / f"{number}", **{key: template})
        with pytest.raises(ValueError, match="expected a path within|expected fields"):
            pipeline.clips(settings(root))


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_reading_parquet_unpickles_nothing(tmp_path):
    trap = str(tmp_path / "trap")
    bomb = pickle.dumps(Bomb(trap))
    pickle.loads(bomb)
    assert os.path.isdir(trap)  # it does work
    os.rmdir(trap)
    root = write(tmp_path / "set", "v3.0")
    for path in root.glob("**/*.parquet"):
        rows = pq.read_table(path)
        marks = {"ARROW:extension:name": "arrow.py_extension_type"}
        marks |= {"ARROW:extension:metadata": bomb}
        fields = [field.with_metadata(marks) for field in rows.schema]
        pq.write_table(pa.Table.from_arrays(rows.columns, schema=pa.schema(fields)), path)
        schema = base64.b64decode(pq.read_metadata(path).metadata[b"ARROW:schema"])
        assert bomb in schema
    if isinstance(pq.read_schema(path).field(0).type, pa.BaseExtensionType):  # old versions
        with pytest.raises(ValueError, match="expected numbers, got extension"):
            pipeline.clips(settings(root))
    else:
        for clip in pipeline.episodes(settings(root, holdout=1.0), "robot"):
            check(clip, clip["episode"], clip["start"])
    assert not os.path.exists(trap)


def test_a_source_reads_the_same_in_another_process(sets):
    for key in ("v2.1", "video"), ("v3.0", "image"):
        settled = settings(sets[key], holdout=0.0)
        found = catalog.source(settled, "robot")
        size = len(pickle.dumps(found))
        sent = pickle.loads(pickle.dumps(found))
        for item in found.items:
            a, b = (each.clip(item, np.random.default_rng(5)) for each in (found, sent))
            assert all(np.array_equal(a[key], b[key]) for key in a)
        assert len(pickle.dumps(found)) == size  # and it keeps nothing of what it read
    alone = take(pipeline.clips(settled), 2)
    settled.data.workers = 1
    stream = pipeline.clips(settled)
    for a, b in zip(alone, take(stream, 2), strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)
    stream.close()


def test_what_is_no_data_set_is_an_error_at_the_start(tmp_path):
    with pytest.raises(
        ValueError, match="expected a LeRobot data set, but .*info.json' doesn't exist"
    ):
        pipeline.clips(settings(tmp_path))
    for number, (info, message) in enumerate(
        [
            ({"codebase_version": "v1.6"}, "expected v2.0, v2.1, v3.0, got v1.6"),
            ({"fps": 0}, "info.json: fps: expected a positive number, got 0"),
            ({"fps": None}, "info.json: fps: expected a positive number, got None"),
            ({"fps": 3}, "robot.* has 3 frames per second, fewer than 4"),
            ({"features": {}}, r"camera: expected one of \[\], got ''"),
            ({"features": {"x": 1}}, "info.json: features, x: expected an object, got 1"),
            ({"chunks_size": 0}, "info.json: chunks_size: expected a positive integer"),
            ({"video_path": None}, "info.json: video_path: expected a string, got None"),
        ]
    ):
        root = write(tmp_path / f"{number}", lengths=(12, 12), **info)
        with pytest.raises(ValueError, match=message):
            pipeline.clips(settings(root))
    lines = '{"episode_index": 0, "length": 12}\n'
    for text, message in (
        ("", "expected episodes"),
        ("{", "Expecting property name"),
        ('{"length": 12}', "episodes.jsonl, line 1: episode_index: expected"),
        (lines * 2, "expected episodes with unique numbers"),
    ):
        (root / "meta/info.json").write_text(
            (tmp_path / "3/meta/info.json").read_text().replace('"fps": 3', '"fps": 12')
        )
        (root / "meta/episodes.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            pipeline.clips(settings(root))
    (root / "meta/info.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting property name"):
        pipeline.clips(settings(root))
    new = write(tmp_path / "new", "v3.0")
    path = new / "meta/episodes/chunk-000/file-001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["data/file_index"]), path)
    with pytest.raises(ValueError, match="expected columns .'data/file_index'., which are missing"):
        pipeline.clips(settings(new))
    shutil.rmtree(new / "meta/episodes")
    with pytest.raises(ValueError, match="no episodes"):
        pipeline.clips(settings(new))


INPUTS = pathlib.Path(__file__).resolve().parents[1] / "../shared/inputs"


def timed(root, rows, times, timestamps=None, version="v2.1", index=None):
    """Writes a set whose episode 0 has a video, and perhaps rows, of other times."""
    write(root, version, lengths=(rows, 3))
    path = min(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    if timestamps is not None:
        at = table.column_names.index("timestamp")
        table = table.set_column(at, "timestamp", pa.array(timestamps, pa.float32()))
    if index is not None:
        table = table.set_column(table.column_names.index("index"), "index", pa.array(index))
    pq.write_table(table, path)
    path = min(root.glob("videos/**/*.mp4"))
    test_data.write(path, times, options={"g": "6"})
    return root


def readable(root):
    """Reads all 17 clips of episode 0: how many are right, and why the others are refused."""
    found = catalog.source(settings(root, fps=12.0), "robot")
    right, reasons = 0, set()
    for start in range(17):
        try:
            check(found.clip(0, At(start)), 0, start, 1)
            right += 1
        except frames.UnreadableVideo as error:
            reasons.add(error.reason)
    return right, " ".join(reasons)


TWENTY = 20
STEADY = every(TWENTY, FPS)


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
@pytest.mark.parametrize(
    "times, stamps, reason",
    [
        (
            every(TWENTY, 10),
            None,
            "expected frame 2 at 0.1667 s, the timestamp of its row, got 0.2000",
        ),
        (every(TWENTY, 13), None, "have different rates"),
        (every(TWENTY, 24), None, "have different rates"),
        (every(19, FPS), None, "got 19 for 20 rows"),
        (every(21, FPS), None, "got 21 for 20 rows"),
        ([*every(10, FPS), *[t + 0.1 for t in STEADY[10:]]], None, "expected frame 10 at"),
        (STEADY, [t / FPS for t in [*range(10), *range(11, 21)]], "expected frame 10 at"),
        (STEADY, [np.nan] * 20, "timestamp: expected rows 0.08333 s apart"),
        (STEADY, [0.0] * 20, "timestamp: expected rows 0.08333 s apart"),
    ],
)
def test_a_video_whose_times_are_not_those_of_the_rows_is_refused(
    tmp_path, version, times, stamps, reason
):
    root = timed(tmp_path / "set", TWENTY, times, stamps, version)
    if version == "v3.0" and len(times) > TWENTY:  # the rest may be of an episode left out
        assert readable(root) == (17, "")
        return
    found = catalog.source(settings(root, fps=12.0), "robot")
    with pytest.raises(frames.UnreadableVideo) as caught:
        found.clip(0, At(-1))
    few = version == "v3.0" and "for 20 rows" in caught.value.reason  # until `to_timestamp`
    assert reason in caught.value.reason or few
    # It is the whole episode's fault, unless the rows of the clip are wrong in themselves.
    assert (caught.value.start is None) == ("timestamp: expected" not in reason)


def test_gaps_in_timestamps_and_index_lose_the_clips_that_meet_them(tmp_path):
    gap = [i / FPS for i in [*range(10), *range(11, 21)]]
    rows = timed(tmp_path / "a", TWENTY, [*gap], gap)  # the video follows its rows
    right, reason = readable(rows)
    assert 0 < right < 17
    assert "timestamp: expected rows 0.08333 s apart, as in info.json, got 0.1667" in reason
    rows = timed(tmp_path / "b", TWENTY, STEADY, None, index=[*range(10), *range(11, 21)])
    right, reason = readable(rows)
    assert 0 < right < 17 and "gaps in their index" in reason


def test_true_times_are_followed_where_rows_and_video_agree(tmp_path):
    rate = FPS * 1000 / 1001 * 0.98  # 2 % off info.json's: the last row is 0.4 frames late
    root = timed(tmp_path / "a", TWENTY, every(TWENTY, rate), [i / rate for i in range(TWENTY)])
    assert readable(root) == (17, "")
    shaky = [(i + 0.2 * (i % 2)) / FPS for i in range(TWENTY)]
    root = timed(tmp_path / "b", TWENTY, shaky, shaky)
    assert readable(root) == (17, "")
    rate = FPS / 1.2
    root = timed(tmp_path / "c", TWENTY, every(TWENTY, rate), [i / rate for i in range(TWENTY)])
    right, reason = readable(root)
    assert right == 0 and "expected 12 rows per second, as in info.json, got 10" in reason


def test_checking_a_set_says_what_training_does(tmp_path):
    timed(tmp_path / "set", TWENTY, every(TWENTY, 10))
    plan = plans.Plan(f"lerobot:{tmp_path}/set", 12.0, SIZE, SIZE, 12, 4, 0, write=False)
    with pytest.raises(ValueError, match="none of 2 items"):
        shards.ingest(plan, str(tmp_path / "out"), workers=1, show=False)
    lines = map(json.loads, (tmp_path / "out/report.jsonl").open())
    reasons = {line["path"]: line["reason"] for line in lines}
    assert "have different rates" in reasons["0"]


@pytest.mark.parametrize("name", ["lerobot_rate", "lerobot_25_for_30"])
def test_the_reported_sets_are_refused(name, tmp_path):
    archive = INPUTS / f"{name}.tar.gz"
    if not archive.exists():
        pytest.skip("the reported inputs are not here")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    found = catalog.source(settings(tmp_path / name, fps=10.0), "robot")
    for seed in range(5):
        with pytest.raises(frames.UnreadableVideo, match="have different rates"):
            found.clip(0, np.random.default_rng(seed))


def test_labels_of_other_names_are_read_or_named(tmp_path, caplog):
    root = write(tmp_path / "a", lengths=(20, 20))
    for path in [root / "meta/info.json"]:
        path.write_text(path.read_text().replace('"action"', '"actions"').replace(STATE, "state"))
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        new = {"action": "actions", STATE: "state"}
        pq.write_table(table.rename_columns([new.get(c, c) for c in table.column_names]), path)
    clip = next(pipeline.episodes(settings(root), "robot"))
    check(clip | {"source": None}, clip["episode"], clip["start"], lengths=(20, 20))
    assert not caplog.records
    (root / "meta/info.json").write_text(
        (root / "meta/info.json").read_text().replace('"actions"', '"motor.target"')
    )
    found = catalog.source(settings(root), "robot")
    assert "actions" not in found.open.columns
    assert "no feature 'action'" in caplog.text and "['motor.target', 'state']" in caplog.text


@VERSIONS
def test_files_that_are_missing_are_said_once(tmp_path, version, caplog):
    root = write(tmp_path / "a", version)
    first, *rest = sorted(root.glob("videos/**/*.mp4"))
    first.unlink()
    catalog.source(settings(root), "robot")
    (record,) = [one for one in caplog.records if "missing" in one.getMessage()]
    assert f"1 of {1 + len(rest)} files of videos are missing" in record.getMessage()
    assert str(first) in record.getMessage()
    for path in rest:
        path.unlink()
    with pytest.raises(ValueError, match=f"expected {1 + len(rest)} files of videos, got none"):
        catalog.source(settings(root), "robot")

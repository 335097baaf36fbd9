"""RECON's trajectories: frames, actions and poses of the right steps, and files of every fault."""

import io
import json
import os
import pickle

import h5py
import numpy as np
import PIL.Image
import pytest
from drawing import compressed
from scipy.spatial.transform import Rotation
from test_data import SIZE, F, config, draw, numbers, take

from lawm_jax.data import catalog, frames, pipeline, recon

VIEW = frames.View(SIZE, SIZE)
KEYS = "images/rgb_left", "jackal/position", "jackal/yaw"


def jpeg(number):
    return compressed(draw(number, 64, 48), quality=90)


def strings(images, kind):
    """Stores images as a kind of HDF5 data: the arguments of create_dataset."""
    if kind == "fixed":
        return {"data": np.array(images)}
    if kind == "opaque":
        most = max(map(len, images))
        return {"data": np.array([image.ljust(most, b"\0") for image in images], f"V{most}")}
    data = np.empty(len(images), object)
    data[:] = [np.frombuffer(image, np.uint8) for image in images]
    return {"data": data, "dtype": h5py.vlen_dtype(np.uint8)}


def write(path, count, first=0, kind="fixed", **changes):
    """Writes a trajectory with RECON's layout whose frame i is number first + i.

    `changes` replace the data of `images`, `position` or `yaw`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(first)
    arrays = {
        "images": [jpeg(first + i) for i in range(count)],
        "position": random.normal(size=(count, 3)).cumsum(0) * [0.25, 0.25, 0],
        "yaw": random.normal(size=count).cumsum() + 3,
    } | changes
    with h5py.File(path, "w") as file:
        file.create_dataset(KEYS[0], **strings(arrays["images"], kind))
        file[KEYS[1]] = arrays["position"]
        file[KEYS[2]] = arrays["yaw"]
        file["commands/linear_velocity"] = np.zeros(count)  # and others, which aren't read
    return str(path)


def labels(path, steps):
    """Returns actions and state of some steps, by scipy's rotations."""
    with h5py.File(path) as file:
        position, yaw = file[KEYS[1]][:][steps], file[KEYS[2]][:][steps]
    turns = Rotation.from_rotvec(np.outer(yaw, [0, 0, 1]))
    moves = turns[:-1].inv().apply(np.diff(position, axis=0) * [1, 1, 0])
    turned = (turns[:-1].inv() * turns[1:]).as_rotvec()[:, 2]
    return np.column_stack([moves[:, :2], turned]), np.column_stack([position[:, :2], yaw])


def check(clip, path, steps):
    """Checks that a clip shows some steps of a file, with their labels."""
    actions, state = labels(path, steps)
    with h5py.File(path) as file:
        first = numbers(recon_images(file, VIEW))[0]
    assert numbers(clip["video"]) == [first + step for step in steps]
    assert clip["video"].dtype == np.uint8 and clip["video"].shape == (len(steps), SIZE, SIZE, 3)
    assert clip["actions"].dtype == clip["state"].dtype == np.float32
    np.testing.assert_allclose(clip["actions"], actions, atol=1e-6)
    np.testing.assert_allclose(clip["state"], state, rtol=1e-6)
    assert clip["episode"] == path and clip["start"] == steps[0]


def recon_images(file, view):
    """Decodes the first image of a file of fixed-length strings, by PIL."""
    image = PIL.Image.open(io.BytesIO(file[KEYS[0]][0]))
    return np.asarray(image.crop((8, 0, 56, 48)))[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("recon") / "recon_release"
    for i, count in enumerate((9, 14, 30, 17)):
        write(root / f"{'deep/' * i}jackal_{i}.hdf5", count, first=40 * i)
    (root / "notes.txt").write_text("no trajectory")
    return root


@pytest.fixture
def broken(tmp_path):
    """A folder with a good file and broken ones, and a part of the reason of each of these."""
    root = tmp_path / "bad"
    write(root / "good.hdf5", 12)
    whole = open(write(root / "cut.hdf5", 12), "rb").read()
    (root / "cut.hdf5").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "empty.hdf5").write_bytes(b"")
    (root / "text.hdf5").write_text("This is no HDF5 file.\n" * 100)
    with h5py.File(write(root / "blind.hdf5", 12), "r+") as file:
        del file[KEYS[0]]
    with h5py.File(write(root / "group.hdf5", 12), "r+") as file:
        del file[KEYS[1]]
        file.create_group(KEYS[1])
    with h5py.File(write(root / "flat.hdf5", 12), "r+") as file:
        del file["images"]
        file["images"] = np.zeros(12)
    with h5py.File(write(root / "scalar.hdf5", 12), "r+") as file:
        del file[KEYS[2]]
        file[KEYS[2]] = 1.0
    with h5py.File(write(root / "huge.hdf5", 12), "r+") as file:
        del file[KEYS[2]]
        file.create_dataset(KEYS[2], (12,), chunks=(2**26,), maxshape=(None,), dtype=float)
    write(root / "uneven.hdf5", 12, yaw=np.zeros(11))
    write(root / "lost.hdf5", 12, position=np.full((12, 3), np.nan))
    write(root / "names.hdf5", 12, position=np.array([[b"here", b"there"]] * 12))
    write(root / "line.hdf5", 12, position=np.zeros((12, 1)))
    write(root / "short.hdf5", F - 1)
    write(root / "noise.hdf5", 12, images=[b"\xff\xd8 noise"] * 12)
    write(root / "blank.hdf5", 12, images=[b""] * 11 + [b"?"])
    return root, {
        "cut.hdf5": "truncated file",
        "empty.hdf5": "file signature not found",
        "text.hdf5": "file signature not found",
        "blind.hdf5": "no dataset images/rgb_left",
        "group.hdf5": "jackal/position is not an array",
        "flat.hdf5": "no dataset images/rgb_left",
        "scalar.hdf5": "jackal/yaw: expected [F], got ()",
        "huge.hdf5": "chunks of (67108864,)",
        "uneven.hdf5": "images, positions and yaws, got (12, 12, 11)",
        "lost.hdf5": "expected finite numbers",
        "names.hdf5": "jackal/position: expected numbers, got |S5",
        "line.hdf5": "expected [F, 2]",
        "short.hdf5": "3 steps, but a clip needs 4",
        "noise.hdf5": "damaged mjpeg image",
        "blank.hdf5": "expected a JPEG or PNG image",
    }


def settings(root, rate="", **data):
    sources = {"recon": f"recon:{root}{rate and '?rate='}{rate}"}
    return config(mixture={"recon": 1.0}, sources=sources, **data)


def test_clips_show_their_steps_with_the_motion_in_the_robots_own_frame(folder):
    found = catalog.source(settings(folder, holdout=0.0), "recon")
    random = np.random.default_rng(0)
    starts = set()
    for path in found.items:
        for _ in range(12):
            clip = found.clip(path, random)
            check(clip, path, range(clip["start"], clip["start"] + F))
            starts.add((path, clip["start"]))
    assert len(starts) > 20 and min(start for _, start in starts) == 0


@pytest.mark.parametrize("rate, stride", [("", 1), ("8", 2), ("15", 4)])
def test_evaluation_clips_are_end_to_end_at_the_rate_of_the_config(folder, rate, stride):
    clips = list(pipeline.episodes(settings(folder, rate, holdout=1.0), "recon"))
    for clip in clips:
        steps = range(clip["start"], clip["start"] + F * stride, stride)
        check(clip, clip["episode"], steps)
    found = {path: [] for path in sorted({clip["episode"] for clip in clips})}
    for clip in clips:
        found[clip["episode"]].append(clip["start"])
    for path, starts in found.items():
        length = len(h5py.File(path)[KEYS[2]])
        wanted = range(0, length - (F - 1) * stride, F * stride)
        assert starts == list(wanted) and len(wanted) > 0


@pytest.mark.parametrize("rate", ["4", "8"])
def test_parts_are_the_whole_trajectory(folder, rate):
    found = catalog.source(settings(folder, rate, holdout=0.0), "recon")
    stride = int(rate) // 4
    for path in found.items:
        parts = list(found.parts(path, 5))
        for part in parts:
            count = len(part["video"])
            check(part, path, range(part["start"], part["start"] + count * stride, stride))
        shown = sum([numbers(part["video"]) for part in parts], [])
        assert set(np.diff(shown)) == {stride} and max(len(p["video"]) for p in parts) == 5
        with h5py.File(path) as file:
            assert len(shown) == -(-len(file[KEYS[2]]) // stride)


@pytest.mark.parametrize("kind", ["fixed", "opaque", "numbers"])
def test_images_are_read_however_they_are_stored(tmp_path, kind):
    write(tmp_path / "a.hdf5", 10, first=300, kind=kind)
    clips = list(pipeline.episodes(settings(tmp_path), "recon"))
    assert [numbers(clip["video"]) for clip in clips] == [[*range(300, 304)], [*range(304, 308)]]


def test_a_yaw_and_a_position_of_other_shapes_are_read(tmp_path):
    yaw, position = np.linspace(0, 2, 8), np.ones((8, 2)).cumsum(0)
    path = write(tmp_path / "a.hdf5", 8, yaw=yaw[:, None].astype(np.float32), position=position)
    clip = next(pipeline.episodes(settings(tmp_path), "recon"))
    np.testing.assert_allclose(clip["state"], np.column_stack([position, yaw])[:F], rtol=1e-6)
    assert clip["actions"].shape == (F - 1, 3) and clip["episode"] == path


def test_without_a_view_only_labels_are_read(folder):
    data = settings(folder, holdout=0.0).data
    found = recon.source("x", str(folder), "train", data, None)
    clip = found.clip(found.items[0], np.random.default_rng(0))
    assert clip.keys() == {"episode", "start", "actions", "state"}
    steps = range(clip["start"], clip["start"] + F)
    np.testing.assert_allclose(clip["actions"], labels(found.items[0], steps)[0], atol=1e-6)


def test_the_split_goes_by_the_path_within_the_folder(tmp_path):
    def sides(root, count, holdout):
        for i in range(count):
            (root / f"{i % 7}").mkdir(parents=True, exist_ok=True)
            (root / f"{i % 7}/{i}.hdf5").touch()
        found = settings(root, holdout=holdout)
        items = [catalog.source(found, "recon", split).items for split in ("train", "test")]
        train, test = [[os.path.relpath(item, root) for item in some] for some in items]
        assert not set(train) & set(test) and len(train + test) == count
        assert train == sorted(train) and test == sorted(test)
        return train, test

    _, few = sides(tmp_path / "a", 40, 0.2)
    train, test = sides(tmp_path / "a", 200, 0.2)
    assert set(few) <= set(test) and 20 <= len(test) <= 60
    assert sides(tmp_path / "moved", 200, 0.2) == (train, test)
    for holdout in 0.0, 1.0:
        assert min(map(len, sides(tmp_path / "b", 3, holdout))) == 1


def test_batches_are_full_and_each_broken_file_is_reported_once(broken, tmp_path):
    root, reasons = broken
    log = tmp_path / "skipped.jsonl"
    stream = pipeline.clips(settings(root, holdout=0.0, batch=8), skipped=str(log))
    for batch in take(stream, 6):
        assert batch["video"].shape == (8, F, SIZE, SIZE, 3)
        assert batch["actions"].shape == (8, F - 1, 3) and batch["state"].shape == (8, F, 3)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = {os.path.basename(line["path"]): line["reason"] for line in lines}
    train = {
        os.path.basename(path)
        for path in catalog.source(settings(root, holdout=0.0), "recon").items
    }
    assert found.keys() == reasons.keys() & train and len(lines) == len(found) >= 14
    for name, reason in found.items():
        assert reasons[name] in reason


def test_evaluation_goes_on_after_broken_files(broken, tmp_path):
    root, reasons = broken
    log, found = tmp_path / "skipped.jsonl", set()
    for split in "train", "test":
        clips = pipeline.episodes(settings(root, holdout=0.0), "recon", split, skipped=str(log))
        found |= {os.path.basename(clip["episode"]) for clip in clips}
    assert found == {"good.hdf5"}
    assert len(log.read_text().splitlines()) == len(reasons)


def test_a_damaged_image_spoils_only_the_clips_that_show_it(tmp_path):
    images = [jpeg(i) for i in range(12)]
    images[6] = images[6][: len(images[6]) // 2]
    path = write(tmp_path / "a.hdf5", 12, images=images)
    found = catalog.source(settings(tmp_path), "recon")
    clips = found.fixed(path)
    assert numbers(next(clips)["video"]) == [0, 1, 2, 3]
    with pytest.raises(frames.UnreadableVideo, match="damaged mjpeg image") as caught:
        next(clips)
    assert caught.value.path == path and caught.value.start == 4.0
    random, starts = np.random.default_rng(0), set()
    for _ in range(60):
        try:
            starts.add(found.clip(path, random)["start"])
        except frames.UnreadableVideo as error:
            assert 3 <= error.start <= 6
    assert starts == {0, 1, 2, 7, 8}


def test_no_file_makes_the_reader_open_another_one(tmp_path):
    secret = write(tmp_path / "secret.hdf5", 8, first=100)
    reasons = {}

    def change(name, key, reason):
        path = write(tmp_path / name, 8)
        reasons[path] = reason
        file = h5py.File(path, "r+")
        del file[key]
        return file

    with change("external.hdf5", KEYS[0], "images/rgb_left is a link") as file:
        file[KEYS[0]] = h5py.ExternalLink(secret, KEYS[0])
    with change("group.hdf5", "jackal", "jackal is a link") as file:
        file["jackal"] = h5py.ExternalLink(secret, "jackal")
    with change("soft.hdf5", KEYS[1], "jackal/position is a link") as file:
        file["door"] = h5py.ExternalLink(secret, "/")
        file[KEYS[1]] = h5py.SoftLink("/door/jackal/position")
    with change("virtual.hdf5", KEYS[2], "jackal/yaw stores its data in other files") as file:
        layout = h5py.VirtualLayout((8,), float)
        layout[:] = h5py.VirtualSource(secret, KEYS[2], (8,))
        file.create_virtual_dataset(KEYS[2], layout)
    with change("storage.hdf5", KEYS[2], "jackal/yaw stores its data in other files") as file:
        file.create_dataset(KEYS[2], (8,), float, external=[(secret, 0, 64)])
    found = catalog.source(settings(tmp_path), "recon")
    for path, reason in reasons.items():
        with h5py.File(path) as file:  # HDF5 itself opens it
            assert all(len(file[key][:]) == 8 for key in KEYS)
        with pytest.raises(frames.UnreadableVideo, match=reason):
            found.clip(path, np.random.default_rng(0))


def test_a_source_reads_the_same_in_another_process(folder):
    settled = settings(folder, holdout=0.0)
    found = catalog.source(settled, "recon")
    sent = pickle.loads(pickle.dumps(found))
    for item in found.items:
        a, b = (each.clip(item, np.random.default_rng(5)) for each in (found, sent))
        assert all(np.array_equal(a[key], b[key]) for key in a)
    alone = take(pipeline.clips(settled), 2)
    settled.data.workers = 1
    stream = pipeline.clips(settled)
    for a, b in zip(alone, take(stream, 2), strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)
    stream.close()


def test_wrong_settings_are_errors_that_say_what_was_expected(folder, broken, tmp_path):
    with pytest.raises(ValueError, match="no trajectories .*.hdf5 in"):
        pipeline.clips(settings(tmp_path / "nothing"))
    for rate in "fast", "0", "-4", "nan", "inf":
        with pytest.raises(ValueError, match=f"rate: expected a positive number .* got '{rate}'"):
            pipeline.clips(settings(folder, rate))
    with pytest.raises(ValueError, match="has 3 frames per second, fewer than 4"):
        pipeline.clips(settings(folder, "3"))
    with pytest.raises(ValueError, match="speed"):
        pipeline.clips(config(mixture={"a": 1.0}, sources={"a": f"recon:{folder}?speed=4"}))
    root, _ = broken
    os.remove(root / "good.hdf5")
    with pytest.raises(ValueError, match="none of .* files can be read: .*truncated"):
        pipeline.clips(settings(root, holdout=0.0))

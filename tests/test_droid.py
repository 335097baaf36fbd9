"""DROID in its three forms: the same episodes, each frame with its number, read in every way.

The TFDS form is written by tensorflow_datasets, with the features of the real set, as ArrayRecord
files. TensorBoard's writer puts the same bytes into TFRecord files.
"""

import io
import json
import logging
import pathlib
import pickle
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tensorboardX.record_writer
import tensorflow_datasets
import test_data
from conftest import ROOT
from drawing import compressed
from scipy.spatial.transform import Rotation
from test_data import SIZE, F, config, draw, every, numbers, same, take

from lawm_jax.data import catalog, droid, frames, pipeline, tfrecord

LENGTHS = [30, 26, 13, 34, 9, 40, 21, 28]  # the fifth is too short for 4 frames, 4 steps apart
SHORT, SPAN, SHARDS = 4, 3 * 4 + 1, 4
OTHER = 128  # added to the numbers that the second camera sees
VIEW = frames.View(SIZE, SIZE)
LABELS = "cartesian_position", "gripper_position"


def jpeg(image):
    return io.BytesIO(compressed(image, quality=80))


def recorded(episode):
    """Returns poses [T, 6] and gripper [T] of an episode, numbers that float32 can hold."""
    random = np.random.default_rng(episode)
    count = LENGTHS[episode]
    path = random.normal(size=(count, 6)).cumsum(0) * [0.02, 0.02, 0.02, 0.1, 0.1, 0.1]
    path[:, 3:] = (path[:, 3:] + np.pi) % (2 * np.pi) - np.pi  # near where an angle wraps
    return np.float64(np.float32(path)), np.float64(np.float32(random.random(count)))


def first(episode):
    return 45 * episode  # the number of its first frame


class Droid(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Writes the episodes, named by `NAMES`, with the features of droid 1.0.1."""

    VERSION = tensorflow_datasets.core.Version("1.0.1")

    def _info(self):
        f = tensorflow_datasets.features
        doubles = lambda **sizes: f.FeaturesDict(  # noqa: E731
            {name: f.Tensor(shape=(size,), dtype=np.float64) for name, size in sizes.items()}
        )
        arm = dict(cartesian_position=6, gripper_position=1, joint_position=7)
        speeds = dict(cartesian_velocity=6, gripper_velocity=1, joint_velocity=7)
        image = lambda: f.Image(shape=(180, 320, 3), encoding_format="jpeg")  # noqa: E731
        cameras = ["exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"]
        steps = {
            "action": f.Tensor(shape=(7,), dtype=np.float64),
            "action_dict": doubles(**arm, **speeds),
            "observation": f.FeaturesDict(
                dict(doubles(**arm)) | {camera: image() for camera in cameras}
            ),
            "discount": f.Scalar(dtype=np.float32),
            "reward": f.Scalar(dtype=np.float32),
            "is_first": f.Scalar(dtype=np.bool_),
            "is_last": f.Scalar(dtype=np.bool_),
            "is_terminal": f.Scalar(dtype=np.bool_),
            "language_instruction": f.Text(),
            "language_instruction_2": f.Text(),
            "language_instruction_3": f.Text(),
        }
        paths = {"file_path": f.Text(), "recording_folderpath": f.Text()}
        features = {"episode_metadata": f.FeaturesDict(paths), "steps": f.Dataset(steps)}
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for episode, count in enumerate(LENGTHS):
            path, gripper = recorded(episode)
            yield (
                str(episode),
                {
                    "episode_metadata": {"file_path": f"/{episode}", "recording_folderpath": ""},
                    "steps": [self._step(episode, i, count, path, gripper) for i in range(count)],
                },
            )

    def _step(self, episode, i, count, path, gripper):
        arm = {
            "cartesian_position": path[i],
            "gripper_position": gripper[i : i + 1],
            "joint_position": np.zeros(7),
        }
        speeds = dict(cartesian_velocity=np.ones(6), gripper_velocity=np.ones(1))
        number = first(episode) + i
        noise = np.random.default_rng(number).integers(0, 256, (180, 320, 3), np.uint8)
        images = {
            "exterior_image_1_left": jpeg(draw(number, 320, 180)),
            "exterior_image_2_left": jpeg(draw(OTHER + number, 320, 180)),
            "wrist_image_left": jpeg(noise // 16),  # can't be compressed any further
        }
        return {
            "action": np.ones(7),
            "action_dict": arm | speeds | {"joint_velocity": np.ones(7)},
            "observation": arm | images,
            "discount": 1.0,
            "reward": 0.0,
            "is_first": i == 0,
            "is_last": i == count - 1,
            "is_terminal": i == count - 1,
            "language_instruction": "put the cup away",
            "language_instruction_2": "",
            "language_instruction_3": "",
        }


def prepare(builder, folder, shards):
    """Has a TFDS builder write ArrayRecord files; returns their folder."""
    settings = tensorflow_datasets.download.DownloadConfig(num_shards=shards)
    made = builder(data_dir=folder, file_format="array_record")
    made.download_and_prepare(download_config=settings)
    return pathlib.Path(made.data_dir)


def as_tfrecords(folder, other):
    """Copies a TFDS folder of ArrayRecord files into one of TFRecord files."""
    from array_record.python import array_record_module

    other.mkdir()
    shutil.copy(folder / "features.json", other)
    text = (folder / "dataset_info.json").read_text()
    assert '"fileFormat": "array_record"' in text
    (other / "dataset_info.json").write_text(text.replace('"array_record"', '"tfrecord"'))
    for path in folder.glob("*.array_record-*"):
        reader = array_record_module.ArrayRecordReader(str(path))
        name = path.name.replace(".array_record-", ".tfrecord-")
        writer = tensorboardX.record_writer.RecordWriter(str(other / name))
        for record in reader.read_all():
            writer.write(record)
        writer.close()
    return other


@pytest.fixture(scope="module")
def array_record(tmp_path_factory):
    return prepare(Droid, tmp_path_factory.mktemp("droid"), SHARDS)


@pytest.fixture(scope="module")
def tfrecords(array_record, tmp_path_factory):
    return as_tfrecords(array_record, tmp_path_factory.mktemp("tfrecord") / "1.0.1")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Raw episodes, with videos of many kinds; a player would show them at 60 frames a second."""
    root = tmp_path_factory.mktemp("droid_raw")
    kinds = [("mpeg4", {"g": "12"}), ("libx264", {"g": "250", "bf": "3"}), ("libx264", {"g": "5"})]
    rates = [60, 15, "30000/1001"]
    for episode in range(len(LENGTHS)):
        folder = root / f"LAB{episode % 2}" / "success" / "2023-07-07" / f"Fri_{episode}"
        codec, options = kinds[episode % 3]
        for place, serial in enumerate([17, 23, 29]):
            count = LENGTHS[episode] - (episode == 1) + (episode == 3)  # one row more, one fewer
            path = folder / f"recordings/MP4/{serial}.mp4"
            times = every(count, rates[episode % 3])
            number = [first(episode), OTHER + first(episode), 0][place]
            test_data.write(path, times, (128, 72), codec, first=number, options=options)
        write_raw(folder, *recorded(episode))
    return root


def write_raw(folder, path, gripper):
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for name, values in zip(LABELS, (path, gripper), strict=True):
            file[f"observation/robot_state/{name}"] = values
            file[f"action/{name}"] = np.zeros_like(values)
    where = f"success/2023-07-07/{folder.name}/recordings/MP4"
    names = dict(ext1=17, ext2=23, wrist=29, left=23, right=17)
    metadata = {f"{name}_mp4_path": f"{where}/{serial}.mp4" for name, serial in names.items()}
    (folder / f"metadata_{folder.name}.json").write_text(json.dumps(metadata))


@pytest.fixture(scope="module")
def order(array_record):
    """Which episode each record holds, as tensorflow_datasets reads it."""
    builder = tensorflow_datasets.builder_from_directory(array_record)
    examples = builder.as_data_source("train")
    return [int(one["episode_metadata"]["file_path"][1:]) for one in examples]


def settings(where, **data):
    spec = f"droid:{where}"
    return config(sources={"droid": spec}, mixture={"droid": 1.0}, holdout=0.3, **data)


def everything(where, options="", view=VIEW, **data):
    """Opens a folder: the items of both sides, and the source to read them."""
    found = settings(f"{where}{options}", **data)
    sides = [catalog.source(found, "droid", split) for split in ("train", "test")]
    items = [list(side.items) for side in sides]
    assert not set(items[0]) & set(items[1]) and min(map(len, items)) > 0
    return sorted(items[0] + items[1]), droid.source("droid", str(where), "train", found.data, view)


def wanted(episode, steps):
    """Returns actions and state of an episode's steps, by scipy."""
    path, gripper = (values[steps] for values in recorded(episode))
    turns = Rotation.from_euler("xyz", path[:, 3:])
    turned = (turns[1:] * turns[:-1].inv()).as_euler("xyz")
    actions = [np.diff(path[:, :3], axis=0), turned, np.diff(gripper)[:, None]]
    return np.concatenate(actions, 1), np.concatenate([path, gripper[:, None]], 1)


def episodes_of(form, items, order):
    """Pairs each item with the number of its episode."""
    if form == "raw":
        return [(item, int(item[-1])) for item in items]
    return list(zip(items, order, strict=True))


@pytest.mark.parametrize("form", ["array_record", "tfrecords", "raw"])
def test_every_clip_has_the_frames_and_labels_of_its_steps(form, order, request):
    where = request.getfixturevalue(form)
    items, source = everything(where)
    assert len(items) == len(LENGTHS)
    starts = set()
    for item, episode in episodes_of(form, items, order):
        if episode == SHORT:
            with pytest.raises(
                frames.UnreadableVideo, match="9 steps, but a clip needs 13"
            ) as caught:
                source.clip(item, np.random.default_rng(0))
            assert caught.value.path == item and caught.value.start is None
            continue
        latest = LENGTHS[episode] - (form == "raw" and episode == 1) - SPAN
        clips = [source.clip(item, np.random.default_rng(seed)) for seed in range(6)]
        clips += source.fixed(item)
        assert [clip["start"] for clip in clips[6:]] == list(range(0, latest + 1, 4 * F))
        for clip in clips:
            assert clip["episode"] == item and 0 <= clip["start"] <= latest
            starts.add(clip["start"])
            steps = clip["start"] + 4 * np.arange(F)
            assert numbers(clip["video"]) == (first(episode) + steps).tolist()
            actions, state = wanted(episode, steps)
            assert clip["actions"].dtype == clip["state"].dtype == np.float32
            np.testing.assert_allclose(clip["actions"], actions, rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(clip["state"], np.float32(state))
    assert len(starts) > 12


def test_both_tfds_forms_give_the_same_batches_bit_for_bit(array_record, tfrecords):
    for split in "train", "test":
        batches = [
            take(pipeline.clips(settings(where), split), 5) for where in (array_record, tfrecords)
        ]
        same(*batches)
        assert batches[0][0]["video"].shape == (4, F, SIZE, SIZE, 3)
        assert batches[0][0]["actions"].shape == (4, F - 1, 7)


def test_frames_are_decoded_as_tensorflow_datasets_decodes_them(array_record, tfrecords):
    examples = tensorflow_datasets.builder_from_directory(array_record).as_data_source("train")
    items, source = everything(tfrecords, view=frames.View(180, 180), fps=15.0)
    for item, example in zip(items[:3], examples, strict=False):
        clip = next(source.fixed(item))
        for i in range(F):
            step = example["steps"][i]["observation"]
            square = step["exterior_image_1_left"][:, 70:250].astype(int)
            assert np.abs(clip["video"][i] - square).mean() < 2
            np.testing.assert_array_equal(
                clip["state"][i], np.float32(np.concatenate([step[label] for label in LABELS]))
            )


@pytest.mark.parametrize("form", ["array_record", "tfrecords", "raw"])
def test_a_camera_may_be_chosen(form, order, request):
    where = request.getfixturevalue(form)
    other = settings(f"{where}?camera=exterior_image_2_left")
    episodes = dict(episodes_of(form, everything(where)[0], order))
    for clip in pipeline.episodes(other, "droid"):
        steps = clip["start"] + 4 * np.arange(F)
        assert numbers(clip["video"]) == (OTHER + first(episodes[clip["episode"]]) + steps).tolist()
    with pytest.raises(ValueError, match="camera: expected one of .*exterior_image_1_left.*'sofa'"):
        catalog.source(settings(f"{where}?camera=sofa"), "droid")


def test_left_is_the_camera_that_the_raw_metadata_calls_left(raw):
    clip = next(pipeline.episodes(settings(f"{raw}?camera=left"), "droid"))
    assert numbers(clip["video"])[0] >= OTHER  # which is the second one here
    with pytest.raises(ValueError, match="camera: expected one of .*, left, right; got 'ext1'"):
        catalog.source(settings(f"{raw}?camera=ext1"), "droid")


def test_a_split_keeps_an_episode_where_it_is_when_shards_come_or_the_folder_moves(
    array_record, tfrecords, raw, tmp_path, caplog
):
    held_out = lambda where: list(catalog.source(settings(where), "droid", "test").items)  # noqa: E731
    items = held_out(array_record)
    assert items == held_out(tfrecords)
    few = tmp_path / "few"
    shutil.copytree(tfrecords, few)
    gone = sorted(few.glob("*.tfrecord-*"))[1]
    gone.unlink()
    with caplog.at_level(logging.WARNING):
        assert held_out(few) == [item for item in items if not item.startswith("00001/")]
    assert "1 of 4 shards are missing" in caplog.text
    moved = shutil.copytree(raw, tmp_path / "moved")
    assert held_out(moved) == [item.replace(str(raw), str(moved)) for item in held_out(raw)]


def test_labels_alone_are_the_labels_of_the_clips(array_record, raw, order):
    for where in array_record, raw:
        items, source = everything(where)
        _, alone = everything(where, view=None)
        for item, episode in episodes_of("raw" if where is raw else "tfds", items, order):
            if episode == SHORT:
                continue
            clips = [one.clip(item, np.random.default_rng(1)) for one in (source, alone)]
            same([{key: value for key, value in clips[0].items() if key != "video"}], clips[1:])


def test_parts_cover_an_episode_for_ingest(tfrecords, order):
    items, source = everything(tfrecords)
    episode = order[0]
    parts = list(source.parts(items[0], 3))
    steps = np.arange(0, LENGTHS[episode], 4)
    shown = [number for part in parts for number in numbers(part["video"])]
    assert shown == (first(episode) + steps).tolist()
    assert [len(part["actions"]) for part in parts] == [len(part["video"]) - 1 for part in parts]


def test_a_stream_resumes_and_worker_processes_change_nothing(array_record, tfrecords):
    stream = pipeline.clips(settings(array_record))
    first, state = take(stream, 2), stream.get_state()
    later = take(stream, 2)
    fresh = pipeline.clips(settings(tfrecords))
    fresh.set_state(state)
    same(take(fresh, 2), later)
    many = pipeline.clips(settings(tfrecords, workers=2))
    same(take(many, 4), first + later)
    many.close()


def test_a_source_is_small_when_pickled_and_keeps_no_episode(array_record, tfrecords, raw):
    for where in array_record, tfrecords, raw:
        items, source = everything(where)
        size = len(pickle.dumps(source))
        clip = source.clip(items[0], np.random.default_rng(2))
        assert len(pickle.dumps(source)) == size < 4000
        copy = pickle.loads(pickle.dumps(source))
        same([copy.clip(items[0], np.random.default_rng(2))], [clip])


def damaged(folder, other, suffix, change):
    """Copies a TFDS folder and has `change` edit the bytes of its second shard."""
    shutil.copytree(folder, other)
    (path,) = other.glob(f"*.{suffix}-00001-of-00004")
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data) or data)
    return other


def flip(*places):
    def change(data):
        for place in places:
            data[place] ^= 0x10

    return change


def length_of_first(data):
    return int.from_bytes(data[:8], "little")


@pytest.mark.parametrize(
    "change, reasons",
    [
        (flip(12), ["is damaged in record 0", None]),
        (flip(20_000), ["is damaged in record 0", None]),
        (flip(-5), [None, "is damaged in record 1"]),
        (flip(-1), [None, "is damaged in record 1"]),
        (flip(0), ["is damaged after 0 records", "is damaged after 0 records"]),
        (flip(9), ["is damaged after 0 records", "is damaged after 0 records"]),
        (lambda data: flip(length_of_first(data) + 16 + 3)(data), [None, "is damaged after 1"]),
        (lambda data: data[:-1], [None, "is truncated after 1 records"]),
        (
            lambda data: data[: length_of_first(data) + 16 + 5],
            [None, "is truncated after 1 records"],
        ),
        (lambda data: data[: length_of_first(data) + 16], [None, "ends after 1 records"]),
        (lambda data: data[:1000], ["is truncated after 0 records"] * 2),
    ],
)
def test_damage_in_a_tfrecord_file_is_found_and_costs_only_what_it_reaches(
    tfrecords, order, tmp_path, change, reasons
):
    _, source = everything(damaged(tfrecords, tmp_path / "bad", "tfrecord", change), view=None)
    for number, reason in enumerate(reasons):
        item = f"00001/{number}"
        if reason is None:
            with source.open(item) as episode:
                assert episode.length == LENGTHS[order[2 + number]]
            continue
        with pytest.raises(frames.UnreadableVideo, match=f"00001-of-00004 {reason}") as caught:
            source.open(item).__enter__()
        assert caught.value.path == item and caught.value.start is None


@pytest.mark.parametrize(
    "change, bad",
    [
        (flip(20_000), [0]),
        (flip(80_000), [1]),
        (lambda data: data[: len(data) // 2], [0, 1]),
        (lambda data: data[:100], [0, 1]),
    ],
)
def test_damage_in_an_array_record_file_is_found(array_record, order, tmp_path, change, bad):
    changed = damaged(array_record, tmp_path / "bad", "array_record", change)
    _, source = everything(changed, view=None)
    for number in range(2):
        item = f"00001/{number}"
        if number not in bad:
            with source.open(item) as episode:
                assert episode.length == LENGTHS[order[2 + number]]
            continue
        with pytest.raises(frames.UnreadableVideo, match="iegeli|64KB") as caught:
            source.open(item).__enter__()
        assert caught.value.path == item and caught.value.start is None


def rewritten(folder, other, item, change):
    """Copies a TFDS folder of TFRecord files and has `change` edit the example of an item."""
    from tensorflow_datasets.proto import tf_example_generated_pb2

    shutil.copytree(folder, other)
    shard, number = map(int, item.split("/"))
    (path,) = other.glob(f"*.tfrecord-{shard:05}-of-*")
    records = tfrecord.Records([path], [2])
    whole = [records[0], records[1]]
    example = tf_example_generated_pb2.Example.FromString(whole[number])
    change(example.features.feature)
    whole[number] = example.SerializeToString()
    writer = tensorboardX.record_writer.RecordWriter(str(path))
    for record in whole:
        writer.write(record)
    writer.close()
    return other


def test_a_damaged_frame_costs_the_clips_that_show_it(tfrecords, order, tmp_path):
    at = next(i for i, episode in enumerate(order) if episode != SHORT)
    item = f"{at // 2:05}/{at % 2}"

    def spoil(features):
        images = features["steps/observation/exterior_image_1_left"].bytes_list.value
        images[4] = images[4][: len(images[4]) // 2]
        images[8] = b"no image"

    changed = rewritten(tfrecords, tmp_path / "bad", item, spoil)
    _, source = everything(changed)
    damage = {0: "damaged mjpeg", 4: "damaged mjpeg", 8: "expected a JPEG or PNG"}
    with source.open(item) as episode:
        for start in range(LENGTHS[order[at]] - SPAN + 1):
            if start in damage:
                with pytest.raises(frames.UnreadableVideo, match=damage[start]) as caught:
                    source.read(item, episode, start, VIEW)
                assert caught.value.start == start and caught.value.path == item
            else:
                shown = numbers(source.read(item, episode, start, VIEW)["video"])
                assert shown[0] == first(order[at]) + start


@pytest.mark.parametrize(
    "key, values, reason",
    [
        ("observation/cartesian_position", lambda v: v[:-1], "expected 6 numbers per frame"),
        ("observation/cartesian_position", lambda v: v[:-6], r"\d+ poses and \d+ gripper"),
        ("observation/gripper_position", lambda v: v[:-1], r"\d+ poses and \d+ gripper"),
        ("observation/gripper_position", lambda v: [], r"\d+ poses and 0 gripper"),
        ("observation/exterior_image_1_left", lambda v: v[1:], r"don't match \d+ frames"),
        ("observation/exterior_image_1_left", lambda v: [], "don't match 0 frames"),
    ],
)
def test_labels_that_do_not_fit_the_frames_are_refused(tfrecords, tmp_path, key, values, reason):
    def change(features):
        feature = features[f"steps/{key}"]
        one = getattr(feature, feature.WhichOneof("kind")).value
        kept = values(list(one))
        del one[:]
        one.extend(kept)

    _, source = everything(rewritten(tfrecords, tmp_path / "bad", "00000/1", change))
    with pytest.raises(frames.UnreadableVideo, match=reason):
        source.clip("00000/1", np.random.default_rng(0))


@pytest.mark.parametrize("form", ["array_record", "tfrecords"])
def test_a_set_with_damage_gives_full_batches_and_reports_each_episode_once(
    form, tmp_path, request
):
    folder = request.getfixturevalue(form)
    suffix = "array_record" if form == "array_record" else "tfrecord"
    changed = damaged(folder, tmp_path / "bad", suffix, lambda data: data[: len(data) // 2])
    log = tmp_path / "skipped.jsonl"
    for split in "train", "test":
        for batch in take(pipeline.clips(settings(changed), split, skipped=str(log)), 8):
            assert batch["video"].shape == (4, F, SIZE, SIZE, 3)
    paths = [json.loads(line)["path"] for line in log.read_text().splitlines()]
    assert len(paths) == len(set(paths)) and "00001/1" in paths and len(paths) <= 3


def spoil_raw(fault, folder, path, gripper):
    """Gives a raw episode a fault; returns a part of the reason to expect."""
    metadata = folder / f"metadata_{folder.name}.json"
    video = folder / "recordings/MP4/17.mp4"
    trajectory = folder / "trajectory.h5"
    match fault:
        case "no metadata":
            metadata.unlink()
            return "no metadata"
        case "metadata without the camera":
            metadata.write_text("{}")
            return "Fri_0.json: ext1_mp4_path: expected a string"
        case "null in the metadata":
            metadata.write_text('{"ext1_mp4_path": null}')
            return "Fri_0.json: ext1_mp4_path: expected a string, got None"
        case "half of the metadata":
            metadata.write_text(metadata.read_text()[:-10])
            return "Fri_0.json: expected an episode's metadata as JSON, got: Unterminated"
        case "half a trajectory":
            trajectory.write_bytes(trajectory.read_bytes()[:2000])
            return "OSError"
        case "no poses":
            with h5py.File(trajectory, "a") as file:
                del file["observation/robot_state/cartesian_position"]
            return "cartesian_position: expected numbers with 2 axes, got None"
        case "poses of text":
            with h5py.File(trajectory, "a") as file:
                del file["observation/robot_state/cartesian_position"]
                file["observation/robot_state/cartesian_position"] = np.full((30, 6), b"near")
            return "cartesian_position: expected numbers with 2 axes"
        case "a lost frame":
            times = [i / 60 for i in range(len(path)) if i != 9]
            test_data.write(video, times, (128, 72))
            return "aren't evenly spaced"
        case "too few poses":
            write_raw(folder, path[:-3], gripper[:-3])
            return f"{len(path) - 3} poses and .* don't match {len(path)} frames"
        case "too few gripper positions":
            write_raw(folder, path, gripper[:-1])
            return f"and {len(path) - 1} gripper positions"
        case "poses that are no numbers":
            path[:, 2] = np.inf
            write_raw(folder, path, gripper)
            return "expected finite numbers"
        case "no video":
            video.unlink()
            return "No such file"
        case "half a video":
            video.write_bytes(video.read_bytes()[:1500])
            return "nvalid data"
        case "uneven frames":
            times = [i / 60 + (i > 10) / 20 for i in range(len(path))]
            test_data.write(video, times, (128, 72))
            return "aren't evenly spaced"
        case "one frame":
            test_data.write(video, [0], (128, 72))
            return "aren't evenly spaced"


@pytest.mark.parametrize(
    "fault",
    ["no metadata", "metadata without the camera", "null in the metadata", "half of the metadata"]
    + ["half a trajectory", "no poses", "too few poses", "too few gripper positions"]
    + [
        "poses that are no numbers",
        "poses of text",
        "a lost frame",
        "no video",
        "half a video",
        "uneven frames",
        "one frame",
    ],
)
def test_every_kind_of_broken_raw_episode_is_refused_with_its_reason(raw, fault, tmp_path):
    root = shutil.copytree(raw, tmp_path / "raw")
    folder = next(root.glob("*/*/*/Fri_0"))
    reason = spoil_raw(fault, folder, *recorded(0))
    items, source = everything(root)
    with pytest.raises(frames.UnreadableVideo, match=reason) as caught:
        source.clip(str(folder), np.random.default_rng(0))
    assert caught.value.path == str(folder)
    assert all(source.clip(item, np.random.default_rng(0)) for item in items if "Fri_1" in item)


def test_a_folder_that_is_no_droid_is_refused_and_says_what_was_looked_for(
    tfrecords, raw, tmp_path
):
    (tmp_path / "empty").mkdir()
    for where in tmp_path / "empty", tmp_path / "nowhere":
        with pytest.raises(ValueError, match="dataset_info.json.*trajectory.h5"):
            catalog.source(settings(where), "droid")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tfrecords / "dataset_info.json", other)
    with pytest.raises(ValueError, match="TFDS folder with features.json"):
        catalog.source(settings(other), "droid")
    text = (tfrecords / "features.json").read_text()
    (other / "features.json").write_text(text)
    with pytest.raises(ValueError, match="expected records in .*tfrecord-00000-of-00004"):
        catalog.source(settings(other), "droid")
    shutil.copytree(tfrecords, other, dirs_exist_ok=True)
    (other / "features.json").write_text(text.replace("gripper_position", "finger"))
    with pytest.raises(ValueError, match="labels: expected one of .*steps/observation/finger"):
        catalog.source(settings(other), "droid")
    with pytest.raises(ValueError, match="data.fps: .* has 15 frames per second, fewer than 30"):
        catalog.source(settings(tfrecords, fps=30.0), "droid")


def test_an_example_is_parsed_as_tensorflow_datasets_parses_it(tfrecords):
    from tensorflow_datasets.proto import tf_example_generated_pb2

    (path,) = tfrecords.glob("*-00002-of-*")
    data = tfrecord.Records([path], [2])[1]
    wanted = tf_example_generated_pb2.Example.FromString(data).features.feature
    got = tfrecord.example(data)
    assert got.keys() == set(wanted)
    for name, feature in wanted.items():
        assert list(got[name]) == list(getattr(feature, feature.WhichOneof("kind")).value)
    with pytest.raises(ValueError, match="not a tf.train.Example"):
        tfrecord.example(data[:-1])


CODE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets", "jax"):
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, Hidden())
import numpy as np
from lawm_jax.data import droid, frames, tfds
import types

data = types.SimpleNamespace(frames=4, fps=4.0, holdout=0.3)
kind, split, *folders = sys.argv[1:]
for where in folders:
    given = "x", where, split, data, frames.View(48, 48)
    source = droid.source(*given) if kind == "droid" else tfds.source(*given, rate="25")
    for item in source.items:
        try:
            print(source.clip(item, np.random.default_rng(0))["video"].shape)
        except frames.UnreadableVideo as error:
            print(error)
"""


def read_without_tensorflow(kind, split, *folders):
    """Reads a clip of each episode where TensorFlow can't be imported: printed lines."""
    command = [sys.executable, "-c", CODE, kind, split, *folders]
    run = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return run.stdout.splitlines()


def test_droid_is_read_without_tensorflow(array_record, tfrecords, raw):
    lines = read_without_tensorflow("droid", "train", array_record, tfrecords, raw)
    assert lines.count("(4, 48, 48, 3)") >= 12
    assert all("9 steps" in line for line in lines if not line.startswith("("))


@pytest.mark.parametrize("form", ["tfrecords", "raw"])
def test_a_label_that_is_no_number_loses_the_clips_that_meet_it(form, request, tmp_path):
    where = request.getfixturevalue(form)
    if form == "raw":
        root = shutil.copytree(where, tmp_path / "raw")
        folder = next(root.glob("*/*/*/Fri_0"))
        path, gripper = recorded(0)
        gripper[20] = np.nan
        write_raw(folder, path, gripper)
        item = str(folder)
    else:
        item = "00000/1"

        def change(features):
            features["steps/observation/gripper_position"].float_list.value[20] = np.nan

        root = rewritten(where, tmp_path / "bad", item, change)
    _, source = everything(root)
    met = set()
    with source.open(item) as episode:
        starts = range(episode.length - (F - 1) * source.stride)
        for start in starts:
            try:
                source.read(item, episode, start, VIEW)
            except frames.UnreadableVideo as error:
                assert error.start == start and "expected finite numbers" in error.reason
                met.add(start)
    assert met == {20 - i * source.stride for i in range(F)} & set(starts)

"""TFDS data sets of two kinds, each frame with its number: videos with splits, RLDS without.

tensorflow_datasets writes them; a Video feature, which it can't make without TensorFlow, is written
as the same sequence of images and named in features.json afterwards.
"""

import io
import json
import logging
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets
from drawing import compressed
from test_data import SIZE, F, config, draw, numbers, same, take
from test_droid import as_tfrecords, prepare, read_without_tensorflow

from lawm_jax.data import catalog, frames, pipeline, tfds

VIEW = frames.View(SIZE, SIZE)
STEPS = 20  # of every RLDS episode
KINDS = ["array_record", "tfrecord"]


def image(number, kind):
    return io.BytesIO(compressed(draw(number, 64, 48), kind))


class Kinetics(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Writes videos of 25 fps with a label; those of "test" begin at number 300."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    LENGTHS = {"train": [25, 40, 23, 30, 10], "test": [30, 26]}  # 4 frames at 4 fps need 22

    def _info(self):
        f = tensorflow_datasets.features
        features = {
            "video": f.Sequence(f.Image(shape=(None, None, 3), encoding_format="jpeg")),
            "label": f.ClassLabel(names=["run", "walk"]),
            "title": f.Text(),
            "words": f.Sequence(f.Text()),
            "flow": f.Tensor(shape=(None, 2), dtype=np.float32, encoding="bytes"),
        }
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

    def _split_generators(self, manager):
        return {split: self._generate_examples(split) for split in self.LENGTHS}

    def _generate_examples(self, split):
        for i, count in enumerate(self.LENGTHS[split]):
            first = 300 * (split == "test") + 50 * i
            video = [image(first + j, "JPEG") for j in range(count)]
            flow = np.zeros((count, 2), np.float32)
            rest = {"label": "run", "title": "a", "words": ["b"], "flow": flow}
            yield str(i), {"video": video} | rest


class Robots(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Writes episodes of 10 Hz: as RLDS does, and in arrays as RoboNet does, one action fewer."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        f = tensorflow_datasets.features
        step = {
            "observation": f.FeaturesDict(
                {
                    "image": f.Image(shape=(48, 64, 3), encoding_format="png"),
                    "state": f.Tensor(shape=(3,), dtype=np.float64),
                    "holds": f.Scalar(dtype=np.bool_),
                }
            ),
            "action": f.FeaturesDict(
                {
                    "world_vector": f.Tensor(shape=(3,), dtype=np.float32),
                    "gripper": f.Scalar(dtype=np.int32),
                }
            ),
            "is_first": f.Scalar(dtype=np.bool_),
        }
        features = {
            "steps": f.Dataset(step),
            "video": f.Sequence(f.Image(shape=(48, 64, 3), encoding_format="png"), length=STEPS),
            "actions": f.Tensor(shape=(STEPS - 1, 5), dtype=np.float32),
            "matrices": f.Tensor(shape=(STEPS, 2, 2), dtype=np.float32),
        }
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for episode in range(7):
            labels = robot(episode)
            steps = [
                {
                    "observation": {
                        "image": image(60 * episode + i, "PNG"),
                        "state": labels["state"][i],
                        "holds": labels["holds"][i],
                    },
                    "action": {
                        "world_vector": labels["vector"][i],
                        "gripper": labels["gripper"][i],
                    },
                    "is_first": i == 0,
                }
                for i in range(STEPS)
            ]
            yield (
                str(episode),
                {
                    "steps": steps,
                    "video": [image(60 * episode + i, "PNG") for i in range(STEPS)],
                    "actions": labels["actions"],
                    "matrices": labels["matrices"],
                },
            )


def robot(episode):
    """Returns the labels of an episode, as they are written."""
    random = np.random.default_rng(episode)
    return {
        "state": np.float64(np.float32(random.normal(size=(STEPS, 3)))),
        "holds": random.random(STEPS) < 0.5,
        "vector": np.float32(random.normal(size=(STEPS, 3))),
        "gripper": random.integers(-3, 3, STEPS),
        "actions": np.float32(random.normal(size=(STEPS - 1, 5))),
        "matrices": np.float32(random.normal(size=(STEPS, 2, 2))),
    }


def as_video(folder, length):
    """Says in features.json that "video" is a Video, as TFDS does with TensorFlow."""
    path = folder / "features.json"
    features = json.loads(path.read_text())
    inner = features["featuresDict"]["features"]
    assert "sequence" in inner["video"]
    shape = {"dimensions": [str(length), "-1", "-1", "3"]}
    inner["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": shape, "dtype": "uint8", "encodingFormat": "jpeg"},
    }
    path.write_text(json.dumps(features))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Maps (name, format) to folders."""
    root = tmp_path_factory.mktemp("tfds")
    found = {}
    for name, builder, length in ("kinetics", Kinetics, -1), ("robots", Robots, STEPS):
        one = prepare(builder, root / name, 2)
        as_video(one, length)
        found[name, "array_record"] = one
        found[name, "tfrecord"] = as_tfrecords(one, root / f"{name}_tfrecord")
    return found


def settings(where, options, **data):
    spec = f"tfds:{where}?{options}"
    return config(sources={"set": spec}, mixture={"set": 1.0}, holdout=0.3, **data)


def open_set(where, options, split="train", view=VIEW, **data):
    found = settings(where, options, **data)
    given = dict(pair.split("=") for pair in options.split("&"))
    return tfds.source("set", str(where), split, found.data, view, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_with_splits_is_read_by_its_splits(folders, kind):
    where = folders["kinetics", kind]
    for split, first in ("train", 0), ("test", 300):
        source = open_set(where, "rate=25", split)
        lengths = Kinetics.LENGTHS[split]
        assert len(source.items) == len(lengths)
        seen = set()
        for item in source.items:
            try:
                clips = [source.clip(item, np.random.default_rng(seed)) for seed in range(5)]
            except frames.UnreadableVideo as error:
                assert "10 steps, but a clip needs 19" in str(error)  # every 6th of 25 a second
                continue
            for clip in clips + list(source.fixed(item)):
                assert clip.keys() == {"video", "episode", "start"}
                shown = numbers(clip["video"])
                assert np.diff(shown).tolist() == [6] * (F - 1)
                video, start = divmod(shown[0] - first, 50)
                assert start == clip["start"] and start + 3 * 6 < lengths[video]
                seen.add(video)
        assert seen == {i for i, count in enumerate(lengths) if count >= 19}


RLDS = "video=steps/observation/image&actions=steps/action/world_vector,steps/action/gripper"
RLDS += "&state=steps/observation/state,steps/observation/holds"


def by_numbers(clip):
    """Finds episode and steps of a clip by what it shows."""
    shown = np.array(numbers(clip["video"]))
    return shown[0] // 60, shown % 60


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fps, stride", [(10.0, 1), (5.0, 2), (4.0, 3)])
def test_actions_between_two_frames_are_all_of_the_recording(folders, kind, fps, stride):
    source = open_set(folders["robots", kind], f"rate=10&{RLDS}", fps=fps)
    for item in source.items:
        for clip in [source.clip(item, np.random.default_rng(0)), *source.fixed(item)]:
            episode, steps = by_numbers(clip)
            assert np.diff(steps).tolist() == [stride] * (F - 1) and clip["start"] == steps[0]
            labels = robot(episode)
            actions = np.concatenate([labels["vector"], labels["gripper"][:, None]], 1)
            wanted = [actions[step : step + stride].reshape(-1) for step in steps[:-1]]
            np.testing.assert_array_equal(clip["actions"], np.float32(wanted))
            state = np.concatenate([labels["state"], labels["holds"][:, None]], 1)
            np.testing.assert_array_equal(clip["state"], np.float32(state[steps]))
            assert clip["actions"].dtype == clip["state"].dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_with_one_action_fewer_than_frames_are_read_to_the_last_one(folders, kind):
    options = "rate=10&actions=actions&state=matrices"
    source = open_set(folders["robots", kind], options, fps=5.0)
    ends = set()
    for item in source.items:
        for seed in range(30):
            clip = source.clip(item, np.random.default_rng(seed))
            episode, steps = by_numbers(clip)
            labels = robot(episode)
            wanted = [labels["actions"][step : step + 2].reshape(-1) for step in steps[:-1]]
            np.testing.assert_array_equal(clip["actions"], wanted)
            np.testing.assert_array_equal(clip["state"], labels["matrices"][steps].reshape(F, 4))
            ends.add(steps[-1])
    assert STEPS - 1 in ends


def test_a_set_with_one_split_holds_out_by_hash_the_same_in_both_formats(folders):
    options = f"rate=10&{RLDS}"
    sides = {}
    for kind in KINDS:
        for split in "train", "test":
            sides[kind, split] = open_set(folders["robots", kind], options, split).items
    assert sides["array_record", "test"] == sides["tfrecord", "test"]
    train, test = (set(sides["tfrecord", split]) for split in ("train", "test"))
    assert train and test and not train & test and len(train | test) == 7


def test_one_part_of_a_set_may_be_chosen_and_is_then_split_by_hash(folders):
    where = folders["kinetics", "tfrecord"]
    seen = {"train": [], "test": []}
    for split in seen:
        source = open_set(where, "rate=25&part=test", split)
        clips = [source.clip(item, np.random.default_rng(0)) for item in source.items]
        seen[split] = [numbers(clip["video"])[0] // 50 for clip in clips]
    assert sorted(seen["train"] + seen["test"]) == [6, 7]  # numbers from 300 on, once
    with pytest.raises(ValueError, match="part: expected one of .*train.*, got 'dev'"):
        open_set(where, "rate=25&part=dev")


def test_both_formats_give_the_same_batches_resume_and_use_workers(folders):
    options = f"rate=10&{RLDS}"
    streams = [pipeline.clips(settings(folders["robots", kind], options)) for kind in KINDS]
    batches = take(streams[0], 2)
    same(take(streams[1], 2), batches)
    assert batches[0]["actions"].shape == (4, F - 1, 3 * 4)
    assert batches[0]["state"].shape == (4, F, 4)
    state = streams[0].get_state()
    later = take(streams[0], 2)
    fresh = pipeline.clips(settings(folders["robots", "tfrecord"], options))
    fresh.set_state(state)
    same(take(fresh, 2), later)
    many = pipeline.clips(settings(folders["robots", "array_record"], options, workers=2))
    same(take(many, 2), batches)
    many.close()


def test_labels_alone_need_no_frames_and_a_source_is_small_when_pickled(folders):
    where = folders["robots", "array_record"]
    source = open_set(where, f"rate=10&{RLDS}")
    alone = open_set(where, f"rate=10&{RLDS}", view=None)
    for item in source.items:
        clips = [one.clip(item, np.random.default_rng(3)) for one in (source, alone)]
        same([{key: value for key, value in clips[0].items() if key != "video"}], clips[1:])
    copy = pickle.loads(pickle.dumps(source))
    same([copy.clip(item, np.random.default_rng(3))], clips[:1])
    assert len(pickle.dumps(source)) < 4000


@pytest.mark.parametrize(
    "options, message",
    [
        ("video=video", "rate: expected frames per second, got ''"),
        ("rate=fast", "rate: expected frames per second, got 'fast'"),
        ("rate=-5", "data.fps: .* has -5 frames per second"),
        ("rate=3", "data.fps: .* has 3 frames per second, fewer than 4"),
        ("rate=25&video=clip", "video: expected one of video; got 'clip'"),
        ("rate=25&video=words", "video: expected one of video; got 'words'"),
        ("rate=25&actions=label", "actions: expected one of nothing; got 'label'"),
        ("rate=25&state=flow", "state: expected one of nothing; got 'flow'"),
        ("rate=25&colour=red", "unexpected keyword argument 'colour'"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_options_are_refused_by_name(folders, kind, options, message):
    with pytest.raises(ValueError, match=message):
        catalog.source(settings(folders["kinetics", kind], options), "set")


def test_names_of_features_that_fit_are_listed(folders):
    where = folders["robots", "tfrecord"]
    with pytest.raises(ValueError, match="video: .*steps/observation/image.*; got 'image'"):
        open_set(where, "rate=10&video=image")
    with pytest.raises(ValueError, match="actions: .*steps/action/gripper.*; got 'action'"):
        open_set(where, "rate=10&actions=action")
    found = open_set(where, "rate=10").open.examples
    assert sorted(found.images) == ["steps/observation/image", "video"]
    assert found.widths == {
        "steps/observation/state": 3,
        "steps/observation/holds": 1,
        "steps/action/world_vector": 3,
        "steps/action/gripper": 1,
        "steps/is_first": 1,
        "actions": 5,
        "matrices": 4,
    }


def test_a_folder_that_is_no_tfds_set_is_refused(folders, tmp_path):
    other = shutil.copytree(folders["kinetics", "tfrecord"], tmp_path / "other")
    info = json.loads((other / "dataset_info.json").read_text())

    def fails(change, message):
        (other / "dataset_info.json").write_text(json.dumps(change(json.loads(json.dumps(info)))))
        with pytest.raises(ValueError, match=message):
            open_set(other, "rate=25")

    def without_shards(changed):
        for split in changed["splits"]:
            del split["shardLengths"]
        return changed

    fails(lambda info: info | {"fileFormat": "riegeli"}, "ArrayRecord or TFRecord.*got riegeli")
    fails(lambda info: info | {"splits": []}, "part: expected one of")
    fails(lambda info: info | {"name": "other"}, "expected records in .*other-train.tfrecord")
    fails(without_shards, "expected records")
    (other / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="TFDS folder with dataset_info.json"):
        open_set(other, "rate=25")
    with pytest.raises(ValueError, match="TFDS folder with dataset_info.json"):
        open_set(tmp_path / "nowhere", "rate=25")


def test_older_sets_without_a_format_and_with_another_template_are_read(folders, tmp_path):
    other = shutil.copytree(folders["kinetics", "tfrecord"], tmp_path / "other")
    info = json.loads((other / "dataset_info.json").read_text())
    del info["fileFormat"]
    for split in info["splits"]:
        split["filepathTemplate"] = "{SPLIT}_{SHARD_INDEX}_{NUM_SHARDS}.{FILEFORMAT}"
    (other / "dataset_info.json").write_text(json.dumps(info))
    for path in other.glob("*.tfrecord-*"):
        _, split, shard, _, count = path.name.replace(".tfrecord", "").split("-")
        path.rename(other / f"{split}_{shard}_{count}.tfrecord")
    wanted, got = (open_set(where, "rate=25") for where in (folders["kinetics", "tfrecord"], other))
    assert got.items == wanted.items
    same(*([next(one.fixed("00001/0"))] for one in (got, wanted)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_shard_costs_its_examples_and_is_reported(folders, kind, tmp_path):
    other = shutil.copytree(folders["robots", kind], tmp_path / "other")
    path = next(path for path in other.iterdir() if "-00001-of-00002" in path.name)
    path.write_bytes(path.read_bytes()[:3000])
    log = tmp_path / "skipped.jsonl"
    options = f"rate=10&{RLDS}"
    for batch in take(pipeline.clips(settings(other, options), skipped=str(log)), 6):
        assert batch["video"].shape == (4, F, SIZE, SIZE, 3)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines and {line["path"][:6] for line in lines} == {"00001/"}
    source = open_set(other, options)
    with pytest.raises(frames.UnreadableVideo, match="tfrecord-00001.*is truncated|iegeli|64KB"):
        source.clip(lines[0]["path"], np.random.default_rng(0))


def test_a_missing_shard_is_left_out_and_said_once(folders, tmp_path, caplog):
    other = shutil.copytree(folders["kinetics", "array_record"], tmp_path / "other")
    next(
        path for path in other.iterdir() if "train" in path.name and "00000-of" in path.name
    ).unlink()
    with caplog.at_level(logging.WARNING):
        source = open_set(other, "rate=25")
    assert caplog.text.count("1 of 2 shards are missing") == 1
    assert source.items and all(item.startswith("00001/") for item in source.items)


def test_tfds_sets_are_read_without_tensorflow(folders):
    where = [str(folders["kinetics", kind]) for kind in KINDS]
    assert read_without_tensorflow("tfds", "test", *where) == ["(4, 48, 48, 3)"] * 4

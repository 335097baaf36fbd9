"""Labelled data that others wrote: BridgeData in RLDS, a Unitree G1 in LeRobot v2.1 with AV1.

The files lie in ../shared/real beside the repository, where there is such a folder. Episodes and
shards that their metadata name and that it lacks are missing on purpose.
"""

import io
import json
import pathlib

import av
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from test_data import config

from lawm_jax.data import catalog, frames
from lawm_jax.ingest import plans, shards

REAL = pathlib.Path(__file__).resolve().parents[2] / "shared/real"
BRIDGE, ROBOT = REAL / "bridge_rlds/1.0.0", REAL / "lerobot_v21"
RLDS = "rate=5&video=steps/observation/image_0&actions=steps/action&state=steps/observation/state"
SIZE = 128

bridge = pytest.mark.skipif(not BRIDGE.exists(), reason=f"no {BRIDGE}")
robot = pytest.mark.skipif(not ROBOT.exists(), reason=f"no {ROBOT}")


def source(spec, split="train", **data):
    data = dict(frames=4, size=SIZE, resize=SIZE, holdout=0.2) | data
    return catalog.source(config(sources={"x": spec}, mixture={"x": 1.0}, **data), "x", split)


def shown(picture):
    """Scales a picture's centre square by PIL: uint8 [SIZE, SIZE, 3]."""
    picture = PIL.Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = left, top, left + side, top + side
    return np.asarray(picture.convert("RGB").resize((SIZE, SIZE), PIL.Image.BILINEAR, box))


def nearest(frame, pictures):
    """Returns which picture a frame is closest to, and how far, in levels."""
    errors = [np.abs(frame.astype(int) - picture).mean() for picture in pictures]
    return int(np.argmin(errors)), min(errors)


def bridge_examples():
    """Parses the records by tensorflow_datasets' own message."""
    from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

    data, at, found = next(BRIDGE.glob("*-train.*")).read_bytes(), 0, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        features = proto.Example.FromString(data[at + 12 : at + 12 + length])
        found.append(features.features.feature)
        at += 16 + length
    return found


@bridge
def test_bridge_has_the_frames_actions_and_states_of_its_records(caplog):
    found = source(f"tfds:{BRIDGE}?{RLDS}", holdout=0.0)
    others = source(f"tfds:{BRIDGE}?{RLDS}", "test", holdout=0.0)
    assert "bridge_dataset-val.tfrecord-00000-of-00001" in caplog.text  # missing, and named
    examples = bridge_examples()
    assert len(examples) == len(found.items) + len(others.items) == 25
    for item in found.items:
        features = examples[int(item.split("/")[1])]
        images = features["steps/observation/image_0"].bytes_list.value
        pictures = [shown(PIL.Image.open(io.BytesIO(image))) for image in images]
        action = np.float32(features["steps/action"].float_list.value).reshape(-1, 7)
        state = np.float32(features["steps/observation/state"].float_list.value).reshape(-1, 7)
        clips = list(found.fixed(item))
        assert len(clips) == len(images) // 4
        for clip in clips:
            steps = np.arange(clip["start"], clip["start"] + 4)
            np.testing.assert_array_equal(clip["actions"], action[steps[:-1]])
            np.testing.assert_array_equal(clip["state"], state[steps])
            for step, frame in zip(steps, clip["video"], strict=True):
                index, error = nearest(frame, pictures)
                same = np.abs(pictures[index].astype(int) - pictures[step]).max() == 0
                assert (index == step or same) and error < 4


@robot
def test_a_robots_rows_have_the_frames_of_their_times_and_what_is_missing_is_named(
    caplog, tmp_path
):
    found = source(f"lerobot:{ROBOT}", fps=10.0, holdout=0.0)
    assert "97 of 100 files of data are missing" in caplog.text
    assert "97 of 100 files of videos are missing" in caplog.text
    assert "episode_000000.parquet" in caplog.text
    for episode in 29, 30, 31:
        table = pq.read_table(ROBOT / f"data/chunk-000/episode_{episode:06}.parquet")
        action, state = (np.array(table[k].to_pylist()) for k in ("action", "observation.state"))
        path = ROBOT / f"videos/chunk-000/observation.images.cam_high/episode_{episode:06}.mp4"
        pictures, scaled, scaler = {}, {}, frames.Scaler(found.view)
        with av.open(str(path)) as film:
            for frame in film.decode(video=0):
                row = round(frame.time * 30)
                pictures[row], scaled[row] = shown(frame.to_image()), scaler.frame(frame)
                if len(pictures) == 80:
                    break
        for start in 0, 7, 61:
            with found.open(episode) as opened:
                clip = found.read(episode, opened, start, found.view)
            rows = start + 3 * np.arange(4)
            np.testing.assert_array_equal(clip["state"], state[rows].astype(np.float32))
            recorded = action[start : start + 9].reshape(3, 3 * 26).astype(np.float32)
            np.testing.assert_array_equal(clip["actions"], recorded)
            for row, frame in zip(rows, clip["video"], strict=True):
                np.testing.assert_array_equal(frame, scaled[row])
                assert np.abs(frame.astype(int) - pictures[row]).mean() < 4


@robot
def test_checking_it_names_each_missing_episode_and_reads_the_rest(tmp_path):
    plan = plans.Plan(f"lerobot:{ROBOT}", 4.0, 64, 64, 16, 4, 90, write=False)
    shards.ingest(plan, str(tmp_path / "out"), workers=1, show=False)
    report = [json.loads(line) for line in (tmp_path / "out/report.jsonl").open()]
    good = {row["path"]: row["frames"] for row in report if row["ok"]}
    assert good == {"29": 28, "30": 35, "31": 34}  # every 8th of 221, 277 and 267 rows
    assert sum("No such file" in (row["reason"] or "") for row in report) == 97

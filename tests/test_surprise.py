"""How surprising manipulated steps are, to models of textures that move by known shifts."""

import json
import types

import numpy as np
import pytest
from conftest import judged, sure

from lawm_jax.evaluate import leakage, surprise, tables

EPISODES = np.repeat([f"episode {i}" for i in range(10)], 3)
SIZE, STEPS = 16, 6
KINDS = "an object teleports", "colors change", "a cut"


def textures(seed=0):
    """Draws 30 clips of 6 frames in which a texture moves to the right by 0 to 5 pixels a step."""
    random = np.random.default_rng(seed)
    first = random.integers(0, 256, (30, SIZE, SIZE, 3), np.uint8)
    shifts = random.integers(0, 6, (30, STEPS - 1))
    clips = [
        [np.roll(image, place, 1) for place in np.concatenate([[0], np.cumsum(shift)])]
        for image, shift in zip(first, shifts, strict=True)
    ]
    return np.array(clips), shifts


def encode(video):
    return video.reshape(*video.shape[:2], 1, -1).astype(np.float32)


def moved(s, z):
    """Moves states [n, T, 1, H W 3] to the right by z [n, T, 1] pixels."""
    images = s.reshape(*s.shape[:2], SIZE, SIZE, 3)
    rolled = [
        [np.roll(x, int(k), 1) for x, k in zip(*pair, strict=True)]
        for pair in zip(images, z[..., 0], strict=True)
    ]
    return np.array(rolled).reshape(s.shape)


def best_shift(s):
    """Infers the shifts of states: [n, T, 1, H W 3] -> [n, T-1, 1]."""
    tries = [np.full((*s[:, 1:].shape[:2], 1), k) for k in range(6)]
    error = [np.abs(moved(s[:, :-1], z) - s[:, 1:]).mean((2, 3)) for z in tries]
    return np.argmin(error, 0)[..., None]


PERFECT = types.SimpleNamespace(infer=best_shift, predict=moved)
COPYING = types.SimpleNamespace(infer=best_shift, predict=lambda s, z: s)


def source(models, nats=None, video=None):
    video = textures()[0] if video is None else video
    cut, _ = leakage.stitch(video, EPISODES)
    return types.SimpleNamespace(
        name="x",
        pairs=True,
        per_step=1,
        clips=types.SimpleNamespace(video=video, s=encode(video), episodes=EPISODES),
        encode=encode,
        cut=(cut, encode(cut)),
        inferring=models,
        nats=nats or (lambda name, s: None),
    )


def test_a_perfect_model_is_always_surprised_where_copying_is_not_and_copying_equals_copying():
    rows = surprise.run(source({"noisy": PERFECT, "none": COPYING}))
    assert [row["metric"] for row in rows] == [kind for kind in KINDS for _ in range(3)]
    for copy, perfect, same in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert (copy["name"], perfect["name"], same["name"]) == ("copy last frame", "noisy", "none")
        assert perfect["error"] == sure(1, 10)
        # A step to the right changes all pixels anyhow, but of a shift by 0, a sixth of the steps.
        assert copy["error"]["high"] < 0.9
        assert perfect["paired"]["mean"] == pytest.approx(1 - copy["error"]["mean"])
        assert perfect["paired"]["low"] == pytest.approx(1 - copy["error"]["high"])
        assert same["error"] == copy["error"] and same["paired"] == sure(0, 10)
        assert copy["paired"] is None and copy["nats"] is None
    answer, text = judged(surprise, "surprise", rows)
    assert answer == "holds" and "a cut 1.00 [1.00, 1.00]" in text
    assert judged(surprise, "surprise", rows, "none")[0] == "fails"
    json.dumps(rows, allow_nan=False)


def test_nats_are_those_of_the_manipulated_step():
    def nats(name, s):
        """As much information as the colors of the right border of the last step differ."""
        images = s[:, 1:].reshape(len(s), -1, SIZE * SIZE, 3)
        found = np.zeros((len(s), s.shape[1] - 1, 2))
        found[:, -1] = images[:, -1].mean(1)[:, :2]
        return found

    video, _ = textures()
    video[..., 2] //= 4  # little blue, which becomes green and so counts
    rows = surprise.run(source({"noisy": PERFECT}, nats, video))
    found = {row["metric"]: row["nats"] for row in rows if row["name"] == "noisy"}
    assert found["colors change"]["high"] < 0.1  # less of red and green
    assert found["an object teleports"]["mean"] == 0.5  # as before: no pixel is gone
    text = tables.text("x", surprise.tables(rows))
    assert text.count("AUC of nats ↑") == 3 and "x, surprise, a cut" in text


def test_the_block_that_moves_changes_places_with_another_one_from_the_frame_on():
    video = np.full((20, 4, 18, 17, 3), 7, np.uint8)  # blocks of 4 x 4; two rows, one column left
    for i, clip in enumerate(video):
        clip[:, 8:12, 4:8] = 50 + i + 10 * np.arange(4)[:, None, None, None]
    changed, places = surprise.teleport(video, 2), set()
    np.testing.assert_array_equal(changed[:, :2], video[:, :2])
    for i, clip in enumerate(changed):
        assert (clip[2:, 8:12, 4:8] == 7).all()
        there = (clip[2] == 70 + i).all(-1)
        rows, columns = np.nonzero(there)
        assert there.sum() == 16 and np.ptp(rows) == np.ptp(columns) == 3
        assert (clip[3][there] == 80 + i).all()
        places.add((rows[0], columns[0]))
    assert len(places) > 5 and (8, 4) not in places


def test_a_source_of_states_is_skipped_and_that_is_said(capsys):
    given = source({"noisy": PERFECT})
    given.clips.video = None
    assert surprise.run(given) is None
    assert "x: skipping surprise, which requires video" in capsys.readouterr().out

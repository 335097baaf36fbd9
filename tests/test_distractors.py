"""What distractors cost latents that see only what acts, and latents that see all that moves."""

import json
import types

import numpy as np
import pytest
from conftest import judged, sure

from lawm_jax.evaluate import cycle, distractors, leakage, metrics, tables

EPISODES = np.repeat([f"episode {i}" for i in range(40)], 3)
SIZE, BANDS, STEPS = 32, 4, 8
BAND = SIZE // BANDS


def bands(seed=0):
    """Draws 120 clips of 8 frames in which one of 4 bands gets brighter and darker.

    Returns:
      video, the bands [n], and by how many levels they change, [n, 7, 1].
    """
    random = np.random.default_rng(seed)
    place = np.arange(120) // 3 % BANDS
    level = 20 * random.integers(1, 12, (120, STEPS))
    video = np.full((120, STEPS, SIZE, SIZE, 3), 100, np.uint8)
    for clip, i, levels in zip(video, place, level, strict=True):
        clip[:, i * BAND : (i + 1) * BAND] = levels[:, None, None, None]
    return video, place, np.diff(level)[..., None].astype(np.float32)


def change(video, place):
    """Measures how the band of each clip changes, [n, 7, 1]."""
    rows = [x[:, i * BAND + BAND // 2, SIZE // 2, :1] for x, i in zip(video, place, strict=True)]
    return np.diff(np.float32(rows), axis=1)


def mean_change(video):
    return np.diff(np.float32(video).mean((2, 3)), axis=1)[..., :1]


def test_latents_of_what_acts_lose_nothing_to_a_moving_background_and_mean_motion_loses_all():
    video, place, u = bands()
    shown, share = distractors.background(video, EPISODES)
    assert share == pytest.approx(0.75 - 1.5 / SIZE, abs=1e-6)  # a margin of 1 pixel, 6 of 8 sides
    np.testing.assert_array_equal(change(shown, place), change(video, place))
    own = distractors.probed(change(video, place), change(shown, place), u, EPISODES)
    assert own["clean"]["mean"] > 0.999 and own["r2"] == own["clean"]
    assert own["lost"] == sure(0, 40)
    mean = distractors.probed(mean_change(video), mean_change(shown), u, EPISODES)
    assert mean["clean"]["mean"] > 0.999 and mean["lost"]["low"] > 0.5
    # Changes of the other clip add to the own; its band may be hidden, or its border by the margin.
    other = leakage.partners(EPISODES, 1)[0]
    visible = np.array([0, 1 - 1 / BAND, 1, 1])[np.abs(place - place[other])]
    added = visible[:, None] * u[other, :, 0]
    spread = np.square(u[..., 0] - u.mean()).sum(1)
    expected = metrics.ratio(np.square(added).sum(1), spread, EPISODES)
    assert mean["lost"] == pytest.approx(expected, rel=0.03)
    json.dumps([own, mean], allow_nan=False)


def test_frames_are_shifted_by_few_pixels_each_on_its_own():
    video = np.random.default_rng(0).integers(0, 256, (3, 20, 64, 48, 3), np.uint8)
    shown, shifts = distractors.shake(video), set()
    assert shown.shape == video.shape and shown.dtype == np.uint8
    for clip, shaken in zip(video, shown, strict=True):
        for frame, moved in zip(clip, shaken, strict=True):
            inside = moved[4:-4, 4:-4]
            found = [
                (y, x)
                for y in range(-2, 3)
                for x in range(-2, 3)
                if (frame[4 + y : 60 + y, 4 + x : 44 + x] == inside).all()
            ]
            assert len(found) == 1
            shifts |= set(found)
    assert len(shifts) > 15  # of 25
    flat = np.full((1, 4, 32, 32, 3), 9, np.uint8)
    np.testing.assert_array_equal(distractors.shake(flat), flat)  # no black borders


def test_colors_drift_by_a_constant_factor_per_frame():
    video = np.full((50, 5, 2, 2, 3), 100, np.uint8)
    shown = distractors.drift(video).astype(float)
    assert (shown == shown[:, :, :1, :1]).all() and (shown[:, 0] == 100).all()
    gain = np.log(shown[:, :, 0, 0] / 100)
    np.testing.assert_allclose(gain[:, 2], gain[:, 4] / 2, atol=0.01)
    last = gain[:, 4]
    assert np.abs(last).max() < 0.31 and last.std() == pytest.approx(0.3 / 3**0.5, rel=0.15)
    assert np.abs(np.corrcoef(last.T) - np.eye(3)).max() < 0.4
    bright = np.full((1, 3, 2, 2, 3), 255, np.uint8)
    assert distractors.drift(bright).min() > 180  # nothing wraps around


def test_latents_are_lost_in_the_cycle_as_far_as_they_are_wrong():
    random = np.random.default_rng(0)
    z = random.choice([-1.0, 1.0], (120, 6, 1))
    s = np.concatenate([np.zeros((120, 1, 1)), np.cumsum(z, 1)], 1)[..., None]
    model = types.SimpleNamespace(
        infer=lambda s: np.diff(s[..., 0], axis=1),
        rollout=lambda s, z: s + np.cumsum(z, 1)[..., None],
    )
    measure = distractors.Cycle(model, s, EPISODES)
    assert measure.lost(z) == sure(0, 40)
    third = leakage.partners(EPISODES, 2)[1]
    assert measure.lost(z[third]) == pytest.approx(sure(1, 40))
    half = np.where(np.arange(120)[:, None, None] % 3 == 0, z[third], z)  # a third of each episode
    assert 0.2 < measure.lost(half)["mean"] < 0.5
    assert cycle.transferred(model, s[third, :1], z) == pytest.approx(z)
    idle = types.SimpleNamespace(
        infer=model.infer, rollout=lambda s, z: s + 0 * np.cumsum(z, 1)[..., None]
    )
    assert distractors.Cycle(idle, s, EPISODES).lost(z) is None


def source(video, u, infer):
    encode = lambda video: np.float32(video).mean((2, 4))[..., None]  # noqa: E731
    s = encode(video)
    model = types.SimpleNamespace(infer=infer, rollout=lambda s, z: s + np.cumsum(z, 1)[..., None])
    clips = types.SimpleNamespace(video=video, s=s, actions=u, episodes=EPISODES)
    return types.SimpleNamespace(
        name="x",
        pairs=True,
        latents=["noisy"],
        models={"noisy": model},
        clips=clips,
        encode=encode,
        z=lambda name: infer(s),
    )


def test_every_distractor_has_a_table_with_the_components_of_the_change_beside_the_latents():
    video, _, u = bands()
    mean = lambda s: np.diff(s.mean((2, 3)), axis=1)[..., None]  # noqa: E731
    rows = distractors.run(source(video, u, mean))
    kinds = "moving background", "camera shake", "color drift"
    assert [row["metric"] for row in rows] == [kind for kind in kinds for _ in range(2)]
    names = {row["name"] for row in rows}
    assert names == {"noisy", "the change's components"}
    for row in rows:
        assert row["clean"]["mean"] > 0.9
        assert (row["cycle"] is None) == (row["name"] != "noisy")
    background, _, shake, _, drift, _ = rows
    # A shift moves the band hardly over the border; rows of equal color do not change.
    assert background["lost"]["low"] > 0.5 > shake["lost"]["high"]
    assert drift["lost"]["high"] < 0.5
    answer, text = judged(distractors, "distractors", rows)
    assert answer == "partly" and "moving background 0." in text
    assert tables.text("x", distractors.tables(rows)).count("with distractors, ") == 3
    without = distractors.run(source(video, None, mean))
    assert [row["name"] for row in without] == ["noisy"] * 3 and "clean" not in without[0]
    json.dumps(rows + without, allow_nan=False)


def test_where_everything_moves_or_there_is_no_video_that_is_said(capsys):
    video, _, u = bands()
    moving = video + np.random.default_rng(0).integers(0, 15, video.shape, np.uint8) * 1
    moving[:, ::2] //= 2
    given = source(moving, u, lambda s: np.diff(s.mean((2, 3)), axis=1)[..., None])
    rows = distractors.run(given)
    assert {row["metric"] for row in rows} == {"camera shake", "color drift"}
    assert "since only 0% of the image is still" in capsys.readouterr().out
    given.clips.video = None
    assert distractors.run(given) is None
    assert "x: skipping distractors, which require video" in capsys.readouterr().out

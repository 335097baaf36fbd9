"""Whether latents tell the scene, on latents of which that is known."""

import functools
import json
import types

import numpy as np
import pytest
from conftest import judged, normal, sure

from lawm_jax.evaluate import probing, scene, tables

EPISODES = np.repeat([f"episode {i}" for i in range(16)], 6)
STATE = "the state's components"


def source(z, u=None, s=None, episodes=EPISODES):
    """Makes a source of 96 clips of 5 states, each near that of its scene, with given latents."""
    index = np.unique(episodes, return_inverse=True)[1]
    if s is None:
        s = 3 * normal(16, 1, 2, 8, seed=1)[index] + normal(96, 5, 2, 8, seed=2)
    clips = types.SimpleNamespace(s=s, actions=u, episodes=episodes)
    made = types.SimpleNamespace(name="x", latents=["noisy"], clips=clips, z=lambda name: z)
    made.peers = [made]
    return made


judge = functools.partial(judged, scene, "no scene")


def test_latents_that_copy_the_state_are_flagged():
    asked = source(None)
    first = scene.first_half(EPISODES)
    copies = probing.principal(probing.take(asked.clips.s, np.flatnonzero(first)), 4)(asked.clips.s)
    noisy, state, actions = scene.run(source(copies, u=normal(96, 4, 3, seed=4)))
    assert (state["name"], actions["name"]) == (STATE, "real actions")
    assert noisy["episode"]["low"] > 0.8 and noisy["episode"] == state["episode"]
    assert noisy["share"] == pytest.approx(sure(1, 16))
    assert actions["episode"]["low"] < noisy["chance"] < actions["episode"]["high"]
    answer, text = judge([noisy, state, actions])
    assert answer == "fails" and "chance 0.06" in text and ", state " in text


def test_latents_that_are_independent_of_the_scene_are_at_chance():
    low, high = [], []
    for seed in range(5):
        noisy, state = scene.run(source(normal(96, 4, 4, seed=10 + seed)))
        assert noisy["chance"] == state["chance"] == 1 / 16 and state["episode"]["low"] > 0.8
        assert judge([noisy, state])[0] in ("holds", "partly")
        assert noisy["share"]["high"] < 0.1
        low.append(noisy["episode"]["low"])
        high.append(noisy["episode"]["high"])
    assert sum(a <= 1 / 16 <= b for a, b in zip(low, high, strict=True)) >= 4
    json.dumps([noisy, state], allow_nan=False)


def test_where_the_state_does_not_tell_the_scene_nothing_is_decided():
    noisy, state = scene.run(source(normal(96, 4, 4, seed=3), s=normal(96, 5, 2, 8, seed=4)))
    assert noisy["share"] is None
    answer, text = judge([noisy, state])
    assert answer == "undecided" and "the state does not identify it either" in text


def test_episodes_have_one_weight_each_and_those_of_a_single_clip_are_left_out():
    episodes = np.repeat(["a", "b", "c", "d"], [2, 9, 4, 1])
    first = scene.first_half(episodes)
    assert list(np.flatnonzero(~first)) == [1, 7, 8, 9, 10, 13, 14, 15]
    x = np.eye(4, dtype=np.float32)[np.unique(episodes, return_inverse=True)[1]]
    x = np.repeat(x[:, None], 2, 1)
    x[1] = x[2]  # the only test clip of "a" looks like "b"
    x[7, 1] = x[0, 0]  # one of eight test steps of "b" looks like "a"
    (row,) = scene.tell_episodes({"z": x}, episodes, "z").values()
    assert row["chance"] == 1 / 3
    assert row["episode"]["mean"] == pytest.approx((0 + 7 / 8 + 1) / 3)
    assert scene.first_half(np.array(list("aabbc"))) is None
    with pytest.raises(ValueError, match="episodes: expected at least 3 with at least 2 clips"):
        scene.tell_episodes({"z": x[:5]}, np.array(list("aabbc")), "z")


def test_the_nearest_centroid_is_measured_in_deviations_within_the_labels():
    label = np.repeat([0, 1, 2], 50)
    far = np.array([0, 1, 2])[label]
    x = np.stack([far, np.zeros(150)], 1)[:, None] + normal(150, 1, 2) * np.float32([0.1, 100])
    test = np.stack([far, np.zeros(150)], 1)[:, None] + normal(150, 1, 2, seed=1) * np.float32(
        [0.1, 100]
    )
    named = scene.nearest_centroid(x, label, test)[:, 0]
    centers = np.stack([x[label == i, 0].mean(0) for i in range(3)])
    within = np.sqrt(np.mean([x[label == i, 0].var(0) for i in range(3)], 0))
    distance = np.square((test - centers) / within).sum(-1)
    np.testing.assert_array_equal(named, distance.argmin(1))
    assert (named == label).mean() > 0.99  # although the second dimension is large


def test_data_sources_are_told_apart_if_their_latents_differ():
    episodes = [EPISODES, np.repeat(["a", "b", "c", "d"], 5)]
    one, two = normal(96, 4, 4), normal(20, 4, 4, seed=1)
    apart = scene.tell_sources([one, two + 10], episodes)
    assert apart == {"source": sure(1, 20), "source_chance": 0.5}
    alike = scene.tell_sources([one, two], episodes)["source"]
    assert alike["low"] < 0.5 < alike["high"] and 0.4 < alike["mean"] < 0.6
    # Sources have the same weight: latents of one value are all said to be of one source.
    same = scene.tell_sources([0 * one, 0 * two], episodes)["source"]
    assert same["mean"] == pytest.approx(0.5)


def test_all_sources_under_evaluation_are_compared():
    one, two = source(normal(96, 4, 4)), source(normal(96, 4, 4, seed=5) + 1)
    one.peers = two.peers = [one, two]
    noisy, state = scene.run(one)
    assert 0.7 < noisy["source"]["mean"] < 1 and noisy["source_chance"] == 0.5
    assert state["source"]["low"] < 0.5 < state["source"]["high"]  # the states are the same
    assert noisy["episode"] and scene.run(two)[0]["source"] == noisy["source"]
    text = tables.text("x", scene.tables([noisy, state]))
    assert text.count("chance") == 2 and "source accuracy" in text


def test_a_source_of_single_clips_is_skipped_and_that_is_said(capsys):
    alone = np.arange(96).astype(str)
    assert scene.run(source(normal(96, 4, 4), s=normal(96, 5, 2, 8), episodes=alone)) is None
    assert "x: skipping the episodes of scene: fewer than 3" in capsys.readouterr().out

"""Cosines of latents of equal actions, for latents of which it is known what they hold."""

import json
import types

import numpy as np
import pytest
from conftest import judged, normal, sure

from lawm_jax.evaluate import invariance, tables

EPISODES = np.repeat([f"episode {i}" for i in range(16)], 4)
INDEX = np.repeat(np.arange(16), 4)


def actions(exact=True):
    """Draws actions [64, 10, 3], of 8 that repeat exactly, or all different."""
    if not exact:
        return normal(64, 10, 3)
    corners = np.float32(np.unpackbits(np.arange(8, dtype=np.uint8)[:, None], axis=1)[:, 5:])
    return corners[np.random.default_rng(1).integers(8, size=(64, 10))]


def measure(z, u):
    (row,) = invariance.measure({"noisy": z}, u, EPISODES)
    json.dumps(row, allow_nan=False)
    return row


def judge(row):
    return judged(invariance, "same action", [row])


def test_a_linear_map_of_the_action_is_the_same_within_and_between_episodes():
    u = actions()
    row = measure(u @ normal(3, 5, seed=2) + 7, u)
    one = sure(1, 16)
    assert row["within"] == pytest.approx(one) and row["between"] == pytest.approx(one)
    assert row["kept"] == pytest.approx(one) and abs(row["any_between"]["mean"]) < 0.05
    assert judge(row)[0] == "holds"


def test_nearly_equal_actions_have_nearly_equal_latents_within_and_between():
    u = actions(exact=False)
    row = measure(u @ normal(3, 5, seed=2), u)
    assert row["within"]["mean"] == pytest.approx(row["between"]["mean"], abs=0.05)
    assert 0.8 < row["between"]["mean"] < 1 and row["kept"]["mean"] == pytest.approx(1, abs=0.05)
    assert judge(row)[0] == "holds"


def test_a_scene_with_a_small_action_is_alike_within_and_by_chance_between():
    u = actions()
    scenes = normal(16, 1, 5, seed=3)[INDEX]
    row = measure(scenes + 0.01 * u @ normal(3, 5, seed=2), u)
    assert row["within"]["low"] > 0.99 and row["any_within"]["low"] > 0.99
    assert row["between"]["mean"] == pytest.approx(row["any_between"]["mean"], abs=0.01)
    assert row["kept"]["high"] < 0.05
    answer, text = judge(row)
    assert answer in ("fails", "partly") and "1.00 within one" in text


def test_the_cosines_are_means_over_the_partners_of_each_step():
    u, z = normal(8, 3, 1), normal(8, 3, 4, seed=5)
    episodes = np.repeat(list("abcd"), 2)
    (row,) = invariance.measure({"noisy": z}, 3 * u + 1, episodes)
    flat, group = z.reshape(-1, 4) - z.reshape(-1, 4).mean(0), np.repeat(episodes, 3)
    moved = (u / u.std()).reshape(-1, 1)
    cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    found = {"within": [], "between": [], "any_within": [], "any_between": []}
    for i in range(24):
        partners = {key: [] for key in found}
        for j in set(range(24)) - {i}:
            where = "within" if group[i] == group[j] else "between"
            partners[f"any_{where}"].append(cos(flat[i], flat[j]))
            if np.sqrt(np.mean(np.square(moved[i] - moved[j]))) <= invariance.CLOSE:
                partners[where].append(cos(flat[i], flat[j]))
        if partners["within"] and partners["between"]:
            for key, values in partners.items():
                found[key].append(np.mean(values))
    assert found["within"]
    for key, values in found.items():
        assert row[key]["mean"] == pytest.approx(np.mean(values), abs=1e-5)


def test_a_source_is_compared_with_its_state_and_its_real_actions():
    u = np.repeat(normal(64, 10, 3), 2, 1)[:, :-1]  # two frames per step
    s = 3 * normal(16, 1, 2, 8, seed=1)[INDEX] + normal(64, 10, 2, 8, seed=2)
    clips = types.SimpleNamespace(s=s, actions=u, episodes=EPISODES)
    asked = types.SimpleNamespace(name="x", latents=["noisy"], clips=clips, pairs=True)
    asked.z = lambda name: (u[:, 1:-1:2] + u[:, 2::2]) @ normal(3, 5, seed=2)
    noisy, state, real = invariance.run(asked)
    assert (state["name"], real["name"]) == ("the state's components", "real actions")
    assert noisy["kept"]["low"] > 0.9 and real["kept"]["low"] > 0.9
    assert state["any_within"]["low"] > 0.5 and state["kept"]["high"] < 0.1
    assert judge(noisy)[0] == "holds"
    text = tables.text("x", invariance.tables([noisy, state, real]))
    assert "same action, another episode" in text and text.count("\n") == 4
    clips.actions = None
    assert invariance.run(asked) is None


def test_actions_that_never_repeat_within_an_episode_leave_nothing_to_compare():
    u = np.linspace(0, 1, 64)[:, None, None] + 100 * np.arange(2)[None, :, None]
    episodes = np.arange(64).astype(str)
    assert invariance.measure({"noisy": normal(64, 2, 4)}, u, episodes) is None


def test_wrong_arguments_are_errors_that_say_what_was_expected():
    u = actions()
    with pytest.raises(ValueError, match=r"noisy: expected \(64, 10\) steps, like u, and 64 ep"):
        invariance.measure({"noisy": normal(64, 9, 2)}, u, EPISODES)
    with pytest.raises(ValueError, match="u: expected finite"):
        invariance.measure({"noisy": normal(64, 10, 2)}, np.where(u > 0, np.nan, u), EPISODES)


def test_latents_that_never_change_are_not_judged_to_be_invariant():
    row = measure(np.ones((64, 10, 4), np.float32), actions())
    assert row["within"]["mean"] == row["between"]["mean"] == 0 and row["kept"] is None
    assert judge(row)[0] == "undecided"

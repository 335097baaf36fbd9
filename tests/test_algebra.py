"""The algebra of latents that are differences of states, and of latents that are not."""

import json

import numpy as np
import pytest
from conftest import judged, sure

from lawm_jax.evaluate import algebra, batched, leakage, tables

EPISODES = np.repeat([f"episode {i}" for i in range(20)], 3)
A, T = 4, 5
STATES = np.random.default_rng(0).normal(size=(60, T, 1, A)).astype(np.float32).cumsum(1)


def differences(s):
    return np.diff(s[:, :, 0], axis=1)


def rollout(s, z):
    """Adds the latents to the last state, one after the other."""
    return s[:, -1:] + np.cumsum(z[:, s.shape[1] - 1 :], axis=1)[:, :, None]


def adding(infer):
    return batched.Batched(infer, lambda s, z: s + z[:, :, None], rollout)


def measure(infer):
    row = algebra.measure(adding(infer), STATES, infer(STATES), EPISODES) | {"name": "noisy"}
    json.dumps(row, allow_nan=False)
    return row, {x["name"]: x for x in row["two_steps"]}


def judge(row):
    return judged(algebra, "algebra", [row])


def norm(x):
    return np.linalg.norm(x, axis=-1).mean()


def test_latents_that_are_differences_of_states_add_up_and_sum_to_what_happens():
    row, ahead = measure(differences)
    zero = sure(0, 20)
    for key in ("additivity", "reversal", "identity"):
        assert row[key] == pytest.approx(zero, abs=1e-6)
    moved = np.abs(STATES[:, 2:] - STATES[:, :-2]).mean()
    assert ahead["copy last frame"]["error"]["mean"] == pytest.approx(moved, rel=1e-5)
    for name in (algebra.EACH, algebra.OVER, algebra.SUM):
        assert ahead[name]["error"] == pytest.approx(zero, abs=1e-6)
    assert ahead[algebra.SUM]["kept"]["mean"] == pytest.approx(1)
    answer, text = judge(row)
    assert answer == "holds" and "kept by sums: 1.00" in text


def test_squared_differences_do_not_add_up_or_turn_around():
    row, ahead = measure(lambda s: np.square(differences(s)))
    step = np.diff(STATES[:, :, 0], axis=1)
    a, b = step[:, :-1], step[:, 1:]
    other = leakage.partners(EPISODES, 1)[0]
    both, total = np.square(a + b), np.square(a) + np.square(b)
    expected = norm(2 * a * b) / norm(both - total[other])
    assert row["additivity"]["mean"] == pytest.approx(expected, rel=1e-4)
    expected = norm(2 * a * a) / norm(a * a + (a * a)[other])
    assert row["reversal"]["mean"] == pytest.approx(expected, rel=1e-4) and expected > 1
    assert row["identity"]["mean"] == 0  # which squares do not break
    error = np.abs(STATES[:, :-2, 0] + total - STATES[:, 2:, 0]).mean()
    assert ahead[algebra.SUM]["error"]["mean"] == pytest.approx(error, rel=1e-4)
    assert ahead[algebra.SUM]["kept"] is None  # one by one, they are worse than copying
    assert judge(row)[0] == "partly"


def test_an_offset_alone_breaks_all_three_laws():
    row, _ = measure(lambda s: differences(s) + 100)
    step = np.diff(STATES[:, :, 0], axis=1)
    assert row["identity"]["mean"] == pytest.approx(200 / norm(step[:, :-1] + 100), rel=1e-4)
    assert row["additivity"]["mean"] == pytest.approx(1, abs=0.05)
    assert row["reversal"]["mean"] == pytest.approx(1, abs=0.05)
    assert judge(row)[0] == "fails"


def test_latents_that_have_nothing_to_do_with_each_other_have_errors_near_1():
    random = np.random.default_rng(1)
    row, _ = measure(lambda s: random.normal(size=(60, s.shape[1] - 1, A)).astype(np.float32))
    for key in ("additivity", "reversal", "identity"):
        assert row[key]["low"] < 1 < row[key]["high"] and row[key]["mean"] > 0.9


def test_the_pairs_of_states_are_those_of_the_laws():
    seen = []

    def infer(s):
        seen.append(s)
        return differences(s)

    z = differences(STATES)
    algebra.measure(adding(infer), STATES, z, EPISODES)
    steps = range(T - 2)
    expected = [(t, t) for t in steps] + [(t + 1, t) for t in steps] + [(t, t + 2) for t in steps]
    assert len(seen) == len(expected)
    for got, pair in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(got, STATES[:, list(pair)])


def test_latents_that_are_zero_have_no_verdict_and_two_states_are_too_few():
    row, ahead = measure(lambda s: 0 * differences(s))
    assert row["additivity"] is row["reversal"] is row["identity"] is None
    assert algebra.judge([row], "noisy") == []
    relative = sure(1, 20)
    assert ahead[algebra.EACH]["relative"] == pytest.approx(relative)
    first, second = algebra.tables([row, row | {"name": "sparse"}])
    text = tables.text("x", [second])
    assert text.count("copy last frame") == 1 and f"sparse, {algebra.SUM}" in text
    with pytest.raises(ValueError, match="s: expected at least 3 states per clip, got 2"):
        algebra.measure(adding(differences), STATES[:, :2], STATES[:, :1, 0], EPISODES)

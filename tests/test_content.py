"""What latents hold, on latents whose content is known."""

import json

import numpy as np
import pytest

from lawm_jax.evaluate import probing, tables

EPISODES = np.repeat([f"episode {i}" for i in range(20)], 10)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_actions_that_are_linear_in_the_latents_are_read_and_noise_is_not():
    z = draw(200, 7, 8) * np.logspace(-2, 2, 8, dtype=np.float32) + 5
    u = (z - 5) / np.logspace(-2, 2, 8, dtype=np.float32) @ draw(8, 3, seed=1)
    u[..., 1] = draw(200, 7, seed=2)
    u[..., 2] = 0.25
    result = probing.probe(z, u, EPISODES, ["x", "noise", "constant"])
    x, noise, constant = result["r2"]
    assert result["names"] == ["x", "noise", "constant"]
    assert x["mean"] > 0.999 and x["low"] <= x["mean"] <= x["high"] <= 1
    assert abs(noise["mean"]) < 0.03 and noise["low"] < noise["mean"] < noise["high"]
    assert constant is None
    assert probing.probe(z, u, EPISODES, ["x", "noise", "constant"]) == result
    json.dumps(result, allow_nan=False)


def test_the_probe_agrees_with_numpys_least_squares_of_a_ridge():
    z, u = draw(200, 3, 5), draw(200, 3, 2, seed=1)
    u = u + z @ draw(5, 2, seed=2)
    # The folds by their definition: half of the episodes, in random order.
    unique, index = np.unique(EPISODES, return_inverse=True)
    second = np.random.default_rng(0).permutation(20)[index] >= 10
    error, spread = 0.0, 0.0
    for test in (second, ~second):
        x, y = (v[~test].reshape(300, -1).astype(np.float64) for v in (z, u))
        mean, std = x.mean(0), x.std(0)
        # A ridge is least squares with rows sqrt(penalty) I added.
        rows = np.vstack([(x - mean) / std, np.sqrt(300 * probing.PENALTY) * np.eye(5)])
        weights = np.linalg.lstsq(rows, np.vstack([y - y.mean(0), np.zeros((5, 2))]))[0]
        guess = (z[test] - mean) / std @ weights + y.mean(0)
        error = error + np.square(guess - u[test]).sum((0, 1))
        spread = spread + np.square(u[test] - y.mean(0)).sum((0, 1))
    got = [r2["mean"] for r2 in probing.probe(z, u, EPISODES)["r2"]]
    np.testing.assert_allclose(got, 1 - error / spread, rtol=1e-6)
    assert 0.3 < min(got) < max(got) < 0.99


def test_a_probe_is_tested_on_episodes_it_has_not_seen():
    # The latent names the episode, the action is the episode's own: nothing carries over.
    names, index = np.unique(EPISODES, return_inverse=True)
    z = np.repeat(np.eye(20, dtype=np.float32)[index][:, None], 4, axis=1)
    u = np.repeat(draw(20, 1)[index][:, None], 4, axis=1)
    (r2,) = probing.probe(z, u, EPISODES)["r2"]
    assert r2["mean"] < 0.01


def test_the_probe_copes_with_latents_that_are_all_zero():
    result = probing.probe(np.zeros((200, 4, 6), np.float32), draw(200, 4, 2), EPISODES)
    assert result["names"] == ["action 0", "action 1"]
    assert [r2["mean"] for r2 in result["r2"]] == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_actions_are_summed_from_the_last_frame_of_one_step_to_that_of_the_next(k):
    place = np.cumsum(draw(3, 8, 2), axis=1)  # of 8 frames
    last = place[:, k - 1 :: k]
    got = probing.align(np.diff(place, axis=1), 8 // k)
    np.testing.assert_allclose(got, np.diff(last, axis=1), rtol=1e-4, atol=1e-5)


def test_latents_of_one_spread_in_all_directions_fill_their_space():
    rotation = np.linalg.qr(draw(256, 8))[0]  # columns of the same length at right angles
    rotation = np.linalg.qr(rotation - rotation.mean(0))[0]
    assert probing.describe(rotation[None])["dimension"] == pytest.approx(8)
    spread = rotation * np.sqrt([4, 2, 1, 1, 0, 0, 0, 0])
    assert probing.describe(spread[None])["dimension"] == pytest.approx(8**2 / (16 + 4 + 1 + 1))
    line = rotation[:, :1] @ draw(1, 8)
    assert probing.describe(line[None] + 3)["dimension"] == pytest.approx(1)


def test_sparsity_is_one_for_a_single_value_and_zero_for_equal_ones():
    one = probing.describe(2 * np.eye(16)[None])
    assert (one["hoyer"], one["near_zero"], one["norm"]) == pytest.approx((1, 15 / 16, 2))
    equal = probing.describe(np.where(draw(1, 9, 16) > 0, 1.0, -1.0))
    assert (equal["hoyer"], equal["near_zero"], equal["norm"]) == pytest.approx((0, 0, 4))
    few = probing.describe(np.array([[[1.0, -1.0, 0.02, -0.005]]]))  # rms .7071
    assert few["near_zero"] == 0.25
    half = np.zeros((1, 1, 16))
    half[..., :4] = 3
    assert probing.describe(half)["hoyer"] == pytest.approx((4 - 2) / (4 - 1))


def test_latents_that_are_all_zero_have_no_dimension_and_no_nan():
    got = probing.describe(np.zeros((2, 3, 4), np.float32))
    assert (got["dimension"], got["norm"], got["near_zero"], got["hoyer"]) == (0, 0, 1, None)
    json.dumps(got, allow_nan=False)


def test_evenly_used_codes_have_a_perplexity_of_their_number():
    z = draw(4, 8, 3)
    even = probing.describe(z, codes=np.arange(32).reshape(4, 8) % 16, K=16)
    assert even["codes"] == pytest.approx({"used": 16, "of": 16, "perplexity": 16})
    codes = np.repeat([3, 5, 9], [16, 8, 8]).reshape(4, 8)
    some = probing.describe(z, codes=codes, K=16)["codes"]
    assert some == pytest.approx({"used": 3, "of": 16, "perplexity": 2**1.5})
    one = probing.describe(z, codes=np.full((4, 8), 2), K=16)["codes"]
    assert one == pytest.approx({"used": 1, "of": 16, "perplexity": 1})


def test_the_table_shows_what_there_is():
    z, u = draw(200, 4, 6), draw(200, 4, 2)
    codes = np.zeros((200, 4), int)
    rows = [
        {"name": "a", "latents": probing.describe(z, nats=[[3.0, 5.0]]), "probe": None},
        {
            "name": "b",
            "latents": probing.describe(z, codes=codes, K=4),
            "probe": probing.probe(z, np.concatenate([u, 0 * u[..., :1]], -1), EPISODES, "xyz"),
        },
    ]
    probe, use = probing.tables(rows)
    assert [column.title for column in probe.columns] == [f"R² of {name}" for name in "xyz"]
    title, heads, probed = tables.text("arm", [probe]).split("\n")
    assert title == "arm, linear probe [95 % interval]" and "R² of x ↑" in heads
    assert probed.split()[0] == "b" and "[" in probed  # "a" has none
    assert "R² of z" not in heads  # it never differs from its mean
    titles = [column.title for column in use.columns]
    assert {"codes in use", "codes in total", "codes perplexity", "nats"} <= set(titles)
    assert use.rows[0]["latents"]["nats"] == 4 and use.rows[1]["latents"]["codes used"] == 1
    json.dumps(rows, allow_nan=False)


def test_wrong_arguments_are_errors_that_say_what_was_expected():
    z, u = draw(200, 4, 6), draw(200, 4, 2)
    with pytest.raises(
        ValueError, match=r"u, names: expected \(200, 4\) actions.*got \(200, 3, 2\)"
    ):
        probing.probe(z, u[:, 1:], EPISODES)
    with pytest.raises(ValueError, match="u, names: .* 1 names"):
        probing.probe(z, u, EPISODES, ["x"])
    with pytest.raises(
        ValueError, match="episodes: .*at least 2 episodes, got 200 with 1 different"
    ):
        probing.probe(z, u, ["a"] * 200)
    with pytest.raises(ValueError, match="episodes: expected 200 names from .*got 199"):
        probing.probe(z, u, EPISODES[1:])
    with pytest.raises(ValueError, match="u: expected finite"):
        probing.probe(z, np.where(u > 2, np.nan, u), EPISODES)
    with pytest.raises(ValueError, match=r"u: expected k \* 4 - 1 actions.*got 6"):
        probing.align(draw(2, 6, 1), 4)
    with pytest.raises(ValueError, match="codes, K: expected codes from 0 to K - 1, got 0 to 4"):
        probing.describe(z, codes=np.arange(800).reshape(200, 4) % 5, K=4)
    with pytest.raises(ValueError, match=r"z: expected \[n, T-1, A\], got \(200, 4\)"):
        probing.describe(z[..., 0])

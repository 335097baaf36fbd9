"""What latents hold, on latents whose content is known."""

import json
import types

import jax
import numpy as np
import pytest
import scipy.stats
from conftest import normal

import lawm_jax as lawm
from lawm_jax import latents
from lawm_jax.evaluate import content, context, probing, tables

EPISODES = np.repeat([f"episode {i}" for i in range(20)], 10)


def test_actions_that_are_linear_in_the_latents_are_read_and_noise_is_not():
    z = normal(200, 7, 8) * np.logspace(-2, 2, 8, dtype=np.float32) + 5
    u = (z - 5) / np.logspace(-2, 2, 8, dtype=np.float32) @ normal(8, 3, seed=1)
    u[..., 1] = normal(200, 7, seed=2)
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
    z, u = normal(200, 3, 5), normal(200, 3, 2, seed=1)
    u = u + z @ normal(5, 2, seed=2)
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
    u = np.repeat(normal(20, 1)[index][:, None], 4, axis=1)
    (r2,) = probing.probe(z, u, EPISODES)["r2"]
    assert r2["mean"] < 0.01


def test_the_probe_copes_with_latents_that_are_all_zero():
    result = probing.probe(np.zeros((200, 4, 6), np.float32), normal(200, 4, 2), EPISODES)
    assert result["names"] == ["action 0", "action 1"]
    assert [r2["mean"] for r2 in result["r2"]] == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_actions_are_summed_from_the_last_frame_of_one_step_to_that_of_the_next(k):
    place = np.cumsum(normal(3, 8, 2), axis=1)  # of 8 frames
    last = place[:, k - 1 :: k]
    got = probing.align(np.diff(place, axis=1), 8 // k)
    np.testing.assert_allclose(got, np.diff(last, axis=1), rtol=1e-4, atol=1e-5)


def varied(*sizes, seed=0):
    """Draws 200 clips of 5 states [2, 4] whose dimensions have these variances, and no others."""
    x = normal(1000, 8, seed=seed)
    left, _, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return np.float32(left * np.sqrt([1000 * size for size in sizes]) @ right).reshape(200, 5, 2, 4)


def test_principal_components_are_those_of_numpys_singular_vectors_of_the_training_clips():
    s = varied(8, 4, 2, 1, 0.5, 0.25, 0.1, 0.05)
    train = np.arange(0, 200, 2)
    got = probing.principal(probing.take(s, train), 3)(s)
    x = s[train, :-1].reshape(-1, 8).astype(np.float64)
    right = np.linalg.svd(x - x.mean(0))[2][:3]
    expected = (s[:, :-1].reshape(-1, 8) - x.mean(0)) @ right.T
    signs = np.sign((got.reshape(-1, 3) * expected).sum(0))
    np.testing.assert_allclose(got.reshape(-1, 3) * signs, expected, atol=1e-4)
    assert got.shape == (200, 4, 3)
    assert probing.principal(probing.take(s, train), 64)(s).shape == (
        200,
        4,
        8,
    )  # all there are
    assert len(probing.take(np.tile(s, (4, 1, 1, 1)), np.arange(800))) == probing.ROWS


def test_principal_components_of_a_fold_do_not_depend_on_its_test_episodes():
    s, second = varied(*range(8, 0, -1)), probing.second_fold(EPISODES)
    changed = np.where(second[:, None, None, None], 10 * s[::-1], s)
    one, two = (probing.components(x, EPISODES, 3)[0] for x in (s, changed))
    np.testing.assert_array_equal(one[~second], two[~second])
    assert np.abs(one[second] - two[second]).max() > 1


def test_few_clips_give_few_components_and_no_error():
    s, z, u = normal(3, 2, 2, 4), normal(3, 1, 3, seed=1), normal(3, 1, 2, seed=2)
    episodes = np.array(["a", "b", "c"])
    states = probing.components(s, episodes, 3)
    assert [x.shape for x in states] == [(3, 1, 1), (3, 1, 1)]  # of two clips and of one
    assert states[0].any() != states[1].any()
    assert len(probing.beside_state(z, u, states, episodes)) == 2


def judge_beside(matched):
    rows = [{"name": "noisy", "probe": None, "matched": matched}]
    return [v.answer for v in content.judge(rows, "noisy") if v.claim == "beyond PCA"]


def test_latents_that_are_the_states_components_add_nothing_to_them():
    s = varied(8, 4, 2, 1, 0.1, 0.1, 0.1, 0.1)
    u = s[:, :-1].reshape(200, 4, 8) @ normal(8, 2, seed=1) + normal(200, 4, 2, seed=2)
    states = probing.components(s, EPISODES, 4)
    for z in (states[0], states[1] @ normal(4, 4, seed=3)):
        matched = probing.beside_state(z, u, states, EPISODES)
        for row in matched:
            assert row["state"]["low"] > 0.3 and row["latents"]["low"] > 0.3
            assert abs(row["added"]["mean"]) < 0.002 and row["added"]["high"] < content.LEAST
        assert judge_beside(matched) == ["fails"]


def test_latents_add_the_share_of_the_actions_variance_that_the_state_does_not_tell():
    s = varied(8, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    x = s[:, :-1].reshape(-1, 8)
    first = (x @ np.linalg.svd(x - x.mean(0))[2][0]).reshape(200, 4, 1)
    z = normal(200, 4, 3, seed=1)
    u = np.concatenate([first / first.std() + 2 * z[..., :1], first, 0 * first], 2)
    matched = probing.beside_state(z, u, probing.components(s, EPISODES, 3), EPISODES)
    mixed, told, constant = matched
    means = [mixed[key]["mean"] for key in ("latents", "state", "both", "added")]
    np.testing.assert_allclose(means, [0.8, 0.2, 1, 0.8], atol=0.03)
    assert mixed["added"]["low"] < mixed["added"]["mean"] < mixed["added"]["high"]
    assert told["state"]["mean"] > 0.99 and abs(told["added"]["mean"]) < 0.002
    assert constant == {key: None for key in constant} | {"name": "action 2"}
    assert judge_beside(matched) == ["partly"] and judge_beside(matched[:1]) == ["holds"]
    json.dumps(matched, allow_nan=False)
    _, table, _ = content.tables([{"name": "noisy", "matched": matched}])
    assert [row["name"] for row in table.rows] == [f"noisy, action {i}" for i in range(3)]


def test_latents_of_one_spread_in_all_directions_fill_their_space():
    rotation = np.linalg.qr(normal(256, 8))[0]  # columns of the same length at right angles
    rotation = np.linalg.qr(rotation - rotation.mean(0))[0]
    assert content.describe(rotation[None])["dimension"] == pytest.approx(8)
    spread = rotation * np.sqrt([4, 2, 1, 1, 0, 0, 0, 0])
    assert content.describe(spread[None])["dimension"] == pytest.approx(8**2 / (16 + 4 + 1 + 1))
    line = rotation[:, :1] @ normal(1, 8)
    assert content.describe(line[None] + 3)["dimension"] == pytest.approx(1)
    # The effective rank is 2 to the entropy in bits, here of the shares 1/2, 1/4, 1/8, 1/8.
    ranks = [content.describe(x[None])["effective_rank"] for x in (rotation, spread, line)]
    assert ranks == pytest.approx([8, 2**1.75, 1])
    assert [content.describe(x[None])["dead"] for x in (rotation, spread)] == [0, 4]


def test_dimensions_of_noisy_latents_are_dead_if_they_carry_no_nats():
    nats = np.float32([2, 1, 0.5, 0.005, 0]) * normal(3, 7, 1) ** 2
    got = content.describe(normal(3, 7, 5), nats=nats / (normal(3, 7, 1) ** 2).mean())
    assert got["nats"] == pytest.approx(3.505, rel=1e-5) and got["dead"] == 2
    assert got["nats_by_dimension"] == pytest.approx([2, 1, 0.5, 0.005, 0], rel=1e-5)


def test_nats_of_a_dimension_are_the_divergence_of_two_gaussians(tiny):
    mean, std = normal(4, 3), np.exp(normal(4, 3, seed=1))
    got = latents.nats(np.concatenate([mean, 2 * np.log(std)], 1))
    # KL(N(m, s) || N(0, 1)) = E[log q - log p], by quadrature.
    x = mean[..., None] + std[..., None] * np.linspace(-12, 12, 4001)
    q, p = (scipy.stats.norm.logpdf(x, *of) for of in ((mean[..., None], std[..., None]), (0, 1)))
    np.testing.assert_allclose(got, np.trapezoid(np.exp(q) * (q - p), x), rtol=1e-4)
    model, params, s = tiny("noisy")
    source = types.SimpleNamespace(loaded={"noisy": (model, params)})
    source.clips = types.SimpleNamespace(s=np.asarray(s))
    cost = jax.jit(lawm.infer_actions, static_argnums=0)(model, params, s)[1]
    found = context.Source.nats(source, "noisy")
    assert found.shape == (*cost.shape, model.latent.dim)
    np.testing.assert_allclose(found.sum(-1), cost / model.latent.beta, rtol=1e-4)


def test_sparsity_is_one_for_a_single_value_and_zero_for_equal_ones():
    one = content.describe(2 * np.eye(16)[None])
    assert (one["hoyer"], one["near_zero"], one["norm"]) == pytest.approx((1, 15 / 16, 2))
    equal = content.describe(np.where(normal(1, 9, 16) > 0, 1.0, -1.0))
    assert (equal["hoyer"], equal["near_zero"], equal["norm"]) == pytest.approx((0, 0, 4))
    few = content.describe(np.array([[[1.0, -1.0, 0.02, -0.005]]]))  # rms .7071
    assert few["near_zero"] == 0.25
    half = np.zeros((1, 1, 16))
    half[..., :4] = 3
    assert content.describe(half)["hoyer"] == pytest.approx((4 - 2) / (4 - 1))


def test_latents_that_are_all_zero_have_no_dimension_and_no_nan():
    got = content.describe(np.zeros((2, 3, 4), np.float32))
    assert (got["dimension"], got["norm"], got["near_zero"], got["hoyer"]) == (0, 0, 1, None)
    assert (got["effective_rank"], got["dead"]) == (0, 4)
    json.dumps(got, allow_nan=False)


def test_evenly_used_codes_have_a_perplexity_of_their_number():
    z = normal(4, 8, 3)
    even = content.describe(z, codes=np.arange(32).reshape(4, 8) % 16, K=16)
    assert even["codes"] == pytest.approx({"used": 16, "of": 16, "perplexity": 16})
    codes = np.repeat([3, 5, 9], [16, 8, 8]).reshape(4, 8)
    some = content.describe(z, codes=codes, K=16)["codes"]
    assert some == pytest.approx({"used": 3, "of": 16, "perplexity": 2**1.5})
    one = content.describe(z, codes=np.full((4, 8), 2), K=16)["codes"]
    assert one == pytest.approx({"used": 1, "of": 16, "perplexity": 1})


def test_the_table_shows_what_there_is():
    z, u = normal(200, 4, 6), normal(200, 4, 2)
    codes = np.zeros((200, 4), int)
    rows = [
        {"name": "a", "latents": content.describe(z, nats=np.full(z.shape, 0.5)), "probe": None},
        {
            "name": "b",
            "latents": content.describe(z, codes=codes, K=4),
            "probe": probing.probe(z, np.concatenate([u, 0 * u[..., :1]], -1), EPISODES, "xyz"),
        },
    ]
    probe, _, use = content.tables(rows)
    assert [column.title for column in probe.columns] == [f"R² of {name}" for name in "xyz"]
    title, heads, probed = tables.text("arm", [probe]).split("\n")
    assert title == "arm, linear probe [95% interval]" and "R² of x ↑" in heads
    assert probed.split()[0] == "b" and "[" in probed  # "a" has none
    assert "R² of z" not in heads  # it never differs from its mean
    titles = [column.title for column in use.columns]
    assert {"codes in use", "codes in total", "codes perplexity", "nats"} <= set(titles)
    assert use.rows[0]["latents"]["nats"] == 3 and use.rows[1]["latents"]["codes used"] == 1
    json.dumps(rows, allow_nan=False)


def test_wrong_arguments_are_errors_that_say_what_was_expected():
    z, u = normal(200, 4, 6), normal(200, 4, 2)
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
        probing.align(normal(2, 6, 1), 4)
    with pytest.raises(ValueError, match="codes, K: expected codes from 0 to K - 1, got 0 to 4"):
        content.describe(z, codes=np.arange(800).reshape(200, 4) % 5, K=4)
    with pytest.raises(ValueError, match=r"z: expected \[n, T-1, A\], got \(200, 4\)"):
        content.describe(z[..., 0])

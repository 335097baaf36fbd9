"""Sampling: the prior against known densities, two-sample tests against scipy, closed forms."""

import dataclasses
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from conftest import write_run

import lawm_jax as lawm
from lawm_jax.evaluate import batched, priors, sampling, tables, two_sample
from lawm_jax.nn import prior
from lawm_jax.train import models

init = jax.jit(prior.init, static_argnums=0)
sample = jax.jit(prior.sample, static_argnums=0)
sample_actions = jax.jit(lawm.sample_actions, static_argnums=(0, 3))


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bimodal(n, seed=0):
    """Draws 4 tokens of 12 channels and latents that are one of two modes, given the state.

    The state's first pooled channel moves both modes, its second decides how often the upper one
    is chosen; the third dimension is a thousandth as wide, the fourth the sum of the first two.
    """
    random = np.random.default_rng(seed)
    cause = random.normal(size=(n, 8, 2))
    s = np.zeros((n, 8, 4, 12), np.float32)
    s[..., :2] = cause[:, :, None] + random.normal(size=(n, 8, 4, 2)) * [[[[1], [1], [-1], [-1]]]]
    s[..., :2] -= s[..., :2].mean(2, keepdims=True) - cause[:, :, None]
    upper = random.random((n, 8)) < 1 / (1 + np.exp(-2 * cause[..., 1]))
    z = random.normal(size=(n, 8, 4)) * [0.3, 0.5, 1e-3, 0]
    z[..., 0] += 0.5 * cause[..., 0] + np.where(upper, 2, -2)
    z[..., 3] = z[..., 0] + z[..., 1]
    return z[:, :-1].astype(np.float32), s


def test_the_prior_reaches_a_known_mixture_given_the_state():
    network, params = priors.fit(*bimodal(200))
    draw = jax.jit(lambda key, s: prior.sample(network, params, key, s))
    for cause, often in ((0.5, 0.0), (0.0, 1.0), (-1.0, -0.7)):
        s = np.zeros((4000, 1, 12), np.float32)
        s[:, 0, :2] = cause, often
        z = np.asarray(draw(jax.random.key(1), s), np.float64)
        share = 1 / (1 + np.exp(-2 * often))
        middle = 0.5 * cause
        mean = middle + 4 * share - 2
        variance = 0.09 + 16 * share * (1 - share)
        assert (z[:, 0] > middle).mean() == pytest.approx(share, abs=0.1)
        assert z.mean(0) == pytest.approx([mean, 0, 0, mean], abs=0.35)
        assert z[:, 0].var() == pytest.approx(variance, rel=0.2)
        assert z[:, 1].std() == pytest.approx(0.5, rel=0.15)
        assert z[:, 2].std() == pytest.approx(1e-3, rel=0.15)
        np.testing.assert_allclose(z[:, 3], z[:, 0] + z[:, 1], atol=0.05)
        between = np.abs(z[:, 0] - middle) < 1  # a Gaussian would have a quarter of it here
        assert between.mean() < 0.05


def test_an_untrained_prior_is_the_gaussian_with_the_latents_mean_and_covariance():
    z, s = bimodal(50)
    z, s = priors.flat(z), priors.pooled(s[:, :-1])
    params = init(prior.Prior(), jax.random.key(0), z, s)
    drawn = np.asarray(sample(prior.Prior(), params, jax.random.key(1), np.tile(s, (20, 1, 1))))
    np.testing.assert_allclose(drawn.mean(0), z.mean(0), atol=0.1)
    unit = z.std(0)
    np.testing.assert_allclose(
        np.cov(drawn / unit, rowvar=False), np.cov(z / unit, rowvar=False), atol=0.06
    )


def test_the_flow_loss_of_the_exact_velocity_is_the_closed_form():
    z, s = normal((4000, 1)), normal((4000, 1, 3), 1)
    params = init(prior.Prior(), jax.random.key(0), z, s)
    # Unit Gaussians: z - noise has variance 1 / (t^2 + (1 - t)^2) given (1 - t) noise + t z.
    t = np.linspace(0, 1, 2001)
    expected = np.trapezoid(1 / (t**2 + (1 - t) ** 2), t)
    loss = jax.jit(prior.flow_loss, static_argnums=0)
    loss = loss(prior.Prior(), params, jax.random.key(1), z, s)
    assert float(loss) == pytest.approx(expected, rel=0.05)


def test_the_prior_draws_codes_as_often_as_the_states_ask():
    random = np.random.default_rng(0)
    codebook = random.normal(size=(4, 3)).astype(np.float32)
    s = np.repeat(random.choice([-1.0, 1.0], (150, 8, 1, 1)), 6, axis=3).astype(np.float32)
    lower = random.random((150, 8)) < 0.75
    code = np.where(s[:, :, 0, 0] > 0, np.where(lower, 0, 1), np.where(lower, 2, 3))
    network, params = priors.fit(codebook[code[:, :-1]], s)
    z = sample(network, params, jax.random.key(2), np.ones((2000, 1, 6), np.float32))
    nearest = scipy.spatial.distance.cdist(z, codebook).argmin(1)
    share = np.bincount(nearest, minlength=4) / 2000
    np.testing.assert_allclose(share, [0.75, 0.25, 0, 0], atol=0.1)


def test_one_distribution_cannot_be_told_from_itself():
    x, y = normal((700, 16)), normal((700, 16), 1)
    result = two_sample.test(x, y)
    assert result["auc"]["mean"] == pytest.approx(0.5, abs=0.04)
    assert result["auc"]["low"] < 0.5 < result["auc"]["high"] + 0.01
    assert abs(result["energy_distance"]) < 2 * result["energy_null"]


def test_separated_sets_are_told_apart_always():
    result = two_sample.test(normal((200, 8)) + 4, normal((250, 8), 1))
    assert result["auc"]["mean"] > 0.999
    assert result["energy_distance"] > 20 * result["energy_null"]


def test_sets_of_equal_means_and_variances_are_told_apart_by_dependence_and_tails():
    x, y = normal((700, 8)), normal((700, 8), 1)
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    assert two_sample.test(x, y)["auc"]["low"] > 0.6
    x = normal((700, 3))
    x[:, 1] = np.abs(x[:, 1]) * np.sign(x[:, 0] * x[:, 2])  # every pair is independent
    assert two_sample.test(x, y[:, :3])["auc"]["low"] > 0.55
    x = np.random.default_rng(0).laplace(size=(700, 8)) / 2**0.5
    assert two_sample.test(x, y)["auc"]["low"] > 0.55


@pytest.mark.parametrize("d", [0.5, 1.5])
def test_the_auc_of_two_gaussians_is_the_closed_form(d):
    x, y = normal((1000, 1)) + d, normal((1000, 1), 1)
    auc = two_sample.test(x, y)["auc"]
    expected = scipy.stats.norm.cdf(d / 2**0.5)
    assert auc["mean"] == pytest.approx(expected, abs=0.03)
    # Hanley & McNeil 1982: the standard error of an area A from 1000 against 1000.
    a, q, r = expected, expected / (2 - expected), 2 * expected**2 / (1 + expected)
    error = ((a * (1 - a) + 999 * (q - a**2) + 999 * (r - a**2)) / 1e6) ** 0.5
    assert auc["high"] - auc["low"] == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_the_energy_distance_agrees_with_scipys_in_one_dimension():
    x, y = normal((60, 1)).astype(float) * 1.5 + 1, normal((80, 1), 1).astype(float)
    biased = scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    pairs = [scipy.spatial.distance.pdist(v) for v in (x, y)]
    sums = [2 * p.sum() for p in pairs]
    expected = biased + sums[0] / 60**2 + sums[1] / 80**2 - pairs[0].mean() - pairs[1].mean()
    assert two_sample.energy_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_the_energy_null_covers_what_other_episodes_alone_differ_by():
    groups = np.repeat(np.arange(20), 20)
    level = normal((20, 4), 3)[groups] * 2  # each episode has its own mean
    y = level + normal((400, 4), 4)
    half = groups % 2 == 0
    whole = two_sample.test(y[half], y[~half], np.concatenate([groups[half], groups[~half]]))
    null = two_sample.test(y, y + 1e-3, np.tile(groups, 2))["energy_null"]
    alone = two_sample.test(y, y + 1e-3)["energy_null"]
    assert null > 5 * alone
    assert whole["energy_distance"] < 2 * null


def test_clips_of_one_episode_stay_on_one_side_of_a_fold():
    groups = np.repeat(np.arange(12), 50)
    x = normal((12, 6), 5)[groups] * 3 + 0.05 * normal((600, 6), 6)
    side = groups % 2 == 0
    both = np.concatenate([groups[side], groups[~side]])
    assert two_sample.test(x[side], x[~side])["auc"]["mean"] > 0.99  # episodes by heart
    found = two_sample.test(x[side], x[~side], both)["auc"]
    assert found["mean"] < 0.8 and found["groups"] == 12


def model(z, s):
    """Makes a model that infers given latents, and moves every token by the first dimension."""

    def infer(states):
        starts = {row.tobytes(): latent for row, latent in zip(s, z, strict=True)}
        return np.stack([starts[row.tobytes()] for row in states])

    draw = lambda states, seed: infer(states)  # noqa: E731
    return types.SimpleNamespace(draw=draw, predict=lambda s, z: s + z[:, :, None, :1])


def test_the_measure_ranks_the_right_way_to_sample_above_wrong_ones():
    z, s = bimodal(150)
    functions = model(z, s)
    known, learned, s = priors.flat(z[:90]), priors.fit(z[:90], s[:90]), s[90:]
    episodes = np.array([f"e{i // 3}" for i in range(60)])
    other = priors.flat(bimodal(60, seed=7)[0])
    ways = {
        "right": lambda key, shape, z: other,
        "wide": lambda key, shape, z: other * 3,
    }
    rows, samples = sampling.measure(functions, ways, known, learned, s, episodes)
    auc = {row["name"]: row["auc"]["mean"] for row in rows}
    assert list(auc) == [
        "right",
        "wide",
        "Gaussian fit",
        "learned prior",
        "inferred, other episodes",
    ]
    assert auc["right"] == pytest.approx(0.5, abs=0.06)
    assert auc["inferred, other episodes"] == pytest.approx(0.5, abs=0.12)
    assert auc["learned prior"] < 0.6 < 0.65 < auc["Gaussian fit"]
    assert auc["wide"] > 0.8
    row = {row["name"]: row for row in rows}
    assert row["right"]["change"] == pytest.approx(1, abs=0.1)
    assert row["wide"]["change"] == pytest.approx(3, abs=0.3)
    assert row["right"]["energy_distance"] < row["right"]["energy_null"]
    assert row["Gaussian fit"]["energy_distance"] > row["learned prior"]["energy_distance"]
    text = tables.text("arms", sampling.tables(rows))
    assert text.startswith("arms, sampled versus inferred latents") and len(rows) + 2 == len(
        text.split("\n")
    )
    assert f"{auc['wide']:.3f} [" in text
    assert (
        rows == sampling.measure(functions, ways, known, learned, s, episodes)[0]
    )  # twice the same
    assert samples.keys() == {"inferred", *(row["name"] for row in rows[:-1])}


def test_fitted_ways_to_sample_discrete_latents_give_codes():
    seen = []
    codebook, (_, s) = normal((5, 3)), bimodal(20)
    z = codebook[np.random.default_rng(0).integers(0, 5, (20, 7))]
    plain = model(z, s)
    predict = lambda s, z: seen.append(z) or plain.predict(s, z)  # noqa: E731
    functions = types.SimpleNamespace(draw=plain.draw, predict=predict)
    known, states = priors.flat(z), priors.pooled(s[:, :-1])
    learned = prior.Prior(), init(prior.Prior(), jax.random.key(0), known, states)
    rows, _ = sampling.measure(functions, {}, known, learned, s, np.arange(20), codebook)
    assert [row["name"] for row in rows[:2]] == ["Gaussian fit", "learned prior"]
    assert len(seen) == 3  # inferred latents first
    for drawn in seen:
        gap = scipy.spatial.distance.cdist(priors.flat(drawn), codebook)
        assert gap.min(1).max() < 1e-6
        assert len(set(gap.argmin(1))) > 2


class Moments(nn.Module):
    """An inverse model that reads mean and log-variance off the next state's first token."""

    @nn.compact
    def __call__(self, s):
        return s[:, 1:, 0]


def test_noisy_latents_whose_aggregate_is_the_prior_cannot_be_told_from_it(tiny):
    # Means N(0, 0.1) and a variance of 0.9: draws are exactly N(0, I), the means are not.
    model, params, _ = tiny("noisy")
    model = dataclasses.replace(model, inverse=Moments())
    s = np.full((60, 9, 4, 32), np.log(0.9), np.float32)
    s[..., :16] = np.sqrt(0.1) * normal((60, 9, 4, 16))
    functions = batched.batched(model, params | {"inverse": {}}, batch=7)
    z = functions.draw(s, 0)
    assert scipy.stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(functions.infer(s), s[:, 1:, 0, :16], rtol=1e-6)
    assert np.abs(functions.draw(s, 1) - z).mean() > 0.5
    again = batched.batched(model, params | {"inverse": {}}, batch=60).draw(s, 0)
    np.testing.assert_allclose(again, z, rtol=1e-5, atol=1e-6)  # whatever the batch
    network = prior.Prior(width=8, depth=1)
    learned = network, init(network, jax.random.key(0), z[:, 0], s[:, 0])
    ways, episodes = model.latent.samplers({}), np.arange(60)
    rows, _ = sampling.measure(functions, ways, priors.flat(z), learned, s, episodes)
    assert rows[0]["name"] == "N(0, I)"
    assert rows[0]["auc"]["mean"] == pytest.approx(0.5, abs=0.06)
    assert rows[0]["energy_distance"] < rows[0]["energy_null"]
    means = priors.flat(functions.infer(s))
    assert two_sample.test(normal(means.shape, 3), means)["auc"]["mean"] > 0.95


def test_latents_that_never_change_need_no_samples():
    _, s = bimodal(12)
    functions = model(np.zeros((12, 7, 4), np.float32), s)
    assert sampling.measure(functions, {}, None, (None, None), s, np.arange(12)) == ([], {})


@pytest.mark.parametrize(
    "kind, names",
    [
        ("discrete", ["codes in use"]),
        ("noisy", ["N(0, I)"]),
        ("sparse", ["Langevin", "Langevin, scaled"]),
        ("none", []),
        ("deterministic", []),
    ],
)
def test_every_kind_brings_its_own_ways(tiny, kind, names):
    world, params, _ = tiny(kind, **({"strength": 4} if kind == "discrete" else {}))
    ways = world.latent.samplers(params.get("latent"))
    assert list(ways) == names
    A = world.latent.dim
    z = 0.05 * np.random.default_rng(0).laplace(size=(500, A)).astype(np.float32)
    for name, way in ways.items():
        drawn = np.asarray(way(jax.random.key(0), (300, A), z))
        assert drawn.shape == (300, A) and np.isfinite(drawn).all()
        if name == "N(0, I)":
            assert scipy.stats.kstest(drawn.ravel(), "norm").statistic < 0.04


def test_the_gaussian_fit_has_the_latents_mean_and_covariance():
    z = normal((400, 3)) @ np.float32([[1, 2, 0], [0, 1, 0], [0, 0, 0]]) + np.float32([[1, 2, 3]])
    drawn = np.asarray(priors.gaussian(jax.random.key(0), (40_000, 3), z))
    np.testing.assert_allclose(drawn.mean(0), z.mean(0), atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(z.T), atol=0.12)


@pytest.mark.parametrize("method", ["pca", pytest.param("umap", marks=pytest.mark.study)])
def test_the_embedding_keeps_separated_clusters_apart(method):
    if method == "umap":
        pytest.importorskip("umap")
    sets = {"a": normal((80, 16)), "b": normal((60, 16), 1) + 5}
    points, used = sampling.embed(sets, method=method)
    assert used == method.upper()
    assert {name: p.shape for name, p in points.items()} == {"a": (80, 2), "b": (60, 2)}
    centres = [p.mean(0) for p in points.values()]
    spread = max(np.linalg.norm(p - p.mean(0), axis=1).mean() for p in points.values())
    assert np.linalg.norm(centres[0] - centres[1]) > 3 * spread
    again, _ = sampling.embed(sets, method=method)
    np.testing.assert_array_equal(again["b"], points["b"])


def test_pca_stands_in_where_umap_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    sets = {"a": normal((9, 3)), "b": normal((5, 3), 1)}
    points, used = sampling.embed(sets, method="umap")
    assert used == "PCA"
    np.testing.assert_array_equal(points["b"], sampling.embed(sets)[0]["b"])


def test_the_planar_embedding_is_the_projection_on_the_two_leading_directions():
    x = normal((50, 5)) * np.float32([[1, 2, 3, 4, 5]])
    x[:, 1] += x[:, 0]
    points, _ = sampling.embed({"x": x})
    unit = (x - x.mean(0)) / x.std(0)
    values = np.linalg.eigvalsh(unit.T @ unit)[::-1]
    np.testing.assert_allclose((points["x"] ** 2).sum(0), values[:2], rtol=1e-4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: priors.fit(normal((2, 3, 4)), normal((2, 3, 1, 5))), "z: expected"),
        (lambda: two_sample.test(normal((9, 2)), normal((9, 3))), "sampled, inferred: "),
        (lambda: two_sample.test(normal((9, 2)), normal((9, 2)), [1]), "groups: .*got 1 for 9"),
        (lambda: two_sample.test(normal((3, 2)), normal((9, 2))), "at least 5"),
        (
            lambda: two_sample.test(normal((9, 2)), normal((9, 2)), [0] * 9 + [1] * 9),
            "groups: expected several that contain both",
        ),
        (lambda: sampling.embed({"a": normal((9, 2))}, method="map"), "method: .*got 'map'"),
        (
            lambda: sampling.measure(None, {}, None, None, normal((3, 2, 1, 1)), ["a"]),
            "episodes: expected 3",
        ),
        (
            lambda: prior.flow_loss(prior.Prior(), {}, None, jnp.zeros((3, 2)), jnp.zeros((3, 2))),
            "z, s: expected",
        ),
    ],
)
def test_wrong_arguments_are_errors_that_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def with_prior(model, params, s):
    """Gives a model an untrained prior for latents like those that it infers."""
    z = np.asarray(jax.jit(lawm.infer_actions, static_argnums=0)(model, params, s)[0])
    network = prior.Prior(width=16, depth=1)
    known = priors.flat(z), priors.pooled(s[:, :-1])
    drawn = init(network, jax.random.key(0), *known)
    return dataclasses.replace(model, prior=network), params | {"prior": drawn}


def test_a_model_draws_from_its_learned_prior_for_each_state(tiny):
    model, params, s = tiny("noisy")
    model, params = with_prior(model, params, s)
    z = sample_actions(model, params, jax.random.key(1), (2, 4, 16), s)
    flat = sample(model.prior, params["prior"], jax.random.key(1), s.reshape(8, 4, 32))
    np.testing.assert_allclose(z, flat.reshape(2, 4, 16), rtol=1e-5)
    again = sample_actions(model, params, jax.random.key(1), (2, 4, 16))
    assert (np.asarray(again) != np.asarray(z)).any()  # without states: N(0, I)
    with pytest.raises(
        ValueError, match=r"s: expected .*\[2, 4, N, D\], got a model with a learned prior and"
    ):
        lawm.sample_actions(model, params, jax.random.key(1), (2, 4, 16), s[:1])
    with pytest.raises(
        ValueError, match="s: expected a model .*got a model without a learned prior"
    ):
        lawm.sample_actions(*tiny("noisy")[:2], jax.random.key(1), (2, 4, 16), s)


def test_unconstrained_latents_can_be_drawn_from_a_learned_prior_and_discrete_ones_are_codes(tiny):
    model, params, s = tiny("none")
    z = sample_actions(*with_prior(model, params, s), jax.random.key(1), (2, 4, 16), s)
    assert z.shape == (2, 4, 16) and np.isfinite(z).all()
    model, params, s = tiny("discrete")
    z = sample_actions(*with_prior(model, params, s), jax.random.key(1), (2, 4, 16), s)
    gap = scipy.spatial.distance.cdist(priors.flat(z), params["latent"]["codebook"])
    assert gap.min(1).max() < 1e-6


def test_a_prior_is_saved_with_its_model_and_is_no_other_steps(get_config, tmp_path, one_device):
    write_run(get_config("size=tiny,latent=none"), tmp_path / "run")
    model, params = lawm.load(tmp_path / "run")
    s = np.random.default_rng(0).normal(size=(2, 4, 4, 448)).astype(np.float32)
    model, params = with_prior(model, params, s)
    models.save_prior(str(tmp_path / "run"), 1, model.prior, params["prior"])
    plain, without = lawm.load(tmp_path / "run")
    assert plain == dataclasses.replace(model, prior=None) and "prior" not in without
    loaded, again = lawm.load(tmp_path / "run", prior=True)
    assert loaded.prior == model.prior
    jax.tree.map(np.testing.assert_array_equal, again, params)
    lawm.save(tmp_path / "copy", loaded, again)
    copied, again = lawm.load(tmp_path / "copy")
    assert copied == loaded
    jax.tree.map(np.testing.assert_array_equal, again, params)
    models.save_prior(str(tmp_path / "run"), 2, model.prior, params["prior"])
    with pytest.raises(ValueError, match="expected the prior of step 1, got .*2"):
        lawm.load(tmp_path / "run", prior=True)
    (tmp_path / "run" / "prior.safetensors").write_bytes(b"no such file")
    with pytest.raises(ValueError, match="prior.safetensors: expected a learned prior written by"):
        lawm.load(tmp_path / "run", prior=True)
    assert lawm.load(tmp_path / "run")[0] == plain
    (tmp_path / "run" / "prior.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="prior.safetensors: .*evaluate"):
        lawm.load(tmp_path / "run", prior=True)

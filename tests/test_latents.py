"""The five kinds of latent: every term against numpy or torch, the codebook, the sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import COMPUTES_MORE

import lawm_jax as lawm
from lawm_jax import latents
from lawm_jax.train import optim
from lawm_jax.train.step import make_state


def draw(shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_energy_is_a_floor_on_the_squared_norm_plus_an_l1_price(scale):
    z = draw((3, 5, 6), scale=scale).astype(np.float64)
    squared, absolute = (z**2).sum(-1), np.abs(z).sum(-1)
    expected = 2.0 * np.clip(6**0.5 - squared, 0, None) + 0.3 * absolute
    np.testing.assert_allclose(latents.energy(jnp.float32(z), 0.3, floor=2.0), expected, rtol=1e-5)
    assert (squared < 6**0.5).all() if scale < 1 else (squared > 6**0.5).any()


def sparse_terms(h):
    """Returns (variance, covariance, mean) of a batch of latents [B, T, A], float64."""
    flat = h.reshape(-1, h.shape[-1]).astype(np.float64)
    A = flat.shape[1]
    variance = np.clip(1 - flat.std(0, ddof=1), 0, None).mean()
    cov = np.cov(flat, rowvar=False)
    covariance = sum(cov[i, j] ** 2 for i in range(A) for j in range(A) if i != j) / (A * (A - 1))
    return variance, covariance, (flat.mean(0) ** 2).mean()


@pytest.mark.parametrize("term", ["variance", "covariance", "mean"])
def test_each_statistic_of_the_sparse_latent_equals_numpy(term):
    spread = np.array([0.3, 0.8, 1.5, 2.0], np.float32)  # some above 1: the hinge is closed there
    mix = draw((4, 4), 3)
    h = draw((4, 6, 4)) @ mix * spread + np.float32([0.5, -1, 0, 2])
    weights = dict(variance=0.0, covariance=0.0, mean=0.0) | {term: 1.0}
    z, cost = latents.sparse(jnp.array(h), 0.0, **weights)
    energy = np.clip(2 - (h.astype(np.float64) ** 2).sum(-1), 0, None)
    expected = dict(zip(("variance", "covariance", "mean"), sparse_terms(h), strict=True))[term]
    assert expected > 1e-2
    np.testing.assert_allclose(cost, energy + expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(z, h)


def test_the_sparse_cost_adds_its_terms_with_the_papers_weights():
    h = draw((4, 6, 8), 1, 0.5)
    variance, covariance, mean = sparse_terms(h)
    energy = np.clip(8**0.5 - (h**2).sum(-1), 0, None) + 0.04 * np.abs(h).sum(-1)
    expected = energy + 0.1 * variance + 0.001 * covariance + 0.1 * mean
    np.testing.assert_allclose(latents.sparse(jnp.array(h), 0.04)[1], expected, rtol=1e-5)


def test_a_weight_scales_the_whole_sparse_cost_and_stays_with_the_model():
    h = jax.random.normal(jax.random.key(0), (2, 3, 16))
    costs = []
    for weight in (1.0, 0.01):
        latent = latents.make("sparse", dim=16, strength=0.04, weight=weight)
        z, cost = latent.restrict({}, h)
        np.testing.assert_array_equal(z, h)
        costs.append(cost)
        assert latents.make(**latents.options_of(latent)) == latent
    np.testing.assert_allclose(costs[1], 0.01 * costs[0], rtol=1e-6)
    assert latents.make("sparse", dim=16, strength=0.04).weight == 1.0  # of models from before


def test_a_collapsed_sparse_batch_has_a_finite_gradient():
    grad = jax.grad(lambda h: latents.sparse(h, 0.1)[1].sum())(jnp.zeros((2, 3, 4)))
    assert np.isfinite(grad).all()


def test_the_sparse_mean_term_pulls_latents_to_the_centre():
    h = jnp.full((2, 3, 4), 5.0)
    cost = lambda h: latents.sparse(h, 0.0, variance=0, covariance=0)[1].mean()  # noqa: E731
    np.testing.assert_allclose(jax.grad(cost)(h).sum((0, 1)), 0.1 * 2 * 5 / 4, rtol=1e-5)


def test_the_noisy_cost_is_the_kl_divergence_of_torch():
    torch = pytest.importorskip("torch")
    moments = draw((2, 3, 8))
    mean, log_var = torch.tensor(moments).double().chunk(2, -1)
    q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = 0.3 * torch.distributions.kl_divergence(q, p).sum(-1).numpy()
    for noise in (None, jax.random.normal(jax.random.key(0), (2, 3, 4))):
        np.testing.assert_allclose(latents.noisy(moments, noise, 0.3)[1], expected, rtol=1e-5)


def test_noisy_latents_are_drawn_with_the_given_moments():
    mean, log_var = np.float32([[1.0, -2.0]]), np.float32([[-1.0, 1.0]])
    moments = jnp.tile(np.concatenate([mean, log_var], -1)[None], (20_000, 1, 1))
    noise = latents.Noisy(2, 1.0).noise(jax.random.key(0), (20_000, 1, 2))
    z = np.asarray(latents.noisy(moments, noise, 1.0)[0])[:, 0]
    std = np.exp(0.5 * log_var[0])
    np.testing.assert_allclose(z.mean(0), mean[0], atol=4 * std.max() / 20_000**0.5)
    np.testing.assert_allclose(z.std(0), std, rtol=4 / 40_000**0.5)
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.03


def test_noisy_latents_without_noise_are_their_mean():
    moments = draw((2, 3, 8))
    np.testing.assert_array_equal(latents.noisy(moments, None, 1.0)[0], moments[..., :4])


def test_a_noisy_latents_gradient_passes_through_the_sample():
    moments, noise = jnp.array(draw((2, 3, 8))), jax.random.normal(jax.random.key(0), (2, 3, 4))
    z = latents.noisy(moments, noise, 1.0)[0]
    grad = jax.grad(lambda m: latents.noisy(m, noise, 1.0)[0].sum())(moments)
    np.testing.assert_array_equal(grad[..., :4], 1.0)  # z = mean + exp(log_var / 2) noise
    np.testing.assert_allclose(grad[..., 4:], 0.5 * (z - moments[..., :4]), rtol=1e-5, atol=1e-6)


def test_extreme_log_variances_are_clipped():
    moments = jnp.array([[[0.0, 50.0]], [[0.0, -50.0]]])
    expected = 0.5 * np.array([[np.exp(6.0) - 1 - 6], [np.exp(-10.0) - 1 + 10]])
    np.testing.assert_allclose(latents.noisy(moments, None, 1.0)[1], expected, rtol=1e-5)


def test_an_odd_number_of_moments_is_an_error():
    with pytest.raises(ValueError, match=r"moments: expected an even last axis.*got \(2, 3, 7\)"):
        latents.noisy(jnp.zeros((2, 3, 7)), None, 1.0)


def test_the_nearest_code_is_that_of_a_brute_force_search():
    codebook, h = draw((9, 4)), draw((3, 5, 4), 1)
    distance = ((h[..., None, :] - codebook) ** 2).sum(-1)
    np.testing.assert_array_equal(latents.nearest(codebook, h), distance.argmin(-1))
    z, _ = latents.discrete(jnp.array(h), jnp.array(codebook))
    np.testing.assert_allclose(z, codebook[distance.argmin(-1)], atol=1e-6)
    assert len(np.unique(distance.argmin(-1))) > 3


def test_the_straight_through_gradient_is_exactly_the_identity():
    codebook, h, w = (jnp.array(draw(s, i)) for i, s in enumerate([(9, 4), (3, 5, 4), (3, 5, 4)]))
    grad = jax.grad(lambda h, c: (w * latents.discrete(h, c)[0]).sum(), argnums=(0, 1))
    to_h, to_codebook = grad(h, codebook)
    np.testing.assert_array_equal(to_h, w)
    np.testing.assert_array_equal(to_codebook, 0)


def test_the_discrete_cost_and_its_gradients_equal_the_closed_form():
    codebook, h = draw((6, 4)), draw((3, 5, 4), 1)
    choice = ((h[..., None, :] - codebook) ** 2).sum(-1).argmin(-1)
    gap = h - codebook[choice]
    cost = lambda h, c: latents.discrete(h, c, commitment=0.25)[1]  # noqa: E731
    np.testing.assert_allclose(cost(h, codebook), 1.25 * (gap**2).mean(-1), rtol=1e-5)
    to_h, to_codebook = jax.grad(lambda *args: cost(*args).sum(), argnums=(0, 1))(
        jnp.array(h), jnp.array(codebook)
    )
    np.testing.assert_allclose(to_h, 0.25 * 2 * gap / 4, rtol=1e-4, atol=1e-6)
    expected = np.zeros((6, 4))
    np.add.at(expected, choice, -2 * gap / 4)
    np.testing.assert_allclose(to_codebook, expected, rtol=1e-4, atol=1e-5)


def test_an_unconstrained_latent_is_free_and_a_deterministic_one_is_zero():
    h = jnp.array(draw((2, 3, 4)))
    z, cost = latents.Unconstrained(4).restrict({}, h)
    np.testing.assert_array_equal(z, h)
    np.testing.assert_array_equal(cost, np.zeros((2, 3)))
    z, cost = latents.Deterministic(4).restrict({}, h)
    np.testing.assert_array_equal(z, np.zeros((2, 3, 4)))
    np.testing.assert_array_equal(cost, np.zeros((2, 3)))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kind="vague", dim=4), "latent.kind: expected one of .*discrete.*got 'vague'"),
        (dict(kind="discrete", dim=4, strength=1), "latent.strength: expected .*at least 2, got 1"),
        (dict(kind="discrete", dim=4, strength=2.5), "latent.strength: .*got 2.5"),
        (
            dict(kind="discrete", dim=4, strength=4, reset_after=2**24),
            "latent.reset_after: .*got 16777216",
        ),
    ],
)
def test_a_wrong_latent_is_an_error_that_says_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        latents.make(**options)


def test_a_new_kind_is_a_class_and_a_line(get_config, monkeypatch):
    class Half(latents.Unconstrained):
        kind = "half"

        def restrict(self, params, h, noise=None, others=None):
            return h / 2, jnp.full(h.shape[:-1], 0.125)

        def sample(self, params, key, shape):
            return jnp.ones(shape)

    monkeypatch.setitem(latents.KINDS, "half", lambda dim, strength, reset_after, weight: Half(dim))
    config = get_config("size=tiny,latent=none")
    config.latent.kind = "half"
    model = lawm.build(config)
    tx, _ = optim.make(config.optim, config.steps)
    s = jnp.array(draw((2, 3, 4, 32)))
    state = jax.jit(functools.partial(make_state, model, tx, s))(jax.random.key(0))
    z, cost = jax.jit(lawm.infer_actions, static_argnums=0)(model, state["params"], s)
    step = jax.jit(functools.partial(lawm.train_step, model, tx))
    after, metrics = step({}, state, {"states": s})
    assert z.shape == (2, 2, 16) and float(metrics["cost"]) == float(cost.mean()) == 0.125
    assert after["step"] == 1 and np.isfinite(metrics["loss"])
    drawn = lawm.sample_actions(model, state["params"], jax.random.key(1), (5, 16))
    np.testing.assert_array_equal(drawn, 1)


CORNERS = np.float32([[1, 1], [-1, 1], [-1, -1], [1, -1]])


def test_idle_counts_the_latents_since_a_code_was_chosen():
    h = jnp.array(CORNERS[[0, 0, 1]] * 0.9)[None]
    idle = jnp.array([5.0, 0.0, 7.0, 0.0])
    codebook, idle = latents.reset_codes(CORNERS, idle, h, jax.random.key(0), 100)
    np.testing.assert_array_equal(idle, [0, 0, 10, 3])
    np.testing.assert_array_equal(codebook, CORNERS)
    _, idle = latents.reset_codes(codebook, idle, h[:, 2:], jax.random.key(0), 100)
    np.testing.assert_array_equal(idle, [1, 0, 11, 4])


def test_dead_codes_move_onto_latents_of_the_batch_and_live_ones_stay():
    h = jnp.array(np.float32([[[0.8, 0.9], [0.9, 0.7], [-0.6, 0.8]]]))
    idle = jnp.array([50.0, 0.0, 97.0, 96.0])  # 97 + 3 is 100; the first is used now
    codebook, after = latents.reset_codes(CORNERS, idle, h, jax.random.key(0), 100)
    np.testing.assert_array_equal(after, [0, 0, 0, 99])
    np.testing.assert_array_equal(np.asarray(codebook)[[0, 1, 3]], CORNERS[[0, 1, 3]])
    distance = np.linalg.norm(np.asarray(codebook)[2] - np.asarray(h)[0], axis=-1)
    assert distance.min() < 0.01


def codes_in_use(reset_after):
    """Fits 16 codes to data far from them; returns how many of the codes new data choose."""

    def step(carry, key):
        codebook, idle = carry
        data, reset = jax.random.split(key)
        h = 4 + jax.random.normal(data, (4, 16, 8))
        grad = jax.grad(lambda c: latents.discrete(h, c)[1].sum())(codebook)
        codebook = codebook - 0.05 * grad
        return latents.reset_codes(codebook, idle, h, reset, reset_after), None

    start = jnp.array(draw((16, 8), 1)), jnp.zeros(16)
    keys = jax.random.split(jax.random.key(0), 200)
    codebook, _ = jax.jit(lambda: jax.lax.scan(step, start, keys)[0])()
    return len(np.unique(latents.nearest(codebook, 4 + draw((4096, 8), 2))))


def test_no_code_is_dead_where_a_run_without_reset_collapses():
    assert codes_in_use(reset_after=2**24 - 1) <= 4
    assert codes_in_use(reset_after=1000) == 16


def langevin(shape, l1, **options):
    """Samples by `latents.langevin`, numpy."""
    run = jax.jit(
        lambda key: latents.langevin(key, shape, l1, **options), compiler_options=COMPUTES_MORE
    )
    return np.asarray(run(jax.random.key(0)))


def test_langevin_samples_have_the_moments_of_the_density():
    grid = np.linspace(-12, 12, 4801)
    density = np.exp(-np.clip(1 - grid**2, 0, None) - 2.0 * np.abs(grid))
    density /= density.sum()
    z = langevin((20_000, 1), 2.0, steps=2000, alpha=0.01)[:, 0]
    np.testing.assert_allclose(np.abs(z).mean(), (np.abs(grid) * density).sum(), rtol=0.04)
    np.testing.assert_allclose((z**2).mean(), (grid**2 * density).sum(), rtol=0.08)
    np.testing.assert_allclose((z > 1).mean(), density[grid > 1].sum(), atol=0.01)
    assert abs(z.mean()) < 0.02


def walk(slope, start, steps, alpha):
    """Repeats the Langevin step from zero: [..., A] numpy."""
    keys = jax.random.split(jax.random.key(0), steps)
    step = lambda z, key: (latents.langevin_step(z, key, slope, alpha), None)  # noqa: E731
    run = lambda: jax.lax.scan(step, jnp.zeros(start), keys)[0]  # noqa: E731
    return np.asarray(jax.jit(run, compiler_options=COMPUTES_MORE)())


def test_langevin_steps_on_a_quadratic_energy_reach_its_gaussian():
    mean, var = np.float32([1, -2, 0.5]), np.float32([0.25, 1, 4])
    slope = lambda z: (z - mean[None]) / var[None]  # noqa: E731
    z = walk(slope, (20_000, 3), 800, 0.05)
    # The step's own stationary variance, of z' = (1 - c) z + N(0, alpha) with c = alpha / 2 var.
    exact = 0.05 / (1 - (1 - 0.025 / var) ** 2)
    np.testing.assert_allclose(exact, var, rtol=0.06)
    np.testing.assert_allclose(z.mean(0), mean, atol=4 * 2 / 20_000**0.5)
    np.testing.assert_allclose(z.var(0), exact, rtol=4 * (2 / 20_000) ** 0.5)


def test_langevin_steps_on_a_double_well_reach_its_moments_by_integration():
    grid = np.linspace(-4, 4, 8001)
    density = np.exp(-((grid**2 - 1) ** 2) - 0.3 * grid)
    density /= density.sum()
    z = walk(lambda z: 4 * z * (z**2 - 1) + 0.3, (20_000, 1), 2000, 0.01)[:, 0]
    np.testing.assert_allclose(z.mean(), (grid * density).sum(), atol=0.03)
    np.testing.assert_allclose((z**2).mean(), (grid**2 * density).sum(), rtol=0.03)
    np.testing.assert_allclose((z < 0).mean(), density[grid < 0].sum(), atol=0.02)


def test_langevin_at_a_low_price_is_plain_diffusion_unless_given_the_latents_size():
    draw = functools.partial(langevin, (400, 64), 1e-4)
    z = draw()
    assert z.std() == pytest.approx((1 + 200 * 0.01) ** 0.5, rel=0.02)
    assert (z**4).mean() / (z**2).mean() ** 2 == pytest.approx(3, abs=0.15)  # a Gaussian's
    for scale in (0.4, 2.0):  # both outside the floor: a Laplace density
        z = draw(steps=1000, alpha=0.1, scale=scale)
        assert np.abs(z).mean() == pytest.approx(scale, rel=0.05)
        assert z.std() == pytest.approx(2**0.5 * scale, rel=0.05)
        assert (z**4).mean() / (z**2).mean() ** 2 == pytest.approx(6, abs=0.7)


def test_langevin_at_a_small_size_has_the_moments_of_the_density_below_the_floor():
    z = langevin((400, 64), 1e-4, steps=1000, alpha=0.1, scale=0.1)
    grid = np.linspace(-2.8, 2.8, 56_001)  # |z|^2 < sqrt(64): every dimension on its own
    density = np.exp(grid**2 - np.abs(grid) / 0.1)
    density /= density.sum()
    assert np.square(z).sum(-1).max() < 8
    np.testing.assert_allclose(np.abs(z).mean(), (np.abs(grid) * density).sum(), rtol=0.05)
    np.testing.assert_allclose(np.square(z).mean(), (grid**2 * density).sum(), rtol=0.08)


def test_a_size_that_is_not_positive_is_an_error():
    with pytest.raises(ValueError, match="scale: expected a positive number or None, got 0"):
        latents.langevin(jax.random.key(0), (4, 4), 1e-4, scale=0)

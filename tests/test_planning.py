"""Planners where the best plan is known, and the promises that they all make."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lawm_jax as lawm
from lawm_jax.plan import planners

PLANNERS = {
    "cem": functools.partial(planners.cem, samples=500, elites=50, iterations=20),
    "icem": functools.partial(planners.icem, samples=1000, elites=30, exponent=1.0, decay=1.05),
    "mppi": functools.partial(planners.mppi, samples=2000, iterations=30),
    "gradient": planners.gradient,
    "cem_gradient": functools.partial(planners.cem_gradient, steps=60),
}
each_planner = pytest.mark.parametrize("name", PLANNERS)

# x_t+1 = x_t + B u_t from x_0 = 0, and a price on u: one minimum, known in closed form (ridge
# regression). T = 3 and U = 2.
B, GOAL, PRICE = np.array([[1.0, 0.5], [0.0, 1.0]], np.float32), np.array([0.6, -0.4]), 0.1
ZEROS, ONES = jnp.zeros((3, 2)), jnp.ones((3, 2))


def cost_of(goal):
    def cost(plans):  # without a matrix product, whose rounding depends on the number of plans
        reached = (plans[:, :, None] * B[None, None]).sum((1, 3))
        return jnp.square(reached - goal[None]).sum(-1) + PRICE * jnp.square(plans).sum((1, 2))

    return cost


cost = cost_of(jnp.array(GOAL, jnp.float32))


def best(goal=GOAL):
    """Solves for the cheapest plan [3, 2] in float64, and its cost."""
    A = np.tile(B.astype(np.float64), (1, 3))
    plan = np.linalg.solve(A.T @ A + PRICE * np.eye(6), A.T @ goal)
    return plan.reshape(3, 2), np.square(A @ plan - goal).sum() + PRICE * np.square(plan).sum()


@functools.cache
def compiled(name):
    """Returns the jitted function (key, mean, goal) -> plan, cost."""
    return jax.jit(lambda key, mean, goal: PLANNERS[name](cost_of(goal), key, mean, ONES))


def run(name, seed=0):
    return compiled(name)(jax.random.key(seed), ZEROS, jnp.array(GOAL, jnp.float32))


def is_optimal(plan, value, tolerance):
    """Checks a plan and its cost against the closed form."""
    expected, least = best()
    np.testing.assert_allclose(plan, expected, atol=tolerance)
    assert value == pytest.approx(least, abs=tolerance / 10)
    assert value == pytest.approx(float(cost(plan[None])[0]), abs=1e-6)


@each_planner
def test_a_planner_finds_the_plan_that_reaches_a_goal_in_linear_dynamics(name):
    # MPPI's Gaussian keeps its width: its mean is as good as the weighted candidates' number.
    is_optimal(*run(name), 0.15 if name == "mppi" else 0.02)


def test_cem_finds_it_with_momentum_too():
    plan = functools.partial(PLANNERS["cem"], iterations=30, momentum=0.3)
    is_optimal(*plan(cost, jax.random.key(0), ZEROS, ONES), 0.02)


@each_planner
def test_the_same_key_gives_the_same_plan_and_another_key_another(name):
    plan = run(name)[0]
    np.testing.assert_array_equal(run(name)[0], plan)
    if name != "gradient":  # from its first start, the mean, it finds the only minimum
        assert np.any(run(name, 1)[0] != plan)


@each_planner
def test_a_plan_keeps_to_its_bounds_and_is_the_best_within_them(name):
    # Without a goal for the sum, the best plan is the target itself, cut off at the bounds.
    target = np.array([[0.8, -0.9], [0.1, 0.2], [-0.7, 0.9]], np.float32)
    low, high = np.array([-0.5, -0.25]), np.array([0.25, 0.5])
    seen = []

    def cost(plans):
        jax.debug.callback(lambda x: seen.append((x.min((0, 1)), x.max((0, 1)))), plans)
        return jnp.square(plans - target[None]).sum((1, 2))

    plan, _ = PLANNERS[name](cost, jax.random.key(0), ZEROS, ONES, low=low, high=high)
    jax.effects_barrier()
    np.testing.assert_allclose(
        plan, np.clip(target, low, high), atol=0.2 if name == "mppi" else 0.02
    )
    assert np.all(np.min([x for x, _ in seen], 0) >= low)
    assert np.all(np.max([x for _, x in seen], 0) <= high)


@each_planner
def test_a_plan_is_never_worse_than_the_mean_the_search_started_from(name):
    few = {"samples": 20, "elites": 5, "iterations": 2}
    accepted = inspect.signature(getattr(planners, name)).parameters
    few = {key: value for key, value in few.items() if key in accepted}
    square = lambda plans: jnp.square(plans).sum((1, 2))  # noqa: E731
    plan, value = PLANNERS[name](square, jax.random.key(0), ZEROS, ONES, **few)
    assert value == 0 and not np.any(plan)


@each_planner
def test_costs_that_are_not_numbers_are_never_chosen(name):
    holes = lambda plans: jnp.where(plans[:, 0, 0] > 0.1, jnp.nan, cost(plans))  # noqa: E731
    plan, value = PLANNERS[name](holes, jax.random.key(0), ZEROS, ONES)
    assert np.isfinite(value) and plan[0, 0] <= 0.1
    assert value < 0.5 * float(cost(ZEROS[None])[0])


def square(plans):
    target = jnp.array([[0.5, -0.5], [0.2, 0.3], [-0.4, 0.1]], jnp.float32)
    return jnp.square(plans - target[None]).sum((1, 2))


@functools.cache
def one_program(name, low, high, *costs):
    """Returns the jitted function (which of the costs, key, mean, std) -> plan, cost."""

    def run(which, key, mean, std):
        cost = lambda plans: jax.lax.switch(which, costs, plans)  # noqa: E731
        return getattr(planners, name)(cost, key, mean, std, low=low, high=high)

    return jax.jit(run)


PENALTIES = jnp.inf, jnp.nan, 1e6, 1e30
PENALISED = [  # on half of all plans, and on the mean that searches start from
    lambda x, p=p: jnp.where(x[:, 0, 0] < 0.1, jnp.float32(p), square(x)) for p in PENALTIES
]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", PLANNERS)
def test_a_penalty_of_any_size_on_half_of_the_plans_is_as_good_as_infinity(name, bits):
    found = []
    with jax.enable_x64(bits == 64):
        for which in range(len(PENALTIES)):
            run = one_program(name, -1.0, 1.0, *PENALISED)
            plan, value = run(which, jax.random.key(0), jnp.zeros((3, 2)), jnp.ones((3, 2)))
            assert plan.dtype == value.dtype == jnp.float32
            assert np.abs(plan).max() <= 1 and plan[0, 0] >= 0.1
            assert value == pytest.approx(float(square(plan[None])[0]), abs=1e-5)
            found.append(float(value))
    halfway = float(square(jnp.array([[[0.3, -0.2], [0, 0], [0, 0]]]))[0])
    assert max(found) < 0.5 * halfway
    assert found[1] == found[0] and max(found[2:]) <= 1.5 * found[0] + 0.01


def few(plans):
    """Two of a hundred plans, of those that are drawn first."""
    return (plans > -0.1).all((1, 2)) & (plans < 0.55).all((1, 2))


COSTS = {
    "all infinite": lambda x: jnp.full(len(x), jnp.inf),
    "none a number": lambda x: jnp.full(len(x), jnp.nan),
    "all equal": lambda x: jnp.full(len(x), 7.0),
    "minus infinity": lambda x: jnp.where(x[:, 0, 0] < 0.1, -jnp.inf, square(x)),
    "huge": lambda x: 1e30 * square(x),
    "mostly infinite": lambda x: jnp.where(few(x), square(x), jnp.inf),
    "mostly penalised": lambda x: jnp.where(few(x), square(x), 1e30),
}


@pytest.mark.parametrize("name", PLANNERS)
def test_whatever_costs_are_a_plan_is_finite_and_within_its_bounds(name):
    mean, std = jnp.full((3, 2), 0.5), jnp.ones((3, 2))
    first = jnp.clip(mean, -0.2, 0.4)[None]
    for which, (what, cost) in enumerate(COSTS.items()):
        run = one_program(name, -0.2, 0.4, *COSTS.values())
        plan, value = run(which, jax.random.key(0), mean, std)
        assert np.isfinite(plan).all(), what
        assert plan.min() >= np.float32(-0.2) and plan.max() <= np.float32(0.4), what
        if what in ("all infinite", "none a number"):
            assert np.isposinf(value)
            np.testing.assert_array_equal(plan, first[0])
        else:
            assert value <= cost(first)[0], what
        if what.startswith("mostly") or what == "huge":
            assert square(plan[None])[0] < 0.7 * square(first)[0], what


def test_mppis_plan_depends_on_the_order_of_costs_alone():
    orders = [lambda c: c, lambda c: 1e4 * c - 5, jnp.sqrt, lambda c: jnp.exp(2 * c)]
    costs = [lambda x, f=f: f(cost(x)) for f in orders]
    run = one_program("mppi", -np.inf, np.inf, *costs)
    plans = [run(which, jax.random.key(0), ZEROS, ONES)[0] for which in range(len(orders))]
    for plan in plans[1:]:
        np.testing.assert_allclose(plan, plans[0], atol=1e-5)


@pytest.mark.parametrize("name", ["cem", "icem"])
def test_elites_give_their_unbiased_deviation(name):
    # The optimum of 3 x 7 numbers is 2 deviations away: with the biased one the Gaussian narrows
    # before it gets there, and the error is 0.165.
    goals = 2 * jnp.sign(jax.random.normal(jax.random.key(1), (128, 3, 7)))
    plan = getattr(planners, name)
    options = dict(samples=300, elites=10, iterations=15)
    if name == "icem":
        options |= dict(momentum=0.0, exponent=0.0, keep=0.0, decay=1.0)

    def error(key, goal):
        found, _ = plan(
            lambda x: jnp.square(x - goal[None]).sum((1, 2)),
            key,
            jnp.zeros((3, 7)),
            jnp.ones((3, 7)),
            **options,
        )
        return jnp.abs(found - goal).mean()

    errors = jax.jit(jax.vmap(error))(jax.random.split(jax.random.key(0), 128), goals)
    assert errors.mean() <= 0.10


def test_the_next_gaussian_is_that_of_torch_of_the_elites():
    torch = pytest.importorskip("torch")
    seen = []

    def recorded(plans):
        costs = cost(plans)
        jax.debug.callback(lambda *x: seen.append(x), plans, costs, ordered=True)
        return costs

    lawm.cem(recorded, jax.random.key(0), ZEROS, ONES, 50, 10, 2)
    jax.effects_barrier()
    (plans, costs), (later, _) = seen
    elites = torch.tensor(plans[np.argsort(costs)[:10]])
    noise = jax.random.normal(jax.random.split(jax.random.key(0), 2)[1], (49, 3, 2))
    mean, std = elites.mean(0).numpy(), elites.std(0).numpy()
    np.testing.assert_allclose(later[1:], mean + std * np.asarray(noise), atol=1e-5)


def test_one_elite_is_no_reason_for_numbers_that_are_none():
    for name in ("cem", "icem"):
        plan, value = getattr(planners, name)(cost, jax.random.key(0), ZEROS, ONES, 50, 1, 3)
        assert np.isfinite(plan).all() and value <= cost(ZEROS[None])[0]


def test_an_infeasible_mean_of_the_elites_gives_way_to_the_cheapest_plan():
    # Two valleys and nothing between them that is allowed: their mean is not.
    valleys = lambda x: jnp.where(jnp.abs(x[:, 0, 0]) < 0.9, jnp.inf, jnp.square(x).sum((1, 2)))  # noqa: E731
    one = jnp.ones((1, 1))
    plan, value = lawm.cem(valleys, jax.random.key(0), 0 * one, one, 300, 100, 1, average=True)
    assert np.isfinite(value) and abs(plan[0, 0]) >= 0.9


@each_planner
def test_evaluating_in_chunks_changes_nothing(name):
    sizes = []

    def counted(plans):
        sizes.append(len(plans))
        return cost(plans)

    plan, value = PLANNERS[name](counted, jax.random.key(0), ZEROS, ONES, chunk=70)
    assert max(sizes) <= 70
    if name != "icem":  # whose population shrinks by chunks: it evaluates others
        # Rounding may swap neighbours among MPPI's ranks.
        np.testing.assert_allclose(plan, run(name)[0], atol=3e-4 if name == "mppi" else 1e-5)
        assert value == pytest.approx(float(run(name)[1]), abs=1e-6)


def test_icem_without_shrinking_gives_the_same_plan_in_chunks():
    run = functools.partial(planners.icem, cost, jax.random.key(0), ZEROS, ONES, 100, decay=1.0)
    np.testing.assert_allclose(run(chunk=7)[0], run(chunk=1000)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["cem", "gradient"])
def test_ten_times_the_candidates_take_no_more_memory_in_chunks_of_one_size(name):
    weight = jax.random.normal(jax.random.key(1), (2, 500))

    def cost(plans):  # 3 x 500 numbers per candidate, which sorting must hold
        return jnp.square(jnp.sort(plans @ weight, axis=-1)[..., :9]).sum((1, 2))

    def temp(samples, chunk):
        plan = functools.partial(getattr(planners, name), cost, samples=samples, chunk=chunk)
        compiled = jax.jit(plan).lower(jax.random.key(0), ZEROS, ONES).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many, unbounded = temp(100, 20), temp(1000, 20), temp(1000, None)
    assert many - few < 900 * 6 * 4 * 10  # ten numbers for each number of a candidate
    assert many < 0.2 * unbounded


@each_planner
def test_many_tasks_by_vmap_are_the_same_as_one_by_one(name):
    goals = jnp.array([[0.6, -0.4], [0.1, 0.9]])
    keys, means = jax.random.split(jax.random.key(3)), jnp.stack([ZEROS, ZEROS + 0.1])
    plan, value = jax.jit(jax.vmap(compiled(name)))(keys, means, goals)
    for i in range(2):
        alone = compiled(name)(keys[i], means[i], goals[i])
        np.testing.assert_allclose(plan[i], alone[0], atol=1e-4)
        np.testing.assert_allclose(value[i], alone[1], atol=1e-5)


@each_planner
def test_candidates_spread_over_8_devices_give_the_plan_of_1(name, devices):
    mesh = lawm.make_mesh(devices=devices)
    sizes = []

    def seen(plans):
        sizes.append(len(plans))  # of one device, when traced
        return cost(plans)

    spread = planners.spread(seen, mesh)
    plan, value = jax.jit(lambda key: PLANNERS[name](spread, key, ZEROS, ONES))(jax.random.key(0))
    samples = inspect.signature(PLANNERS[name]).parameters["samples"].default
    assert max(sizes) <= -(-samples // 8)
    np.testing.assert_allclose(plan, run(name)[0], atol=1e-4)  # MPPI's softmax enlarges rounding
    np.testing.assert_allclose(value, run(name)[1], atol=1e-5)


def test_each_planner_is_one_scan_that_never_asks_the_host():
    for name, plan in PLANNERS.items():
        text = str(jax.make_jaxpr(lambda key: plan(cost, key, ZEROS, ONES))(jax.random.key(0)))  # noqa: B023
        assert text.count("scan[") == {"cem_gradient": 2, "icem": 2}.get(name, 1), name
        assert "callback" not in text


def test_cem_with_momentum_moves_only_part_of_the_way():
    # One elite and std 0: the next mean is a known mixture of mean and elite.
    means = []

    def cost(plans):
        jax.debug.callback(means.append, plans[0, 0], ordered=True)
        return jnp.square(plans[:, 0, 0] - 5.0)

    draw = lambda momentum: planners.cem(  # noqa: E731
        cost, jax.random.key(0), jnp.zeros((1, 1)), jnp.ones((1, 1)), 50, 1, 2, momentum
    )
    (best_first, _), (mixed, _) = draw(0.0), draw(0.75)
    jax.effects_barrier()
    assert means[0] == means[2] == 0
    assert means[1] == best_first[0, 0] > 1
    np.testing.assert_allclose(means[3], 0.25 * means[1], rtol=1e-6)
    assert mixed[0, 0] >= best_first[0, 0]  # its Gaussian has not collapsed


def test_cem_can_return_the_mean_of_the_elites():
    draws = []

    def seen(plans):
        jax.debug.callback(lambda x, y: draws.append((x, y)), plans, cost(plans))
        return cost(plans)

    plan, value = planners.cem(seen, jax.random.key(0), ZEROS, ONES, 120, 5, 1, average=True)
    jax.effects_barrier()
    candidates, costs = max(draws, key=lambda x: len(x[1]))
    expected = candidates[np.argsort(costs)[:5]].mean(0)
    np.testing.assert_allclose(plan, expected, atol=1e-6)
    assert value == pytest.approx(float(cost(jnp.array(expected)[None])[0]), abs=1e-6)


def test_straight_lines_are_plans_of_their_total():
    line = lambda total: cost(jnp.repeat(total / 3, 3, axis=1))  # noqa: E731
    total, _ = lawm.cem(line, jax.random.key(0), jnp.zeros((1, 2)), jnp.ones((1, 2)))
    expected, _ = best()  # which is straight, as all steps do the same
    np.testing.assert_allclose(total[0], expected.sum(0), atol=0.01)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_icems_noise_has_the_spectrum_of_a_power_law(exponent):
    T, P = 32, 40_000
    noise = np.asarray(planners.colored_noise(jax.random.key(0), (P, T, 1), exponent), np.float64)[
        ..., 0
    ]
    # Sines of frequency k / 2T with random phases and power frequency ** -exponent, and their
    # periodogram in a window of T steps, in closed form.
    frequency = np.arange(1, T + 1) / (2 * T)
    power = np.append(0.5 * frequency[0] ** -exponent, frequency**-exponent)
    power[-1] /= 2  # the two ends have no mirror image
    wave = np.cos(2 * np.pi * np.arange(T)[:, None] * np.append(0, frequency))
    covariance = (wave * power).sum(1) / power.sum()
    covariance = covariance[np.abs(np.arange(T)[:, None] - np.arange(T))]
    rows = np.fft.rfft(np.eye(T), axis=0)
    expected = np.einsum("ki,ij,kj->k", rows, covariance, rows.conj()).real
    got = np.square(np.abs(np.fft.rfft(noise, axis=1))).mean(0)
    np.testing.assert_allclose(got, expected, rtol=0.05)
    np.testing.assert_allclose(noise.var(0), 1, rtol=0.05)
    if exponent <= 1:  # a window leaks little then: the law itself
        slope = np.polyfit(np.log(np.arange(2, T // 2)), np.log(got[2 : T // 2]), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.1)


def test_short_plans_of_icem_are_correlated_in_time_too():
    noise = np.asarray(planners.colored_noise(jax.random.key(0), (20_000, 3, 1), 2.0))[..., 0]
    assert np.corrcoef(noise[:, 0], noise[:, 1])[0, 1] > 0.4


def test_icem_evaluates_a_shrinking_population():
    sizes = []

    def counted(plans):
        jax.debug.callback(lambda x: sizes.append(len(x)), plans)
        return cost(plans)

    run = functools.partial(planners.icem, counted, jax.random.key(0), ZEROS, ONES)
    run(160, 5, 6, decay=2.0)
    jax.effects_barrier()
    assert sum(sizes) == 160 + 80 + 40 + 20 + 10 + 10 and set(sizes) == {10}


def test_icem_keeps_a_share_of_the_elites_among_the_candidates():
    seen = []

    def recorded(plans):
        costs = cost(plans)
        jax.debug.callback(lambda *x: seen.append(x), plans, costs, ordered=True)
        return costs

    run = functools.partial(planners.icem, recorded, jax.random.key(0), ZEROS, ONES)
    run(50, 10, 3, momentum=0.0, keep=0.4, decay=1.0, chunk=50)
    jax.effects_barrier()
    (plans1, costs1), (plans2, costs2), (plans3, _) = seen
    kept = np.argsort(costs1)[:4]
    plans = np.concatenate([plans1[kept], plans2])
    elites = np.argsort(np.concatenate([costs1[kept], costs2]))[:10]
    assert elites.min() < 4  # at least one that stayed is an elite again
    np.testing.assert_allclose(plans3[0], plans[elites].mean(0), atol=1e-6)


def test_gradients_reach_the_optimum_with_far_fewer_calls_of_the_cost():
    calls = []

    def counted(plans):
        jax.debug.callback(lambda x: calls.append(len(x)), plans)
        return cost(plans)

    plan, value = planners.gradient(counted, jax.random.key(0), ZEROS, ONES, 1, 60)
    jax.effects_barrier()
    few = sum(calls)
    assert few == 60
    calls.clear()
    lawm.cem(counted, jax.random.key(0), ZEROS, ONES, 300, 10, 15)
    jax.effects_barrier()
    assert sum(calls) == 300 * 15
    np.testing.assert_allclose(plan, best()[0], atol=0.01)
    assert value == pytest.approx(best()[1], abs=1e-4)


def test_restarts_find_the_better_of_two_valleys():
    # Minima near -1 (cost 0.3 more) and +1; the mean starts in the worse one.
    valleys = lambda plans: (jnp.square(jnp.square(plans) - 1) - 0.15 * plans).sum((1, 2))  # noqa: E731
    mean, std = jnp.full((1, 1), -1.0), jnp.ones((1, 1))
    one, _ = planners.gradient(valleys, jax.random.key(0), mean, std, samples=1)
    many, _ = planners.gradient(valleys, jax.random.key(0), mean, std, samples=16)
    roots = np.roots([4, 0, -4, -0.15]).real
    np.testing.assert_allclose(one[0, 0], roots.min(), atol=0.01)
    np.testing.assert_allclose(many[0, 0], roots.max(), atol=0.01)


def test_refining_by_gradient_improves_on_the_same_cem():
    goals = jnp.array(np.random.default_rng(0).normal(size=(8, 2)), jnp.float32)
    few = dict(samples=50, elites=10, iterations=3)

    def values(planner):
        run = lambda goal: planner(cost_of(goal), jax.random.key(0), ZEROS, ONES, **few)[1]  # noqa: E731
        return np.asarray(jax.vmap(run)(goals)) - [best(np.asarray(goal))[1] for goal in goals]

    rough, fine = values(planners.cem), values(planners.cem_gradient)
    assert np.all(fine <= rough) and fine.mean() < 0.1 * rough.mean()


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient", "cem_gradient"])
def test_wrong_arguments_are_errors_that_say_what_was_expected(name):
    plan = getattr(planners, name)
    run = functools.partial(plan, cost, jax.random.key(0), ZEROS, ONES)
    for wrong, message in (
        (dict(low=1.0, high=-1.0), "low, high: expected a number or 2 numbers, low at most high"),
        (dict(low=np.zeros(3)), "low, high: expected a number or 2 numbers"),
        (dict(chunk=0), "iterations, chunk: expected at least 1, got .* and 0"),
        (dict(iterations=0), "iterations, chunk: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**wrong)
    with pytest.raises(ValueError, match=r"mean, std: expected the same shape \[T, U\]"):
        plan(cost, jax.random.key(0), jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"mean, std: .* got \(3, 2\) and \(3, 1\)"):
        plan(cost, jax.random.key(0), ZEROS, ONES[:, :1])
    with pytest.raises(
        ValueError, match=r"cost: expected a function that returns \[\d+\], got \(\d+, 3\)"
    ):
        plan(lambda plans: plans.sum(-1), jax.random.key(0), ZEROS, ONES)
    if "cem" in name:
        with pytest.raises(ValueError, match="elites: expected 1 to samples - 1 = 9, got 10"):
            run(10, 10)
        with pytest.raises(
            ValueError, match="momentum: expected at least 0 and less than 1, got 1.0"
        ):
            run(momentum=1.0)


@pytest.mark.parametrize(
    "name, wrong, message",
    [
        ("mppi", dict(temperature=0), "samples, temperature: .* got 300 and 0"),
        ("mppi", dict(samples=1), "samples, temperature: .* got 1 and"),
        ("gradient", dict(samples=0), "samples: expected at least 1, got 0"),
        ("gradient", dict(rate=0), "rate: expected a positive number, got 0"),
        ("icem", dict(exponent=-1), "exponent, keep, decay: .* got -1, 0.3 and 1.25"),
        ("icem", dict(keep=2), "exponent, keep, decay: .* got 2.0, 2 and 1.25"),
        ("icem", dict(decay=0.5), "exponent, keep, decay: .* got 2.0, 0.3 and 0.5"),
    ],
)
def test_options_of_one_planner_out_of_range_are_errors(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        getattr(planners, name)(cost, jax.random.key(0), ZEROS, ONES, **wrong)

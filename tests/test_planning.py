"""The cross-entropy method where the best plan is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lawm_jax as lawm


def test_cem_finds_the_plan_that_reaches_a_goal_in_linear_dynamics():
    # x_t+1 = x_t + B u_t; the cost has one minimum, known in closed form (ridge regression).
    B, goal, price = jnp.array([[1.0, 0.5], [0.0, 1.0]]), jnp.array([0.6, -0.4]), 0.1

    def cost(plans):
        reached = jnp.einsum("ij,ptj->pi", B, plans)
        return jnp.square(reached - goal[None]).sum(-1) + price * jnp.square(plans).sum((1, 2))

    zeros = jnp.zeros((3, 2))
    plan, value = jax.jit(lambda key: lawm.cem(cost, key, zeros, zeros + 1, 1000, 100, 30))(
        jax.random.key(0)
    )
    A = np.tile(np.asarray(B), (1, 3))
    best = np.linalg.solve(A.T @ A + price * np.eye(6), A.T @ np.asarray(goal)).reshape(3, 2)
    np.testing.assert_allclose(plan, best, atol=0.02)
    assert value == pytest.approx(float(cost(jnp.asarray(best)[None])[0]), abs=1e-3)


def test_cem_never_returns_a_plan_worse_than_the_mean_it_started_from():
    cost = lambda plans: jnp.square(plans).sum((1, 2))  # noqa: E731
    plan, value = lawm.cem(cost, jax.random.key(0), jnp.zeros((2, 2)), jnp.ones((2, 2)), 20, 5, 2)
    assert value == 0 and not np.any(plan)


def test_cem_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"mean, std: expected one shape \[T, U\]"):
        lawm.cem(lambda p: p, jax.random.key(0), jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match="elites: expected 1 to samples - 1 = 9, got 10"):
        lawm.cem(lambda p: p, jax.random.key(0), jnp.zeros((1, 1)), jnp.ones((1, 1)), 10, 10)

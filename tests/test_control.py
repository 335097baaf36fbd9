"""Rollouts led by real actions, in a world whose answer is known."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawm_jax import latents
from lawm_jax.evaluate import control, metrics, tables

PATTERN = np.random.default_rng(7).normal(size=(2, 4, 8)).astype(np.float32)  # [A, N, D]


class Linear(nn.Module):
    """A forward model of a known world: each latent adds its pattern to the state."""

    @nn.compact
    def __call__(self, s, z, past=(), keep=False):
        s = jnp.broadcast_to(s, (len(z), *s.shape[1:]))
        s = s + jnp.einsum("bta,and->btnd", z, jnp.array(PATTERN))
        return (s, jnp.zeros((1, len(z), 1, 1))) if keep else s


class Oracle(nn.Module):
    """Reads the latents off the states."""

    @nn.compact
    def __call__(self, s):
        moved = (s[:, 1:] - s[:, :-1]).reshape(*s[:, 1:].shape[:2], -1)
        return moved @ jnp.array(np.linalg.pinv(PATTERN.reshape(2, -1)))


class Gain(nn.Module):
    """A controller that gets the size of actions wrong by a factor, 1 being right."""

    gain: float
    actions: int = 2

    def __call__(self, u, s):
        return self.gain * u


@pytest.fixture
def world(tiny):
    """Models of that world with a right and with a wrong controller; states and actions."""

    def make(gain):
        model = dataclasses.replace(
            tiny("none")[0],
            inverse=Oracle(),
            predictor=Linear(),
            latent=latents.Unconstrained(2),
            controller=Gain(gain),
            normalise=False,
        )
        return model, {"predictor": {}, "inverse": {}, "controller": {}}

    random = np.random.default_rng(0)
    u = random.normal(size=(9, 3, 2)).astype(np.float32)
    start = random.normal(size=(9, 1, 4, 8))
    moved = np.einsum("btu,und->btnd", u.cumsum(1), PATTERN)
    s = np.concatenate([start, start + moved], 1).astype(np.float32)
    return {"state": make(1.0), "actions": make(0.5)}, s, u


EPISODES = np.array(list("aabbccdde"))


def test_each_row_is_off_by_what_its_actions_are(world):
    models, s, u = world
    found = {row["name"]: row for row in control.compare(models, s, u, EPISODES, batch=4)}
    names = "copy last frame", "inferred latents", "state", "actions", "state, no action"
    assert tuple(found) == names
    off = np.abs(np.einsum("btu,und->btnd", u.cumsum(1), PATTERN)).mean((2, 3))
    for name, share in zip(names, (1, 0, 0, 0.5, 1), strict=True):
        row, expected = found[name], metrics.interval(share * off.mean(1), EPISODES)
        assert row["error"] == pytest.approx(expected, abs=1e-5)
        steps = [x["mean"] for x in row["rollout"]]
        np.testing.assert_allclose(steps, share * off.mean(0), atol=1e-5)
        if name == "inferred latents":
            assert row["paired"] is None
        else:
            assert row["paired"] == pytest.approx(expected, abs=1e-5)
        gain = metrics.interval((share - 1) * off.mean(1), EPISODES)
        if name == "state, no action":
            assert row["no_action"] is None
        else:
            assert row["no_action"] == pytest.approx(gain, abs=1e-5)
    text = tables.text("panda", control.tables(list(found.values())))
    assert "3 steps ahead" in text and "state, no action" in text


def test_pixels_are_asked_of_every_rollout(world):
    models, s, u = world

    class Seen:
        chosen = np.array([1, 4])

        def measure(self, ahead):
            assert ahead.shape == (2, 3, 4, 8)
            return {"sum": {"mean": float(ahead.sum()), "low": None, "high": None}}

    rows = control.compare(models, s, u, EPISODES, Seen())
    copied = 3 * s[[1, 4], 0].sum()
    assert rows[0]["pixels"]["sum"]["mean"] == pytest.approx(float(copied), rel=1e-4)
    assert all("pixels" in row for row in rows) and "sum distance" in tables.text(
        "", control.tables(rows)
    )


def test_a_model_of_labelled_actions_infers_nothing(world):
    (model, params), s, u = world[0]["state"], *world[1:]
    labelled = dataclasses.replace(model, latent=latents.Labelled(2), inverse=None, controller=None)
    scale = {"mean": jnp.zeros(2), "std": jnp.full(2, 2.0)}  # so it halves all actions
    models = {"labelled": (labelled, params | {"latent": scale})}
    copy, right, none = control.compare(models, s, u, EPISODES)
    assert (right["name"], none["name"]) == ("labelled", "labelled, no action")
    assert right["error"]["mean"] == pytest.approx(0.5 * copy["error"]["mean"], rel=1e-4)
    assert none["error"]["mean"] == pytest.approx(copy["error"]["mean"], rel=1e-4)
    assert right["paired"] is None


def test_what_does_not_fit_is_refused(world):
    models, s, u = world
    for wrong, got in ((None, "None"), (u[:, :2], r"\(9, 2, 2\)")):
        with pytest.raises(ValueError, match=rf"actions: expected \[9, 3, U\], got {got}"):
            control.compare(models, s, wrong, EPISODES)
    model, params = models["state"]
    bare = {"state": (dataclasses.replace(model, controller=None), params)}
    with pytest.raises(ValueError, match="has no controller; train one with configs/controller"):
        control.compare(bare, s, u, EPISODES)
    with pytest.raises(ValueError, match=r"u: expected \[9, 1, 2\]|u: expected \[B, T, 2\]"):
        control.compare(models, s, np.zeros((9, 3, 5), np.float32), EPISODES)
    assert jax.tree.leaves(params) == []

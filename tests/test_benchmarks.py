"""The copy of the network in PyTorch, which benchmarks.planner compares with, is a copy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lawm_jax as lawm
from lawm_jax import world_model
from lawm_jax.nn.controller import Controller

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def pair(tiny):
    """Returns a tiny model with a controller, its parameters, all random, s, u and the copy."""
    from benchmarks import torch_model

    model, params, s = tiny("noisy")
    network = Controller(16, 3, "state", width=24, heads=2)
    drawn = jax.jit(network.init)(jax.random.key(3), jnp.zeros((1, 1, 3)), s[:1, :1])["params"]
    noise = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    model = dataclasses.replace(model, controller=network)
    params = params | {"controller": jax.tree.map(noise, drawn)}
    parts = {key: params[key] for key in ("predictor", "controller")}
    arrays = torch_model.state_dict(parts | {"std": np.full(3, 0.5, np.float32)})
    copy = torch_model.load(torch_model.sizes(model, params), arrays)
    return model, params, s, jax.random.normal(jax.random.key(4), (2, 3, 3)), copy


def tensor(x):
    return torch.tensor(np.asarray(x))


@torch.inference_mode()
def test_the_copy_in_pytorch_predicts_and_acts_as_the_original(pair):
    model, params, s, u, copy = pair
    z = lawm.act(model, params, u, s[:, :3])
    np.testing.assert_allclose(copy.controller(tensor(u), tensor(s[:, :3])), z, atol=1e-4)
    expected = copy.predictor(tensor(s[:, :3]), tensor(z)).numpy()
    np.testing.assert_allclose(lawm.predict(model, params, s[:, :3], z), expected, atol=1e-4)
    assert np.abs(expected - s[:, :3]).max() > 0.1


@torch.inference_mode()
def test_plans_cost_the_same_in_both(pair):
    model, params, s, u, copy = pair
    z = jax.random.normal(jax.random.key(5), (1, 2, 16))
    memory = lawm.remember(model, params, s[:1, :3], z)
    last = world_model.drive(model, params, memory, 0.5 * u)[:, -1]
    expected = np.sqrt(np.square(last - s[1:, 3]).mean((1, 2)))
    shared = {"states": s[:1, :3], "latents": z, "goal": s[1:, 3]}
    shared = {k: tensor(x)[:, None].expand(1, 2, *x.shape[1:]) for k, x in shared.items()}
    found = copy.get_cost(shared, tensor(u)[None])
    np.testing.assert_allclose(found, expected[None], atol=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_what_the_copy_lacks_is_refused(pair):
    from benchmarks import torch_model

    model, params, *_ = pair
    with pytest.raises(ValueError, match="model: expected one of nano's"):
        torch_model.sizes(dataclasses.replace(model, normalise=True), params)

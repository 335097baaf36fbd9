"""configs/lawm.py: every size is a model whose training step fits together."""

import math

import jax
import jax.numpy as jnp
import pytest

from lawm_jax import world_model
from lawm_jax.train import optim
from lawm_jax.train.step import make_state, train_step


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("size", ["tiny", "nano", "base", "large", "huge", "giant"])
def test_the_step_of_every_size_fits_together(get_config, size):
    config = get_config(f"size={size},latent=discrete")
    config.data.batch = 2
    model = world_model.build(config)
    tx, _ = optim.make(config.optim, config.steps)
    c = config.data
    video = jax.ShapeDtypeStruct((2, c.frames, c.size, c.size, 3), jnp.uint8)
    clip = jax.ShapeDtypeStruct((1, c.frames, c.size, c.size, 3), jnp.float32)
    frozen = {"encoder": jax.eval_shape(model.encoder.init, jax.random.key(0), clip)["params"]}
    s = world_model.state_shape(model, frozen["encoder"], video)
    make = lambda key: make_state(model, tx, s, key)  # noqa: E731
    state = jax.eval_shape(make, jax.random.key(0))
    after, metrics = jax.eval_shape(
        lambda *args: train_step(model, tx, *args), frozen, state, {"video": video}
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32
    steps = c.frames // model.encoder.tubelet
    assert s.shape[:3] == (2, steps, (c.size // model.encoder.patch // config.encoder.merge) ** 2)


def test_large_is_the_papers_setting(get_config):
    config = get_config("size=large,latent=noisy")
    assert (config.steps, config.data.batch, config.data.frames) == (30_000, 1024, 16)
    assert (config.data.fps, config.data.size, config.data.resize) == (4.0, 256, 292)
    assert config.latent.dim == 128
    optimiser = config.optim
    assert (optimiser.muon, optimiser.adamw, optimiser.weight_decay) == (0.02, 6.25e-4, 0.04)
    assert (optimiser.warmup, optimiser.final) == (0.1, 0.0)
    model = world_model.build(config)
    s = jax.ShapeDtypeStruct((1, 8, 256, 1024), jnp.float32)
    make = lambda key: world_model.init_dynamics(model, key, s)  # noqa: E731
    params = jax.eval_shape(make, jax.random.key(0))
    D, A = 1024, 128
    block = 12 * D * D + 9 * D  # qkv, proj, fc1, fc2 with their biases
    ends = (D * D + D) * 2 + (A * D + D) + (D * D + D) + (2 * D * D + 2 * D)
    assert count(params["predictor"]) == 24 * (block + 6 * D * D + 6 * D) + ends
    # The IDM: a pair's embedding, 12 blocks with LayerNorms, a norm, a query, its pool, the head.
    idm = (2 * D * D + D) + 12 * (block + 4 * D) + 2 * D + D + (2 * D * D + 2 * D)
    assert count(params["inverse"]) == idm + (D * 2 * A + 2 * A)


def test_values_derived_from_others_follow_them(get_config):
    config = get_config("size=large")
    config.data.size = 384
    assert config.data.resize == 438


@pytest.mark.parametrize("arg", ["size=small", "latent=vague", "width=3"])
def test_a_wrong_argument_is_answered_with_the_right_ones(get_config, arg):
    with pytest.raises(ValueError, match="expected .*size"):
        get_config(arg)

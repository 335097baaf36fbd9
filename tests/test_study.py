"""Claims that take minutes of training to show: python -m pytest -m study."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lawm_jax import metrics, world_model
from lawm_jax.data import pipeline
from lawm_jax.training import optim

CONTEXT, AHEAD = 4, 4


def states_and_actions(model, params, config, name, split):
    """Encodes a whole split: states float16 [n, 8, N, D], actions [n, 7, 3], episodes [n]."""
    encode = jax.jit(lambda video: world_model.encode(model, params, video))
    clips = list(pipeline.episodes(config, name, split))
    video = np.stack([clip["video"] for clip in clips])
    s = [np.asarray(encode(video[i : i + 8]), np.float16) for i in range(0, len(video), 8)]
    actions = np.stack([clip["actions"] for clip in clips])
    return np.concatenate(s), actions, np.array([clip["episode"] for clip in clips])


@pytest.mark.study
@pytest.mark.parametrize("name,steps", [("panda", 400), ("nav", 1200)])
def test_a_forward_model_on_true_actions_beats_zero_and_mean_actions_four_steps_ahead(
    name, steps, get_config
):
    config = get_config("size=nano,latent=none")
    config.latent.dim = 3  # the true action stands in for the latent one
    model = world_model.build(config)
    params = {"encoder": world_model.init_encoder(model, None)}
    s, u, _ = states_and_actions(model, params, config, name, "train")
    mean, std = u.mean((0, 1)), u.std((0, 1))
    u = (u - mean) / std
    key = jax.random.key(0)
    params |= world_model.init_trainable(model, key, jax.ShapeDtypeStruct(s.shape, jnp.float32))
    tx, _ = optim.make(config.optim, steps)
    trained, opt = params["predictor"], tx.init(params["predictor"])

    @jax.jit
    def step(trained, opt, s, u):
        def loss(trained):
            s32 = s.astype(jnp.float32)
            predicted = world_model.predict(model, {"predictor": trained}, s32[:, :-1], u)
            return jnp.abs(predicted - s32[:, 1:]).mean()

        updates, opt = tx.update(jax.grad(loss)(trained), opt, trained)
        return optax.apply_updates(trained, updates), opt

    rng = np.random.default_rng(0)
    for _ in range(steps):
        i = rng.integers(0, len(s), 16)
        trained, opt = step(trained, opt, s[i], u[i])

    s, u, episodes = states_and_actions(model, params, config, name, "test")
    true = (u - mean) / std
    assert s.shape[1] == CONTEXT + AHEAD
    future = slice(CONTEXT - 1, None)
    plans = {"true": true, "mean": true.copy(), "zero": true.copy()}
    plans["mean"][:, future] = 0
    plans["zero"][:, future] = -mean / std

    @jax.jit
    def error(s, u):
        s = s.astype(jnp.float32)
        ahead = world_model.rollout(model, {"predictor": trained}, s[:, :CONTEXT], u)
        return jnp.abs(ahead[:, -1] - s[:, -1]).mean((1, 2))

    result = {}
    for plan, u in plans.items():
        errors = np.concatenate([error(s[i : i + 16], u[i : i + 16]) for i in range(0, len(s), 16)])
        result[plan] = metrics.interval(errors, episodes)
    copy = np.abs(s[:, CONTEXT - 1].astype(np.float32) - s[:, -1]).mean((1, 2))
    print(name, json.dumps(result | {"copy": metrics.interval(copy, episodes)}))
    assert result["true"]["high"] < result["mean"]["low"]
    assert result["true"]["high"] < result["zero"]["low"]

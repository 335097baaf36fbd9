"""Claims that take minutes of training to show: python -m pytest -m study."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lawm_jax import world_model
from lawm_jax.data import pipeline
from lawm_jax.evaluate import metrics
from lawm_jax.train import optim

CONTEXT, T = 4, 8  # the last steps of a clip are predicted, open loop


def whole_episodes(model, params, config, name, split):
    """Encodes the episodes of a split: states float16 [n, 64, N, D], actions [n, 63, 3]."""
    encode = jax.jit(lambda video: world_model.encode(model, params, video[None])[0])
    episodes = list(pipeline.episodes(config, name, split))
    s = np.stack([np.asarray(encode(episode["video"]), np.float16) for episode in episodes])
    return s, np.stack([episode["actions"] for episode in episodes])


@pytest.mark.study
@pytest.mark.parametrize("name,steps", [("panda", 300), ("nav", 1500)])
def test_a_forward_model_on_true_actions_beats_zero_and_mean_actions_four_steps_ahead(
    name, steps, get_config
):
    config = get_config("size=nano,latent=none")
    config.latent.dim = 3  # the true action stands in for the latent one
    config.data.frames = 64
    model = world_model.build(config)
    params = {"encoder": world_model.init_encoder(model, None)}
    s, u = whole_episodes(model, params, config, name, "train")
    mean, std = u.mean((0, 1)), u.std((0, 1))
    u = (u - mean) / std
    key = jax.random.key(0)
    params |= world_model.init_dynamics(
        model, key, jax.ShapeDtypeStruct((1, T, *s.shape[2:]), jnp.float32)
    )
    tx, _ = optim.make(config.optim, steps)
    trained, opt = params["predictor"], tx.init(params["predictor"])

    @jax.jit
    def step(trained, opt, s, u):
        def loss(trained):
            s32 = s.astype(jnp.float32)
            params = {"predictor": trained}
            forced = world_model.predict(model, params, s32[:, :-1], u)
            # V-JEPA 2-AC's loss: the model's own predictions fed back count as much.
            ahead = world_model.rollout(model, params, s32[:, :CONTEXT], u)
            forced, ahead = jnp.abs(forced - s32[:, 1:]), jnp.abs(ahead - s32[:, CONTEXT:])
            return forced.mean() + ahead.mean()

        updates, opt = tx.update(jax.grad(loss)(trained), opt, trained)
        return optax.apply_updates(trained, updates), opt

    rng = np.random.default_rng(0)
    for _ in range(steps):
        i, t = rng.integers(0, len(s), (16, 1)), rng.integers(0, 64 - T + 1, (16, 1))
        trained, opt = step(
            trained, opt, s[i, t + np.arange(T)[None]], u[i, t + np.arange(T - 1)[None]]
        )

    s, u = whole_episodes(model, params, config, name, "test")
    s = s.reshape(-1, T, *s.shape[2:])  # eight clips an episode
    episodes = np.repeat(np.arange(len(u)), 64 // T)
    true = np.stack([((u - mean) / std)[:, t : t + T - 1] for t in range(0, 64, T)], axis=1)
    true = true.reshape(-1, T - 1, 3)
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

"""The world model of labelled actions: the forward model on standardised real actions."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from conftest import ROOT

import lawm_jax as lawm
from lawm_jax import world_model
from lawm_jax.data import catalog
from lawm_jax.evaluate import (
    ablation,
    batched,
    content,
    context,
    leakage,
    pictures,
    prediction,
    sampling,
    scene,
    transfer,
)
from lawm_jax.evaluate import run as evaluate_run
from lawm_jax.train import loop, objectives, optim
from lawm_jax.train.step import make_state, train_step

MINI = ROOT / "lawm_jax" / "assets" / "lawm_mini"
map_actions = jax.jit(lawm.map_actions, static_argnums=0)
predict = jax.jit(lawm.predict, static_argnums=0)
MEAN, STD = np.float32([1.0, -2.0]), np.float32([0.1, 3.0])


@pytest.fixture(scope="module")
def labelled(labelled_config):
    """Returns a model of 2 real actions, and parameters for states [B, T, 4, 32]."""
    config = labelled_config("size=tiny")
    config.latent.dim = 2
    model = lawm.build(config)
    s = jax.ShapeDtypeStruct((1, 3, 4, 32), jnp.float32)
    init = functools.partial(world_model.init_dynamics, model, s=s)
    params = jax.jit(init)(jax.random.key(0))
    objective = objectives.OBJECTIVES["world_model"]
    return model, objective.standardise(model, params, {"mean": MEAN, "std": STD}, None)


def draw(random, count):
    """A pattern [count, 3, 4, 32] that moves as actions [count, 2, 2] say."""
    u = random.normal(MEAN, STD, (count, 2, 2))
    pattern = np.random.default_rng(9).normal(size=(2, 4, 32))
    place = np.concatenate([random.normal(size=(count, 1, 2)), (u - MEAN) / STD], 1).cumsum(1)
    s = np.einsum("btu,und->btnd", place, pattern)
    return {"states": s.astype(np.float32), "actions": u.astype(np.float32)}


def test_its_latents_are_the_standardised_actions(labelled):
    model, params = labelled
    batch = draw(np.random.default_rng(0), 3)
    u, s = batch["actions"], batch["states"][:, :-1]
    z = map_actions(model, params, u, s)
    np.testing.assert_allclose(z, (u - MEAN) / STD, rtol=1e-5, atol=1e-5)
    same, cost = model.latent.restrict(params["latent"], jnp.array(u))
    np.testing.assert_allclose(same, z, rtol=1e-6)
    assert cost.shape == (3, 2) and not cost.any()


def test_it_has_no_inverse_model(labelled):
    model, params = labelled
    assert model.inverse is None and params.keys() == {"predictor", "latent"}


def test_untrained_it_copies_the_last_frame_whatever_the_action(labelled):
    model, params = labelled
    s = draw(np.random.default_rng(0), 3)["states"]
    for u in (np.zeros((3, 3, 2)), np.ones((3, 3, 2))):
        z = map_actions(model, params, u.astype(np.float32), s)
        np.testing.assert_array_equal(predict(model, params, s, z), s)


@pytest.fixture(scope="module")
def learned(labelled, labelled_config):
    """Trains it for 150 steps on the moving pattern."""
    model, params = labelled
    tx, _ = optim.make(labelled_config("size=tiny").optim, 150)
    s = jax.ShapeDtypeStruct((1, 3, 4, 32), jnp.float32)
    make = jax.jit(functools.partial(make_state, model, tx, s))
    state = make(jax.random.key(0)) | {"params": params}
    step = jax.jit(functools.partial(train_step, model, tx, {}))
    random = np.random.default_rng(0)
    for _ in range(150):
        state, _ = step(state, draw(random, 32))
    return model, state["params"]


def test_what_it_learns_it_learns_from_the_true_actions(learned):
    model, params = learned
    batch = draw(np.random.default_rng(1), 128)
    s, u = batch["states"], batch["actions"]
    loss = jax.jit(functools.partial(lawm.loss, model))
    true = loss(params, s, jax.random.key(0), u)[1]
    wrong = loss(params, s, jax.random.key(0), np.roll(u, 1, axis=0))[1]
    assert true["error"] < 0.3 * true["copy"] and true["cost"] == 0
    assert wrong["error"] > true["copy"]


def test_training_leaves_the_measured_scale_alone(learned):
    _, params = learned
    np.testing.assert_array_equal(params["latent"]["mean"], MEAN)
    np.testing.assert_array_equal(params["latent"]["std"], STD)


def test_it_refuses_what_it_cannot_know(labelled):
    model, params = labelled
    batch = draw(np.random.default_rng(0), 3)
    s, u = batch["states"], batch["actions"]
    with pytest.raises(ValueError, match="uses labeled actions, .*`map_actions`"):
        lawm.infer_actions(model, params, s)
    with pytest.raises(ValueError, match="'labelled' have no distribution"):
        lawm.sample_actions(model, params, jax.random.key(0), (3, 2))
    for wrong in (None, u[:, :1], u[..., :1]):
        with pytest.raises(ValueError, match=r"u: expected \[3, 2, 2\], got"):
            lawm.loss(model, params, s, jax.random.key(0), wrong)
    with pytest.raises(ValueError, match=r"u: expected \[B, T, 2\], got"):
        lawm.map_actions(model, params, u[..., :1], s[:, :-1])
    for wrong in (s, s[:, :-1, 0], s[:, :-1, :, :8]):
        with pytest.raises(ValueError, match=r"s: expected \[3 or 1, 2, N, 32\], got"):
            lawm.map_actions(model, params, u, wrong)


def test_other_models_do_not_look_at_real_actions(tiny):
    model, params, s = tiny("noisy")
    key, u = jax.random.key(0), jnp.ones((2, 3, 3))
    loss = jax.jit(lawm.loss, static_argnums=0)
    assert loss(model, params, s, key, u)[0] == loss(model, params, s, key)[0]


@pytest.mark.parametrize("size", ["tiny", "nano", "large"])
def test_the_configs_are_those_of_the_forward_model(get_config, labelled_config, size):
    config, other = labelled_config(f"size={size}"), get_config(f"size={size}")
    assert config.predictor == other.predictor and "inverse" not in config
    config.encoder.update(weights="", dtype="float32")
    model = lawm.build(config)
    c = config.data
    video = jax.ShapeDtypeStruct((1, c.frames, c.size, c.size, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda key: lawm.init(model, key, video), jax.random.key(0))
    s = world_model.state_shape(model, shapes["encoder"], video)
    assert s.shape[1] == c.frames  # one step per frame
    u = jax.ShapeDtypeStruct((1, c.frames - 1, 3), jnp.float32)
    value, _ = jax.eval_shape(
        lambda p, s, u: lawm.loss(model, p, s, jax.random.key(0), u), shapes, s, u
    )
    assert value.shape == ()


@pytest.mark.parametrize("arg", ["size=huge", "source=mars", "width=3"])
def test_a_wrong_argument_is_answered_with_the_right_ones(labelled_config, arg):
    with pytest.raises(ValueError, match="expected .*size"):
        labelled_config(arg)


@pytest.fixture(scope="module")
def run(tmp_path_factory, labelled_config, one_device):
    """Trains the tiny one for 4 steps on the walks; returns its folder and config."""
    config = labelled_config("size=tiny,source=nav")
    config.update(steps=4, log_every=1)
    folder = tmp_path_factory.mktemp("runs") / "labelled"
    loop.fit(config, str(folder))
    return folder, config


def test_the_same_loop_trains_it_and_stores_its_measures(run):
    folder, _ = run
    logged = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 4 and logged[0]["error"] == pytest.approx(logged[0]["copy"])
    model, params = lawm.load(folder)
    measured = json.loads((MINI / "nav" / "statistics.json").read_text())["actions"]
    np.testing.assert_allclose(params["latent"]["mean"], measured["mean"], rtol=1e-6)
    np.testing.assert_allclose(params["latent"]["std"], measured["std"], rtol=1e-6)
    s = jax.random.normal(jax.random.key(0), (1, 2, 4, 448))
    mean = jnp.array(measured["mean"]).reshape(1, 1, 3)
    z = map_actions(model, params, jnp.concatenate([mean, mean + 0.1], 1), s)
    expected = [[0, 0, 0], 0.1 / np.array(measured["std"])]
    np.testing.assert_allclose(z[0], expected, rtol=1e-4, atol=1e-5)


def test_evaluations_give_it_the_actions_of_the_clips(run):
    folder, _ = run
    model, params = lawm.load(folder)
    random = np.random.default_rng(0)
    s = random.normal(size=(5, 4, 4, 448)).astype(np.float32)
    u = random.normal(size=(5, 3, 3)).astype(np.float32)
    functions = batched.batched(model, params, batch=2, actions=u)
    z = functions.infer(s)
    np.testing.assert_allclose(z, map_actions(model, params, u, s[:, :-1]), atol=1e-6)
    _, row = prediction.compare({"labelled": functions}, s, np.array(list("aabbc")))
    expected = np.abs(predict(model, params, s[:, :-1], z) - s[:, 1:]).mean()
    assert row["error"]["mean"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="s: expected"):
        functions.infer(s[:, :3])  # other clips have other actions


def test_it_joins_the_comparison_where_its_actions_are_those_of_the_source(run, get_config):
    folder, _ = run
    config = get_config("size=tiny")
    main = lawm.build(config)
    loaded = {"noisy": (main, {}), "labelled": lawm.load(folder)}
    known = lambda name: list(evaluate_run.comparable(name, loaded, {"labelled": folder}))  # noqa: E731
    assert known("nav") == ["noisy", "labelled"] and known("panda") == ["noisy"]
    loaded["noisy"] = dataclasses.replace(main, repeat=True), {}
    assert known("nav") == ["noisy"]


def test_questions_that_need_an_inverse_model_are_not_asked_of_it(
    run, tmp_path, capsys, monkeypatch
):
    few = functools.partial(context.clips.held_out, most=8)
    monkeypatch.setattr(context.clips, "held_out", few)
    folder, config = run
    config = ml_collections.ConfigDict(config.to_dict())
    assert catalog.names(config) == ["nav"]
    asked = context.Source(config, "nav", {"labelled": lawm.load(folder)}, str(tmp_path))
    names = [row["name"] for row in prediction.run(asked)]
    assert names == ["copy last frame", "labelled", "decoder alone"]
    evaluate_run.explain_skipped(asked, ["prediction", "leakage", "pictures"])
    text = "nav: skipping leakage and pictures, since real actions are known only for unmodified"
    assert text in capsys.readouterr().out
    assert leakage.run(asked) is None and transfer.run(asked) is None
    assert content.run(asked) == [] and scene.run(asked) is ablation.run(asked) is None
    assert sampling.run(asked) is None
    pictures.draw(asked)
    assert not list(tmp_path.iterdir())

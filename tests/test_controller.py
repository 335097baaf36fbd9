"""Controllers: what they see, what they learn, and their place in a model."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from conftest import ROOT, write_run

import lawm_jax as lawm
from lawm_jax import latents, world_model
from lawm_jax.nn.controller import Controller, unscaled
from lawm_jax.train import checkpoints, loop, models, objectives, optim, rundir
from lawm_jax.train.step import make_state, train_step

MINI = ROOT / "lawm_jax" / "assets" / "lawm_mini"
map_actions = jax.jit(lawm.map_actions, static_argnums=0)
predict = jax.jit(lawm.predict, static_argnums=0)
CONTROLLER = objectives.OBJECTIVES["controller"]
BY_PREDICTION = objectives.OBJECTIVES["controller_by_prediction"]
SHORT = {"steps": 6, "log_every": 1, "checkpoint_every": 3}


def controller(kind, features=5, actions=3):
    return Controller(features, actions, kind, width=16, heads=2)


def drawn(kind, **options):
    """Returns a controller, its parameters, all of them random, and u and s of 2 clips."""
    network = controller(kind, **options)
    u = jax.random.normal(jax.random.key(1), (2, 3, network.actions))
    s = jax.random.normal(jax.random.key(2), (2, 3, 4, 8))
    params = jax.jit(network.init)(jax.random.key(0), u, s)["params"]
    noise = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    return network, jax.tree.map(noise, params), u, s


@pytest.mark.parametrize("kind", ["state", "actions"])
def test_a_controller_sees_its_own_steps_action_and_state_only(kind):
    network, params, u, s = drawn(kind)
    steps = lambda u, s: network.apply({"params": params}, u, s).sum(2)  # noqa: E731
    by_action, by_state = jax.jit(jax.jacrev(steps, argnums=(0, 1)))(u, s)
    own = np.eye(6, dtype=bool)  # clip and step
    by_action = np.abs(by_action).max(-1).reshape(6, 6)
    by_state = np.abs(by_state).max((-1, -2)).reshape(6, 6)
    assert (by_action[~own] == 0).all() and by_action[own].min() > 1e-4
    if kind == "actions":
        assert (by_state == 0).all()
    else:
        assert (by_state[~own] == 0).all() and by_state[own].min() > 1e-4


@pytest.mark.parametrize("kind", ["state", "actions"])
def test_latents_are_float32_one_for_each_action(kind):
    network, params, u, s = drawn(kind)
    z = jax.jit(network.apply)({"params": params}, u, s)
    assert z.shape == (2, 3, 5) and z.dtype == jnp.float32
    half = jax.jit(network.clone(dtype=jnp.bfloat16).apply)({"params": params}, u, s)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, z, atol=0.1)
    assert not np.array_equal(half, z)


@pytest.mark.parametrize("kind", ["state", "actions"])
def test_a_state_that_all_share_counts_as_one_for_each(kind):
    network, params, u, s = drawn(kind)
    run = jax.jit(lambda u, s: network.apply({"params": params}, u, s))
    z = run(u, s[:1])
    for i in range(2):
        np.testing.assert_allclose(z[i], run(u[i : i + 1], s[:1])[0], atol=1e-6)
    assert np.abs(z[0] - z[1]).max() > 0.01


def test_where_a_token_lies_in_the_image_counts():
    network, params, u, s = drawn("state")
    apply = jax.jit(network.apply)
    z = apply({"params": params}, u, s)
    assert np.abs(apply({"params": params}, u, s[:, :, ::-1]) - z).max() > 1e-3


def test_actions_and_latents_may_come_in_any_units():
    network, params, u, s = drawn("state")
    scale = params["scale"]
    apply = jax.jit(network.apply)
    z = apply({"params": params}, u, s)
    centimetres = scale | {key: 100 * scale[key] for key in ("action_mean", "action_std")}
    same = apply({"params": params | {"scale": centimetres}}, 100 * u, s)
    np.testing.assert_allclose(same, z, atol=1e-4)
    half = scale | {key: scale[key] / 2 for key in ("latent_mean", "latent_std")}
    np.testing.assert_allclose(apply({"params": params | {"scale": half}}, u, s), z / 2)


class Oracle(nn.Module):
    """An inverse model that knows: a move in the world, as the camera sees it."""

    def __call__(self, s):
        turned = s[:, :-1, 0, 2:3]  # 1 or -1: which way the camera looks
        moved = s[:, 1:, 0, :2] - s[:, :-1, 0, :2]
        return turned * moved @ jnp.array([[0.3, -0.1, 0.2], [0.1, 0.2, 0.0]]) + 0.05


class Forward(nn.Module):
    """The forward model that fits `Oracle`: it moves what the camera sees moving."""

    def __call__(self, s, z, caches=(), keep=False):
        back = jnp.linalg.pinv(jnp.array([[0.3, -0.1, 0.2], [0.1, 0.2, 0.0]]))
        s = jnp.asarray(s).at[:, :, 0, :2].add(s[:, :, 0, 2:3] * ((z - 0.05) @ back))
        return (s, ()) if keep else s


def world(random, count):
    """States [count, 3, 4, 8] of something that actions [count, 2, 2] move, seen by a camera."""
    u = random.normal([2.0, -1.0], [0.5, 3.0], (count, 2, 2))
    s = random.normal(size=(count, 3, 4, 8)) * 0.3
    place = np.concatenate([np.zeros((count, 1, 2)), u.cumsum(1)], 1)
    s[:, :, 0, :2] = place
    s[:, :, :, 2] = random.choice([-1, 1], (count, 1, 1))
    return {"states": s.astype(np.float32), "actions": u.astype(np.float32)}


@pytest.fixture(scope="module")
def learned(tiny, controller_config):
    """Trains a controller of each kind in that world; returns of each the error on new clips, and
    its parameters before and after."""
    random, test = np.random.default_rng(0), world(np.random.default_rng(1), 256)
    actions = {"mean": jnp.array([2.0, -1.0]), "std": jnp.array([0.5, 3.0])}
    base, settings = tiny("none")[0], controller_config("size=tiny")
    tx, _ = optim.make(settings.optim.to_dict() | {"adamw": 4e-3}, 200)
    batches = jax.tree.map(lambda *x: np.stack(x), *[world(random, 32) for _ in range(200)])
    found = {}
    for kind in ("state", "actions"):
        model = dataclasses.replace(
            base,
            predictor=None,
            inverse=Oracle(),
            latent=latents.Unconstrained(3),
            controller=Controller(3, 2, kind, width=32, heads=2),
        )
        frozen = {"encoder": {}, "inverse": {}}
        s = jax.ShapeDtypeStruct((1, 3, 4, 8), jnp.float32)
        make = functools.partial(make_state, model, tx, s, objective=CONTROLLER)
        state = jax.jit(make)(jax.random.key(0))
        first = jax.tree.map(lambda x: x[0], batches)
        inputs = functools.partial(CONTROLLER.inputs, model, frozen, first)
        params = CONTROLLER.standardise(model, state["params"], actions, inputs)
        state |= {"params": params}
        step = functools.partial(train_step, model, tx, frozen, objective=CONTROLLER)
        state, _ = jax.jit(functools.partial(jax.lax.scan, step))(state, batches)
        inputs = CONTROLLER.inputs(model, frozen, test)
        loss = jax.jit(functools.partial(CONTROLLER.loss, model))
        measured = loss(state["params"], frozen, inputs, None)[1]
        found[kind] = (
            {key: float(value) for key, value in measured.items()},
            params,
            state["params"],
        )
    return found


def test_only_a_controller_that_sees_the_state_learns_what_depends_on_it(learned):
    state, actions = (learned[kind][0] for kind in ("state", "actions"))
    assert state["mean_latent"] == actions["mean_latent"] == pytest.approx(1, abs=0.2)
    assert state["error"] < 0.05
    # Of +x and -x with equal odds no guess is better than 0.
    assert actions["error"] > 0.9


def test_training_leaves_the_measured_scale_alone(learned):
    _, before, after = learned["state"]
    scale = before["controller"]["scale"]
    jax.tree.map(np.testing.assert_array_equal, scale, after["controller"]["scale"])
    z = np.asarray(Oracle()(world(np.random.default_rng(0), 32)["states"])).reshape(-1, 3)
    np.testing.assert_allclose(scale["latent_mean"], z.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scale["latent_std"] ** 2, z.var(0).mean(), rtol=1e-4)


def test_a_controller_by_prediction_learns_what_the_forward_model_needs(tiny, controller_config):
    random, test = np.random.default_rng(0), world(np.random.default_rng(1), 256)
    model = dataclasses.replace(
        tiny("none")[0],
        predictor=Forward(),
        inverse=Oracle(),
        latent=latents.Unconstrained(3),
        controller=Controller(3, 2, "state", width=32, heads=2),
    )
    frozen = {"encoder": {}, "inverse": {}, "predictor": {}}
    tx, _ = optim.make(controller_config("size=tiny").optim.to_dict() | {"adamw": 4e-3}, 300)
    batches = jax.tree.map(lambda *x: np.stack(x), *[world(random, 32) for _ in range(300)])
    s = jax.ShapeDtypeStruct((1, 3, 4, 8), jnp.float32)
    make = functools.partial(make_state, model, tx, s, objective=BY_PREDICTION)
    state = jax.jit(make)(jax.random.key(0))
    actions = {"mean": jnp.array([2.0, -1.0]), "std": jnp.array([0.5, 3.0])}
    first = jax.tree.map(lambda x: x[0], batches)
    inputs = functools.partial(BY_PREDICTION.inputs, model, frozen, first)
    state |= {"params": BY_PREDICTION.standardise(model, state["params"], actions, inputs)}
    step = functools.partial(train_step, model, tx, frozen, objective=BY_PREDICTION)
    state, _ = jax.jit(functools.partial(jax.lax.scan, step))(state, batches)
    inputs = BY_PREDICTION.inputs(model, frozen, test)
    loss = jax.jit(functools.partial(BY_PREDICTION.loss, model))
    error, metrics = loss(state["params"], frozen, inputs, None)
    s = test["states"]
    copy = np.abs(s[:, 1:] - s[:, :1]).mean()
    np.testing.assert_allclose(metrics["copy"], copy, rtol=1e-5)

    def rollout(z):  # z(t, state): the latent of step t
        state, errors = s[:, :1], []
        for t in range(2):
            state = Forward().apply({}, state, z(t, state))
            errors.append(np.abs(state[:, 0] - s[:, t + 1]).mean())
        return np.mean(errors)

    best = rollout(lambda t, _: Oracle()(s)[:, t : t + 1])
    assert error - best < 0.05 * (copy - best)
    apply, u = model.controller.apply, test["actions"]
    controller = {"params": state["params"]["controller"]}
    mapped = rollout(lambda t, state: apply(controller, u[:, t : t + 1], state))
    np.testing.assert_allclose(error, mapped, rtol=1e-5)  # the controller sees predicted states


def test_a_controller_by_prediction_starts_from_one_by_latents(
    get_config, controller_config, one_device, tmp_path, capsys
):
    write_run(get_config("size=tiny,latent=noisy"), tmp_path / "model", (3,))
    before, after = tmp_path / "before", tmp_path / "model" / "controller" / "panda"
    given = SHORT | {"model": str(tmp_path / "model")}
    loop.fit(settings(controller_config, "size=tiny", **given), str(before))
    by_prediction = settings(controller_config, "size=tiny,loss=prediction", **given)
    loop.fit(by_prediction, str(tmp_path / "random"))
    assert "by prediction, from random parameters (no --init_from)" in capsys.readouterr().out
    other = tmp_path / "other"
    shutil.copytree(before, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_seed": 1}))
    with pytest.warns(UserWarning, match="trained for a different model, .*in model_seed"):
        loop.fit(by_prediction, str(tmp_path / "warned"), str(other))
    capsys.readouterr()
    loop.fit(by_prediction, str(after), str(before))
    assert "random" not in capsys.readouterr().out.splitlines()[0]
    logged = rows(after)
    assert logged[-1]["error"] < logged[0]["error"] and logged[0]["copy"] > 0
    assert logged[0]["error"] < rows(tmp_path / "random")[0]["error"]
    model, params = lawm.load(tmp_path / "model")
    assert model.controller is not None and model.predictor is not None
    assert checkpoints.Checkpoints(after, write=False).parts(6) == {"controller"}
    expected = lawm.load(after)[1]["controller"]
    jax.tree.map(np.testing.assert_array_equal, params["controller"], expected)
    with pytest.raises(ValueError, match="a world model, got that of a controller_by_prediction"):
        rundir.read_world_model(after)


def test_a_controller_of_codes_is_not_trained_by_prediction(run, controller_config):
    config = settings(controller_config, "size=tiny,loss=prediction", model=str(run))
    with pytest.raises(ValueError, match="objective: expected controller .* discrete latents"):
        objectives.complete(json.loads(config.to_json_best_effort()))


def settings(get, name, **options):
    made = get(name)
    made.update_from_flattened_dict(SHORT | options)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory, get_config, controller_config, one_device):
    """Writes a discrete world model, and trains a controller of it through the command line."""
    folder = tmp_path_factory.mktemp("runs") / "model"
    write_run(get_config("size=tiny,latent=discrete,strength=8"), folder, (3, 6))
    flags = [f"--config.{key}={value}" for key, value in SHORT.items()]
    command = [sys.executable, "-m", "lawm_jax.train", "--config=configs/controller.py:size=tiny"]
    flags += [f"--config.model={folder}", f"--workdir={folder / 'controller' / 'panda'}"]
    command += ["--config.data.mixture.panda=1.0"]
    result = subprocess.run(command + flags, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "x the mean latent)" in result.stdout
    return folder


def rows(folder):
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_same_loop_trains_a_controller_and_stores_it_alone(run):
    folder = run / "controller" / "panda"
    logged = rows(folder)
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6]
    assert logged[-1]["error"] < logged[0]["error"]
    assert checkpoints.Checkpoints(folder, write=False).parts(6) == {"controller"}
    model, params = lawm.load(folder)
    assert model.predictor is None and {"encoder", "controller"} <= params.keys()


def test_a_model_is_loaded_with_the_controller_in_its_folder(run):
    model, params = lawm.load(run)
    measured = json.loads((MINI / "panda" / "statistics.json").read_text())["actions"]
    scale = params["controller"]["scale"]
    np.testing.assert_allclose(scale["action_mean"], measured["mean"], rtol=1e-6)
    np.testing.assert_allclose(scale["action_std"], measured["std"], rtol=1e-6)
    assert lawm.load(run, controller="")[0].controller is None
    with pytest.raises(FileNotFoundError, match=r"^x: not found; .* \(panda\)$"):
        lawm.load(run, controller="x")
    named = lawm.load(run, controller="panda")
    by_path = lawm.load(run, controller=run / "controller" / "panda")
    assert named[0] == by_path[0] == model
    jax.tree.map(np.testing.assert_array_equal, by_path[1], params)


def test_actions_of_a_discrete_model_become_codes(run):
    model, params = lawm.load(run)
    s = jax.random.normal(jax.random.key(0), (2, 3, 4, 448))
    z = map_actions(model, params, 0.1 * jax.random.normal(jax.random.key(1), (2, 3, 3)), s)
    codebook = np.asarray(params["latent"]["codebook"])
    distance = np.abs(np.asarray(z)[:, :, None] - codebook).max(-1).min(-1)
    assert z.shape == (2, 3, 16) and (distance == 0).all()
    assert predict(model, params, s, z).shape == s.shape


def test_a_model_saved_with_its_controller_is_loaded_with_it(run, tmp_path):
    model, params = lawm.load(run)
    models.save(str(tmp_path), model, params)
    other, again = lawm.load(tmp_path)
    assert other == model
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_an_interrupted_controller_continues_bit_for_bit(run, controller_config, tmp_path):
    straight, again = run / "controller" / "panda", tmp_path / "again"
    shutil.copytree(straight, again)
    shutil.rmtree(again / "checkpoints" / "6")
    config = settings(controller_config, "size=tiny", model=str(run))
    _, params = loop.fit(config, str(again))
    assert [row["error"] for row in rows(again)] == [row["error"] for row in rows(straight)]
    _, expected = lawm.load(straight)
    jax.tree.map(np.testing.assert_array_equal, params["controller"], expected["controller"])


def test_of_several_controllers_one_is_named(run, controller_config):
    other = run / "controller" / "nav"
    config = settings(controller_config, "size=tiny,source=nav", model=str(run))
    config = objectives.complete(json.loads(config.to_json_best_effort()))
    write_run(ml_collections.ConfigDict(config), other)
    try:
        assert lawm.load(run)[0].controller is None
        _, params = lawm.load(run, controller="nav")
    finally:
        shutil.rmtree(other)
    measured = json.loads((MINI / "nav" / "statistics.json").read_text())["actions"]
    np.testing.assert_allclose(params["controller"]["scale"]["action_mean"], measured["mean"])


def test_another_models_controller_is_refused_or_left_out(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "6")  # as if it were trained on, or trained anew
    with pytest.raises(ValueError, match="different model, which differs in model_step"):
        lawm.load(copy, controller="panda")
    with pytest.warns(UserWarning, match="model_step; ignoring the controller"):
        assert lawm.load(copy)[0].controller is None
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 1}))
    with pytest.raises(ValueError, match="different model, which differs in seed"):
        lawm.load(other, controller="panda")
    with pytest.raises(ValueError, match="expected a run of configs/controller.py"):
        lawm.load(run, controller=run)


def test_a_model_without_a_controller_says_how_to_get_one(tiny):
    model, params, s = tiny("noisy")
    with pytest.raises(ValueError, match="no controller; train one with configs/controller.py"):
        lawm.map_actions(model, params, jnp.zeros((2, 4, 3)), s)


@pytest.mark.parametrize("kind", ["state", "actions"])
def test_act_refuses_what_does_not_fit(tiny, kind):
    model, params, s = tiny("noisy")
    network, u = controller(kind, features=16), jnp.zeros((2, 4, 3))
    params = params | {"controller": jax.jit(network.init)(jax.random.key(0), u, s)["params"]}
    model = dataclasses.replace(model, controller=network)
    assert map_actions(model, params, u, s).shape == (2, 4, 16)
    for wrong in (u[0], u[..., :2]):
        with pytest.raises(ValueError, match=r"u: expected \[B, T, 3\], got"):
            lawm.map_actions(model, params, wrong, s)
    for wrong in (s[0], s[:, :3], jnp.tile(s, (2, 1, 1, 1)), s[..., :16]):
        with pytest.raises(ValueError, match=r"s: expected \[2 or 1, 4, N, 32\], got"):
            lawm.map_actions(model, params, u, wrong)


@pytest.mark.parametrize("kind", ["noisy", "sparse", "none", "discrete"])
def test_the_targets_are_the_mean_latents_or_the_codes(tiny, kind):
    model, params, s = tiny(kind)
    model = dataclasses.replace(model, predictor=None, controller=controller("state", 16))
    network = {"scale": unscaled(16, 3) | {"latent_std": jnp.float32(2)}}
    u = jax.random.normal(jax.random.key(3), (2, 3, 3))
    network = jax.jit(model.controller.init)(jax.random.key(0), u, s[:, :-1])["params"] | network
    inputs = jax.jit(CONTROLLER.inputs, static_argnums=0)
    inputs = inputs(model, params, {"states": s, "actions": u})
    loss = jax.jit(CONTROLLER.loss, static_argnums=0)
    error, metrics = loss(model, {"controller": network}, params, inputs, None)
    z = jax.jit(lawm.infer_actions, static_argnums=0)(model, params, s)[0]
    z = np.asarray(z, np.float64)
    if kind == "discrete":
        codebook = np.asarray(params["latent"]["codebook"])
        assert np.abs(z[:, :, None] - codebook).max(-1).min(-1).max() < 1e-6
    guess = np.asarray(jax.jit(model.controller.apply)({"params": network}, u, s[:, :-1]))
    np.testing.assert_allclose(error, np.square(guess - z).mean() / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics["mean_latent"], np.square(z).mean() / 4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["state", "actions"])
@pytest.mark.parametrize("size", ["tiny", "nano", "large"])
def test_the_step_of_every_size_fits_together(get_config, controller_config, tmp_path, size, kind):
    base = get_config(f"size={size},latent=discrete")
    rundir.write_config(str(tmp_path), base.to_json_best_effort())
    os.makedirs(tmp_path / "checkpoints" / "7")
    config = controller_config(f"size={size},kind={kind}")
    config.update(model=str(tmp_path))
    config.data.batch = 2
    config = objectives.complete(json.loads(config.to_json_best_effort()))
    assert config["model_step"] == 7
    model = world_model.build(config)
    tx, _ = optim.make(config["optim"], config["steps"])
    c = config["data"]
    video = jax.ShapeDtypeStruct((2, c["frames"], c["size"], c["size"], 3), jnp.uint8)
    clip = jax.ShapeDtypeStruct((1, 2, c["size"], c["size"], 3), jnp.float32)
    encoder = jax.eval_shape(model.encoder.init, jax.random.key(0), clip)["params"]
    s = world_model.state_shape(model, encoder, video)
    assert s.shape[1] == c["frames"]  # one step per frame, whatever the encoder's tubelet
    whole = world_model.build(base)
    rest = jax.eval_shape(lambda key: world_model.init_dynamics(whole, key, s), jax.random.key(0))
    frozen = {"encoder": encoder} | {key: rest[key] for key in ("inverse", "latent")}
    state = jax.eval_shape(lambda key: make_state(model, tx, s, key, CONTROLLER), jax.random.key(0))
    u = jax.ShapeDtypeStruct((2, c["frames"] - 1, CONTROLLER.actions(model)), jnp.float32)
    step = lambda *args: train_step(model, tx, *args, objective=CONTROLLER)  # noqa: E731
    after, metrics = jax.eval_shape(step, frozen, state, {"video": video, "actions": u})
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(after) == shapes(state) and metrics["loss"].shape == ()


def test_large_is_the_papers_recipe(controller_config):
    c = controller_config("size=large")
    assert (c.steps, c.data.batch, c.data.frames, c.data.fps) == (3000, 256, 8, 4.0)
    optimiser = c.optim
    assert (optimiser.adamw, optimiser.b2, optimiser.weight_decay) == (1e-3, 0.999, 0.04)
    assert round(optimiser.warmup * c.steps) == 300 and optimiser.final == 0
    # AdamW alone: a first step of Adam is the learning rate in every entry, without decay.
    tx, _ = optim.make(optimiser.to_dict() | {"weight_decay": 0.0, "warmup": 0.0}, 10)
    params = {"stack": {"blocks": {"qkv": {"kernel": jnp.ones((2, 4, 3, 4))}}}}
    grads = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) + 1, params)
    state = tx.init(params)
    _, state = tx.update(grads, state, params)  # at the rate 0 that a warm-up starts from
    step, _ = tx.update(grads, state, params)
    np.testing.assert_allclose(step["stack"]["blocks"]["qkv"]["kernel"], -1e-3, rtol=1e-3)


@pytest.mark.parametrize("arg", ["size=small", "kind=vague", "source=mars", "width=3"])
def test_a_wrong_argument_is_answered_with_the_right_ones(controller_config, arg):
    with pytest.raises(ValueError, match="expected .*size"):
        controller_config(arg)


def test_a_controller_needs_a_model_with_latents_to_infer(
    controller_config, get_config, run, tmp_path
):
    complete = lambda **more: objectives.complete(  # noqa: E731
        json.loads(settings(controller_config, "size=tiny", **more).to_json_best_effort())
    )
    with pytest.raises(ValueError, match="expected --config.model=FOLDER"):
        complete()
    with pytest.raises(FileNotFoundError, match="expected the folder of a training run"):
        complete(model=str(tmp_path))
    with pytest.raises(ValueError, match="that infers latent actions, got .*panda with controller"):
        complete(model=str(run / "controller" / "panda"))
    text = get_config("size=tiny,latent=deterministic").to_json_best_effort()
    rundir.write_config(str(tmp_path), text)
    with pytest.raises(
        ValueError, match="expected a world model that infers latent actions, got .*determin"
    ):
        complete(model=str(tmp_path))
    wrong = complete(model=str(run)) | {"latent": {"kind": "none", "dim": 4}}
    wrong["controller"]["kind"] = "vague"
    with pytest.raises(ValueError, match="controller.kind: expected one of .*, got 'vague'"):
        world_model.build(wrong)


def test_real_actions_come_from_one_measured_source(controller_config, run, tmp_path, videos):
    made = settings(controller_config, "size=tiny", model=str(run))
    made = objectives.complete(json.loads(made.to_json_best_effort()))
    data = made["data"]
    read = lambda **more: objectives.action_statistics(made | {"data": data | more})  # noqa: E731
    assert read()["mean"].shape == (3,)
    with pytest.raises(ValueError, match="expected a single source"):
        read(mixture={"panda": 1.0, "nav": 1.0})
    with pytest.raises(ValueError, match="expected a source with actions"):
        read(videos=videos)
    shutil.copytree(MINI / "panda" / "test", tmp_path / "part" / "train")
    with pytest.raises(ValueError, match="not found; create it with: .*--statistics --fps 4"):
        read(sources={"panda": f"mini:{tmp_path}/part"})
    # And the width is that of the data.
    made["controller"]["actions"] = 2
    with pytest.raises(ValueError, match=r"data: expected actions of shape \(3, 2\), got \(3, 3\)"):
        loop.fit(ml_collections.ConfigDict(made), str(tmp_path / "run"))


def test_a_step_that_is_several_frames_is_refused(controller_config, get_config, run, tmp_path):
    made = settings(controller_config, "size=tiny", model=str(run))
    made = objectives.complete(json.loads(made.to_json_best_effort()))
    del made["controller"], made["inverse"]
    made |= {"predictor": get_config("size=tiny").predictor.to_dict()}
    made |= {"objective": "world_model", "latent": {"kind": "labelled", "dim": 3}}
    made["encoder"] |= {"name": "vjepa2_tiny", "weights": "", "normalise": True}
    with pytest.raises(ValueError, match="encoder.repeat: expected True.* 4 frames .* got 2 time"):
        loop.Run.load(made)

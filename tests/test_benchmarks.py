"""The copies in PyTorch that the benchmarks compare with are copies; and each benchmark runs."""

import dataclasses
import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

import lawm_jax as lawm
from lawm_jax import world_model
from lawm_jax.nn.controller import Controller
from lawm_jax.train import optim

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
    z = jax.jit(lawm.map_actions, static_argnums=0)(model, params, u, s[:, :3])
    np.testing.assert_allclose(copy.controller(tensor(u), tensor(s[:, :3])), z, atol=1e-4)
    expected = copy.predictor(tensor(s[:, :3]), tensor(z)).numpy()
    found = jax.jit(lawm.predict, static_argnums=0)(model, params, s[:, :3], z)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - s[:, :3]).max() > 0.1


@torch.inference_mode()
def test_plans_cost_the_same_in_both(pair):
    model, params, s, u, copy = pair
    z = jax.random.normal(jax.random.key(5), (1, 2, 16))

    @jax.jit
    def reached(s, z, u):
        cache = lawm.prefill(model, params, s, z)
        return world_model.rollout_actions(model, params, cache, 0.5 * u)[:, -1]

    last = reached(s[:1, :3], z, u)
    expected = np.sqrt(np.square(last - s[1:, 3]).mean((1, 2)))
    shared = {"states": s[:1, :3], "latents": z, "goal": s[1:, 3]}
    shared = {k: tensor(x)[:, None].expand(1, 2, *x.shape[1:]) for k, x in shared.items()}
    found = copy.get_cost(shared, tensor(u)[None])
    np.testing.assert_allclose(found, expected[None], atol=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_what_the_copy_lacks_is_refused(pair):
    from benchmarks import torch_model

    model, params, *_ = pair
    with pytest.raises(ValueError, match="model: expected a nano model"):
        torch_model.sizes(dataclasses.replace(model, normalise=True), params)


OPTIM = dict(muon=0.04, adamw=2e-3, weight_decay=0.04, b2=0.95, warmup=0.2, final=0.01)


def noise_of(state, shape):
    """Draws the noise that the next training step draws for its latents."""
    return tensor(jax.random.normal(jax.random.split(state["key"], 3)[1], shape))


def assert_equal(copy, tree, tolerance, find=lambda x: x, but=()):
    """Asserts that tensors of the copy's parameters are near arrays, relative to each's largest."""
    from benchmarks import torch_model

    arrays, named = torch_model.state_dict(tree), dict(copy.named_parameters())
    assert arrays.keys() == named.keys()
    for name, x in arrays.items():
        if name.endswith(but):
            continue
        size = np.abs(x).max()
        assert size > 0, name
        np.testing.assert_allclose(
            find(named[name]).detach(), x, rtol=0, atol=tolerance * size, err_msg=name
        )


@pytest.mark.parametrize(
    ("kind", "normalise"), [("noisy", True), ("sparse", False), ("none", False)]
)
def test_loss_and_gradients_are_those_of_pytorch(tiny, kind, normalise):
    from benchmarks import torch_training

    model, params, s = tiny(kind, normalise=normalise, strength=0.01)
    copy, state = torch_training.make(model, params), {"key": jax.random.key(6)}
    value = copy(tensor(s), noise_of(state, (2, 3, 16)))
    value.backward()
    key = jax.random.split(state["key"], 3)[1]
    ours = jax.jit(jax.value_and_grad(lambda params: world_model.loss(model, params, s, key)[0]))
    expected, grads = ours(params)
    assert value.item() == pytest.approx(float(expected), rel=1e-5)
    assert_equal(copy, grads, 1e-4, lambda x: x.grad)


def test_training_steps_are_those_of_pytorch(tiny):
    from benchmarks import torch_training

    model, params, s = tiny("noisy")
    copy = torch_training.make(model, params)
    tx, share = optim.make(OPTIM, 10)
    theirs = torch_training.Optimiser(copy, OPTIM, lambda step: float(share(step)))
    opt = jax.jit(tx.init)(params)
    state = {"params": params, "opt": opt, "step": 0, "key": jax.random.key(7)}
    step = jax.jit(lambda state: lawm.train_step(model, tx, {}, state, {"states": s}))
    for _ in range(4):  # the rate of the first is 0
        loss = copy(tensor(s), noise_of(state, (2, 3, 16)))
        loss.backward()
        theirs.step()
        state, metrics = step(state)
        assert loss.item() == pytest.approx(float(metrics["loss"]), rel=1e-4)
    # A bias of all keys alike does not change a softmax: its gradient is rounding, which AdamW
    # makes as large as any.
    assert_equal(copy, state["params"], 1e-3, but=("qkv.bias", "pool.bias"))
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), state["params"], params)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_latents_that_the_copy_lacks_are_refused(tiny):
    from benchmarks import torch_training

    model, params, _ = tiny("discrete")
    with pytest.raises(ValueError, match="latent.kind: expected one of .*noisy.*got 'discrete'"):
        torch_training.make(model, params)


@pytest.fixture
def load():
    """Imports modules whose flags have the same names, which they have to themselves."""
    loaded = []

    def load(name):
        loaded.append(importlib.import_module(f"benchmarks.{name}"))
        return loaded[-1]

    yield load
    for module in loaded:
        for flag in [*flags.FLAGS.flags_by_module_dict()[module.__name__]]:
            delattr(flags.FLAGS, flag.name)
        del sys.modules[module.__name__]


def test_attention_is_measured_both_ways_where_there_is_a_kernel(load, monkeypatch):
    attention = load("attention")
    shape = attention.shapes("tiny", jax.device_count())["forward model"]
    rows, peak = attention.measure(shape, 2, 1)
    assert [*rows] == ["XLA"] and rows["XLA"]["difference"] == 0 and peak > 0
    tokens, flops = (np.array(rows["XLA"][key]) for key in ("tokens/s", "FLOP/s"))
    seen = sum(4 * 128 * 128 * 16 * t for t in (1, 2, 3))  # of one head, forward
    np.testing.assert_allclose(flops / tokens, 3 * 2 * seen / (3 * 128))
    plain = attention.variants

    def with_kernel(mesh, x):
        return {"kernel": lambda q, k, v: plain(mesh, x)["XLA"](q, k, 2 * v)} | plain(mesh, x)

    monkeypatch.setattr(attention, "variants", with_kernel)
    rows, _ = attention.measure(shape, 2, 1)
    assert rows["kernel"]["difference"] > 0.1 and rows["XLA"]["difference"] == 0


def test_exponents_are_those_of_the_costs_with_intervals_of_the_rounds(load, monkeypatch):
    from benchmarks import train_steps

    scaling = load("scaling")
    seconds = [[1.0, 1.0, 5.0], [4.0, 4.0, 4.0], [16.0, 16.0, 16.0]]  # a square, and a disturbance
    found = scaling.summarize({"values": [1, 2, 4], "CPU seconds": seconds, "FLOPs": [3, 6, 12]})
    assert found["exponent"] == pytest.approx(2) and found["expected"] == pytest.approx(1)
    low, high = found["interval"]
    assert low < 1.9 and high == pytest.approx(2)

    make = train_steps.make_config
    small = lambda size: make("tiny") | {"latent": make("nano")["latent"]}  # noqa: E731
    monkeypatch.setattr(train_steps, "make_config", small)
    monkeypatch.setitem(scaling.TRAINING, "clips", ((2, 4), "batch"))
    calls = scaling.training("clips", 2)
    assert 1.1 < calls[4][1] / calls[2][1] < 2  # the optimizer's work does not grow
    curve = scaling.measure(calls, 2)
    assert np.shape(curve["CPU seconds"]) == (2, 2) and curve["values"] == [2, 4]


def test_the_ratio_is_of_the_fastest_in_each_round_with_an_interval_of_its_median():
    from benchmarks import timing

    ours = [1.0, 2.0, 1.0, 4.0, 1.0]
    rows = {"ours": {"seconds": ours}, "ours, slower": {"seconds": [9.0] * 5}}
    rows |= {"PyTorch": {"seconds": [3 * x for x in ours]}, "eager": {"seconds": [99.0] * 5}}
    assert timing.ratio(rows, "ours") == (3.0, (3.0, 3.0))
    rows["PyTorch"]["seconds"] = np.multiply(ours, [1.0, 2.0, 3.0, 4.0, 5.0]).tolist()
    middle, (low, high) = timing.ratio(rows, "ours")
    # The median of 5 draws of 5 is 1, or 5, in 5.8 % of all cases, by the binomial distribution.
    assert (middle, low, high) == (3.0, 1.0, 5.0)


def test_rounds_are_added_until_the_ratio_is_certain_or_the_limit_is_reached(monkeypatch):
    import types

    from benchmarks import timing

    now = [0.0]
    clock = types.SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: 2 * now[0])
    monkeypatch.setattr(timing, "time", clock)

    def takes(seconds):
        def function(i):
            now[0] += seconds[i % len(seconds)]

        return function

    rows = timing.in_turn({"ours": takes([1.0]), "theirs": takes([2.0])}, 3, 50, "ours")
    assert [len(row["seconds"]) for row in rows.values()] == [3, 3]
    assert timing.busy(rows["ours"]) == 2
    rows = timing.in_turn({"ours": takes([1.0]), "theirs": takes([1.0, 9.0])}, 3, 7, "ours")
    assert [len(row["seconds"]) for row in rows.values()] == [7, 7]


def test_results_of_several_days_are_kept(tmp_path):
    import json

    from benchmarks import timing

    path = tmp_path / "results.json"
    for day in ("2026-01-01", "2026-01-02"):
        timing.save(path, {"date": day})
    days = [{"date": "2026-01-01"}, {"date": "2026-01-02"}]
    assert json.loads(path.read_text()) == {"days": days}


def test_all_cores_together_make_at_most_their_number_of_products():
    from benchmarks import timing

    assert 0.3 < timing.together(rounds=3, seconds=0.05) < 2 * timing.cores()

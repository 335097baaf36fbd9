"""The mesh, the rule that shards arrays, and training that is the same on 1 and on 8 devices."""

import functools

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from lawm_jax import latents, world_model
from lawm_jax.train import accumulation, loop, objectives, sharding
from lawm_jax.train.step import train_step

STRENGTHS = dict(sparse=0.01, noisy=1e-3, discrete=8, none=0.0, deterministic=0.0)


def make_run(config, devices):
    """Builds a run on some of the devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        return loop.Run.load(config.to_dict())


def train(run, config, state, steps=3):
    """Takes steps on fixed random video: losses [steps], and the last parameters."""
    data, video, losses = config.data, np.random.default_rng(0), []
    shape = (data.batch, data.frames, data.size, data.size, 3)
    state = jax.device_put(state | {"key": jax.random.key(5)}, run.shardings)
    for _ in range(steps):
        batch = sharding.place(run.mesh, {"video": video.integers(0, 256, shape, np.uint8)})
        state, metrics = run.step(run.frozen, state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state["params"]


def comparable(params):
    """Names parameters, without biases of keys.

    Softmax ignores a shift of all keys by the same vector, so their gradient is zero but for
    rounding, which Adam scales up.
    """
    params = jax.tree.map(np.array, params)
    for net in params.keys() - {"latent", "decoder"}:
        params[net]["stack"]["blocks"]["qkv"]["bias"][:, 1] = 0
    if "inverse" in params:
        params["inverse"]["pool"]["bias"][0] = 0
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path): x for path, x in leaves}


def small_config(get_config, kind, data, fsdp):
    """Makes a config that compiles fast."""
    c = get_config(f"size=tiny,latent={kind},strength={STRENGTHS[kind]}")
    c.latent.reset_after = 40  # latents, of 24 per step: codes move within three steps
    c.optim.warmup = 0.0
    c.data.update(size=32, resize=32)
    c.encoder.merge = 1
    c.predictor.depth = 1
    c.mesh.update(data=data, fsdp=fsdp)
    return c


@pytest.mark.parametrize(
    "kind",
    [
        *("noisy", "sparse", "discrete"),  # the others compute less
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("none", "deterministic")),
    ],
)
def test_training_on_8_devices_equals_training_on_one(kind, devices, get_config, monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 64)
    config = small_config(get_config, kind, 1, 1)
    run = make_run(config, devices[:1])
    first = run.begin()
    first["params"] = conftest.perturb(first["params"])  # else most gradients are zero so early
    del first["key"]
    first = jax.tree.map(np.array, first)  # the steps donate their arguments
    losses, params = train(run, config, first)
    before, params = comparable(first["params"]), comparable(params)
    assert len(set(losses)) == 3
    still = {name for name, x in params.items() if np.abs(x - before[name]).max() < 1e-4}
    assert still == set()
    mesh = (8, 1) if kind == "sparse" else (2, 4)
    config = small_config(get_config, kind, *mesh)
    others, spread = train(make_run(config, devices), config, first)
    np.testing.assert_allclose(others, losses, rtol=1e-5, atol=1e-5)
    for name, x in comparable(spread).items():
        np.testing.assert_allclose(x, params[name], 1e-5, 1e-5, err_msg=name)
    kernel = spread["predictor"]["stack"]["blocks"]["fc1"]["kernel"]  # [1, 32, 128]
    shards = {shard.data.shape for shard in kernel.addressable_shards}
    assert shards == {(1, 32, 128 // mesh[1])}


def test_a_run_starts_from_the_same_state_on_8_devices_as_on_one(devices, get_config, monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 64)
    states = [
        make_run(small_config(get_config, "discrete", *mesh), devices[: mesh[0] * mesh[1]]).begin()
        for mesh in ((1, 1), (2, 4))
    ]
    params = [jax.device_get(state["params"]) for state in states]
    # The compiler may fuse the normal distribution's steps otherwise: up to 2e-7 (jax 0.12).
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *params)
    np.testing.assert_array_equal(*(jax.random.key_data(state["key"]) for state in states))


def step_in_parts(model, frozen, params, batch, parts):
    """Takes one step of gradient descent, with the batch in parts: parameters, metrics."""
    tx = optax.sgd(1.0)
    state = {"params": params, "opt": tx.init(params), "step": 0, "key": jax.random.key(5)}
    step = functools.partial(train_step, model, tx, accumulate=parts)
    state, metrics = jax.jit(step)(frozen, state, batch)
    return jax.device_get(state["params"]), jax.device_get(metrics)


def assert_close(others, expected):
    """Compares parameters and metrics to 1e-5."""
    names, leaves = zip(*jax.tree_util.tree_flatten_with_path(expected)[0], strict=True)
    for name, x, y in zip(names, leaves, jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(y, x, 1e-5, 1e-5, err_msg=jax.tree_util.keystr(name))


@pytest.mark.parametrize("kind", ["noisy", "sparse", "discrete"])  # the others compute less
def test_a_batch_in_parts_equals_the_whole_batch(kind, tiny, devices):
    model, params, _ = tiny(kind, strength=STRENGTHS[kind], reset_after=20)
    s = np.random.default_rng(0).normal(size=(8, 4, 4, 32)).astype(np.float32)
    whole = step_in_parts(model, {}, params, {"states": s}, 1)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole[0], jax.device_get(params))
    assert min(jax.tree.leaves(change["predictor"]["stack"])) > 1e-4
    batch = {"states": s}
    if kind in ("sparse", "discrete"):  # those with statistics over the batch
        batch = sharding.place(sharding.make_mesh(devices=devices[:2]), batch)
    assert_close(step_in_parts(model, {}, params, batch, 4), whole)


def test_means_over_parts_are_those_of_the_whole_batch():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    w = np.float32([1, 2, 3])

    def objective(w, part):
        error = jnp.square(part["x"] * w[None]).mean()
        metrics = {"error": error, "psnr": -10 * jnp.log10(error), "latents": part["x"]}
        return error, metrics

    parts = {"x": accumulation.split(x, 4)}
    (value, metrics), slope = accumulation.value_and_grad(objective, w, parts, 4)
    expected = np.square(x * w).mean()
    np.testing.assert_allclose([value, metrics["error"]], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["psnr"], -10 * np.log10(expected), rtol=1e-6)
    np.testing.assert_array_equal(metrics["latents"], x)  # in the batch's order
    np.testing.assert_allclose(slope, 2 * w * np.square(x).mean(0) / 3, rtol=1e-6)


def test_a_decoders_part_takes_the_frames_that_the_whole_batch_takes(monkeypatch, decoder_config):
    config = decoder_config("size=tiny")
    config.data.update(size=32, resize=32)
    config.decoder.update(weight=1.0, frames=1)
    model = world_model.build(config)
    video = np.random.default_rng(0).integers(0, 256, (4, 4, 32, 32, 3), np.uint8)
    painted = jnp.zeros(video.shape)
    monkeypatch.setattr(world_model, "decode_float", lambda model, params, s: painted[: len(s)])
    monkeypatch.setattr(world_model, "encode", lambda model, frozen, video: video)
    distance = lambda network, params, a, b: jnp.abs(a - b).mean((2, 3, 4))  # noqa: E731
    monkeypatch.setattr(objectives.perceptual, "distance", distance)
    decoder = objectives.OBJECTIVES["decoder"]

    def loss(video, noise):
        inputs = decoder.inputs(model, {}, {"video": video})
        return decoder.loss(model, {}, {"perceptual": {}}, inputs, noise)[1]

    noise = decoder.noise(model, {"video": video}, jax.random.key(3))
    whole = loss(video, noise)["perceptual"]
    parts = [loss(video[i : i + 2], noise[i : i + 2])["perceptual"] for i in (0, 2)]
    assert np.mean(parts) == pytest.approx(float(whole), rel=1e-6)
    picked = np.take_along_axis(video, np.argmin(noise, 1)[:, None, None, None, None], axis=1)
    assert float(whole) == pytest.approx(picked.mean(), rel=1e-6)


def test_sparse_statistics_of_parts_have_the_gradient_of_the_whole():
    h = np.random.default_rng(0).normal(size=(8, 3, 4)).astype(np.float32)
    cost = lambda h, rest=None: latents.sparse(h, 0.01, others=rest)[1].mean()  # noqa: E731
    whole, slope_of = jax.jit(jax.grad(cost))(h), jax.jit(jax.value_and_grad(cost))
    values = []
    for i in (0, 2, 4, 6):  # of each part the mean over four parts takes a quarter
        mine, rest = h[i : i + 2], np.delete(h, [i, i + 1], axis=0)
        value, slope = slope_of(mine, rest)
        np.testing.assert_allclose(slope / 4, whole[i : i + 2], atol=1e-6)
        values.append(value)
    assert np.mean(values) == pytest.approx(float(cost(h)), rel=1e-6)


def test_each_device_keeps_its_own_clips_of_every_part(devices):
    mesh = sharding.make_mesh(fsdp=2, devices=devices[:4])
    video = sharding.place(mesh, {"video": np.arange(16, dtype=np.uint8)[:, None]})
    text = jax.jit(lambda batch: accumulation.split(batch, 2)).lower(video).compile().as_text()
    assert not any(name in text for name in ("all-to-all", "all-gather", "collective-permute"))


@pytest.mark.parametrize(
    "name, count",
    [("lawm size=base", n) for n in (1, 2, 8)]
    + [("lawm size=large", 1), ("decoder size=large", 1)],
)
def test_the_sizes_for_accelerators_lower_on_any_number_of_devices(name, count, devices):
    file, arg = name.split()
    config = conftest.load_config(file)(arg).to_dict()
    if "batch_per_device" in config["data"]:
        config["data"]["batch_per_device"] = 1
    if file == "lawm":  # their depth costs time alone
        config["predictor"]["depth"] = config["inverse"]["depth"] = 1
    else:
        config["decoder"]["weight"] = 0.0  # LPIPS needs weights
    run = loop.Run.abstract(config, devices[:count])
    assert dict(run.mesh.shape) == {"data": 1, "fsdp": count}
    batch = config["data"]["batch"] or count
    assert run.batch["video"].shape[0] == batch and (batch == count) == (arg == "size=base")
    assert "sharding" in run.lower().as_text()


def test_the_largest_axis_that_fsdp_divides_is_sharded(devices):
    mesh = sharding.make_mesh(data=2, fsdp=4, devices=devices)
    cases = {
        (24, 64, 3, 64): (None, "fsdp", None, None),
        (128, 512): (None, "fsdp"),
        (512, 128): ("fsdp", None),
        (4, 129, 511): ("fsdp", None, None),
        (129, 511): (None, None),  # no axis is a multiple of 4
        (2**14 - 4,): (None,),  # too small
        (2**14,): ("fsdp",),
        (): (),
    }
    for shape, spec in cases.items():
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        assert sharding.state_sharding(mesh, {"x": x})["x"].spec == PartitionSpec(*spec), shape


def test_nothing_is_sharded_without_fsdp(devices):
    mesh = sharding.make_mesh(devices=devices)
    tree = sharding.state_sharding(mesh, [jnp.zeros((256, 256))])
    assert tree[0].is_fully_replicated


def test_sharded_parameters_live_in_pieces(devices):
    mesh = sharding.make_mesh(data=2, fsdp=4, devices=devices)
    x = jnp.arange(256.0 * 64).reshape(256, 64)
    spread = jax.device_put(x, sharding.state_sharding(mesh, x))
    assert [s.data.shape for s in spread.addressable_shards] == [(64, 64)] * 8
    np.testing.assert_array_equal(spread, x)


def test_a_batch_is_spread_over_all_devices(devices):
    mesh = sharding.make_mesh(data=2, fsdp=4, devices=devices)
    video = np.arange(16, dtype=np.uint8).reshape(16, 1)
    placed = sharding.place(mesh, {"video": video})["video"]
    assert [s.data.ravel().tolist() for s in placed.addressable_shards] == [
        [2 * i, 2 * i + 1] for i in range(8)
    ]


def test_minus_one_takes_the_devices_that_are_left(devices):
    shape = lambda **axes: dict(sharding.make_mesh(devices=devices, **axes).shape)  # noqa: E731
    assert shape() == {"data": 8, "fsdp": 1}
    assert shape(fsdp=4) == {"data": 2, "fsdp": 4}
    assert shape(data=2, fsdp=-1) == {"data": 2, "fsdp": 4}
    assert shape(data=1, fsdp=8) == {"data": 1, "fsdp": 8}


@pytest.mark.parametrize(
    "count, fsdp, expected", [(1, 8, 1), (2, 8, 2), (4, 8, 4), (6, 4, 3), (8, 3, 2), (7, 8, 7)]
)
def test_fsdp_is_the_largest_divisor_of_the_devices_up_to_what_is_asked(
    count, fsdp, expected, devices
):
    mesh = sharding.make_mesh(fsdp=fsdp, devices=devices[:count])
    assert dict(mesh.shape) == {"data": count // expected, "fsdp": expected}


@pytest.mark.parametrize("data, fsdp", [(3, 1), (2, 2), (0, 8), (-1, -1), (-1, 0), (-2, -4)])
def test_axes_that_do_not_fit_the_devices_are_an_error(devices, data, fsdp):
    message = "mesh.data, mesh.fsdp: expected a product of 8, the number of devices, got"
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(data, fsdp, devices)


def test_a_batch_that_the_devices_do_not_divide_is_an_error(devices, get_config):
    config = get_config("size=tiny")
    config.data.batch = 12
    with pytest.raises(ValueError, match="data.batch: expected a multiple of 8 devices, got 12"):
        loop.Run.load(config.to_dict())

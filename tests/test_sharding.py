"""The mesh, the rule that shards arrays, and training that is the same on 1 and on 8 devices."""

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lawm_jax.training import loop, sharding

STRENGTHS = dict(sparse=0.01, noisy=1e-3, discrete=8, none=0.0, deterministic=0.0)


def make_run(config, devices):
    """Builds a run on some of the devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        return loop.Run(config.to_dict())


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
    for net in params.keys() - {"latent"}:
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


@pytest.mark.parametrize("kind", STRENGTHS)
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
    meshes = [(2, 4)]
    if kind in ("sparse", "discrete"):  # those with statistics over the batch
        meshes += [(8, 1)]
    for mesh in meshes:
        config = small_config(get_config, kind, *mesh)
        others, spread = train(make_run(config, devices), config, first)
        np.testing.assert_allclose(others, losses, rtol=1e-5, atol=1e-5, err_msg=str(mesh))
        for name, x in comparable(spread).items():
            np.testing.assert_allclose(x, params[name], 1e-5, 1e-5, err_msg=f"{mesh} {name}")
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
    jax.tree.map(np.testing.assert_array_equal, *params)
    np.testing.assert_array_equal(*(jax.random.key_data(state["key"]) for state in states))


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
    "data, fsdp", [(3, 1), (-1, 3), (2, 2), (0, 8), (-1, -1), (-1, 0), (-2, -4)]
)
def test_axes_that_do_not_fit_the_devices_are_an_error(devices, data, fsdp):
    message = "mesh.data, mesh.fsdp: expected a product of 8 devices, got"
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(data, fsdp, devices)


def test_a_batch_that_the_devices_do_not_divide_is_an_error(devices, get_config):
    config = get_config("size=tiny")
    config.data.batch = 12
    with pytest.raises(ValueError, match="data.batch: expected a multiple of 8 devices, got 12"):
        loop.Run(config.to_dict())

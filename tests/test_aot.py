"""Compiling the training step for machines that aren't there."""

import collections
import importlib.util
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from lawm_jax.aot import analysis, flops, results, targets
from lawm_jax.aot.flops import CHIPS, Chip
from lawm_jax.nn import cudnn
from lawm_jax.train import loop, sharding

LAPTOP = Chip(memory=2**30, flops=1e12, bandwidth=1e11, source="")


def tiny(get_config):
    """Makes a tiny config that shards its larger arrays over 4 of 8 devices."""
    c = get_config("size=tiny")
    c.data.update(size=32, resize=32)
    c.encoder.merge = 1
    c.mesh.update(data=2, fsdp=4)
    return c.to_dict()


@pytest.fixture(scope="module")
def result(get_config, devices):
    """What is found of the tiny config on 8 virtual devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALL", 64)
        return analysis.check(tiny(get_config), devices, LAPTOP)


def test_the_step_compiled_ahead_is_the_trainers(get_config, devices):
    config = tiny(get_config)
    ahead, real = loop.Run.abstract(config, devices), loop.Run.load(config)
    assert ahead.lower().as_text() == real.lower().as_text()


def test_nothing_is_loaded_for_a_step_compiled_ahead(get_config, devices):
    config = tiny(get_config)
    config["encoder"]["weights"] = "/nowhere"
    run = loop.Run.abstract(config, devices)
    leaves = jax.tree.leaves((run.frozen, run.like, run.batch))
    assert {type(x) for x in leaves} == {jax.ShapeDtypeStruct}


def test_a_steps_memory_holds_its_arguments_and_the_state_is_donated(
    result, get_config, devices, monkeypatch
):
    monkeypatch.setattr(sharding, "SMALL", 64)
    run, memory = loop.Run.abstract(tiny(get_config), devices), result["memory"]
    local = lambda x: x.sharding.shard_shape(x.shape)  # noqa: E731
    size = lambda tree: sum(  # noqa: E731
        np.prod(local(x), dtype=int) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
    state, frozen, video = size(run.like), size(run.frozen), 8 * 4 * 32 * 32 * 3 // 8
    assert memory["argument"] == pytest.approx(state + frozen + video, rel=0.01)
    assert memory["alias"] == pytest.approx(state, rel=0.01)
    kept = memory["argument"] + memory["temp"] + memory["generated_code"]
    assert kept <= memory["total"] < kept + 0.05 * state  # the next state takes the place of this
    assert result["fits"] and result["mesh"] == {"data": 2, "fsdp": 4}


def compiled(monkeypatch, compile):
    """Puts a function in place of the compiler."""
    lowered = types.SimpleNamespace(compile=lambda options: compile(), as_text=str)
    monkeypatch.setattr(loop.Run, "lower", lambda run: lowered)


@pytest.mark.parametrize("room, fits", [(125, True), (124, False)])
def test_a_step_fits_if_all_that_is_there_at_once_does(
    room, fits, get_config, devices, monkeypatch
):
    sizes = dict(argument=100, output=60, alias=55, temp=18, generated_code=2)  # 125 at once
    found = types.SimpleNamespace(**{f"{name}_size_in_bytes": n for name, n in sizes.items()})
    compiled(monkeypatch, lambda: types.SimpleNamespace(memory_analysis=lambda: found))
    result = analysis.check(tiny(get_config), devices, Chip(room, 1e12, 1e11, ""))
    assert result["fits"] == fits
    shown = results.describe(result | {"topology": "v5e:2x4", "slices": 1, "chips": 8})
    assert ("does not fit" in shown and "--batch-per-chip" in shown) != fits


def test_a_step_that_the_compiler_finds_no_room_for_does_not_fit(get_config, devices, monkeypatch):
    def compile():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20G of 15.75G hbm")

    compiled(monkeypatch, compile)
    result = analysis.check(tiny(get_config), devices, LAPTOP)
    assert not result["fits"]
    shown = results.describe(result | {"topology": "v5e:2x4", "slices": 1, "chips": 8})
    assert "does not fit" in shown and "20G of 15.75G" in shown


def test_the_times_are_those_of_the_work(result):
    seconds = max(result["flops"] / LAPTOP.flops, result["bytes"] / LAPTOP.bandwidth)
    assert result["seconds"] == seconds
    assert result["clips"] == 1 / seconds  # 8 clips on 8 devices
    shown = results.describe(result | {"topology": "v5e:2x4", "slices": 1, "chips": 8})
    assert f"{8 / seconds:.0f} in total" in shown and "1 clip per chip" in shown


def test_the_large_models_work_per_clip_is_the_sum_by_hand(get_config, devices):
    c = get_config("size=large")
    c.data.batch = 16
    found = analysis.estimate(loop.Run.abstract(c.to_dict(), devices), CHIPS["v5p"])
    D, N, T = 1024, 256, 8

    def tower(depth, steps, seen):  # `seen` pairs of frames
        return depth * (2 * steps * N * 12 * D**2 + 4 * D * N**2 * seen)

    encoder = tower(24, T, 36) + 2 * T * N * 1536 * D
    forward = tower(24, T - 1, 28) + 2 * 2 * 7 * N * D**2  # the first and the last layer
    inverse = tower(12, T - 1, 7) + 2 * 7 * N * (2 * D) * D + 2 * 7 * N * D * 2 * D
    by_hand = encoder + 3 * (forward + inverse)
    assert found["model_flops"] == pytest.approx(by_hand, rel=0.01)
    again = (found["flops"] - found["optimiser_flops"]) / 2 - found["model_flops"]
    assert again == pytest.approx(4 * D * N**2 * (24 * 28 + 12 * 7), rel=0.01)  # attention


@pytest.mark.parametrize(
    "topology",
    [
        "v5p",
        "v5p-64",
        "v5p:64",
        "v5p:4x4x4x4",
        "v3:4x4",
        "v5p:0x4",
        "h100:8x8x8",
        "",
        "h100:x8",
        "h100:0",
    ],
)
def test_a_topology_that_is_none_is_refused(topology):
    with pytest.raises(ValueError, match="--topology: expected v4, v5e, .* got "):
        targets.devices(topology)


def test_gpus_have_no_slices():
    with pytest.raises(ValueError, match="--slices: expected 1 for GPUs, .* got 2"):
        targets.devices("h100:2x8", 2)


@pytest.mark.parametrize("topology, extra", [("v5p:4x4x4", "tpu"), ("h100:8x8", "cuda")])
def test_a_compiler_that_is_missing_is_named(topology, extra, monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("not installed")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(ValueError, match=rf"not installed.*pip install 'lawm_jax\[{extra}\]'"):
        targets.devices(topology)


@pytest.mark.parametrize("arg", ["controller", "labelled"])
def test_only_a_world_models_config_is_taken(arg, get_config, devices):
    config = tiny(get_config)
    if arg == "labelled":
        config["latent"]["kind"] = "labelled"
    else:
        del config["predictor"]
    with pytest.raises(ValueError, match="--config: expected a world model"):
        analysis.check(config, devices, LAPTOP)


def test_the_command_says_what_is_wrong_and_exits_with_2():
    command = [sys.executable, "-m", "lawm_jax.aot", "--topology", "v5p-64"]
    command += ["--config", "configs/lawm.py:size=tiny"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "--topology: expected v4, v5e" in run.stdout + run.stderr


def test_results_are_added_to_a_file(tmp_path):
    for row in ({"a": 1}, {"a": 2}):
        results.add(tmp_path / "aot.json", row)
    assert json.loads((tmp_path / "aot.json").read_text()) == [{"a": 1}, {"a": 2}]


def test_a_chip_of_two_devices_is_divided():
    half = targets.share(CHIPS["tpu7x"], 2)
    assert (half.memory, half.flops) == (96 * 2**30, 1153.5e12)


def test_every_kind_of_a_topology_is_a_chip_with_its_source():
    assert set(targets.TPUS) | set(targets.GPUS) == set(CHIPS)
    assert set(targets.SPECS) == set(targets.GPUS)
    assert all(chip.source.startswith("https://") for chip in CHIPS.values())


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'lawm_jax[tpu]'"
)


@pytest.fixture
def quiet(monkeypatch):
    """Lets several processes load libtpu, without its messages."""
    for name, value in targets.QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.mark.pod
@needs_libtpu
@pytest.mark.parametrize("topology, slices", [("v5p:4x4x4", 1), ("v5p:4x4x4", 2), ("v6e:16x16", 1)])
def test_a_mesh_keeps_its_inner_axis_within_a_slice(topology, slices, quiet):
    _, chips, found = targets.devices(topology, slices)
    mesh = sharding.make_mesh(fsdp=8, devices=found)
    assert mesh.devices.shape == (chips // 8, 8) and len(set(mesh.devices.flat)) == chips
    for row in mesh.devices:
        assert len({getattr(device, "slice_index", None) for device in row}) == 1
        spread = np.ptp([device.coords for device in row], axis=0)
        assert np.prod(spread + 1) == 8  # a box of neighbours


def attending(get_config):
    """Makes a tiny config in half precision whose clips are long enough for fused attention."""
    config = get_config("size=tiny").to_dict()
    config["data"] |= dict(size=256, resize=256, frames=6)
    config["encoder"] |= dict(name="vjepa2_tiny", weights="", merge=1, dtype="bfloat16")
    for name in ("predictor", "inverse"):
        config[name] |= dict(width=128, heads=2, depth=2, dtype="bfloat16")
    config["mesh"] = dict(data=-1, fsdp=4)
    return config


@pytest.mark.pod
@needs_libtpu
def test_a_tiny_step_compiles_for_tpus_with_their_own_attention(get_config, quiet):
    kind, chips, found = targets.devices("v5e:2x4")
    result = analysis.check(attending(get_config), found, CHIPS[kind])
    assert result["fits"] and chips == 8 and result["attention"] == "splash"
    assert result["memory"]["argument"] > 6 * 256 * 256 * 3  # a clip, and parameters


needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs the CUDA plugin: pip install 'lawm_jax[cuda]'",
)


@pytest.mark.pod
@needs_cuda
def test_a_tiny_step_compiles_for_gpus_with_cudnns_attention_and_less_memory(
    get_config, monkeypatch
):
    kind, chips, found = targets.devices("h100:2")
    cudnns = analysis.check(attending(get_config), found, CHIPS[kind])
    assert cudnns["fits"] and chips == 2 and cudnns["attention"] == "cuDNN"
    monkeypatch.setattr(cudnn, "supported", lambda *args: False)
    other = analysis.check(attending(get_config), found, CHIPS[kind])
    assert other["attention"] == "XLA" and other["flops"] == cudnns["flops"]
    assert other["bytes"] > cudnns["bytes"]
    assert cudnns["memory"]["temp"] < 0.9 * other["memory"]["temp"]


@pytest.mark.parametrize("size", ["base", "large"])
def test_no_matrix_product_of_a_training_step_mixes_types(size, get_config, devices):
    config = get_config(f"size={size}").to_dict()
    run = loop.Run.abstract(config, devices)
    jaxpr = jax.make_jaxpr(run.step)(run.frozen, run.like, run.batch)

    def products(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield tuple(x.aval.dtype.name for x in eqn.invars)
            for inner in flops.inner_jaxprs(eqn):
                yield from products(inner)

    found = collections.Counter(products(jaxpr.jaxpr))
    assert found["bfloat16", "bfloat16"] > 50
    assert {a for a, b in found if a != b} == set()


@pytest.mark.parametrize("total, fits", [(600, True), (601, False), (800, False)])
def test_a_step_fits_a_gpu_if_it_fits_jaxs_pool(total, fits, get_config, devices, monkeypatch):
    sizes = dict(argument=total, output=0, alias=0, temp=0, generated_code=0)
    found = types.SimpleNamespace(**{f"{name}_size_in_bytes": n for name, n in sizes.items()})
    compiled(monkeypatch, lambda: types.SimpleNamespace(memory_analysis=lambda: found))
    result = analysis.check(tiny(get_config), devices, Chip(800, 1e12, 1e11, ""), 0.75)
    assert (result["fits"], result["room"], result["hbm"]) == (fits, 600, 800)
    shown = results.describe(result | {"topology": "h100:8", "slices": 1, "chips": 8})
    assert "JAX's pool (75% of" in shown
    assert ("--config.optim.accumulate=2" in shown) != fits


def test_the_pool_is_what_the_environment_says():
    assert targets.pool("h100", {}) == 0.75 and targets.pool("v5p", {}) == 1
    assert targets.pool("l4", {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".92"}) == 0.92
    for text in ("most", "0", "1.5", "-1", "nan"):
        with pytest.raises(ValueError, match="XLA_PYTHON_CLIENT_MEM_FRACTION: expected a number"):
            targets.pool("a100", {"XLA_PYTHON_CLIENT_MEM_FRACTION": text})


def test_work_and_time_of_a_batch_in_parts_are_those_of_the_whole(get_config, devices):
    found = {}
    for parts in (1, 4):
        config = tiny(get_config)
        config["data"]["batch"] = 32
        config["optim"]["accumulate"] = parts
        run = loop.Run.abstract(config, devices)
        found[parts] = analysis.estimate(run, LAPTOP)
    assert found[4]["flops"] == found[1]["flops"]
    assert found[4]["bytes"] > found[1]["bytes"]  # weights are read for every part


@needs_cuda
@pytest.mark.parametrize("topology", ["h100:1", "a100:1", "l4:1", "h100:8x8"])
def test_gpus_that_are_not_there_are_as_many_as_asked(topology):
    kind, chips, found = targets.devices(topology)
    assert (kind, chips) == (topology.partition(":")[0], len(found))
    assert chips == (64 if "x" in topology else 1)

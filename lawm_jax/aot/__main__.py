"""Compiles the training step ahead of time for absent TPUs or GPUs; checks memory, bounds speed.

python -m lawm_jax.aot --topology v5p:4x4x4 --config configs/lawm.py:size=large
python -m lawm_jax.aot --topology h100:8x8 --config configs/lawm.py:size=large
python -m lawm_jax.aot --topology h100:1 --config configs/lawm.py:size=base

A topology is KIND:CHIPS. For TPUs (pip install 'lawm_jax[tpu]'), KIND is v4, v5e, v5p, v6e or tpu7x
and CHIPS the slice's shape. For GPUs (pip install 'lawm_jax[cuda]'), KIND is l4, a100, h100 or h200
and CHIPS is GPUS or NODESxGPUS. Nothing is loaded or computed. Memory use is the compiler's report;
on a GPU, a step must fit into JAX's pool, by default three quarters of the memory
(XLA_PYTHON_CLIENT_MEM_FRACTION). The time is a lower bound computed from the step's FLOPs and bytes
and the chip's data sheet, not measured.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import time

from absl import app, flags

from lawm_jax.train.flags import define_config

CONFIG = define_config("config", None, "Config file of a world model.")
TOPOLOGY = flags.DEFINE_string("topology", None, "KIND:CHIPS, such as v5p:4x4x4 or h100:8x8.")
SLICES = flags.DEFINE_integer("slices", 1, "Number of TPU slices of that shape.", lower_bound=1)
BATCH = flags.DEFINE_integer(
    "batch-per-chip", None, "Clips per chip. Default: from the config.", lower_bound=1
)
JSON = flags.DEFINE_string(
    "json", None, "File with a list of results, to which this result is appended."
)
flags.mark_flags_as_required(["config", "topology"])

TPUS, GPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x"), ("l4", "a100", "h100", "h200")
POOL = 0.75  # fraction of a GPU's memory that JAX preallocates by default
# GPU descriptions for XLA: name, compute capability (major), SMs, shared memory per block and per
# SM in bytes, float32 units per SM, clock in GHz, L2 cache in bytes.
# Source: xla/backends/gpu/target_config/specs in https://github.com/openxla/xla; for the L4,
# which is missing there, NVIDIA's data sheet and CUDA's table of compute capability 8.9.
SPECS = {
    "l4": ("NVIDIA L4", 8, 58, 101376, 102400, 128, 2.04, 50331648),
    "a100": ("NVIDIA A100-SXM4-80GB", 8, 108, 166912, 167936, 64, 1.41, 41943040),
    "h100": ("NVIDIA H100 80GB HBM3", 9, 132, 232448, 233472, 128, 1.98, 52428800),
    "h200": ("NVIDIA H200 141GB HBM3e", 9, 132, 232448, 233472, 128, 1.98, 52428800),
}
# Autotuning needs a GPU, and Triton matrix products of XLA 0.10 fail without it.
UNTIMED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process fails
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def main(argv):
    """Parses the flags, compiles and prints the result; exits with 1 if the step does not fit."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import jax

    from lawm_jax.aot.flops import CHIPS
    from lawm_jax.data import paths, settings

    jax.config.update("jax_platforms", "cpu")
    config = CONFIG.value.to_dict()
    try:
        settings.check(config, per_device=True)
        kind, chips, found = devices(TOPOLOGY.value, SLICES.value)
        if BATCH.value:
            config["data"]["batch"] = BATCH.value * chips
        chip = share(CHIPS[kind], len(found) // chips)
        result = check(config, found, chip, pool(kind, os.environ))
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    own = "--json", JSON.value, f"--json={JSON.value}"  # a local path, not recorded
    given = [flag for flag in sys.argv[1:] if flag not in own]
    asked = {"topology": TOPOLOGY.value, "slices": SLICES.value, "flags": given}
    result = asked | {"chips": chips} | result | versions()
    print(describe(result))
    if JSON.value:
        add(paths.expand(JSON.value), result)
    if not result["fits"]:
        sys.exit(1)


def devices(topology, slices=1):
    """Creates descriptions of absent devices, to compile for.

    Args:
      topology: KIND:CHIPS, see the module.
      slices: number of TPU slices.

    Returns:
      The kind, the number of chips, and the devices (two per chip for tpu7x).

    Raises:
      ValueError: the topology does not exist, or its compiler is not installed.
    """
    from jax.experimental import topologies

    kind, _, size = topology.partition(":")
    axes = [int(n) for n in size.split("x")] if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size) else []
    if not (kind in TPUS and len(axes) in (2, 3) or kind in GPUS and len(axes) in (1, 2)):
        raise ValueError(
            f"--topology: expected {', '.join(TPUS)} with a slice's shape, such as v5p:4x4x4, "
            f"or {', '.join(GPUS)} with GPUS or NODESxGPUS, such as h100:1 or h100:8x8, "
            f"got {topology!r}"
        )
    if kind in GPUS and slices > 1:
        raise ValueError(f"--slices: expected 1 for GPUs, which have nodes instead, got {slices}")
    chips = math.prod(axes) * slices
    try:
        if kind in GPUS:
            nodes = f"1x{size}" if len(axes) == 2 else f"1x1x{size}"
            name, options = "gpus", {"topology": nodes, "target_config": _gpu(kind)}
            found = topologies.get_topology_desc(name, platform="cuda", **options)
        else:
            options = {"num_slices": slices} if slices > 1 else {}
            options |= {"chip_config_name": "megacore"} if kind == "v4" else {}
            options |= {"chips_per_host_bounds": (1, 1, 1)} if math.prod(axes) == 1 else {}
            found = topologies.get_topology_desc(topology, platform="tpu", **options)
    except Exception as error:  # from several libraries: no plugin, wrong version, unknown shape
        extra = "cuda" if kind in GPUS else "tpu"
        raise ValueError(
            f"--topology: {topology}: {error}. To install the compiler in jaxlib's version: "
            f"pip install 'lawm_jax[{extra}]'"
        ) from error
    return kind, chips, found.devices


def _gpu(kind):
    """Returns XLA's description of a GPU, a GpuTargetConfigProto in text format."""
    from lawm_jax.aot.flops import CHIPS

    name, capability, cores, block, core, units, clock, cache = SPECS[kind]
    chip = CHIPS[kind]
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32
          threads_per_core_limit: {1536 if kind == "l4" else 2048}
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {block}
          shared_memory_per_core: {core} core_count: {cores} fpus_per_core: {units}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          memory_bandwidth: {chip.bandwidth:.0f} device_memory_size: {chip.memory:.0f}
          l2_cache_size: {cache} clock_rate_ghz: {clock}
          cuda_compute_capability {{ major: {capability} minor: {9 if kind == "l4" else 0} }}
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
        device_description_str: "{name}"
    """


def share(chip, count):
    """Divides a chip's resources among its `count` devices."""
    memory, flops, bandwidth = (x / count for x in (chip.memory, chip.flops, chip.bandwidth))
    return dataclasses.replace(chip, memory=memory, flops=flops, bandwidth=bandwidth)


def pool(kind, environ):
    """Returns the fraction of a device's memory that JAX uses for arrays.

    Raises:
      ValueError: the fraction in the environment is not a number above 0, at most 1.
    """
    if kind not in GPUS:
        return 1.0
    names = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    name, text = next(((n, environ[n]) for n in names if environ.get(n)), ("", str(POOL)))
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {text!r}")
    return share


def check(config, devices, chip, pool=1.0):
    """Compiles a world model's training step for devices, which may be absent.

    Args:
      config: nested dict, as in configs/lawm.py.
      devices: list of devices, real or from a topology description.
      chip: flops.Chip of one device.
      pool: fraction of the device's memory that a step may use.

    Returns:
      dict: `mesh`, `batch`, `accumulate`, `hbm` (the device's memory), `room` (the part of it that
      a step may use), `fits`, `memory` in bytes per device (`total` is the sum in use at once; None
      if the compiler ran out of memory), and the entries of `estimate`.

    Raises:
      ValueError: the config is not of a world model, or does not match the devices.
    """
    import jax

    from lawm_jax import latents
    from lawm_jax.train import cpu, loop

    if "predictor" not in config or latents.make(**config["latent"]).labelled:
        raise ValueError("--config: expected a world model without labels, such as configs/lawm.py")
    run = loop.Run.abstract(config, devices)
    result = {"device": devices[0].device_kind, "mesh": dict(run.mesh.shape), "fits": True}
    result |= {"batch": run.batch["video"].shape[0], "accumulate": run.accumulate}
    result |= {"hbm": chip.memory, "room": pool * chip.memory} | estimate(run, chip)
    platform, start = devices[0].platform, time.monotonic()
    options = UNTIMED if platform in ("gpu", "cuda") else cpu.options(platform)
    try:
        compiled = run.lower().compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = " ".join(str(error).split())[:400]
        return result | {"fits": False, "memory": None, "error": text}
    found = compiled.memory_analysis()
    names = "argument", "output", "alias", "temp", "generated_code"
    memory = {name: getattr(found, f"{name}_size_in_bytes") for name in names}
    memory["peak"] = getattr(found, "peak_memory_in_bytes", None)
    memory["total"] = sum(memory[name] for name in names) - 2 * memory["alias"]
    result["fits"] = memory["total"] <= result["room"]
    return result | {"memory": memory, "compile_seconds": time.monotonic() - start}


def estimate(run, chip):
    """Computes a lower bound on a step's time per device from its FLOPs and memory traffic.

    Args:
      run: loop.Run of a world model.
      chip: flops.Chip of one device.

    Returns:
      dict: `flops` and `bytes` per device and step (the device processes its shard of the batch
      with all weights, and reads, updates and writes its shard of the state); `optimiser_flops`, a
      part of `flops`; `model_flops` per clip, without the optimizer and without rematerialization;
      `intensity` in FLOPs per byte; `seconds` per step, and their `bound`, "compute" or "memory";
      `clips` per second and device.
    """
    import jax

    from lawm_jax.aot.flops import count, roofline
    from lawm_jax.train.step import train_step

    video = run.batch["video"]
    clips = video.shape[0] // run.mesh.size
    batch = {"video": jax.ShapeDtypeStruct((clips, *video.shape[1:]), video.dtype)}
    nets = {name: getattr(run.model, name) for name in ("inverse", "predictor")}
    nets = {name: net and net.clone(remat="") for name, net in nets.items()}
    plain = dataclasses.replace(run.model, **nets)

    def step(model):
        return lambda *args: train_step(model, run.tx, *args, run.accumulate, run.objective)

    args = run.frozen, run.like, batch
    flops, size = count(step(run.model), *args)
    once, _ = count(step(plain), *args)
    params = run.like["params"]
    update, moved = count(run.tx.update, params, run.like["opt"], params)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, run.like["opt"])))
    fsdp = run.mesh.shape["fsdp"]
    flops = flops - update + update / fsdp
    size = size - moved + (moved + 2 * state) / fsdp
    seconds, bound = roofline(flops, size, chip)
    return {
        "flops": flops,
        "bytes": size,
        "optimiser_flops": update / fsdp,
        "model_flops": (once - update) / clips,
        "intensity": flops / size,
        "seconds": seconds,
        "bound": bound,
        "clips": clips / seconds,
    }


def versions():
    """Returns the commit and the versions of the compiler packages."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
    )
    return {"commit": commit.stdout.strip() or None, "versions": found}


def describe(result):
    """Formats a result for the terminal."""
    memory, chips = result["memory"], result["chips"]
    gib = lambda x: f"{x / 2**30:.2f} GiB"  # noqa: E731
    room = f"the device's {gib(result['room'])}"
    if result["room"] < result["hbm"]:
        share = result["room"] / result["hbm"]
        room = f"the {gib(result['room'])} of JAX's pool ({share:.0%} of {gib(result['hbm'])})"
    lines = [
        f"{result['topology']} x {result['slices']}: {chips} chips, mesh {result['mesh']}, batch "
        f"{result['batch']}, {result['batch'] / chips:g} clips per chip"
        + (f", accumulated in {result['accumulate']} parts" if result["accumulate"] > 1 else ""),
        f"work per device and step: {result['flops'] / 1e12:.1f} TFLOP, {result['bytes'] / 1e9:.1f}"
        f" GB, {result['intensity']:.0f} FLOP per byte; {result['model_flops'] / 1e12:.2f} TFLOP "
        "per clip without rematerialization and the optimizer",
    ]
    if memory:
        lines.append(
            f"memory per device: arguments {gib(memory['argument'])}, temporary "
            f"{gib(memory['temp'])}, in total {gib(memory['total'])} of {room}"
        )
    if result["fits"]:
        total = result["batch"] / result["seconds"]
        lines.append(
            f"fits; a step takes at least {result['seconds'] * 1e3:.0f} ms (limited by "
            f"{result['bound']}): {total / chips:.1f} clips/s per chip, {total:.0f} in total"
        )
    else:
        lines.append(
            f"does not fit into {room}: process fewer clips at once (--config.optim.accumulate="
            f"{2 * result['accumulate']}, or a larger power of two, keeps the batch; "
            f"--batch-per-chip does not) or increase --config.mesh.fsdp. {result.get('error', '')}"
        )
    return "\n".join(lines)


def add(path, result):
    """Appends a result to the list in a JSON file, which is created if missing."""
    rows = []
    if os.path.exists(path):
        with open(path) as file:
            rows = json.load(file)
    with open(path, "w") as file:
        json.dump([*rows, result], file, indent=1)


if __name__ == "__main__":
    app.run(main)

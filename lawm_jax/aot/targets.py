"""Describes absent TPUs and GPUs to compile for, and their memory."""

import dataclasses
import math
import re

from jax.experimental import topologies

from lawm_jax.aot.flops import CHIPS

TPUS, GPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x"), ("l4", "a100", "h100", "h200")
POOL = 0.75  # fraction of a GPU's memory that JAX preallocates by default
# GPU descriptions for XLA: name, compute capability, threads per SM, SMs, maximum (opt-in) shared
# memory per block and shared memory per SM in bytes, float32 units per SM, clock in GHz, and L2
# cache in bytes.
# Source: xla/backends/gpu/target_config/specs in https://github.com/openxla/xla; for the L4,
# which is missing there, NVIDIA's data sheet and CUDA's table of compute capability 8.9.
SPECS = {
    "l4": ("NVIDIA L4", "8.9", 1536, 58, 101376, 102400, 128, 2.04, 50331648),
    "a100": ("NVIDIA A100-SXM4-80GB", "8.0", 2048, 108, 166912, 167936, 64, 1.41, 41943040),
    "h100": ("NVIDIA H100 80GB HBM3", "9.0", 2048, 132, 232448, 233472, 128, 1.98, 52428800),
    "h200": ("NVIDIA H200 141GB HBM3e", "9.0", 2048, 132, 232448, 233472, 128, 1.98, 52428800),
}
QUIET = {  # environment variables for libtpu without a TPU
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # otherwise a second process fails
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def devices(topology, slices=1):
    """Creates descriptions of absent devices, to compile for.

    Args:
      topology: KIND:CHIPS, see lawm_jax/aot/__main__.py.
      slices: number of TPU slices.

    Returns:
      The kind, the number of chips, and the devices (two per chip for tpu7x).

    Raises:
      ValueError: the topology does not exist, or its compiler is not installed.
    """
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
            description = topologies.get_topology_desc(name, platform="cuda", **options)
        else:
            options = {"num_slices": slices} if slices > 1 else {}
            options |= {"chip_config_name": "megacore"} if kind == "v4" else {}
            options |= {"chips_per_host_bounds": (1, 1, 1)} if math.prod(axes) == 1 else {}
            description = topologies.get_topology_desc(topology, platform="tpu", **options)
    except Exception as error:  # from several libraries: no plugin, wrong version, unknown shape
        extra = "cuda" if kind in GPUS else "tpu"
        raise ValueError(
            f"--topology: {topology}: {error}. To install the compiler in jaxlib's version: "
            f"pip install 'lawm_jax[{extra}]'"
        ) from error
    return kind, chips, description.devices


def _gpu(kind):
    """Returns XLA's description of a GPU, a GpuTargetConfigProto in text format."""
    name, capability, threads, sms, per_block, per_sm, units, clock, cache = SPECS[kind]
    major, minor = capability.split(".")
    chip = CHIPS[kind]
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32
          threads_per_core_limit: {threads}
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {per_block}
          shared_memory_per_core: {per_sm} core_count: {sms} fpus_per_core: {units}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          memory_bandwidth: {chip.bandwidth:.0f} device_memory_size: {chip.memory:.0f}
          l2_cache_size: {cache} clock_rate_ghz: {clock}
          cuda_compute_capability {{ major: {major} minor: {minor} }}
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
    name = next((name for name in names if environ.get(name)), None)
    if name is None:
        return POOL
    try:
        fraction = float(environ[name])
    except ValueError:
        fraction = 0.0  # rejected below
    if not 0 < fraction <= 1:
        text = f"expected a number above 0 and at most 1, got {environ[name]!r}"
        raise ValueError(f"{name}: {text}")
    return fraction

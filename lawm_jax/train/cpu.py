"""Settings for CPUs: compiler options, one device per core, memory allocation."""

import ctypes
import functools
import glob
import os
import pathlib

import jax


@functools.cache
def options(platform=None):
    """Returns XLA options for the argument `compiler_options` of `jax.jit`.

    On CPUs, they disable XLA's fusion emitters, so that nano's step compiles in two thirds of the
    time and runs equally fast, and use the CPU's full vector width (jaxlib 0.10). Options that the
    XLA version does not know are left out (jaxlib 0.12 has no switch for the emitters).

    Args:
      platform: platform of the compiled function, "cpu", "gpu" or "tpu"; by default JAX's backend.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    candidates = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_prefer_vector_width": 512}
    supported = {}
    for name, value in candidates.items():
        try:
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                jax.jit(lambda x: x, compiler_options={name: value})(0)
        except jax.errors.JaxRuntimeError:
            continue
        supported[name] = value
    return supported


def device_per_core():
    """Makes each CPU core a JAX device, unless the user has set the number of CPU devices.

    Must be called before JAX is used. Sharding a function over devices uses the cores better than
    parallelizing each operation: on 2 cores, planning takes three quarters of the time.
    """
    if jax.config.jax_num_cpu_devices < 0 and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        has = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores)


def keep_memory():
    """Keeps freed memory in this process, if JAX runs on CPUs with glibc.

    Must be called before JAX is used, because its threads would already have their own pools. XLA
    allocates memory anew in each call, by default from the system, which zeroes every page: for the
    100 MB of nano's training step, this took a third of the time. In return, the process never
    shrinks, and its threads share one pool. On the host of an accelerator, nothing is changed: the
    lock of a shared pool would block its many decoding threads.
    """
    if jax.config.jax_platforms != "cpu" and _accelerators():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: return no memory to the system
    mallopt(-4, 0)  # M_MMAP_MAX: allocate nothing with mmap
    mallopt(-8, 1)  # M_ARENA_MAX: one shared pool; pools of single threads are limited to 64 MB


def accelerator():
    """Returns the platform and device that JAX uses, e.g. "gpu: NVIDIA A100-SXM4-40GB" or "cpu".

    Raises:
      RuntimeError: this machine has an NVIDIA GPU or a TPU, but JAX uses the CPU.
    """
    if jax.default_backend() != "cpu":
        return f"{jax.default_backend()}: {jax.devices()[0].device_kind}"
    for name, extra in _accelerators().items():
        raise RuntimeError(
            f"expected JAX to use this machine's accelerator: it has {name}, but JAX uses the "
            f"CPU; install 'jax[{extra}]=={jax.__version__}' and restart"
        )
    return "cpu"


# PCI device ids of Google's TPUs: v2 and v3, v4, v5p, v5e, v6e, tpu7x.
TPUS = "0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"


def _accelerators():
    """Returns this machine's accelerators, usable or not: name -> JAX's pip extra."""
    pci = [path.parent for path in pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")]
    ids = [tuple((path / x).read_text().strip() for x in ("vendor", "device")) for path in pci]
    accelerators = {"a GPU": "cuda12"} if glob.glob("/dev/nvidia[0-9]*") else {}
    if any(vendor == "0x1ae0" and device in TPUS for vendor, device in ids):
        accelerators["a TPU"] = "tpu"
    return accelerators

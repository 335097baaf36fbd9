"""Settings for CPUs: compiler options, one device per core, memory allocation."""

import ctypes
import functools
import glob
import os
import pathlib

import jax


@functools.cache
def options(platform=None):
    """Returns options of XLA, to be `compiler_options` of `jax.jit`.

    On a CPU they turn XLA's fusion emitters off, nano's step then takes a third less to compile, at
    the same speed, and make its vectors as wide as the CPU's (jaxlib 0.10). A version of XLA that
    doesn't know one of them goes without it (jaxlib 0.12, without the emitters' switch).

    Args:
      platform: what the function will run on, "cpu", "gpu" or "tpu"; by default what jax runs on.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    wanted = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_prefer_vector_width": 512}
    found = {}
    for name, value in wanted.items():
        try:
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                jax.jit(lambda x: x, compiler_options={name: value})(0)
        except jax.errors.JaxRuntimeError:
            continue
        found[name] = value
    return found


def device_per_core():
    """Makes each core of the CPU a device, unless the user has said how many devices it is to be.

    To be called before JAX is used. A function that is spread over devices keeps the cores busier
    than one whose every operation is: planning takes three quarters of the time on 2.
    """
    if jax.config.jax_num_cpu_devices < 0 and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        has = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores)


def keep_memory():
    """Keeps freed memory for this process, where JAX runs on CPUs and the C library is glibc.

    Elsewhere does nothing: on an accelerator's host, with its many decoding threads, one shared
    pool would be a lock that all wait for. To be called before JAX is used, whose threads would
    have pools of their own by then. XLA allocates what a call needs anew each time, by default from
    the system, which clears every page of it: of nano's training step, 100 MB, that was a third of
    the time. In return what the process needed once stays its own, and its threads share one pool.
    """
    if jax.config.jax_platforms != "cpu" and _accelerators():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: give nothing back
    mallopt(-4, 0)  # M_MMAP_MAX: take nothing apart
    mallopt(-8, 1)  # M_ARENA_MAX: a thread's own pool can't hold more than 64 MB


def accelerator():
    """Returns what JAX computes on, such as "gpu: NVIDIA A100-SXM4-40GB" or "cpu".

    Raises:
      RuntimeError: this machine has a GPU of NVIDIA or a TPU, and JAX computes on the CPU.
    """
    if jax.default_backend() != "cpu":
        return f"{jax.default_backend()}: {jax.devices()[0].device_kind}"
    for name, extra in _accelerators().items():
        raise RuntimeError(
            f"expected JAX to compute on this machine's accelerator: it has {name} and JAX "
            f"computes on the CPU; install 'jax[{extra}]=={jax.__version__}' and restart"
        )
    return "cpu"


# PCI devices of Google that are TPUs: v2 and v3, v4, v5p, v5e, v6e, tpu7x.
TPUS = "0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"


def _accelerators():
    """Returns those that this machine has, whether JAX can use them or not: name -> JAX's extra."""
    pci = [path.parent for path in pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")]
    ids = [tuple((path / x).read_text().strip() for x in ("vendor", "device")) for path in pci]
    found = {"a GPU": "cuda12"} if glob.glob("/dev/nvidia[0-9]*") else {}
    if any(vendor == "0x1ae0" and device in TPUS for vendor, device in ids):
        found["a TPU"] = "tpu"
    return found

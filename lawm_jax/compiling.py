"""How to run on a CPU: options for compiling what runs for long, a device per core, memory."""

import ctypes
import functools
import os

import jax


@functools.cache
def options(platform=None):
    """Returns options of XLA, to be `compiler_options` of `jax.jit`.

    On a CPU they turn XLA's fusion emitters off, nano's step then takes a third less to compile, at
    the same speed, and make its vectors as wide as the CPU's (jaxlib 0.10).

    Args:
      platform: what the function will run on, "cpu", "gpu" or "tpu"; by default what jax runs on.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    found = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_prefer_vector_width": 512}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda x: x, compiler_options=found)(0)
    except jax.errors.JaxRuntimeError:
        return {}  # another version of XLA, that does not know the option
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
    """Keeps freed memory for this process, where the C library is glibc; elsewhere does nothing.

    To be called before JAX is used. XLA allocates what a call needs anew each time, by default from
    the system, which clears every page of it: of nano's training step, 100 MB, that was a third of
    the time. In return what the process needed once stays its own, and its threads share one pool.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: give nothing back
    mallopt(-4, 0)  # M_MMAP_MAX: take nothing apart
    mallopt(-8, 1)  # M_ARENA_MAX: a thread's own pool can't hold more than 64 MB

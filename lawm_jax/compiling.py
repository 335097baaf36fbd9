"""Compiles what runs for long."""

import jax


def compile(lowered, platform=None):
    """Compiles, on a CPU without XLA's fusion emitters.

    There, nano's step then takes a third less to compile, at the same speed, and planning runs 1.8
    times as fast (jaxlib 0.10).

    Args:
      lowered: what `jax.jit(...).lower(...)` returns.
      platform: what it will run on, "cpu", "gpu" or "tpu"; by default what jax runs on.

    Returns:
      The compiled function.
    """
    if (platform or jax.default_backend()) == "cpu":
        try:
            return lowered.compile({"xla_cpu_use_fusion_emitters": False})
        except jax.errors.JaxRuntimeError:
            pass  # another version of XLA, that does not know the option
    return lowered.compile()

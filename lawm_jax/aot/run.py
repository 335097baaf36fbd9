"""Checks whether a training step fits a topology, prints the result and stores it."""

import os

import jax

from lawm_jax.aot import analysis, results, targets
from lawm_jax.aot.flops import CHIPS
from lawm_jax.data import paths, settings


class Refused(ValueError):
    """Signals an argument of `run` that is invalid or does not match the others."""


def run(config, topology, *, slices=1, batch_per_chip=None, json_file=None, given=()):
    """Compiles a world model's training step for a topology, and prints and stores the result.

    Args:
      config: nested dict, as in configs/lawm.py; changed to hold the batch.
      topology: KIND:CHIPS, see `targets.devices`.
      slices: number of TPU slices.
      batch_per_chip: clips per chip; None for the config's batch.
      json_file: file with a list of results, to which this result is appended, or None.
      given: command line flags, stored with the result.

    Returns:
      Whether the step fits into the memory.

    Raises:
      Refused: the config or the topology is invalid, or they do not match.
    """
    for name, value in targets.QUIET.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        settings.check(config, per_device=True)
        kind, chips, devices = targets.devices(topology, slices)
        if batch_per_chip:
            config["data"]["batch"] = batch_per_chip * chips
        chip = targets.share(CHIPS[kind], len(devices) // chips)
        checked = analysis.check(config, devices, chip, targets.pool(kind, os.environ))
    except ValueError as error:
        raise Refused(str(error)) from error
    request = {"topology": topology, "slices": slices, "flags": list(given), "chips": chips}
    result = request | checked | results.versions()
    print(results.describe(result))
    if json_file:
        results.add(paths.expand(json_file), result)
    return result["fits"]

"""The config of a run that is started or resumed."""

import os
import warnings

import jax
from flax.traverse_util import flatten_dict

from lawm_jax.data import catalog, paths
from lawm_jax.train import rundir, sharding

# Options that may differ when a run is resumed.
FREE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "checkpoint_keep_period",
    "eval_every",
    "init_from",
    "mesh.",
    "data.workers",
    "data.batch_per_device",
    "optim.accumulate",
)


def check_config(workdir, config):
    """Checks that a run that is already in the folder, with a checkpoint, has the same config.

    Returns:
      The config, with a `data.batch` of 0 replaced by the batch size of the existing or new run,
      and with absolute paths, so that the run can be continued and evaluated from every folder.
    """
    config = _with_absolute_paths(config)
    data = config["data"]
    size = sharding.batch_size(data, jax.device_count())
    if paths.exists(rundir.weights(workdir)):
        raise ValueError(
            f"{workdir}: expected a new --workdir or that of a run, got an exported model"
        )
    before = None
    if rundir.has_checkpoint(workdir) and paths.exists(rundir.config(workdir)):
        before = _with_absolute_paths(rundir.read_config(workdir))
        size = data["batch"] or before["data"]["batch"]
    config = config | {"data": data | {"batch": size}}
    if before and "init_from" in before:  # where the run began
        config["init_from"] = before["init_from"]
    before = before or config
    changed = [key for key in _differences(before, config) if not key.startswith(FREE)]
    if changed:
        raise ValueError(
            f"{workdir}: expected a new --workdir or the config of the existing run, got other "
            f"values of: {', '.join(changed)}{_moved(before, config)}"
        )
    if before["steps"] != config["steps"]:
        warnings.warn(
            f"{workdir}: steps: was {before['steps']}, is {config['steps']}; from here on, the "
            "learning rate follows the new schedule, so the result differs from an uninterrupted "
            "run of either length",
            stacklevel=3,
        )
    return config


def _differences(a, b):
    """Returns the names of the options, such as "data.size", that differ between two configs."""
    a, b = (flatten_dict(config, keep_empty_nodes=True, sep=".") for config in (a, b))
    return sorted(key for key in a.keys() | b.keys() if a.get(key, a) != b.get(key, b))


def _with_absolute_paths(config):
    """Returns a config whose paths denote the same files from every current folder."""
    config = config | {"data": catalog.with_absolute_paths(config["data"])}
    weights = config["encoder"]["weights"]
    if weights != "embedded" and os.path.exists(paths.expand(weights)):  # no Hugging Face name
        config["encoder"] = config["encoder"] | {"weights": paths.absolute(weights)}
    for key in {"model", "init_from"} & config.keys():
        config[key] = paths.absolute(config[key] or "")
    return config


def _moved(before, config):
    """Says where a run reads its data and where it would now, for an error; "" if unchanged."""
    old, new = (flatten_dict(x["data"], sep=".") for x in (before, config))
    places = [key for key in old if key.startswith(("videos", "sources")) and key in new]
    moved = [key for key in places if old[key] != new[key]]
    return "".join(f"; data.{key} was {old[key]!r}, is {new[key]!r}" for key in moved)

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
    """Checks that the config is that of the run already in the folder, if it has a checkpoint.

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
    if before:
        if "model_seed" not in before:  # an older controller
            config.pop("model_seed", None)
        given = config.pop("init_from", None)
        if "init_from" in before:  # where the run began
            config["init_from"] = before["init_from"]
        if given and given != before.get("init_from"):
            warnings.warn(f"{workdir}: --init_from is ignored, as the run exists", stacklevel=3)
    before = before or config
    changed = [x for x in _differences(before, config) if not x.startswith(FREE)]
    if changed:
        raise ValueError(
            f"{workdir}: expected a new --workdir or the config of the existing run, got other "
            f"values: {', '.join(changed)}"
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
    """Describes the options that differ between two configs: "data.size was 64, is 128"."""
    a, b = (flatten_dict(config, sep=".") for config in (a, b))
    show = lambda x: "not set" if x is None else repr(x)  # noqa: E731
    return [
        f"{key} was {show(a.get(key))}, is {show(b.get(key))}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def _with_absolute_paths(config):
    """Returns a config whose paths denote the same files from every current folder."""
    config = config | {"data": catalog.with_absolute_paths(config["data"])}
    weights = config["encoder"]["weights"]
    if weights != "embedded" and os.path.exists(paths.expand(weights)):  # not a Hugging Face name
        config["encoder"] = config["encoder"] | {"weights": paths.absolute(weights)}
    for key in {"model", "init_from"} & config.keys():
        config[key] = paths.absolute(config[key] or "")
    return config

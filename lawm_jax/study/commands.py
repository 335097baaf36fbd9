"""Describes the runs of studies and builds their commands."""

import json
import os
import sys
from typing import Any, NamedTuple

from lawm_jax.data import paths
from lawm_jax.data.settings import Refused


class Config(NamedTuple):
    """A config as given on the command line.

    Attributes:
      value: ConfigDict.
      file: FILE.py:ARGUMENT.
      overrides: option -> value that the command line sets.
    """

    value: Any
    file: str
    overrides: dict

    @property
    def options(self):
        """The overrides, without the data sources and their mixture, which the study sets."""
        excluded = "data.sources", "data.mixture"
        return {key: value for key, value in self.overrides.items() if not key.startswith(excluded)}


class Run(NamedTuple):
    """Describes a world model, its controllers and its measurements.

    Attributes:
      labels: settings that differ between runs, such as `kind`, `share` (percent) and `seed`.
      folder: of the world model's run.
      commands: command lines, each a list.
      steps: folder of each training run -> number of steps.
      results: name -> (path of a JSON file, its key or None for all of it), saved with the run.
      settings: JSON tree; saved results are valid only for the same settings.
    """

    labels: dict
    folder: str
    commands: list
    steps: dict
    results: dict
    settings: list


def local(workdir):
    """Returns the absolute path of a study's folder; raises `Refused` if it is a URL."""
    if paths.is_url(workdir):
        raise Refused(f"workdir: expected a local folder, got {workdir}")
    return os.path.abspath(paths.expand(workdir))


def stored_states(workdir, model, video):
    """Stores the states of data sources, if they are the same in every clip.

    Args:
      workdir: absolute path of the study's folder.
      model: `Config` of the world models.
      video: name -> data source.

    Returns:
      stored: command lines that store states, each a list; empty if training must read video.
      sources: name -> data source to train on.
    """
    if not _has_fixed_states(model.value):
        return [], video
    folders = {name: os.path.join(workdir, "states", name) for name in video}
    stored = [_ingest(model, spec, folders[name]) for name, spec in video.items()]
    return stored, {name: f"records:{folder}" for name, folder in folders.items()}


def _has_fixed_states(config):
    """Returns whether a frame has the same state in every clip, so that states can be stored."""
    from lawm_jax import world_model  # slow import, after the settings are checked

    augment = config.data.augment  # random per clip
    changed = augment.crop or augment.flip or augment.jitter or augment.cut
    return world_model.build(config).encoder.alone and not changed


def _ingest(model, spec, folder):
    """Returns the command that stores the states of a data source in a folder."""
    flags = dict(source=spec, out=folder, holdout=model.value.data.holdout, encoder=model.file)
    options = {k: x for k, x in model.options.items() if k.startswith(("data.", "encoder."))}
    return command("ingest", flags, encoder=options)


def with_argument(file, text):
    """Adds an argument, such as "latent=noisy", to a config as in `Config.file`."""
    return f"{file}{',' if ':' in file else ':'}{text}"


def command(module, flags, **configs):
    """Returns a command line with flags and, for config flags, overrides: name -> options."""
    line = [sys.executable, "-m", f"lawm_jax.{module}"]
    line += [f"--{key}={value}" for key, value in flags.items() if value is not None]
    for name, options in configs.items():
        line += [f"--{name}.{key}={_text(value)}" for key, value in options.items()]
    return line


def _text(value):
    return json.dumps(value) if isinstance(value, dict) else str(value)

"""Plans the study `mixture`: its runs, and the commands of each."""

import contextlib
import dataclasses
import json
import os
import sys
from typing import Any, NamedTuple

KINDS = ("sparse", "noisy", "discrete", "none")


class Refused(ValueError):
    """Signals an invalid setting; the message begins with the setting's name."""


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
        own = "data.sources", "data.mixture"
        return {key: value for key, value in self.overrides.items() if not key.startswith(own)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a study consists of, as on the command line.

    Attributes:
      model, controller: `Config` of the world models and of the controllers.
      inside: name of the in-domain data source.
      outside: names of the other data sources, or None for all others in the mixture.
      task: as in `lawm_jax.plan`.
      shares: shares of `inside` in the mixture, in percent, as text.
      kinds: kinds of latents, some of `KINDS`.
      steps: training steps of the world models, or None for the config's.
      seeds: number of runs per share and kind.
      planner: options of `lawm_jax.plan`: `episodes`, `samples`, `iterations`.
    """

    model: Config
    controller: Config
    inside: str
    outside: list | None
    task: str
    shares: list
    kinds: list
    steps: int | None
    seeds: int
    planner: dict


class Run(NamedTuple):
    """A world model and its controller, for one kind of latent, share and seed.

    Attributes:
      kind, share, seed: `share` in percent.
      inside: as in `Settings`.
      folder: of the world model's run.
      commands: command lines, each a list: train both, evaluate and plan.
      steps: folder of each training run -> number of steps.
      settings: JSON tree; saved results are valid only for the same settings.
    """

    kind: str
    share: float
    seed: int
    inside: str
    folder: str
    commands: list
    steps: dict
    settings: list


def plan(workdir, asked):
    """Lists the runs of a study, and the commands that store the states that they share.

    Args:
      workdir: absolute path of the study's folder.
      asked: Settings.

    Returns:
      stored: command lines, each a list; empty if training reads video instead of stored states.
      runs: list of Run.

    Raises:
      Refused: a setting is invalid.
    """
    outside, shares = _outside(asked), [_percent(text) for text in asked.shares]
    if not asked.kinds or not set(asked.kinds) <= set(KINDS):
        raise Refused(f"kinds: expected some of {', '.join(KINDS)}, got {asked.kinds}")
    config = asked.model.value
    video = {name: config.data.sources[name] for name in [asked.inside, *outside]}
    stored, sources = [], video
    if _has_fixed_states(config):
        sources = {name: f"records:{_states(workdir, name)}" for name in video}
        stored = [_ingest(workdir, asked.model, name, spec) for name, spec in video.items()]
    runs = [
        _run(workdir, asked, kind, share, seed, stored, sources, video[asked.inside])
        for seed in range(config.seed, config.seed + asked.seeds)
        for share in dict.fromkeys(shares)
        for kind in dict.fromkeys(asked.kinds)
    ]
    return stored, runs


def _has_fixed_states(config):
    """Returns whether a frame has the same state in every clip, so that states can be stored."""
    from lawm_jax import world_model  # slow import, after the settings are checked

    augment = config.data.augment  # random per clip
    changed = augment.crop or augment.flip or augment.jitter or augment.cut
    return world_model.build(config).encoder.alone and not changed


def _states(workdir, name):
    return os.path.join(workdir, "states", name)


def _ingest(workdir, model, name, spec):
    """Returns the command that stores the states of a data source."""
    flags = dict(source=spec, out=_states(workdir, name))
    flags |= dict(holdout=model.value.data.holdout, encoder=model.file)
    options = {k: x for k, x in model.options.items() if k.startswith(("data.", "encoder."))}
    return _command("ingest", flags, encoder=options)


def _run(workdir, asked, kind, share, seed, stored, sources, video):
    """Makes a `Run`.

    Args:
      workdir, asked, stored: see `plan`.
      kind, share, seed: see `Run`.
      sources: name -> data source to train on, `inside` first.
      video: data source `inside` as video. Planning needs video, not states: `plan` then draws the
        same clips for every model.
    """
    model, controller, inside, task = asked.model, asked.controller, asked.inside, asked.task
    folder = os.path.join(workdir, "mixture", f"{kind}-{share:g}-{seed}")
    small = os.path.join(folder, "controller", inside)
    latent = f"{model.file}{',' if ':' in model.file else ':'}latent={kind}"
    weights = _weights(model.value.data.mixture, sources, inside, share)
    options = model.options | ({"steps": asked.steps} if asked.steps else {})
    options |= {"seed": seed, "data.sources": sources, "data.mixture": weights}
    theirs = {"seed": seed, "model": folder, "data.videos": sources[inside]}
    data = f"{inside}={sources[inside]}"
    planner = dict(workdir=folder, task=task, data=f"{task}={video}", controller=small)
    planner["json"] = os.path.join(folder, "plan.json")
    commands = [
        _command("train", dict(config=latent, workdir=folder), config=options),
        _command(
            "train",
            dict(config=controller.file, workdir=small),
            config=controller.options | theirs,
        ),
        _command("evaluate", dict(workdir=folder, only="prediction", data=data)),
        _command("plan", planner | asked.planner),
    ]
    steps = {folder: asked.steps or model.value.steps, small: controller.value.steps}
    configs = [json.loads(x.value.to_json_best_effort()) for x in (model, controller)]
    settings = [configs, stored, commands]
    return Run(kind, share, seed, inside, folder, commands, steps, settings)


def _outside(asked):
    """Returns the names of the out-of-domain sources."""
    data = asked.model.value.data
    weights = {name: weight for name, weight in data.mixture.items() if weight > 0}
    if data.videos or asked.inside not in data.sources:
        got = f"data.videos={data.videos}" if data.videos else ", ".join(data.sources)
        raise Refused(f"inside: expected a data source of the config ({got}), got {asked.inside!r}")
    others = weights.keys() - {asked.inside}
    names = sorted(others) if asked.outside is None else asked.outside
    if not names or not set(names) <= others:
        raise Refused(
            f"outside: expected other data sources of the mixture, {sorted(others)}, got {names}"
        )
    return names


def _percent(text):
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 100:
            return float(text)
    raise Refused(f"shares: expected numbers from 0 to 100, got {text!r}")


def _weights(mixture, names, inside, share):
    """Returns mixture weights: `share` percent `inside`, the rest split as in `mixture`."""
    outside = [name for name in names if name != inside]
    whole = sum(mixture[name] for name in outside)
    rest = {name: (100 - share) / 100 * mixture[name] / whole for name in outside}
    return {name: round(float(w), 9) for name, w in ({inside: share / 100} | rest).items()}


def _command(module, own, **configs):
    """Returns a command line with the flags `own` and config overrides, flag name -> options."""
    line = [sys.executable, "-m", f"lawm_jax.{module}"]
    line += [f"--{key}={value}" for key, value in own.items() if value is not None]
    for name, options in configs.items():
        line += [f"--{name}.{key}={_text(value)}" for key, value in options.items()]
    return line


def _text(value):
    return json.dumps(value) if isinstance(value, dict) else str(value)

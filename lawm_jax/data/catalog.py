"""The data sources that a config names, KIND:WHERE?OPTION=VALUE, and how they are opened."""

import inspect
import json
import os
import urllib.parse
from typing import NamedTuple

import ml_collections

from lawm_jax.data import (
    droid,
    frames,
    lerobot,
    mini,
    paths,
    recon,
    records,
    swm,
    tfds,
    video,
    webdataset,
)

KINDS = {
    "videos": video.source,
    "mini": mini.source,
    "records": records.source,
    "recon": recon.source,
    "lerobot": lerobot.source,
    "droid": droid.source,
    "tfds": tfds.source,
    "webdataset": webdataset.source,
    "swm": swm.source,
}


def names(config):
    """Returns the sorted names of the sources to train on."""
    return sorted(name for name, weight in weights(config.data).items() if weight > 0)


def source(config, name, split="train"):
    """Opens one source of a config.

    Args:
      config: as in `pipeline.clips`.
      name: one of `names(config)`. `data.sources[name]` is the source's spec, KIND:WHERE or
        KIND:WHERE?OPTION=VALUE&..., with a kind of `KINDS`. The name "videos" refers to
        `data.videos`, which may omit the kind or be a list of paths.
      split: "train" or "test".

    Returns:
      A source, see `lawm_jax.data`.

    Raises:
      ValueError: the name or kind is unknown, or nothing matches.
    """
    data = config.data
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    if data.videos and name == "videos":
        label, spec = f"data.videos={data.videos!r}", data.videos
    elif name in data.sources:
        label, spec = f"data.sources.{name}={data.sources[name]!r}", data.sources[name]
    else:
        raise ValueError(f"data.mixture: expected names from data.sources, got {name!r}")
    opened = open_source(label, spec, split, data)
    if getattr(opened, "encoder", None):
        expected, got = json.loads(opened.encoder), json.loads(config.encoder.to_json())
        if expected != got:
            raise ValueError(
                f"encoder: expected {expected}, which encoded the states of {label}, got {got}"
            )
    return opened


class Spec(NamedTuple):
    """A parsed source spec, see `parse`.

    Attributes:
      kind: a key of `KINDS`.
      where: a path; for the kind "videos" also a glob or a list of paths.
      options: name -> value, both str.
    """

    kind: str
    where: str | list
    options: dict

    @property
    def folder(self):
        """The path of the data, with `~` expanded; for embedded data, its folder in the package."""
        return mini.folder(self.where) if self.kind == "mini" else paths.expand(self.where)


def parse(name, text):
    """Parses a source spec: KIND:WHERE, or KIND:WHERE?OPTION=VALUE&...

    Args:
      name: the source's name in error messages.
      text: str, or a list of paths. Without a kind, it denotes video files.

    Returns:
      A Spec. A question mark in the name of an existing folder belongs to the name.

    Raises:
      ValueError: the text after the question mark isn't a list of options.
    """
    kind, _, where = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind not in KINDS:
        return Spec("videos", text, {})
    # In a glob, a question mark is a wildcard.
    if kind == "videos" or "?" not in where or os.path.exists(paths.expand(where)):
        return Spec(kind, where, {})
    folder, _, query = where.rpartition("?")
    try:
        return Spec(kind, folder, dict(urllib.parse.parse_qsl(query, strict_parsing=True)))
    except ValueError as error:
        expected = f"expected a folder, or FOLDER?OPTION=VALUE&..., got {where!r}"
        raise ValueError(f"{name}: {expected}") from error


def absolute(text):
    """Returns a source spec that denotes the same data from every current folder.

    Args:
      text: as in `parse`.

    Returns:
      The spec with relative paths joined to the current folder, see `paths.absolute`. URLs and the
      names of embedded data stay.

    Raises:
      ValueError: the name of the current folder would be taken for a part of a pattern.
    """
    if not isinstance(text, str):
        return [paths.absolute(path) for path in text]
    kind, _, where = text.partition(":")
    if kind not in KINDS:
        return paths.absolute(text)
    first = next(webdataset.expand(where)) if kind == "webdataset" else where
    if kind == "mini" and where in mini.PARTS or paths.absolute(first) == first:
        return text
    here = os.getcwd()
    if kind == "webdataset" and set("{?") & set(here) and not os.path.exists(where):
        raise ValueError(
            f"{text}: expected an absolute path, since the name of the current folder, {here}, "
            "contains pattern characters, got a relative path"
        )
    return f"{kind}:{paths.absolute(where)}"


def with_absolute_paths(data):
    """Returns the `data` of a config, a nested dict, with the `absolute` specs of its sources."""
    sources = {name: absolute(spec) for name, spec in data["sources"].items()}
    return data | {"videos": absolute(data["videos"]), "sources": sources}


def open_source(name, text, split, data):
    """Opens a source from its spec, see `parse`; the other arguments are as in `source`.

    Raises:
      ValueError: as in `source`; the message begins with the name.
    """
    augment, spec = data.augment, parse(name, text)
    area = tuple(augment.area) if augment.crop else None
    view = frames.View(data.size, data.resize, area, tuple(augment.ratio), augment.flip)
    arguments = name, spec.where, split, data, view
    try:
        inspect.signature(KINDS[spec.kind]).bind(*arguments, **spec.options)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
    try:
        return KINDS[spec.kind](*arguments, **spec.options)
    except ValueError as error:
        if len(error.args) == 1 and not str(error).startswith(name):
            error.args = (f"{name}: {str(error).removeprefix(f'{spec.kind}: ')}",)
        raise  # the same error, whose traceback shows where it is from


def weights(data):
    """Returns name -> weight of the mixture; ValueError if no weight is positive."""
    if data.videos:
        return {"videos": 1.0}
    mixture = {name: float(weight) for name, weight in dict(data.mixture).items()}
    if not any(weight > 0 for weight in mixture.values()):
        raise ValueError("data.mixture: expected a positive weight or data.videos, got neither")
    return mixture


def with_sources(config, sources):
    """Returns a copy of a config with other data sources, of equal weight: name -> spec."""
    config = config.copy_and_resolve_references()
    config.data.videos, config.data.sources = "", ml_collections.ConfigDict(sources)
    config.data.mixture = ml_collections.ConfigDict(dict.fromkeys(sources, 1.0))
    return config

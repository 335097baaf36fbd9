"""Where a run keeps its files: the only module that knows the layout of a --workdir.

    W/config.json  metrics.jsonl  skipped.jsonl  checkpoints/STEP/  tensorboard/  prior.safetensors
    W/eval/*.json  report/
    W/decoder/  controller/[NAME/]  bounds/NAME/    other runs, with a layout like this

It needs no JAX, so that a report can be made where there is none.
"""

import glob
import os

from lawm_jax.data import metadata, paths

# Orbax takes these for patterns, or for another file system: it would save what nothing can read.
PATTERNS = ("*", "?", "[", "\\")
BUCKETS = ("gs:", "s3:")


def folder(workdir):
    """Returns the absolute path of a folder that a run may write to, `~` expanded.

    Raises:
      ValueError: it is a URL, or has a name that checkpoints can't be written under.
    """
    path = os.path.abspath(paths.expand(workdir))
    if "://" in str(workdir):
        raise ValueError(
            f"workdir: expected a folder, for a bucket one where it is mounted (launch/README.md), "
            f"got {str(workdir)!r}"
        )
    wrong = [x for x in PATTERNS if x in path] + [x for x in BUCKETS if x in path.split(os.sep)]
    if not wrong and not path.isprintable():
        wrong = ["characters that can't be printed"]
    if wrong:
        raise ValueError(
            f"workdir: expected a path without {' '.join(PATTERNS)} and folders called "
            f"{' '.join(BUCKETS)}, which Orbax can't write checkpoints to, got {path!r}"
        )
    return path


def config(workdir):
    return _inside(workdir, "config.json")


def metrics(workdir):
    return _inside(workdir, "metrics.jsonl")


def skipped(workdir):
    return _inside(workdir, "skipped.jsonl")


def checkpoints(workdir):
    return _inside(workdir, "checkpoints")


def tensorboard(workdir):
    return _inside(workdir, "tensorboard")


def prior(workdir):
    return _inside(workdir, "prior.safetensors")


def evaluation(workdir, name):
    """Returns the path of an evaluation's result."""
    return _inside(workdir, "eval", f"{name}.json")


def report(workdir):
    """Returns the folder of pictures, films and the page."""
    return _inside(workdir, "report")


def write_config(workdir, text):
    """Writes the config, whole or not at all."""
    path = config(folder(workdir))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".tmp", "w") as file:
        file.write(text)
    os.replace(path + ".tmp", path)


def read_config(workdir):
    """Reads a run's config.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: it is damaged, or of something else.
    """
    path = config(workdir)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: not found; expected the folder of a training run")
    loaded = metadata.load(path, "the config of a training run")
    for name in ("encoder", "data"):
        metadata.field(path, loaded, name, "an object")
    return upgrade(loaded)


def upgrade(config):
    """Brings the config of an older version up to date; returns it."""
    for section in config.values():
        if isinstance(section, dict):
            section.pop("unroll", None)  # networks had it once
    if "objective" not in config:
        apart = [part for part in ("controller", "decoder") if part in config]
        config["objective"] = "world_model" if "predictor" in config or not apart else apart[0]
    return config


def has_checkpoint(workdir):
    """Says whether a run has saved a checkpoint."""
    return bool(glob.glob(os.path.join(glob.escape(checkpoints(workdir)), "[0-9]*")))


def decoder(workdir):
    """Returns the folder of a model's own trained decoder, or None."""
    path = _inside(workdir, "decoder")
    return path if has_checkpoint(path) else None


def controllers(workdir):
    """Lists the folders of a world model's trained controllers: W/controller[/NAME]."""
    first = _inside(workdir, "controller")
    others = sorted(glob.glob(os.path.join(glob.escape(first), "*")))
    return [path for path in (first, *others) if has_checkpoint(path)]


def controller(workdir, name):
    """Returns the folder of a controller, named within W/controller or by its path."""
    path = _inside(workdir, "controller", name)
    return path if name and os.path.isdir(path) else paths.expand(name)


def bounds(workdir):
    """Finds the runs to compare a world model with, W/bounds/NAME: name -> folder."""
    parent = _inside(workdir, "bounds")
    names = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    runs = {name: os.path.join(parent, name) for name in names}
    return {name: path for name, path in runs.items() if os.path.exists(config(path))}


def _inside(workdir, *names):
    return os.path.join(paths.expand(workdir), *names)

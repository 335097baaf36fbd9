"""The file layout of a run's folder (--workdir), which no other module knows.

    W/config.json  metrics.jsonl  skipped.jsonl  checkpoints/STEP/  tensorboard/  prior.safetensors
    W/eval/*.json  report/  profile/
    W/decoder/  controller/[NAME/]  bounds/NAME/    other runs with the same layout

An exported model has the same layout, with model.safetensors instead of checkpoints/.

This module does not import JAX, so that a report can be made without it.
"""

import glob
import os

from lawm_jax.data import metadata, paths

# Orbax treats these as patterns or as another file system, and would save unreadable checkpoints.
PATTERNS = ("*", "?", "[", "\\")
BUCKETS = ("gs:", "s3:")


def folder(workdir):
    """Returns the absolute path of a folder to which a run can write, with `~` expanded.

    Raises:
      ValueError: it is a URL, or its name cannot hold checkpoints.
    """
    path = os.path.abspath(paths.expand(workdir))
    if "://" in str(workdir):
        raise ValueError(
            f"workdir: expected a local folder, such as a mounted bucket (see launch/README.md), "
            f"got {str(workdir)!r}"
        )
    if os.path.isfile(path):
        raise ValueError(f"workdir: expected a folder, got a file, {path!r}")
    wrong = [x for x in PATTERNS if x in path] + [x for x in BUCKETS if x in path.split(os.sep)]
    if not wrong and not path.isprintable():
        wrong = ["characters that can't be printed"]
    if wrong:
        raise ValueError(
            f"workdir: expected a path without {' '.join(PATTERNS)}, unprintable characters or "
            f"folders named {' '.join(BUCKETS)}, which Orbax can't write to, got {path!r}"
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


def profile(workdir):
    """Returns the folder of traces of training steps."""
    return _inside(workdir, "profile")


def weights(workdir):
    """Returns the path of an exported model's parameters."""
    return _inside(workdir, "model.safetensors")


def prior(workdir):
    return _inside(workdir, "prior.safetensors")


def evaluation(workdir, name):
    """Returns the path of an evaluation's result."""
    return _inside(workdir, "eval", f"{name}.json")


def report(workdir):
    """Returns the folder of the report page and its images and videos."""
    return _inside(workdir, "report")


def write_config(workdir, text):
    """Writes the config atomically."""
    path = config(folder(workdir))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".tmp", "w") as file:
        file.write(text)
    os.replace(path + ".tmp", path)


def read_config(workdir):
    """Reads a run's config.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is damaged, or not a config of a run.
    """
    path = config(workdir)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: not found; expected the folder of a training run")
    loaded = metadata.load(path, "the config of a training run")
    for name in ("encoder", "data"):
        metadata.field(path, loaded, name, "an object")
    return upgrade(loaded)


def upgrade(config):
    """Updates (in place) and returns a config that an older version may have written."""
    for section in config.values():
        if isinstance(section, dict):
            section.pop("unroll", None)  # a former option of networks
    if "optim" in config:
        config["optim"].setdefault("ema", 0.0)
    if "objective" not in config:
        apart = [part for part in ("controller", "decoder") if part in config]
        config["objective"] = "world_model" if "predictor" in config or not apart else apart[0]
    return config


def has_checkpoint(workdir):
    """Returns whether a run has a checkpoint, or an exported model its parameters."""
    steps = glob.glob(os.path.join(glob.escape(checkpoints(workdir)), "[0-9]*"))
    return bool(steps) or os.path.exists(weights(workdir))


def decoder(workdir):
    """Returns the folder of the decoder trained for a model, or None."""
    path = _inside(workdir, "decoder")
    return path if has_checkpoint(path) else None


def controllers(workdir):
    """Lists the folders of a world model's trained controllers: W/controller[/NAME]."""
    first = _inside(workdir, "controller")
    others = sorted(glob.glob(os.path.join(glob.escape(first), "*")))
    return [path for path in (first, *others) if has_checkpoint(path)]


def controller(workdir, name):
    """Returns the folder of a controller, given by its name in W/controller or its path."""
    path = _inside(workdir, "controller", name)
    return path if name and os.path.isdir(path) else paths.expand(name)


def bounds(workdir):
    """Returns the runs W/bounds/NAME to compare a world model with: name -> folder."""
    parent = _inside(workdir, "bounds")
    names = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    runs = {name: os.path.join(parent, name) for name in names}
    return {name: path for name, path in runs.items() if os.path.exists(config(path))}


def _inside(workdir, *names):
    return os.path.join(paths.expand(workdir), *names)

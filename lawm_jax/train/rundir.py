"""The file layout of a run's folder (--workdir), which no other module knows.

    W/config.json  metrics.jsonl  skipped.jsonl  checkpoints/STEP/  tensorboard/  prior.safetensors
    W/eval/*.json  report/  profile/
    W/decoder/  controller/[NAME/]  bounds/NAME/    other runs with the same layout

An exported model has the same layout, with model.safetensors instead of checkpoints/.

W may be in a bucket, gs://BUCKET/FOLDER, where files cannot grow: there, metrics.jsonl and
skipped.jsonl are folders of parts, whose order is that of their names.

This module does not import JAX, so that a report can be made without it.
"""

import concurrent.futures
import contextlib
import fcntl
import logging
import os
import re
import sys
import threading

from lawm_jax.data import metadata, paths

# Orbax treats these as patterns or as another file system, and would save unreadable checkpoints.
PATTERNS = ("*", "?", "[", "\\")
BUCKETS = ("gs:", "s3:")
MARKS = "._=+@,-"
BUCKET_FOLDER = rf"gs://[\w.-]+(/[\w{re.escape(MARKS)}]+)+"


def folder(workdir):
    """Returns the absolute path of a folder to which a run can write, with `~` expanded.

    Raises:
      ValueError: its name cannot hold checkpoints, or it is a URL other than gs://BUCKET/FOLDER.
      OSError: the bucket cannot be read.
      ImportError: it is in a bucket, and the packages that read from buckets are missing.
    """
    if not os.fspath(workdir):
        raise ValueError("workdir: expected a folder, got ''")
    if paths.is_url(workdir):
        return _in_bucket(workdir)
    if match := re.fullmatch(r"(gs|s3):/?([^/].*)", os.fspath(workdir)):
        raise ValueError(
            f"workdir: expected a folder, got {str(workdir)!r}; did you mean {match[1]}://{match[2]}?"
        )
    path = os.path.abspath(paths.expand(workdir))
    parent = path
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        at = "" if parent == path else f", below {parent!r}"
        raise ValueError(f"workdir: expected a folder, got a file, {path!r}{at}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"workdir: expected a folder to write to, got {path!r}: no permission")
    wrong = [x for x in PATTERNS if x in path] + [x for x in BUCKETS if x in path.split(os.sep)]
    if not wrong and not path.isprintable():
        wrong = ["characters that can't be printed"]
    if wrong:
        raise ValueError(
            f"workdir: expected a path without {' '.join(PATTERNS)}, unprintable characters or "
            f"folders named {' '.join(BUCKETS)}, which Orbax can't write to, got {path!r}"
        )
    return path


@contextlib.contextmanager
def claimed(workdir):
    """Keeps other processes from training in a run's folder while a `with` block runs.

    A new folder in which the block writes nothing is removed afterwards. Buckets, and network file
    systems without locks, are not protected.

    Raises:
      ValueError: another process trains there.
    """
    if paths.is_url(workdir):
        yield
        return
    new = not os.path.exists(workdir)
    os.makedirs(workdir, exist_ok=True)
    folder = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise ValueError(f"{workdir}: another process is training there") from None
    except OSError:  # no locks
        pass
    try:
        yield
    finally:
        os.close(folder)
        for path in (checkpoints(workdir), workdir) if new else ():
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(path)


def _in_bucket(workdir):
    """Returns the URL of a folder in a bucket that can be read."""
    url = paths.identity(workdir)
    if not url.startswith("gs://"):
        raise ValueError(
            "workdir: expected a local folder or gs://BUCKET/FOLDER, the only URL to which Orbax "
            f"can write, got {str(workdir)!r}; mount other buckets as a folder"
        )
    if not re.fullmatch(BUCKET_FOLDER, url, re.ASCII):
        raise ValueError(
            f"workdir: expected gs://BUCKET/FOLDER of ASCII letters, digits and {MARKS}, got "
            f"{str(workdir)!r}"
        )
    bucket = "/".join(url.split("/")[:3])
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs tracebacks of its exceptions
    waits = f"{bucket}: no answer yet, trying for up to a minute"
    notice = threading.Timer(5.0, print, [waits], dict(file=sys.stderr, flush=True))
    notice.daemon = True
    notice.start()
    try:
        exists, problem = paths.exists(bucket), "it does not exist or you may not read it"
    except ImportError:
        raise
    except Exception as error:  # several libraries: network or credentials
        exists, problem = False, f"{type(error).__name__}: {error}"
    finally:
        notice.cancel()
    if not exists:
        raise OSError(f"workdir: expected a bucket that can be read, got {bucket}: {problem}")
    return url


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
    paths.write(config(folder(workdir)), text)


def read_lines(path):
    """Returns the bytes of metrics.jsonl or skipped.jsonl, of all its parts if it is in a bucket.

    Raises:
      OSError: it is missing or can't be read.
    """
    if not paths.is_url(path):
        return paths.at(path).read_bytes()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return b"".join(pool.map(lambda part: part.read_bytes(), parts(path)))


def parts(path):
    """Lists the parts of metrics.jsonl or skipped.jsonl in a bucket, as `epath.Path`s."""
    return [paths.at(path) / name for name in paths.names(path) if name.endswith(".jsonl")]


def read_config(workdir):
    """Reads a run's config.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is damaged, or not a config of a run.
    """
    path = config(workdir)
    if not paths.exists(path):
        raise FileNotFoundError(f"{path}: not found; expected the folder of a training run")
    loaded = metadata.load(path, "the config of a training run")
    for name in ("encoder", "data", *({"predictor", "latent", "optim"} & loaded.keys())):
        metadata.field(path, loaded, name, "an object")
    return upgrade(loaded)


def read_world_model(workdir):
    """Reads the config of a world model's run.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is damaged, or it is the config of a controller or decoder.
    """
    loaded = read_config(workdir)
    if loaded["objective"] != "world_model" or "predictor" not in loaded:
        raise ValueError(
            f"workdir: expected the folder of a world model, got that of a {loaded['objective']}, "
            f"{workdir}"
        )
    return loaded


def upgrade(config):
    """Updates (in place) and returns a config that an older version may have written."""
    for section in config.values():
        if isinstance(section, dict):
            section.pop("unroll", None)  # a former option of networks
    if "predictor" in config:
        config["predictor"].setdefault("block", 0)
    if "optim" in config:
        config["optim"].setdefault("ema", 0.0)
    if "objective" not in config:
        kinds = [part for part in ("controller", "decoder") if part in config]
        config["objective"] = "world_model" if "predictor" in config or not kinds else kinds[0]
    return config


def has_checkpoint(workdir):
    """Returns whether a run has a checkpoint, or an exported model its parameters."""
    steps = [name for name in paths.names(checkpoints(workdir)) if name[0] in "0123456789"]
    return bool(steps) or paths.exists(weights(workdir))


def decoder(workdir):
    """Returns the folder of the decoder trained for a model, or None."""
    path = _inside(workdir, "decoder")
    return path if has_checkpoint(path) else None


def controllers(workdir):
    """Lists the folders of a world model's trained controllers: W/controller[/NAME]."""
    first = _inside(workdir, "controller")
    others = [os.path.join(first, name) for name in paths.names(first) if name[0] != "."]
    return [path for path in (first, *others) if has_checkpoint(path)]


def controller(workdir, name):
    """Returns the folder of a controller, given by its name in W/controller or its path."""
    if paths.is_url(name):
        return name
    path = _inside(workdir, "controller", name)
    return path if name and paths.is_dir(path) else paths.expand(name)


def bounds(workdir):
    """Returns the runs W/bounds/NAME to compare a world model with: name -> folder."""
    parent = _inside(workdir, "bounds")
    runs = {name: os.path.join(parent, name) for name in paths.names(parent)}
    return {name: path for name, path in runs.items() if paths.exists(config(path))}


def _inside(workdir, *names):
    return os.path.join(paths.expand(workdir), *names)

"""Defines flags of config files and of files to write to, and splits NAME=SOURCE."""

import contextlib
import importlib.util
import os
import re
import sys
import traceback

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from lawm_jax.train import command

CONFIGS = os.path.join(command.PACKAGE, "configs")
flags.disclaim_key_flags()  # flags belong to the modules that call the functions below


def define_config(name, default, text):
    """Defines a flag whose value is a config file, like `config_flags.DEFINE_config_file`.

    FILE.py:ARGUMENT is searched for in the current folder, then among the package's configs, so
    that `lawm.py:size=nano` and `configs/lawm.py:size=nano` work anywhere.

    Args:
      name: name of the flag.
      default: FILE.py:ARGUMENT, or None.
      text: description for `--help`.

    Returns:
      A flag holder; its `value` is a locked ConfigDict.
    """
    holder = config_flags.DEFINE_config_file(name, None, text)
    flags.FLAGS[name].parser = _Parser(name)
    if default:
        command.reporting(flags.set_default)(holder, find(default))  # parses the config
    return holder


def define_output(name, text, folder=False):
    """Defines a flag whose value is a file or folder to write to, which is created if missing.

    A path that can't be written is reported before the command does its work; URLs are not checked.

    Args:
      name: name of the flag.
      text: description for `--help`.
      folder: whether it is a folder.

    Returns:
      A flag holder.
    """
    holder = flags.DEFINE_string(name, None, text)
    flags.register_validator(name, lambda path: _check_output(path, folder))
    return holder


def define_names(name, default, known, text):
    """Defines a flag whose value is a list of known names, separated by commas.

    Args:
      name, text: as in `define_output`.
      default: list of names, or None.
      known: the names to choose from.

    Returns:
      A flag holder.
    """

    def check(names):
        if wrong := [x for x in names or () if x not in known]:
            close = command.closest(wrong[0], known)
            raise flags.ValidationError(
                f"expected some of {', '.join(known)}, got {','.join(names)}{close}"
            )
        return True

    holder = flags.DEFINE_list(name, default, text)
    flags.register_validator(name, check)
    return holder


def _check_output(path, folder):
    """Returns True, or raises a ValidationError if `path` cannot be written."""
    if path is None or "://" in path:
        return True
    at = os.path.abspath(os.path.expanduser(path))
    wrong = "it is a folder" if os.path.isdir(at) and not folder else ""
    at = at if folder else os.path.dirname(at)
    while not os.path.lexists(at):
        at = os.path.dirname(at)
    if not os.path.isdir(at):
        wrong = f"{at} is not a folder"
    elif not os.access(at, os.W_OK | os.X_OK):
        wrong = f"{at} can't be written to"
    if wrong:
        what = "folder to write to" if folder else "file to write"
        raise flags.ValidationError(f"expected a {what}, got {path}, but {wrong}")
    return True


def find(spec):
    """Returns FILE.py:ARGUMENT with FILE.py replaced by the path of an existing file.

    Raises:
      ValueError: it is neither in the current folder nor among the package's configs.
    """
    path, *argument = spec.split(":", 1)
    path = os.path.expanduser(path)
    packaged = os.path.join(CONFIGS, os.path.basename(path))
    if not os.path.isfile(path):
        if os.path.dirname(path) not in ("", "configs") or not os.path.isfile(packaged):
            files = sorted(x for x in os.listdir(CONFIGS) if x.endswith(".py") and x[0] != "_")
            raise ValueError(
                f"expected the path of a config file or one of {', '.join(files)}, got {path}, "
                "which does not exist"
            )
        path = packaged
    return ":".join([path, *argument])


class _Parser(flags.ArgumentParser):
    """Loads a config file that `find` locates."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def flag_type(self):
        return "config file"

    def parse(self, spec):
        path, *argument = find(spec).split(":", 1)
        # The repository's `configs` is the same folder. `command.is_message` only recognizes errors
        # that a config raises for the user if its path is inside the package.
        packaged = os.path.join(CONFIGS, os.path.basename(path))
        path = packaged if os.path.exists(packaged) and os.path.samefile(packaged, path) else path
        module_spec = importlib.util.spec_from_file_location(f"{self.name}_config", path)
        module = importlib.util.module_from_spec(module_spec)
        try:
            module_spec.loader.exec_module(module)
            make = getattr(module, "get_config", None)
            config = make(*argument) if make else None
        except Exception as error:  # absl would hide the line of the error
            if command.is_message(error):
                raise ValueError(str(error)) from error
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == module.__file__]
            # A SyntaxError has no frame in the file, but a `lineno`.
            line = lines[-1] if lines else getattr(error, "lineno", None)
            where = f"{path}, line {line}" if line else path
            error.__traceback__ = error.__traceback__.tb_next  # without this function
            raise ValueError(f"an error in {where}:\n\n{traceback.format_exc()}") from error
        if make is None:
            raise ValueError(f"{path}: expected a function get_config, got none")
        if not isinstance(config, ml_collections.ConfigDict):
            raise ValueError(f"{path}: expected a ConfigDict from get_config, got {config!r}")
        config.lock()
        self._check_fields(config)
        return config

    def _check_fields(self, config):
        """Checks that the config has the fields that the command line sets."""
        fields = _fields(config)
        for arg in sys.argv[1:]:
            match = re.match(rf"--?(no)?{re.escape(self.name)}\.([\w.]+)", arg)
            if match and match[2] not in fields:
                *_, name = match[2].split(".")
                same = [field for field in fields if field.split(".")[-1].startswith(name)]
                close = command.closest(match[2], fields) or command.closest(name, same)
                close = close.replace("did you mean ", f"did you mean --{self.name}.")
                raise ValueError(f"--{self.name}.{match[2]}: the config has no such field{close}")
            if arg == f"--{self.name}.data.videos=":  # of an unset variable of a shell
                raise ValueError(
                    f"{arg[:-1]}: expected a folder, glob or list, got an empty string"
                )


def _fields(config, path=""):
    """Lists the names of all fields and sections, such as "data" and "data.fps"."""
    names = []
    for key, value in config.items():
        names.append(f"{path}{key}")
        if hasattr(value, "items"):
            names += _fields(value, f"{path}{key}.")
    return names


def sources(texts):
    """Returns name -> source of the NAME=SOURCE of --data; UsageError if a name is given twice."""
    pairs = [named(text) for text in texts]
    for i, (name, _) in enumerate(pairs):
        if name in dict(pairs[:i]):
            raise app.UsageError(f"--data: expected each name once, got {name} twice")
    return dict(pairs)


@contextlib.contextmanager
def as_typed(specs):
    """Names the sources of --data in error messages as they were typed: --data NAME=SOURCE.

    Args:
      given: name -> source, from `sources`.
    """
    labels = {f"data.sources.{name}={spec!r}": f"{name}={spec}" for name, spec in specs.items()}
    labels |= {f"{name}: ": f"{name}={spec}: " for name, spec in specs.items()}
    with renamed({key: f"--data {label}" for key, label in labels.items()}):
        yield


@contextlib.contextmanager
def renamed(labels):
    """Replaces names in error messages with the text that was typed on the command line.

    Args:
      labels: name in an error's message -> typed text. A name that ends in ": " is replaced only at
        the start of the message.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if len(error.args) == 1:
            text = str(error)
            for label, typed in labels.items():
                at_start = label.endswith(": ") and text.startswith(label)
                if at_start or not label.endswith(": "):
                    text = text.replace(label, typed, 1 if at_start else -1)
            error.args = (text,)
        raise  # the same error, whose traceback shows where it is from


def named(text):
    """Splits the NAME=SOURCE of --data; raises UsageError if it has another form."""
    name, _, spec = text.partition("=")
    if not name.isidentifier() or not spec:
        raise app.UsageError(f"--data: expected NAME=SOURCE, got {text!r}")
    return name, spec

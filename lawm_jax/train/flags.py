"""Defines --config flags, Python files with a function `get_config`, and splits NAME=SOURCE."""

import importlib.util
import os
import pathlib
import traceback

from absl import app, flags
from ml_collections import config_flags

CONFIGS = str(pathlib.Path(__file__).resolve().parents[1] / "configs")


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
    holder = config_flags.DEFINE_config_file(name, default and find(default), text)
    flags.FLAGS[name].parser = _Parser(name)
    return holder


def find(spec):
    """Returns FILE.py:ARGUMENT with FILE.py replaced by the path of an existing file.

    Raises:
      ValueError: it is neither in the current folder nor among the package's configs.
    """
    path, *argument = spec.split(":", 1)
    path = os.path.expanduser(path)
    own = os.path.join(CONFIGS, os.path.basename(path))
    if not os.path.isfile(path):
        if os.path.dirname(path) not in ("", "configs") or not os.path.isfile(own):
            files = sorted(x for x in os.listdir(CONFIGS) if x.endswith(".py") and x[0] != "_")
            raise ValueError(
                f"expected the path of a config file or one of {', '.join(files)}, got {path}, "
                "which does not exist"
            )
        path = own
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
        module = importlib.util.spec_from_file_location(f"{self.name}_config", path)
        loaded = importlib.util.module_from_spec(module)
        try:
            module.loader.exec_module(loaded)
            config = loaded.get_config(*argument)
        except ValueError:
            raise  # absl prints its message
        except Exception as error:  # absl would hide the line of the error
            raise ValueError(f"an error in {path}:\n\n{traceback.format_exc()}") from error
        return config.lock()


def named(text):
    """Splits the NAME=SOURCE of --data; raises UsageError if it is none."""
    name, _, spec = text.partition("=")
    if not name.isidentifier() or not spec:
        raise app.UsageError(f"--data: expected NAME=SOURCE, got {text!r}")
    return name, spec

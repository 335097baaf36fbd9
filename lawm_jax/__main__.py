"""Implements the command `lawm`, also `python -m lawm_jax`; see `lawm --help`."""

import difflib
import importlib.metadata
import platform
import runpy
import signal
import sys

COMMANDS = {
    "train": "trains a world model, a decoder, a controller or a baseline",
    "evaluate": "evaluates a trained model on held-out clips",
    "plan": "plans real actions, open loop or in the simulator",
    "export": "exports latent actions as arrays for other programs",
    "report": "builds an HTML report from the results of runs",
    "ingest": "converts a data set to records that are fast to read",
    "study": "runs a study of many training runs",
    "aot": "compiles a training step for TPUs or GPUs that are not present",
    "play": "serves a web page for playing the world that a model imagines",
}
USAGE = """usage: lawm COMMAND [FLAGS]     the same as: python -m lawm_jax.COMMAND [FLAGS]

{commands}

lawm COMMAND --help prints its flags. To get started, in any folder:

  lawm train --config lawm.py:size=nano,latent=noisy --workdir runs/first
  lawm evaluate --workdir runs/first
  lawm report runs/first

To train on your own video, add --config.data.videos='/path/to/videos/**/*'.
--config takes your own file or one of the configs of the package: lawm.py,
controller.py, labelled.py or decoder.py. lawm --version prints versions, and
LAWM_TRACEBACK=1 in the environment shows the traceback of every error."""


def main():
    """Runs the subcommand named by the first argument, in this process."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in ("--help", "-h", "help"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
        lines = (f"  {command:10}{text}" for command, text in COMMANDS.items())
        print(USAGE.format(commands="\n".join(lines)))
        return
    if name in ("--version", "-V"):
        print(versions())
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        tip = f"; did you mean {close[0]}?" if close else ""
        expected = f"expected one of {', '.join(COMMANDS)}, got {name}{tip}"
        print(f"lawm: error: {expected}\ntry `lawm --help`", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"lawm {name}", *rest]
    try:
        runpy.run_module(f"lawm_jax.{name}", run_name="__main__")
    except KeyboardInterrupt:  # while it is imported
        print(f"lawm {name}: interrupted", file=sys.stderr)
        sys.exit(130)


def versions():
    """Returns the versions of the package, of its main requirements and of Python."""
    names = "lawm_jax", "jax", "flax"
    installed = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join([*installed, f"Python {platform.python_version()}"])


if __name__ == "__main__":
    main()

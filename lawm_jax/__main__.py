"""Implements the command `lawm`, also `python -m lawm_jax`; see `lawm --help`."""

import runpy
import sys

COMMANDS = {
    "train": "trains a world model, a decoder, a controller or a baseline",
    "evaluate": "answers the paper's questions about a trained model",
    "plan": "plans with real actions, open loop or in the simulator",
    "report": "makes one page of what training and evaluation wrote",
    "ingest": "reads a data set once, into records that train fast",
    "study": "runs a table of trainings and evaluations",
    "aot": "compiles a training step for a pod or GPU that isn't here",
}
USAGE = """usage: lawm COMMAND [FLAGS]     the same as: python -m lawm_jax.COMMAND [FLAGS]

{commands}

lawm COMMAND --help prints a command's flags. To begin with, in any folder:

  lawm train --config lawm.py:size=nano,latent=noisy --workdir runs/first
  lawm evaluate --workdir runs/first
  lawm report runs/first

On your own video: --config.data.videos='/path/to/videos/**/*'. A config is a
file, yours or the package's: lawm.py, controller.py, labelled.py, decoder.py."""


def main():
    """Runs the subcommand named by the first argument, in this process."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        lines = (f"  {command:10}{text}" for command, text in COMMANDS.items())
        print(USAGE.format(commands="\n".join(lines)))
        return
    if name not in COMMANDS:
        sys.exit(f"lawm: expected one of {', '.join(COMMANDS)}, or --help, got {name!r}")
    sys.argv = [f"lawm {name}", *rest]
    runpy.run_module(f"lawm_jax.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

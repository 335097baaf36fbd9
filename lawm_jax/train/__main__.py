"""Trains a world model: python -m lawm_jax.train --config configs/lawm.py:size=nano --workdir W.

The same command resumes an interrupted run, and says so if the run is complete. On SIGTERM, it
saves a checkpoint and exits with status 143, so that a scheduler restarts the job.
To train with several machines or processes, run it once in each; see launch/.
"""

import signal
import sys

from absl import app, flags, logging

from lawm_jax.train.flags import define_config

CONFIG = define_config("config", None, "Config file; see configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; created if missing.")
flags.mark_flags_as_required(["config", "workdir"])
STOPPED = 128 + signal.SIGTERM


def main(argv):
    """Parses the flags and trains."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    from lawm_jax.train import cpu, distributed, loop

    cpu.keep_memory()
    distributed.start()
    if loop.fit(CONFIG.value, WORKDIR.value) is None:
        sys.exit(STOPPED)


if __name__ == "__main__":
    app.run(main)

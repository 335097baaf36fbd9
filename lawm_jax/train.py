"""Trains a world model: python -m lawm_jax.train --config configs/lawm.py:size=nano --workdir W.

The same command continues an interrupted run, and says so when the run is done.
"""

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, see configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made where it is missing.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
    """Parses the flags and trains."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    from lawm_jax.training import loop

    loop.fit(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    app.run(main)

"""Compiles a training step for TPUs or GPUs that are not present: does it fit? how fast can it be?

Examples:
  lawm aot --topology v5p:4x4x4 --config lawm.py:size=large
  lawm aot --topology h100:8x8 --config lawm.py:size=large
  lawm aot --topology h100:1 --config lawm.py:size=base

TPUs require pip install 'lawm_jax[tpu]', GPUs 'lawm_jax[cuda]'. The step is only compiled: no data
is loaded and nothing is computed. The exit status is 1 if the step does not fit. See docs/pods.md.
"""

import sys

from absl import app, flags

from lawm_jax.train import command
from lawm_jax.train.flags import define_config, define_output

CONFIG = define_config("config", None, "Config file of a world model.")
TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "KIND:CHIPS. For TPUs, KIND is v4, v5e, v5p, v6e or tpu7x, and CHIPS is the shape of the "
    "slice; for GPUs, KIND is l4, a100, h100 or h200, and CHIPS is GPUS or NODESxGPUS.",
)
SLICES = flags.DEFINE_integer("slices", 1, "Number of TPU slices of that shape.", lower_bound=1)
BATCH = flags.DEFINE_integer(
    "batch-per-chip", None, "Clips per chip. Default: from the config.", lower_bound=1
)
JSON = define_output("json", "JSON file with a list of results, to which the result is appended.")
flags.mark_flags_as_required(["config", "topology"])


def main(argv):
    """Parses the flags and checks the step; exits with 1 if it does not fit."""
    from lawm_jax.aot import run

    json_flags = "--json", JSON.value, f"--json={JSON.value}"  # a local path, not recorded
    try:
        fits = run.run(
            CONFIG.value.to_dict(),
            TOPOLOGY.value,
            slices=SLICES.value,
            batch_per_chip=BATCH.value,
            json_file=JSON.value,
            given=[flag for flag in sys.argv[1:] if flag not in json_flags],
        )
    except run.Refused as error:
        raise app.UsageError(str(error)) from error
    if not fits:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)

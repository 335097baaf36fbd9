"""Compiles the training step ahead of time for absent TPUs or GPUs; checks memory, bounds speed.

python -m lawm_jax.aot --topology v5p:4x4x4 --config configs/lawm.py:size=large
python -m lawm_jax.aot --topology h100:8x8 --config configs/lawm.py:size=large
python -m lawm_jax.aot --topology h100:1 --config configs/lawm.py:size=base

A topology is KIND:CHIPS. For TPUs (pip install 'lawm_jax[tpu]'), KIND is v4, v5e, v5p, v6e or tpu7x
and CHIPS the slice's shape. For GPUs (pip install 'lawm_jax[cuda]'), KIND is l4, a100, h100 or h200
and CHIPS is GPUS or NODESxGPUS. Nothing is loaded or computed. Memory use is the compiler's report;
on a GPU, a step must fit into JAX's pool, by default three quarters of the memory
(XLA_PYTHON_CLIENT_MEM_FRACTION). The time is a lower bound computed from the step's FLOPs and bytes
and the chip's data sheet, not measured.
"""

import sys

from absl import app, flags

from lawm_jax.train.flags import define_config

CONFIG = define_config("config", None, "Config file of a world model.")
TOPOLOGY = flags.DEFINE_string("topology", None, "KIND:CHIPS, such as v5p:4x4x4 or h100:8x8.")
SLICES = flags.DEFINE_integer("slices", 1, "Number of TPU slices of that shape.", lower_bound=1)
BATCH = flags.DEFINE_integer(
    "batch-per-chip", None, "Clips per chip. Default: from the config.", lower_bound=1
)
JSON = flags.DEFINE_string(
    "json", None, "File with a list of results, to which this result is appended."
)
flags.mark_flags_as_required(["config", "topology"])


def main(argv):
    """Parses the flags and checks the step; exits with 1 if it does not fit."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    from lawm_jax.aot import run

    own = "--json", JSON.value, f"--json={JSON.value}"  # a local path, not recorded
    try:
        fits = run.run(
            CONFIG.value.to_dict(),
            TOPOLOGY.value,
            slices=SLICES.value,
            batch_per_chip=BATCH.value,
            json_file=JSON.value,
            given=[flag for flag in sys.argv[1:] if flag not in own],
        )
    except run.Refused as error:
        raise app.UsageError(str(error)) from error
    if not fits:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)

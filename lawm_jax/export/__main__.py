"""Exports latent actions, states and labels of data sources as arrays for other programs.

Examples:
  lawm export --workdir nano --out latents
  lawm export --workdir runs/first --data street=/data/street --limit 1000 --out latents
  lawm export --workdir nano --to lary --out lary

  arrays  .npz files of many clips each, and export.json, which describes them
  lary    one file per step and one CSV per split, the input format of LARYBench's regression

Clips are at fixed positions and do not overlap. OUT is created when the export is complete.
See docs/evaluate.md.
"""

from absl import app, flags

from lawm_jax.train import command
from lawm_jax.train.flags import as_typed, define_output, sources

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder, W; or nano, the shipped model.")
OUT = define_output("out", "Output folder, which must not exist yet.", folder=True)
TO = flags.DEFINE_enum("to", "arrays", ["arrays", "lary"], "File format.")
DATA = flags.DEFINE_multi_string(
    "data",
    [],
    "Data source to export instead of the run's own: NAME=SOURCE, with SOURCE as in the config's "
    "data.sources; may be repeated.",
)
LIMIT = flags.DEFINE_integer(
    "limit",
    None,
    "Maximum number of clips of each source and split, spread over its episodes. Default: all.",
    lower_bound=1,
)
STATES = flags.DEFINE_bool(
    "states",
    True,
    "With --to arrays, also write the encoder's states, by far the largest arrays. --nostates "
    "leaves them out.",
)
flags.mark_flags_as_required(["workdir", "out"])


def main(argv):
    """Parses the flags and exports."""
    if TO.value == "lary" and STATES.present:
        raise app.UsageError("--states: expected --to arrays with it, got --to lary")
    from lawm_jax.train import cpu

    cpu.keep_memory()
    from lawm_jax.export import run

    data = sources(DATA.value)
    with as_typed(data):
        run.export(WORKDIR.value, OUT.value, TO.value, data, LIMIT.value, STATES.value)


if __name__ == "__main__":
    command.run(main)

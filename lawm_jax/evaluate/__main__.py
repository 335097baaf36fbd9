"""Evaluates a trained model: python -m lawm_jax.evaluate --workdir W [--only ...] [--data ...].

On held-out clips of every source it was trained on, or of all of --data but the items that some run
was trained on (files and episodes, however the path is spelt, and ingested or not), it asks the
paper's questions:
prediction (E1), leakage (E2), transfer (E3, E4), content (what the latents hold), control (E5, for
a source that a run in W/controller was trained on), sampling (E10) and pictures (E11). Prints
tables, writes W/eval/*.json, and pictures and films to W/report/. Runs in W/bounds/NAME, trained on
the same data, join the comparison: "deterministic" (no latent) and "none" (unconstrained latents)
are the paper's lower and upper bound, "labelled" knows the real actions of the source that it was
trained on (prediction and control alone). `python -m lawm_jax.report W` then makes a page of it
all.
"""

from absl import app, flags, logging

PARTS = ["prediction", "leakage", "transfer", "content", "control", "sampling", "pictures"]

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
ONLY = flags.DEFINE_multi_enum("only", None, PARTS, "What to do; all.")
DATA = flags.DEFINE_multi_string(
    "data",
    [],
    "NAME=SOURCE to evaluate on instead of the run's own, as in the config's data.sources.",
)
DECODER = flags.DEFINE_string("decoder", None, "Folder of the run of a decoder; W/decoder.")
DISTANCE = flags.DEFINE_enum(
    "distance", "effnet", ["effnet", "lpips_vgg", "lpips_alex"], "Perceptual distance."
)
EMBEDDING = flags.DEFINE_enum("embedding", "pca", ["pca", "umap"], "umap: the paper's; see extras.")
flags.mark_flags_as_required(["workdir"])


def main(argv):
    """Parses the flags and evaluates."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    from lawm_jax.train import cpu

    cpu.keep_memory()
    from lawm_jax.evaluate import run

    data = dict(named(text) for text in DATA.value)
    run.evaluate(WORKDIR.value, ONLY.value, data, DECODER.value, DISTANCE.value, EMBEDDING.value)


def named(text):
    """Splits NAME=SOURCE."""
    name, _, spec = text.partition("=")
    if not name.isidentifier() or not spec:
        raise app.UsageError(f"--data: expected NAME=SOURCE, got {text!r}")
    return name, spec


if __name__ == "__main__":
    app.run(main)

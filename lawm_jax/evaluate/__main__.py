"""Evaluates a trained model on held-out clips: python -m lawm_jax.evaluate --workdir W.

Evaluations (--only selects some of them):

  prediction  how well latent actions explain the next states, one and several steps ahead
  leakage     whether latent actions encode the next frame instead of an action
  transfer    whether they have the same effect in another clip, at the same image position
  content     what they encode: a linear probe for real actions, dimension, codes in use
  control     rollouts from real actions, for data sources with a controller in W/controller
  sampling    whether sampled latent actions have the distribution and effect of inferred ones
  pictures    rollouts, transfer, cycles and scene cuts

The clips are the held-out ones of every data source that the model was trained on. --data selects
other data sources, without the files and episodes that a run was trained on (however their path is
spelled, ingested or not).

Prints tables, and writes W/eval/*.json, and pictures and videos to W/report/. Runs in W/bounds/NAME
that were trained on the same data are compared too: "deterministic" (no latent) and "none"
(unconstrained latents) are the paper's lower and upper bounds; "labelled" is conditioned on the
real actions of its training data (prediction and control only). `python -m lawm_jax.report W`
builds a web page of the results.
"""

from absl import app, flags, logging

from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.train.flags import named

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
ONLY = flags.DEFINE_multi_enum(
    "only", None, [*EVALUATIONS, "pictures"], "Evaluation to run; may be repeated. Default: all."
)
DATA = flags.DEFINE_multi_string(
    "data",
    [],
    "Data source to evaluate on instead of the run's own, as NAME=SOURCE, with SOURCE as in the "
    "config's data.sources; may be repeated.",
)
DECODER = flags.DEFINE_string("decoder", None, "Folder of a decoder's run. Default: W/decoder.")
DISTANCE = flags.DEFINE_enum(
    "distance",
    "effnet",
    ["effnet", "lpips_vgg", "lpips_alex"],
    "Perceptual distance of decoded frames.",
)
EMBEDDING = flags.DEFINE_enum(
    "embedding",
    "pca",
    ["pca", "umap"],
    "Method that embeds latent actions in the plane; the paper uses umap, which requires "
    "pip install 'lawm_jax[umap]'.",
)
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


if __name__ == "__main__":
    app.run(main)

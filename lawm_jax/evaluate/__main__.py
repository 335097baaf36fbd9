"""Evaluates a trained model on held-out clips: prints verdicts, writes W/eval/*.json and W/report/.

Examples:
  lawm evaluate --workdir nano
  lawm evaluate --workdir runs/first --only prediction --only leakage
  lawm evaluate --workdir runs/first --data walks=mini:nav

  prediction  how well latent actions explain the next states, one and several steps ahead
  ablation    how much of that is due to the latent action of the current step
  leakage     whether latent actions encode the next frame instead of an action
  transfer    whether latent actions have the same effect in another clip, at the same position
  bias        whether the effect of latent actions follows the scene or fixed image positions
  algebra     whether the latent actions of two steps add up
  content     what latent actions encode: linear probes for real actions, compared with probes
              of the current state; dimensions and codes in use
  flow        whether a linear map predicts optical flow from latent actions
  scene       whether latent actions identify the episode and the data source
  invariance  whether equal real actions have the same latent action in different scenes
  control     rollouts from real actions, for data sources with a controller in W/controller
  sampling    whether sampled latent actions have the distribution and effect of inferred ones
  pictures    rollouts, transfer, cycles and scene cuts

With --all, also:

  surprise    whether the error detects a teleported object, changed colors or a cut
  distractors whether latent actions stay the same with a moving background
  labels      how many labeled episodes a controller needs

Runs in W/bounds/NAME are included in the comparison. `lawm report W` builds a web page of all
results. See docs/evaluate.md.
"""

from absl import app, flags

from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.train import command
from lawm_jax.train.flags import as_typed, renamed, sources

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder, W; or nano, the shipped model.")
ONLY = flags.DEFINE_multi_enum(
    "only",
    None,
    [*EVALUATIONS, "pictures"],
    "Evaluation to run; may be repeated. Default: all except the slow ones.",
)
ALL = flags.DEFINE_bool("all", False, "Also run the slow evaluations.")
DATA = flags.DEFINE_multi_string(
    "data",
    [],
    "Data source to evaluate on instead of the run's own: NAME=SOURCE, with SOURCE as in the "
    "config's data.sources. Training data of the runs is excluded. May be repeated.",
)
DECODER = flags.DEFINE_string("decoder", None, "Run folder of the decoder. Default: W/decoder.")
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
    "Method for the 2D embedding of latent actions; the paper uses umap, which requires "
    "pip install 'lawm_jax[umap]'.",
)
VERBOSE = flags.DEFINE_bool("verbose", False, "Print all tables.")
flags.mark_flags_as_required(["workdir"])


def main(argv):
    """Parses the flags and evaluates."""
    if ALL.value and ONLY.value:
        raise app.UsageError("expected --all or --only, got both")
    from lawm_jax.train import cpu

    cpu.keep_memory()
    from lawm_jax.evaluate import run

    data = sources(DATA.value)
    decoder = {f"{DECODER.value}: ": f"--decoder {DECODER.value}: "}
    with as_typed(data), renamed(decoder):
        run.evaluate(
            WORKDIR.value,
            [*EVALUATIONS, "pictures"] if ALL.value else ONLY.value,
            data,
            DECODER.value,
            DISTANCE.value,
            EMBEDDING.value,
            verbose=VERBOSE.value,
        )


if __name__ == "__main__":
    command.run(main)

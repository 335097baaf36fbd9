"""Evaluates a trained model on held-out clips: prints verdicts, writes W/eval/*.json and W/report/.

Examples:
  lawm evaluate --workdir nano
  lawm evaluate --workdir runs/first --only prediction --only leakage
  lawm evaluate --workdir runs/first --data walks=mini:nav

  prediction  how well latent actions explain the next states, one and several steps ahead
  ablation    how much of that needs the latent action of the step itself
  leakage     whether latent actions encode the next frame instead of an action
  transfer    whether they have the same effect in another clip, at the same image position
  bias        whether predictions depend on them where the scene can move, or at fixed positions
  algebra     whether they add up over two steps
  content     what they encode: a linear probe for real actions, beside one from the current
              state; dimensions, codes in use
  flow        whether a linear map predicts the motion in the image from them
  scene       whether they identify the episode and the data source
  invariance  whether equal real actions have the same latent action in another scene
  control     rollouts from real actions, for data sources with a controller in W/controller
  sampling    whether sampled latent actions have the distribution and effect of inferred ones
  pictures    rollouts, transfer, cycles and scene cuts

and, with --all:

  surprise    whether the error detects a teleported object, changed colors or a cut
  distractors whether latent actions stay the same with a moving background
  labels      how many labeled episodes a controller needs

Runs in W/bounds/NAME are compared, too. `lawm report W` builds a page of the results. See
docs/evaluate.md.
"""

from absl import app, flags

from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.train import command
from lawm_jax.train.flags import as_typed, renamed, sources

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, W; or nano, the model that ships."
)
ONLY = flags.DEFINE_multi_enum(
    "only",
    None,
    [*EVALUATIONS, "pictures"],
    "Evaluation to run; may be repeated. Default: all that are quick.",
)
ALL = flags.DEFINE_bool("all", False, "Run slow evaluations, too.")
DATA = flags.DEFINE_multi_string(
    "data",
    [],
    "Data source to evaluate on instead of the run's own, as NAME=SOURCE, with SOURCE as in the "
    "config's data.sources, without what a run was trained on; may be repeated.",
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

"""Runs a study of many training runs, one after the other; the same command resumes it.

Examples:
  lawm study mixture --workdir runs/mixture --list
  lawm study mixture --workdir runs/mixture
  lawm study mixture --workdir runs/noisy --kinds noisy --shares 0,50,100 --seeds 3

mixture: how does planning depend on the share of in-domain video in the world model's training
data? For each share, kind of latent and seed, it trains a world model and a controller, and plans.
It prints a table and writes W/mixture.json and W/mixture.png. See docs/control.md.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from lawm_jax.train import command
from lawm_jax.train.flags import define_config

STUDIES = ("mixture",)

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study, created if missing.")
CONFIG = define_config(
    "config", "lawm.py:size=nano", "Config of the world models, with a mixture. Default: nano."
)
CONTROLLER = define_config(
    "controller", "controller.py:size=nano", "Config of the controllers. Default: nano."
)
INSIDE = flags.DEFINE_string("inside", "panda", "Name of the in-domain data source, to plan on.")
OUTSIDE = flags.DEFINE_list(
    "outside", None, "Names of the other data sources. Default: all others in the mixture."
)
TASK = flags.DEFINE_string("task", None, "As in lawm_jax.plan. Default: the name of --inside.")
SHARES = flags.DEFINE_list(
    "shares", "0,10,25,50,75,90,100", "Shares of --inside in the mixture, in percent."
)
KINDS = flags.DEFINE_list("kinds", "sparse,noisy", "Kinds of latents.")
STEPS = flags.DEFINE_integer(
    "steps", None, "Training steps of the world models. Default: the config's.", lower_bound=1
)
SEEDS = flags.DEFINE_integer("seeds", 1, "Number of runs per share and kind.", lower_bound=1)
EPISODES = flags.DEFINE_integer("episodes", 64, "As in lawm_jax.plan.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", None, "As in lawm_jax.plan.", lower_bound=1)
ITERATIONS = flags.DEFINE_integer("iterations", None, "As in lawm_jax.plan.", lower_bound=1)
LIST = flags.DEFINE_bool("list", False, "Only print the remaining commands.")
flags.mark_flags_as_required(["workdir"])


def main(argv):
    """Parses the flags and runs the study."""
    if len(argv) != 2 or argv[1] not in STUDIES:
        got = " ".join(argv[1:]) or "none"
        raise app.UsageError(f"NAME: expected one of {', '.join(STUDIES)}, got {got}")
    logging.set_verbosity(logging.WARNING)
    from lawm_jax.data import settings
    from lawm_jax.study import commands, mixture

    for config in (CONFIG.value, CONTROLLER.value):
        settings.check(config)
    asked = mixture.Settings(
        model=commands.Config(*given("config")),
        controller=commands.Config(*given("controller")),
        inside=INSIDE.value,
        outside=OUTSIDE.value,
        task=TASK.value or INSIDE.value,
        shares=SHARES.value,
        kinds=KINDS.value,
        steps=STEPS.value,
        seeds=SEEDS.value,
        planner=dict(episodes=EPISODES.value, samples=SAMPLES.value, iterations=ITERATIONS.value),
    )
    try:
        mixture.study(WORKDIR.value, asked, LIST.value)
    except commands.Refused as error:
        raise app.UsageError(f"--{error}") from error


def given(name):
    """Returns a config flag's value, its file and what the command line overrides."""
    flag = flags.FLAGS[name]
    overrides = config_flags.get_override_values(flag)
    return flag.value, config_flags.get_config_filename(flag), overrides


if __name__ == "__main__":
    command.run(main, positional=True, resumes=True)

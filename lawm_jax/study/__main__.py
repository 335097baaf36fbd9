"""Runs a study of many training runs; the same command resumes it.

Examples:
  lawm study claims --workdir runs/claims --quick
  lawm study mixture --workdir runs/mixture --list
  lawm study mixture --workdir runs/noisy --kinds noisy --shares 0,50,100 --seeds 3

claims: which claims of the paper hold for small models? Trains world models with several kinds of
latents, capacities and seeds, and decides each claim by a rule; --quick decides 3 in 15 minutes.
scaling: how does the error fall with training steps, width and episodes?
mixture: how does planning depend on the share of in-domain video in the training data?
measures: evaluates a single run for the other studies, per episode, and writes W/measures.json.

Each study writes W/NAME.json and prints a table. See docs/claims.md and docs/control.md.
"""

import signal

from absl import app, flags
from ml_collections import config_flags

from lawm_jax.train import command
from lawm_jax.train.flags import as_typed, define_config, sources

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study, created if missing.")
CONFIG = define_config(
    "config",
    "lawm.py:size=nano",
    "Config of the world models, which must have a mixture. Default: nano.",
)
CONTROLLER = define_config(
    "controller", "controller.py:size=nano", "Config of the controllers. Default: nano."
)
INSIDE = flags.DEFINE_string(
    "inside", "panda", "Name of the in-domain data source, on which plans are evaluated."
)
OUTSIDE = flags.DEFINE_list(
    "outside", None, "Names of the other data sources. Default: all others in the mixture."
)
TASK = flags.DEFINE_string("task", None, "Same as in lawm plan. Default: the name of --inside.")
SHARES = flags.DEFINE_list(
    "shares", "0,10,25,50,75,90,100", "Percentages of --inside in the mixture."
)
KINDS = flags.DEFINE_list("kinds", "sparse,noisy", "Kinds of latents.")
STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "Training steps of the world models. Default: 600, or 150 with --quick; mixture: as in "
    "--config.",
    lower_bound=1,
)
SEEDS = flags.DEFINE_integer(
    "seeds", None, "Number of runs of each kind. Default: 3; mixture: 1.", lower_bound=1
)
QUICK = flags.DEFINE_bool("quick", False, "claims: decide three claims about noisy latents.")
DATA = flags.DEFINE_list("data", None, "measures: NAME=SOURCE of each data source.")
EPISODES = flags.DEFINE_integer("episodes", 64, "Same as in lawm plan.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", None, "Same as in lawm plan.", lower_bound=1)
ITERATIONS = flags.DEFINE_integer("iterations", None, "Same as in lawm plan.", lower_bound=1)
JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "Number of runs at the same time, each on an equal share of the CPU cores.",
    lower_bound=1,
)
LIST = flags.DEFINE_bool("list", False, "Only print the commands that remain to be run.")
# Flags that a study uses, besides --workdir.
USED = {
    "claims": ("config", "controller", "steps", "seeds", "episodes", "quick", "jobs", "list"),
    "scaling": ("config", "controller", "steps", "seeds", "jobs", "list"),
    "measures": ("data",),
}


def main(argv):
    """Parses the flags and runs the study."""
    if len(argv) != 2 or argv[1] not in STUDIES:
        got = " ".join(argv[1:]) or "none"
        raise app.UsageError(f"NAME: expected one of {', '.join(STUDIES)}, got {got}")
    if not WORKDIR.value:
        raise app.UsageError("--workdir: expected the folder of the study, got none")
    for flag in (x for x in globals().values() if isinstance(x, flags.FlagHolder)):
        used = USED.get(argv[1], (flag.name,) if flag.name not in ("quick", "data") else ())
        if flag.present and flag.name not in ("workdir", *used):
            raise app.UsageError(f"--{flag.name}: {argv[1]} does not use it")
    if LIST.value:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    from lawm_jax.data import settings

    for config in (CONFIG.value, CONTROLLER.value):
        settings.check(config)
    STUDIES[argv[1]]()


def _claims():
    from lawm_jax.study import claims

    claims.study(WORKDIR.value, _several_seeds(), QUICK.value, LIST.value)


def _scaling():
    from lawm_jax.study import scaling

    scaling.study(WORKDIR.value, _several_seeds(), LIST.value)


def _several_seeds():
    from lawm_jax.study import cases, commands

    return cases.Settings(
        model=commands.Config(*given("config")),
        controller=commands.Config(*given("controller")),
        steps=STEPS.value,
        seeds=SEEDS.value or 3,
        episodes=EPISODES.value,
        jobs=JOBS.value,
    )


def _mixture():
    from lawm_jax.study import commands, mixture

    settings = mixture.Settings(
        model=commands.Config(*given("config")),
        controller=commands.Config(*given("controller")),
        inside=INSIDE.value,
        outside=OUTSIDE.value,
        task=TASK.value or INSIDE.value,
        shares=SHARES.value,
        kinds=KINDS.value,
        steps=STEPS.value,
        seeds=SEEDS.value or 1,
        planner=dict(episodes=EPISODES.value, samples=SAMPLES.value, iterations=ITERATIONS.value),
        jobs=JOBS.value,
    )
    mixture.study(WORKDIR.value, settings, LIST.value)


def _measures():
    from lawm_jax.study import measures
    from lawm_jax.train import cpu

    if not DATA.value:
        raise app.UsageError("--data: expected NAME=SOURCE, ..., got none")
    cpu.keep_memory()
    data = sources(DATA.value)
    with as_typed(data):
        measures.measure(WORKDIR.value, data)


STUDIES = {"claims": _claims, "scaling": _scaling, "mixture": _mixture, "measures": _measures}


def given(name):
    """Returns a config flag's value, its file and its overrides on the command line."""
    flag = flags.FLAGS[name]
    overrides = config_flags.get_override_values(flag)
    return flag.value, config_flags.get_config_filename(flag), overrides


if __name__ == "__main__":
    command.run(main, positional=True, resumes=True)

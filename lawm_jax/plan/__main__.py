"""Plans real actions that reach the goals of held-out clips, and compares them with the true ones.

Examples:
  lawm plan --workdir nano --task panda
  lawm plan --workdir nano --task nav --horizon 8 --planner icem
  lawm plan --workdir nano --task panda --closed-loop --planner mppi --samples 60

W is a world model with a controller in W/controller, or a model trained on labeled actions; runs in
W/bounds/labelled* are included in the comparison. Prints a table and writes W/eval/plan_TASK.json;
flags that change the results are added to this file name. --closed-loop acts in the simulator
(pip install 'lawm_jax[sim]'). See docs/control.md.
"""

from absl import flags

from lawm_jax.train import command
from lawm_jax.train.flags import as_typed, define_output

PROTOCOLS = ["paper", "jepa-wms", "nwm"]
TASKS = ["panda", "droid", "nav", "recon"]

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder, W; or nano, the shipped model.")
TASK = flags.DEFINE_enum("task", None, TASKS, "Task, which is also the name of its data source.")
DATA = flags.DEFINE_string(
    "data",
    None,
    "Data source: TASK=SOURCE. Needed if it is not in the run's config, or if the run was trained "
    "on stored states.",
)
PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "paper",
    PROTOCOLS,
    "Source of the settings of candidates, initial Gaussian, limits, context and crop: the paper, "
    "or the code of jepa-wms (panda, droid) or nwm (recon). Other flags take precedence.",
)
EPISODES_FROM = flags.DEFINE_string(
    "episodes_from",
    None,
    "File that lists the clips to plan on: CSV with the columns episode and start, or a JSON list "
    "of objects with these fields.",
)
PLANNER = flags.DEFINE_string(
    "planner", "cem", "Planner: cem, icem, mppi, gradient or cem_gradient."
)
EPISODES = flags.DEFINE_integer(
    "episodes",
    None,
    "Number of clips or, with --closed-loop, of scenes; all runs use the same ones. Default: 64 "
    "clips (nwm: 100), all clips of --episodes_from, or 32 scenes.",
    lower_bound=1,
)
CLOSED_LOOP = flags.DEFINE_bool(
    "closed-loop", False, "Act in the simulator, with a new plan at every step."
)
HORIZON = flags.DEFINE_multi_integer(
    "horizon",
    None,
    "Number of steps of a plan; may be repeated. Default: 3 for panda and droid, 8 and 4 for nav "
    "and recon (7 with --closed-loop).",
    lower_bound=1,
)
CONTROLLER = flags.DEFINE_string(
    "controller",
    None,
    "Folder of the controller, or its name in W/controller. Default: the controller for the data "
    "source, preferably of kind state.",
)
SAMPLES = flags.DEFINE_integer(
    "samples", None, "Number of candidates. Default: as in --protocol.", lower_bound=1
)
ITERATIONS = flags.DEFINE_integer(
    "iterations", None, "Number of planner iterations. Default: as in --protocol.", lower_bound=1
)
BOUND = flags.DEFINE_float(
    "bound",
    None,
    "Limit of planned actions, in standard deviations of the initial Gaussian (by default, that of "
    "the training actions). Default: as in --protocol, if it has limits.",
)
CHUNK = flags.DEFINE_integer(
    "chunk",
    None,
    "Number of candidates predicted at once, which limits memory use. Default: as many as fit in a "
    "quarter of the device's memory or, on a CPU, in its caches.",
    lower_bound=1,
)
JSON = define_output("json", "Output file. Default: a file in W/eval.")
flags.mark_flags_as_required(["workdir", "task"])
flags.register_validator("bound", lambda x: x is None or x > 0, "expected a positive number")


def main(argv):
    """Parses the flags and plans."""
    from lawm_jax.train import cpu

    cpu.device_per_core()
    from lawm_jax.plan import run

    name, _, spec = (DATA.value or "").partition("=")
    with as_typed({name: spec} if spec else {}):
        run.plan(
            WORKDIR.value,
            TASK.value,
            data=DATA.value,
            controller=CONTROLLER.value,
            planner=PLANNER.value,
            episodes=EPISODES.value,
            horizon=HORIZON.value,
            samples=SAMPLES.value,
            iterations=ITERATIONS.value,
            bound=BOUND.value,
            chunk=CHUNK.value,
            closed_loop=CLOSED_LOOP.value,
            json_file=JSON.value,
            protocol=PROTOCOL.value,
            episodes_from=EPISODES_FROM.value,
        )


if __name__ == "__main__":
    command.run(main)

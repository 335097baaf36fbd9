"""Plans with real actions: python -m lawm_jax.plan --workdir W --task panda|nav|droid|recon.

Searches for the actions that lead from the first state of a held-out clip to a later one, as the
model predicts it, and compares them with the clip's own actions. Manipulation (panda, droid) is
judged by the sum of the hand's moves, navigation (nav, recon) by the vehicle's trajectory. W is a
world model with a controller of the source in W/controller, or one of labelled actions; runs in
W/bounds/labelled* join the comparison.

Prints a table and writes W/eval/plan_TASK.json; the same command gives the same numbers. Flags that
change them become part of the name, such as W/eval/plan_panda_controller=blind_planner=mppi.json. A
run that was trained on stored states has to name the video: --data TASK=SOURCE.

Each picture is encoded alone, start and goal too, as jepa-wms and V-JEPA 2-AC do, so that no state
tells of frames between. The forward model reads at most as many steps as in training: for longer
plans its window slides, as in jepa-wms (8 steps of a model trained on clips of 8).

With --closed-loop the actions of panda or nav are taken in the simulator (pip install
lawm_jax[sim]), and a new plan is made at every step from what is then seen;
W/eval/plan_TASK_closed.json.
"""

from absl import app, flags, logging

TASKS = ["panda", "droid", "nav", "recon"]

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
TASK = flags.DEFINE_enum("task", None, TASKS, "The source of the clips, by name.")
DATA = flags.DEFINE_string("data", None, "TASK=SOURCE, where the run's config lacks this source.")
PLANNER = flags.DEFINE_string(
    "planner", "cem", "cem, icem, mppi, gradient or cem_gradient: see lawm_jax/plan/planners.py."
)
EPISODES = flags.DEFINE_integer(
    "episodes", None, "Clips or scenes, fixed ones; 64, in a closed loop 32.", lower_bound=1
)
CLOSED_LOOP = flags.DEFINE_bool("closed-loop", False, "Act in the simulator, plan at every step.")
HORIZON = flags.DEFINE_multi_integer(
    "horizon",
    None,
    "Steps of a plan; 3 for panda and droid, 8 and 4 for nav and recon.",
    lower_bound=1,
)
CONTROLLER = flags.DEFINE_string(
    "controller", None, "Folder, or name within W/controller; that of the source, of kind state."
)
SAMPLES = flags.DEFINE_integer("samples", None, "Candidates; the paper's number.", lower_bound=1)
ITERATIONS = flags.DEFINE_integer(
    "iterations", None, "Of the planner; the paper's number.", lower_bound=1
)
BOUND = flags.DEFINE_float("bound", None, "Of plans, in deviations of training actions; none.")
CHUNK = flags.DEFINE_integer(
    "chunk",
    None,
    "Candidates predicted at a time: it bounds the memory; what a quarter of the device's takes.",
    lower_bound=1,
)
JSON = flags.DEFINE_string("json", None, "File to write; one in W/eval, see above.")
flags.mark_flags_as_required(["workdir", "task"])
flags.register_validator("bound", lambda x: x is None or x > 0, "expected a positive number")


def main(argv):
    """Parses the flags and plans."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    from lawm_jax.train import cpu

    cpu.device_per_core()
    from lawm_jax.plan import run

    try:
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
        )
    except run.Refused as error:
        raise app.UsageError(f"--{error}") from error


if __name__ == "__main__":
    app.run(main)

"""Plans with real actions: python -m lawm_jax.plan --workdir W --task panda|nav|droid|recon.

On held-out clips it searches for the actions that lead from the first state to a later one, in the
eyes of the model, and compares them with those of the clip. panda and droid (E6): a hand is to
reach, judged by the sum of its moves; nav and recon (E7): a vehicle is to get somewhere, judged by
its trajectory. W is a world model with a controller of the source in W/controller, or one of
labelled actions; such a one in W/bounds/labelled joins the comparison. Prints a table and writes
W/eval/plan_TASK.json; the same command gives the same numbers. A run that was trained on stored
states has to name the video: --data TASK=SOURCE.
"""

import dataclasses
import glob
import json
import os
import time

from absl import app, flags, logging

# Of each task: what is asked, the horizons, metres between waypoints.
TASKS = {
    "panda": ("reach", (3,), None),
    "droid": ("reach", (3,), None),
    "nav": ("walk", (8, 4), None),
    "recon": ("walk", (8, 4), 0.25),
}
PLANNERS = ["cem", "icem", "mppi", "gradient", "cem_gradient"]
TRAINING = 256  # clips of the training part: for the baselines, and for the scale of actions

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
TASK = flags.DEFINE_enum("task", None, list(TASKS), "The source of the clips, by name.")
DATA = flags.DEFINE_string("data", None, "TASK=SOURCE, where the run's config lacks this source.")
PLANNER = flags.DEFINE_enum("planner", "cem", PLANNERS, "See lawm_jax/planning.py.")
EPISODES = flags.DEFINE_integer("episodes", 64, "Clips to plan on, fixed ones.", lower_bound=1)
HORIZON = flags.DEFINE_multi_integer(
    "horizon", None, "Steps of a plan; 3 for panda and droid, 8 and 4 for nav and recon."
)
CONTROLLER = flags.DEFINE_string(
    "controller", None, "Folder, or name within W/controller; that of the source, of kind state."
)
SAMPLES = flags.DEFINE_integer("samples", None, "Candidates; the paper's number.")
ITERATIONS = flags.DEFINE_integer("iterations", None, "Of the planner; the paper's number.")
BOUND = flags.DEFINE_float("bound", None, "Of plans, in deviations of training actions; none.")
flags.mark_flags_as_required(["workdir", "task"])


def main(argv):
    """Parses the flags and plans."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    import jax
    import ml_collections

    from lawm_jax import world_model
    from lawm_jax.evals import batched, clips, planning
    from lawm_jax.training import checkpoints

    begin, workdir, task = time.monotonic(), WORKDIR.value, TASK.value
    kind, horizons, spacing = TASKS[task]
    horizons = HORIZON.value or horizons
    config = ml_collections.ConfigDict(checkpoints.read_config(workdir))
    spec = _source(config, task)
    models, controller = _models(workdir, config, task, spec)
    model, params = next(iter(models.values()))
    config.encoder.repeat, frames = model.repeat, config.data.frames
    config.data.update(videos="", frames=max(horizons) + 1)
    config.data.sources = ml_collections.ConfigDict({task: spec})
    config.data.mixture = ml_collections.ConfigDict({task: 1.0})
    config.data.augment.update(crop=False, flip=0.0, jitter=0.0, cut=0.0)

    encode = jax.jit(lambda params, video: world_model.encode(model, params, video))
    encode = batched.in_batches(encode, {"encoder": params["encoder"]})
    episodes = clips.fixed(config, task, encode, EPISODES.value)
    config.data.frames = max(frames, max(horizons) + 1)
    training = clips.training(config, task, encode, TRAINING)
    given = {"samples": SAMPLES.value, "iterations": ITERATIONS.value}
    given = {key: value for key, value in given.items() if value is not None}
    ask = planning.reach
    if kind == "walk":
        ask = lambda *x, **options: planning.walk(*x, **options, spacing=spacing)  # noqa: E731
    plans = []
    for horizon in horizons:
        options = dict(planner=PLANNER.value, options=given, bound=BOUND.value)
        rows = ask(models, episodes, training, horizon=horizon, **options)
        plans.append({"horizon": horizon, "rows": rows})
        print(planning.table({task: plans[-1:]}), flush=True)
    found = {
        "task": task,
        "source": spec,
        "controller": controller,
        "episodes": len(episodes.s),
        "names": episodes.episodes.tolist(),  # of each clip's episode: the groups of intervals
        "planner": {"name": PLANNER.value, "bound": BOUND.value} | given,
        "seconds": round(time.monotonic() - begin),
        "plans": plans,
    }
    os.makedirs(os.path.join(workdir, "eval"), exist_ok=True)
    with open(os.path.join(workdir, "eval", f"plan_{task}.json"), "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1, allow_nan=False)


def _source(config, task):
    """Returns what the task's source stands for."""
    if DATA.value:
        name, _, spec = DATA.value.partition("=")
        if name != task or not spec:
            raise app.UsageError(f"--data: expected {task}=SOURCE, got {DATA.value!r}")
        return spec
    if task not in config.data.sources:
        raise app.UsageError(
            f"--data: the run has no source {task!r}; expected --data {task}=SOURCE, such as "
            f"--data {task}={task}:FOLDER"
        )
    return config.data.sources[task]


def _models(workdir, config, task, spec):
    """Loads the models to compare: name -> (model, params), and the controller's folder or None."""
    from lawm_jax import controlling, saving

    kind, controller = config.latent.kind, None
    if kind == "deterministic":
        raise app.UsageError(f"--workdir: {workdir} has no actions to plan with")
    if kind == "labelled":
        if not controlling.knows(workdir, task, spec):
            raise app.UsageError(f"--workdir: {workdir} knows the actions of another source")
        loaded = {kind: saving.load(workdir)}
    else:
        controller = CONTROLLER.value or next(iter(controlling.trained(workdir, task, spec)), None)
        if controller is None:
            raise app.UsageError(
                f"{workdir}/controller: no controller of {task} ({spec}); train one with "
                f"configs/controller.py and --config.model={workdir}, or name one by --controller"
            )
        loaded = {kind: saving.load(workdir, controller=controller)}
        for folder in sorted(glob.glob(os.path.join(glob.escape(workdir), "bounds", "labelled*"))):
            if controlling.knows(folder, task, spec):
                loaded[os.path.basename(folder)] = saving.load(folder)
    # A real action leads from frame to frame, so one frame has to be one step.
    each = {
        name: (dataclasses.replace(model, repeat=model.encoder.tubelet > 1), params)
        for name, (model, params) in loaded.items()
    }
    return each, controller


if __name__ == "__main__":
    app.run(main)

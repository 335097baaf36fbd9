"""Plans with real actions: python -m lawm_jax.plan --workdir W --task panda|nav|droid|recon.

On held-out clips it searches for the actions that lead from the first state to a later one, in the
eyes of the model, and compares them with those of the clip. panda and droid (E6): a hand is to
reach, judged by the sum of its moves; nav and recon (E7): a vehicle is to get somewhere, judged by
its trajectory. W is a world model with a controller of the source in W/controller, or one of
labelled actions; such a one in W/bounds/labelled joins the comparison. Prints a table and writes
W/eval/plan_TASK.json; the same command gives the same numbers. Flags that change them become part
of the name, such as W/eval/plan_panda_controller=blind_planner=mppi.json. A run that was trained on
stored states has to name the video: --data TASK=SOURCE.

Each picture is encoded alone, start and goal too, as jepa-wms and V-JEPA 2-AC do, so that no state
tells of frames between. The forward model reads at most as many steps as in training: in plans that
are longer its window slides, as in jepa-wms (8 steps of a model trained on clips of 8).

With --closed-loop the actions of panda or nav are taken in the simulator (pip install
lawm_jax[sim]), and planned anew at every step from what is then seen; W/eval/plan_TASK_closed.json.
"""

import dataclasses
import functools
import glob
import json
import os
import re
import sys
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
CLOSED = {"panda": (3,), "nav": (8,)}  # the horizons of what has a simulator
TRAINING = 256  # clips of the training part: for the baselines, and for the scale of actions

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
TASK = flags.DEFINE_enum("task", None, list(TASKS), "The source of the clips, by name.")
DATA = flags.DEFINE_string("data", None, "TASK=SOURCE, where the run's config lacks this source.")
PLANNER = flags.DEFINE_enum("planner", "cem", PLANNERS, "See lawm_jax/plan/planners.py.")
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
SETTINGS = DATA, CONTROLLER, PLANNER, EPISODES, HORIZON, SAMPLES, ITERATIONS, BOUND, CHUNK


def main(argv):
    """Parses the flags and plans."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    import ml_collections

    from lawm_jax.data import paths
    from lawm_jax.train import checkpoints, cpu

    cpu.device_per_core()
    begin, workdir, task = time.monotonic(), paths.expand(WORKDIR.value), TASK.value
    if CLOSED_LOOP.value and task not in CLOSED:
        raise app.UsageError(
            f"--closed-loop: expected --task {' or '.join(CLOSED)}, which have a simulator, got "
            f"{task}"
        )
    _check_samples()
    config = ml_collections.ConfigDict(checkpoints.read_config(workdir))
    spec = _source(config, task)
    models, controller, windows = _models(workdir, config, task, spec)
    count = EPISODES.value or (32 if CLOSED_LOOP.value else 64)
    scenes = _scenes(task, spec, count) if CLOSED_LOOP.value else None
    horizons = HORIZON.value or (CLOSED[task] if scenes else TASKS[task][1])
    model = next(iter(models.values()))[0]
    controls = model.controller.kind if controller else None
    config.encoder.repeat = model.repeat
    least = max(horizons) + 1
    config.data.update(videos="", frames=max(config.data.frames, least))
    config.data.sources = ml_collections.ConfigDict({task: spec})
    config.data.mixture = ml_collections.ConfigDict({task: 1.0})
    config.data.augment.update(crop=False, flip=0.0, jitter=0.0, cut=0.0)
    options = {"samples": SAMPLES.value, "iterations": ITERATIONS.value, "chunk": CHUNK.value}
    options = {key: value for key, value in options.items() if value is not None}
    asked = dict(planner=PLANNER.value, options=options, bound=BOUND.value, windows=windows)
    if scenes:
        found = _closed(config, task, models, scenes, horizons, asked)
    else:
        found = _open(config, task, models, count, horizons, asked, least)
    found = {
        "task": task,
        "source": spec,
        "controller": controller,
        "controller_kind": controls,
        "episodes": count,
        "planner": {"name": PLANNER.value, "bound": BOUND.value} | options,
        "seconds": round(time.monotonic() - begin),
        "plans": found,
    }
    name = f"plan_{task}{'_closed' if scenes else ''}{_settings()}.json"
    path = paths.expand(JSON.value) if JSON.value else os.path.join(workdir, "eval", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1, allow_nan=False)


def _check_samples():
    """Refuses fewer candidates than the planner takes elites of."""
    elites = 5 if (PLANNER.value, TASKS[TASK.value][0]) == ("cem", "walk") else 10
    least = {"mppi": 2, "gradient": 1}.get(PLANNER.value, elites + 1)
    if SAMPLES.value is not None and SAMPLES.value < least:
        raise app.UsageError(
            f"--samples: expected at least {least} for {PLANNER.value}, got {SAMPLES.value}"
        )


def _settings():
    """Names what flags change, so that other settings' results stay: "_planner=mppi" or ""."""
    text = ""
    for flag in SETTINGS:
        if flag.value != flag.default:
            value = ",".join(map(str, flag.value)) if flag is HORIZON else str(flag.value)
            text += f"_{flag.name}={value.removeprefix(f'{TASK.value}=')}"
    return re.sub(r"[^\w.,=-]+", "-", text)


def _open(config, task, models, count, horizons, asked, frames):
    """Plans on `count` held-out clips of `frames` frames, and prints: one dict per horizon."""

    from lawm_jax.plan import tasks

    kind, _, spacing = TASKS[task]
    ask = tasks.reach
    if kind == "walk":
        ask = functools.partial(tasks.walk, spacing=spacing)
    first = next(iter(models.values()))  # all models share its encoder
    episodes, training = tasks.load(config, task, *first, count, frames, TRAINING)
    plans = []
    for horizon in horizons:
        rows = ask(models, episodes, training, horizon=horizon, **asked)
        names = episodes.episodes.tolist()  # the groups of intervals
        plans.append({"horizon": horizon, "names": names, "rows": rows})
        print(tasks.table({task: plans[-1:]}), flush=True)
    return plans


def _closed(config, task, models, scenes, horizons, asked):
    """Acts in the simulator, and prints: one dict per horizon."""
    from lawm_jax.evaluate import batched, clips
    from lawm_jax.plan import closed_loop

    asks, plans = closed_loop.TASKS[task], []
    first = next(iter(models.values()))
    training = clips.training(config, task, batched.frame_encoder(*first), TRAINING)
    encode = batched.encoder(*first, batch=1)
    tell = lambda i: print(f"\repisode {i}/{len(scenes)}", end="\r", file=sys.stderr)  # noqa: E731
    for horizon in horizons:
        rows = closed_loop.evaluate(
            models, encode, asks, scenes, training, horizon, done=tell, **asked
        )
        measured = {"radius": asks.radius, "policy_steps": asks.steps, "steps": asks.limit}
        plans.append({"horizon": horizon} | measured | {"rows": rows})
        print(closed_loop.table(task, asks, horizon, rows), flush=True)
    return plans


def _scenes(task, spec, count):
    """Draws the scenes of a closed loop."""
    from lawm_jax.plan import closed_loop

    kind, _, where = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if kind != "mini" or os.path.basename(where) != task:
        raise app.UsageError(
            f"--data: a closed loop needs the simulator's own actions, {task}=mini:{task} or "
            f"{task}=mini:FOLDER/{task}, got {spec}"
        )
    try:
        return closed_loop.scenes(closed_loop.TASKS[task], count)
    except ImportError as error:
        raise app.UsageError(f"--closed-loop: {error}") from error


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
    """Loads the models to compare.

    Returns:
      name -> (model, params); the controller's folder or None; name -> steps that it reads.
    """
    from lawm_jax.plan import tasks
    from lawm_jax.train import checkpoints, controlling, models

    kind, controller = config.latent.kind, None
    if kind == "deterministic":
        raise app.UsageError(f"--workdir: {workdir} has no actions to plan with")
    if kind == "labelled":
        if not controlling.knows(workdir, task, spec):
            raise app.UsageError(f"--workdir: {workdir} knows the actions of another source")
        loaded, folders = {kind: models.load(workdir)}, {kind: workdir}
    else:
        controller = CONTROLLER.value or next(iter(controlling.trained(workdir, task, spec)), None)
        if controller is None:
            raise app.UsageError(
                f"{workdir}/controller: no controller of {task} ({spec}); train one with "
                f"configs/controller.py and --config.model={workdir}, or name one by --controller"
            )
        try:
            loaded = {kind: models.load(workdir, controller=controller)}
            folders = {kind: workdir}
        except (FileNotFoundError, ValueError) as error:
            raise app.UsageError(str(error)) from error
        for folder in sorted(glob.glob(os.path.join(glob.escape(workdir), "bounds", "labelled*"))):
            if controlling.knows(folder, task, spec):
                loaded[os.path.basename(folder)] = models.load(folder)
                folders[os.path.basename(folder)] = folder
    # A real action leads from frame to frame, so one frame has to be one step.
    each = {
        name: (dataclasses.replace(model, repeat=model.encoder.tubelet > 1), params)
        for name, (model, params) in loaded.items()
    }
    configs = {name: checkpoints.read_config(folder) for name, folder in folders.items()}
    windows = {name: tasks.window(configs[name], each[name][0]) for name in each}
    return each, controller, windows


if __name__ == "__main__":
    app.run(main)

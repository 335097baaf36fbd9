"""Plans with a trained model: loads models and clips or scenes, compares plans, writes results."""

import dataclasses
import functools
import inspect
import json
import os
import re
import time

import jax
import ml_collections
import tqdm

from lawm_jax import latents
from lawm_jax.data import catalog, paths, words
from lawm_jax.data.settings import Refused
from lawm_jax.evaluate import batched, clips, row_names, tables
from lawm_jax.plan import closed_loop as closed_loop_
from lawm_jax.plan import columns, listed, protocols, search, tasks
from lawm_jax.train import exported, models, rundir, sharding

# For each task: kind, horizons, meters between waypoints.
TASKS = {
    "panda": ("reach", (3,), None),
    "droid": ("reach", (3,), None),
    "nav": ("walk", (8, 4), None),
    "recon": ("walk", (8, 4), 0.25),
}
# Horizons of the tasks with a simulator; 7 steps are what a model sees in clips of 8 frames.
CLOSED = {"panda": (3,), "nav": (7,)}
DEFAULTS = ("planner", "cem"), ("protocol", "paper")  # left out of the names of results
TRAINING = 256  # training clips, for baselines and the scale of actions


def plan(
    workdir,
    task,
    *,
    data=None,
    controller=None,
    planner="cem",
    episodes=None,
    horizon=None,
    samples=None,
    iterations=None,
    bound=None,
    chunk=None,
    closed_loop=False,
    json_file=None,
    protocol="paper",
    episodes_from=None,
):
    """Plans real actions with a trained model, prints a table and writes the results as JSON.

    Args:
      workdir: folder of a world model with a controller, or of a labeled model; or another model,
        see `exported.working_copy`.
      task: a key of `TASKS`.
      data: "TASK=SOURCE", if the run's config lacks the data source.
      controller: folder, or name within WORKDIR/controller; None for the data source's controller.
      planner: one of `search.PLANNERS`.
      episodes: number of clips (None for the protocol's) or, with closed_loop, scenes (None for
        32).
      horizon: list of plan lengths in steps, None for the protocol's or the task's.
      samples, iterations: the planner's options; None for the protocol's values.
      bound: limit of plans in standard deviations of the initial Gaussian; None for the protocol's.
      chunk: number of candidates predicted at once; None to fit the memory.
      closed_loop: whether to act in the simulator, replanning at every step.
      json_file: output path; None for a file in WORKDIR/eval named after the non-default arguments.
      protocol: a key of `protocols.PROTOCOLS`, whose settings the other arguments override.
      episodes_from: path of a list of clips, see `listed.read`, of which the first `episodes` are
        taken, or None for clips at fixed random positions.

    Returns:
      The path of the JSON file.

    Raises:
      FileNotFoundError: there is no such model.
      Refused: an argument does not match the others or the run.
    """
    begin = time.monotonic()
    if closed_loop and task not in CLOSED:
        raise Refused(
            f"closed-loop: expected --task {' or '.join(CLOSED)}, which have a simulator, got "
            f"{task}"
        )
    rules = _protocol(task, protocol, closed_loop, episodes_from)
    _check_samples(task, planner, samples, rules)
    chosen = listed.read(episodes_from)[:episodes] if episodes_from else None
    workdir = exported.working_copy(workdir)
    if not json_file:
        rundir.folder(workdir)  # raises an error now if W can't be written to
    config = ml_collections.ConfigDict(rundir.read_world_model(workdir))
    spec = _source(config, task, data)
    loaded, controller_folder, windows = _models(workdir, config, task, spec, controller)
    usual = 32 if closed_loop else rules.episodes
    count = len(chosen) if chosen else episodes or usual
    scenes = _scenes(task, spec, count) if closed_loop else None
    horizons = horizon or (CLOSED[task] if scenes else rules.horizons or TASKS[task][1])
    model = next(iter(loaded.values()))[0]
    config.encoder.repeat = model.repeat
    least = max(horizons) + rules.context
    config.data.update(videos="", frames=max(config.data.frames, least))
    config.data.sources = ml_collections.ConfigDict({task: spec})
    config.data.mixture = ml_collections.ConfigDict({task: 1.0})
    config.data.augment.update(crop=False, flip=0.0, jitter=0.0, cut=0.0)
    if rules.full_height:
        config.data.resize = config.data.size
    options = {"samples": samples, "iterations": iterations, "chunk": chunk}
    options = {key: value for key, value in options.items() if value is not None}
    settings = dict(planner=planner, options=options, bound=bound, windows=windows)
    what = words.counted(count, "scene" if scenes else "clip")
    what += f", {words.counted(' and '.join(map(str, horizons)), 'step')}"
    by = planner if protocol == "paper" else f"{planner} (protocol {protocol})"
    if controller_folder:
        trained = ml_collections.ConfigDict(rundir.read_config(controller_folder))
        print(f"controller: {controller_folder}, trained on {', '.join(catalog.names(trained))}")
    print(f"{workdir}: planning {task} with {by}, {what}; compiling", flush=True)
    if scenes:
        plans = _closed(config, task, loaded, scenes, horizons, settings)
    else:
        before = rules.context - 1
        load = chosen and functools.partial(listed.load, rows=chosen, before=before)
        settings["protocol"] = rules
        plans = _open(config, task, loaded, count, horizons, settings, least, load)
    result = {
        "task": task,
        "source": spec,
        "controller": controller_folder,
        "controller_kind": models.controller_kind(controller_folder) if controller_folder else None,
        "episodes": len(plans[0]["names"]) if "names" in plans[0] else count,
        "protocol": protocol,
        "episodes_from": episodes_from,
        "planner": {"name": planner, "bound": bound} | options,
        "seconds": round(time.monotonic() - begin),
        "plans": plans,
    }
    names = dict(data=data, controller=controller, planner=planner, episodes=episodes)
    names |= dict(horizon=horizon, samples=samples, iterations=iterations, bound=bound, chunk=chunk)
    names |= dict(protocol=protocol, episodes_from=episodes_from and listed.label(episodes_from))
    name = result_name(task, closed_loop, names)
    path = paths.expand(json_file) if json_file else rundir.evaluation(workdir, name)
    paths.write(path, json.dumps(result, indent=1, allow_nan=False))
    print(f"results: {path}")
    return path


def result_name(task, closed_loop, arguments):
    """Names a result after the non-default arguments, such as plan_panda_planner=mppi.

    Args:
      task, closed_loop: as in `plan`.
      arguments: name -> value of the other arguments of `plan`, None for defaults.
    """
    text = ""
    for key, value in arguments.items():
        if value is not None and (key, value) not in DEFAULTS:
            value = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            text += f"_{key}={value.removeprefix(f'{task}=')}"
    text = re.sub(r"[^\w.,=-]+", "-", text)
    return f"plan_{task}{'_closed' if closed_loop else ''}{text}"


def _protocol(task, name, closed_loop, episodes_from):
    """Returns the `Protocol` of that name, if it is defined for the task."""
    if name not in protocols.PROTOCOLS:
        names = ", ".join(protocols.PROTOCOLS)
        raise Refused(f"protocol: expected one of {names}, got {name!r}")
    protocol = protocols.PROTOCOLS[name]
    if task not in protocol.tasks:
        raise Refused(
            f"protocol: expected --task {' or '.join(protocol.tasks)} for {name}, got {task}; for "
            f"other data, use --data {protocol.tasks[-1]}=SOURCE"
        )
    if closed_loop and (name != "paper" or episodes_from):
        what = f"--protocol paper, got {name}" if name != "paper" else "no --episodes_from, got one"
        raise Refused(f"closed-loop: expected {what}")
    return protocol


def _check_samples(task, planner, samples, protocol):
    """Rejects unknown planners and fewer candidates than the planner needs."""
    if planner not in search.PLANNERS:
        raise Refused(f"planner: expected one of {', '.join(search.PLANNERS)}, got {planner!r}")
    options = {
        k: x.default for k, x in inspect.signature(search.PLANNERS[planner]).parameters.items()
    }
    if planner == "cem":
        usual = tasks.WALK if TASKS[task][0] == "walk" else tasks.REACH
        options |= protocol.options or usual
    least = 2 if planner == "mppi" else options.get("elites", 0) + 1
    if samples is not None and samples < least:
        raise Refused(f"samples: expected at least {least} for {planner}, got {samples}")


def _open(config, task, models, count, horizons, settings, frames, load_listed):
    """Plans on clips from `tasks.load` and prints tables; returns one dict per horizon."""
    kind, _, spacing = TASKS[task]
    plan_task = tasks.reach
    if kind == "walk":
        plan_task = functools.partial(tasks.walk, spacing=spacing)
    first = next(iter(models.values()))  # all models share one encoder
    episodes, training = tasks.load(config, task, *first, count, frames, TRAINING, load_listed)
    count = len(episodes.episodes)  # less than asked if a listed clip cannot be read
    plans = []
    for horizon in horizons:
        with tqdm.tqdm(total=count * len(models), unit="plan", disable=None) as bar:
            inputs = models, episodes, training
            progress = None if bar.disable else bar.update  # waits for each group of plans
            rows = plan_task(*inputs, horizon=horizon, progress=progress, **settings)
        names = episodes.episodes.tolist()  # bootstrap groups
        plans.append({"horizon": horizon, "names": names, "rows": rows})
        caption = f"plans of {words.counted(horizon, 'step')}"
        print(tables.text(task, columns.tables(caption, rows)), flush=True)
    return plans


def _closed(config, task, models, scenes, horizons, settings):
    """Acts in the simulator and prints tables; returns one dict per horizon."""
    acting, plans = closed_loop_.TASKS[task], []
    first = next(iter(models.values()))
    training = clips.training(config, task, batched.frame_encoder(*first), TRAINING)
    encode = batched.encoder(*first, batch=1)
    for horizon in horizons:
        inputs = models, encode, acting, scenes, training, horizon
        with tqdm.tqdm(total=len(scenes), unit="scene", disable=None) as bar:
            rows = closed_loop_.evaluate(*inputs, progress=lambda _: bar.update(), **settings)
        measured = {"radius": acting.radius, "policy_steps": acting.steps, "steps": acting.limit}
        plans.append({"horizon": horizon} | measured | {"rows": rows})
        caption = (
            f"closed loop, plans of {words.counted(horizon, 'step')}, "
            f"goals {rows[0]['path'][0]:.3f} m away, success within {acting.radius:g} m, "
            f"episodes of {acting.limit} steps"
        )
        print(tables.text(task, columns.tables(caption, rows)), flush=True)
    return plans


def _scenes(task, text, count):
    """Draws the closed-loop scenes of a task; `text` must specify the embedded data."""
    spec = catalog.parse("data", text)
    if spec.kind != "mini" or os.path.basename(spec.where) != task:
        raise Refused(
            f"data: expected the simulator's own data for --closed-loop, {task}=mini:{task} or "
            f"{task}=mini:FOLDER/{task}, got {text}"
        )
    try:
        return closed_loop_.draw_scenes(closed_loop_.TASKS[task], count)
    except ImportError as error:
        raise Refused(f"closed-loop: {error}") from error


def _source(config, task, data):
    """Returns the specification of the task's data source."""
    if data:
        name, _, spec = data.partition("=")
        if name != task or not spec:
            raise Refused(f"data: expected {task}=SOURCE, got {data!r}")
        return spec
    if task not in config.data.sources:
        raise Refused(
            f"data: the run has no data source {task!r}; expected --data {task}=SOURCE, such as "
            f"--data {task}={task}:FOLDER, got none"
        )
    return config.data.sources[task]


def _models(workdir, config, task, spec, controller):
    """Loads the models to compare.

    Returns:
      name -> (model, params); the controller's folder or None; name -> window, see `tasks.window`.
    """
    latent = latents.make(**config.latent)
    kind, mesh = latent.kind, sharding.make_mesh(devices=jax.local_devices())
    if not (latent.inferred or latent.labelled):
        raise Refused(
            f"workdir: expected a model that is conditioned on actions, got {kind} in {workdir}"
        )
    if latent.labelled:
        if not models.trained_on(workdir, task, spec):
            raise Refused(
                f"workdir: expected a model trained on the actions of {task} ({spec}), got one of "
                f"another data source in {workdir}"
            )
        controller, folders = None, {kind: workdir}
        loaded = {kind: models.load(workdir, mesh=mesh)}
    else:
        controller = controller or next(iter(models.controllers_of(workdir, task, spec)), None)
        if controller is None:
            raise Refused(
                f"controller: expected one for {task} ({spec}) in {workdir}/controller, got none; "
                f"train it with configs/controller.py and --config.model={workdir}, or specify it"
            )
        controller = rundir.controller(workdir, controller)
        try:
            loaded = {kind: models.load(workdir, mesh=mesh, controller=controller)}
        except (FileNotFoundError, ValueError) as error:
            raise Refused(f"controller: {error}") from error
        folders = {kind: workdir}
        for name, folder in rundir.bounds(workdir).items():
            if name.startswith(row_names.LABELLED) and models.trained_on(folder, task, spec):
                loaded[name], folders[name] = models.load(folder, mesh=mesh), folder
    # Real actions lead from one frame to the next, so each frame must be a time step.
    by_frame = {
        name: (dataclasses.replace(model, repeat=model.encoder.tubelet > 1), params)
        for name, (model, params) in loaded.items()
    }
    configs = {name: rundir.read_config(folder) for name, folder in folders.items()}
    windows = {name: tasks.window(configs[name], by_frame[name][0]) for name in by_frame}
    return by_frame, controller, windows

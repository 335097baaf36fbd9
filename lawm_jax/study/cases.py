"""The training runs that the studies `claims` and `scaling` compare."""

import dataclasses
import glob
import json
import os

from lawm_jax.data import catalog, words
from lawm_jax.study import commands, runner

PANDA, NAV = "panda", "nav"
CONTROLLER_STEPS = 300
# Regularizer strengths or numbers of codes, from low to high capacity, for nano size.
STRENGTHS = {"sparse": (1.0, 0.1, 0.01), "noisy": (1e-3, 1e-5, 1e-6), "discrete": (16, 1024)}
# As cheap as 300 candidates: CEM of the paper's size takes 15 times longer.
PLANNER = {PANDA: dict(planner="icem", samples=60, iterations=10), NAV: dict(horizon=8)}


@dataclasses.dataclass(frozen=True)
class Case:
    """Describes a world model to train, its controllers, and how it is measured.

    Attributes:
      name: of the case, and of its folders, which are W/runs/NAME-SEED.
      latent: arguments of configs/lawm.py; "labelled" for configs/labelled.py, on the Panda.
      longer: training steps, relative to those of the study.
      options: name -> value of other config options.
      mixture: data source -> weight, 0 for all others; {} for the config's.
      every: 1 to train on all episodes, n for every n-th.
      controllers: pairs of data source and kind of controller, see configs/controller.py.
      tasks: names of the tasks to plan.
      measured: whether to run `measures`.
    """

    name: str
    latent: str
    longer: float = 1.0
    options: dict = dataclasses.field(default_factory=dict)
    mixture: dict = dataclasses.field(default_factory=dict)
    every: int = 1
    controllers: tuple = ()
    tasks: tuple = ()
    measured: bool = True


def capacities(kind, **options):
    """Returns the cases of a kind of latent, by increasing capacity."""
    levels = ("low", "middle", "high") if len(STRENGTHS[kind]) == 3 else ("low", "high")
    return [
        Case(f"{kind}-{level}", f"latent={kind},strength={strength:g}", **options)
        for level, strength in zip(levels, STRENGTHS[kind], strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Holds the settings of `claims` and `scaling`, as on the command line.

    Attributes:
      model, controller: `commands.Config` of the world models and controllers.
      steps: training steps of the world models; None for the study's default.
      seeds: number of training seeds.
      episodes: number of clips to plan on.
      jobs: number of runs at a time.
    """

    model: commands.Config
    controller: commands.Config
    steps: int | None
    seeds: int
    episodes: int
    jobs: int = 1


def run(workdir, settings, cases, names, only_list=False):
    """Runs all cases with all seeds, or resumes.

    Args:
      workdir: local folder of the study, created if missing.
      settings, cases, names: as in `plan`.
      only_list: whether to print the remaining commands instead.

    Returns:
      (name of a case, seed) -> results, see `plan`; None with only_list.

    Raises:
      commands.Refused: a setting is invalid.
    """
    workdir = commands.local(workdir)
    stored, runs = plan(workdir, settings, cases, names)
    link_parts(workdir, settings.model.value, cases, names)
    if only_list:
        runner.show(stored, runs)
        return None
    each = (
        f"{words.counted(len(cases), 'world model')} of {words.counted(settings.steps, 'step')} "
        f"for each of {words.counted(settings.seeds, 'seed')}, with "
        f"{words.counted(sum(len(x.controllers) for x in cases), 'controller')} and "
        f"{words.counted(sum(len(x.tasks) for x in cases), 'set')} of "
        f"{words.counted(settings.episodes, 'plan')}."
    )
    with runner.claimed(workdir):
        runner.run_all(stored, runs, each, settings.jobs)
        return {(x.labels["case"], x.labels["seed"]): runner.result(x) for x in runs}


def about(settings, results):
    """Returns a description of the study as JSON: steps, seeds, hours and `provenance`.

    Args:
      settings: Settings.
      results: from `run`.
    """
    from lawm_jax.evaluate.run import provenance  # imports JAX

    minutes = [result.get("minutes") for result in results.values()]
    hours = None if None in minutes else round(sum(minutes) / 60, 2)
    return {"seeds": settings.seeds, "steps": settings.steps, "hours": hours} | provenance()


def plan(workdir, settings, cases, names=(PANDA, NAV)):
    """Lists the runs of cases, seed by seed, and the commands that store their states.

    Args:
      workdir: absolute path of the study's folder.
      settings: Settings.
      cases: list of Case.
      names: names of the data sources to train on and to measure.

    Returns:
      stored: command lines, each a list.
      runs: list of `commands.Run`.

    Raises:
      commands.Refused: the config lacks the sources or its states can't be stored.
    """
    config = settings.model.value
    if config.data.videos or not set(names) <= set(config.data.sources):
        raise commands.Refused(
            f"config: expected data.sources {' and '.join(names)}, got {list(config.data.sources)}"
        )
    video = {name: config.data.sources[name] for name in names}
    for every in sorted({case.every for case in cases} - {1}):
        video |= {f"{x}-{every}": f"mini:{_part(workdir, x, every)}" for x in names}
    stored, sources = commands.stored_states(workdir, settings.model, video)
    if not stored:
        raise commands.Refused(
            "config: expected an encoder of single frames and no random views, so that states can "
            f"be stored, got {config.encoder.name}"
        )
    seeds = range(config.seed, config.seed + settings.seeds)
    shared = stored, sources, names
    runs = [_run(workdir, settings, case, seed, *shared) for seed in seeds for case in cases]
    return stored, runs


def _part(workdir, name, every):
    return os.path.join(workdir, "data", f"every-{every}", name)


def link_parts(workdir, config, cases, names=(PANDA, NAV)):
    """Makes the data of cases that train on every n-th episode, as links to that of the config.

    Args:
      workdir, cases, names: as in `plan`.
      config: of the world models.

    Raises:
      commands.Refused: a data source has no files to link to.
    """
    for every in sorted({case.every for case in cases} - {1}):
        for name in names:
            spec = catalog.parse(f"data.sources.{name}", config.data.sources[name])
            if spec.kind != "mini":
                raise commands.Refused(
                    f"config: expected data.sources.{name}=mini:FOLDER, to train on a part of it, "
                    f"got {config.data.sources[name]}"
                )
            _link(spec.folder, _part(workdir, name, every), every)


def _link(source, folder, every):
    """Links every n-th training episode of lawm_mini's layout, and all test episodes."""
    for split, step in (("train", every), ("test", 1)):
        os.makedirs(os.path.join(folder, split), exist_ok=True)
        pattern = os.path.join(glob.escape(os.path.join(source, split)), "*.mp4")
        for path in sorted(glob.glob(pattern))[::step]:
            for file in (path, os.path.splitext(path)[0] + ".npz"):
                link = os.path.join(folder, split, os.path.basename(file))
                if not os.path.lexists(link):
                    os.symlink(os.path.abspath(file), link)


def folder_of(workdir, name, seed):
    """Returns the folder of a case's world model."""
    return os.path.join(workdir, "runs", f"{name}-{seed}")


def _run(workdir, settings, case, seed, stored, sources, names):
    """Makes the `commands.Run` of a case and a seed; see `plan` and `commands.stored_states`."""
    folder, model = folder_of(workdir, case.name, seed), settings.model
    suffix = "" if case.every == 1 else f"-{case.every}"
    training = {name: sources[name + suffix] for name in names}
    weights = case.mixture or {name: model.value.data.mixture[name] for name in names}
    file = commands.with_argument(model.file, case.latent)
    if case.latent == "labelled":
        labelled = model.file.replace("lawm.py", "labelled.py")
        file, weights = commands.with_argument(labelled, f"source={PANDA}"), {PANDA: 1.0}
    weights = {name: 0.0 for name in model.value.data.mixture} | weights
    steps = {folder: round(case.longer * settings.steps)}
    options = model.options | case.options | {"seed": seed, "steps": steps[folder]}
    options |= {"data.sources": training, "data.mixture": weights}
    lines = [commands.command("train", dict(config=file, workdir=folder), config=options)]
    results = {}
    for name, kind in case.controllers:
        where = os.path.join(folder, "controller", f"{name}-{kind}")
        config = {"steps": CONTROLLER_STEPS} | settings.controller.options
        config |= {"seed": seed, "model": folder, "data.sources": training}
        steps[where] = config["steps"]
        file = commands.with_argument(settings.controller.file, f"kind={kind},source={name}")
        lines.append(commands.command("train", dict(config=file, workdir=where), config=config))
    if case.measured:
        results["measures"] = os.path.join(folder, "measures.json"), None
        data = [f"{name}={sources[name]}" for name in names]
        lines.append(commands.command("study", dict(workdir=folder, data=",".join(data))))
        lines[-1].insert(3, "measures")
    for task in case.tasks:
        path = os.path.join(folder, f"plan_{task}.json")
        flags = dict(workdir=folder, task=task, data=f"{task}={model.value.data.sources[task]}")
        flags |= dict(episodes=settings.episodes, json=path) | PLANNER[task]
        if case.controllers:
            flags["controller"] = os.path.join(folder, "controller", f"{task}-state")
        lines.append(commands.command("plan", flags))
        results[f"plan_{task}"] = path, None
    configs = [json.loads(x.value.to_json_best_effort()) for x in (model, settings.controller)]
    labels = dict(case=case.name, seed=seed)
    return commands.Run(labels, folder, lines, steps, results, [configs, stored, lines])

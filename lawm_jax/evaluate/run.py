"""Evaluates a trained model on held-out clips, prints verdicts and writes results."""

import collections
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time

import jax
import ml_collections

from lawm_jax.data import catalog, paths, pipeline, words
from lawm_jax.evaluate import context, figures, pictures, priors, tables, verdicts
from lawm_jax.evaluate.evaluations import EVALUATIONS, SLOW
from lawm_jax.train import checkpoints, command, exported, models, rundir, sharding

TRAINED = ("predictor", "inverse", "latent")  # trained parts of the parameters


def evaluate(
    workdir, only=None, data=None, decoder=None, distance="effnet", embedding="pca", verbose=False
):
    """Runs the evaluations of a trained model and writes WORKDIR/eval and WORKDIR/report.

    Args:
      workdir: folder of the run, local or in a bucket, or another model, see
        `exported.working_copy`.
      only: subset of `EVALUATIONS` and "pictures", or None for all but those in `SLOW`.
      data: name -> data source to use instead of the run's own, as in a config's data.sources.
      decoder: folder of a decoder's run, or None for WORKDIR/decoder.
      distance: perceptual distance, see `perceptual.load`.
      embedding: see `sampling.embed`.
      verbose: whether to print all tables besides the verdicts.

    Raises:
      ValueError: no data source has a clip to evaluate, or one does not fit the model.
    """
    begin, seconds = time.monotonic(), collections.Counter()
    workdir = exported.working_copy(workdir)
    if not (paths.is_url(workdir) or os.access(workdir, os.W_OK | os.X_OK)):  # before the work
        raise ValueError(f"workdir: expected a folder to write to, got {workdir}: no permission")
    config, without = ml_collections.ConfigDict(rundir.read_world_model(workdir)), {}
    main, folders = config.latent.kind, rundir.bounds(workdir)
    folders.pop(main, None)
    if data:
        config = catalog.with_sources(config, data)
        config.data.holdout, without = unseen(data, workdir, folders.values())
    mesh = sharding.make_mesh(devices=jax.local_devices())
    loaded = {main: models.load(workdir, mesh=mesh, decoder=decoder)}
    loaded |= {name: models.load(folder, mesh=mesh) for name, folder in folders.items()}
    report = paths.Staging(rundir.report(workdir))
    os.makedirs(report.path, exist_ok=True)

    named = [name for name in (*EVALUATIONS, "pictures") if name not in SLOW]
    named = named if only is None else only
    selected = {name: x for name, x in EVALUATIONS.items() if name in named}
    options = dict(folder=report.path, distance=distance, embedding=embedding)
    with _timed(seconds, "encoding"):
        sources = _open_sources(config, loaded, folders, without, options)
    if loaded[main][0].latent.inferred:
        if "sampling" in selected:
            with _timed(seconds, "sampling", "fitting a prior"):
                _add_prior(workdir, sources)
        if "control" in selected:
            _add_controllers(workdir, sources, mesh)
    explain = verbose or only is not None
    results = _ask(sources, selected, "pictures" in named, seconds, verbose, explain)
    for name, rows in results.items():
        _write(rundir.evaluation(workdir, name), rows, merge=bool(data))
    if "pictures" in named:
        _curve(report.path, {main: workdir} | folders)
        report.close()
        print(f"pictures and videos: {report.folder}")
    if selected:
        print(f"all tables: {rundir.evaluation(workdir, '*')}")
    report = f"{command.program().removesuffix('evaluate')}report"
    print(f"to build a report of all results: {report} {shlex.quote(str(workdir))}")
    total, slowest = time.monotonic() - begin, max(seconds, key=seconds.get)
    _write_about(workdir, loaded[main][1], total, seconds, merge=only is not None)
    print(
        f"evaluated in {total:.0f} s; slowest: {slowest} {seconds[slowest]:.0f} s"
        + (f"; --all adds {', '.join(SLOW)}" if only is None else "")
    )


def _ask(sources, evaluations, draws, seconds, verbose, explain):
    """Runs evaluations on all sources, prints verdicts and, if `draws`, draws pictures.

    Args:
      sources: list of context.Source.
      evaluations: name -> evaluation.
      draws: whether to draw pictures.
      seconds: Counter to which the time of each evaluation is added.
      verbose: as in `evaluate`.
      explain: whether to name evaluations that do not apply to a source.

    Returns:
      name of the evaluation -> {name of the source: what its `run` returned}.
    """
    results = {name: {} for name in evaluations}
    for source in sources:
        clips = source.clips.episodes
        counts = words.counted(len(clips), "clip"), words.counted(len(set(clips)), "episode")
        print(f"{source.name}: {' of '.join(counts)}", flush=True)
        explain_skipped(source, [*evaluations, *["pictures"] * draws])
        for name, evaluation in evaluations.items():
            with _timed(seconds, name):
                rows = evaluation.run(source)
            if rows:
                results[name][source.name] = rows
                _print(name, rows, source, verbose)
            elif explain:
                print(f"{source.name}: {name} does not apply to this source and model")
        if draws:
            with _timed(seconds, "pictures"):
                pictures.draw(source)
    return results


def explain_skipped(source, names):
    """Prints which of the named evaluations are skipped as clips of a source can't be paired."""
    if source.pairs:
        return
    why, needing = "which need clips from at least 3 videos", ["leakage", "transfer"]
    if source.main in source.labelled:
        why = "since real actions are known only for unmodified clips"
        needing.append("pictures")
    if skipped := [name for name in needing if name in names]:
        print(f"{source.name}: skipping {' and '.join(skipped)}, {why}")


def _add_prior(workdir, sources):
    """Fits a prior to a run's latents, saves it, and sets `learned` of the sources."""
    config = ml_collections.ConfigDict(rundir.read_config(workdir))
    learned = priors.fit_to_run(config, sources[0])
    models.save_prior(workdir, checkpoints.newest(workdir), *learned[1])
    for source in sources:
        source.learned = learned


def _add_controllers(workdir, sources, mesh):
    """Sets `controllers` of the sources to the model with each controller of the data source."""
    for source in sources:
        spec = source.config.data.videos or source.config.data.sources[source.name]
        source.controllers = {}
        for folder, kind in models.controllers_of(workdir, source.name, spec).items():
            if kind in source.controllers:  # the first of a kind counts
                continue
            other, params = models.load(workdir, mesh=mesh, controller=folder)
            model = dataclasses.replace(source.model, controller=other.controller)
            params = source.params | {"controller": params["controller"]}
            source.controllers[kind] = model, params


@contextlib.contextmanager
def _timed(seconds, name, label=""):
    """Adds the time that the `with` body takes to seconds[name] and shows its label meanwhile."""
    begin = time.monotonic()
    _show_progress(label or name)
    try:
        yield
    finally:
        _show_progress()
        seconds[name] += time.monotonic() - begin


def _show_progress(name=""):
    """Shows a name on the terminal's current line; clears the line without a name."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{name and f'  … {name}'}", end="", file=sys.stderr, flush=True)


def _print(name, rows, source, verbose):
    """Prints the verdicts of an evaluation on one data source and, if `verbose`, its tables."""
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for verdict in verdicts.judge(EVALUATIONS[name], rows, source.main):
        print(verdicts.line(name, verdict, color), flush=True)
    if verbose:
        print(tables.text(source.name, EVALUATIONS[name].tables(rows)), flush=True)


def _open_sources(config, loaded, folders, without, options):
    """Opens each source as `context.Source`, except those whose clips never change."""
    sources = []
    for name in catalog.names(config):
        models_ = comparable(name, loaded, folders)
        try:
            source = context.Source(config, name, models_, without=without.get(name, ()), **options)
        except context.StaticClips as error:
            _show_progress()  # clears the line
            print(f"skipping {error}")
        else:
            sources.append(source)
            source.peers = sources
    if not sources:
        raise ValueError("data: expected a source whose held-out clips change over time, got none")
    return sources


def unseen(sources, workdir, bounds):
    """Determines which parts of the given data sources no run was trained on.

    Args:
      sources: name -> data source, as in a config's data.sources.
      workdir, bounds: folders of the runs.

    Returns:
      share: the held-out share to evaluate: 1, or that of a run trained on one of the same sources
        (same specification or, for runs with real actions, same name).
      without: name -> identities of items that runs were trained on; they do not depend on how the
        path is spelled or whether the data was ingested.
    """
    share, without = 1.0, {name: set() for name in sources}
    for name, spec in sources.items():
        for folder in dict.fromkeys(
            (workdir, *bounds, *models.controllers_of(workdir, name, spec))
        ):
            config = rundir.read_config(folder)
            data = config["data"]
            specs = [data["sources"][key] for key, weight in data["mixture"].items() if weight > 0]
            specs = [data["videos"]] if data["videos"] else specs
            same = any(models.same_source(spec, trained) for trained in specs)
            if same or models.trained_on(folder, name, spec):
                print(f"{name}: {folder} was trained on it; evaluating only its held-out part")
                share = min(share, data["holdout"])
            elif items := _trained_on(config, name, spec):
                print(f"{name}: {folder} was trained on {len(items)} of its items; excluding them")
                without[name] |= items
    return share, without


def _trained_on(config, name, spec):
    """Returns the identities of a source's items that are also in the data of a run's config."""
    config = ml_collections.ConfigDict(config)
    try:
        trained = [set(pipeline.identities(config, key)) for key in catalog.names(config)]
    except (ValueError, OSError) as error:
        print(
            f"{name}: cannot check whether a run was trained on it, since the run's data is "
            f"missing: {error}"
        )
        return set()
    config = catalog.with_sources(config, {name: spec})
    config.data.holdout = 1.0
    return set.union(*trained) & set(pipeline.identities(config, name, "test"))


def comparable(name, loaded, folders):
    """Returns `loaded` without labeled models of another data source or with other time steps.

    Args:
      name: name of the data source.
      loaded: name -> (model, params), the main model first.
      folders: name -> folder of the other models.
    """
    kept, (main, *_) = dict(loaded), [model for model, _ in loaded.values()]
    for key, folder in folders.items():
        config = ml_collections.ConfigDict(rundir.read_config(folder))
        model = loaded[key][0]
        same = name in catalog.names(config) and model.repeat == main.repeat
        if model.latent.labelled and not same:
            del kept[key]
    return kept


def _write(path, results, merge=False):
    """Writes JSON; with `merge`, keeps existing results of other data sources."""
    if merge and paths.exists(path):
        results = json.loads(paths.at(path).read_text(encoding="utf-8")) | results
    paths.write(path, json.dumps(results, indent=1, allow_nan=False))


def _write_about(workdir, params, total, seconds, merge):
    """Writes the step, the number of trained parameters, `provenance` and times to about.json.

    With `merge`, keeps the times of evaluations that ran before.
    """
    trained = {key: value for key, value in params.items() if key in TRAINED}
    count = sum(x.size for x in jax.tree.leaves(trained))
    about = {"step": checkpoints.newest(workdir), "parameters": count} | provenance()
    path, parts = rundir.evaluation(workdir, "about"), {}
    if merge and paths.exists(path):
        parts = json.loads(paths.at(path).read_text(encoding="utf-8")).get("parts", {})
    parts |= {name: round(x, 1) for name, x in seconds.items()}
    _write(path, about | {"seconds": round(total), "parts": parts})


def provenance():
    """Returns where results come from, as JSON: commit, machine, versions and date."""
    root = pathlib.Path(__file__).parents[2]
    git = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    device = jax.devices()[0]
    return {
        "commit": git.stdout.strip() or None,
        "machine": f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")},
        "date": datetime.date.today().isoformat(),
    }


def _curve(output, folders):
    """Draws the training losses as SHOWN/loss.png; exported models have none."""
    logs = {name: rundir.metrics(folder) for name, folder in folders.items()}
    logs = {name: rundir.read_lines(x) for name, x in logs.items() if paths.exists(x)}
    runs = {name: figures.parse_metrics(content) for name, content in logs.items()}
    if runs:
        figures.loss_curve(os.path.join(output, "loss.png"), runs)

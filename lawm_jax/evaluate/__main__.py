"""Evaluates a trained model: python -m lawm_jax.evaluate --workdir W [--only ...] [--data ...].

On held-out clips of every source it was trained on, or of all of --data but the items that some run
was trained on (files and episodes, however the path is spelt, and ingested or not), it asks the
paper's questions:
prediction (E1), leakage (E2), transfer (E3, E4), content (what the latents hold), control (E5, for
a source that a run in W/controller was trained on), sampling (E10) and pictures (E11). Prints
tables, writes W/eval/*.json, and pictures and films to W/report/. Runs in W/bounds/NAME, trained on
the same data, join the comparison: "deterministic" (no latent) and "none" (unconstrained latents)
are the paper's lower and upper bound, "labelled" knows the real actions of the source that it was
trained on (prediction and control alone). `python -m lawm_jax.report W` then makes a page of it
all.
"""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import time

from absl import app, flags, logging

PARTS = ["prediction", "leakage", "transfer", "content", "control", "sampling", "pictures"]
MODULES = {"content": "probing"}  # of parts that have another name
TRAINED = ("predictor", "inverse", "latent")  # parts of the params

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
ONLY = flags.DEFINE_multi_enum("only", None, PARTS, "What to do; all.")
DATA = flags.DEFINE_multi_string(
    "data",
    [],
    "NAME=SOURCE to evaluate on instead of the run's own, as in the config's data.sources.",
)
DECODER = flags.DEFINE_string("decoder", None, "Folder of the run of a decoder; W/decoder.")
DISTANCE = flags.DEFINE_enum(
    "distance", "effnet", ["effnet", "lpips_vgg", "lpips_alex"], "Perceptual distance."
)
EMBEDDING = flags.DEFINE_enum("embedding", "pca", ["pca", "umap"], "umap: the paper's; see extras.")
flags.mark_flags_as_required(["workdir"])


def main(argv):
    """Parses the flags and evaluates."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    import ml_collections

    from lawm_jax.data import paths, pipeline
    from lawm_jax.evaluate import context
    from lawm_jax.train import checkpoints, cpu, models

    cpu.keep_memory()
    begin, workdir = time.monotonic(), paths.expand(WORKDIR.value)
    config = ml_collections.ConfigDict(checkpoints.read_config(workdir))
    own = config.copy_and_resolve_references()
    main, folders = config.latent.kind, _bounds(workdir)
    folders.pop(main, None)
    without = {}
    if DATA.value:
        given = dict(_named(x) for x in DATA.value)
        config.data.videos, config.data.sources = "", ml_collections.ConfigDict(given)
        config.data.mixture = ml_collections.ConfigDict(dict.fromkeys(given, 1.0))
        config.data.holdout, without = _unseen(given, workdir, folders.values())
    loaded = {main: models.load(workdir, decoder=DECODER.value)}
    loaded |= {name: models.load(folder) for name, folder in folders.items()}
    for folder in ("eval", "report"):
        os.makedirs(os.path.join(workdir, folder), exist_ok=True)

    parts = [part for part in PARTS if part in (ONLY.value or PARTS)]
    results = {part: {} for part in parts if part != "pictures"}
    folder = os.path.join(workdir, "report")
    options = folder, DISTANCE.value, EMBEDDING.value
    sources = [
        context.Source(config, x, _known(x, loaded, folders), *options, without.get(x, ()))
        for x in pipeline.names(config)
    ]
    if "sampling" in parts and main not in ("deterministic", "labelled"):
        learned = context.fit_prior(own, sources[0])
        models.save_prior(workdir, _step(workdir), *learned[1])
        for one in sources:
            one.learned = learned
    if "control" in parts and main not in ("deterministic", "labelled"):
        for one in sources:
            one.controllers = _controllers(workdir, one.name, config, *loaded[main])
    for one in sources:
        for part in parts:
            found = getattr(one, part)()
            if found:
                results[part][one.name] = found
                print(_table(part, {one.name: found}), flush=True)
    for part, found in results.items():
        _write(os.path.join(workdir, "eval", f"{part}.json"), found, merge=bool(DATA.value))
    if "pictures" in parts:
        _curve(workdir, {main: workdir} | folders)
        print(f"pictures and films: {os.path.join(workdir, 'report')}")
    about = _about(workdir, loaded[main][1], time.monotonic() - begin)
    _write(os.path.join(workdir, "eval", "about.json"), about)


def _named(text):
    name, _, spec = text.partition("=")
    if not name.isidentifier() or not spec:
        raise app.UsageError(f"--data: expected NAME=SOURCE, got {text!r}")
    return name, spec


def _unseen(given, workdir, bounds):
    """Finds out what of given sources some run was trained on.

    Args:
      given: name -> what it stands for.
      workdir, bounds: folders of the runs.

    Returns:
      The share of the sources that no run was trained on: all, or what one held out where the text
      is the same or, to a run of real actions, the name; and name -> the identities of items that
      runs were trained on, however the path was spelt, ingested or not.
    """
    from lawm_jax.train import checkpoints, controlling

    share, without = 1.0, {name: set() for name in given}
    for name, spec in given.items():
        for folder in dict.fromkeys((workdir, *bounds, *controlling.trained(workdir, name, spec))):
            config = checkpoints.read_config(folder)
            data = config["data"]
            seen = [data["sources"][key] for key, weight in data["mixture"].items() if weight > 0]
            seen = [data["videos"]] if data["videos"] else seen
            if spec in seen or controlling.knows(folder, name, spec):
                print(f"{name}: {folder} was trained on it, what that held out is evaluated")
                share = min(share, data["holdout"])
            elif found := _trained_on(config, name, spec):
                print(f"{name}: {folder} was trained on {len(found)} of its items: left out")
                without[name] |= found
    return share, without


def _trained_on(config, name, spec):
    """Returns the identities of a source's items that a run of a config was trained on."""
    import ml_collections

    from lawm_jax.data import pipeline

    config = ml_collections.ConfigDict(config)
    try:
        trained = [set(pipeline.identities(config, key)) for key in pipeline.names(config)]
    except (ValueError, OSError) as error:
        print(f"{name}: cannot tell whether a run was trained on it, its data is gone: {error}")
        return set()
    config.data.update(videos="", holdout=1.0)
    config.data.sources = ml_collections.ConfigDict({name: spec})
    config.data.mixture = ml_collections.ConfigDict({name: 1.0})
    return set.union(*trained) & set(pipeline.identities(config, name, "test"))


def _bounds(workdir):
    """Finds the runs to compare with: name -> folder."""
    parent = os.path.join(workdir, "bounds")
    names = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    runs = {name: os.path.join(parent, name) for name in names}
    return {name: run for name, run in runs.items() if os.path.exists(f"{run}/config.json")}


def _known(name, loaded, folders):
    """Leaves out the runs in `folders` whose real actions are another source's or other steps'."""
    import ml_collections

    from lawm_jax.data import pipeline
    from lawm_jax.train import checkpoints

    known, (main, *_) = dict(loaded), [model for model, _ in loaded.values()]
    for key, folder in folders.items():
        config = ml_collections.ConfigDict(checkpoints.read_config(folder))
        model = loaded[key][0]
        same = name in pipeline.names(config) and model.repeat == main.repeat
        if model.latent.kind == "labelled" and not same:
            del known[key]
    return known


def _controllers(workdir, name, config, model, params):
    """Gives the model each controller that was trained on a source: kind -> (model, params)."""
    import dataclasses

    from lawm_jax.train import controlling, models

    spec, found = config.data.videos or config.data.sources[name], {}
    for folder, kind in reversed(controlling.trained(workdir, name, spec).items()):
        other, theirs = models.load(workdir, controller=folder)
        same = dataclasses.replace(model, controller=other.controller)
        found[kind] = same, params | {"controller": theirs["controller"]}
    return dict(sorted(found.items(), key=lambda item: item[0] != "state"))


def _table(part, found):
    import importlib

    return importlib.import_module(f"lawm_jax.evaluate.{MODULES.get(part, part)}").table(found)


def _write(path, found, merge=False):
    """Writes JSON; with `merge` what is there of other sources stays."""
    if merge and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            found = json.load(file) | found
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1, allow_nan=False)


def _about(workdir, params, seconds):
    """Says what the numbers come from: everything that may differ between two equal results."""
    import importlib.metadata

    import jax

    root = pathlib.Path(__file__).parents[2]
    git = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    device = jax.devices()[0]
    trained = {key: value for key, value in params.items() if key in TRAINED}
    return {
        "step": _step(workdir),
        "parameters": sum(x.size for x in jax.tree.leaves(trained)),
        "commit": git.stdout.strip() or None,
        "machine": f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")},
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds),
    }


def _step(workdir):
    from lawm_jax.train import checkpoints

    store = checkpoints.Checkpoints(workdir, write=False)
    step = store.latest
    store.close()
    return step


def _curve(workdir, folders):
    from lawm_jax.report import figures

    runs = {name: f"{folder}/metrics.jsonl" for name, folder in folders.items()}
    runs = {name: figures.read_metrics(path) for name, path in runs.items()}
    figures.loss_curve(os.path.join(workdir, "report", "loss.png"), runs)


if __name__ == "__main__":
    app.run(main)

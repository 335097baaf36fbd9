"""Exports trained models for others: `lawm.save_pretrained` and `lawm.push_to_hub`."""

import json
import os

import huggingface_hub
import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from lawm_jax.data import catalog, mini, paths
from lawm_jax.train import checkpoints, exported, models, rundir

TAGS = ["world-model", "latent-actions", "video", "jax"]


def save_pretrained(folder, workdir, sources=None, card=None):
    """Exports a trained model with its decoder, controllers and prior, as `exported` describes.

    A frozen encoder with public weights is not written; `load` reads it as training did, from
    the Hub or from the folder that the config's `encoder.weights` names.

    Args:
      folder: output folder; created if missing.
      workdir: folder of the run, or of a model that `save` wrote.
      sources: name -> spec to write in the config. Other sources lose their spec, unless they are
        embedded, so that no path of data is published.
      card: text of README.md, including its metadata; None for a short one.

    Raises:
      FileNotFoundError: the run has no checkpoint.
      ValueError: `workdir` is not a path, the output folder already holds a model, or the newest
        checkpoint is unreadable.
    """
    if not isinstance(workdir, str | os.PathLike):
        raise ValueError(
            f"workdir: expected the folder of a run, got a {type(workdir).__name__}; "
            "lawm.save(workdir, model, params) writes a model and its parameters to such a folder"
        )
    folder, workdir = rundir.folder(folder), exported.find(workdir)
    if paths.exists(rundir.config(folder)):
        raise ValueError(f"{folder}: expected a folder without a model, got one with config.json")
    runs = [workdir, *filter(None, [rundir.decoder(workdir)]), *rundir.controllers(workdir)]
    for run in runs:
        inside = os.path.relpath(run, workdir)
        _export(run, folder if inside == "." else os.path.join(folder, inside), sources)
    if paths.exists(rundir.prior(workdir)):
        paths.write(rundir.prior(folder), paths.at(rundir.prior(workdir)).read_bytes())
    text = card or _card(rundir.read_config(folder), checkpoints.newest(folder))
    paths.write(os.path.join(folder, "README.md"), text)


def metadata(**more):
    """Returns the metadata of a model card, YAML text without its `---` lines."""
    return huggingface_hub.ModelCardData(library_name="lawm_jax", tags=TAGS, **more).to_yaml()


def push_to_hub(folder, name, private=False, token=None):
    """Uploads an exported model to the Hugging Face Hub, for `lawm.load(name)`.

    Args:
      folder: from `save_pretrained`.
      name: "ORGANIZATION/NAME"; created if missing.
      private: whether a new repository is private.
      token: token of an account that may write; None for that of `hf auth login`.

    Returns:
      The URL of the commit.

    Raises:
      FileNotFoundError: the folder holds no exported model.
      huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    if not os.path.exists(rundir.weights(folder)):
        raise FileNotFoundError(
            f"{rundir.weights(folder)}: not found; expected a folder from `save_pretrained`"
        )
    hub = huggingface_hub.HfApi(token=token)
    hub.create_repo(name, private=private, exist_ok=True)
    return hub.upload_folder(
        repo_id=name, folder_path=folder, allow_patterns=exported.FILES, commit_message="Upload"
    ).commit_url


def _export(run, folder, sources):
    """Writes config.json and model.safetensors of one run."""
    store = checkpoints.reader(run)
    try:
        step, parts = store.latest, store.parts(store.latest)
    finally:
        store.close()
    _, params = models.load(run, step, decoder="", controller="")
    arrays = flatten_dict({part: params[part] for part in parts}, sep="/")
    arrays = {name: np.asarray(x) for name, x in jax.device_get(arrays).items()}
    config = _without_paths(rundir.read_config(run), sources or {})
    rundir.write_config(folder, json.dumps(config, indent=1, sort_keys=True))
    paths.write(rundir.weights(folder), safetensors.numpy.save(arrays, {"step": str(step)}))


def _without_paths(config, sources):
    """Returns a config without the local paths of a run."""
    data = dict(config["data"])
    if data.get("videos"):
        data["videos"] = _public("videos", data["videos"], sources)
    if "sources" in data:
        data["sources"] = {k: _public(k, spec, sources) for k, spec in data["sources"].items()}
    folders = {key: "" for key in ("model", "init_from") if key in config}
    return config | {"data": data} | folders


def _public(name, spec, sources):
    if name in sources:
        return sources[name]
    kind, where, _ = catalog.parse(name, spec)
    embedded = kind == "mini" and where in mini.PARTS
    return spec if embedded else f"{kind}:/path/to/{name}"


def _card(config, step):
    """Returns the text of a short model card."""
    kind = config.get("latent", {}).get("kind", "no")
    return f"""---
{metadata()}
---
# Latent action world model

A model with {kind} latent actions over the states of {config["encoder"]["name"]}, trained for
{step} steps with lawm_jax, an implementation of Garrido et al. 2026, Learning Latent Action World
Models In The Wild (https://arxiv.org/abs/2601.05230). `config.json` has the settings of the run.

    import lawm_jax as lawm

    model, params = lawm.load("ORGANIZATION/NAME")  # or a folder with these files
"""

"""Infers the latent actions of whole data sources and writes them, batch by batch."""

import contextlib
import functools
import importlib.metadata
import itertools
import json
import os
import re
import shutil

import jax
import ml_collections
import numpy as np
import tqdm

from lawm_jax import latents
from lawm_jax.data import catalog, paths, pipeline, words
from lawm_jax.data.settings import Refused
from lawm_jax.evaluate import batched
from lawm_jax.export import arrays, lary
from lawm_jax.train import checkpoints, exported, models, rundir, sharding

BATCH = 16  # clips that are read and encoded at once
UNITS = {
    "droid": "actions: x, y, z (m), Euler angles (rad), gripper (0 to 1); changes of `state`",
    "recon": "actions: forward, left (m), turn left (rad); state: x, y (m), yaw (rad)",
    "panda": "actions: x, y, z (m); state: x, y, z (m), gripper",
    "nav": "actions: forward, left (m), turn left (rad); state: x, y (m), yaw (rad)",
}


def export(workdir, out, to="arrays", data=None, limit=None, states=True):
    """Exports latent actions, states, labels and splits of data sources, and prints a summary.

    The splits are those of the run's config: clips of "test" are held out from the run if it was
    trained on the source. Unreadable items are listed in OUT/skipped.jsonl.

    Args:
      workdir: folder of a run, or another model, see `exported.find`.
      out: folder to write to, which appears when the export is complete.
      to: "arrays" or "lary", see the modules of these names.
      data: name -> data source to export instead of the run's own, as in a config's data.sources.
      limit: maximum number of clips of each source and split, or None.
      states: whether to write the encoder's states, if `to` is "arrays".

    Raises:
      Refused: OUT exists or is in a bucket, or the model infers no latent actions.
      ValueError: no clip can be read, or as in `lary.write`.
    """
    out, model_folder = _new(out), exported.find(workdir)
    config = ml_collections.ConfigDict(rundir.read_world_model(model_folder))
    if not latents.make(**config.latent).inferred:
        raise Refused(
            f"workdir: expected a model that infers latent actions, got {config.latent.kind} in "
            f"{workdir}"
        )
    config = catalog.with_sources(config, data) if data else config
    mesh = sharding.make_mesh(devices=jax.local_devices())
    model, params = models.load(model_folder, mesh=mesh, controller="")
    stride = 1 if model.repeat else model.encoder.tubelet
    about = _about(config, workdir, model_folder, to, stride)
    sources = {name: _described(config, name) for name in catalog.names(config)}
    write = arrays.write
    if to == "lary":
        key = re.sub(r"[^\w.-]+", "-", os.path.basename(str(workdir).rstrip("/")))
        write = functools.partial(lary.write, model=key, stride=stride)
    with _whole(out) as folder:
        skipped = os.path.join(folder, "skipped.jsonl")
        for name, split in itertools.product(sources, lary.SPLITS):
            clips = _clips(config, name, split, limit, skipped)
            batches = inferred(model, params, clips, states and to == "arrays")
            with tqdm.tqdm(batches, unit="batch", desc=f"{name}, {split}", disable=None) as bar:
                written = sources[name][split] = write(folder, name, split, iter(bar))
            print(f"{name}, {split}: {words.counted(written['clips'], 'clip')}", flush=True)
        if not any(x[split]["clips"] for x in sources.values() for split in lary.SPLITS):
            raise ValueError(f"data: expected a source whose clips can be read, got {data}")
        about |= {"sources": sources, "skipped": _count(skipped)}
        paths.write(os.path.join(folder, "export.json"), json.dumps(about, indent=1))
    if about["skipped"]:
        skipped = words.counted(about["skipped"], "unreadable item")
        print(f"skipped {skipped}; see {out}/skipped.jsonl")
    print(f"exported: {out}")


def _about(config, name, workdir, to, stride):
    """Returns the contents of export.json on a run in `workdir`, given by `name`."""
    return {
        "format": f"lawm_jax {to}",
        "version": importlib.metadata.version("lawm_jax"),
        "model": str(name),
        "step": checkpoints.newest(workdir),
        "latent": config.latent.to_dict(),
        "encoder": config.encoder.to_dict(),
        "frames_per_step": stride,
        "fps": config.data.fps,
        "arrays": arrays.ABOUT if to == "arrays" else {},
    }


def inferred(model, params, clips, states=True):
    """Encodes clips and infers their latent actions.

    Args:
      model, params: a world model that infers latent actions.
      clips: iterator as `pipeline.episodes` returns.
      states: whether to yield the states.

    Yields:
      Dicts with the arrays of `arrays.ABOUT` for up to `BATCH` clips; `codes` only of discrete
      latents, `actions` and `state` only of sources with labels. Floats are float32, `start`
      float64.
    """
    encode, infer = batched.encoder(model, params, BATCH), batched.batched(model, params, BATCH)
    codebook = params["latent"]["codebook"] if model.latent.resets else None
    while batch := list(itertools.islice(clips, BATCH)):
        keys = [key for key in ("video", "states", "actions", "state") if key in batch[0]]
        stacked = {key: np.stack([clip[key] for clip in batch]) for key in keys}
        video, s = stacked.pop("video", None), stacked.pop("states", None)
        s = encode(video) if s is None else s.astype(np.float32)
        z = infer.infer(s).astype(np.float32)
        rows = {"latents": z}
        if codebook is not None:
            rows["codes"] = np.asarray(latents.nearest(codebook, z))
        if states:
            rows["states"] = s.astype(np.float32)
        rows |= stacked
        rows["episode"] = np.array([str(clip["episode"]) for clip in batch])
        rows["start"] = np.array([clip["start"] for clip in batch], np.float64)
        yield rows


def _clips(config, name, split, limit, skipped):
    """Yields the clips of a source at fixed positions: all, or `limit`, spread over its items."""
    all_clips = pipeline.episodes(config, name, split, most=limit, skipped=skipped)
    if limit is None:
        return all_clips
    items = min(limit, len(catalog.source(config, name, split).items))
    groups = itertools.groupby(all_clips, key=lambda clip: str(clip["episode"]))
    firsts = (itertools.islice(clips, -(-limit // items)) for _, clips in groups)
    return itertools.islice(itertools.chain.from_iterable(firsts), limit)


def _described(config, name):
    """Describes a source by its spec and the units of its labels."""
    text = config.data.videos or config.data.sources[name]
    spec = catalog.parse(name, text)
    kind = os.path.basename(spec.where) if spec.kind == "mini" else spec.kind
    return {"source": text, "units": UNITS.get(kind, "as recorded, if there are labels")}


def _new(out):
    """Returns the absolute path of a local folder that does not exist yet."""
    if paths.is_url(out):
        raise Refused(f"out: expected a local folder, got {out}")
    out = os.path.abspath(paths.expand(out))
    if os.path.lexists(out):
        raise Refused(f"out: expected a folder that does not exist, got {out}")
    return out


@contextlib.contextmanager
def _whole(out):
    """Yields a new folder beside OUT that becomes OUT at the end, or is deleted after an error."""
    part = f"{out}.part-{os.getpid()}"
    try:
        os.makedirs(part)
    except OSError as error:
        raise Refused(f"out: expected a folder to write to, got {out}: {error.strerror}") from error
    try:
        yield part
        os.rename(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _count(path):
    """Counts the lines of a file, 0 if there is none."""
    if not os.path.exists(path):
        return 0
    with open(path, "rb") as file:
        return sum(1 for _ in file)

"""Evaluates a trained model on held-out clips: python -m lawm_jax.evaluate --workdir W.

Prints the table of one-step errors and writes W/eval/prediction.json and pictures to W/report/.
Runs in W/bounds/NAME, trained on the same data, join the comparison: "deterministic" (no latent)
and "none" (unconstrained latents) are the paper's lower and upper bound.
"""

import json
import os

from absl import app, flags, logging

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
ONLY = flags.DEFINE_multi_enum("only", None, ["prediction", "pictures"], "What to do; all.")
flags.mark_flags_as_required(["workdir"])


def main(argv):
    """Parses the flags and evaluates."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    import ml_collections

    from lawm_jax import saving
    from lawm_jax.data import pipeline
    from lawm_jax.evals import prediction
    from lawm_jax.training import checkpoints

    workdir = WORKDIR.value
    config = ml_collections.ConfigDict(checkpoints.read_config(workdir))
    folders = {config.latent.kind: workdir} | _bounds(workdir)
    models = {name: saving.load(folder) for name, folder in folders.items()}
    for folder in ("eval", "report"):
        os.makedirs(os.path.join(workdir, folder), exist_ok=True)

    only, results = ONLY.value or ["prediction", "pictures"], {}
    for name in pipeline.names(config):
        video, episodes = prediction.held_out(config, name)
        if "prediction" in only:
            results[name] = prediction.compare(models, video, episodes)
        if "pictures" in only and video.ndim == 4:
            print(f"{name}: there are no pictures of cached states")
        elif "pictures" in only:
            _pictures(workdir, config, name, models[config.latent.kind], video, episodes)
    if "prediction" in only:
        with open(os.path.join(workdir, "eval", "prediction.json"), "w") as file:
            json.dump(results, file, indent=1)
        print(prediction.table(results))
    if "pictures" in only:
        _curve(workdir, folders)
        print(f"pictures: {os.path.join(workdir, 'report')}")


def _bounds(workdir):
    """Finds the runs to compare with: name -> folder."""
    parent = os.path.join(workdir, "bounds")
    names = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    runs = {name: os.path.join(parent, name) for name in names}
    return {name: run for name, run in runs.items() if os.path.exists(f"{run}/config.json")}


def _curve(workdir, folders):
    from lawm_jax import figures

    runs = {name: f"{folder}/metrics.jsonl" for name, folder in folders.items()}
    runs = {name: figures.read_metrics(path) for name, path in runs.items()}
    figures.loss_curve(os.path.join(workdir, "report", "loss.png"), runs)


def _pictures(workdir, config, name, trained, video, episodes):
    """Draws an IDM rollout and a transferred action, read out linearly from the states."""
    import jax
    import numpy as np

    from lawm_jax import figures, world_model

    model, params = trained
    encode = jax.jit(lambda v: world_model.encode(model, params, v))
    infer = jax.jit(lambda s: world_model.infer_actions(model, params, s)[0])
    roll = jax.jit(lambda s, z: world_model.rollout(model, params, s, z))
    per_step = 1 if model.repeat else model.encoder.tubelet

    train = _training_clips(config, name, 96)
    states = np.concatenate([encode(train[i : i + 8]) for i in range(0, len(train), 8)])
    # A step shows the last of its frames.
    show = figures.read_out(states, train[:, per_step - 1 :: per_step], model.merge)

    # The liveliest of the episodes' first clips leads; its actions go to the next episode.
    video = video[np.unique(episodes, return_index=True)[1][:8]]
    s = np.asarray(encode(video))
    lead = int(np.abs(np.diff(s, axis=1)).mean((1, 2, 3)).argmax())
    other = (lead + 1) % len(s)
    z = infer(s[[lead, lead]])
    rolled = np.asarray(roll(s[[lead, other], :1], z))
    truth = video[:, per_step - 1 :: per_step]
    shown = lambda i, s: show(s, truth[i, 0])  # noqa: E731
    joined = lambda i, k: shown(i, np.concatenate([s[i, :1], rolled[k]]))  # noqa: E731
    path = lambda kind: os.path.join(workdir, "report", f"{kind}_{name}.png")  # noqa: E731
    figures.strips(
        path("rollout"),
        f"{name}: rollout from step 0 with inferred actions ({model.latent.kind})",
        {"video": truth[lead], "its states": shown(lead, s[lead]), "rollout": joined(lead, 0)},
    )
    figures.strips(
        path("transfer"),
        f"{name}: the actions of one clip, transferred to another ({model.latent.kind})",
        {
            "source video": truth[lead],
            "target, as it was": truth[other],
            "target, source's actions": joined(other, 1),
        },
    )


def _training_clips(config, name, n):
    """Draws clips to fit the read-out: uint8 [n, F, H, W, 3]."""
    import ml_collections
    import numpy as np

    from lawm_jax.data import pipeline

    config = ml_collections.ConfigDict(config.to_dict())
    config.data.update(batch=n, mixture=ml_collections.ConfigDict({name: 1.0}), workers=0)
    return np.asarray(next(pipeline.clips(config))["video"])


if __name__ == "__main__":
    app.run(main)

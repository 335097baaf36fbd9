"""Config of the controller, which maps real actions (and the state) to latent actions.

python -m lawm_jax.train --config configs/controller.py:size=nano,kind=state,source=panda \
    --config.model=W --workdir W/controller/panda

Train one controller per data source with real actions. `lawm.load(W)` finds it in W/controller;
name one of several with `lawm.load(W, controller="nav")`. For other labeled data, here with
7-dimensional actions, add:

    --config.data.videos=droid:/data/droid/1.0.1 --config.controller.actions=7

loss=prediction trains it by the error of the frozen forward model's rollouts, which is not in the
paper. Begin with a controller of loss=latent, here in W/latent/panda; in five minutes on one CPU
core, models plan better with it (docs/control.md):

    --config configs/controller.py:size=nano,source=panda,loss=prediction --config.model=W
        --init_from W/latent/panda --workdir W/controller/panda

kind=state is the paper's controller; kind=actions does not see the state. nano: 190 clips/s on one
CPU core with ingested states, 7 minutes; with it, a model with noisy latents plans the Panda to
0.052 m by CEM and 0.040 m by iCEM (docs/results.md). large: the paper's setting; not run here.
"""

import ml_collections

# Width, number of heads and dtype.
MODELS = {
    "tiny": (32, 2, "float32"),
    "nano": (96, 4, "float32"),
    "large": (1024, 16, "bfloat16"),
}
KINDS = "state", "actions"
SOURCES = "panda", "nav"
OBJECTIVES = {"latent": "controller", "prediction": "controller_by_prediction"}


def get_config(arg=""):
    """Returns the config for `size=...,kind=...,source=...,loss=...`.

    By default: nano, state, panda and latent.
    """
    options = dict(size="nano", kind="state", source="panda", loss="latent")
    for pair in filter(None, arg.split(",")):
        key, _, value = pair.partition("=")
        if key not in options:
            raise ValueError(f"--config: expected {', '.join(options)} after the colon, got {pair}")
        options[key] = value
    size, kind, source, loss = options.values()
    allowed = {"size": MODELS, "kind": KINDS, "source": SOURCES, "loss": OBJECTIVES}
    if any(options[name] not in values for name, values in allowed.items()):
        expected = ", ".join(f"{name}={'|'.join(values)}" for name, values in allowed.items())
        got = ", ".join(f"{name}={value}" for name, value in options.items())
        raise ValueError(f"--config: expected {expected}, got {got}")
    small = size in ("tiny", "nano")
    width, heads, dtype = MODELS[size]

    c = ml_collections.ConfigDict()
    c.objective = OBJECTIVES[loss]  # see train/objectives.py
    c.seed = 0
    c.model = ""  # workdir of the world model, which defines the encoder, latents and frame size
    c.steps = 3000
    c.log_every = 50
    c.checkpoint_every = 500
    c.checkpoint_keep_period = 0  # as in configs/lawm.py
    c.eval_every = 0
    c.data = dict(  # as in configs/lawm.py, but one source
        videos="",
        sources=dict(panda="mini:panda", nav="mini:nav"),
        mixture={name: float(name == source) for name in SOURCES} if small else {},
        frames=8,
        fps=4.0,
        batch=256,
        holdout=0.05,
        workers=0,
    )
    c.data.augment = dict(
        crop=False, area=(0.3, 1.0), ratio=(0.75, 1.35), flip=0.0, jitter=0.0, cut=0.0
    )
    # One time step per frame, so that each real action corresponds to one latent action.
    c.encoder = dict(repeat=not small)
    c.controller = dict(
        actions=3,  # width U of a real action
        kind=kind,
        width=width,
        heads=heads,
        depth=2,
        remat="" if small else "dots",
        dtype=dtype,
    )
    # muon=0: AdamW updates all parameters.
    c.optim = dict(muon=0.0, adamw=1e-3, weight_decay=0.04, b2=0.999, warmup=0.1, final=0.0)
    c.optim.update(ema=0.0, accumulate=1)  # as in configs/lawm.py
    c.mesh = dict(data=-1, fsdp=1)

    if small:  # recipe for the embedded data
        c.update(steps=1200, checkpoint_every=200)
        c.data.update(frames=5, batch=64)
        c.optim.adamw = 2e-3
        if loss == "prediction":
            c.update(steps=1800, checkpoint_every=300)
            c.data.batch, c.optim.adamw = 16, 5e-4
    if size == "tiny":
        c.update(steps=20, log_every=5, checkpoint_every=10)
        c.data.update(frames=4, batch=8)
    return c

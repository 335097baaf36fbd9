"""Config of the latent action world model, from laptop size to the paper's setting.

python -m lawm_jax.train --config configs/lawm.py:size=nano,latent=noisy --workdir W

nano: 2 CPU cores, 37 clips/s, 2000 steps in about 8 minutes; the held-out one-step error, relative
to copying the last frame, is 0.826 on Panda and 0.834 on navigation. large: the paper's setting, 12
hours on 64 H100 GPUs according to the paper; not run here.
"""

import ml_collections

# Encoder: name, weights, m (merges m x m tokens), LayerNorm on states, dtype. Then (width, heads,
# depth) of the forward and of the inverse dynamics model, and the width of a latent.
EFFICIENTNET = ("efficientnet_lite0", "embedded", 2, False, "float32")
VJEPA2_L = ("vjepa2_large", "facebook/vjepa2-vitl-fpc64-256", 1, True, "bfloat16")
MODELS = {
    "tiny": (EFFICIENTNET, (32, 2, 2), (32, 2, 1), 16),
    "nano": (EFFICIENTNET, (128, 4, 3), (128, 4, 2), 64),
    "base": (VJEPA2_L, (768, 12, 12), (768, 12, 6), 128),
    "large": (VJEPA2_L, (1024, 16, 24), (1024, 16, 12), 128),
    "huge": (VJEPA2_L, (1280, 16, 32), (1280, 16, 12), 128),
    "giant": (VJEPA2_L, (1408, 22, 40), (1408, 22, 12), 128),
}
BASE = 32  # clips per device for size=base; the paper does not give its batch size
# l1, beta or number of codes.
STRENGTHS = {"sparse": 0.01, "noisy": 5e-5, "discrete": 4096, "none": 0.0, "deterministic": 0.0}
NANO_STRENGTHS = STRENGTHS | {"noisy": 1e-5, "discrete": 16}


def get_config(arg=""):
    """Returns the config for `size=...,latent=...,strength=...`, by default nano and noisy."""
    options = dict(size="nano", latent="noisy", strength=None)
    for pair in filter(None, arg.split(",")):
        key, _, value = pair.partition("=")
        if key not in options:
            raise ValueError(f"--config: expected {', '.join(options)} after the colon, got {pair}")
        options[key] = value
    size, kind = options["size"], options["latent"]
    if size not in MODELS or kind not in STRENGTHS:
        raise ValueError(
            f"--config: expected size={'|'.join(MODELS)} and latent={'|'.join(STRENGTHS)}, got "
            f"size={size} and latent={kind}"
        )
    small = size in ("tiny", "nano")
    (name, weights, merge, normalise, dtype), forward, inverse, dim = MODELS[size]
    default = (NANO_STRENGTHS if small else STRENGTHS)[kind]

    c = ml_collections.ConfigDict()
    c.objective = "world_model"  # see train/objectives.py
    c.seed = 0
    c.steps = 30_000
    c.log_every = 50
    c.checkpoint_every = 1000
    c.checkpoint_keep_period = 0  # also keep checkpoints of its multiples; 0: only the last three
    c.eval_every = 0  # steps between losses on held-out clips; 0: none
    c.data = dict(
        videos="",  # a folder, glob or list of your files, or KIND:WHERE; "": the mixture
        sources=dict(panda="mini:panda", nav="mini:nav"),  # NAME=KIND:WHERE
        mixture=dict(panda=1.0, nav=2.0) if small else {},  # NAME=weight
        frames=16,
        fps=4.0,
        size=256,  # center crop, pixels
        batch=0 if size == "base" else 1024,  # clips per step on all devices; 0: see below
        batch_per_device=BASE,  # used if batch is 0; a run keeps its initial global batch size
        holdout=0.05,  # fraction of your videos held out for evaluation
        workers=0,  # processes that read video; 0: threads of the training process
    )
    c.data.augment = dict(
        crop=False,  # V-JEPA 2's random resized crop, with these ranges of area and aspect ratio
        area=(0.3, 1.0),
        ratio=(0.75, 1.35),
        flip=0.0,  # probability (V-JEPA 2: 0.5); mirroring invalidates real actions
        jitter=0.0,  # random frame rate of unlabeled video; 0.25: 0.8 to 1.25 times fps
        cut=0.0,  # 0.225: skip clips with a shot cut, see frames.refuse_cuts; 0: keep them
    )
    c.data.resize = c.data.get_oneway_ref("size") * 292 // 256  # short side before the crop
    c.encoder = dict(
        name=name,
        weights=weights,  # "embedded", a Hugging Face name, a folder or file; "": random
        causal=True,
        merge=merge,
        normalise=normalise,
        repeat=False,  # one time step per frame: each frame fills a tubelet
        dtype=dtype,
    )
    network = lambda width, heads, depth: dict(  # noqa: E731
        width=width, heads=heads, depth=depth, remat="" if small else "dots", dtype=dtype
    )
    c.predictor = network(*forward)
    c.predictor.block = 0  # tokens per block of attention on TPUs; 0: 256 or, if needed, 128
    c.inverse = network(*inverse)
    c.latent = dict(
        kind=kind,
        dim=dim,
        strength=float(options["strength"] or default),
        reset_after=2_500_000,  # latents after which an unused code is reset (paper: 300k videos)
    )
    if kind == "sparse":  # weight of the cost; the paper's 1 dwarfs the gradient of small errors
        c.latent.weight = 0.01 if small else 1.0
    c.optim = dict(muon=0.02, adamw=6.25e-4, weight_decay=0.04, b2=0.999, warmup=0.1, final=0.0)
    c.optim.ema = 0.0  # decay of the average of parameters that is evaluated; 0: the parameters
    c.optim.accumulate = 1  # microbatches per step, processed in sequence to save memory
    c.mesh = dict(data=-1, fsdp=1 if small else 8)  # data=-1: all remaining devices; fsdp: maximum

    if small:  # recipe for the embedded data
        c.update(steps=2000, checkpoint_every=500)
        c.data.update(frames=8, size=128, batch=8)
        c.data.resize = c.data.get_oneway_ref("size")
        c.optim.update(muon=0.04, adamw=2e-3, b2=0.95, final=0.01)
        c.latent.reset_after = 2000
    if size == "tiny":
        c.update(steps=20, log_every=5, checkpoint_every=10)
        c.data.update(frames=4, size=64, batch=8)
        c.latent.reset_after = 100
    return c

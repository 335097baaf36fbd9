"""The latent action world model, from a laptop to the paper's setting.

python -m lawm_jax.train --config configs/lawm.py:size=nano,latent=noisy --workdir W

nano: 2 CPU cores, 37 clips/s, 2000 steps in about 8 minutes; held-out one-step error 0.826 of
copying the last frame on Panda, 0.834 on the walks. large: the paper's setting, 12 hours on 64
H100 by the paper's account; not run here.
"""

import ml_collections

# The frozen encoder's name, its weights, tokens merged (m x m), LayerNorm on states, precision;
# (width, heads, depth) of forward and inverse dynamics model; latent width.
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
BASE = 32  # clips per device and step of size=base, for which the paper has no batch
# l1, beta or codes. At nano size the useful range of the mean L1 is lower than the paper's.
STRENGTHS = {"sparse": 0.01, "noisy": 5e-5, "discrete": 4096, "none": 0.0, "deterministic": 0.0}
NANO_STRENGTHS = STRENGTHS | {"sparse": 1e-4, "noisy": 1e-5, "discrete": 16}


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
    c.objective = "world_model"  # what is trained, see train/objectives.py
    c.seed = 0
    c.steps = 30_000
    c.log_every = 50
    c.checkpoint_every = 1000
    c.data = dict(
        videos="",  # your own: a folder, glob or list of files, or KIND:WHERE; "": the mixture
        sources=dict(panda="mini:panda", nav="mini:nav"),  # NAME=KIND:WHERE
        mixture=dict(panda=1.0, nav=2.0) if small else {},  # NAME=weight
        frames=16,
        fps=4.0,
        size=256,  # centre crop, pixels
        batch=0 if size == "base" else 1024,  # clips per step, over all devices; 0: of each
        batch_per_device=BASE,  # where batch is 0; fixed when a run begins
        holdout=0.05,  # share of your videos kept for evaluation
        workers=0,  # processes that decode video; 0: threads of the trainer
    )
    c.data.augment = dict(
        crop=False,  # V-JEPA 2's random resized crop, with these ranges of area and aspect ratio
        area=(0.3, 1.0),
        ratio=(0.75, 1.35),
        flip=0.0,  # probability; V-JEPA 2's is 0.5. A mirror image belies recorded actions
        jitter=0.0,  # of the frame rate of unlabelled video: 0.25 for 0.8 to 1.25 times
        cut=0.0,  # 0.225 leaves out clips with a shot cut, see frames.refuse_cuts; 0: keeps them
    )
    c.data.resize = c.data.get_oneway_ref("size") * 292 // 256  # short side before the crop
    c.encoder = dict(
        name=name,
        weights=weights,  # "embedded", a Hugging Face name, a folder or file; "" draws them
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
    c.inverse = network(*inverse)
    c.latent = dict(
        kind=kind,
        dim=dim,
        strength=float(options["strength"] or default),
        reset_after=2_500_000,  # latents; the paper's 300k videos
    )
    c.optim = dict(muon=0.02, adamw=6.25e-4, weight_decay=0.04, b2=0.999, warmup=0.1, final=0.0)
    c.optim.accumulate = 1  # parts that the batch is taken in, one by one, for lack of memory
    c.mesh = dict(data=-1, fsdp=1 if small else 8)  # -1: all devices left; fsdp: at most

    if small:  # science.md's recipe
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

"""Config of the pixel decoder, which visualizes the states of a frozen encoder.

python -m lawm_jax.train --config configs/decoder.py:size=large --workdir D \
    --config.data.videos='/path/to/videos/**/*'

A world model W uses W/decoder, or D with `evaluate --decoder D` or `lawm.load(W, decoder=D)`.

nano: the embedded encoder's decoder, which ships with the package; 25 clips/s on 2 CPU cores; PSNR
22.2 dB on held-out Panda clips, 22.3 dB on navigation clips.
large: the paper's setting; not run here. It needs the LPIPS weights, see lawm_jax/nn/perceptual.py;
`--config.decoder.perceptual=effnet` needs only the package.
"""

import ml_collections

# Encoder: name, weights, LayerNorm on states, dtype. Decoder: width, number of heads, depth.
EFFICIENTNET = ("efficientnet_lite0", "embedded", False, "float32")
VJEPA2_L = ("vjepa2_large", "facebook/vjepa2-vitl-fpc64-256", True, "bfloat16")
MODELS = {
    "tiny": (EFFICIENTNET, (32, 2, 1)),
    "nano": (EFFICIENTNET, (192, 6, 3)),
    "large": (VJEPA2_L, (1024, 16, 24)),
}


def get_config(arg=""):
    """Returns the config for `size=...`, by default nano."""
    key, _, size = (arg or "size=nano").partition("=")
    if key != "size" or size not in MODELS:
        raise ValueError(f"--config: expected size={'|'.join(MODELS)} after the colon, got {arg}")
    small = size in ("tiny", "nano")
    (name, weights, normalise, dtype), (width, heads, depth) = MODELS[size]

    c = ml_collections.ConfigDict()
    c.objective = "decoder"  # see train/objectives.py
    c.seed = 0
    c.steps = 90_000
    c.log_every = 50
    c.checkpoint_every = 1000
    c.checkpoint_keep_period = 0  # as in configs/lawm.py
    c.eval_every = 0
    c.data = dict(  # as in configs/lawm.py
        videos="",
        sources=dict(panda="mini:panda", nav="mini:nav"),
        mixture=dict(panda=2.0, nav=1.0) if small else {},
        frames=16,
        fps=4.0,
        size=256,
        batch=512,
        holdout=0.05,
        workers=0,
    )
    c.data.augment = dict(
        crop=False, area=(0.3, 1.0), ratio=(0.75, 1.35), flip=0.0, jitter=0.0, cut=0.0
    )
    c.data.resize = c.data.get_oneway_ref("size") * 292 // 256
    c.encoder = dict(
        name=name,
        weights=weights,
        causal=True,
        merge=1,
        normalise=normalise,
        repeat=False,
        dtype=dtype,
    )
    c.decoder = dict(
        width=width,
        heads=heads,
        depth=depth,
        steps=1 if small else 8,  # time steps that attend to each other, at most a clip's
        perceptual="effnet" if small else "lpips_vgg",  # see nn/perceptual.py
        weight=0.03 if small else 0.5,  # of the perceptual loss, relative to L1 on [0, 1] pixels
        frames=1 if small else 4,  # random frames per clip for the perceptual loss; 0: all
        remat="" if small else "dots",
        dtype=dtype,
    )
    c.optim = dict(muon=0.02, adamw=3e-4, weight_decay=0.01, b2=0.999, warmup=0.1333, final=0.0)
    c.optim.update(ema=0.0, accumulate=1)  # as in configs/lawm.py
    c.mesh = dict(data=-1, fsdp=1 if small else 8)

    if small:
        c.update(steps=1800, checkpoint_every=200)
        c.data.update(frames=4, size=128, batch=8)
        c.data.resize = c.data.get_oneway_ref("size")
        c.optim.update(muon=0.05, adamw=4e-3, b2=0.95, final=0.01)
    if size == "tiny":
        c.update(steps=20, log_every=5, checkpoint_every=10)
        c.data.update(size=64)
        c.decoder.weight = 0.0
    return c

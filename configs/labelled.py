"""Config of the labeled baseline, a world model conditioned on real instead of latent actions.

python -m lawm_jax.train --config configs/labelled.py:size=nano,source=panda --workdir W

It has the forward model of configs/lawm.py, conditioned on standardized real actions, and no
inverse dynamics model. Evaluations of a world model V include the baseline if its workdir is
V/bounds/labelled. For other labeled data, here with 7-dimensional actions, add:

    --config.data.videos=droid:/data/droid/1.0.1 --config.latent.dim=7

nano: 2 CPU cores, less time than configs/lawm.py. large: configs/lawm.py on clips of 8 frames; not
run here.
"""

from lawm_jax.configs import lawm

SIZES = "tiny", "nano", "large"
SOURCES = "panda", "nav"


def get_config(arg=""):
    """Returns the config for `size=...,source=...`, by default nano and panda."""
    options = dict(size="nano", source="panda")
    for pair in filter(None, arg.split(",")):
        key, _, value = pair.partition("=")
        if key not in options:
            raise ValueError(f"--config: expected {', '.join(options)} after the colon, got {pair}")
        options[key] = value
    size, source = options.values()
    if size not in SIZES or source not in SOURCES:
        raise ValueError(
            f"--config: expected size={'|'.join(SIZES)} and source={'|'.join(SOURCES)}, got "
            f"size={size} and source={source}"
        )
    c = lawm.get_config(f"size={size},latent=none")
    del c.inverse
    c.latent.update(kind="labelled", dim=3)
    if size == "large":  # one time step, and so one action, per frame
        c.encoder.repeat = True
        c.data.frames = 8
    else:
        c.data.mixture = {name: float(name == source) for name in SOURCES}
    return c

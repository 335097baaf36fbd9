"""Every value of a config that is out of its range is refused before any work begins."""

import conftest
import pytest
from conftest import load_config

from lawm_jax.data import pipeline, settings
from lawm_jax.train import loop

WRONG = {
    "seed": (-1,),
    "steps": (0, -5, 2.5, True),
    "log_every": (0,),
    "checkpoint_every": (0, -1),
    "data.frames": (1, 0, -4),
    "data.fps": (0, -4.0, float("nan"), float("inf")),
    "data.size": (0, -64),
    "data.resize": (0, -1),
    "data.batch": (-8,),
    "data.holdout": (1.5, 2, -0.1, float("nan")),
    "data.workers": (-1,),
    "data.augment.flip": (-0.5, 2),
    "data.augment.jitter": (-0.1, 1.0),
    "data.augment.area": ((0.0, 1.0), (0.5, 0.3), (0.3, 2.0)),
    "data.augment.ratio": ((-1.0, 1.0), (2.0, 1.0)),
    "data.mixture.nav": (-1.0, float("nan")),
    "encoder.merge": (0,),
    "predictor.width": (0,),
    "inverse.heads": (0, -2),
    "predictor.depth": (0,),
    "latent.dim": (0,),
    "latent.strength": (-0.1, float("nan")),
    "latent.weight": (0, -1.0),
    "optim.muon": (-0.02,),
    "optim.adamw": (-1e-3, float("inf")),
    "optim.weight_decay": (-0.1,),
    "optim.b2": (1.0, 2, -0.5),
    "optim.warmup": (-0.1, 1.5),
    "optim.final": (-0.1, 2),
    "optim.accumulate": (0, -1),
    "mesh.data": (0, -2),
    "mesh.fsdp": (0, -8),
}
CASES = [(key, value) for key, values in WRONG.items() for value in values]


def changed(config, key, value):
    """Sets a value, whatever the type of the one before."""
    config = config.to_dict()
    inner = config
    *sections, name = key.split(".")
    for section in sections:
        inner = inner[section]
    inner[name] = value
    return config


@pytest.mark.parametrize("key, value", CASES)
def test_a_value_out_of_its_range_is_one_line_with_its_key(key, value, get_config):
    config = changed(get_config("size=tiny"), key, value)
    with pytest.raises(ValueError, match=rf"^{key}: expected [^\n]*, got [^\n]*$"):
        settings.check(config)


@pytest.mark.parametrize("size", ["tiny", "nano", "base", "large", "huge", "giant"])
def test_every_config_that_ships_is_in_range(size, get_config):
    for kind in ("sparse", "noisy", "discrete", "none", "deterministic"):
        settings.check(get_config(f"size={size},latent={kind}"), per_device=True)
    if size in ("tiny", "nano", "large"):
        for file in ("decoder", "controller"):
            settings.check(load_config(file)(f"size={size}"))


def test_every_number_of_every_config_has_a_range(get_config):
    configs = [
        get_config("size=base,latent=sparse"),
        load_config("decoder")(),
        load_config("controller")(),
    ]
    known = {
        **settings.WHOLE,
        **settings.NUMBERS,
        **settings.PAIRS,
        **dict.fromkeys(settings.SIZES),
    }
    free = {"latent.reset_after"}  # has its own check
    for config in configs:
        for key, value in settings.flat(config).items():
            if isinstance(value, (str, bool)) or key in free:
                continue
            patterns = key, f"*.{key.rpartition('.')[2]}", f"{key.rpartition('.')[0]}.*"
            assert any(pattern in known for pattern in patterns), key


def test_training_and_clips_refuse_it_before_anything_is_written(get_config, tmp_path):
    config = get_config("size=tiny")
    config.data.frames = 1
    with pytest.raises(ValueError, match="^data.frames: expected an integer >= 2"):
        loop.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="^data.frames"):
        pipeline.clips(config)


def test_a_batch_per_device_is_for_training_alone(get_config):
    config = get_config("size=base")
    assert config.data.batch == 0 and config.data.batch_per_device > 0
    settings.check(config, per_device=True)
    with pytest.raises(ValueError, match="^data.batch: expected an integer >= 1, got 0"):
        settings.check(config)
    del config.data.batch_per_device
    with pytest.raises(ValueError, match="^data.batch: expected at least 1 if"):
        settings.check(config, per_device=True)


def test_the_command_says_it_in_one_line(tmp_path):
    flags = [f"--workdir={tmp_path}/run", "--config.data.fps=0.0"]
    out = conftest.run_module("train", "--config=configs/lawm.py:size=tiny", *flags)
    assert out.returncode == 1
    (line,) = out.stderr.splitlines()
    assert line == "python -m lawm_jax.train: error: data.fps: expected a number > 0, got 0.0"

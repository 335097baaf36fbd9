"""Validates a config's values before any work begins."""

import math

# Keys with integer values -> lowest allowed value. "*" matches any section.
WHOLE = {
    "seed": 0,
    "steps": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "checkpoint_keep_period": 0,
    "eval_every": 0,
    "data.frames": 2,
    "data.size": 1,
    "data.resize": 1,
    "data.batch": 1,
    "data.batch_per_device": 1,
    "data.workers": 0,
    "encoder.merge": 1,
    "predictor.block": 0,
    "optim.accumulate": 1,
    "latent.dim": 1,
    "controller.actions": 1,
    "decoder.steps": 1,
    "decoder.frames": 0,
    "*.width": 1,
    "*.heads": 1,
    "*.depth": 1,
}
# Keys with numeric values -> lowest, highest, and whether the range includes each of the two.
NUMBERS = {
    "data.fps": (0, math.inf, False, False),
    "data.holdout": (0, 1, True, True),
    "data.augment.flip": (0, 1, True, True),
    "data.augment.jitter": (0, 1, True, False),
    "data.augment.cut": (0, math.inf, True, False),
    "data.mixture.*": (0, math.inf, True, False),
    "latent.strength": (0, math.inf, True, False),
    "latent.weight": (0, math.inf, False, False),
    "decoder.weight": (0, math.inf, True, False),
    "optim.muon": (0, math.inf, True, False),
    "optim.adamw": (0, math.inf, True, False),
    "optim.weight_decay": (0, math.inf, True, False),
    "optim.b2": (0, 1, True, False),
    "optim.ema": (0, 1, True, False),
    "optim.warmup": (0, 1, True, True),
    "optim.final": (0, 1, True, True),
}
# Keys with values (low, high), 0 < low <= high -> highest allowed value of `high`.
PAIRS = {"data.augment.area": 1, "data.augment.ratio": math.inf}
SIZES = ("mesh.data", "mesh.fsdp")  # -1 denotes all remaining devices


class Refused(ValueError):
    """Signals an invalid argument of a command; the message begins with the argument's name."""


def check(config, per_device=False):
    """Checks that every value of a config is in its range.

    Args:
      config: ConfigDict or nested dict, as in configs/; sections and keys may be missing.
      per_device: whether `data.batch` may be 0, which means `data.batch_per_device` per device.

    Raises:
      ValueError: a value is out of range; the message names its key.
    """
    values = flat(config)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        patterns = key, f"*.{name}", f"{section}.*"
        least, bounds, high = (_first(table, patterns) for table in (WHOLE, NUMBERS, PAIRS))
        if least is not None:
            least = 0 if key == "data.batch" and per_device else least
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            _expect(key, f"an integer >= {least}", value, is_integer and value >= least)
        elif bounds is not None:
            _expect(key, *_range(value, *bounds))
        elif high is not None:
            pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_real, value))
            text = f"two numbers with 0 < low <= high <= {high}"
            _expect(key, text, value, pair and 0 < value[0] <= value[1] <= high)
        elif key in SIZES:
            good = isinstance(value, int) and (value == -1 or value >= 1)
            _expect(key, "-1 or a number of devices", value, good)
    size, resize = values.get("data.size"), values.get("data.resize")
    if size and resize:
        _expect("data.resize", f"at least data.size={size}", resize, resize >= size)
    if values.get("data.batch") == 0:
        each = values.get("data.batch_per_device")
        _expect("data.batch", "at least 1 if data.batch_per_device is not set", 0, bool(each))


def flat(config, path=""):
    """Flattens nested mappings into a dict with dotted keys."""
    values = {}
    for key, value in config.items():
        nested = hasattr(value, "items")
        values |= flat(value, f"{path}{key}.") if nested else {f"{path}{key}": value}
    return values


def _first(table, patterns):
    """Returns the entry of the first pattern that is in the table, or None."""
    return next((table[pattern] for pattern in patterns if pattern in table), None)


def _real(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _range(value, low, high, with_low, with_high):
    """Returns the expected range as text, the value, and whether the value is in the range."""
    text = f"a number {'>=' if with_low else '>'} {low}"
    if high < math.inf:
        text += f" and {'<=' if with_high else '<'} {high}"
    if not _real(value) or not math.isfinite(value):
        return text, value, False
    above = value >= low if with_low else value > low
    return text, value, above and (value <= high if with_high else value < high)


def _expect(key, text, value, good):
    if not good:
        raise ValueError(f"{key}: expected {text}, got {value!r}")

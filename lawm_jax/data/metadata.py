"""Reads and checks JSON files of external or damaged data; errors name the file."""

import json
import math

from lawm_jax.data import paths

KINDS = {
    "an object": lambda value: isinstance(value, dict),
    "a list": lambda value: isinstance(value, list),
    "a string": lambda value: isinstance(value, str),
    "a positive number": lambda value: _number(value) and 0 < value < math.inf,
    "a number >= 0": lambda value: _number(value) and 0 <= value < math.inf,
    "an integer >= 0": lambda value: isinstance(value, int) and _number(value) and value >= 0,
    "a positive integer": lambda value: isinstance(value, int) and _number(value) and value > 0,
}


def load(path, what):
    """Returns the object that a JSON file holds.

    Args:
      path: path of the file.
      what: description of the expected content, for error messages.

    Raises:
      ValueError: the file is missing, can't be read, or holds no JSON object.
    """
    try:
        text = paths.at(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path}: expected {what}, got: {reason}") from error
    return parse(text, path, what)


def parse(text, where, what):
    """Returns the object that a JSON text from `where` holds; see `load`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected {what} as JSON, got: {error}") from error
    return check(where, what, value, "an object")


def check(where, name, value, kind):
    """Returns `value`, or raises ValueError if it isn't of the given kind of `KINDS`."""
    if not KINDS[kind](value):
        raise ValueError(f"{where}: {name}: expected {kind}, got {_short(value)}")
    return value


def field(where, mapping, name, kind):
    """Returns `found[name]`, or raises ValueError if it isn't of the given kind of `KINDS`."""
    if name not in mapping:
        raise ValueError(f"{where}: {name}: expected {kind}, got nothing")
    return check(where, name, mapping[name], kind)


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""Reads JSON files that others may have written, or damaged."""

import json

KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def read_json(path, what, **keys):
    """Reads a JSON file that holds an object.

    Args:
      path: of the file.
      what: what the file should be, such as "the config of a training run".
      **keys: names of keys that it must have, each with the Python type of its value.

    Returns:
      dict.

    Raises:
      OSError: the file can't be read.
      ValueError: it is not such a file; names path, expected and got.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, too
        raise ValueError(
            f"{path}: expected {what} as JSON, got {len(data)} bytes: {error}"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected {what}, a JSON object, got {str(found)[:80]!r}")
    for key, kind in keys.items():
        value = found.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            got = f"{value!r}"[:80] if key in found else "nothing"
            raise ValueError(f"{path}: {key}: expected {KINDS[kind]}, as {what} has, got {got}")
    return found

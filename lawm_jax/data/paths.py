"""Paths as people write them."""

import os


def expand(path):
    """Returns a path with a leading `~` or `~NAME` replaced by that home folder.

    A shell leaves `--out=~/x` and `records:~/x` alone. URLs such as gs://BUCKET/FILE stay as they
    are; so does a `~NAME` of nobody on this machine.

    Args:
      path: str or `os.PathLike`.

    Returns:
      A str.

    Raises:
      TypeError: it is neither.
    """
    path = os.fspath(path)
    return path if "://" in path else os.path.expanduser(path)

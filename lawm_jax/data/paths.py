"""Paths as people write them, and the files that they stand for."""

import fnmatch
import glob
import heapq
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


def identity(path):
    """Returns a name of a file or folder that is the same however its path is spelled.

    A local one goes by its real path: absolute, and without links. A URL stays as it is, without
    doubled slashes.
    """
    path = expand(path)
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if "://" not in path:
        return os.path.realpath(path)
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{'/'.join(part for part in rest.split('/') if part)}"


def below(folder, suffixes=("",)):
    """Lists the files below a folder, each real file once.

    Links are followed. Of several paths of a file or folder the one through the fewest links
    counts, and then the first: links that come later change nothing, and circles of links end.
    Names that start with a dot are left out, as `glob` does.

    Args:
      folder: a local one.
      suffixes: of the files to list, in lower case; those of any case match.

    Returns:
      Paths relative to the folder, with "/", sorted.
    """
    found, seen, waiting = {}, set(), [(0, "")]
    while waiting:
        links, inside = heapq.heappop(waiting)
        where = os.path.join(folder, inside)
        try:
            key = _key(where)
            entries = [] if key in seen else list(os.scandir(where))
        except OSError:  # as `glob` does where it may not look
            continue
        seen.add(key)
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            rank = links + entry.is_symlink(), path
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                heapq.heappush(waiting, rank)
            elif entry.name.lower().endswith(suffixes) and os.path.isfile(entry.path):
                key = _key(entry.path)
                found[key] = min(rank, found.get(key, rank))
    return sorted(path for _, path in found.values())


def matching(pattern, suffixes=("",)):
    """Lists the files that a glob pattern matches, each real file once.

    Args:
      pattern: as `glob.glob` takes it with recursive=True.
      suffixes: as in `below`.

    Returns:
      Paths, sorted.
    """
    parts = pattern.split("/")
    if "**" in parts:  # not by `glob`, which follows circles of links
        deep = parts.index("**")
        after = parts[deep:] if any(parts[deep + 1 :]) else ["**", "*"]
        roots = [root + "/" for root in glob.iglob("/".join(parts[:deep]))] if deep else [""]
        found = [
            root + path
            for root in roots
            for path in below(root or ".", suffixes)
            if _matches(path.split("/"), after)
        ]
    else:
        found = [p for p in glob.iglob(pattern) if p.lower().endswith(suffixes)]
    return once(filter(os.path.isfile, found))


def once(paths):
    """Returns local files sorted, each real one once: by a path without links, if there is one."""
    found = {}
    for path in paths:
        found.setdefault(_key(path), set()).add(path)

    def rank(path):
        return os.path.realpath(path) != os.path.abspath(path), path

    return sorted(min(some, key=rank) if len(some) > 1 else min(some) for some in found.values())


def _key(path):
    """Returns what tells one real file or folder from all others; hard links are one file."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _matches(parts, pattern):
    """Tells whether the parts of a path match those of a glob pattern."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:])
    )

"""Expands, compares and lists paths."""

import fnmatch
import glob
import heapq
import os

from lawm_jax.data import errors


def expand(path):
    """Returns a path with a leading `~` or `~NAME` replaced by that home folder.

    A shell doesn't expand `--out=~/x` or `records:~/x`. URLs such as gs://BUCKET/FILE and unknown
    `~NAME`s are returned unchanged.

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
    """Returns a name of a file or folder that doesn't depend on how its path is spelled.

    For a local path it is the real path: absolute, with links resolved. A URL is returned without
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

    Links are followed, and cycles of links end. If a file or folder has several paths, the one
    through the fewest links is used, and among these the first, so that adding links changes
    nothing. As in `glob`, names that start with a dot are left out.

    Args:
      folder: a local folder.
      suffixes: suffixes of the files to list, in lower case, matched in any case.

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
        except OSError:  # ignore unreadable folders, as `glob` does
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
      pattern: a pattern for `glob.glob` with recursive=True.
      suffixes: as in `below`.

    Returns:
      Sorted paths.
    """
    parts = pattern.split("/")
    if "**" in parts:  # `glob` would follow cycles of links
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


def escaped(pattern):
    """Returns the literal folder that a glob starts with, and the glob with that folder escaped.

    An existing folder with special characters in its name, such as `[2024]`, is taken literally.
    """
    parts = pattern.split("/")
    for i, part in enumerate(parts):
        if glob.has_magic(part) and not os.path.lexists("/".join(parts[: i + 1])):
            break
    else:
        i = len(parts)
    root, rest = "/".join(parts[:i]), parts[i:]
    if not i:
        return "", pattern
    return root or "/", "/".join([glob.escape(root), *rest])


def once(paths):
    """Returns sorted local files, each real file once, preferably by a path without links."""
    found = {}
    for path in paths:
        found.setdefault(_key(path), set()).add(path)

    def rank(path):
        return os.path.realpath(path) != os.path.abspath(path), path

    return sorted(min(some, key=rank) if len(some) > 1 else min(some) for some in found.values())


def url_in(pattern, system, path):
    """Returns the URL of a path on the file system that `pattern` refers to."""
    links = pattern.split("::")  # e.g. zip://*.mp4::s3://BUCKET/a.zip, simplecache::s3://BUCKET/*
    if len(links) == 1:
        return system.unstrip_protocol(path)
    here = next(i for i, link in enumerate(links) if "://" in link)
    scheme = links[here].partition("://")[0]
    path = path if path.startswith(f"{scheme}://") else f"{scheme}://{path}"
    return "::".join([*links[:here], path, *links[here + 1 :]])


def file_system(url):
    """Returns the fsspec file system of a URL, and the path in it.

    Raises:
      ValueError: the file system is unknown or not installed.
    """
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:  # e.g. gs:// without gcsfs
        raise ValueError(f"{url}: {errors.reason(error)}") from error


def _key(path):
    """Returns a unique key of a real file or folder; hard links have the same key."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _matches(parts, pattern):
    """Returns whether the parts of a path match the parts of a glob pattern."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:])
    )

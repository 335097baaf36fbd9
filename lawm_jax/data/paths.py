"""Expands, compares and lists paths, and reads and writes files that may be in a bucket."""

import contextlib
import fnmatch
import glob
import heapq
import os
import pathlib
import tempfile
import warnings

from lawm_jax.data import errors, words


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


def absolute(path):
    """Returns a path that denotes the same file from every current folder.

    A relative path is joined to the current folder. Absolute paths, URLs, paths below a home folder
    such as `~/x`, and "" are returned unchanged.
    """
    path = os.fspath(path)
    if not path or is_url(path) or os.path.isabs(expand(path)):
        return path
    here, parts = os.getcwd(), path.split("/")
    while parts and parts[0] in (".", "..", ""):  # later ones may follow a link
        here = os.path.dirname(here) if parts.pop(0) == ".." else here
    return os.path.join(here, *parts)


def is_url(path):
    """Returns whether a path is a URL, such as gs://BUCKET/FILE."""
    return "://" in os.fspath(path)


def at(path):
    """Returns a `pathlib.Path` or, for a URL, an `epath.Path`, which has the same methods.

    Discards cached listings of the bucket, so that changes by other programs are seen.

    Raises:
      ImportError: the packages that read from buckets are missing.
    """
    if not is_url(path):
        return pathlib.Path(path)
    os.environ.setdefault("EPATH_USE_TF", "false")  # don't import TensorFlow
    import fsspec
    from etils import epath

    try:
        # epath uses the same instance, which caches listings without a time limit.
        fsspec.filesystem("gs", finalize_on_close=True).invalidate_cache()
    except ImportError as error:
        raise ImportError(f"{path}: expected gcsfs: pip install 'lawm_jax[buckets]'") from error
    return epath.Path(path)


def exists(path):
    """Returns whether a file or folder exists."""
    return at(path).exists() if is_url(path) else os.path.exists(path)


def is_dir(path):
    """Returns whether a folder exists; in a bucket, whether a file is below that path."""
    return at(path).is_dir() if is_url(path) else os.path.isdir(path)


def names(folder):
    """Returns the sorted names of a folder's entries, [] if the folder does not exist."""
    if not is_dir(folder):
        return []
    return sorted(path.name for path in at(folder).iterdir())


def write(path, content):
    """Writes a file atomically, and the folders above it if they are missing.

    Args:
      path: of the file. In a bucket, a file only becomes visible once it is complete.
      content: bytes, or a str to encode as UTF-8.

    Raises:
      OSError: the file cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    if is_url(path):
        at(path).write_bytes(content)
        return
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(f"{path}.tmp", "wb") as file:
            file.write(content)
        os.replace(f"{path}.tmp", path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(f"{path}.tmp")
        raise OSError(error.errno, error.strerror or f"{error}", str(path)) from error


@contextlib.contextmanager
def local_copy(path):
    """Yields the path of a local file: the file itself, or a temporary copy of one in a bucket."""
    if not is_url(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, os.path.basename(path))
        copy.write_bytes(at(path).read_bytes())
        yield str(copy)


class Staging:
    """Holds a local folder for libraries that can't write to a bucket.

    Attributes:
      path: the folder itself or, if it is in a bucket, a temporary folder.
    """

    def __init__(self, folder):
        self.folder, self.temporary = folder, None
        if is_url(folder):
            self.temporary = tempfile.TemporaryDirectory()
        self.path = self.temporary.name if self.temporary else folder

    def upload(self):
        """Copies all files to the bucket; does nothing if the folder is local."""
        if self.temporary is None:
            return
        for file in sorted(pathlib.Path(self.path).rglob("*")):
            if file.is_file():
                inside = file.relative_to(self.path).as_posix()
                write(f"{self.folder}/{inside}", file.read_bytes())

    def close(self):
        """Uploads, and removes the temporary folder."""
        self.upload()
        if self.temporary is not None:
            self.temporary.cleanup()


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
    nothing. As in `glob`, names that start with a dot are left out. Links to missing files are left
    out with a warning: a held-out file must not depend on them.

    Args:
      folder: a local folder.
      suffixes: suffixes of the files to list, in lower case, matched in any case.

    Returns:
      Paths relative to the folder, with "/", sorted.
    """
    best, seen, missing, waiting = {}, set(), [], [(0, "")]
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
            elif entry.name.lower().endswith(suffixes):
                if os.path.isfile(entry.path):
                    key = _key(entry.path)
                    best[key] = min(rank, best.get(key, rank))
                elif entry.is_symlink():
                    missing.append(path)
    if missing:
        count = words.counted(len(missing), "link")
        text = f"{folder}: ignored {count} to missing files, such as {min(missing)}"
        warnings.warn(text, stacklevel=2)
    return sorted(path for _, path in best.values())


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
        paths = [
            root + path
            for root in roots
            for path in below(root or ".", suffixes)
            if _matches(path.split("/"), after)
        ]
    else:
        paths = [p for p in glob.iglob(pattern) if p.lower().endswith(suffixes)]
    return once(filter(os.path.isfile, paths))


def escaped(pattern):
    """Returns the literal folder that a glob starts with, and the glob with this folder escaped.

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
    groups = {}
    for path in paths:
        groups.setdefault(_key(path), set()).add(path)

    def rank(path):
        return os.path.realpath(path) != os.path.abspath(path), path

    return sorted(min(same, key=rank) if len(same) > 1 else min(same) for same in groups.values())


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

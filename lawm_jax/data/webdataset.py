"""Reads videos from tar files, such as the shards of webdataset and video2dataset.

A shard holds files of samples: KEY.mp4 or KEY.CAMERA.mp4, and KEY.json, KEY.txt and so on, which
are ignored. Each video is read at its offset, without copying or extracting the shard.
"""

import collections
import collections.abc
import concurrent.futures
import functools
import glob
import logging
import os
import posixpath
import re
import stat

import numpy as np

from lawm_jax.data import container, episodes, errors, metadata, paths, tar_index, video

TAR = (".tar",)
_THREADS = 32  # requests at once for the sizes of tar files
_BATCH = 64  # tar files per task of a thread
_FOLDER = 8  # minimum number of tar files in a remote folder for which it is listed
_STAMPS = (  # entries of fsspec's information that change with a file's content, by file system
    "ETag etag md5Hash generation blob_id mtime last_modified LastModified updated created".split()
)
_PACKED = ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"
_LOG = logging.getLogger(__name__)


def source(name, where, split, data, view):
    """Opens the videos in tar files: the source `webdataset:WHERE`.

    Args:
      name: name used in error messages.
      where: as in `find`.
      split: "train" or "test". A hash of a shard's path, within the searched folder, assigns the
        whole shard: adding shards, or moving the folder, doesn't move a shard to the other set. If
        only one shard has videos, a hash assigns its samples.
      data: has `frames`, `fps`, `holdout` and `augment.jitter`.
      view: `frames.View`.

    Returns:
      `video.Videos`, whose items are `container.Slice`s. The unreadable part of a shard, such as
      the rest of a truncated one, is one item, reported like an unreadable video.

    Raises:
      ValueError: nothing matches, no shard has a video, or the index can't be written.
      OSError: a shard can't be indexed because of its file system.
    """
    shards, keys = find(name, where)
    index = tar_index.Index(name, shards, tar_index.cache_folder())
    items, damaged = index.counts.T
    if not (items > damaged).any():
        items = [index.item(shard, 0) for shard in np.flatnonzero(damaged)[:3]]
        reasons = "".join(f"; {item}: {item.problem}" for item in items)
        raise ValueError(f"{name}: no videos in {len(shards)} tar files{reasons}")
    _warn_of_damage(name, index)
    train, test = _split(name, index, keys, data.holdout)
    items = train if split == "train" else test
    return video.Videos(name, items, data.frames, data.fps, view, data.augment.jitter)


class Items(collections.abc.Sequence):
    """The videos of some of the shards of a `tar_index.Index`, in order; takes little memory."""

    def __init__(self, index, shards, chosen=None):
        """Takes the numbers of the shards, and those of their items, by shard, if not all."""
        self._index, self._shards, self._chosen = index, shards, chosen or {}
        counts = index.counts[shards, 0]
        for shard, places in self._chosen.items():
            counts[shards == shard] = len(places)
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, number):
        if not 0 <= number < len(self):
            raise IndexError(f"number: expected 0 to {len(self) - 1}, got {number}")
        rank = int(np.searchsorted(self._ends, number, "right"))
        shard, place = int(self._shards[rank]), int(number - (self._ends[rank - 1] if rank else 0))
        if shard in self._chosen:
            place = int(self._chosen[shard][place])
        return self._index.item(shard, place)


def find(name, where):
    """Finds tar files, with stamps that show whether they have changed.

    Args:
      name: name used in error messages.
      where: a folder (searched recursively), a file, a glob or a path with braces such as
        `{000..999}` or `{a,b}`; or FILE.json, a wids index, with paths relative to its folder. All
        of these may be URLs of fsspec file systems.

    Returns:
      shards: list of `tar_index.Shard`. A shard that is named, by braces or in an index, and can't
        be found, has a `problem`.
      keys: their paths within the searched folder.

    Raises:
      ValueError: nothing matches, the index is invalid, the files are compressed, or a file system
        is unknown.
    """
    where = paths.expand(where)
    patterns, root = _patterns(name, where)
    packed = next((pattern for pattern in patterns if pattern.lower().endswith(_PACKED)), None)
    if packed:
        raise ValueError(f"{name}: {packed}: expected uncompressed tar files, read at any offset")
    keys, info = {}, {}  # by path or URL
    for pattern in patterns:
        if pattern.lower().endswith(TAR) and not glob.has_magic(pattern):
            keys[pattern] = _within(root or posixpath.dirname(pattern), pattern)
        elif "://" in pattern:
            for url, (key, file_info) in _remote(name, pattern, root).items():
                keys[url], info[url] = key, file_info
        else:
            keys |= _local(pattern, root)
    urls = list(keys)
    info |= _in_folders([url for url in urls if "://" in url and url not in info])
    batches = [urls[i : i + _BATCH] for i in range(0, len(urls), _BATCH)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # a network disk is slow
        status = lambda batch: [_status(url, info.get(url)) for url in batch]  # noqa: E731
        shards = [shard for part in pool.map(status, batches) for shard in part]
    if all(shard.problem for shard in shards):
        reason = "".join(f"; {shard.url}: {shard.problem}" for shard in shards[:1])
        raise ValueError(f"{name}: no tar files *.tar in {where!r}{reason or _instead(where)}")
    return shards, list(keys.values())


def _instead(where):
    """Explains, for an error, why a local path has no tar files; "" if the reason is unknown."""
    if "://" in where or glob.has_magic(where) or "{" in where:
        return ""
    if not os.path.exists(where):
        return "; there is no such file or folder"
    if not os.path.isdir(where):
        return ""
    packed = [path for path in paths.below(where) if path.lower().endswith(_PACKED)]
    return f"; {packed[0]}: expected uncompressed tar files, read at any offset" if packed else ""


def _patterns(name, where):
    """Returns the paths, folders and globs that `where` stands for, and their folder or ""."""
    if where.lower().endswith(".json"):
        return _wids(name, where), posixpath.dirname(where)
    if "://" not in where and os.path.exists(where):
        return [where], ""
    patterns = list(dict.fromkeys(expand(where)))
    root = posixpath.dirname(re.split(r"[{*?[]", where)[0]) if len(patterns) > 1 else ""
    return patterns, root


def _wids(name, where):
    """Returns the paths of the shards in a wids index, joined to the index's folder."""
    what = "a wids index"
    if "://" in where:
        system, inside = paths.file_system(where)
        try:
            text = errors.retried(lambda: system.cat_file(inside), where)
        except OSError as error:
            raise ValueError(f"{name}: {where}: {errors.reason(error)}") from error
        index = metadata.parse(text, where, what)
    else:
        index = metadata.load(where, what)
    rows = metadata.field(where, index, "shardlist", "a list")
    urls = []
    for row in rows:
        metadata.check(where, "shardlist", row, "an object")
        urls.append(metadata.field(where, row, "url", "a string"))
        if not urls[-1].lower().endswith(TAR):
            raise ValueError(f"{name}: {where}: url: expected a tar file, got {urls[-1]!r}")
    folder = posixpath.dirname(where)
    return [url if "://" in url else posixpath.join(folder, url) for url in dict.fromkeys(urls)]


def expand(text):
    """Yields a text with each {FIRST..LAST} and {A,B,...} replaced, in order, as in a shell."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", text)
    if not match:
        yield text
        return
    first, last, words = match.groups()
    if words is None:
        padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
        width = max(len(first), len(last)) if padded else 1
        options = (f"{number:0{width}}" for number in range(int(first), int(last) + 1))
    else:
        options = words.split(",")
    for option in options:
        yield from expand(text[: match.start()] + option + text[match.end() :])


def _local(pattern, root):
    """Maps the tar files of a folder or glob to their paths within `root`, or within the folder."""
    if os.path.isdir(pattern):
        folder, tars = pattern, [os.path.join(pattern, name) for name in paths.below(pattern, TAR)]
    else:
        folder, escaped = paths.escaped(pattern)
        tars = paths.matching(escaped, TAR)
    return {path: _within(root or folder, path) for path in tars}


def _remote(name, pattern, root):
    """Maps the URLs of the tar files of a remote folder or glob to (key, information).

    The key is the path within `root`, or within the folder; the information is fsspec's.
    """
    system, inside = paths.file_system(pattern)
    folder = paths.file_system(root)[1] if root else inside
    search = system.glob if glob.has_magic(inside) and not system.isdir(inside) else system.find
    try:
        entries = errors.retried(lambda: search(inside, detail=True), pattern)
    except OSError as error:
        raise ValueError(f"{name}: {pattern}: {errors.reason(error)}") from error
    while search == system.glob and glob.has_magic(folder):
        folder = posixpath.dirname(folder)
    return {
        paths.url_in(pattern, system, path): (_within(folder, path), entries[path])
        for path in sorted(entries)
        if path.lower().endswith(TAR)
    }


def _within(root, path):
    """Returns a path relative to a folder; a URL outside the folder is returned unchanged."""
    root = root.rstrip("/") + "/" if root else ""
    if path.startswith(root):
        return path[len(root) :].lstrip("/")
    return path if "://" in path else posixpath.relpath(path, root)


def _in_folders(urls):
    """Maps URLs to fsspec's information, where a listing of their folder has it.

    A listing takes one request per thousand files, instead of one per file.
    """
    folders, info = collections.defaultdict(list), {}
    for url in urls:
        folders[posixpath.dirname(url)].append(url)
    for folder, members in folders.items():
        if len(members) < _FOLDER or "::" in folder:
            continue
        system, inside = paths.file_system(folder)
        try:
            rows = errors.retried(lambda: system.ls(inside, detail=True), folder)  # noqa: B023
        except container.BUGS:
            raise
        except Exception as error:  # from any library; e.g. a web server lists nothing
            _LOG.info("%s: %s; checking each file separately", folder, errors.reason(error))
            continue
        listing = {posixpath.basename(row["name"]): row for row in rows if row.get("size")}
        names = {url: posixpath.basename(url) for url in members}
        info |= {url: listing[name] for url, name in names.items() if name in listing}
    return info


def _status(url, info):
    """Returns the `tar_index.Shard` of a path or URL; `known` is fsspec's information or None."""
    remote = info is None and "://" in url and paths.file_system(url)
    try:
        if "://" not in url:
            status = errors.retried(lambda: os.stat(url), url)
            readable = stat.S_ISREG(status.st_mode) and os.access(url, os.R_OK)
            problem = "" if readable else "expected a file that can be read"
            return tar_index.Shard(url, status.st_size, str(status.st_mtime_ns), problem)
        info = info or errors.retried(lambda: remote[0].info(remote[1]), url)
    except container.BUGS:
        raise
    except Exception as error:  # from any file system
        if errors.transient(error):
            raise OSError(f"{url}: {errors.reason(error)}") from error
        missing = isinstance(error, FileNotFoundError)
        return tar_index.Shard(url, problem="no such file" if missing else errors.reason(error))
    size = info.get("size")
    if not isinstance(size, int):
        return tar_index.Shard(url, problem="its file system doesn't report its size")
    stamp = next((str(info[key]) for key in _STAMPS if info.get(key)), "")
    return tar_index.Shard(url, size, stamp)


def _split(name, index, keys, holdout):
    """Returns the training and test `Items`, see `source`; `keys` has one str per shard."""
    items, damaged = index.counts.T
    usable, unusable = np.flatnonzero(items > damaged), np.flatnonzero(items == damaged)
    if len(usable) > 1:
        train, test = (usable[side] for side in episodes.split([keys[i] for i in usable], holdout))
        share = items[test].sum() / items.sum()
        if share > 2 * holdout > 0:
            text = "%s: %.1f%% of the videos are held out, not %.1f%%, as there are few tar files"
            _warn(text, name, 100 * share, 100 * holdout)
        return Items(index, np.sort(np.append(train, unusable))), Items(index, test)
    (shard,) = usable
    names = [index.item(shard, place).name for place in range(items[shard])]
    samples = [tar_index.sample(name) for name in names]
    unique = list(dict.fromkeys(samples))
    train, test = episodes.split(unique, holdout)
    if train == test:
        _LOG.warning("%s is the only sample: it is used for training and testing", unique[0])
        return Items(index, usable), Items(index, usable)
    tested = {unique[number] for number in test}
    mask = np.array([sample in tested for sample in samples])
    places = [np.flatnonzero(side) for side in (~mask, mask)]
    train = Items(index, np.sort(np.append(usable, unusable)), {int(shard): places[0]})
    return train, Items(index, usable, {int(shard): places[1]})


def _warn_of_damage(name, index):
    """Logs the number of shards that are damaged or hold no video."""
    count = len(index.shards)
    empty = int((index.counts[:, 0] == 0).sum())
    if empty:
        _warn("%s: %d of %d tar files contain no video", name, empty, count)
    damaged = np.flatnonzero(index.counts[:, 1])
    if len(damaged):
        slices = [index.item(shard, index.counts[shard, 0] - 1) for shard in damaged[:3]]
        text = "; ".join(f"{item}: {item.problem}" for item in slices)
        text += f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        _warn("%s: %d of %d tar files are damaged or missing: %s", name, len(damaged), count, text)


@functools.cache
def _warn(text, *arguments):
    """Logs a warning, once per process."""
    _LOG.warning(text, *arguments)

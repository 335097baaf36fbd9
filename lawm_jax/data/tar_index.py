"""Lists the videos in tar files with their positions, once per file, to read each one alone.

The lists are cached in the folder `cache_folder()`. A list is made again if the tar file's size,
modification time or ETag has changed.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import posixpath
import subprocess
import sys
import tarfile
import threading
from typing import NamedTuple

import google_crc32c
import numpy as np

from lawm_jax.data import container, errors, frames, paths, recent, video

THREADS = 16  # tar files that a process reads at once
_PART = 128  # tar files to hand to these threads at once
_ALONE, _PROCESSES = 1024, 32  # maximum tar files for a single process, and maximum processes
_BLOCK = 2**15  # bytes per request to a remote tar file; a header has 512
_HEADER = 2**20  # maximum bytes of a long name or of extended attributes
_TAIL = 2**20  # more bytes than this after the end marker are another archive, not padding
_KEPT = 64  # lists to keep in memory
_COMPRESSED = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ", "zstd": b"\x28\xb5\x2f\xfd"}
# What tarfile raises for damaged headers.
_DAMAGE = tarfile.TarError, ValueError, OverflowError, LookupError, EOFError, RecursionError
_LOG = logging.getLogger(__name__)


def cache_folder():
    """Returns the folder of the lists: `$XDG_CACHE_HOME/lawm_jax/tars`."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.path.join(os.path.expanduser(cache), "lawm_jax", "tars")


class Shard(NamedTuple):
    """A tar file.

    Attributes:
      url: its path or URL.
      size: bytes.
      stamp: text that changes with its content: its modification time, ETag or version.
      problem: why it can't be read, or "" if it may be readable.
    """

    url: str
    size: int = 0
    stamp: str = ""
    problem: str = ""


class Members(NamedTuple):
    """The videos in a tar file, in its order.

    Attributes:
      names: Arrow array of bytes: their paths in the tar file.
      starts, sizes: int64 [n], positions and lengths of their data, in bytes.
      problems: list of [name, reason]: members that can't be read, and "" for a part of unknown
        members.
      lasting: whether all this depends on the file's content alone, so that it may be cached.
    """

    names: object
    starts: np.ndarray
    sizes: np.ndarray
    problems: list
    lasting: bool = True

    @property
    def count(self):
        """The number of videos and problems."""
        return len(self.starts) + len(self.problems)

    def slice(self, url, number):
        """Returns a video, or a problem, of the tar file `url` as a `container.Slice`."""
        if number >= len(self.starts):
            name, reason = self.problems[number - len(self.starts)]
            return container.Slice(url, name, problem=reason)
        name = os.fsdecode(self.names[number].as_py())
        return container.Slice(url, name, int(self.starts[number]), int(self.sizes[number]))


class Index:
    """The videos of many tar files; picklable and thread-safe.

    Only the counts and the most recently used lists are kept in memory.

    Attributes:
      shards: list of `Shard`.
      counts: int64 [n, 2], the items of each shard, and how many of these are problems.
    """

    def __init__(self, name, shards, folder):
        """Reads the lists from a folder, and makes those that are missing or out of date.

        Args:
          name: name used in the log.
          shards: list of `Shard`.
          folder: folder of the lists.

        Raises:
          ValueError: the folder can't be written to.
          OSError: a file system failed through all retries. A number of videos that depends on such
            a failure would put the processes of a training run out of step.
        """
        self.shards, self._folder = shards, folder
        self._lists = recent.Recent(_KEPT)
        self.counts = self._counts(name)

    def item(self, shard, number):
        """Returns one of `counts[shard, 0]` items of a shard as a `container.Slice`."""
        url = self.shards[shard].url
        members = self.members(shard)
        if number >= members.count:
            reason = f"changed while in use: expected {self.counts[shard, 0]} videos"
            return container.Slice(url, "", problem=f"{reason}, got {members.count}")
        return members.slice(url, number)

    def members(self, shard):
        """Returns the `Members` of a shard."""
        return self._lists.get(shard, lambda shard: load(self.shards[shard], self._folder))

    def _counts(self, name):
        """Returns `counts`, cached in a separate file so that no list must be read."""
        urls = "\n".join(_absolute(shard.url) for shard in self.shards)
        path = _path(self._folder, urls, "counts")
        key = hashlib.sha256(repr(self.shards).encode("utf-8", "surrogateescape")).digest()
        data = _fetch(path)
        if data is None or data[: len(key)] != key:
            counts, lasting = self._count_all(name)
            data = key + counts.tobytes()
            if lasting:
                _store(path, data)
        return np.frombuffer(data[len(key) :], np.int64).reshape(-1, 2)

    def _count_all(self, name):
        """Loads the list of every shard; returns `counts` and whether they may be cached."""
        import tqdm

        rows, count = np.zeros((len(self.shards), 3), np.int64), len(self.shards)
        _LOG.info("%s: indexing %d tar files in %s", name, count, self._folder)
        with (
            _worker_processes(self._folder, self.shards),
            tqdm.tqdm(total=count, unit="shard", disable=None) as bar,
        ):
            for number, members in _loaded(self._folder, self.shards):
                rows[number] = members.count, len(members.problems), members.lasting
                bar.update()
        return np.ascontiguousarray(rows[:, :2]), bool(rows[:, 2].all())


def _loaded(folder, shards):
    """Yields the number and `Members` of each shard, in a random order.

    Processes that begin together, on any machine that shares the folder, thus share the work.
    """
    order = np.random.default_rng().permutation(len(shards)).tolist()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(order), _PART):
            part = order[first : first + _PART]
            members = pool.map(lambda number: load(shards[number], folder), part)
            yield from zip(part, members, strict=True)


@contextlib.contextmanager
def _worker_processes(folder, shards):
    """Starts a worker process per core that makes lists; `load` makes those still missing."""
    count = min(_PROCESSES, os.cpu_count() or 1) - 1 if len(shards) > _ALONE else 0
    command, started = [sys.executable, "-m", "lawm_jax.data.tar_index"], []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        work = json.dumps([os.getpid(), folder, shards]).encode()
        for process in started:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(work)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _work():
    """Makes lists for the process that writes [its id, folder, shards] to the standard input."""
    parent, folder, shards = json.load(sys.stdin)
    for _ in _loaded(folder, [Shard(*row) for row in shards]):
        if os.getppid() != parent:
            return


def load(shard, folder):
    """Returns the `Members` of a `Shard`, from `folder` if its list there is up to date.

    Raises:
      ValueError, OSError: as in `Index`.
    """
    if shard.problem:
        return _listed({}, [["", shard.problem]])
    path = _path(folder, _absolute(shard.url), "arrow")
    data = _fetch(path)
    members = data and _unpack(data, shard)
    if not members:
        scanned = errors.retried(lambda: _scan(shard), shard.url)
        members = _listed(*scanned)
        if members.lasting:
            _store(path, _pack(members, shard))
    return members


def scan(file, size):
    """Lists the videos of a tar file, and the parts that can't be read.

    Args:
      file: the open binary file.
      size: its size in bytes.

    Returns:
      videos: dict of name -> (start, size), in bytes. If members have the same name, the last one
        counts, as when the file is extracted. Hidden files and links are left out.
      problems: list of [name, reason], see `Members`.
    """
    videos, problems, count = {}, [], 0
    members = _members(file, size)
    while True:
        try:
            member = next(members, None)
        except _DAMAGE as error:
            where = f"damaged after {count} complete members: " if count else ""
            problems.append(["", f"{where}{error}"])
            break
        if member is None:
            break
        count += 1
        parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
        name, end = "/".join(parts), member.offset_data + member.size
        if member.isreg() and not member.issparse() and end > size:
            text = f"truncated: it should end at byte {end}, but the tar file has {size} bytes"
            problems.append([name, text])
            break
        hidden = any(part.startswith(".") for part in parts)
        if hidden or not member.isreg() or not name.lower().endswith(video.SUFFIXES):
            continue
        if member.issparse():
            problems.append([name, "a sparse member, which isn't stored in one piece"])
        else:
            videos[name] = member.offset_data, member.size
    return videos, problems


def sample(name):
    """Returns the key of a member's sample, as in webdataset: its path up to the first dot."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


class _Capped:
    """Limits the bytes per read of a file, so that a header can't make tarfile use much memory."""

    def __init__(self, file):
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size):
        return self._file.read(min(size, _HEADER))


def _members(file, size):
    """Yields the members of a tar file; raises an exception of `_DAMAGE` where it is damaged."""
    head = file.read(8)
    for kind, magic in _COMPRESSED.items():
        if head.startswith(magic):
            raise tarfile.ReadError(f"expected an uncompressed tar file, got {kind}")
    file.seek(0)
    with tarfile.open(fileobj=_Capped(file), mode="r:") as tar:
        before = -1
        while (member := tar.next()) is not None:
            if member.size < 0 or tar.offset <= before:
                raise tarfile.ReadError(f"damaged header before byte {member.offset_data}")
            before = tar.offset
            yield member
    # tarfile takes a damaged header for the end.
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"ends at byte {size}, without the end marker of a tar file")
    if any(block):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset} of {size}")
    if size - tar.offset > _TAIL:
        raise tarfile.ReadError(f"another {size - tar.offset} bytes follow the end marker")


def _scan(shard):
    """Opens a shard and scans it; returns a file's problem, and raises a transient error."""
    try:
        if "://" not in shard.url:
            with open(shard.url, "rb") as file:
                return scan(file, shard.size)
        file = container.Remote(shard.url, _BLOCK)
        try:
            result = scan(file, shard.size)
            if isinstance(file.error, container.BUGS):
                raise file.error
            if file.error:  # of any library; e.g. a web server that can't read at an offset
                raise container.unreadable(shard.url, file.error) from file.error
            return result
        finally:
            file.close()
    except (OSError, frames.UnreadableVideo) as error:
        reason = error.reason if isinstance(error, frames.UnreadableVideo) else errors.reason(error)
        if errors.transient(error):
            raise OSError(f"{shard.url}: can't be indexed: {reason}") from error
        return {}, [["", reason]], False


def _listed(videos, problems, lasting=True):
    """Returns `Members` from the results of `scan`."""
    import pyarrow as pa

    places = np.array(list(videos.values()), np.int64).reshape(-1, 2)
    return Members(pa.array(map(os.fsencode, videos), pa.binary()), *places.T, problems, lasting)


def _pack(members, shard):
    """Serializes the list of a shard."""
    import pyarrow as pa

    about = {"size": shard.size, "stamp": shard.stamp, "problems": members.problems}
    columns = {"name": members.names, "start": members.starts, "size": members.sizes}
    table = pa.table(columns).replace_schema_metadata({"shard": json.dumps(about)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _unpack(data, shard):
    """Returns the `Members` of a shard; None if its file has changed."""
    import pyarrow as pa

    table = pa.ipc.open_file(pa.py_buffer(data)).read_all().combine_chunks()
    about = json.loads(table.schema.metadata[b"shard"])
    if (about["size"], about["stamp"]) != (shard.size, shard.stamp):
        return None
    names = table["name"].chunk(0) if len(table) else ()
    return Members(names, *(table[key].to_numpy() for key in ("start", "size")), about["problems"])


def _absolute(url):
    return url if "://" in url else os.path.abspath(url)


def _path(folder, url, suffix):
    """Returns the path in the cache folder for a tar file, or for several tar files."""
    name = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return os.path.join(folder, name[:2], f"{name}.{suffix}")


def _fetch(path):
    """Returns the bytes that `_store` wrote; None if they are missing or damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        _LOG.warning("%s: %s; rebuilding it", path, errors.reason(error))
        return None
    check, data = data[:4], data[4:]
    return data if google_crc32c.value(data).to_bytes(4, "big") == check else None


def _store(path, data):
    """Writes bytes and their checksum atomically; several processes may write the same file."""
    partial = f"{path}.{os.getpid()}-{threading.get_ident()}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(partial, "wb") as file:
            file.write(google_crc32c.value(data).to_bytes(4, "big") + data)
        os.replace(partial, path)
    except OSError as error:
        reason = f"{paths.expand(path)}: {errors.reason(error)}"
        raise ValueError(
            f"the index of tar files can't be written: {reason}; set XDG_CACHE_HOME"
        ) from error


if __name__ == "__main__":
    _work()

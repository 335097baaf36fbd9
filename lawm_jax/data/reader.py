"""Reads examples of a data source, and replaces and reports unreadable files."""

import contextlib
import hashlib
import json
import logging
import os

import numpy as np

try:
    import fcntl
except ImportError as error:
    raise ImportError("lawm_jax reads data on Linux and macOS; on Windows use WSL") from error

from lawm_jax.data import errors, frames, paths, words

_LOG = logging.getLogger(__name__)
_FAILED = 3  # consecutive files with system errors after which the run ends


class Failures:
    """Records and reports unreadable files; thread-safe.

    Appends to the file `path` or, if it is in a bucket, where files cannot grow, writes a file per
    row below `path`, named after a hash of the row's source and path.
    """

    def __init__(self, path):
        self.path = path
        self.reasons = {}
        self.reported, self.offset = set(), 0  # (source, path) rows of the file up to the offset

    def add(self, source, error):
        """Reports an unreadable file or episode, once across threads, processes and restarts."""
        entry = [error.reason]
        if self.reasons.setdefault(error.path, entry) is not entry:  # atomic: one thread reports
            return
        _LOG.warning("skipped file (%d so far): %s", len(self.reasons), error)
        if self.path:
            self._append({"source": source, "path": error.path, "reason": error.reason})

    def _append(self, row):
        if paths.is_url(self.path):
            name = hashlib.sha256(f"{row['source']}\n{row['path']}".encode(errors="replace"))
            paths.write(f"{self.path}/{name.hexdigest()[:16]}.jsonl", json.dumps(row) + "\n")
            return
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
        with open(self.path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until closed: other processes may be writing
            file.seek(self.offset)
            line = b"\n"
            for line in file:
                with contextlib.suppress(ValueError):  # a line cut short when a process was killed
                    before = json.loads(line)
                    self.reported.add((before["source"], before["path"]))
            half = 0 if line.endswith(b"\n") else len(line)
            self.offset = file.tell() - half
            if (row["source"], row["path"]) not in self.reported:
                file.write(b"\n" * bool(half) + json.dumps(row).encode() + b"\n")


def _order(first, count, random):
    """Yields `first`, then the other numbers below `count` in a random order.

    Draws them lazily: usually only a few are needed, and `count` may be millions.
    """
    seen = {first}
    yield first
    while len(seen) < count:
        number = int(random.integers(count))
        if number not in seen:
            seen.add(number)
            yield number


class Reader:
    """Reads one example of a source; picklable, since Grain sends it to worker processes."""

    def __init__(self, source, split, rank, cut, failures):
        self.source, self.split = source, split
        self.rank, self.cut, self.failures = rank, cut, failures
        self.files = getattr(source, "files", None)  # None: each item is one file
        self.count = len(source.items if self.files is None else self.files)
        self.unreadable = set()
        self.keys = None

    def __call__(self, index, random):
        """Returns a clip of file `index`, or of the first readable file in a random order."""
        seed = int(random.integers(2**63))
        failed = 0
        for file in _order(index, self.count, random):
            try:
                clip = self._read(file, seed)
            except frames.UnreadableVideo:  # a system error that outlasted the retries
                failed += 1
                if failed == _FAILED:
                    raise
                continue
            if clip:
                return clip
        raise ValueError(f"{self.source.name}: no readable file is left")

    def check(self):
        """Returns the first clip that can be read; raises ValueError if there is none."""
        for file in range(self.count):
            clip = self._read(file, 0)
            if clip:
                return clip
        reasons = [f"{path}: {why[0]}" for path, why in list(self.failures.reasons.items())[:5]]
        details = "; ".join(reasons + ["..."] * (self.count > 5))
        held_out = "held-out " if self.split == "test" else ""
        text = f"none of {words.counted(self.count, f'{held_out}file')} can be read: {details}"
        raise ValueError(f"{self.source.name}: {text}")

    def _read(self, file, seed):
        """Returns the arrays of a training clip, or None if the file is unreadable.

        Raises:
          UnreadableVideo: system errors persisted through all retries.
        """
        index = file
        if self.files is not None:
            index = self.files.pick(file, np.random.default_rng((seed, 1)))
        if index in self.unreadable:
            return None

        def read():
            # A new Generator per attempt, so that a retry reads the same clip.
            clip = self.source.clip(self.source.items[index], np.random.default_rng(seed))
            if self.cut and "video" in clip:
                frames.refuse_cuts(clip, self.cut)
            return clip

        try:
            clip = errors.retried(read, self.source.name)
        except frames.UnreadableVideo as error:
            self.failures.add(self.source.name, error)
            if errors.transient(error):
                raise
            if error.start is None:
                self.unreadable.add(index)
            return None
        arrays = {key: value for key, value in clip.items() if isinstance(value, np.ndarray)}
        arrays |= {
            "source": np.array(self.rank, np.int32),
            "episode": np.array(index, np.int32),
            "start": np.array(clip["start"], np.float32),
        }
        return {key: arrays[key] for key in self.keys or arrays}

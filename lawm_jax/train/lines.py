"""Appends lines to a file or, in a bucket, where files cannot grow, to a folder of its parts."""

import json
import threading
import warnings

from lawm_jax.data import paths
from lawm_jax.train import rundir

PERIOD = 20  # seconds between uploads, in the background
PART = 2**20  # bytes of a part, after which the next one begins


def open_steps(path, start):
    """Opens a file of JSON lines with a `step` each, without those of steps after `start`.

    Incomplete lines are also removed.

    Args:
      path: of a local file, or of a folder of parts in a bucket.
      start: the step after which lines follow.

    Returns:
      A `File` or `Parts`.
    """
    return Parts(path, start) if paths.is_url(path) else File(path, start)


class File:
    """Appends lines to a local file."""

    def __init__(self, path, start):
        if paths.exists(path):
            with open(path) as file:
                kept = _kept(file, start)
            paths.write(path, "".join(kept))
        self.file = open(path, "a")

    def write(self, line):
        """Appends a line, which ends in a newline."""
        self.file.write(line)
        self.file.flush()

    def flush(self):
        """Does nothing; `write` flushes."""

    def close(self):
        self.file.close()


class Parts:
    """Appends lines to the last of several numbered files, which is rewritten each time.

    A line is uploaded in the background, at most `PERIOD` seconds after it was written, and by
    `flush`. Only one process may write.
    """

    def __init__(self, folder, start):
        self.folder, self.number = folder, _keep_parts(folder, start)
        self.lines = []  # lines of the last part
        self.uploaded = 0  # number of these lines that are in the bucket
        self.uploading, self.closed = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._upload_regularly, daemon=True)
        self.thread.start()

    def write(self, line):
        """Appends a line, which ends in a newline; does not wait for the network."""
        self.lines.append(line)

    def flush(self):
        """Uploads the lines that were written before the call.

        Raises:
          OSError: the bucket can't be written to.
        """
        path = f"{self.folder}/{self.number:08}.jsonl"
        try:
            self._upload()
        except Exception as error:  # several libraries: network or credentials
            raise OSError(f"{path}: can't be written: {error!r}") from error

    def close(self):
        """Uploads all lines and ends the thread."""
        self.closed.set()
        self.thread.join()
        self.flush()

    def _upload(self):
        with self.uploading:
            count = len(self.lines)  # `write` may append more meanwhile
            if count == self.uploaded:
                return
            text = "".join(self.lines[:count])
            paths.write(f"{self.folder}/{self.number:08}.jsonl", text)
            self.uploaded = count
            if len(text) >= PART:
                del self.lines[:count]
                self.number, self.uploaded = self.number + 1, 0

    def _upload_regularly(self):
        while not self.closed.wait(PERIOD):
            try:
                self._upload()
            except Exception as error:  # as in `flush`
                text = f"{self.folder}: can't be written, trying again in {PERIOD} s: {error!r}"
                warnings.warn(text, stacklevel=1)


def _keep_parts(folder, start):
    """Removes lines as `open_steps` does; returns the number of the next part."""
    parts = rundir.parts(folder)
    for part in reversed(parts):
        lines = part.read_text().splitlines(keepends=True)
        kept = _kept(lines, start)
        if kept == lines:
            break
        if kept:
            paths.write(part, "".join(kept))
        else:
            part.unlink()
    return int(parts[-1].stem) + 1 if parts else 0


def _kept(lines, start):
    """Returns the whole lines of steps up to `start`."""
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line)
        except ValueError:
            continue
    return kept

"""Receives uploaded videos within limits of size, type and length."""

import os
import tempfile

from lawm_jax.data import video
from lawm_jax.play import library
from lawm_jax.play.messages import Refused

LARGEST = 50 * 2**20  # bytes
LONGEST = 600.0  # seconds


async def receive(chunks, name, declared=None):
    """Writes an upload to a temporary file, which the caller removes.

    Args:
      chunks: asynchronous iterator of bytes.
      name: name of the file in the browser; only its suffix and last characters are used.
      declared: stated size in bytes, or None.

    Returns:
      The path of the temporary file.

    Raises:
      Refused: the suffix is not that of a video, or more than `LARGEST` bytes arrive.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in video.SUFFIXES:
        raise Refused(
            f"{label(name)}: expected a video ({' '.join(video.SUFFIXES)}), got "
            f"{suffix or 'no suffix'}"
        )
    if declared is not None and declared > LARGEST:
        raise Refused(_too_large(name, f"{declared / 2**20:.0f} MB"))
    handle, path = tempfile.mkstemp(prefix="lawm_play_", suffix=".upload")
    try:
        with os.fdopen(handle, "wb") as file:
            size = 0
            async for chunk in chunks:
                size += len(chunk)
                if size > LARGEST:
                    raise Refused(_too_large(name, "more"))
                file.write(chunk)
        if not size:
            raise Refused(f"{label(name)}: expected a video, got an empty file")
    except BaseException:
        os.remove(path)
        raise
    return path


def read(path, name, start, world, fps):
    """Reads and encodes an upload, see `library.read_upload`, as a `library.Clip`.

    Raises:
      Refused: it is not a readable video, or longer than `LONGEST`.
    """
    title, model = label(name), world.model
    try:
        view = dict(size=model.size, resize=model.resize)
        clip = library.read_upload(path, title, start, world.frames, fps, LONGEST, **view)
    except ValueError as error:
        raise Refused(str(error)) from error
    return clip.fill(world)


def label(name):
    """Returns the last part of a file's name, at most 40 printable characters."""
    text = "".join(x for x in os.path.basename(name.replace("\\", "/")) if x.isprintable())
    return text[-40:] or "upload"


def _too_large(name, got):
    return f"{label(name)}: expected at most {LARGEST / 2**20:.0f} MB, got {got}"

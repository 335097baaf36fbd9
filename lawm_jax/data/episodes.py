"""Reads clips from recorded episodes; all labeled sources build on it."""

import dataclasses
import functools
import hashlib
import logging
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lawm_jax.data import frames as frames_
from lawm_jax.data import paths

UnreadableVideo = frames_.UnreadableVideo

_LOG = logging.getLogger(__name__)


class Episode(NamedTuple):
    """An open episode.

    Attributes:
      length: number of steps.
      arrays: function of (indices int [F], view) that returns a dict with `video` uint8 [F,H,W,3]
        of those steps. Labeled episodes add `actions` float32 [F-1,U], where actions[t] leads from
        step indices[t] to indices[t+1], and `state` float32 [F,k]. If `view` is None, only the
        labels are read and `video` is missing. The dict may override `episode` and `start`.
    """

    length: int
    arrays: Callable


@dataclasses.dataclass(frozen=True)
class Episodes:
    """A source of clips from episodes with a constant rate.

    A clip with damaged data or non-finite labels is unreadable; other clips are not affected.

    Attributes:
      name: name used in error messages.
      items: the episodes, in a fixed order; anything that `open` accepts.
      open: function from an item to a context manager that yields an `Episode` or raises
        `UnreadableVideo`; picklable. If items aren't paths, it has a method `identity(item)`.
      frames: number of frames F of a clip.
      stride: episode steps from one frame to the next.
      view: `frames.View`, or None to read only labels.
      encoder: the encoder's config as JSON, if clips hold `states` instead of `video`.
      files: `records.Files`, if one file holds several items.
    """

    name: str
    items: tuple
    open: Callable
    frames: int
    stride: int
    view: frames_.View | None
    encoder: str | None = None
    files: object = None

    def clip(self, item, random):
        """Returns a clip of one episode with a start step and view drawn by `random`."""
        with self.open(item) as episode:
            latest = self._latest(item, episode)
            start = int(random.integers(latest + 1))
            view = self.view and self.view.drawn(random)
            return self.read(item, episode, start, view)

    def fixed(self, item):
        """Yields consecutive clips of one episode, without overlap."""
        with self.open(item) as episode:
            for start in range(0, self._latest(item, episode) + 1, self.frames * self.stride):
                yield self.read(item, episode, start, self.view)

    def parts(self, item, most, least=0):
        """Yields one whole episode, every `stride`th step, in parts of at most `most` frames.

        If the last part would be shorter than `least`, all parts are made equally long. An
        unreadable part is halved repeatedly, down to the length of a clip; the first error is
        raised at the end.
        """
        with self.open(item) as episode:
            if not episode.length:
                raise UnreadableVideo(str(item), "0 steps")
            steps = np.arange(0, episode.length, self.stride)
            parts = np.split(steps, range(most, len(steps), most))
            if len(parts[-1]) < least:
                parts = np.array_split(steps, len(parts))
            failure, tries = None, 0
            waiting = parts[::-1]
            while waiting:
                indices = waiting.pop()
                try:
                    yield self._arrays(item, episode, indices, self.view)
                except UnreadableVideo as error:
                    failure, tries = failure or error, tries + 1
                    if error.start is None or tries > _TRIES:
                        break
                    if len(indices) >= 2 * max(self.frames, least):
                        waiting += np.array_split(indices, 2)[::-1]
            if failure:
                raise failure

    def _latest(self, item, episode):
        latest = episode.length - 1 - (self.frames - 1) * self.stride
        if latest < 0:
            reason = f"{episode.length} steps, but a clip needs {episode.length - latest}"
            raise UnreadableVideo(str(item), reason)
        return latest

    def read(self, item, episode, start, view):
        """Returns the clip of an open `Episode` that begins at step `start`."""
        indices = range(start, start + self.frames * self.stride, self.stride)
        return self._arrays(item, episode, indices, view)

    def _arrays(self, item, episode, indices, view):
        try:
            arrays = episode.arrays(np.asarray(indices), view)
            for key in "actions", "state":
                if key in arrays and not np.isfinite(arrays[key]).all():
                    step = int(np.argmin(np.isfinite(arrays[key]).all(1)))
                    raise ValueError(f"{key} at step {indices[step]}: expected finite numbers")
            return {"episode": item, "start": int(indices[0])} | arrays
        except (ValueError, OSError) as error:
            raise UnreadableVideo(str(item), str(error), float(indices[0])) from error


def identity(source, item):
    """Returns a name of an item that doesn't depend on how its path is spelled.

    Args:
      source: see `lawm_jax.data`.
      item: one of its items.

    Returns:
      A str: the real path or URL of the item's file or folder, plus `#` and the item's number if it
      holds many items. For ingested records, the identity of the original item.
    """
    method = getattr(getattr(source, "open", None), "identity", None)
    return method(item) if method else paths.identity(getattr(item, "path", item))


_TRIES = 64  # unreadable parts of an episode after which the rest is skipped


def stride(name, rate, fps):
    """Returns the number of recorded steps per frame whose rate is nearest to `fps`, by ratio.

    A rate that differs from `fps` is logged. For `fps` 4, a recording at 15 Hz is read at 3.75, as
    in the evaluations on DROID, 5 at 5 and 6 at 3.

    Raises:
      ValueError: the recording is slower than `fps`.
    """
    if rate < 0.9 * fps:
        raise ValueError(f"data.fps: {name} has {rate:g} frames per second, fewer than {fps:g}")
    below = max(1, math.floor(rate / fps))
    steps = min(below, below + 1, key=lambda n: abs(math.log(rate / n / fps)))
    if not math.isclose(rate / steps, fps, rel_tol=1e-3):
        _log_rate(name, rate, steps, fps)
    return steps


def rate(name, text):
    """Returns a rate that a user wrote, in frames per second; ValueError unless it is positive."""
    try:
        if 0 < float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise ValueError(f"{name}: rate: expected a positive number of frames per second, got {text!r}")


@functools.cache
def _log_rate(name, rate, steps, fps):
    """Logs the rate at which a source is read, once."""
    level = logging.INFO if abs(rate / steps / fps - 1) < 0.1 else logging.WARNING
    got = f"{rate / steps:.4g} frames per second ({rate:.4g} / {steps})"
    _LOG.log(level, "%s: data.fps=%g is approximated by %s", name, fps, got)


def split(keys, holdout):
    """Splits items into a training and a test set, by a hash of their keys.

    Adding items doesn't move an item to the other set. With two or more items, each set gets at
    least one; a single item is in both.

    Args:
      keys: one str per item, independent of where the data is stored.
      holdout: fraction of test items, in [0, 1].

    Returns:
      train, test: lists of item numbers, in ascending order.
    """
    if len(keys) == 1:
        return [0], [0]
    digests = [hashlib.sha256(os.fsencode(key)).digest()[:8] for key in keys]
    ranked = sorted(range(len(keys)), key=lambda i: (digests[i], i))
    below = sum(int.from_bytes(digest, "big") < holdout * 2**64 for digest in digests)
    below = min(max(below, 1), len(ranked) - 1)
    return sorted(ranked[below:]), sorted(ranked[:below])

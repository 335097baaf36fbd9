"""Clips of recorded episodes, the base of all labelled sources."""

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
      length: number of its steps.
      arrays: (indices int [F], view) -> a dict with `video` uint8 [F,H,W,3] of those steps;
        labelled ones add `actions` float32 [F-1,U], where actions[t] leads from step indices[t] to
        indices[t+1], and `state` float32 [F,k]. Where `view` is None there is no `video`: only the
        labels are read. It may give its own `episode` and `start`.
    """

    length: int
    arrays: Callable


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Reads clips from episodes of a constant rate.

    A clip that meets damage, or a label that isn't a finite number, can't be read; the others can.

    Attributes:
      name: what an error message calls it.
      items: the episodes, in a fixed order; anything that `open` takes.
      open: item -> a context manager that gives an `Episode`, or raises `UnreadableVideo`;
        picklable. Where items aren't paths it has `identity`, see `identity`.
      frames: number of frames F of a clip.
      stride: steps of the episode between two frames.
      view: `frames.View`, or None to read labels alone.
      encoder: where clips hold `states` instead of `video`, the encoder's config as JSON.
      files: where several items are of one file, `records.Files`.
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
        """Reads a clip of one episode that starts at any of its steps, drawn by `random`."""
        with self.open(item) as episode:
            latest = self._latest(item, episode)
            start = int(random.integers(latest + 1))
            view = self.view and self.view.drawn(random)
            return self._read(item, episode, start, view)

    def fixed(self, item):
        """Yields the clips of one episode, end to end, without overlap."""
        with self.open(item) as episode:
            for start in range(0, self._latest(item, episode) + 1, self.frames * self.stride):
                yield self._read(item, episode, start, self.view)

    def parts(self, item, most, least=0):
        """Yields all of one episode, every `stride`th step, in parts of up to `most` frames.

        They are even where the last one would be shorter than `least`. A part that can't be read is
        halved, and its halves, down to a clip; the error of the first one comes at the end.
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
            reason = f"{episode.length} steps, needs {episode.length - latest}"
            raise UnreadableVideo(str(item), reason)
        return latest

    def _read(self, item, episode, start, view):
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
    """Returns a name of an item that is the same however the path of its data is spelled.

    Args:
      source: see `lawm_jax.data`.
      item: one of its items.

    Returns:
      A str: the real path or the URL of the item's file or folder. Where those hold many items,
      `#` and the item's number follow. Of ingested records, that of what they were made from.
    """
    known = getattr(getattr(source, "open", None), "identity", None)
    return known(item) if known else paths.identity(getattr(item, "path", item))


_TRIES = 64  # damaged parts of an episode after which it is given up


def stride(name, rate, fps):
    """Returns how many steps of `rate` per second make one of about `fps`.

    Of all that there are the one of the nearest rate, by their quotient; it is logged where it is
    another. 15 Hz is read at 3.75 for 4, as the evaluations on DROID do, 5 at 5 and 6 at 3.

    Raises:
      ValueError: the recording is slower than `fps`.
    """
    if rate < 0.9 * fps:
        raise ValueError(f"data.fps: {name} has {rate:g} frames a second, fewer than {fps:g}")
    below = max(1, math.floor(rate / fps))
    steps = min(below, below + 1, key=lambda n: abs(math.log(rate / n / fps)))
    if not math.isclose(rate / steps, fps, rel_tol=1e-3):
        _say(name, rate, steps, fps)
    return steps


@functools.cache
def _say(name, rate, steps, fps):
    """Logs at which rate a source is read, once."""
    level = logging.INFO if abs(rate / steps / fps - 1) < 0.1 else logging.WARNING
    got = f"{rate / steps:.4g} frames a second: every {steps} of {rate:.4g}"
    _LOG.log(level, "%s: for data.fps=%g it is read at %s", name, fps, got)


def split(keys, holdout):
    """Splits items into some to train on and some to test on, by a hash of their keys.

    An item stays on its side when others come. Of two items or more each side gets one at least; a
    single one is on both sides.

    Args:
      keys: a str per item, the same wherever the data lies.
      holdout: fraction to test on, in [0, 1].

    Returns:
      train, test: the items' numbers, rising.
    """
    if len(keys) == 1:
        return [0], [0]
    digests = [hashlib.sha256(os.fsencode(key)).digest()[:8] for key in keys]
    ranked = sorted(range(len(keys)), key=lambda i: (digests[i], i))
    below = sum(int.from_bytes(digest, "big") < holdout * 2**64 for digest in digests)
    below = min(max(below, 1), len(ranked) - 1)
    return sorted(ranked[below:]), sorted(ranked[:below])

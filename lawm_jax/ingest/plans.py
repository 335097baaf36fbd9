"""Plans an ingest: its options, its sources, and which items each shard holds."""

import math
import os
import types
from typing import NamedTuple

from lawm_jax.data import catalog, records

SHARDS = 1024  # approximate maximum per split; a shard has at least 16 items


class Plan(NamedTuple):
    """Describes how to convert a source; an ingest can only be continued with the same plan.

    Attributes:
      source: KIND:WHERE or video files, see `catalog.open_source`.
      fps, size, resize: rate and size of the frames, as in the config's `data`.
      frames: maximum number of frames per record.
      least: minimum number of frames per record; shorter parts are dropped and counted. If it
        equals `frames`, all records have the same length, as needed for states of clips.
      quality: JPEG quality; 0 stores raw frames.
      holdout: fraction of test items, if the source has no split of its own.
      encoder: the config of an encoder whose states are stored, or None to store frames.
      write: False only checks that everything can be read.
    """

    source: str
    fps: float = 4.0
    size: int = 256
    resize: int = 256
    frames: int = 128
    least: int = 16
    quality: int = 90
    holdout: float = 0.05
    encoder: dict | None = None
    write: bool = True


class Unit(NamedTuple):
    """The items of one shard."""

    split: str
    number: int
    items: range

    def shard(self, out):
        """Returns the path of the shard in the folder `out`."""
        return records.shard_path(os.path.join(out, self.split), self.number)

    def report(self, out):
        """Returns the path of the shard's report, which exists once the shard is complete."""
        return records.report_path(self.shard(out))


def check(plan, workers=1, limit=120.0, part=(0, 1)):
    """Raises ValueError, which names the argument, if an argument of `ingest` is out of range."""
    for name, value, good, expected in (
        ("fps", plan.fps, 0 < plan.fps <= 1000, "more than 0 and at most 1000"),
        ("size", plan.size, 8 <= plan.size <= 8192, "8 to 8192 pixels"),
        ("resize", plan.resize, plan.size <= plan.resize <= 65536, f"at least size = {plan.size}"),
        ("frames", plan.frames, plan.frames >= 2, "at least 2"),
        ("least", plan.least, 2 <= plan.least <= plan.frames, f"2 to frames = {plan.frames}"),
        ("quality", plan.quality, 0 <= plan.quality <= 100, "0 to 100"),
        ("holdout", plan.holdout, 0 <= plan.holdout <= 1, "0 to 1"),
        ("workers", workers, workers >= 1, "at least 1"),
        ("limit", limit, limit >= 1, "at least 1 second"),
        ("part", "/".join(map(str, part)), 0 <= part[0] < part[1], "i/n with 0 <= i < n"),
    ):
        if not good:
            raise ValueError(f"{name}: expected {expected}, got {value}")


def open_source(plan, split):
    """Opens the "train" or "test" split of the plan's source."""
    off = types.SimpleNamespace(
        crop=False, area=(1, 1), ratio=(1, 1), flip=0.0, jitter=0.0, cut=0.0
    )
    names = ("fps", "size", "resize", "holdout")
    data = types.SimpleNamespace(
        frames=plan.least, augment=off, **{name: getattr(plan, name) for name in names}
    )
    return catalog.open_source(plan.source, plan.source, split, data)


def divide(sources):
    """Divides the items of each split among shards.

    Args:
      sources: split -> source.

    Returns:
      The maximum number of items per shard, and a list of one `Unit` per shard.
    """
    most = max(len(source.items) for source in sources.values())
    size = max(16, math.ceil(most / SHARDS))
    units = [
        Unit(split, shard, range(len(source.items))[shard * size : (shard + 1) * size])
        for split, source in sources.items()
        for shard in range(math.ceil(len(source.items) / size))
    ]
    return size, units

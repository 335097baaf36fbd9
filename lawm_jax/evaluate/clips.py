"""Loads the clips that models are evaluated on, encoded once for all evaluations."""

from typing import NamedTuple

import numpy as np


class Clips(NamedTuple):
    """Holds n clips of one data source.

    Attributes:
      s: float32 [n, T, N, D], states.
      video: uint8 [n, F, H, W, 3], or None if the data source holds states.
      actions: float32 [n, F-1, U], or None.
      episodes: [n] str, the episode of each clip, used as bootstrap groups.
    """

    s: np.ndarray
    video: np.ndarray | None
    actions: np.ndarray | None
    episodes: np.ndarray


def held_out(config, name, encode, most=256, items=128, without=()):
    """Loads the fixed held-out clips of one data source as `Clips`.

    Args:
      config: a run's config.
      name: one of `catalog.names(config)`.
      encode: video uint8 [n, F, H, W, 3] -> states [n, T, N, D].
      most: maximum number of clips, evenly spaced, since all are kept in memory.
      items: maximum number of videos or episodes to read, evenly spaced.
      without: set of `pipeline.identities` to skip, since a model was trained on them.

    Raises:
      ValueError: no clip can be read.
    """
    loaded = _fixed(config, name, "test", encode, most, items, without)
    if loaded is None:
        raise ValueError(
            f"{name}: no held-out clip of {config.data.frames} frames can be read; data.holdout is "
            f"{config.data.get('holdout', 'none')}"
        )
    return loaded


def labelled(config, name, encode, items, most=1024):
    """Loads fixed clips of at most `items` training episodes as `Clips`; None if none can be read.

    Other arguments are as in `held_out`.
    """
    return _fixed(config, name, "train", encode, most, items)


def _fixed(config, name, split, encode, most, items, without=()):
    """Loads clips at fixed positions; None if none can be read."""
    from lawm_jax.data import pipeline

    clips = list(pipeline.episodes(config, name, split, most=items, without=without))
    if not clips:
        return None
    chosen = np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int)
    clips = [clips[i] for i in chosen]
    return collect(clips, encode)


def fixed(config, name, encode, count):
    """Loads held-out clips with actions for planning as `Clips`; clip i is drawn with seed i.

    Their episodes are evenly spaced in the data source, their positions in the episodes random.

    Args:
      config, name, encode: as in `held_out`.
      count: number of clips.

    Raises:
      ValueError: no clip can be read, or clips have no actions.
    """
    from lawm_jax.data import catalog, frames

    source, clips = catalog.source(config, name, "test"), []
    items = source.items
    for seed in range(count):
        first = seed * len(items) // count
        for i in range(first, first + len(items)):  # skips unreadable videos
            try:
                clip = source.clip(items[i % len(items)], np.random.default_rng(seed))
                break
            except frames.UnreadableVideo:
                continue
        else:
            raise ValueError(f"{name}: no held-out clip of {config.data.frames} frames can be read")
        if "actions" not in clip:
            raise ValueError(f"{name}: expected clips with actions, got {sorted(clip)}")
        clips.append(clip)
    return collect(clips, encode)


def training(config, name, encode, count):
    """Draws training clips of one data source as `Clips`, determined by the config's seed.

    Args:
      config, name, encode: as in `held_out`.
      count: number of clips.
    """
    import ml_collections

    from lawm_jax.data import pipeline

    config = ml_collections.ConfigDict(config.to_dict())
    config.data.update(batch=count, mixture=ml_collections.ConfigDict({name: 1.0}), workers=0)
    batch = {key: np.asarray(value) for key, value in next(pipeline.clips(config)).items()}
    clips = [{key: value[i] for key, value in batch.items()} for i in range(count)]
    return collect(clips, encode)


def collect(clips, encode):
    """Stacks and encodes clips of the same shape, dicts as a data source yields, as `Clips`."""
    stack = lambda key: np.stack([c[key] for c in clips]) if key in clips[0] else None  # noqa: E731
    video, states = stack("video"), stack("states")
    s = encode(video) if states is None else states.astype(np.float32)
    return Clips(s, video, stack("actions"), np.array([str(clip["episode"]) for clip in clips]))

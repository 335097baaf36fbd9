"""The clips that models are evaluated on: fixed, held out, encoded once for all evaluations."""

from typing import NamedTuple

import numpy as np


class Clips(NamedTuple):
    """Holds n clips of one source.

    Attributes:
      s: float32 [n, T, N, D], their states.
      video: uint8 [n, F, H, W, 3], or None where the source holds states.
      actions: float32 [n, F-1, U], or None where there are none.
      episodes: [n] str, the episode that each clip is of: the groups of every bootstrap.
    """

    s: np.ndarray
    video: np.ndarray | None
    actions: np.ndarray | None
    episodes: np.ndarray


def held_out(config, name, encode, most=256, items=128, without=()):
    """Loads the fixed held-out clips of one source.

    Args:
      config: a run's config.
      name: one of `pipeline.names(config)`.
      encode: video uint8 [n, F, H, W, 3] -> states [n, T, N, D].
      most: number of clips at most, evenly spread, since all are kept in memory.
      items: number of videos or episodes to read at most, evenly spread.
      without: set of `pipeline.identities` of those that some model was trained on.

    Returns:
      Clips.

    Raises:
      ValueError: no clip can be read.
    """
    from lawm_jax.data import pipeline

    clips = list(pipeline.episodes(config, name, most=items, without=without))
    if not clips:
        raise ValueError(f"{name}: no held-out clip of {config.data.frames} frames can be read")
    chosen = np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int)
    clips = [clips[i] for i in chosen]
    return _clips(clips, [str(clip["episode"]) for clip in clips], encode)


def fixed(config, name, encode, count):
    """Loads held-out clips with actions to plan on: number i is drawn by the seed i.

    Their episodes are evenly spread over the source, their places within them random.

    Args:
      config, name, encode: as in `held_out`.
      count: number of clips.

    Returns:
      Clips.

    Raises:
      ValueError: no clip can be read, or it has no actions.
    """
    from lawm_jax.data import frames, pipeline

    source, clips = pipeline.source(config, name, "test"), []
    items = source.items
    for seed in range(count):
        first = seed * len(items) // count
        for i in range(first, first + len(items)):  # the next one that can be read
            try:
                clip = source.clip(items[i % len(items)], np.random.default_rng(seed))
                break
            except frames.UnreadableVideo:
                continue
        else:
            raise ValueError(f"{name}: no held-out clip of {config.data.frames} frames can be read")
        if "actions" not in clip:
            raise ValueError(f"{name}: expected a source with actions, got {sorted(clip)}")
        clips.append(clip)
    return _clips(clips, [str(clip["episode"]) for clip in clips], encode)


def training(config, name, encode, count):
    """Draws clips of one source's training part, as `held_out`; the same for the same seed.

    Args:
      config, name, encode: as in `held_out`.
      count: number of clips.

    Returns:
      Clips.
    """
    import ml_collections

    from lawm_jax.data import pipeline

    config = ml_collections.ConfigDict(config.to_dict())
    config.data.update(batch=count, mixture=ml_collections.ConfigDict({name: 1.0}), workers=0)
    batch = {key: np.asarray(value) for key, value in next(pipeline.clips(config)).items()}
    clips = [{key: value[i] for key, value in batch.items()} for i in range(count)]
    return _clips(clips, [str(clip["episode"]) for clip in clips], encode)


def _clips(clips, episodes, encode):
    stack = lambda key: np.stack([c[key] for c in clips]) if key in clips[0] else None  # noqa: E731
    video, states = stack("video"), stack("states")
    s = encode(video) if states is None else states.astype(np.float32)
    return Clips(s, video, stack("actions"), np.array(episodes))

"""Data sources and input pipelines; imports neither JAX nor the rest of lawm_jax.

Each source has its own small file with a function `source(name, where, split, data, view,
**options)` that opens it, listed in `catalog.KINDS`. A source has

  name            the name used in error messages
  items           its files or episodes, in a fixed order
  clip(item, random)   a training clip of one item; `random`, a numpy Generator, draws its start and
                       its view
  fixed(item)     an iterator over non-overlapping clips, for evaluation
  parts(item, most, least=0)   an iterator over the whole item in parts of at most `most` frames
                       and, if possible, at least `least`, for ingest

and raises `frames.UnreadableVideo` if an item can't be read. A clip is a dict with `video` uint8
[F,H,W,3], `episode` (the item) and `start`; labeled clips add `actions` float32 [F-1,U] and `state`
float32 [F,k]. `episodes.Episodes` is the source for all data recorded in episodes; with view=None
it reads only the labels.
`pipeline.clips` and `pipeline.episodes` turn sources into training batches and evaluation clips.
"""

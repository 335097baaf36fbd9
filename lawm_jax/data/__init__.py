"""Clips of video for training and evaluation; imports nothing else of the package, nor JAX.

A source is opened by a function `source(name, where, split, data, view, **options)` in a small file
of its own, listed in `pipeline.KINDS`, and has

  name            what an error message calls it
  items           its files or episodes, in a fixed order
  clip(item, random)   a clip of one item to train on: where it starts and what it shows is drawn
                       by `random`, a numpy Generator
  fixed(item)     an iterator over non-overlapping clips, for evaluation
  parts(item, most, least=0)   an iterator over the whole item in parts of up to `most` frames, none
                       shorter than `least` where that can be, for ingest

and raises `frames.UnreadableVideo` where an item can't be read. A clip is a dict with `video` uint8
[F,H,W,3], `episode` (the item) and `start`; labelled ones add `actions` float32 [F-1,U] and `state`
float32 [F,k]. `episodes.Episodes` is such a source for everything that is recorded in episodes;
with view=None it reads labels alone.
`pipeline.clips` and `pipeline.episodes` turn sources into batches and evaluation clips.
"""

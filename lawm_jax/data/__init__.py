"""Clips of video for training and evaluation; imports nothing else of the package, nor JAX.

A source is one small class in one file: `video.Videos` (any folder of videos) and `mini.Mini` (the
embedded labelled set). It has

  name            what an error message calls it
  items           its files or episodes, as paths, in a fixed order
  clip(item, place)   the clip that starts at `place` in [0, 1) of the possible starts
  fixed(item)         an iterator over non-overlapping clips, for evaluation

and raises `video.UnreadableVideo` where an item can't be read. A clip is a dict with `video` uint8
[F,H,W,3], `episode` and `start`; labelled ones add `actions` float32 [F-1,U] and `state` float32
[F,k]. `pipeline.clips` and `pipeline.episodes` turn sources into batches and evaluation clips.
"""

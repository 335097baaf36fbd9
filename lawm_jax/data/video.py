"""Finds video files and reads clips from them by timestamp, with PyAV.

Codec, size, rate (constant or variable), orientation and shape of pixels may be any that FFmpeg
knows.
"""

import contextlib
import dataclasses
import glob
import logging
import os

import numpy as np

from lawm_jax.data import episodes, frames

UnreadableVideo = frames.UnreadableVideo
SUFFIXES = (".mp4", ".avi", ".mov", ".webm", ".mkv", ".m4v", ".mpg", ".mpeg")

# Containers are told apart by content, whatever the suffix says. Playlists are not among them and
# only local files are opened, so that no file can make the reader fetch another one.
_OPEN = {"format_whitelist": "mov,avi,matroska,mpeg,mpegts,mpegvideo", "protocol_whitelist": "file"}
_LOG = logging.getLogger(__name__)
_TICK = 1e-3  # seconds; Matroska rounds timestamps to it


@dataclasses.dataclass(frozen=True)
class Videos:
    """Reads clips from video files, by time.

    Attributes:
      name: what an error message calls it.
      items: paths.
      frames, fps, view: as in `read_clip`.
      jitter: the rate of a clip to train on lies between fps / (1 + jitter) and fps * (1 + jitter).
    """

    name: str
    items: tuple
    frames: int
    fps: float
    view: frames.View
    jitter: float = 0.0

    def clip(self, item, random):
        """Reads a clip of one file that starts anywhere, drawn by `random`."""
        place = random.random()
        view = self.view.drawn(random)
        fps = self.fps * (1 + self.jitter) ** random.uniform(-1, 1)
        return self._read(item, lambda latest: place * latest, fps, view)

    def fixed(self, item, most=4):
        """Yields up to `most` clips of one file, evenly spread and without overlap."""
        length = duration(item)
        # + _TICK: 16 s of Matroska may say 15.999 s
        count = max(1, min(most, int((length + _TICK) * self.fps / self.frames)))
        for start in np.arange(count) * length / count:
            yield self._read(item, start, self.fps, self.view)

    def _read(self, item, start, fps, view):
        return {**read_clip(item, start, self.frames, fps, view), "episode": item}


def source(name, where, split, data, view):
    """Opens video files: the source `videos:WHERE`.

    Args:
      name: what an error message calls it.
      where: as in `find_videos`.
      split: "train" or "test", see `split_videos`.
      data: has `frames`, `fps`, `holdout` and `augment.jitter`.
      view: `frames.View`.
    """
    train, test = split_videos(where, data.holdout)
    if train == test:
        _LOG.warning("%s is the only video: it is used for training and for testing", train[0])
    items = tuple(train if split == "train" else test)
    return Videos(name, items, data.frames, data.fps, view, data.augment.jitter)


def find_videos(pattern):
    """Finds video files.

    Args:
      pattern: a folder (searched at any depth), a file, a glob with `**`, or a list of those.

    Returns:
      The paths, sorted, each once; of folders and globs only files with a suffix in `SUFFIXES`.

    Raises:
      ValueError: a pattern matches no video.
    """
    return sorted(_keys(pattern))


def split_videos(pattern, holdout):
    """Splits video files into some to train on and some to test on.

    A hash of the path within the searched folder decides, so that a file stays on its side when
    others come or when the folder moves. Of two files or more each side gets one at least; a
    single file is on both sides.

    Args:
      pattern: as in `find_videos`.
      holdout: fraction of the files to test on, in [0, 1].

    Returns:
      train, test: sorted lists of paths.

    Raises:
      ValueError: a pattern matches no video.
    """
    keys = _keys(pattern)
    paths = sorted(keys)
    sides = episodes.split([keys[path] for path in paths], holdout)
    return tuple([paths[i] for i in side] for side in sides)


def duration(path):
    """Returns the length of a video in seconds, as a player shows it.

    Raises:
      UnreadableVideo: the file can't be opened as a video.
    """
    with _opened(path) as (container, stream):
        return _stated_end(container, stream) or _true_end(path)


def read_clip(path, start, count, fps, view):
    """Reads the frames that a player shows at `start`, `start + 1/fps`, ...

    Args:
      path: a local video file.
      start: seconds from the first frame, or a function from the latest possible start to it.
      count: number of frames F.
      fps: frames per second of the clip, whatever the file's rate.
      view: `frames.View`: what of the picture to show. A frame of just its size is left as it is.

    Returns:
      `video`, uint8 [F, size, size, 3] RGB, and `start`, seconds.

    Raises:
      UnreadableVideo: the file is no video, is too short, or is damaged where the clip lies.
    """
    import av

    span = (count - 1) / fps
    scaler = frames.Scaler(view)
    for trusting in (True, False):
        with _opened(path) as (container, stream):
            end = _stated_end(container, stream) if trusting else _true_end(path)
            if end <= span + _TICK:
                continue
            at = float(start(end - span) if callable(start) else start)
            times = at + np.arange(count) / fps
            try:
                picture = lambda frame: _picture(frame, scaler, stream)  # noqa: E731
                shown = _shown(container, stream, times, picture)
            except (av.FFmpegError, ValueError, ArithmeticError) as error:
                raise UnreadableVideo(path, f"at {at:.3g} s: {_reason(error)}", at) from error
            if len(shown) == count:
                return {"video": np.stack(shown), "start": at}
    if end <= span + _TICK:
        raise UnreadableVideo(path, f"{end:.3g} s long, needs more than {span:.3g} s")
    raise UnreadableVideo(path, f"no frame at {times[len(shown)]:.3g} s", at)


def _keys(pattern):
    """Maps each path that `pattern` matches to its path within the folder that was searched."""
    if not isinstance(pattern, str):
        return {path: key for one in reversed(pattern) for path, key in _keys(one).items()}
    pattern = os.path.expanduser(pattern)
    if os.path.isfile(pattern):
        return {pattern: os.path.basename(pattern)}
    root = pattern
    if os.path.isdir(pattern):
        found = glob.iglob(os.path.join(glob.escape(pattern), "**", "*"), recursive=True)
    else:
        found = glob.iglob(pattern, recursive=True)
        while glob.has_magic(root):
            root = os.path.dirname(root)
    paths = [p for p in found if p.lower().endswith(SUFFIXES) and os.path.isfile(p)]
    if not paths:
        raise ValueError(f"videos: no file with a suffix of {' '.join(SUFFIXES)} in {pattern!r}")
    return {path: os.path.relpath(path, root or ".").replace(os.sep, "/") for path in paths}


@contextlib.contextmanager
def _opened(path):
    """Opens a video and turns every error in it into `UnreadableVideo`."""
    import av

    try:
        if not os.path.getsize(path):
            raise UnreadableVideo(path, "empty file")
        # An absolute path can't be taken for a URL.
        where = os.path.abspath(path)
        with av.open(where, options=_OPEN, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise UnreadableVideo(path, "no video stream that can be decoded")
            # The pipeline reads many clips at a time: one thread each.
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError, ValueError, ArithmeticError) as error:
        raise UnreadableVideo(path, _reason(error)) from error


def _reason(error):
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _stated_end(container, stream):
    """Returns when the last frame stops being shown, in seconds, by the header; 0 if it is silent.

    It may promise too much (the file was cut, the sound is longer) or be an estimate.
    """
    if stream.duration and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    return max(container.duration or 0, 0) / 1e6


def _true_end(path):
    """Returns when the last frame stops being shown, in seconds, by looking at every packet."""
    end = 0
    with _opened(path) as (container, stream):  # afresh: not every file can be rewound
        for packet in container.demux(stream):
            shown = packet.dts if packet.pts is None else packet.pts  # AVI knows no pts
            if shown is not None:
                end = max(end, shown + (packet.duration or 0))
        return float((end - (stream.start_time or 0)) * stream.time_base)


def _shown(container, stream, times, picture):
    """Returns `picture` of the frames on screen at `times`, fewer if the video ends before."""
    import av

    tick, zero = stream.time_base, stream.start_time or 0
    # A keyframe may lie later than the index says: step back further, and at last to the top.
    for back in (0.0, 2.0, np.inf):
        target = max(times[0] - back, 0)
        if target:
            try:
                container.seek(int(target / tick) + zero, stream=stream)
            except av.FFmpegError:
                target = 0  # no index: read on, from the top
        elif back:
            container.seek(0)
        shown, last = [], None
        for frame in container.decode(stream):
            if frame.pts is None:
                raise ValueError("frame without a timestamp")
            now = float((frame.pts - zero) * tick)
            if last is None and now > times[0] + _TICK and target:
                break
            due = np.searchsorted(times, now - _TICK)  # so many times lie before this frame
            if last is not None and due > len(shown):
                shown += [picture(last)] * (due - len(shown))
            if len(shown) == len(times):
                return shown
            last = frame
        else:
            if last is not None:
                held = max(float((last.duration or 0) * tick), 1 / float(stream.average_rate or 25))
                due = np.searchsorted(times, now + 2 * held)
                if due > len(shown):
                    shown += [picture(last)] * (due - len(shown))
            return shown


def _picture(frame, scaler, stream):
    """Returns one frame as uint8 [size, size, 3]."""
    if frame.is_corrupt:
        raise ValueError("damaged frame")
    return scaler.frame(frame, float(stream.sample_aspect_ratio or 1))

"""Finds video files and reads clips from them by timestamp.

Supports any codec, size, constant or variable frame rate, orientation and pixel aspect ratio that
FFmpeg knows. Files may be local or on any fsspec file system, such as gs://BUCKET/FILE.
"""

import collections
import collections.abc
import dataclasses
import functools
import glob
import logging
import math
import os
import posixpath

import numpy as np

from lawm_jax.data import container, decode, episodes, errors, frames, lists
from lawm_jax.data import paths as paths_

UnreadableVideo = frames.UnreadableVideo
SUFFIXES = tuple(  # of the container formats that `container` opens
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .m1v .m2p .m2ts .m2v .m4v .mkv .mov .mp4 .mpe "
    ".mpeg .mpg .mts .mxf .ogg .ogm .ogv .qt .tod .ts .vob .webm .wmv .xvid".split()
)

_NEAR = 10.0  # seconds before the stated end; expected to contain a keyframe
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Videos:
    """A source of clips from video files, read by time.

    Attributes:
      name: name used in error messages.
      items: a sequence of paths and `lists.Part`s.
      frames, fps, view: as in `read_clip`.
      jitter: the rate of a training clip lies between fps / (1 + jitter) and fps * (1 + jitter).
    """

    name: str
    items: collections.abc.Sequence
    frames: int
    fps: float
    view: frames.View
    jitter: float = 0.0

    def clip(self, item, random):
        """Returns a clip of one item with start, rate and view drawn by `random`."""
        place = random.random()
        view = self.view.drawn(random)
        fps = self.fps * (1 + self.jitter) ** random.uniform(-1, 1)
        first = _part(item).start
        return self._read(item, lambda latest: first + place * (latest - first), fps, view)

    def fixed(self, item, most=4):
        """Yields up to `most` clips of one item, evenly spread and without overlap."""
        path, first, last = _part(item)
        length = min(duration(path), last) - first
        # + TICK, since a Matroska file of 16 s may state 15.999 s
        count = max(1, min(most, int((length + decode.TICK) * self.fps / self.frames)))
        for start in first + np.arange(count) * length / count:
            yield self._read(item, start, self.fps, self.view)

    def parts(self, item, most, least=0):
        """Yields one whole item, at `fps`, in parts of at most `most` frames.

        The frames equal those of `read_clip` at the same times. The item is read once, with at most
        `most + least` frames in memory. If the last part would be shorter than `least`, the last
        two are made equally long. Frames before a damaged position are yielded before the error is
        raised.

        Yields:
          Dicts of `video`, uint8 [n, size, size, 3] RGB, `start`, seconds, and `episode`.
        """
        path, first, last = _part(item)
        times = decode.Times(first, self.fps, math.inf)
        times = times._replace(count=times.before(last - decode.TICK))
        scaler, buffer, done, failure = frames.Scaler(self.view), [], 0, None

        def part(count):
            nonlocal done
            start, video = times.at(done), np.stack(buffer[:count])
            del buffer[:count]
            done += count
            return {"video": video, "start": start, "episode": str(item)}

        with container.opened(path) as film:
            try:
                for frame in decode.shown(film, times, _picture(film, scaler), grace=False):
                    buffer.append(frame)
                    if len(buffer) == most + least:
                        yield part(most)
                    film.deadline.restart()
            except UnreadableVideo as error:
                failure = error
            if film.broken and done + len(buffer) < times.count:
                failure = failure or UnreadableVideo(str(item), film.broken)
            if len(buffer) > most:
                even = len(buffer) >= 2 * least
                yield part((len(buffer) + 1) // 2 if even else most)
            if buffer:
                yield part(len(buffer))
        if failure or not done:
            raise failure or UnreadableVideo(str(item), f"no frame at {first:.3g} s")

    def _read(self, item, start, fps, view):
        path, *within = _part(item)
        clip = read_clip(path, start, self.frames, fps, view, tuple(within))
        return {**clip, "episode": str(item)}


def source(name, where, split, data, view):
    """Opens video files: the source `videos:WHERE`.

    Args:
      name: name used in error messages.
      where: as in `find_videos`.
      split: "train" or "test", see `split_videos`.
      data: has `frames`, `fps`, `holdout` and `augment.jitter`.
      view: `frames.View`.
    """
    train, test = split_videos(where, data.holdout)
    if train == test:
        _LOG.warning("%s is the only video: it is used for training and testing", train[0])
    items = train if split == "train" else test
    return Videos(name, items, data.frames, data.fps, view, data.augment.jitter)


def find_videos(pattern):
    """Finds video files.

    Args:
      pattern: a folder (searched recursively), a file, a glob with `**`, or a list of these; or a
        list file: FILE.txt with one path per line, or FILE.csv or FILE.parquet with a column
        `path`, relative to its folder. A path may have a start and an end in seconds, after tabs or
        in columns `start` and `end`, to read only that part. All of these may be URLs of fsspec
        file systems.

    Returns:
      For a list file, its items in order: a sequence of paths and `lists.Part`s. Otherwise the
      sorted, unique paths; from folders and globs only files with a suffix in `SUFFIXES`.

    Raises:
      ValueError: a pattern matches no video, a list file is invalid, or a file system is unknown.
    """
    return _listed(pattern) or sorted(_keys(pattern))


def split_videos(pattern, holdout):
    """Splits video files into a training and a test set.

    The split depends on a hash of the path, within the searched folder or as written in the list
    file: adding files or moving the folder doesn't move a file to the other set. Parts of a file
    share a set. With two or more files, each set gets at least one; a single file is in both.

    Args:
      pattern: as in `find_videos`.
      holdout: fraction of test files, in [0, 1].

    Returns:
      train, test: sequences as returned by `find_videos`.

    Raises:
      ValueError: as in `find_videos`.
    """
    listed = _listed(pattern)
    if listed:
        return listed.split(holdout)
    keys = _keys(pattern)
    paths = sorted(keys)
    sides = episodes.split([keys[path] for path in paths], holdout)
    return tuple([paths[i] for i in side] for side in sides)


def duration(path):
    """Returns the length of a video in seconds, as a player shows it.

    Raises:
      UnreadableVideo: the file can't be opened as a video.
    """
    with container.opened(path) as film:
        end = film.stated_end()
        if end and not film.stream.duration:  # `end` may be the end of the audio
            end = container.last_shown(film, max(0, end - _NEAR)) or 0
    return end or container.true_end(path)


def read_clip(path, start, count, fps, view, within=(0.0, math.inf)):
    """Reads the frames that a player shows at `start`, `start + 1/fps`, ...

    Args:
      path: path or URL of a video file, or `container.Slice`.
      start: seconds from the first frame, or a function that maps the latest possible start to the
        start.
      count: number of frames F.
      fps: frames per second of the clip, independent of the file's rate.
      view: `frames.View`: the part of the picture to show. Pictures of its size aren't scaled.
      within: start and end, in seconds, of the part of the video that must contain the clip.

    Returns:
      `video`, uint8 [F, size, size, 3] RGB, and `start`, seconds.

    Raises:
      UnreadableVideo: the file is not a video, is too short, is damaged within the clip, or takes
        longer than `container.LIMIT` to read.
    """
    span = (count - 1) / fps
    first, last = within
    deadline, scaler = container.Deadline(), frames.Scaler(view)
    # First trusts the stated duration. If the video then seems too short or yields too few frames,
    # reads all packets to find its true end.
    for trusting in (True, False):
        end = None if trusting else container.true_end(path, deadline)
        with container.opened(path, deadline) as film:
            end = min(film.stated_end() if trusting else end, last)
            if end - first <= span + decode.TICK:
                continue
            at = float(start(end - span) if callable(start) else start)
            times = decode.Times(at, fps, count)
            decoded = list(decode.shown(film, times, _picture(film, scaler)))
            if len(decoded) == count:
                return {"video": np.stack(decoded), "start": at}
    if end - first <= span + decode.TICK:
        part = "" if within == (0.0, math.inf) else str(lists.Part("", first, last))
        reason = f"{end - first:.3g} s long, but a clip needs more than {span:.3g} s"
        raise UnreadableVideo(f"{path}{part}", reason)
    reason = f"no frame at {times.at(len(decoded)):.3g} s"
    raise UnreadableVideo(path, f"{reason}: {film.broken}" if film.broken else reason, at)


def _picture(film, scaler):
    """Returns a function from an `av.VideoFrame` to uint8 [size, size, 3]."""

    def picture(frame):
        if frame.is_corrupt:
            raise ValueError("damaged frame")
        return scaler.frame(frame, float(film.stream.sample_aspect_ratio or 1))

    return picture


def _part(item):
    return item if isinstance(item, lists.Part) else lists.Part(item, 0.0, math.inf)


def _listed(pattern):
    """Reads the list file that `pattern` names.

    Returns:
      A nonempty `lists.Listed`, or None if `pattern` is not a list file.

    Raises:
      ValueError: it is one of several patterns, cannot be read, or is invalid.
    """
    several = [pattern] if isinstance(pattern, str) else pattern
    if not any(path.lower().endswith(lists.SUFFIXES) for path in several):
        return None
    if not isinstance(pattern, str):
        raise ValueError(
            "videos: expected either a single list file or a list of folders, files and globs, got "
            f"{pattern}"
        )
    try:
        if "://" in pattern:
            system, inside = paths_.file_system(pattern)
            with system.open(inside, "rb") as file:
                return lists.read(pattern, file)
        pattern = paths_.expand(pattern)
        with open(pattern, "rb") as file:
            return lists.read(pattern, file)
    except IsADirectoryError:  # a folder may be named like a list file
        return None
    except OSError as error:
        raise ValueError(f"videos: {pattern}: {errors.reason(error)}") from error


def _keys(pattern):
    """Maps each path that `pattern` matches to its path within the searched folder."""
    if not isinstance(pattern, str):
        # Reversed, so that the first pattern that matches a path determines its key.
        keys = {path: key for part in reversed(pattern) for path, key in _keys(part).items()}
        urls = [path for path in keys if "://" in path]
        local = paths_.once(path for path in keys if "://" not in path)
        return {path: keys[path] for path in [*urls, *local]}
    keys = _remote_keys(pattern) if "://" in pattern else _local_keys(pattern)
    if not keys:
        raise ValueError(
            f"videos: no file with one of the suffixes {' '.join(SUFFIXES)} in {pattern!r}; for "
            f"videos in tar files, use webdataset:{pattern}"
        )
    return keys


def _local_keys(pattern):
    pattern = paths_.expand(pattern)
    if pattern.lower().endswith(".tar"):
        raise ValueError(f"videos: expected a video, got a tar file; use webdataset:{pattern}")
    if os.path.isfile(pattern):
        return {pattern: os.path.basename(pattern)}
    if os.path.isdir(pattern):
        paths = _only_videos(pattern, paths_.below(pattern), all_of=True)
        return {os.path.join(pattern, key): key for key in paths}
    if not os.path.exists(pattern) and not glob.has_magic(pattern):
        raise ValueError(f"videos: no such file or folder: {os.path.abspath(pattern)!r}")
    root, paths = paths_.escaped(pattern)
    paths = paths_.matching(paths, SUFFIXES)
    return {path: os.path.relpath(path, root or ".").replace(os.sep, "/") for path in paths}


def _only_videos(where, paths, all_of):
    """Returns the paths with a video suffix; logs the other suffixes, once per folder."""
    paths = list(paths)
    videos = [path for path in paths if path.lower().endswith(SUFFIXES)]
    if all_of and len(videos) < len(paths):
        others = collections.Counter(
            posixpath.splitext(path)[1].lower() or "no suffix"
            for path in paths
            if not path.lower().endswith(SUFFIXES)
        )
        _warn_skipped(
            where, ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
        )
    return videos


@functools.cache  # logs each warning once per process
def _warn_skipped(where, others):
    _LOG.warning("%s: skipped files without a video suffix: %s", where, others)


def _remote_keys(pattern):
    system, root = paths_.file_system(pattern)
    try:
        if system.isfile(root):
            return {pattern: posixpath.basename(root)}
        recursive = not glob.has_magic(root) or system.isdir(root)
        matches = system.find(root) if recursive else system.glob(root)
    except OSError as error:
        raise ValueError(f"videos: {pattern}: {errors.reason(error)}") from error
    while not recursive and glob.has_magic(root):
        root = posixpath.dirname(root)
    paths = _only_videos(pattern, matches, all_of=recursive)
    return {
        paths_.url_in(pattern, system, path): posixpath.relpath(path, root or ".") for path in paths
    }

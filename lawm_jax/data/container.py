"""Opens local and remote video files with PyAV, safely for damaged and malicious files.

A file can't make the reader open another file, read for an unlimited time, or allocate memory by
its header alone.
"""

import contextlib
import dataclasses
import errno
import functools
import itertools
import os
import struct
import time
from typing import NamedTuple

from lawm_jax.data import errors, frames

UnreadableVideo = frames.UnreadableVideo
LIMIT = 30.0  # seconds of CPU time for a clip; a damaged file may keep a decoder busy for hours

_WAIT = 60.0  # seconds; timeout for a local file
BLOCK, _BLOCKS = 2**20, 8  # bytes per request to a remote file, and number of cached blocks
_PACKETS = 64  # maximum number of packets to read to find the first frame
_REORDERED = 16  # packets from the start of the file that contain the first three frames shown
BACK, _JUMP = 0.5, 10.0  # seconds; larger timestamp steps back and ahead are discontinuities
_BEFORE = 10.0  # seconds before the first frame, earlier than any packet
_RIFFS = 2**12  # maximum number of RIFF chunks of an AVI file, 1 GiB each
BUGS = TypeError, AttributeError, NameError, ImportError, AssertionError, MemoryError
# FFmpeg detects the format by content, not by suffix. Playlists, and protocols other than that of
# the file itself, are disabled, so that a file can't make FFmpeg read other files.
_OPEN = {
    "format_whitelist": "mov,avi,matroska,mpeg,mpegts,mpegvideo,asf,flv,gif,mxf,ogg,dv",
    "enable_drefs": "0",
    "max_pixels": str(frames.MAX_PIXELS),
}


class Slice(NamedTuple):
    """A video file that is a part of another file, such as a member of a tar file.

    Attributes:
      file: path or URL of the other file.
      name: name of the video within it; "" stands for the other file itself.
      start, size: position and length of the part in bytes.
      problem: why the part can't be read, or "" if it may be readable.
    """

    file: str
    name: str
    start: int = 0
    size: int = 0
    problem: str = ""

    def __str__(self):
        return f"{self.file}/{self.name}" if self.name else self.file

    __fspath__ = __str__


class Deadline:
    """Limits the time to read a clip, as CPU time of the thread, independent of the load."""

    def __init__(self):
        self.restart()

    def restart(self):
        """Sets the deadline to `LIMIT` from now."""
        self.until = time.thread_time() + LIMIT


@dataclasses.dataclass
class Film:
    """An open video file; see `opened`.

    Attributes:
      path: its path, URL or `Slice`.
      container, stream: the `av.container.InputContainer`, and its video stream.
      deadline: `Deadline`.
      remote: `Remote`, or None for a local file.
      read: bytes of the packets read since the last seek.
      unordered: whether the packets have no presentation timestamps.
      loose: whether some timestamps are guesses, and only the order of frames is reliable.
      broken: description of the timestamp discontinuity at which reading stopped, or "".
    """

    path: str | Slice
    container: object
    stream: object
    deadline: Deadline
    remote: object = None
    read: int = 0
    broken: str = ""

    def __post_init__(self):
        self._tick = self.stream.time_base
        # AVI stores no timestamps; FFmpeg derives those of reordered frames for old codecs only.
        name, codec = self.container.format.name, self.stream.codec_context
        late = codec.name in ("h264", "hevc") and codec.reorder_depth
        self.unordered = name == "avi" and late
        self.loose = name == "mpeg"  # FFmpeg's guess of a missing timestamp may be frames off
        # FFmpeg clips the timestamps of appended files to the length of the first one.
        self._unique = name == "mxf"
        self._first = []  # packets that were read to find the first frame
        self._zero = self._first_shown()

    @property
    def first(self):
        """The timestamp of the first frame."""
        return self._zero

    def check(self):
        """Raises UnreadableVideo once the time limit is exceeded, or the error of a remote file."""
        if self.remote:
            self.remote.check()
        if time.thread_time() > self.deadline.until:
            raise UnreadableVideo(self.path, f"reading took more than {LIMIT:g} s")

    def seconds(self, pts):
        """Converts a timestamp to seconds from the first frame."""
        return (pts - self._zero) * self._tick.numerator / self._tick.denominator

    def packets(self, start=0.0):
        """Seeks to a keyframe, if possible the last one before `start`, in seconds.

        Returns:
          An iterator over the packets from there on, and whether it begins at the file's start.
        """
        import av

        if self.container.format.name == "gif":  # a decoder needs the file's start
            start = 0
        if start > 0:
            try:
                self.container.seek(int(start / self._tick) + self._zero, stream=self.stream)
                self._first = None
            except av.FFmpegError:
                if self._first is None:
                    raise
                start = 0  # no index: read from the start
        if start <= 0 and self._first is None:
            # The first timestamp is arbitrary, and decoding timestamps start before it.
            top = min(self._zero, 0) - int(_BEFORE / self._tick)
            try:
                self.container.seek(top, stream=self.stream)
            except av.FFmpegError:  # FLV has no times before 0
                self.container.seek(0)
        first, self._first, self.read, self.broken = self._first or (), None, 0, ""
        return self._packets(first), start <= 0

    def _packets(self, first=()):
        """Yields the packets of `first` and those that follow, up to a timestamp discontinuity."""
        last, seen = None, set()
        for packet in itertools.chain(first, self.container.demux(self.stream)):
            self.check()
            if packet.dts is not None:
                step = 0 if last is None else float((packet.dts - last) * self._tick)
                if step < -BACK or step > self._most:
                    way = "backward" if step < 0 else "forward"
                    where = f"{self.seconds(last):.3g} s"
                    self.broken = f"timestamps jump {way} by {abs(step):.3g} s at {where}"
                    return
                last = packet.dts
            if self._unique and packet.pts is not None:
                if packet.pts in seen:
                    self.broken = f"a timestamp is repeated at {self.seconds(packet.pts):.3g} s"
                    return
                seen.add(packet.pts)
            self.read += packet.size
            yield packet
        self.check()

    @functools.cached_property
    def _most(self):
        """The longest step in seconds that isn't a discontinuity; inf if the format has none."""
        import av.format

        jumps = self.container.format.flags & av.format.Flags.ts_discont.value
        return _JUMP if jumps else float("inf")

    def _first_shown(self):
        """Returns the timestamp of the first frame that is shown.

        The container often states that of the audio, or 0. The packets determine it if they begin
        with a keyframe that no frame precedes; otherwise the first frame is decoded.
        """
        self._zero = 0
        packets = self._packets()
        if self.container.format.name == "avi":
            self._first = list(itertools.islice(packets, _REORDERED))
            stamps = [p.dts if self.unordered or p.pts is None else p.pts for p in self._first]
            low = _steady(sorted(stamp for stamp in stamps if stamp is not None))
        else:
            low = self._lowest(packets)
        return self._first_decoded(packets) if low is None else low

    def _lowest(self, packets):
        """Returns the lowest timestamp of a shown frame; None if the packets don't determine it."""
        low = horizon = None
        for packet in itertools.islice(packets, _PACKETS):
            self._first.append(packet)
            if packet.dts is None and packet.pts is None and not packet.size:
                break  # end of the file
            first = self._first[0]
            if packet.pts is None or not first.is_keyframe:
                return None
            if packet.dts is not None and packet.pts < packet.dts:
                return None
            if not packet.is_discard:  # discarded packets precede the start of an edit list
                low = packet.pts if low is None else min(low, packet.pts)
            if packet.dts is not None:
                horizon = packet.dts if horizon is None else max(horizon, packet.dts)
            if None not in (low, horizon) and horizon >= low:
                break
        return low if low is not None and (first.is_discard or low == first.pts) else None

    def _first_decoded(self, packets):
        """Returns the timestamp of the first frame that the decoder outputs."""
        import av

        decoder, pts = self.stream.codec_context, None
        more = (self._first.append(packet) or packet for packet in packets)
        with contextlib.suppress(av.FFmpegError, ValueError):
            for packet in itertools.chain(list(self._first), more):
                for frame in decoder.decode(packet):
                    pts = frame.pts if pts is None else pts
                if pts is not None or len(self._first) > 4 * _PACKETS:
                    break
        decoder.flush_buffers()
        if pts is None:
            return self.stream.start_time or 0
        return pts

    def display_time(self, frame):
        """Returns for how many seconds the last frame, given as a frame or packet, is shown."""
        stated = float((frame.duration or 0) * self._tick)
        return max(stated, 1 / float(self.stream.average_rate or 25))

    def following(self, frame):
        """Returns the expected timestamp of the next frame, at the average frame rate."""
        return frame.pts + round(1 / (self.stream.average_rate or 25) / self._tick)

    def stated_end(self):
        """Returns the time at which the last frame ends, according to the header; 0 if unknown.

        It may be too late (if the file was truncated or the audio is longer) or an estimate. If
        files were appended, the header describes only the first one.
        """
        if self.container.format.name == "gif" or self._is_joined_avi():
            return 0
        first = float(self._zero * self._tick)
        if self.stream.duration and self.stream.duration > 0:
            begin = float((self.stream.start_time or 0) * self._tick)
            return max(begin + float(self.stream.duration * self._tick) - first, 0)
        if not self.container.duration or self.container.duration < 0:
            return 0
        begin = (self.container.start_time or 0) / 1e6
        if self.container.format.name.startswith("matroska"):  # its duration counts from 0
            begin = min(begin, 0)
        return max(begin + self.container.duration / 1e6 - first, 0)

    def _is_joined_avi(self):
        """Returns whether a second AVI file follows the first one, as after `cat a.avi b.avi`."""
        at = 0
        for number in range(_RIFFS if self.container.format.name == "avi" else 0):
            name, size, kind = struct.unpack("<4sI4s", _bytes(self, at, 12).ljust(12))
            if name != b"RIFF" or not size:
                break
            if number and kind == b"AVI ":  # a long film's next part has another kind
                return True
            at += 8 + size + size % 2
        return False


def _bytes(film, at, size):
    """Returns up to `size` bytes of a film's file, from position `at` on."""
    file, start, length = _extent(film.path)
    size = size if length is None else max(0, min(size, length - at))
    if film.remote is None:
        with open(file, "rb") as opened:
            opened.seek(start + at)
            return opened.read(size)
    before = film.remote.tell()  # where FFmpeg expects to continue
    film.remote.seek(at)
    content = film.remote.read(size)
    film.remote.seek(before)
    return content


def _steady(stamps):
    """Returns the first timestamp of an AVI file, or None if there are no timestamps.

    If the audio begins first, FFmpeg puts the first frame before the gap, though it belongs after
    the gap.
    """
    if len(stamps) > 2 and stamps[1] - stamps[0] > 2 * (stamps[2] - stamps[1]) > 0:
        return 2 * stamps[1] - stamps[2]
    return stamps[0] if stamps else None


@contextlib.contextmanager
def opened(path, deadline=None):
    """Opens a video, and turns every error that it causes into `UnreadableVideo`.

    Args:
      path: local path, URL on an fsspec file system, or `Slice` of a file at either.
      deadline: a running `Deadline`; None starts a new one.

    Yields:
      `Film`.
    """
    import av

    deadline, remote = deadline or Deadline(), None
    # Before PyAV 19, metadata in another encoding than UTF-8, such as a title, was an error.
    lenient = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
    try:
        with contextlib.ExitStack() as stack:
            if isinstance(path, Slice) and path.problem:
                raise UnreadableVideo(path, path.problem)
            if "://" in _extent(path)[0]:
                file = remote = stack.enter_context(contextlib.closing(Remote(path)))
                protocols = "none"
            else:
                file, protocols = _local(path)
            options = _OPEN | {"protocol_whitelist": protocols}
            container = stack.enter_context(
                av.open(file, options=options, timeout=_WAIT, **lenient)
            )
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise UnreadableVideo(path, "no video stream that can be decoded")
            codec = stream.codec_context
            if codec.width * codec.height > frames.MAX_PIXELS:
                raise UnreadableVideo(
                    path, f"frames too large: {codec.width} x {codec.height} pixels"
                )
            codec.options = {"max_pixels": str(frames.MAX_PIXELS)}
            codec.thread_count = 1  # the pipeline reads many clips in parallel
            yield Film(path, container, stream, deadline, remote)
            if remote:
                remote.check()
    except UnreadableVideo:
        raise
    except (av.FFmpegError, OSError, ValueError, ArithmeticError) as error:
        cause = remote.error if remote and remote.error else error
        raise unreadable(path, cause) from cause
    except Exception as error:
        # Any exception from a remote file system, unless it indicates a bug.
        if remote and error is remote.error and not isinstance(error, BUGS):
            raise unreadable(path, error) from error
        raise


def _extent(path):
    """Returns the file of a path or `Slice`, and the start and size of the part in it to read.

    The size is None for the whole file.
    """
    return (path.file, path.start, path.size) if isinstance(path, Slice) else (path, 0, None)


def _local(path):
    """Returns FFmpeg's name for a local path or `Slice`, and the protocols that it needs."""
    file, start, size = _extent(path)
    end = os.path.getsize(file)
    if not (end if size is None else size):
        raise UnreadableVideo(path, "empty file")
    file = os.path.abspath(file)  # can't be mistaken for a URL
    if size is None:
        return file, "file"
    if start + size > end:
        reason = f"{path.file} ends at byte {end}, but this part of it ends at {start + size}"
        raise UnreadableVideo(path, reason)
    return f"subfile,,start,{start},end,{start + size},,:{file}", "subfile,file"


def unreadable(path, error, start=None, where=""):
    """Returns the UnreadableVideo for an error raised while a file was read.

    FFmpeg reports EIO for damaged files and for failing disks alike; reading the file tells which.
    """
    name, first, size = _extent(path)
    if "://" not in name and getattr(error, "errno", None) == errno.EIO:
        try:
            with open(name, "rb") as file:
                file.seek(first)
                while file.read(BLOCK) and (size is None or file.tell() < first + size):
                    pass
        except OSError as found:
            error.__cause__ = found
    return UnreadableVideo(path, where + errors.reason(error), start)


class Remote:
    """Wraps an fsspec file, or a part of one, for FFmpeg.

    Failed reads are retried. Errors are kept for `check`, as FFmpeg may treat them as the file's
    end.
    """

    def __init__(self, path, block=None):
        """Opens a URL or the `Slice` of one; `block` is the number of bytes per request."""
        import fsspec.core

        url, self._start, self._size = _extent(path)
        self._path, self.error, self._at = str(path), None, 0
        cache = {"cache_type": "blockcache", "cache_options": {"maxblocks": _BLOCKS}}

        def start():
            # The file system must stay referenced: without it, a file in an archive is closed.
            system, inside = fsspec.core.url_to_fs(url)
            return system, system.open(inside, "rb", block_size=block or BLOCK, **cache)

        try:
            self._system, self._file = errors.retried(start, self._path)
            if self._size is None:
                self._size = errors.retried(lambda: self._file.seek(0, os.SEEK_END), self._path)
        except BUGS:
            raise
        except Exception as error:  # any library may raise anything
            raise unreadable(path, error) from error
        if not self._size:
            raise UnreadableVideo(path, "empty file")

    def check(self):
        """Raises the error of an earlier read, if any."""
        if self.error:
            raise self.error

    def read(self, size):
        """Returns up to `size` bytes; no bytes after an error."""

        def again():
            self._file.seek(self._start + self._at)
            # fsspec 2025.3, which Colab uses, fails to read a block past the end.
            return self._file.read(max(0, min(size, self._size - self._at)))

        if self.error:
            return b""
        try:
            data = errors.retried(again, self._path)
        except Exception as error:
            self.error = error
            return b""
        self._at += len(data)
        return data

    def seek(self, offset, whence=os.SEEK_SET):
        """Moves to a position and returns it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self):
        """Returns the current position."""
        return self._at

    def close(self):
        """Closes the file."""
        self._file.close()


def true_end(path, deadline=None):
    """Returns the time at which the last frame ends, in seconds, by reading every packet."""
    with opened(path, deadline) as film:
        return last_shown(film, 0.0) or 0


def last_shown(film, start):
    """Returns the end of the last frame from `start` on, in seconds; None if there is no frame."""
    end = None
    for packet in film.packets(start)[0]:
        pts = packet.dts if packet.pts is None else packet.pts  # AVI stores no pts
        if pts is not None:
            until = pts + (packet.duration or 0)
            end = until if end is None else max(end, until)
    return None if end is None else film.seconds(end)

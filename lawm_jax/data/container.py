"""Opens local and remote video files with PyAV, and guards against damaged and malicious ones.

A file can't make the reader open another file, is read in a limited time, and can't make it
allocate memory by its header alone.
"""

import contextlib
import dataclasses
import errno
import functools
import itertools
import os
import time

from lawm_jax.data import errors, frames

UnreadableVideo = frames.UnreadableVideo
LIMIT = 30.0  # seconds of CPU time for a clip; a damaged file may keep a decoder busy for hours

_WAIT = 60.0  # seconds for a local file to answer
_BLOCK, _BLOCKS = 2**20, 8  # of a remote file: bytes to fetch at once, and blocks to keep
_PACKETS = 64  # that are read at most to find the first frame
_REORDERED = 16  # packets from the top that hold the first three frames to show
BACK, _JUMP = 0.5, 10.0  # seconds back and ahead from which on a clock has changed
_BEFORE = 10.0  # seconds before everything
_BUGS = TypeError, AttributeError, NameError, ImportError, AssertionError, MemoryError
# Containers are told apart by content, whatever the suffix says. Playlists are not among them and
# protocols but that of the file itself are refused, so that it can't name others to read.
_OPEN = {
    "format_whitelist": "mov,avi,matroska,mpeg,mpegts,mpegvideo,asf,flv,gif,mxf,ogg,dv",
    "enable_drefs": "0",
    "max_pixels": str(frames.MAX_PIXELS),
}


class Clock:
    """Limits the time that reading may take, in CPU time of the thread, whatever the load."""

    def __init__(self):
        self.restart()

    def restart(self):
        """Grants `LIMIT` from now on."""
        self.until = time.thread_time() + LIMIT


@dataclasses.dataclass
class Film:
    """An open video file; see `opened`.

    Attributes:
      path: its path or URL.
      container, stream: the `av.container.InputContainer`, and its video stream.
      clock: `Clock`.
      remote: `_Remote`, or None for a local file.
      read: bytes of packets since it last moved.
      unordered: whether packets don't tell when their frames are shown.
      loose: whether some timestamps are guesses, and only the order of frames is sure.
      broken: why nothing is read beyond a place where timestamps go back or jump, "" before that.
    """

    path: str
    container: object
    stream: object
    clock: Clock
    remote: object = None
    read: int = 0
    broken: str = ""

    def __post_init__(self):
        self._tick = self.stream.time_base
        # AVI knows no timestamps; FFmpeg finds those of frames out of order for older codecs only.
        name, codec = self.container.format.name, self.stream.codec_context
        late = codec.name in ("h264", "hevc") and codec.reorder_depth
        self.unordered = name == "avi" and late
        self.loose = name == "mpeg"  # where a packet has none, FFmpeg may be frames off
        self._first = []  # packets from the top that were read to find the first frame
        self._zero = self._first_shown()

    @property
    def first(self):
        """The timestamp of the first frame."""
        return self._zero

    def check(self):
        """Raises UnreadableVideo once the time is over, and what a remote file raised."""
        if self.remote:
            self.remote.check()
        if time.thread_time() > self.clock.until:
            raise UnreadableVideo(self.path, f"took more than {LIMIT:g} s")

    def seconds(self, pts):
        """Converts a timestamp to seconds from the first frame."""
        return (pts - self._zero) * self._tick.numerator / self._tick.denominator

    def packets(self, start=0.0):
        """Goes to a keyframe, if possible the last one before `start`, in seconds.

        Returns:
          An iterator over the packets from there on, and whether there are none before them.
        """
        import av

        if start > 0:
            try:
                self.container.seek(int(start / self._tick) + self._zero, stream=self.stream)
                self._first = None
            except av.FFmpegError:
                if self._first is None:
                    raise
                start = 0  # no index: read on, from the top
        if start <= 0 and self._first is None:
            # The first timestamp may be any, and that of decoding lies before it.
            top = min(self._zero, 0) - int(_BEFORE / self._tick)
            try:
                self.container.seek(top, stream=self.stream)
            except av.FFmpegError:  # FLV knows no time before 0
                self.container.seek(0)
        first, self._first, self.read, self.broken = self._first or (), None, 0, ""
        return self._packets(first), start <= 0

    def _packets(self, first=()):
        """Yields packets, those of `first` and what follows, up to where the clock breaks."""
        last = None
        for packet in itertools.chain(first, self.container.demux(self.stream)):
            self.check()
            if packet.dts is not None:
                step = 0 if last is None else float((packet.dts - last) * self._tick)
                if step < -BACK or step > self._most:
                    way = "go back" if step < 0 else "jump"
                    where = f"{self.seconds(last):.3g} s"
                    self.broken = f"timestamps {way} by {abs(step):.3g} s at {where}"
                    return
                last = packet.dts
            self.read += packet.size
            yield packet
        self.check()

    @functools.cached_property
    def _most(self):
        """The longest step, in seconds, that is no jump of the clock, as FFmpeg has it."""
        import av.format

        jumps = self.container.format.flags & av.format.Flags.ts_discont.value
        return _JUMP if jumps else float("inf")

    def _first_shown(self):
        """Returns the timestamp of the first frame that is shown.

        What the container states is often that of the sound, or 0. The packets tell it where they
        begin with a keyframe that nothing precedes; else the first frame is decoded.
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
        """Returns the lowest timestamp of a frame to show; None where packets don't tell it."""
        low = horizon = None
        for packet in itertools.islice(packets, _PACKETS):
            self._first.append(packet)
            if packet.dts is None and packet.pts is None and not packet.size:
                break  # the end
            first = self._first[0]
            if packet.pts is None or not first.is_keyframe:
                return None
            if packet.dts is not None and packet.pts < packet.dts:
                return None
            if not packet.is_discard:  # before the start of an edit list
                low = packet.pts if low is None else min(low, packet.pts)
            if packet.dts is not None:
                horizon = packet.dts if horizon is None else max(horizon, packet.dts)
            if None not in (low, horizon) and horizon >= low:
                break
        return low if low is not None and (first.is_discard or low == first.pts) else None

    def _first_decoded(self, packets):
        """Returns the timestamp of the first frame that a decoder gives."""
        import av

        decoder, found = self.stream.codec_context, None
        more = (self._first.append(packet) or packet for packet in packets)
        with contextlib.suppress(av.FFmpegError, ValueError):
            for packet in itertools.chain(list(self._first), more):
                for frame in decoder.decode(packet):
                    found = frame.pts if found is None else found
                if found is not None or len(self._first) > 4 * _PACKETS:
                    break
        decoder.flush_buffers()
        if found is None:
            return self.stream.start_time or 0
        return found

    def held(self, shown):
        """Returns for how many seconds the last frame, or its packet, is shown."""
        stated = float((shown.duration or 0) * self._tick)
        return max(stated, 1 / float(self.stream.average_rate or 25))

    def following(self, shown):
        """Returns the timestamp of the frame after one, if it comes when it should."""
        return shown.pts + round(1 / (self.stream.average_rate or 25) / self._tick)

    def stated_end(self):
        """Returns when the last frame stops being shown, by the header; 0 if it is silent.

        It may promise too much (the file was cut, the sound is longer) or be an estimate.
        """
        first = float(self._zero * self._tick)
        if self.stream.duration and self.stream.duration > 0:
            begin = float((self.stream.start_time or 0) * self._tick)
            return max(begin + float(self.stream.duration * self._tick) - first, 0)
        if not self.container.duration or self.container.duration < 0:
            return 0
        begin = (self.container.start_time or 0) / 1e6
        if self.container.format.name.startswith("matroska"):  # its length counts from 0
            begin = min(begin, 0)
        return max(begin + self.container.duration / 1e6 - first, 0)


def _steady(stamps):
    """Returns the first timestamp of an AVI file, or None where it has none.

    Where the sound begins first, FFmpeg writes the first frame, then the gap: the frame belongs to
    its end.
    """
    if len(stamps) > 2 and stamps[1] - stamps[0] > 2 * (stamps[2] - stamps[1]) > 0:
        return 2 * stamps[1] - stamps[2]
    return stamps[0] if stamps else None


@contextlib.contextmanager
def opened(path, clock=None):
    """Opens a video, and turns every error in it into `UnreadableVideo`.

    Args:
      path: of a local file, or the URL of one on a file system of fsspec.
      clock: the `Clock` that runs; None starts one.

    Yields:
      `Film`.
    """
    import av

    clock, remote = clock or Clock(), None
    # PyAV 19 always reads what is no UTF-8; before it, a title in Latin-1 was an error.
    lenient = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
    try:
        with contextlib.ExitStack() as stack:
            if "://" in path:
                file = remote = stack.enter_context(contextlib.closing(_Remote(path)))
                options = _OPEN | {"protocol_whitelist": "none"}
            else:
                # An absolute path can't be taken for a URL.
                file, options = os.path.abspath(path), _OPEN | {"protocol_whitelist": "file"}
                if not os.path.getsize(path):
                    raise UnreadableVideo(path, "empty file")
            container = stack.enter_context(
                av.open(file, options=options, timeout=_WAIT, **lenient)
            )
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise UnreadableVideo(path, "no video stream that can be decoded")
            codec = stream.codec_context
            if codec.width * codec.height > frames.MAX_PIXELS:
                raise UnreadableVideo(path, f"pictures of {codec.width} x {codec.height} pixels")
            codec.options = {"max_pixels": str(frames.MAX_PIXELS)}
            codec.thread_count = 1  # the pipeline reads many clips at a time
            yield Film(path, container, stream, clock, remote)
            if remote:
                remote.check()
    except UnreadableVideo:
        raise
    except (av.FFmpegError, OSError, ValueError, ArithmeticError) as error:
        cause = remote.error if remote and remote.error else error
        raise unreadable(path, cause) from cause
    except Exception as error:
        # Whatever a remote file system raised, but no bug.
        if remote and error is remote.error and not isinstance(error, _BUGS):
            raise unreadable(path, error) from error
        raise


def unreadable(path, error, start=None, where=""):
    """Returns the UnreadableVideo for an error that came up while a file was read.

    Where FFmpeg met an error of input, which may be damage, reading the file tells.
    """
    if "://" not in path and getattr(error, "errno", None) == errno.EIO:
        try:
            with open(path, "rb") as file:
                while file.read(_BLOCK):
                    pass
        except OSError as found:
            error.__cause__ = found
    return UnreadableVideo(path, where + errors.reason(error), start)


class _Remote:
    """A file of fsspec as FFmpeg reads it.

    What the system failed to give is asked for again. An error is kept for `check`: FFmpeg might
    take it for the end of the file.
    """

    def __init__(self, path):
        import fsspec.core

        self._path, self.error, self._at = path, None, 0
        cache = {"cache_type": "blockcache", "cache_options": {"maxblocks": _BLOCKS}}

        def start():
            # Without its file system, a file in an archive would be closed.
            system, inside = fsspec.core.url_to_fs(path)
            return system, system.open(inside, "rb", block_size=_BLOCK, **cache)

        try:
            self._system, self._file = errors.retried(start, path)
            self._size = errors.retried(lambda: self._file.seek(0, os.SEEK_END), path)
        except _BUGS:
            raise
        except Exception as error:  # of any library
            raise unreadable(path, error) from error
        if not self._size:
            raise UnreadableVideo(path, "empty file")

    def check(self):
        """Raises the error that was met, if any."""
        if self.error:
            raise self.error

    def read(self, size):
        """Returns up to `size` bytes; none after an error."""

        def again():
            self._file.seek(self._at)
            # fsspec 2025.3, which Colab has, refuses to read a block past the end.
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
        """Moves, and returns to where."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self):
        """Returns where the next byte comes from."""
        return self._at

    def close(self):
        """Closes the file."""
        self._file.close()


def true_end(path, clock=None):
    """Returns when the last frame stops being shown, in seconds, by looking at every packet."""
    with opened(path, clock) as film:
        return last_shown(film, 0.0) or 0


def last_shown(film, start):
    """Returns when the last frame from `start` on stops being shown, in seconds; None: no frame."""
    end = None
    for packet in film.packets(start)[0]:
        shown = packet.dts if packet.pts is None else packet.pts  # AVI knows no pts
        if shown is not None:
            until = shown + (packet.duration or 0)
            end = until if end is None else max(end, until)
    return None if end is None else film.seconds(end)

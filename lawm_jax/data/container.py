"""Opens video files, local or remote, with PyAV, whatever is in them: damage, lies, traps.

A file never makes the reader open another one, takes a limited time, and costs no memory that its
header merely promises.
"""

import contextlib
import dataclasses
import os
import time

from lawm_jax.data import frames

UnreadableVideo = frames.UnreadableVideo
LIMIT = 30.0  # seconds of CPU time for a clip; a damaged file may keep a decoder busy for hours

_WAIT = 60.0  # seconds for a local file to answer
_BLOCK, _BLOCKS = 2**20, 8  # of a remote file: bytes to fetch at once, and blocks to keep
# Containers are told apart by content, whatever the suffix says. Playlists are not among them and
# protocols but that of the file itself are refused, so that it can't name others to read.
_OPEN = {
    "format_whitelist": "mov,avi,matroska,mpeg,mpegts,mpegvideo",
    "enable_drefs": "0",
    "max_pixels": str(frames.MAX_PIXELS),
}


class Clock:
    """Ends what takes too long: counts the CPU time of the thread, so that load doesn't matter."""

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
      read: bytes of packets since it last moved.
      unordered: whether packets don't tell when their frames are shown.
    """

    path: str
    container: object
    stream: object
    clock: Clock
    read: int = 0

    def __post_init__(self):
        self._tick, self._zero = self.stream.time_base, self.stream.start_time or 0
        self._moved = False
        # AVI knows no timestamps; FFmpeg finds those of frames out of order for older codecs only.
        name, codec = self.container.format.name, self.stream.codec_context
        self.unordered = name == "avi" and codec.name in ("h264", "hevc") and codec.reorder_depth

    def check(self):
        """Raises UnreadableVideo once the time is over."""
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
            except av.FFmpegError:
                if self._moved:
                    raise
                start = 0  # no index: read on, from the top
        elif self._moved:
            self.container.seek(0)
        self._moved, self.read = True, 0
        return self._packets(), start <= 0

    def _packets(self):
        for packet in self.container.demux(self.stream):
            self.check()
            self.read += packet.size
            yield packet

    def held(self, shown):
        """Returns for how many seconds the last frame, or its packet, is shown."""
        stated = float((shown.duration or 0) * self._tick)
        return max(stated, 1 / float(self.stream.average_rate or 25))

    def stated_end(self):
        """Returns when the last frame stops being shown, by the header; 0 if it is silent.

        It may promise too much (the file was cut, the sound is longer) or be an estimate.
        """
        if self.stream.duration and self.stream.duration > 0:
            return float(self.stream.duration * self._tick)
        return max(self.container.duration or 0, 0) / 1e6


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

    clock = clock or Clock()
    usual = av.FFmpegError, OSError, ValueError, ArithmeticError
    try:
        with contextlib.ExitStack() as stack:
            file, options = _file(path, stack)
            container = stack.enter_context(
                av.open(file, options=options, metadata_errors="replace", timeout=_WAIT)
            )
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise UnreadableVideo(path, "no video stream that can be decoded")
            codec = stream.codec_context
            if codec.width * codec.height > frames.MAX_PIXELS:
                raise UnreadableVideo(path, f"pictures of {codec.width} x {codec.height} pixels")
            codec.options = {"max_pixels": str(frames.MAX_PIXELS)}
            codec.thread_count = 1  # the pipeline reads many clips at a time
            yield Film(path, container, stream, clock)
    except UnreadableVideo:
        raise
    except Exception as error:  # a remote file system may raise anything
        if "://" in path or isinstance(error, usual):
            raise UnreadableVideo(path, reason(error)) from error
        raise


def _file(path, stack):
    """Returns what PyAV is to open and with which options; `stack` closes it."""
    if "://" not in path:
        if not os.path.getsize(path):
            raise UnreadableVideo(path, "empty file")
        # An absolute path can't be taken for a URL.
        return os.path.abspath(path), _OPEN | {"protocol_whitelist": "file"}
    import fsspec.core

    system, inside = fsspec.core.url_to_fs(path)
    cache = {"cache_type": "blockcache", "cache_options": {"maxblocks": _BLOCKS}}
    file = stack.enter_context(system.open(inside, "rb", block_size=_BLOCK, **cache))
    if not file.seek(0, os.SEEK_END):
        raise UnreadableVideo(path, "empty file")
    file.seek(0)
    return file, _OPEN | {"protocol_whitelist": "none"}


def reason(error):
    """Returns what to tell about an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def true_end(path, clock=None):
    """Returns when the last frame stops being shown, in seconds, by looking at every packet."""
    end = 0
    with opened(path, clock) as film:
        for packet in film.packets()[0]:
            shown = packet.dts if packet.pts is None else packet.pts  # AVI knows no pts
            if shown is not None:
                end = max(end, shown + (packet.duration or 0))
        return film.seconds(end)

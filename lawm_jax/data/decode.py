"""Decodes the video frames that are on screen at requested times.

The packets' timestamps determine these frames before anything is decoded. Frames that no other
frame refers to are decoded only if requested, and nothing is decoded between a requested frame and
the next keyframe. If the timestamps are unreliable, every frame is decoded.
"""

import bisect
import collections
import contextlib
import itertools
import math
from typing import NamedTuple

from lawm_jax.data import container

TICK = 1e-3  # seconds; Matroska rounds timestamps to it

PACKETS, _BYTES = 512, 2**25  # limits of the packets held in memory
_LONGEST = 600.0  # seconds that a frame may be shown; more results from a wrong timestamp
# Seconds to seek back, tried in turn: a keyframe may come later than the index says.
_BACK = 0.0, 2.0, 12.0, math.inf


class Times(NamedTuple):
    """The `count` times start, start + 1 / fps, ..., in seconds from the first frame."""

    start: float
    fps: float
    count: float

    def at(self, number):
        """Returns the time with the given number."""
        return self.start + number / self.fps

    def before(self, limit):
        """Returns the number of times before `limit`."""
        if limit == math.inf:
            return self.count
        number = max(0, math.ceil((limit - self.start) * self.fps) - 1)
        while number < self.count and self.at(number) < limit:
            number += 1
        return min(number, self.count)


class Doubtful(Exception):
    """Raised if the packets don't determine which frames are shown when."""


def shown(film, times, picture, grace=True):
    """Yields `picture(frame)` for the frame on screen at each time, fewer if the video ends early.

    Args:
      film: `Film`, just opened.
      times: `Times`.
      picture: function of an `av.VideoFrame`.
      grace: whether the last frame is shown for twice its duration.
    """
    import av

    errors = av.FFmpegError, ValueError, ArithmeticError
    done = 0
    with contextlib.suppress(Doubtful, *errors):
        for value in _repeat(_decode_requested(film, times, grace), times, picture):
            done += 1
            yield value
        return
    with container.opened(film.path, film.deadline) as fresh:
        try:
            for value in _repeat(_decode_all(fresh, times, done, grace), times, picture):
                done += 1
                yield value
        except errors as error:
            where = f"at {times.at(done):.3g} s: "
            raise container.unreadable(film.path, error, times.start, where) from error
        film.broken = fresh.broken


def _repeat(counted, times, picture):
    """Yields `picture(frame)` as often as each frame is requested."""
    for frame, count in counted:
        if count > _LONGEST * times.fps:
            raise ValueError(
                f"a frame is shown for {count / times.fps:.3g} s, longer than {_LONGEST:g} s"
            )
        value = picture(frame)
        yield from itertools.repeat(value, count)


def _decode_all(film, times, done, grace):
    """Decodes all frames; yields each requested frame and its number of times, from `done` on."""
    for back in _BACK:
        # If timestamps may be wrong, start earlier: the preceding frames correct them.
        packets, top = film.packets(times.at(done) - back - (_BACK[1] if film.loose else 0))
        last, wrong = None, 0
        for frame in _frames(film, packets):
            if frame.pts is None:
                raise ValueError("a frame has no timestamp")
            now = film.seconds(frame.pts)
            if last is not None and now < film.seconds(last.pts) - TICK:
                if wrong > 1 and not top:
                    break  # all timestamps from this keyframe on may be wrong
                if not film.loose or now < film.seconds(last.pts) - container.BACK:
                    raise ValueError(
                        f"timestamps jump backward after {film.seconds(last.pts):.3g} s"
                    )
                frame.pts, wrong = film.following(last), wrong + 1
                now = film.seconds(frame.pts)
            else:
                wrong = 0
            if last is None and not top:
                # An H.264 decoder outputs complete frames only; others need a keyframe first.
                complete = frame.key_frame or film.stream.codec_context.name == "h264"
                if now > times.at(done) + TICK or not complete:
                    break
            due = times.before(now - TICK)
            if last is not None and due > done:
                yield last, due - done
                done = due
            if done == times.count:
                return
            last = frame
        else:
            if last is None and not top and film.read:
                continue  # there are packets, but none is a keyframe
            due = times.before(_end_time(film, last, grace)) if last else done
            if due > done:
                yield last, due - done
            return


def _frames(film, packets):
    """Yields the decoded frames of packets."""
    following = None  # next timestamp, if only the order of the frames determines it
    for packet in packets:
        if film.unordered and following is None and packet.is_keyframe:
            following = max(packet.dts, film.first)
        for frame in film.stream.codec_context.decode(packet):
            film.check()
            if following is not None:
                frame.pts, following = following, following + 1
            yield frame
    if film.broken:  # otherwise the last packet, an empty one, has flushed the decoder
        yield from film.stream.codec_context.decode(None)


def _end_time(film, frame, grace):
    """Returns the end, in seconds, of the last frame, which is given as a frame or packet."""
    duration = film.display_time(frame)
    return film.seconds(frame.pts) + (2 * duration if grace else duration - TICK)


def _decode_requested(film, times, grace):
    """Yields the same as `_decode_all` but decodes as little as possible; may raise `Doubtful`."""
    decoder = film.stream.codec_context
    if film.unordered or film.loose:
        raise Doubtful
    skips = _skips(decoder)
    due, entry, last = {}, None, -math.inf

    def wanted(decoded):
        nonlocal last
        for frame in decoded:
            film.check()
            if frame.pts is None or not last < frame.pts <= min(due, default=math.inf):
                raise Doubtful
            if frame.pts == entry and not frame.key_frame:
                raise Doubtful
            last = frame.pts
            count = due.pop(last, 0)
            if count:
                yield frame, count

    for packet, count, enters in plan_packets(film, times, grace):
        if enters:
            if entry is not None:
                yield from wanted(decoder.decode(None))
                decoder.flush_buffers()
            entry, last = packet.pts, -math.inf
        if count:
            due[packet.pts] = count
        decoder.skip_frame = "DEFAULT" if count or enters or not skips else "NONREF"
        yield from wanted(decoder.decode(packet))
    yield from wanted(decoder.decode(None))
    if due:
        raise Doubtful


def plan_packets(film, times, grace):
    """Chooses the packets to decode, from their timestamps alone.

    Packets are read in decoding order and wait in a queue. Whenever it is full, and at the end:

    1. The requested times that show each frame are counted, see `_Counts`. The last frames of the
       queue have no count yet.
    2. `_needed` finds the packets whose frame is requested, or to which such a frame may refer.
    3. All packets before the first one without a count leave the queue: they are yielded if they
       are needed, and skipped otherwise.

    Args:
      film, times, grace: as in `shown`.

    Yields:
      packet: the next packet to decode.
      count: the number of requested times that show its frame.
      enters: whether it is the first packet or follows skipped ones, so that the decoder restarts.

    Raises:
      Doubtful: the timestamps are inconsistent, or more packets than the queue may hold do not
        determine when a frame is shown.
    """
    packets = entry_packets(film, times.start)
    queue, counts = collections.deque(), _Counts(film, times)
    more, enters = True, True
    while more:
        waiting = len(queue)
        more = _fetch(film, times, packets, queue)
        for packet in itertools.islice(queue, waiting, None):
            counts.add(packet)
        if more:
            counts.update()
        else:
            counts.finish(max(queue, key=lambda packet: packet.pts), grace)
        if not counts.known(queue[0]):
            raise Doubtful
        needed = _needed(queue, counts)
        while queue and counts.known(queue[0]):
            packet, decode = queue.popleft(), needed.popleft()
            count = counts.pop(packet)
            if decode:
                yield packet, count, enters
            enters = not decode


class _Counts:
    """Counts the requested times that show the frame of each packet in the queue.

    A frame is shown until the next larger timestamp. In decoding order, the packet with that
    timestamp may come earlier or later, but no later than the first packet whose decoding timestamp
    is as large.

    Attributes:
      horizon: largest decoding timestamp so far; no later packet has a smaller timestamp.
    """

    def __init__(self, film, times):
        self._film, self._times = film, times
        self._counts = {}  # timestamp of a packet in the queue -> count, None while unknown
        self._done, self._last = 0, -math.inf  # times counted so far, for frames up to `_last`
        self.horizon = -math.inf

    def add(self, packet):
        """Adds the next packet in decoding order; raises Doubtful if its timestamps are wrong."""
        pts, dts = packet.pts, packet.dts
        if pts is None or not packet.size or pts in self._counts or pts <= self._last:
            raise Doubtful
        if dts is not None:
            if pts < dts:
                raise Doubtful
            self.horizon = max(dts, self.horizon)
        self._counts[pts] = None

    def update(self):
        """Counts the times of every frame for which the next frame shown is known."""
        unknown = sorted(pts for pts, count in self._counts.items() if count is None)
        sure = unknown[: bisect.bisect(unknown, self.horizon)]
        for pts, following in itertools.pairwise(sure):
            self._count(pts, self._film.seconds(following) - TICK)

    def finish(self, final, grace):
        """Counts the times of all remaining frames; `final` is the packet of the last one shown."""
        self.horizon = math.inf
        self.update()
        self._count(final.pts, _end_time(self._film, final, grace))

    def _count(self, pts, end):
        """Counts the times of the next frame in the order shown, which ends after `end` seconds."""
        due = max(self._done, self._times.before(end))
        self._counts[pts], self._done, self._last = due - self._done, due, pts

    def known(self, packet):
        """Returns whether the packet's count is known."""
        return self._counts[packet.pts] is not None

    def requested(self, packet):
        """Returns whether the packet's frame is requested, or may be."""
        return self._counts[packet.pts] != 0

    def pop(self, packet):
        """Returns the packet's count, and removes the packet."""
        return self._counts.pop(packet.pts)


def _needed(queue, counts):
    """Returns whether each packet of the queue must be decoded.

    A frame may refer to all packets back to the closest keyframe. If the frame is shown before that
    keyframe, it may also refer to packets before the keyframe.
    """
    needed = collections.deque()
    # Timestamp of the earliest requested frame that may refer to the packet; inf if there is none.
    earliest = counts.horizon  # packets that are not in the queue yet may be requested
    for packet in reversed(queue):
        if counts.requested(packet):
            earliest = min(earliest, packet.pts)
        needed.appendleft(earliest < math.inf)
        if packet.is_keyframe and packet.pts <= earliest:
            earliest = math.inf
    return needed


def entry_packets(film, start):
    """Returns the packets from a keyframe shown by `start` on, if possible the last of these."""
    for back in _BACK:
        packets, top = film.packets(start - back)
        for packet in packets:
            if packet.is_keyframe and packet.pts is not None:
                if top or film.seconds(packet.pts) <= start + TICK:
                    return itertools.chain([packet], packets)
                break
            if top:
                raise Doubtful
    raise Doubtful


def _fetch(film, times, packets, queue):
    """Adds a limited number of packets to the queue; returns whether more are needed."""
    size = sum(packet.size for packet in queue)
    for packet in packets:
        if packet.pts is None and packet.dts is None and not packet.size:
            return False  # end of the file
        queue.append(packet)
        size += packet.size
        if packet.dts is not None and film.seconds(packet.dts) > times.at(times.count - 1) + TICK:
            return False
        if len(queue) >= PACKETS or size >= _BYTES:
            return True
    return False


def _skips(decoder):
    """Returns whether the decoder can skip frames that no other frame refers to."""
    if decoder.name == "hevc":  # with temporal layers, upper layers may refer to such frames
        record = decoder.extradata or b""
        return len(record) > 21 and record[0] == 1 and record[21] >> 3 & 7 == 1
    return decoder.name in ("h264", "mpeg1video", "mpeg2video")

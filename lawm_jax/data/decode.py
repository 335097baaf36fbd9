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

_PACKETS, _BYTES = 512, 2**25  # limits of the packets held in memory
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


class _Doubtful(Exception):
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
    with contextlib.suppress(_Doubtful, *errors):
        for value in _repeated(_chosen(film, times, grace), times, picture):
            done += 1
            yield value
        return
    with container.opened(film.path, film.clock) as fresh:
        try:
            for value in _repeated(_every(fresh, times, done, grace), times, picture):
                done += 1
                yield value
        except errors as error:
            where = f"at {times.at(done):.3g} s: "
            raise container.unreadable(film.path, error, times.start, where) from error
        film.broken = fresh.broken


def _repeated(found, times, picture):
    """Yields `picture(frame)` as often as each frame is requested."""
    for frame, count in found:
        if count > _LONGEST * times.fps:
            raise ValueError(
                f"a frame is shown for {count / times.fps:.3g} s, longer than {_LONGEST:g} s"
            )
        value = picture(frame)
        yield from itertools.repeat(value, count)


def _every(film, times, done, grace):
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
                whole = frame.key_frame or film.stream.codec_context.name == "h264"
                if now > times.at(done) + TICK or not whole:
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
            due = times.before(_end(film, last, grace)) if last else done
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


def _end(film, shown, grace):
    """Returns the time, in seconds, until which the last frame, or its packet, counts as shown."""
    held = film.held(shown)
    return film.seconds(shown.pts) + (2 * held if grace else held - TICK)


def _chosen(film, times, grace):
    """Yields the same as `_every` but decodes as little as possible; may raise `_Doubtful`."""
    decoder = film.stream.codec_context
    if film.unordered or film.loose:
        raise _Doubtful
    skips = _skips(decoder)
    due, entry, last = {}, None, -math.inf

    def wanted(decoded):
        nonlocal last
        for frame in decoded:
            film.check()
            if frame.pts is None or not last < frame.pts <= min(due, default=math.inf):
                raise _Doubtful
            if frame.pts == entry and not frame.key_frame:
                raise _Doubtful
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
        raise _Doubtful


def plan_packets(film, times, grace):
    """Yields each packet to decode, its number of requested times, and whether to restart there.

    A frame is shown until the next larger timestamp. In decoding order, the packet with that
    timestamp may come earlier or later, but no later than the first packet whose decoding timestamp
    is as large.
    """
    packets = entry_packets(film, times.start)
    queue = collections.deque()  # packets in decoding order
    counts = {}  # timestamp of a queued packet -> number of times that show it, None while unknown
    unsure = []  # timestamps with unknown counts, ascending
    done, known, horizon, more, enters = 0, -math.inf, -math.inf, True, True
    while more:
        old = len(queue)
        more = _fetch(film, times, packets, queue)
        for packet in itertools.islice(queue, old, None):
            pts, dts = packet.pts, packet.dts
            if pts is None or not packet.size or pts in counts:
                raise _Doubtful
            if pts <= known or dts is not None and pts < dts:
                raise _Doubtful
            counts[pts] = None
            bisect.insort(unsure, pts)
            horizon = horizon if dts is None else max(dts, horizon)

        sure = unsure[: bisect.bisect(unsure, horizon) if more else None]
        for pts, following in itertools.pairwise(sure):
            due = max(done, times.before(film.seconds(following) - TICK))
            counts[pts], done, known = due - done, due, pts
        del unsure[: max(0, len(sure) - 1)]
        if not more and unsure:
            final = next(packet for packet in queue if packet.pts == unsure[0])
            due = max(done, times.before(_end(film, final, grace)))
            counts[final.pts], done = due - done, due

        # Scan backward: does a frame that may be requested follow before the next keyframe?
        earliest = horizon if more else math.inf  # timestamp of such a frame
        needed = []
        for packet in reversed(queue):
            if counts[packet.pts] or more and counts[packet.pts] is None:
                earliest = min(earliest, packet.pts)
            needed.append(earliest < math.inf)
            if packet.is_keyframe and packet.pts <= earliest:
                earliest = math.inf
        full = len(queue)
        while queue and not (more and counts[queue[0].pts] is None):
            packet = queue.popleft()
            count = counts.pop(packet.pts)
            if needed.pop():
                yield packet, count, enters
                enters = False
            else:
                enters = True
        if more and len(queue) == full:
            raise _Doubtful


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
                raise _Doubtful
    raise _Doubtful


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
        if len(queue) >= _PACKETS or size >= _BYTES:
            return True
    return False


def _skips(decoder):
    """Returns whether the decoder can skip frames that no other frame refers to."""
    if decoder.name == "hevc":  # with temporal layers, upper layers may refer to such frames
        record = decoder.extradata or b""
        return len(record) > 21 and record[0] == 1 and record[21] >> 3 & 7 == 1
    return decoder.name in ("h264", "mpeg1video", "mpeg2video")

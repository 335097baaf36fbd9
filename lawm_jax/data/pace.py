"""Determines when the frames of a video are shown, without decoding them."""

import math

import numpy as np

from lawm_jax.data import container

NEAR = 0.25  # tolerance between a frame's time and its row's, as a fraction of the frame interval


def times(path, first=0.0, last=math.inf):
    """Returns the times at which the frames of a video are shown.

    Args:
      path: path of the video.
      first, last: start and end of the part to read, in seconds from the first frame.

    Returns:
      float64 [n], ascending times in [first, last), in seconds from the first frame of the video.

    Raises:
      UnreadableVideo: the video can't be opened, or a packet has no timestamp.
    """
    seconds = []
    with container.opened(path) as film:
        # Seeking uses decoding times, and a frame may be decoded well before it is shown.
        packets, _ = film.packets(max(0.0, first - 1))
        for packet in packets:
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None:
                raise ValueError("a frame has no timestamp")
            seconds.append(film.seconds(packet.pts))
            if packet.dts is not None and film.seconds(packet.dts) >= last:
                break
        if film.broken:
            raise ValueError(film.broken)
    seconds = np.sort(np.array(seconds, np.float64))
    return seconds[(first <= seconds) & (seconds < last)]


def sampling(frame_times, indices):
    """Returns the start and rate of evenly spaced times at which the given frames are on screen.

    Args:
      shown: float64 [n], ascending times at which the frames are shown.
      indices: int [F], the given frames, evenly spaced.

    Returns:
      start, seconds, and rate, per second, of times near the middle of each frame's interval.

    Raises:
      ValueError: the times of the frames are too uneven.
    """
    step = np.median(np.diff(frame_times)) if len(frame_times) > 1 else 1.0
    ends = np.append(frame_times[1:], frame_times[-1] + step)
    middles = (frame_times[indices] + ends[indices]) / 2
    if len(indices) == 1:
        return float(middles[0]), 1.0
    spread = (middles[-1] - middles[0]) / (len(indices) - 1)
    samples = middles[0] + spread * np.arange(len(indices))
    margin = 0.1 * step
    if ((samples < frame_times[indices] + margin) | (samples > ends[indices] - margin)).any():
        span = np.diff(frame_times[indices])
        raise ValueError(
            f"frames {indices[0]} to {indices[-1]} aren't evenly spaced in time: their intervals "
            f"are from {span.min():.4g} to {span.max():.4g} s"
        )
    return float(middles[0]), float(1 / spread)

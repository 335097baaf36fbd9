"""Finds out when the frames of a video are shown, without decoding them."""

import math

import numpy as np

from lawm_jax.data import container

NEAR = 0.25  # of a frame's time: so far a frame may lie from its row, to be its own


def times(path, first=0.0, last=math.inf):
    """Lists when the frames of a video are shown.

    Args:
      path: of the video.
      first, last: start and end of the part of it to look at, seconds from its first frame.

    Returns:
      float64 [n], rising, seconds from the first frame of the video: those in [first, last).

    Raises:
      UnreadableVideo: it can't be opened, or a packet doesn't say when its frame is shown.
    """
    found = []
    with container.opened(path) as film:
        # Seeking goes by decoding times, and a frame may be decoded well before it is shown.
        packets, _ = film.packets(max(0.0, first - 1))
        for packet in packets:
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None:
                raise ValueError("a frame without a timestamp")
            found.append(film.seconds(packet.pts))
            if packet.dts is not None and film.seconds(packet.dts) >= last:
                break
        if film.broken:
            raise ValueError(film.broken)
    found = np.sort(np.array(found, np.float64))
    return found[(first <= found) & (found < last)]


def sampling(shown, indices):
    """Returns the start and rate of evenly spaced times at which some frames are on screen.

    Args:
      shown: float64 [n], when each frame is shown, rising.
      indices: int [F], the frames, evenly spaced.

    Returns:
      start, seconds, and rate, per second; in the middle of the time that the frames are shown.

    Raises:
      ValueError: the frames are too unevenly spaced for that.
    """
    step = np.median(np.diff(shown)) if len(shown) > 1 else 1.0
    ends = np.append(shown[1:], shown[-1] + step)
    middles = (shown[indices] + ends[indices]) / 2
    if len(indices) == 1:
        return float(middles[0]), 1.0
    spread = (middles[-1] - middles[0]) / (len(indices) - 1)
    wanted = middles[0] + spread * np.arange(len(indices))
    margin = 0.1 * step
    if ((wanted < shown[indices] + margin) | (wanted > ends[indices] - margin)).any():
        span = np.diff(shown[indices])
        raise ValueError(
            f"frames {indices[0]} to {indices[-1]} aren't evenly spaced: "
            f"{span.min():.4g} to {span.max():.4g} s from one to the next"
        )
    return float(middles[0]), float(1 / spread)

"""Draws and writes the films of the tests: each frame carries its number as 3 x 3 blocks."""

import fractions
import io

import av
import numpy as np
import PIL.Image


def draw(number, width, height):
    """Draws a number in the centre square of a picture uint8 [H, W, 3]."""
    image = np.full((height, width, 3), 128, np.uint8)
    side = min(width, height)
    rows = np.arange(side) * 3 // side
    bits = (number >> np.arange(9).reshape(3, 3)) & 1
    top, left = (height - side) // 2, (width - side) // 2
    square = 255 * bits[rows][:, rows].astype(np.uint8)
    image[top : top + side, left : left + side] = square[..., None]
    return image


def compressed(image, kind="JPEG", **options):
    """Returns the bytes of a JPEG or PNG file."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def numbers(clip):
    """Reads the numbers back from uint8 [F, S, S, 3]."""
    side = clip.shape[1]
    centres = side // 6 + np.arange(3) * side // 3
    bits = clip[:, centres][:, :, centres].mean(-1) > 128
    return (bits.reshape(len(clip), 9) << np.arange(9)).sum(-1).tolist()


def write(path, times, size=(64, 48), codec="libx264", pixels="yuv420p", first=0, options=None):
    """Writes a video whose frame i, shown from times[i] (seconds), is number first + i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [fractions.Fraction(time).limit_denominator(1001) for time in times]
    rate = 1 / (times[1] - times[0]) if len(times) > 1 else fractions.Fraction(4)
    base = fractions.Fraction(1, 1000) if len(set(np.diff(times))) > 1 else 1 / rate
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = base
        for number, time in enumerate(times, first):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def every(count, rate):
    """Lists the times of `count` frames at `rate` per second."""
    return [i / fractions.Fraction(rate) for i in range(count)]

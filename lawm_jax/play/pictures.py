"""Compresses pictures for the page, and writes recordings."""

import base64
import io
import os
import tempfile

import numpy as np
import PIL.Image

from lawm_jax.data import mp4


def jpeg(picture):
    """Compresses a picture uint8 [H, W, 3] as JPEG."""
    out = io.BytesIO()
    PIL.Image.fromarray(picture).save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()


def image(picture):
    """Returns a picture as a data: URL, or None for None."""
    if picture is None:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(picture)).decode()


def movie(frames, rate):
    """Writes JPEG frames as MP4, enlarged to about 384 pixels, and returns its bytes."""
    first = PIL.Image.open(io.BytesIO(frames[0]))
    scale = max(1, 384 // first.width)
    size = first.width * scale // 2 * 2, first.height * scale // 2 * 2
    opened = (PIL.Image.open(io.BytesIO(frame)) for frame in frames)
    large = (np.asarray(frame.resize(size, PIL.Image.Resampling.BICUBIC)) for frame in opened)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "film.mp4")
        mp4.write(path, large, rate, {"crf": "18", "preset": "fast"})
        with open(path, "rb") as file:
            return file.read()

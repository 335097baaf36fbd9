"""Turns decoded or compressed pictures into the frames of a clip."""

import dataclasses
import math

import numpy as np


class UnreadableVideo(Exception):
    """Says which file or episode can't be read, and why.

    `start` is None where no clip of it can be read, else where the damaged one starts, in the unit
    of the source's `start`.
    """

    def __init__(self, path, reason, start=None):
        super().__init__(path, reason, start)
        self.path, self.reason, self.start = path, reason, start

    def __str__(self):
        return f"{self.path}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class View:
    """Says which part of a picture the frames of a clip show.

    Without augmentation it is the centre square, `size` pixels wide once the picture's short side
    has `resize`. With `area` it is V-JEPA 2's random resized crop, the same in every frame.

    Attributes:
      size: side of a frame, pixels.
      resize: short side of the scaled picture, pixels; at least `size`.
      area: range of the crop's share of the picture, or None for the centre square.
      ratio: range of the crop's width over height.
      flip: probability of a mirror image.
      seed: of this clip's crop and flip, see `drawn`; None: the centre square.

    Source: `random_resized_crop` of V-JEPA 2's training (Assran et al. 2025, section 2).
    """

    size: int
    resize: int
    area: tuple | None = None
    ratio: tuple = (0.75, 1.35)
    flip: float = 0.0
    seed: int | None = None

    def __post_init__(self):
        if self.size > self.resize:
            raise ValueError(f"resize: expected at least size = {self.size}, got {self.resize}")

    def drawn(self, random):
        """Returns the view of one clip, drawn by a numpy Generator."""
        if self.area is None and not self.flip:
            return self
        return dataclasses.replace(self, seed=int(random.integers(2**63)))

    def crop(self, width, height, aspect=1.0):
        """Places the crop in a picture.

        Args:
          width, height: of the picture, pixels.
          aspect: width over height of one pixel.

        Returns:
          (width, height) to scale the picture to, (left, top) of the square in the scaled picture,
          and whether to mirror it.

        Raises:
          ValueError: the picture is more than 8 times longer than wide.
        """
        wide = width * aspect
        if not 1 / 8 <= wide / height <= 8:
            raise ValueError(f"picture of {wide:.0f} x {height} pixels")
        if self.seed is None or self.area is None:
            if (width, height) == (self.size, self.size):
                scaled = width, height
            else:
                scale = self.resize / min(wide, height)
                scaled = max(self.size, round(wide * scale)), max(self.size, round(height * scale))
            corner = (scaled[0] - self.size) // 2, (scaled[1] - self.size) // 2
            mirrored = self.seed is not None and self._random().random() < self.flip
            return scaled, corner, mirrored
        random = self._random()
        mirrored = random.random() < self.flip
        x, y, w, h = _box(random, self.area, self.ratio, wide, height)
        scaled = round(wide * self.size / w), round(height * self.size / h)
        scaled = max(scaled[0], self.size), max(scaled[1], self.size)
        left = min(round(x * self.size / w), scaled[0] - self.size)
        top = min(round(y * self.size / h), scaled[1] - self.size)
        return scaled, (left, top), mirrored

    def _random(self):
        return np.random.default_rng(self.seed)


class Scaler:
    """Makes frames of one clip; not to be shared between threads."""

    def __init__(self, view):
        import av

        self.view = view
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._codecs = {}

    def frame(self, picture, aspect=1.0):
        """Returns an `av.VideoFrame` as uint8 [size, size, 3] RGB: scaled, cropped, upright.

        Raises:
          ValueError: the picture's shape is absurd.
        """
        (width, height), (left, top), mirrored = self.view.crop(
            picture.width, picture.height, aspect
        )
        scaled = self._reformatter.reformat(
            picture, width, height, "rgb24", interpolation="BILINEAR", threads=1
        ).to_ndarray()
        size = self.view.size
        square = np.rot90(
            scaled[top : top + size, left : left + size], round(picture.rotation / 90) % 4
        )
        return square[:, ::-1] if mirrored else square

    def image(self, data):
        """Decodes a compressed image, JPEG or PNG, or takes uint8 [H, W, 3]; see `frame`.

        Raises:
          ValueError: the bytes are no such image, or a damaged one.
        """
        import av

        if isinstance(data, np.ndarray):
            return self.frame(av.VideoFrame.from_ndarray(data, format="rgb24"))
        name = {b"\xff\xd8": "mjpeg", b"\x89P": "png"}.get(bytes(data[:2]))
        if name is None:
            raise ValueError(f"expected a JPEG or PNG image, got bytes {bytes(data[:8])!r}")
        if name not in self._codecs:
            codec = av.CodecContext.create(name, "r")
            codec.thread_count = 1
            codec.options = {"max_pixels": str(MAX_PIXELS)}
            self._codecs[name] = codec
        try:
            picture = self._codecs[name].decode(av.Packet(data))
        except av.FFmpegError as error:
            raise ValueError(f"damaged {name} image: {error.strerror}") from error
        if len(picture) != 1 or picture[0].is_corrupt:
            raise ValueError(f"damaged {name} image")
        return self.frame(picture[0])

    def images(self, data):
        """Stacks the frames of several images: [F, size, size, 3]."""
        return np.stack([self.image(one) for one in data])


MAX_PIXELS = 2**26  # of one picture; a header may promise more


def _box(random, area, ratio, width, height):
    """Draws x, y, width and height of a random resized crop; falls back to the centre."""
    for _ in range(10):
        target = width * height * random.uniform(*area)
        aspect = math.exp(random.uniform(*np.log(ratio)))
        w, h = math.sqrt(target * aspect), math.sqrt(target / aspect)
        if w <= width and h <= height:
            return random.uniform(0, width - w), random.uniform(0, height - h), w, h
    w, h = min(width, height * ratio[1]), min(height, width / ratio[0])
    return (width - w) / 2, (height - h) / 2, w, h


def refuse_cuts(clip, most):
    """Raises UnreadableVideo where a clip's picture changes at once by more than `most`.

    Args:
      clip: has `video` uint8 [F, H, W, 3], `episode` and `start`.
      most: in (0, 1], the mean absolute difference of two consecutive frames in 8 x 8 cells.
    """
    video = clip["video"]
    F, H, W, _ = video.shape
    cells = video[:, : H // 8 * 8, : W // 8 * 8].reshape(F, 8, H // 8, 8, W // 8, 3)
    cells = cells.mean((2, 4)) / 255
    change = np.abs(np.diff(cells, axis=0)).mean((1, 2, 3))
    if change.max(initial=0) > most:
        step, start = int(change.argmax()), float(clip["start"])
        raise UnreadableVideo(str(clip["episode"]), f"shot cut {step + 1} frames on", start)

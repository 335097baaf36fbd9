"""Converts decoded pictures and compressed images into the frames of a clip."""

import dataclasses
import math
import struct
from typing import NamedTuple

import numpy as np


class UnreadableVideo(Exception):
    """Raised if a file or episode can't be read; holds its path and the reason.

    `start` is None if no clip of it can be read. Otherwise it is the start of the damaged clip, in
    the unit of the source's `start`.
    """

    def __init__(self, path, reason, start=None):
        path = str(path)
        super().__init__(path, reason, start)
        self.path, self.reason, self.start = path, reason, start

    def __str__(self):
        return f"{self.path}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class View:
    """Selects the part of a picture that the frames of a clip show.

    Without augmentation it is the center square with side `size`, after the picture is scaled to a
    short side of `resize`. With `area` it is V-JEPA 2's random resized crop: a rectangle, the same
    in every frame, stretched to a square.

    Attributes:
      size: side of a frame, pixels.
      resize: short side of the scaled picture, pixels; at least `size`.
      area: range of the crop's share of the picture, or None for the center square.
      ratio: range of the crop's width over height.
      flip: probability of mirroring.
      seed: seed of this clip's crop and flip, see `drawn`; None for the center square.

    Raises:
      ValueError: a value is out of range.

    Source: `random_resized_crop` of github.com/facebookresearch/vjepa2,
    src/datasets/utils/video/transforms.py, with the ranges of its pretraining: area 0.3 to 1, ratio
    0.75 to 1.35, flip 0.5. Its area of 1.777 for DROID fits no picture, so it falls back to the
    center crop of ratio 1.35.
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
        for name, value in ("area", self.area or (1, 1)), ("ratio", self.ratio):
            if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                raise ValueError(f"{name}: expected 0 < low <= high, got {value}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: expected a probability, got {self.flip}")

    def drawn(self, random):
        """Returns the view of one clip, with a seed drawn by the numpy Generator `random`."""
        if self.area is None and not self.flip:
            return self
        return dataclasses.replace(self, seed=int(random.integers(2**63)))

    def crop(self, width, height, aspect=1.0):
        """Computes how to crop and scale a picture.

        Args:
          width, height: size of the picture, pixels.
          aspect: width over height of one pixel.

        Returns:
          box: x, y, width and height of the part to scale, in pixels of the picture.
          scaled: width and height of that part after scaling; its center square is shown.
          mirrored: whether the square is then mirrored.

        Raises:
          ValueError: one side of the picture is more than 8 times the other.
        """
        wide = width * aspect
        if not 1 / 8 <= wide / height <= 8:
            raise ValueError(
                f"picture of {wide:.0f} x {height} pixels: one side is more than 8 times the other"
            )
        random = None if self.seed is None else np.random.default_rng(self.seed)
        mirrored = random is not None and random.random() < self.flip
        if random is not None and self.area is not None:
            square = max(1, round(wide))  # width in square pixels
            x, y, w, h = _box(random, self.area, self.ratio, square, height)
            box = x * width // square, y, max(1, w * width // square), h
            return box, (self.size, self.size), mirrored
        if (width, height, aspect) == (self.size, self.size, 1):
            scaled = width, height
        else:
            scale = self.resize / min(wide, height)
            scaled = max(self.size, round(wide * scale)), max(self.size, round(height * scale))
        return (0, 0, width, height), scaled, mirrored


class Upright(NamedTuple):
    """Transform that turns a stored picture upright: swap rows and columns, then mirror."""

    transposed: bool = False
    across: bool = False  # left and right
    down: bool = False  # top and bottom

    def apply(self, picture):
        """Returns an upright view of a picture [H, W, ...]."""
        picture = picture.swapaxes(0, 1) if self.transposed else picture
        return picture[:: -1 if self.down else 1, :: -1 if self.across else 1]

    def turned(self, width, height):
        """Returns the upright size of a stored picture, or the stored size of an upright one."""
        return (height, width) if self.transposed else (width, height)

    def stored(self, box, width, height):
        """Finds the part of the stored picture that a box of the upright picture shows.

        Args:
          box: x, y, width and height in the upright picture.
          width, height: size of the upright picture.

        Returns:
          x, y, width and height in the stored picture.
        """
        x, y, w, h = box
        x = width - x - w if self.across else x
        y = height - y - h if self.down else y
        return (y, x, h, w) if self.transposed else (x, y, w, h)


UPRIGHT = {  # by EXIF orientation
    1: Upright(),
    2: Upright(across=True),
    3: Upright(across=True, down=True),
    4: Upright(down=True),
    5: Upright(transposed=True),
    6: Upright(transposed=True, across=True),
    7: Upright(transposed=True, across=True, down=True),
    8: Upright(transposed=True, down=True),
}


def displayed(picture):
    """Returns the `Upright` that the display matrix of an `av.VideoFrame` specifies."""
    try:
        matrix = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV fails on unknown types of side data; `rotation` lacks mirroring
        turns = round(picture.rotation / 90) % 4
        return (UPRIGHT[1], UPRIGHT[8], UPRIGHT[3], UPRIGHT[6])[turns]
    if matrix is None:
        return UPRIGHT[1]
    # The pixel at (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = (int(number) for number in np.frombuffer(bytes(matrix), np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Upright(True, c < 0, b < 0)
    return Upright(False, a < 0, d < 0)


class Scaler:
    """Makes the frames of one clip; not thread-safe.

    FFmpeg crops the stored picture to the view's box and scales it. From the result, the center
    square is cut out, turned upright and, if the view says so, mirrored.
    """

    def __init__(self, view):
        self.view = view
        self._key = None  # inputs of the filter graph; rarely change within a clip

    def frame(self, picture, aspect=1.0, upright=None):
        """Crops, scales and turns upright an `av.VideoFrame`; returns uint8 [size, size, 3] RGB.

        Args:
          picture: the frame.
          aspect: width over height of one pixel.
          upright: `Upright`, or None to use the frame's display matrix.

        Raises:
          ValueError: one side of the picture is more than 8 times the other.
        """
        shape = picture.width, picture.height, picture.format.name
        upright = upright or displayed(picture)
        key = *shape, upright, aspect
        if key != self._key:
            self._graph, self._square, self._mirrored = self._plan(*shape, aspect, upright)
            self._key = key
        self._graph.push(picture)
        scaled = self._graph.pull().to_ndarray()
        x, y, w, h = self._square
        square = upright.apply(scaled[y : y + h, x : x + w])
        return square[:, ::-1] if self._mirrored else square

    def _plan(self, width, height, pixels, aspect, upright):
        """Plans how to make frames of stored pictures of a size and pixel format.

        The view refers to the upright picture; `upright.stored` converts its boxes.

        Returns:
          graph: filter graph that crops and scales a stored picture.
          square: x, y, width and height of the part of its output that is shown.
          mirrored: whether the upright square is then mirrored.
        """
        W, H = upright.turned(width, height)
        aspect = 1 / aspect if upright.transposed else aspect
        box, (wide, tall), mirrored = self.view.crop(W, H, aspect)
        size = self.view.size
        square = (wide - size) // 2, (tall - size) // 2, size, size
        part, scaled = upright.stored(box, W, H), upright.turned(wide, tall)
        graph = _crop_and_scale((width, height), pixels, part, scaled)
        return graph, upright.stored(square, wide, tall), mirrored

    def image(self, data):
        """Returns the frame of a JPEG or PNG image, or of uint8 [H, W, 3]; see `frame`.

        The EXIF orientation of the image is applied.

        Raises:
          ValueError: the bytes are not a JPEG or PNG image, or it is damaged.
        """
        import av

        if isinstance(data, np.ndarray):
            return self.frame(av.VideoFrame.from_ndarray(data, format="rgb24"), 1.0, UPRIGHT[1])
        name = {b"\xff\xd8": "mjpeg", b"\x89P": "png"}.get(bytes(data[:2]))
        if name is None:
            raise ValueError(f"expected a JPEG or PNG image, got bytes {bytes(data[:8])!r}")
        data = bytes(data)
        if name == "mjpeg" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise ValueError("damaged mjpeg image: no end marker")
        codec = av.CodecContext.create(name, "r")  # a new one: the PNG decoder keeps state
        codec.thread_count = 1
        codec.options = {"max_pixels": str(MAX_PIXELS), "err_detect": CHECKS}
        try:
            pictures = codec.decode(av.Packet(data))
            if len(pictures) != 1 or pictures[0].is_corrupt:
                raise ValueError(f"damaged {name} image")
            return self.frame(pictures[0], 1.0, UPRIGHT[_orientation(data)])
        except av.FFmpegError as error:
            raise ValueError(f"damaged {name} image: {error.strerror}") from error

    def images(self, data):
        """Returns the stacked frames of several images, [F, size, size, 3]."""
        return np.stack([self.image(image) for image in data])


MAX_PIXELS = 2**26  # per picture; a header may claim more
CHECKS = "crccheck+bitstream+buffer+explode"  # otherwise missing parts are decoded as gray
# The most accurate swscale settings: without them most colors are up to 2 levels too dark.
FLAGS = "bilinear+full_chroma_int+full_chroma_inp+accurate_rnd"


def _crop_and_scale(shape, pixels, box, scaled):
    """Builds a filter graph from `av.VideoFrame` to RGB.

    Args:
      shape: width and height of the picture.
      pixels: name of its pixel format.
      box: x, y, width and height of the part to scale.
      scaled: width and height of that part after scaling.

    Returns:
      `av.filter.Graph`.
    """
    import av

    (width, height), (x, y, w, h), (wide, tall) = shape, box, scaled
    graph = av.filter.Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add_buffer(width=width, height=height, format=pixels, time_base=1),
        graph.add("crop", f"{w}:{h}:{x}:{y}:exact=1"),  # without a copy
        graph.add("scale", f"{wide}:{tall}:flags={FLAGS}"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _orientation(data):
    """Returns the EXIF orientation of a JPEG or PNG file, 1 to 8; 1 if it has none."""
    try:
        exif = _exif(data)
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (table,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, table)
        for entry in range(table + 2, table + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == 0x0112:
                return value if value in UPRIGHT else 1
    except (KeyError, struct.error):  # no EXIF, or damaged
        pass
    return 1


def _exif(data):
    """Returns the EXIF bytes of a JPEG or PNG file; empty if it has none."""
    if data[:2] == b"\x89P":
        at = 8
        while at + 8 <= len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            if kind == b"eXIf":
                return data[at + 8 : at + 8 + size]
            at += 12 + size
        return b""
    at = 2
    while data[at : at + 1] == b"\xff":
        while data[at + 1 : at + 2] == b"\xff":
            at += 1  # padding
        kind, size = struct.unpack_from(">BH", data, at + 1)
        if kind == 0xDA:  # start of the image data
            return b""
        if kind == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 10 : at + 2 + size]
        at += 2 + size
    return b""


def _box(random, area, ratio, width, height):
    """Draws x, y, width and height of a random resized crop; falls back to a center crop."""
    for _ in range(10):
        target = width * height * random.uniform(*area)
        aspect = math.exp(random.uniform(*np.log(ratio)))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(width - w + 1)), int(random.integers(height - h + 1)), w, h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def refuse_cuts(clip, most):
    """Raises UnreadableVideo if a clip contains a shot cut.

    Args:
      clip: has `video` uint8 [F, H, W, 3] with H, W >= 8, `episode` and `start`.
      most: in (0, 1], the largest allowed change between consecutive frames: the geometric mean of
        the mean absolute difference of 8 x 8 cells, which motion also raises, and the total
        variation distance of color histograms (32 x 32 points, 8 x 8 x 8 bins), robust to motion.

    Raises:
      UnreadableVideo: two consecutive frames differ by more.
      ValueError: `most` is out of range.

    At 4 frames per second and `most` = 0.225 it detects 105 of 110 cuts in a music video, 8 of 8 in
    five other films and 98% of 1504 synthetic cuts. It wrongly refuses 2.5% of the music video's
    other steps, where someone passes close by, 1 of 302 in twelve films and none of 15376 in
    simulators. At the same rate of false alarms, cells alone miss 21%, 1 and 5% of the cuts,
    histograms alone 11%, 2 and 5%, and the correlation of cells 15%, 1 and 14%. Flashes and fades
    to black count as cuts, cross-fades of 1.5 seconds do not.
    """
    if not 0 < most <= 1:
        raise ValueError(f"data.augment.cut: expected more than 0 and at most 1, got {most}")
    video = clip["video"]
    F, H, W, _ = video.shape
    k = 32 if min(H, W) >= 32 else 8
    rows, columns = np.arange(k) * H // k, np.arange(k) * W // k
    area = np.diff(rows, append=H)[:, None] * np.diff(columns, append=W)
    points = np.add.reduceat(np.add.reduceat(video, rows, 1, np.uint32), columns, 2)
    points = points / area[..., None]
    cells = points.reshape(F, 8, k // 8, 8, k // 8, 3).mean((2, 4)) / 255
    cell_change = np.abs(np.diff(cells, axis=0)).mean((1, 2, 3))
    bins = (points // 32).astype(int) @ (64, 8, 1)
    histograms = np.stack([np.bincount(frame.ravel(), minlength=512) for frame in bins]) / k**2
    color_change = np.abs(np.diff(histograms, axis=0)).sum(1) / 2
    change = np.sqrt(cell_change * color_change)
    if change.max(initial=0) > most:
        step, start = int(change.argmax()), float(clip["start"])
        raise UnreadableVideo(str(clip["episode"]), f"shot cut after {step + 1} frames", start)

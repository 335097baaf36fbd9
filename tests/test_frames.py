"""Tests of what a frame shows: crops, mirror images, colours, compressed images, shot cuts.

Most pictures tell where each of their pixels lies: red is x, green is y.
"""

import fractions
import io
import itertools
import json
import struct
import subprocess
import sys
import zlib

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import scipy.stats
import test_data
from drawing import compressed
from test_data import same, take

from lawm_jax.data import catalog, frames, pipeline, video

AREA, RATIO = (0.3, 1.0), (0.75, 1.35)  # of V-JEPA 2


def config(videos, augment=(), **data):
    return test_data.config(videos, augment=augment, **{"resize": 56, "holdout": 0.0, **data})


def places(width, height, blue=128):
    """Draws a picture uint8 [H, W, 3] of places."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.full_like(rows, blue)], -1).astype(np.uint8)


def box(square):
    """Reads from [S, S, >=2] which x, y, width and height of a picture of places it shows."""
    size = len(square)
    along = np.arange(size) + 0.5
    inner = slice(size // 8, -size // 8)  # at the border of a picture there is nothing to mix in
    found = []
    for axis, values in enumerate((square[..., 0].mean(0), square[..., 1].mean(1))):
        slope, start = np.polyfit(along[inner], values[inner].astype(float) + 0.5, 1)
        assert np.abs(np.polyval([slope, start], along) - values - 0.5)[inner].max() < 1, axis
        found.append((start, slope * size))
    (x, w), (y, h) = found
    return x, y, w, h


def smooth(width, height, seed=0):
    """Draws waves of every colour."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(width, height)
    waves = [
        np.sin(6 * random.uniform(-1, 1) * columns + 6 * random.uniform(-1, 1) * rows + phase)
        for phase in random.uniform(0, 6, 3)
    ]
    return (127.5 + 90 * np.stack(waves, -1)).round().astype(np.uint8)


def decoded(data):
    """Decodes with PIL: int [H, W, 3]."""
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def centre(image, size):
    height, width = image.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def write(path, images, codec="ffv1", pixels="bgr0", aspect=1, rate=4, options=None):
    """Writes a video of images."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = images[0].shape[1::-1]
        stream.pix_fmt = pixels
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(aspect)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def view(size=64, seed=0, **options):
    return frames.View(size, size, **({"area": AREA, "ratio": RATIO, "seed": seed} | options))


def views(count, **options):
    random = np.random.default_rng(0)
    return [view(seed=None, **options).drawn(random) for _ in range(count)]


def crops(count, width, height, **options):
    return np.array([one.crop(width, height)[0] for one in views(count, **options)])


# The crop


def test_area_ratio_and_place_of_a_crop_that_always_fits_have_the_formulas_distribution():
    side = 4000
    x, y, w, h = crops(4000, side, side, area=(0.1, 0.5)).T
    area, ratio = w * h / side**2, w / h
    law = scipy.stats.uniform
    p = lambda values, low, high: scipy.stats.kstest(values, law(low, high - low).cdf).pvalue  # noqa: E731
    assert p(area, 0.1, 0.5) > 0.01
    assert p(np.log(ratio), *np.log(RATIO)) > 0.01
    assert p(x / (side - w), 0, 1) > 0.01 and p(y / (side - h), 0, 1) > 0.01
    assert p(ratio, *RATIO) < 1e-6  # the logarithm is uniform, not the ratio
    table = np.stack([area, ratio, x / (side - w), y / (side - h)])
    assert np.abs(scipy.stats.spearmanr(table.T).statistic - np.eye(4)).max() < 0.06


@pytest.mark.parametrize("width, height", [(320, 180), (180, 320), (640, 200), (72, 64)])
def test_crops_of_any_picture_have_the_distribution_of_ten_tries_and_then_the_centre(width, height):
    count, random = 4000, np.random.default_rng(1)
    share = random.uniform(*AREA, (count, 10)) * width * height
    ratio = np.exp(random.uniform(*np.log(RATIO), (count, 10)))
    w, h = np.round(np.sqrt(share * ratio)), np.round(np.sqrt(share / ratio))
    fits = (w <= width) & (h <= height)
    first = np.arange(count), fits.argmax(1)
    w, h, found = w[first], h[first], fits.any(1)
    x = np.floor(random.uniform(size=count) * (width - w + 1))
    y = np.floor(random.uniform(size=count) * (height - h + 1))
    if width / height > RATIO[1]:
        last = round(height * RATIO[1]), height
    elif width / height < RATIO[0]:
        last = width, round(width / RATIO[0])
    else:
        last = width, height
    last = (width - last[0]) // 2, (height - last[1]) // 2, *last
    wanted = np.where(found[:, None], np.stack([x, y, w, h], 1), last)
    got = crops(count, width, height)
    for some, others in zip(got.T, wanted.T, strict=True):
        assert scipy.stats.ks_2samp(some, others).pvalue > 0.01
    assert got[:, :2].min() >= 0 and ((got[:, :2] + got[:, 2:]).max(0) <= (width, height)).all()


def test_an_area_that_fits_no_picture_gives_v_jepa_2s_centre_crop_for_droid():
    wanted = {(320, 180): (38, 0, 243, 180), (180, 320): (0, 40, 180, 240)}
    wanted |= {(200, 180): (0, 0, 200, 180)}
    for size, crop in wanted.items():
        assert (crops(3, *size, area=(1.777, 1.777)) == crop).all()


def test_flips_come_as_often_as_wanted_and_never_unless_wanted():
    def mirrored(flip, **options):
        return [one.crop(64, 48)[2] for one in views(2000, flip=flip, **options)]

    for area in AREA, None:
        count = sum(mirrored(0.3, area=area))
        assert scipy.stats.binomtest(count, 2000, 0.3).pvalue > 0.01
        assert all(mirrored(1.0, area=area)) and not any(mirrored(0.0, area=area))


def test_what_is_drawn_depends_on_the_generator_alone_and_plain_views_draw_nothing():
    random, again, other = (np.random.default_rng(seed) for seed in (5, 5, 6))
    first, second = view(seed=None).drawn(random), view(seed=None).drawn(random)
    assert first == view(seed=None).drawn(again) and first != second
    assert first != view(seed=None).drawn(other)
    assert first.crop(300, 200) == first.crop(300, 200)
    plain = frames.View(32, 40)
    before = random.bit_generator.state
    assert plain.drawn(random) is plain and random.bit_generator.state == before


def test_settings_out_of_range_are_refused_by_name():
    for name, value in ("area", (0.0, 1.0)), ("area", (0.5, 0.3)), ("ratio", (1,)), ("flip", 1.5):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            view(**{name: value})
    with pytest.raises(
        ValueError, match="picture of 900 x 100 pixels: one side is more than 8 times"
    ):
        frames.View(32, 32).crop(900, 100)


@pytest.mark.parametrize("pixels", ["bgr0", "yuv420p", "yuv444p"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_frame_of_a_clip_shows_the_drawn_box(tmp_path, pixels, seed):
    images = [places(240, 150, blue) for blue in (100, 120, 140, 160)]
    path = write(tmp_path / "a.mkv", images, pixels=pixels)
    drawn = view(seed=seed, flip=0.5)
    (x, y, w, h), scaled, mirrored = drawn.crop(240, 150)
    clip = video.read_clip(path, 0.0, 4, 4.0, drawn)["video"]
    assert clip.shape == (4, 64, 64, 3) and scaled == (64, 64)
    shown = clip[:, :, ::-1] if mirrored else clip
    for frame, image in zip(shown, images, strict=True):
        np.testing.assert_allclose(box(frame), (x, y, w, h), atol=0.5 if pixels == "bgr0" else 1.5)
        assert np.abs(frame[..., 2].astype(int) - image[0, 0, 2]).max() <= 2
    rounding = 1 if pixels == "bgr0" else 3
    assert np.abs(clip[..., :2] - clip[:1, ..., :2].astype(int)).max() <= rounding


def test_a_flip_mirrors_exactly(tmp_path):
    data = compressed(smooth(90, 70), quality=90)
    for area in None, AREA:
        for seed in range(4):
            straight = frames.Scaler(view(48, seed, area=area, flip=0.0)).image(data)
            mirrored = frames.Scaler(view(48, seed, area=area, flip=1.0)).image(data)
            np.testing.assert_array_equal(mirrored, straight[:, ::-1])


# EXIF's number: the display matrix a, b, c, d, where x, y is shown at a x + c y, b x + d y, and PIL
ORIENTATIONS = {
    1: ((1, 0, 0, 1), None),
    2: ((-1, 0, 0, 1), PIL.Image.Transpose.FLIP_LEFT_RIGHT),
    3: ((-1, 0, 0, -1), PIL.Image.Transpose.ROTATE_180),
    4: ((1, 0, 0, -1), PIL.Image.Transpose.FLIP_TOP_BOTTOM),
    5: ((0, 1, 1, 0), PIL.Image.Transpose.TRANSPOSE),
    6: ((0, 1, -1, 0), PIL.Image.Transpose.ROTATE_270),
    7: ((0, -1, -1, 0), PIL.Image.Transpose.TRANSVERSE),
    8: ((0, -1, 1, 0), PIL.Image.Transpose.ROTATE_90),
}


def upright(image, orientation):
    """Turns uint8 [H, W, 3] upright with PIL."""
    turn = ORIENTATIONS[orientation][1]
    image = PIL.Image.fromarray(image)
    return np.asarray(image if turn is None else image.transpose(turn))


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_video_comes_upright_whatever_its_display_matrix(tmp_path, orientation, suffix):
    path, stored = tmp_path / f"a.{suffix}", places(241, 160)
    write(path, [stored[:, :240]] * 4, "libx264", "yuv444p", options={"qp": "0"})
    data = bytearray(path.read_bytes())
    a, b, c, d = (number << 16 for number in ORIENTATIONS[orientation][0])
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    image = upright(stored[:, :240], orientation)
    height, width = image.shape[:2]
    whole = video.read_clip(str(path), 0.0, 1, 4.0, frames.View(159, 160))["video"][0]
    assert np.abs(whole.astype(int) - centre(image, 159)).max() <= 3
    for seed in range(3):
        drawn = view(seed=seed, ratio=(1.3, 1.35))
        x, y, w, h = drawn.crop(width, height)[0]  # of the upright picture
        part = PIL.Image.fromarray(image[y : y + h, x : x + w])
        wanted = np.asarray(part.resize((64, 64), PIL.Image.Resampling.BILINEAR)).astype(int)
        (frame,) = video.read_clip(str(path), 0.0, 1, 4.0, drawn)["video"]
        assert np.abs(frame - wanted)[4:-4, 4:-4].max() <= 3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_come_upright_as_their_exif_says(orientation):
    stored = smooth(120, 80)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    wanted = centre(upright(stored, orientation), 64).astype(int)
    for kind, options in ("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}):
        data = compressed(stored, kind, exif=exif.tobytes(), **options)
        got = frames.Scaler(frames.View(64, 80)).image(data)
        assert np.abs(got - wanted).max() <= (1 if kind == "PNG" else 6)
        other = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))))
        assert np.abs(got - centre(other, 64).astype(int)).max() <= 6
    big = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0" + bytes([orientation]) + b"\0\0"
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(big)) + b"Exif\0\0" + big
    plain = compressed(stored, "JPEG", quality=95, subsampling=0)
    xmp = b"\xff\xe1\0\x09XMP\0\0\0\0"[:11]
    got = frames.Scaler(frames.View(64, 80)).image(plain[:2] + xmp + segment + plain[2:])
    assert np.abs(got - wanted).max() <= 6


def test_damaged_exif_leaves_an_image_as_it_is():
    stored = smooth(80, 80)
    plain = compressed(stored, "JPEG", quality=95)
    wanted = frames.Scaler(frames.View(64, 80)).image(plain)
    for exif in (
        b"",
        b"II",
        b"XX*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff\0",
        b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x09\0\0\0",
    ):
        segment = b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif
        got = frames.Scaler(frames.View(64, 80)).image(plain[:2] + segment + plain[2:])
        np.testing.assert_array_equal(got, wanted)


def test_pixels_that_are_not_square_count_by_their_shape(tmp_path):
    path = write(tmp_path / "a.mkv", [places(120, 200)] * 4, "mpeg4", "yuv420p", aspect=2)
    for seed in range(6):
        drawn = view(seed=seed)
        x, y, w, h = drawn.crop(120, 200, 2.0)[0]
        assert RATIO[0] - 0.02 < 2 * w / h < RATIO[1] + 0.02
        assert 0.28 < w * h / (120 * 200) <= 1
        clip = video.read_clip(path, 0.0, 2, 4.0, drawn)["video"]
        np.testing.assert_allclose(box(clip[0]), (x, y, w, h), atol=1.5)
    for width, aspect in (1, 4.0), (3, 0.5), (7, 1.4), (5, 0.7):
        for one in views(200):
            x, y, w, h = one.crop(width, 4, aspect)[0]
            assert 0 <= x < x + w <= width and 0 <= y < y + h <= 4


@pytest.mark.parametrize("area, ratio, shape", [(None, 1, 1), (AREA, 1, 1), (AREA, 1.35, 1 / 1.35)])
def test_only_a_crop_that_is_no_square_stretches_the_picture(area, ratio, shape):
    rows, columns = np.mgrid[:360, :640]
    disc = 255 * (np.hypot(rows - 180, columns - 320) < 60).astype(np.uint8)
    for seed in range(5):
        drawn = view(256, seed, area=area and (0.6, 0.6), ratio=(ratio, ratio))
        lit = frames.Scaler(drawn).image(disc[..., None].repeat(3, 2))[..., 0] / 255
        width, height = lit.sum(1).max(), lit.sum(0).max()  # of its widest row and column
        assert width > 50 and width / height == pytest.approx(shape, rel=0.03)


# The pipeline


def test_without_augmentation_the_pipeline_gives_the_centre_square(videos):
    items = catalog.source(config(videos), "videos").items
    for batch in take(pipeline.clips(config(videos)), 2):
        for clip, episode, start in zip(
            batch["video"], batch["episode"], batch["start"], strict=True
        ):
            wanted = video.read_clip(items[episode], float(start), 4, 4.0, frames.View(48, 56))
            np.testing.assert_array_equal(clip, wanted["video"])
    other = config(videos, {"area": (0.1, 0.2), "ratio": (2.0, 2.0)})
    same(take(pipeline.clips(other), 2), take(pipeline.clips(config(videos)), 2))


def test_augmented_clips_are_the_same_for_any_processes_workers_and_after_a_resume(videos):
    settings = config(videos, {"crop": True, "flip": 0.5, "jitter": 0.25})
    stream = pipeline.clips(settings)
    wanted = take(stream, 4)
    plain = take(pipeline.clips(config(videos)), 1)[0]
    assert (wanted[0]["episode"] == plain["episode"]).all()
    assert np.all(np.abs(wanted[0]["video"] - plain["video"].astype(int)).max((1, 2, 3, 4)) > 50)
    fresh = pipeline.clips(settings)
    take(fresh, 1)
    state = fresh.get_state()
    resumed = pipeline.clips(settings)
    resumed.set_state(state)
    same(take(resumed, 3), wanted[1:])
    shares = [take(pipeline.clips(settings, process_index=i, process_count=2), 4) for i in range(2)]
    for step, batch in enumerate(wanted):
        for key in batch:
            parts = np.concatenate([share[step][key] for share in shares])
            np.testing.assert_array_equal(parts, batch[key])
    settings.data.workers = 2
    stream = pipeline.clips(settings)
    same(take(stream, 4), wanted)
    stream.close()


# Compressed images and colours


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("width, height", [(320, 180), (256, 256), (257, 255), (161, 320)])
def test_jpeg_files_are_decoded_within_2_levels_of_libjpeg(subsampling, width, height):
    size = min(width, height)
    scaler = frames.Scaler(frames.View(size, size))
    # Swscale stretches the colours of an odd picture, of which there are half as many, over it.
    rough = subsampling != "4:4:4" and (width % 2 or height % 2)
    for seed, progressive in (0, False), (1, True), (2, False):
        options = dict(quality=95, subsampling=subsampling, progressive=progressive)
        data = compressed(smooth(width, height, seed), **options)
        wanted = centre(decoded(data), size)
        got = scaler.image(data)
        wrong = np.abs(got - wanted)
        assert got.dtype == np.uint8 and got.shape == (size, size, 3)
        assert np.quantile(wrong, 0.995) <= (3 if rough else 2) and wrong.max() <= 5
        assert np.abs((got - wanted).mean((0, 1))).max() < (0.6 if rough else 0.1)
        grey = compressed(smooth(width, height, seed)[..., 0], quality=95, progressive=progressive)
        assert np.abs(scaler.image(grey) - centre(decoded(grey), size)).max() <= 1


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("width", [64, 65])
def test_colours_from_black_to_white_come_out_right(scaled, width):
    size = 48 if scaled else 64
    scaler = frames.Scaler(frames.View(size, size))
    colours = [(v, v, v) for v in (0, 1, 16, 100, 128, 200, 235, 254, 255)]
    for colour in [*colours, (200, 80, 40), (40, 160, 90)]:
        image = np.full((64, width, 3), colour, np.uint8)
        for kind in "JPEG", "PNG":
            data = compressed(image, kind, **{"quality": 95} if kind == "JPEG" else {})
            wrong = np.abs(scaler.image(data) - decoded(data)[0, 0])
            assert wrong.max() <= (0 if colour in ((0, 0, 0), (255, 255, 255)) else 1)
        np.testing.assert_array_equal(scaler.image(image), np.full((size, size, 3), colour))


def test_video_is_converted_by_the_colour_space_and_range_it_states():
    scalers = [frames.Scaler(frames.View(size, size)) for size in (64, 50, 33)]
    for space, red, blue in (1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593):
        for full, (y, cb, cr) in itertools.product(
            (False, True), [(100, 90, 180), (200, 120, 140), (16, 128, 128), (235, 128, 128)]
        ):
            flat = np.concatenate([np.full(64 * 64, y), np.full(32 * 32, cb), np.full(32 * 32, cr)])
            picture = av.VideoFrame.from_ndarray(flat.astype(np.uint8).reshape(96, 64), "yuv420p")
            picture.colorspace, picture.color_range = space, 2 if full else 1
            luma = y if full else (y - 16) * 255 / 219
            spread = 1 if full else 255 / 224
            r = luma + 2 * (1 - red) * (cr - 128) * spread
            b = luma + 2 * (1 - blue) * (cb - 128) * spread
            g = (luma - red * r - blue * b) / (1 - red - blue)
            for scaler in scalers:
                assert np.abs(scaler.frame(picture) - np.clip([r, g, b], 0, 255)).max() <= 1


def test_pictures_of_a_clip_may_differ_in_size_and_kind():
    some = [smooth(64, 48), compressed(smooth(64, 48)), compressed(smooth(80, 64), "PNG")]
    some += [smooth(48, 64), compressed(smooth(64, 48)[..., 0]), smooth(64, 48)]
    for one in frames.View(32, 40), view(32, 3):
        clip = frames.Scaler(one).images(some)
        wanted = [frames.Scaler(one).image(image) for image in some]
        np.testing.assert_array_equal(clip, wanted)


def test_png_files_of_every_kind_are_decoded_as_pil_does():
    image = PIL.Image.fromarray(smooth(64, 64))
    scaler = frames.Scaler(frames.View(64, 64))
    for mode in "RGB", "L", "P", "1", "RGBA", "LA":
        file = io.BytesIO()
        image.convert(mode).save(file, "PNG")
        np.testing.assert_array_equal(scaler.image(file.getvalue()), decoded(file.getvalue()))


def test_scaling_agrees_with_pils_triangle_filter():
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    for image in smooth(160, 120), noise:
        wanted = PIL.Image.fromarray(image).resize((64, 48), PIL.Image.BILINEAR)
        got = frames.Scaler(frames.View(48, 48)).image(compressed(image, "PNG"))
        assert np.abs(got - centre(np.asarray(wanted).astype(int), 48)).mean() < 0.5


def test_images_of_a_clip_are_stacked_and_pictures_of_other_types_refused():
    scaler = frames.Scaler(view(32))
    some = [places(60, 50), compressed(places(60, 50), "PNG")]
    clip = scaler.images(iter(some))
    assert clip.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(*clip)
    for wrong in np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros(9, np.uint8):
        with pytest.raises(ValueError):
            scaler.image(wrong)
    for size in (1, 1), (2, 2), (3, 2), (1, 8):
        assert scaler.image(compressed(smooth(*size))).shape == (32, 32, 3)


@pytest.mark.parametrize(
    "kind, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})]
)
def test_an_image_that_was_cut_anywhere_is_refused(kind, options):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = compressed(noise, kind, **options)
    scaler = frames.Scaler(frames.View(64, 64))
    wanted = scaler.image(data)
    end = 2 if kind == "JPEG" else 12  # of a PNG all is there before its last chunk, which is empty
    for length in [*range(2, len(data) - end, 31), *range(len(data) - end - 20, len(data) - end)]:
        with pytest.raises(ValueError, match="damaged"):
            scaler.image(data[:length])
        if kind == "JPEG" and not options and 0.2 < length / len(data) < 0.9:
            with pytest.raises(ValueError, match="damaged"):
                scaler.image(data[:length] + data[-2:])
    np.testing.assert_array_equal(scaler.image(data), wanted)
    with pytest.raises(ValueError, match="expected a JPEG or PNG image, got bytes b'GIF89a"):
        scaler.image(b"GIF89a" + data)
    with pytest.raises(ValueError, match="expected a JPEG or PNG"):
        scaler.image(b"")


def test_damage_within_an_image_gives_an_image_or_a_value_error_and_never_another():
    random, scaler = np.random.default_rng(0), frames.Scaler(frames.View(40, 40))
    refused = 0
    for kind in "JPEG", "PNG":
        data = compressed(smooth(50, 40), kind)
        for place in random.integers(2, len(data), 200):
            wrong = bytearray(data)
            wrong[place] ^= random.integers(1, 256)
            try:
                assert scaler.image(bytes(wrong)).shape == (40, 40, 3)
            except ValueError:
                refused += kind == "PNG"
    assert refused >= 199  # checksums


BOMB = """
import resource, sys
from lawm_jax.data import frames
import av, numpy as np
scaler = frames.Scaler(frames.View(32, 32))
scaler.image(np.zeros((32, 32, 3), np.uint8))
frames.MAX_PIXELS = int(sys.argv[1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27,) * 2)
for name in sys.argv[2:]:
    try:
        scaler.image(open(name, "rb").read())
    except (ValueError, MemoryError) as error:
        print(repr(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to limit memory")
def test_a_header_that_promises_gigapixels_is_refused_before_memory_is_taken(tmp_path):
    names = []
    for width, height in (65000, 65000), (20000, 12000):
        size = struct.pack(">2I", width, height)
        data = compressed(smooth(64, 64), "PNG")
        data = data[:16] + size + data[24:29]
        names.append(tmp_path / f"{width}.png")
        whole = compressed(smooth(64, 64), "PNG")
        names[-1].write_bytes(data + struct.pack(">I", zlib.crc32(data[12:])) + whole[33:])
        data = bytearray(compressed(smooth(64, 64)))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">2H", height, width)
        names.append(tmp_path / f"{width}.jpg")
        names[-1].write_bytes(data)

    def refusals(most):
        command = [sys.executable, "-c", BOMB, str(most), *map(str, names)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        return run.stdout.splitlines()

    refused = refusals(frames.MAX_PIXELS)
    assert len(refused) == 4 and not any("memory" in line.lower() for line in refused)
    assert all(line.startswith("ValueError('damaged") for line in refused)
    assert any("memory" in line.lower() for line in refusals(2**31 - 1))  # what it is kept from


# Shot cuts


def scene(seed, width, height):
    """Draws a picture with forms and colours of its own, which differ from part to part."""
    random = np.random.default_rng(seed)
    grid = random.uniform(0, 255, 3) + random.normal(0, 40, (6, 9, 3))
    grid = np.clip(grid, 0, 255).astype(np.uint8)
    return np.asarray(PIL.Image.fromarray(grid).resize((width, height), PIL.Image.BICUBIC))


def refused(video, most=0.225):
    """Says after how many frames a cut is found, or 0."""
    clip = {"video": np.asarray(video), "episode": "a.mp4", "start": 1.5}
    try:
        frames.refuse_cuts(clip, most)
        return 0
    except frames.UnreadableVideo as error:
        assert (error.path, error.start) == ("a.mp4", 1.5)
        return int(error.reason.removeprefix("shot cut after ").removesuffix(" frames"))


def test_a_change_is_measured_by_its_share_of_the_picture_and_of_its_colours():
    black = np.zeros((3, 64, 64, 3), np.uint8)
    half = black.copy()
    half[2, :, :32] = 255  # half of the cells change wholly, half of the points lose their colour
    assert refused(half, 0.49) == 2 and refused(half, 0.51) == 0
    moved = black.copy()
    moved[:2, :, :32] = moved[2, :, 32:] = 255  # all cells change, no colour does
    assert refused(moved, 0.01) == 0
    assert refused(black, 0.01) == 0 and refused(255 - black[:1], 0.01) == 0
    for most in 0, 1.5, -1:
        with pytest.raises(ValueError, match="data.augment.cut: expected more than 0"):
            refused(black, most)


@pytest.mark.parametrize("width, height", [(8, 8), (31, 9), (63, 100), (128, 128)])
def test_cuts_are_found_in_pictures_of_any_size(width, height):
    found = 0
    for seed in range(20):
        first, second = scene(seed, width, height), scene(100 + seed, width, height)
        found += refused([first] * 3 + [second] * 4) == 3
    assert found >= 19


def test_pans_fast_motion_and_slow_fades_are_no_cuts_but_a_flash_is():
    for seed in range(10):
        wide = scene(seed, 640, 128)
        assert refused([wide[:, 40 * i : 40 * i + 128] for i in range(8)]) == 0  # a third a frame
        still, ball = scene(seed, 128, 128), np.mgrid[:128, :128]
        passing = np.stack([still] * 8)
        for i in range(8):
            passing[i][np.hypot(ball[0] - 64, ball[1] - 40 * i + 60) < 30] = 250, 40, 40
        assert refused(passing) == 0
        other = scene(100 + seed, 128, 128).astype(float)
        fade = [still + (other - still) * i / 8 for i in range(9)]
        assert refused(np.array(fade).astype(np.uint8)) == 0
        flash = np.stack([still] * 8)
        flash[5] = 255 - (255 - flash[5]) // 4
        assert refused(flash) in (5, 6)


def test_clips_with_cuts_are_replaced_and_reported(tmp_path):
    names = {}
    for number in range(5):
        shots = [scene(number, 64, 64)] * 16
        if number == 2:
            light = scene(number, 64, 64) // 2  # no clip of 4 frames is without a cut
            shots = [light if i // 2 % 2 else 255 - light for i in range(16)]
        names[number] = write(tmp_path / f"{number}.mkv", shots)
    log = tmp_path / "skipped.jsonl"
    settings = config(str(tmp_path), {"cut": 0.225})
    items = catalog.source(settings, "videos").items
    assert names[2] in items and len(items) == 4  # one is held out

    def seen(settings):
        stream = pipeline.clips(settings, skipped=str(log))
        return {items[i] for batch in take(stream, 6) for i in batch["episode"]}

    assert seen(settings) == set(items) - {names[2]}
    (line,) = [json.loads(text) for text in log.read_text().splitlines()]
    assert line["path"] == names[2] and line["reason"].startswith("shot cut ")
    settings.data.augment.cut = 0.0
    assert seen(settings) == set(items)

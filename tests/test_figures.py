"""Figures and films: what is drawn can be read back."""

import re
import xml.etree.ElementTree

import av
import numpy as np
import pytest
from PIL import Image

from lawm_jax.evaluate import figures as pictures
from lawm_jax.report import figures

COLORS = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 220]], np.uint8)


def clips(T=6, H=40, W=48):
    """Three labelled clips, each of one color that darkens step by step."""
    fade = np.linspace(1, 0.5, T)[:, None, None, None]
    return {
        f"color {i}": (fade * np.broadcast_to(color, (T, H, W, 3))).astype(np.uint8)
        for i, color in enumerate(COLORS)
    }


def middles(image, expected):
    """Checks that each clip's color fills its share of an image, but for 6 grey levels."""
    image = image.astype(int)
    for color in expected:
        near = (np.abs(image - color.astype(int)) <= 6).all(-1)
        rows, columns = np.nonzero(near)
        assert near.sum() > 0.9 * 240 * 288
        assert 234 <= np.ptp(rows) <= 240 and 280 <= np.ptp(columns) <= 288  # edges blend


def test_a_film_has_every_step_side_by_side_in_its_colours_and_even_sizes(tmp_path):
    rows = clips()
    pictures.movie(tmp_path / "a.mp4", rows, fps=5.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 5
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 6
    height, width = frames[0].shape[:2]
    assert height % 2 == width % 2 == 0 and 240 < height < 330 and 3 * 288 < width < 3 * 310
    for t, frame in enumerate(frames):  # 40 x 48 pixels are enlarged six times
        middles(frame, [clip[t, 0, 0] for clip in rows.values()])
    places = [np.argwhere((np.abs(frames[0].astype(int) - c) <= 6).all(-1)) for c in COLORS]
    assert [p[:, 1].mean() for p in places] == sorted(p[:, 1].mean() for p in places)


def test_a_films_index_comes_before_its_frames_and_the_same_clips_give_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        pictures.movie(tmp_path / name, clips())
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_a_film_shows_labels_and_a_bar_that_grows(tmp_path):
    film = pictures.montage(["a", "b"], np.zeros((2, 4, 60, 60, 3), np.uint8), 4)
    blue = [(frame == pictures.MARK).all(-1).any(0).sum() for frame in film]
    full = film.shape[2] - 20 - 72  # without margins and the step's number
    np.testing.assert_allclose(blue, full * np.arange(1, 5) / 4, atol=2)
    other = pictures.montage(["a", "c"], np.zeros((2, 4, 60, 60, 3), np.uint8), 4)
    changed = np.argwhere((film != other).any((0, 3)))
    assert len(changed) and (changed[:, 1] > film.shape[2] / 2).all()


def test_a_long_label_stays_within_its_clip():
    for label in ("x" * 200, "many words " * 30, "rollout, noisy 1e-5"):
        font, lines = pictures.fitted(label, 240, 16)
        assert lines and max(font.getlength(line) for line in lines) <= 240
    assert pictures.fitted("rollout of the deterministic model", 240, 16)[1] == [
        "rollout of the",
        "deterministic model",
    ]


def test_wrong_films_are_refused(tmp_path):
    one = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="path: expected a path that ends in .mp4"):
        pictures.movie(tmp_path / "a.avi", {"a": one})
    with pytest.raises(ValueError, match="rows: expected at least one"):
        pictures.movie(tmp_path / "a.mp4", {})
    for wrong in (one[:1], one.astype(float), one[..., 0]):
        with pytest.raises(ValueError, match=r"rows: expected uint8 \[T, H, W, 3\].*'b'"):
            pictures.movie(tmp_path / "a.mp4", {"a": one, "b": wrong})


def test_strips_put_the_frames_in_rows_and_columns(tmp_path):
    rows = clips(T=3, H=30, W=30)
    pictures.strips(tmp_path / "a.png", "title", rows | {"gap": None, "short": rows["color 0"][:1]})
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    previous = -1
    for clip in rows.values():
        places = [np.argwhere((image == frame[0, 0]).all(-1)) for frame in clip]
        y = [p[:, 0].mean() for p in places[1:]]  # the first frame of color 0 comes twice
        x = [p[:, 1].mean() for p in places]
        assert np.ptp(y) < 1 and y[0] > previous and x == sorted(x)
        previous = y[0]


def paths(svg):
    """Lists the coloured lines of an SVG: (color, vertices [k, 2] in points)."""
    found = []
    for path in re.findall(r"<path [^>]*>", svg):
        color = re.search(r"stroke: (#\w+)", path)
        points = re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)
        if color and len(points) > 1:
            found.append((color[1], np.array(points, float)))
    return found


def interval(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def test_capacity_grows_to_the_right_whatever_the_order_given():
    noisy = [(1e-5, interval(0.80)), (1e-3, interval(0.97)), (1e-4, interval(0.91))]
    codes = [(1024, interval(0.90)), (16, interval(0.93))]
    bounds = {"copy last frame": 1.0, "deterministic": 0.95, "none": 0.78}
    svg = figures.capacity(None, {"noisy": noisy, "discrete": codes}, bounds)
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    assert [x for x in texts if x in ("1e-3", "1e-4", "1e-5", "16", "1024")] == [
        "1e-3", "1e-4", "1e-5", "16", "1024",
    ]  # fmt: skip
    assert {"beta", "codes", "noisy", "discrete", *bounds} <= set(texts)
    curves = [(c, p) for c, p in paths(svg) if c in pictures.COLORS and len(p) > 1]
    (_, first), (_, second) = [
        next(x for x in curves if x[0] == color) for color in pictures.COLORS[:2]
    ]
    assert (np.diff(first[:, 0]) > 0).all() and (np.diff(second[:, 0]) > 0).all()
    # The same scale for all: y falls by as many points per unit between any two values.
    scale = (first[2, 1] - first[0, 1]) / (0.97 - 0.80)
    np.testing.assert_allclose(np.diff(first[:, 1]), [0.06 * scale, 0.11 * scale], atol=0.01)
    np.testing.assert_allclose(second[:, 1] - first[0, 1], [0.04 * scale, 0.07 * scale], atol=0.01)
    bars = [p for c, p in curves if np.ptp(p[:, 0]) == 0]
    assert len(bars) == 5
    np.testing.assert_allclose([np.ptp(p[:, 1]) for p in bars], 0.02 * scale, atol=0.01)


def test_one_clips_interval_is_left_out_and_no_kind_is_refused(tmp_path):
    alone = [(16, {"mean": 0.9, "low": None, "high": None})]
    figures.capacity(tmp_path / "a.png", {"discrete": alone}, {})
    assert Image.open(tmp_path / "a.png").size[0] > 300
    with pytest.raises(ValueError, match="kinds: expected at least one"):
        figures.capacity(None, {}, {})


def test_svg_is_xml_in_the_pages_own_colour_with_the_same_bytes_twice():
    lines = {"a<b> $x$": [(k, interval(0.1 * k)) for k in range(1, 5)]}
    one, two = (figures.curves(None, lines, "steps", "error") for _ in range(2))
    assert one == two
    root = xml.etree.ElementTree.fromstring(one)
    text = "".join(root.itertext())
    assert "a<b> $x$" in text and "steps" in text
    assert "currentColor" in one and "#000000" not in one


def test_intervals_stand_under_each_other_as_long_as_they_are():
    values = {"a": interval(0.5), "b": {"mean": 0.7, "low": None, "high": None}}
    values |= {"c": {"mean": 0.6, "low": 0.5, "high": 0.8}}
    svg = figures.intervals(None, values, "error, m", muted=["a"])
    colors = ["#8c8c8c", pictures.COLORS[0], pictures.COLORS[1]]
    marks = [float(re.findall(rf'<use [^>]*x="([\d.]+)"[^>]*fill: {c}', svg)[0]) for c in colors]
    bars = {c: p for c, p in paths(svg) if c in colors and np.ptp(p[:, 1]) == 0}
    assert bars.keys() == {colors[0], colors[2]}  # one has no bounds
    scale = (marks[1] - marks[0]) / 0.2  # per unit
    assert marks[2] - marks[0] == pytest.approx(0.1 * scale, abs=0.01)
    np.testing.assert_allclose(bars[colors[2]][:, 0] - marks[0], [0, 0.3 * scale], atol=0.01)
    assert bars[colors[0]][0, 1] < bars[colors[2]][0, 1]  # y points down
    assert "error, m" in svg


def test_an_embedding_has_a_mark_for_every_point():
    random = np.random.default_rng(0)
    sets = {"inferred": random.normal(size=(30, 2)), "prior": random.normal(size=(20, 2))}
    svg = pictures.embedding(None, sets)
    marks = {c: len(re.findall(rf"<use [^>]*fill: {c}", svg)) for c in pictures.COLORS[:2]}
    assert marks == {pictures.COLORS[0]: 31, pictures.COLORS[1]: 21}  # with those of the legend
    assert "inferred (30)" in svg and "prior (20)" in svg


def test_the_loss_curve_is_relative_and_a_half_written_line_is_left_out():
    text = b'{"step": 1, "error": 0.4, "copy": 0.4}\n{"step": 2, "error": 0.1, "copy": 0.2}\n{"st'
    lines = pictures.parse_metrics(text)
    assert [line["step"] for line in lines] == [1, 2]
    found = paths(pictures.loss_curve(None, {"a": lines}))
    curve = next(p for c, p in found if c == pictures.COLORS[0])
    copy = next(p for c, p in found if len(p) == 2 and c == "#8c8c8c" and np.ptp(p[:, 1]) == 0)
    # y points down: the curve starts at 1, where copying lies, and ends at a half below it.
    assert len(curve) == 2 and curve[0, 1] == pytest.approx(copy[0, 1]) and curve[1, 1] > 150


@pytest.mark.parametrize(
    "x,text", [(16, "16"), (0.01, "0.01"), (3e-4, "3e-4"), (1e-5, "1e-5"), (0, "0"), (4096, "4096")]
)
def test_a_strength_is_short(x, text):
    assert figures.short(x) == text

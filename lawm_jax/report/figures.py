"""Pictures of what a model learned. Matplotlib draws; nothing here computes with the model."""

import fractions
import functools
import io
import itertools
import json
import pathlib
import textwrap

import numpy as np

from lawm_jax.report import row_names


def strips(path, title, rows, columns=None):
    """Draws rows of frames under each other, such as one row per model.

    Args:
      path: of the PNG.
      title: above the picture.
      rows: label -> uint8 [T, H, W, 3], or None for a gap; rows may differ in T.
      columns: their names; None numbers the steps.
    """
    plt = _pyplot()
    shown = [frames for frames in rows.values() if frames is not None]
    T, shape = max(map(len, shown)), np.shape(shown[0])
    # Sizes in inches, so that gaps are thin whatever the number of rows and columns.
    cell, gap, left, top = 1.25, 0.05, 1.6, 0.65
    tall = cell * shape[1] / shape[2]
    width = left + T * (cell + gap)
    sizes = [tall if frames is not None else 0.3 * tall for frames in rows.values()]
    height = top + sum(sizes) + gap * len(sizes)
    figure = plt.figure(figsize=(width, height))
    lower = height - top
    for (label, frames), size in zip(rows.items(), sizes, strict=True):
        lower -= size
        if frames is not None:
            text = "\n".join(textwrap.wrap(label, 22)) or label
            x = (left - 0.12) / width
            figure.text(x, (lower + size / 2) / height, text, ha="right", va="center", fontsize=9)
        for t, frame in enumerate([] if frames is None else frames):
            x = left + t * (cell + gap)
            axis = figure.add_axes((x / width, lower / height, cell / width, tall / height))
            axis.imshow(frame)
            axis.axis("off")
        lower -= gap
    for t, name in enumerate(columns or [f"step {t}" for t in range(T)]):
        x = left + t * (cell + gap) + cell / 2
        y = (height - top + 0.06) / height
        figure.text(x / width, y, name, ha="center", fontsize=8, color="0.35")
    figure.text(0.12 / width, (height - 0.25) / height, title, fontsize=11, va="center")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def movie(path, rows, fps=4, scale=None):
    """Writes clips side by side as a film, each with its label above, and the step below.

    Args:
      path: of the film, .mp4 (H.264, which plays in every browser).
      rows: label -> uint8 [T, H, W, 3], all of one shape; up to four stand in a line.
      fps: steps per second.
      scale: whole factor that enlarges the frames; None: so that they are at least 240 high.

    Raises:
      ValueError: nothing to show, frames of another dtype or shape, or another suffix.
    """
    if not rows:
        raise ValueError("rows: expected at least one label with its frames, got none")
    shape = np.shape(next(iter(rows.values())))
    for label, frames in rows.items():
        got, dtype = np.shape(frames), np.asarray(frames).dtype
        if got != shape or len(got) != 4 or not got[0] or got[3] != 3 or dtype != np.uint8:
            raise ValueError(
                f"rows: expected uint8 [T, H, W, 3], all of one shape, got {dtype} {list(got)} for "
                f"{label!r} after {list(shape)}"
            )
    if pathlib.Path(path).suffix.lower() != ".mp4":
        raise ValueError(f"path: expected .mp4, got {path}")
    scale = scale or -(-240 // shape[1])
    _write_mp4(str(path), _montage(list(rows), np.stack([*rows.values()]), scale), fps)


PAPER, INK, FAINT, MARK = (20, 22, 27), (240, 240, 240), (150, 153, 160), (86, 156, 245)


def _montage(labels, clips, scale):
    """Lays out clips [n, T, H, W, 3] with labels and step: uint8 [T, height, width, 3], even."""
    from PIL import Image, ImageDraw

    n, T, H, W, _ = clips.shape
    h, w, gap, columns = H * scale, W * scale, 10, -(-n // -(-n // 4))  # 5 are 3 and 2
    size = 16 if w >= 150 else 11  # of the type, pixels
    texts = [_fitted(label, w, size) for label in labels]
    top = max(len(lines) for _, lines in texts) * (size + 4) + 4
    width = gap + columns * (w + gap)
    height = gap + -(-n // columns) * (top + h + gap) + 2 * size
    still = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    draw, places = ImageDraw.Draw(still), []
    for i, (font, lines) in enumerate(texts):
        x, y = gap + i % columns * (w + gap), gap + i // columns * (top + h + gap)
        for k, line in enumerate(lines):
            middle = y + (k + 0.5) * (top - 4) / len(lines)
            draw.text((x + w / 2, middle), line, INK, font, anchor="mm")
        places.append((x, y + top))
    film = np.repeat(np.asarray(still)[None], T, 0)
    for (x, y), frames in zip(places, clips, strict=True):
        film[:, y : y + h, x : x + w] = frames.repeat(scale, 1).repeat(scale, 2)

    # A bar that fills, and the step's number.
    base, right = film.shape[1] - size - 4, film.shape[2] - gap
    room = round(4.5 * size)
    for t in range(T):
        image = Image.fromarray(film[t])
        draw = ImageDraw.Draw(image)
        end = right - room
        draw.rectangle((gap, base - 1, end, base + 1), (58, 61, 69))
        draw.rectangle((gap, base - 1, gap + (end - gap) * (t + 1) // T, base + 1), MARK)
        draw.text((right, base), f"{t + 1} / {T}", FAINT, _font(size - 2), anchor="rm")
        film[t] = np.asarray(image)
    return film


def _fitted(label, width, size):
    """Breaks a label into two lines at most, of the largest type that fits the width."""
    for points in range(size, 8, -1):
        font = _font(points)
        whole = font.getlength(label) <= width
        lines = [label] if whole else _halves(label, font)
        if max(font.getlength(line) for line in lines) <= width:
            return font, lines
    while font.getlength(label + "\u2026") > width and label:
        label = label[:-1]
    return font, [label + "\u2026"]


def _halves(label, font):
    """Breaks a text at the space that makes the longer of two lines shortest."""
    words = label.split(" ")
    breaks = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return list(min(breaks, key=lambda two: max(map(font.getlength, two)), default=(label,)))


@functools.cache
def _font(size):
    """Loads matplotlib's own sans serif, so that films look alike everywhere."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _write_mp4(path, film, fps):
    import av
    from av.video.reformatter import Colorspace

    # A page can start to play what has its index first; one thread gives the same bytes anywhere.
    with av.open(path, "w", options={"movflags": "+faststart"}) as container:
        rate = fractions.Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = film.shape[1:3]
        stream.pix_fmt = "yuv420p"
        colours = "colorprim=bt709:transfer=bt709:colormatrix=bt709:threads=1"
        stream.options = {"crf": "18", "preset": "slow", "x264-params": colours}
        for image in film:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


COLOURS = ["#3f83d6", "#d9731a", "#26966b", "#a35bd0", "#d24a57", "#8a7d2c", "#1b95ab", "#c2579a"]


def capacity(path, kinds, bounds, label="one-step error / copying", xlabels=None):
    """Draws a measure against capacity, which grows to the right, a panel per kind of latent.

    Args:
      path: of the PNG or SVG; None returns SVG to put into a page, in the page's own colours.
      kinds: kind -> [(strength, interval)] in any order, such as "noisy" -> [(1e-5, {"mean",
        "low", "high"})]; low and high may be None. A weak regulariser, or many codes, leave more
        capacity.
      bounds: name -> value, drawn as horizontal lines.
      label: what is measured.
      xlabels: kind -> what its strength is called.

    Raises:
      ValueError: no kind.
    """
    if not kinds:
        raise ValueError("kinds: expected at least one kind of latent, got none")
    names = {"sparse": "l1", "noisy": "beta", "discrete": "codes"} | (xlabels or {})
    plt = _pyplot()
    figure, axes = plt.subplots(
        1,
        len(kinds),
        figsize=(1.8 + 2.1 * len(kinds) + (1 if len(kinds) == 1 else 0), 2.9),
        sharey=True,
        squeeze=False,
    )
    for axis, (kind, points), colour in zip(axes[0], kinds.items(), _colours(), strict=False):
        points = sorted(points, key=lambda point: point[0], reverse=kind != "discrete")
        strengths, values = [short(x) for x, _ in points], [value for _, value in points]
        place = range(len(points))
        axis.plot(place, [v["mean"] for v in values], color=colour, marker="o", ms=4, lw=1.6)
        for x, value in zip(place, values, strict=True):
            if value["low"] is not None:
                axis.plot([x, x], [value["low"], value["high"]], color=colour, lw=1.2)
        for value in bounds.values():
            axis.axhline(value, color="0.55", lw=1, ls=(0, (4, 3)))
        axis.set_xticks(place, strengths)
        axis.set_xlim(-0.4, len(points) - 0.6)
        axis.set_title(kind, color=colour, fontsize=10)
        axis.set_xlabel(names.get(kind, "strength"))
    axes[0][0].set_ylabel(label)
    _name_lines(axes[0][-1], bounds)
    return _finish(figure, path)


def _spread(values, least):
    """Moves values apart, upwards from the lowest, `least` from one to the next."""
    places, last = list(values), -np.inf
    for i in np.argsort(values):
        places[i] = last = max(values[i], last + least)
    return places


def short(x):
    """Writes a strength: 16, 0.01, 3e-4."""
    mantissa, _, exponent = f"{x:e}".partition("e")
    small = 0 < abs(x) < 0.01
    return f"{float(mantissa):g}e{int(exponent)}" if small else f"{x:g}"


def shares(path, lines, bounds, xlabel, ylabel):
    """Draws a measure against shares in percent, with intervals as bars.

    Args:
      path: as in `capacity`.
      lines: name -> [(share, interval)].
      bounds: name -> value, drawn as horizontal lines.
      xlabel, ylabel: of the axes.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(5.9, 3.4))
    for i, ((name, points), colour) in enumerate(zip(lines.items(), _colours(), strict=False)):
        x = np.array([share for share, _ in points]) + 1.2 * (i - (len(lines) - 1) / 2)
        values = [value for _, value in points]  # beside each other, so that all bars are seen
        mean = [value["mean"] for value in values]
        axis.plot(x, mean, color=colour, marker="o", ms=4, lw=1.6, label=name)
        for at, value in zip(x, values, strict=True):
            if value["low"] is not None:
                axis.plot([at, at], [value["low"], value["high"]], color=colour, lw=1.2)
    axis.set_xticks(sorted({share for points in lines.values() for share, _ in points}))
    axis.set(xlabel=xlabel, ylabel=ylabel)
    for value in bounds.values():
        axis.axhline(value, color="0.55", lw=1, ls=(0, (4, 3)))
    axis.set_ylim(bottom=0)
    _name_lines(axis, bounds)
    place = dict(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(lines))
    axis.legend(frameon=False, fontsize=8, **place)  # above: lines may lie anywhere
    return _finish(figure, path)


def _name_lines(axis, bounds):
    """Names horizontal lines at the right edge of an axis, none on top of another."""
    low, high = axis.get_ylim()
    places = _spread(list(bounds.values()), 0.075 * (high - low))
    for name, y in zip(bounds, places, strict=True):
        at = dict(xycoords=("axes fraction", "data"), textcoords="offset points", xytext=(4, 0))
        axis.annotate(name, (1, y), va="center", fontsize=8, color="0.5", **at)


def curves(path, lines, xlabel, ylabel, muted=()):
    """Draws curves with their intervals as bands.

    Args:
      path: as in `capacity`.
      lines: name -> [(x, interval)].
      xlabel, ylabel: of the axes.
      muted: names of lines to compare with, drawn grey and without bands.
    """
    plt, many = _pyplot(), len(lines) > 5
    figure, axis = plt.subplots(figsize=(6.3 if many else 4.9, 3.1))
    colours, dashes = _colours(), itertools.cycle([(0, (1, 1.5)), (0, (4, 2)), "-."])
    for name, points in lines.items():
        grey = name in muted
        style = dict(color="0.55", ls=next(dashes)) if grey else dict(color=next(colours))
        x = [x for x, _ in points]
        low, mean, high = ([v[key] for _, v in points] for key in ("low", "mean", "high"))
        axis.plot(x, mean, lw=1.6, marker=None if grey else "o", ms=3, label=name, **style)
        if not grey and None not in low + high:
            axis.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.xaxis.get_major_locator().set_params(integer=True)
    place = dict(loc="center left", bbox_to_anchor=(1, 0.5)) if many else {}
    axis.legend(frameon=False, fontsize=8, **place)
    return _finish(figure, path)


def intervals(path, values, label, muted=()):
    """Draws values with their intervals under each other, the first at the top.

    Args:
      path: as in `capacity`.
      values: name -> interval, {"mean", "low", "high"}; low and high may be None.
      label: what is measured.
      muted: names to compare with, drawn grey.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(5.6, 0.7 + 0.27 * len(values)))
    colours = _colours()
    for y, (name, value) in enumerate(values.items()):
        colour = "0.55" if name in muted else next(colours)
        axis.plot([value["mean"]], [y], color=colour, marker="o", ms=5)
        if value["low"] is not None:
            axis.plot([value["low"], value["high"]], [y, y], color=colour, lw=1.6)
    axis.set_yticks(range(len(values)), list(values), fontsize=9)
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.set_xlabel(label)
    axis.grid(axis="x", color="0.55", alpha=0.25, lw=0.8)
    return _finish(figure, path)


def embedding(path, sets):
    """Draws points of a plane, such as inferred and sampled latents.

    Args:
      path: as in `capacity`.
      sets: name -> [m, 2].
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(4.9, 4.2))
    for (name, points), colour in zip(sets.items(), _colours(), strict=False):
        points = np.asarray(points)
        axis.scatter(
            *points.T, s=9, color=colour, alpha=0.55, lw=0, label=f"{name} ({len(points)})"
        )
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)
    legend = axis.legend(
        frameon=False, loc="upper left", bbox_to_anchor=(0, 0), ncols=2, fontsize=9
    )
    for handle in legend.legend_handles:
        handle.set(alpha=1, sizes=[25])
    return _finish(figure, path)


def loss_curve(path, runs):
    """Draws training error, relative to copying the last frame, against steps.

    Args:
      path: as in `capacity`.
      runs: name -> lines of metrics.jsonl, as dicts with `step`, `error`, `copy`.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(4.9, 3.1))
    runs = {name: lines for name, lines in runs.items() if lines}
    for (name, lines), colour in zip(runs.items(), _colours(), strict=False):
        steps = np.array([line["step"] for line in lines])
        error = np.array([line["error"] / max(line["copy"], 1e-9) for line in lines])
        # Single batches scatter: their mean over a tenth of the run is the line to read.
        window = np.hanning(min(max(3, len(error) // 10), len(error)) + 2)[1:-1]
        smooth = np.convolve(error, window, "same") / np.convolve(error * 0 + 1, window, "same")
        axis.plot(steps, error, color=colour, lw=0.8, alpha=0.3)
        axis.plot(steps, smooth, color=colour, lw=1.7, label=name)
    axis.axhline(1, color="0.55", lw=1, ls=(0, (4, 3)), label=row_names.COPY)
    axis.set(xlabel="step", ylabel="training error / copying")
    axis.legend(frameon=False, fontsize=8)
    return _finish(figure, path)


def read_metrics(path):
    """Reads metrics.jsonl: a list of dicts, one per logged step; but a half-written line."""
    lines = []
    with open(path, "rb") as file:
        for line in file:
            try:
                lines.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
    return lines


def _colours():
    return itertools.cycle(COLOURS)


def _finish(figure, path):
    """Saves a figure, or returns it as SVG that takes the text colour of the page around it."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    if path is not None:
        figure.savefig(path, dpi=130, bbox_inches="tight")
        _pyplot().close(figure)
        return None
    import matplotlib

    file, ink = io.StringIO(), "#123456"
    for artist in figure.findobj(lambda x: getattr(x, "get_color", str)() in ("black", "k")):
        artist.set_color(ink)
    for axis in figure.axes:
        axis.tick_params(color=ink, labelcolor=ink)
        axis.spines[:].set_edgecolor(ink)
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "lawm_jax", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    _pyplot().close(figure)
    text = file.getvalue()
    return text[text.index("<svg") :].replace(ink, "currentColor")


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a run may be called "a$b$"
    import matplotlib.pyplot

    return matplotlib.pyplot

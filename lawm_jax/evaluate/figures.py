"""Draws figures with matplotlib, and videos; does not run the model."""

import functools
import io
import itertools
import json
import pathlib
import textwrap

import numpy as np

from lawm_jax.data import mp4
from lawm_jax.evaluate import row_names

COLORS = ["#3f83d6", "#d9731a", "#26966b", "#a35bd0", "#d24a57", "#8a7d2c", "#1b95ab", "#c2579a"]
# One thread makes the output deterministic.
BT709 = "colorprim=bt709:transfer=bt709:colormatrix=bt709:threads=1"
FILM = {"crf": "18", "preset": "slow", "x264-params": BT709}
PAPER, INK, FAINT, MARK = (20, 22, 27), (240, 240, 240), (150, 153, 160), (86, 156, 245)


def strips(path, title, rows, columns=None):
    """Draws rows of frames below each other, such as one row per model.

    Args:
      path: path of the PNG.
      title: title of the figure.
      rows: label -> uint8 [T, H, W, 3], or None for a gap; rows may differ in T.
      columns: column names; None numbers the steps.
    """
    plt = pyplot()
    present = [frames for frames in rows.values() if frames is not None]
    T, shape = max(map(len, present)), np.shape(present[0])
    # Sizes in inches, so that gaps do not depend on the number of rows and columns.
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


def movie(path, rows, fps=4):
    """Writes clips side by side as a video, with a label above each clip and a step counter below.

    Frames are enlarged by an integer to a height of at least 240.

    Args:
      path: path of the video, .mp4 (H.264, which plays in every browser).
      rows: label -> uint8 [T, H, W, 3], all of the same shape; at most four clips per line.
      fps: steps per second.

    Raises:
      ValueError: `rows` is empty, frames differ in shape or are not uint8, or the suffix is not
        .mp4.
    """
    if not rows:
        raise ValueError("rows: expected at least one labeled clip, got none")
    shape = np.shape(next(iter(rows.values())))
    for label, frames in rows.items():
        got, dtype = np.shape(frames), np.asarray(frames).dtype
        if got != shape or len(got) != 4 or not got[0] or got[3] != 3 or dtype != np.uint8:
            raise ValueError(
                f"rows: expected uint8 [T, H, W, 3] of the same shape, got {dtype} {list(got)} for "
                f"{label!r} and {list(shape)} for the first row"
            )
    if pathlib.Path(path).suffix.lower() != ".mp4":
        raise ValueError(f"path: expected a path that ends in .mp4, got {path}")
    film = montage(list(rows), np.stack([*rows.values()]), scale=-(-240 // shape[1]))
    mp4.write(path, film, fps, FILM, bt709=True)


def montage(labels, clips, scale):
    """Lays out labeled clips [n, T, H, W, 3]: uint8 [T, height, width, 3], of even size."""
    from PIL import Image, ImageDraw

    n, T, H, W, _ = clips.shape
    h, w, gap, columns = H * scale, W * scale, 10, -(-n // -(-n // 4))  # 5 clips: rows of 3 and 2
    size = 16 if w >= 150 else 11  # font size in pixels
    texts = [fitted(label, w, size) for label in labels]
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

    # A progress bar and the step number.
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


def fitted(label, width, size):
    """Breaks a label into at most two lines, in the largest font that fits the width."""
    for points in range(size, 8, -1):
        font = _font(points)
        fits = font.getlength(label) <= width
        lines = [label] if fits else _halves(label, font)
        if max(font.getlength(line) for line in lines) <= width:
            return font, lines
    while font.getlength(label + "\u2026") > width and label:
        label = label[:-1]
    return font, [label + "\u2026"]


def _halves(label, font):
    """Breaks text at the space that minimizes the longer of two lines."""
    words = label.split(" ")
    breaks = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return list(min(breaks, key=lambda two: max(map(font.getlength, two)), default=(label,)))


@functools.cache
def _font(size):
    """Loads matplotlib's own sans serif font, so that videos look alike on all machines."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def embedding(path, sets):
    """Draws points in the plane, name -> [m, 2], as a PNG at path or, if it is None, as SVG."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.9, 4.2))
    for (name, points), color in zip(sets.items(), colors(), strict=False):
        points = np.asarray(points)
        axis.scatter(*points.T, s=9, color=color, alpha=0.55, lw=0, label=f"{name} ({len(points)})")
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)
    legend = axis.legend(
        frameon=False, loc="upper left", bbox_to_anchor=(0, 0), ncols=2, fontsize=9
    )
    for handle in legend.legend_handles:
        handle.set(alpha=1, sizes=[25])
    return finish(figure, path)


def curves(path, panels):
    """Draws curves over the steps of a clip as a PNG, with a panel for each group of them.

    Args:
      path: path of the PNG.
      panels: title -> {label: [T] values}; the first curve of a panel is drawn thicker.
    """
    plt = pyplot()
    figure, axes = plt.subplots(
        1, len(panels), figsize=(0.5 + 3.6 * len(panels), 2.9), squeeze=False
    )
    for axis, (title, group) in zip(axes[0], panels.items(), strict=True):
        for i, ((label, values), color) in enumerate(zip(group.items(), colors(), strict=False)):
            steps = np.arange(1, len(values) + 1)
            axis.plot(steps, values, color=color, lw=1.5 if i else 2.4, marker=".", label=label)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.axhline(0, color="0.8", lw=0.8, zorder=0)
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.3))
    return finish(figure, path)


def loss_curve(path, runs):
    """Draws training errors relative to copying as a PNG at path or, if it is None, as SVG.

    `runs` maps names to the lines of metrics.jsonl, dicts with `step`, `error` and `copy`.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.9, 3.1))
    runs = {name: lines for name, lines in runs.items() if lines}
    for (name, lines), color in zip(runs.items(), colors(), strict=False):
        steps = np.array([line["step"] for line in lines])
        error = np.array([line["error"] / max(line["copy"], 1e-9) for line in lines])
        # Errors of single batches are noisy; the main line averages over a tenth of the run.
        window = np.hanning(min(max(3, len(error) // 10), len(error)) + 2)[1:-1]
        smooth = np.convolve(error, window, "same") / np.convolve(error * 0 + 1, window, "same")
        axis.plot(steps, error, color=color, lw=0.8, alpha=0.3)
        axis.plot(steps, smooth, color=color, lw=1.7, label=name)
    axis.axhline(1, color="0.55", lw=1, ls=(0, (4, 3)), label=row_names.COPY)
    axis.set(xlabel="step", ylabel="training error relative to copying")
    axis.legend(frameon=False, fontsize=8)
    return finish(figure, path)


def parse_metrics(content):
    """Parses the bytes of metrics.jsonl: one dict per logged step, without malformed lines."""
    lines = []
    for line in content.splitlines():
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return lines


def colors():
    return itertools.cycle(COLORS)


def finish(figure, path):
    """Saves a figure or, if path is None, returns SVG that inherits the page's text color."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    if path is not None:
        figure.savefig(path, dpi=130, bbox_inches="tight")
        pyplot().close(figure)
        return None
    import matplotlib

    file, ink = io.StringIO(), "#123456"  # a color that nothing else has; replaced below
    for artist in figure.findobj(lambda x: getattr(x, "get_color", str)() in ("black", "k")):
        artist.set_color(ink)
    for axis in figure.axes:
        axis.tick_params(color=ink, labelcolor=ink)
        axis.spines[:].set_edgecolor(ink)
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "lawm_jax", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    pyplot().close(figure)
    text = file.getvalue()
    return text[text.index("<svg") :].replace(ink, "currentColor")


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a run's name may contain "$"
    import matplotlib.pyplot

    return matplotlib.pyplot

"""Draws the report's charts: metrics versus capacity, mixture share or steps, and intervals."""

import itertools

import numpy as np

from lawm_jax.evaluate.figures import colors, finish, pyplot


def capacity(path, kinds, bounds):
    """Plots one-step errors against capacity, increasing to the right, a panel per kind of latent.

    Args:
      path: of the PNG or SVG; None returns SVG to embed in a page, in the page's colors.
      kinds: kind -> [(strength, interval)] in any order, such as "noisy" -> [(1e-5, {"mean",
        "low", "high"})]; low and high may be None. A weaker regularizer or more codes leave more
        capacity.
      bounds: name -> value, drawn as horizontal lines.

    Raises:
      ValueError: `kinds` is empty.
    """
    if not kinds:
        raise ValueError("kinds: expected at least one kind of latent, got none")
    names = {"sparse": "l1", "noisy": "beta", "discrete": "codes"}
    plt = pyplot()
    figure, axes = plt.subplots(
        1,
        len(kinds),
        figsize=(1.8 + 2.1 * len(kinds) + (1 if len(kinds) == 1 else 0), 2.9),
        sharey=True,
        squeeze=False,
    )
    for axis, (kind, points), color in zip(axes[0], kinds.items(), colors(), strict=False):
        points = sorted(points, key=lambda point: point[0], reverse=kind != "discrete")
        strengths, values = [short(x) for x, _ in points], [value for _, value in points]
        place = range(len(points))
        _draw(axis, place, values, color=color)
        for value in bounds.values():
            axis.axhline(value, color="0.55", lw=1, ls=(0, (4, 3)))
        axis.set_xticks(place, strengths)
        axis.set_xlim(-0.4, len(points) - 0.6)
        axis.set_title(kind, color=color, fontsize=10)
        axis.set_xlabel(names.get(kind, "strength"))
    axes[0][0].set_ylabel("one-step error relative to copying")
    _name_lines(axes[0][-1], bounds)
    return finish(figure, path)


def shares(path, lines, bounds, xlabel, ylabel):
    """Plots a metric against mixture shares in percent, with intervals as error bars.

    Args:
      path: as in `capacity`.
      lines: name -> [(share, interval)].
      bounds: name -> value, drawn as horizontal lines.
      xlabel, ylabel: axis labels.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.9, 3.4))
    for i, ((name, points), color) in enumerate(zip(lines.items(), colors(), strict=False)):
        x = np.array([share for share, _ in points]) + 1.2 * (i - (len(lines) - 1) / 2)
        values = [value for _, value in points]  # x is offset: no error bar hides another
        _draw(axis, x, values, color=color, label=name)
    axis.set_xticks(sorted({share for points in lines.values() for share, _ in points}))
    axis.set(xlabel=xlabel, ylabel=ylabel)
    for value in bounds.values():
        axis.axhline(value, color="0.55", lw=1, ls=(0, (4, 3)))
    axis.set_ylim(bottom=0)
    _name_lines(axis, bounds)
    place = dict(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(lines))
    axis.legend(frameon=False, fontsize=8, **place)  # above the axes, clear of the lines
    return finish(figure, path)


def curves(path, lines, xlabel, ylabel, muted=(), log=False):
    """Plots curves with their intervals as bands.

    Args:
      path: as in `capacity`.
      lines: name -> [(x, interval)].
      xlabel, ylabel: axis labels.
      muted: names of reference lines, drawn gray and without bands.
      log: whether x is logarithmic, with a tick at each value of x.
    """
    plt, many = pyplot(), len(lines) > 5
    figure, axis = plt.subplots(figsize=(6.3 if many else 4.9, 3.1))
    hues, dashes = colors(), itertools.cycle([(0, (1, 1.5)), (0, (4, 2)), "-."])
    for name, points in lines.items():
        gray = name in muted
        style = dict(color="0.55", ls=next(dashes)) if gray else dict(color=next(hues))
        x = [x for x, _ in points]
        low, mean, high = ([v[key] for _, v in points] for key in ("low", "mean", "high"))
        axis.plot(x, mean, lw=1.6, marker=None if gray else "o", ms=3, label=name, **style)
        if not gray and None not in low + high:
            axis.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if log:
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axis.set_xscale("log")
        axis.set_xticks(ticks, ticks)
        axis.minorticks_off()
    else:
        axis.xaxis.get_major_locator().set_params(integer=True)
    place = dict(loc="center left", bbox_to_anchor=(1, 0.5)) if many else {}
    axis.legend(frameon=False, fontsize=8, **place)
    return finish(figure, path)


def intervals(path, values, label, muted=()):
    """Plots one row per value with its interval, the first row at the top.

    Args:
      path: as in `capacity`.
      values: name -> interval, {"mean", "low", "high"}; low and high may be None.
      label: name of the metric.
      muted: names of reference rows, drawn gray.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.6, 0.7 + 0.27 * len(values)))
    hues = colors()
    for y, (name, value) in enumerate(values.items()):
        color = "0.55" if name in muted else next(hues)
        axis.plot([value["mean"]], [y], color=color, marker="o", ms=5)
        if value["low"] is not None:
            axis.plot([value["low"], value["high"]], [y, y], color=color, lw=1.6)
    axis.set_yticks(range(len(values)), list(values), fontsize=9)
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.set_xlabel(label)
    axis.grid(axis="x", color="0.55", alpha=0.25, lw=0.8)
    return finish(figure, path)


def _draw(axis, x, values, color, label=None):
    """Draws a line through intervals, with error bars."""
    means = [value["mean"] for value in values]
    axis.plot(x, means, color=color, marker="o", ms=4, lw=1.6, label=label)
    for at, value in zip(x, values, strict=True):
        if value["low"] is not None:
            axis.plot([at, at], [value["low"], value["high"]], color=color, lw=1.2)


def _name_lines(axis, bounds):
    """Labels horizontal lines at the right edge of an axis, without overlaps."""
    low, high = axis.get_ylim()
    places = _spread(list(bounds.values()), 0.075 * (high - low))
    for name, y in zip(bounds, places, strict=True):
        at = dict(xycoords=("axes fraction", "data"), textcoords="offset points", xytext=(4, 0))
        axis.annotate(name, (1, y), va="center", fontsize=8, color="0.5", **at)


def _spread(values, least):
    """Moves values up, from the lowest on, until neighbors are at least `least` apart."""
    places, last = list(values), -np.inf
    for i in np.argsort(values):
        places[i] = last = max(values[i], last + least)
    return places


def short(x):
    """Formats a strength compactly: 16, 0.01, 3e-4."""
    mantissa, _, exponent = f"{x:e}".partition("e")
    small = 0 < abs(x) < 0.01
    return f"{float(mantissa):g}e{int(exponent)}" if small else f"{x:g}"

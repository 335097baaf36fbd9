"""Describes the columns of result tables and formats tables for the terminal. Needs no JAX."""

from typing import NamedTuple

LEVEL = 0.05  # significance level, after correction


class Column(NamedTuple):
    """Describes a column of a results table.

    Attributes:
      title: heading, with the unit.
      key: key of the value in a row, see `at`.
      digits: decimal places; None for text.
      better: "lower" or "higher", or "" if neither is better.
      signed: whether positive numbers are shown with a sign, as for differences.
    """

    title: str
    key: str
    digits: int | None = 3
    better: str = ""
    signed: bool = False

    @property
    def heading(self):
        """The title with an arrow that shows which values are better."""
        return self.title + {"lower": " ↓", "higher": " ↑", "": ""}[self.better]


class Table(NamedTuple):
    """Holds a results table.

    Attributes:
      caption: title, without the data source's name.
      columns: Columns; those without a value in any row are not shown.
      rows: dicts with a `name` and optionally a `note` or a `flag`, shown after the row. Rows
        without a value are not shown.
    """

    caption: str
    columns: tuple
    rows: list


def by_metric(caption, columns, rows):
    """Returns a list of Table, one per `metric` of the rows, which follows the caption."""
    groups = {}
    for row in rows:
        metric = row.get("metric")
        groups.setdefault(metric if isinstance(metric, str) else "", []).append(row)
    return [
        Table(f"{caption}, {metric}" if metric else caption, columns, group)
        for metric, group in groups.items()
    ]


def parts(rows, key):
    """Lists the dicts that rows hold under a key, such as one per control, named "ROW, PART"."""
    return [
        part | {"name": f"{row['name']}, {part.get('name')}"}
        for row in rows
        for part in map(mapping, listed(row.get(key)))
    ]


def text(source, tables):
    """Formats tables for a terminal, omitting tables without a filled column.

    Args:
      source: name of the data source, the first part of each caption.
      tables: list of Table.
    """
    return "\n".join(line for table in tables for line in _lines(source, table))


def _lines(source, table):
    columns = [c for c in table.columns if any(filled(at(row, c.key)) for row in table.rows)]
    if not columns:
        return []
    cells = [["", *(column.heading for column in columns), ""]]
    for row in table.rows:
        values, note = [at(row, c.key) for c in columns], row.get("flag") or row.get("note") or ""
        if note or any(map(filled, values)):
            signs = ["+" if c.signed else "" for c in columns]
            texts = [
                show(x, c.digits, sign) for x, c, sign in zip(values, columns, signs, strict=True)
            ]
            cells.append([row["name"], *texts, note])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    title = ", ".join(x for x in (source, table.caption) if x)
    lines = ["   ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)) for row in cells]
    return [f"{title} [95% interval]", *(f"  {line}".rstrip() for line in lines)]


def sentences(table):
    """States the conclusions that the paired differences of a table support.

    A difference is stated if its p-value, corrected by Holm's method over all rows of the table, is
    below `LEVEL`; otherwise the clips do not support one.

    Args:
      table: Table. Its columns of paired differences are titled "minus OTHER"; its rows have the
        results of `comparisons.paired`.

    Returns:
      One sentence per tested row.
    """
    column = next((c for c in table.columns if c.title.startswith("minus ")), None)
    measured = lambda row: real(at(row, "test.p")) and real(at(row, f"{column.key}.mean"))  # noqa: E731
    rows = [row for row in table.rows if column and measured(row)]
    lines, other = [], column.title.removeprefix("minus ") if column else ""
    for row, p in zip(rows, holm([row["test"]["p"] for row in rows]), strict=True):
        difference, d = at(row, column.key), at(row, "test.d")
        value = show(difference, column.digits, "+")
        tested = p_value(p) + (f" over {len(rows)} comparisons" if len(rows) > 1 else "")
        if p >= LEVEL:
            lines.append(
                f"{row['name']}: no significant difference from {other} ({value}, {tested})."
            )
            continue
        which = "higher" if difference["mean"] > 0 else "lower"
        lines.append(
            f"{row['name']}: {which} than {other} ({value}, {tested}, effect size {d:+.1f})."
        )
    return lines


def holm(values):
    """Adjusts p-values of several tests by Holm's method, in the given order; None stays None.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    ranked = sorted((p, i) for i, p in enumerate(values) if p is not None)
    adjusted, largest = [None] * len(values), 0.0
    for rank, (p, i) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * p))
        adjusted[i] = largest
    return adjusted


def show(x, digits=3, sign=""):
    """Formats a value: an interval as "0.806 [0.791, 0.822]", None as a dash.

    Args:
      x: {"mean", "low", "high"}, as returned by `metrics.interval`, a number, text or None.
      digits: decimal places.
      sign: "+" for differences.
    """
    if x is None or isinstance(x, str):
        return x or "-"
    if not isinstance(x, dict):
        return f"{x:{sign}.{digits}f}"
    mean, *bounds = (x[key] for key in ("mean", "low", "high"))
    bounds = "no interval" if None in bounds else ", ".join(f"{y:{sign}.{digits}f}" for y in bounds)
    return f"{mean:{sign}.{digits}f} [{bounds}]"


def p_value(p):
    """Formats a p-value: "p = 0.012" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


# The functions below tolerate missing or malformed values in result files.


def at(row, key):
    """Looks up a key, or "a.b" (key or list index b within a); returns None if missing."""
    for name in key.split(".", 1):
        if isinstance(row, list):
            row = row[int(name)] if name.isdecimal() and int(name) < len(row) else None
        else:
            row = mapping(row).get(name)
    return row


def filled(x):
    """Returns whether a value can be shown."""
    return x not in (None, "")


def mapping(x):
    """Returns a dict unchanged, and an empty dict for anything else."""
    return x if isinstance(x, dict) else {}


def listed(x):
    """Returns a list unchanged, and an empty list for anything else."""
    return x if isinstance(x, list) else []


def string(x):
    """Returns x if it is a string, else None."""
    return x if isinstance(x, str) else None


def real(x):
    """Returns whether x is a finite number."""
    return (
        isinstance(x, int | float) and not isinstance(x, bool) and x == x and abs(x) != float("inf")
    )


def drawable(x):
    """Returns whether a dict is an interval that can be plotted."""
    return (
        real(x.get("mean"))
        and all(key in x and (x[key] is None or real(x[key])) for key in ("low", "high"))
        and x.keys() <= {"mean", "low", "high", "groups"}
        and real(x.get("groups", 1))
    )

"""Columns of results, and the tables for a terminal that are made of them. Needs no JAX."""

from typing import NamedTuple


class Column(NamedTuple):
    """Describes a column of a table of results.

    Attributes:
      title: heading, with the unit.
      key: of a row's value, see `at`.
      digits: after the point; None for text.
      better: "lower" or "higher", or "" where neither is better.
      signed: whether positive numbers have a sign, as differences do.
    """

    title: str
    key: str
    digits: int | None = 3
    better: str = ""
    signed: bool = False

    @property
    def heading(self):
        """The title, with an arrow that says which values are better."""
        return self.title + {"lower": " ↓", "higher": " ↑", "": ""}[self.better]


class Table(NamedTuple):
    """Holds a table of results.

    Attributes:
      caption: what it shows, without the source's name.
      columns: Columns; those that no row fills are not shown.
      rows: dicts with a `name`, and perhaps a `note` or a `flag`, which stands behind the row. A
        row without any value is not shown.
    """

    caption: str
    columns: tuple
    rows: list


def text(source, tables):
    """Writes tables for a terminal.

    Args:
      source: name of the data that they are about, or what they are of.
      tables: list of Table.

    Returns:
      Lines, joined; a table without a filled column has none.
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
            shown = [
                show(x, c.digits, sign) for x, c, sign in zip(values, columns, signs, strict=True)
            ]
            cells.append([row["name"], *shown, note])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    title = ", ".join(x for x in (source, table.caption) if x)
    lines = ["   ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)) for row in cells]
    return [f"{title} [95 % interval]", *(f"  {line}".rstrip() for line in lines)]


def show(x, digits=3, sign=""):
    """Writes a value as text: an interval as "0.806 [0.791, 0.822]", None as a dash.

    Args:
      x: {"mean", "low", "high"}, as of `metrics.interval`, a number, text or None.
      digits: after the point.
      sign: "+" for differences.
    """
    if x is None or isinstance(x, str):
        return x or "-"
    if not isinstance(x, dict):
        return f"{x:{sign}.{digits}f}"
    mean, *bounds = (x[key] for key in ("mean", "low", "high"))
    bounds = "no interval" if None in bounds else ", ".join(f"{y:{sign}.{digits}f}" for y in bounds)
    return f"{mean:{sign}.{digits}f} [{bounds}]"


# What follows takes what stands in a file for what it should be, or for nothing.


def at(row, key):
    """Looks up a key, or "a.b", the key b (of a list, the index b) within a; None if missing."""
    for name in key.split(".", 1):
        if isinstance(row, list):
            row = row[int(name)] if name.isdigit() and int(name) < len(row) else None
        else:
            row = mapping(row).get(name)
    return row


def filled(x):
    """Says whether a value is there to be shown."""
    return x not in (None, "")


def mapping(x):
    """Returns a dict as it is, anything else as an empty one."""
    return x if isinstance(x, dict) else {}


def listed(x):
    """Returns a list as it is, anything else as an empty one."""
    return x if isinstance(x, list) else []

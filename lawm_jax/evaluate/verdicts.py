"""Verdicts: the outcome of an evaluation in one sentence, for people. Needs no JAX.

Each evaluation states the rule by which its verdict follows from its rows. Intervals are over
held-out episodes; a verdict that an interval does not decide is "undecided".
"""

from typing import NamedTuple

from lawm_jax.evaluate.tables import at, drawable, listed, real, show

HOLDS, PARTLY, FAILS, UNDECIDED = "holds", "partly", "fails", "undecided"
MARKS = {HOLDS: "✓", PARTLY: "~", FAILS: "✗", UNDECIDED: "?"}
COLORS = {HOLDS: 32, PARTLY: 33, FAILS: 31, UNDECIDED: 2}  # ANSI: green, yellow, red, faint


class Verdict(NamedTuple):
    """States whether a claim about a model holds on a data source.

    Attributes:
      claim: what was tested, in one or two words.
      answer: HOLDS, PARTLY, FAILS or UNDECIDED.
      text: the finding with its number and interval.
      paper: what the paper found, for the report.
    """

    claim: str
    answer: str
    text: str
    paper: str = ""


def line(verdict, color=False):
    """Formats a verdict for the terminal, with ANSI colors if `color`."""
    mark = MARKS[verdict.answer]
    if color:
        mark = f"\x1b[{COLORS[verdict.answer]}m{mark}\x1b[0m"
    return f"  {mark} {verdict.claim:11} {verdict.text}"


def by_name(rows):
    """Maps the names of rows to the rows; of rows with one name, the first counts."""
    found = {}
    for row in listed(rows):
        if isinstance(row, dict) and isinstance(row.get("name"), str):
            found.setdefault(row["name"], row)
    return found


def measured(row, key):
    """Returns the interval of a row, or None if there is none; a number has no bounds."""
    x = at(row, key)
    if real(x):
        return {"mean": x, "low": None, "high": None}
    return x if isinstance(x, dict) and drawable(x) else None


def below(a, b):
    """Returns whether interval `a` lies below `b`, a number or an interval."""
    b = b["low"] if isinstance(b, dict) else b
    return None not in (a["high"], b) and a["high"] < b


def above(a, b):
    """Returns whether interval `a` lies above `b`, a number or an interval."""
    b = b["high"] if isinstance(b, dict) else b
    return None not in (a["low"], b) and a["low"] > b


def lower(interval, limit=0):
    """Returns HOLDS for an interval below a limit, FAILS for one above it, else UNDECIDED."""
    return HOLDS if below(interval, limit) else FAILS if above(interval, limit) else UNDECIDED


def overall(good, fails):
    """Returns HOLDS if all of several tests are good, PARTLY if some are, else FAILS or UNDECIDED.

    Args:
      good: list of bool; an empty one is not good.
      fails: whether to return FAILS if none is good.
    """
    if any(good):
        return HOLDS if all(good) else PARTLY
    return FAILS if fails else UNDECIDED


def short(interval, digits=3, sign=""):
    """Formats an interval, without brackets if it has no bounds; see `tables.show`."""
    bounded = None not in (interval["low"], interval["high"])
    return show(interval if bounded else interval["mean"], digits, sign)

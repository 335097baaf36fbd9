"""Verdicts: the outcome of an evaluation in one sentence, for people. Needs no JAX.

Each evaluation states the rule by which its verdict follows from its rows. Intervals are over
held-out episodes; a verdict that an interval does not decide is "undecided", and so are all
verdicts on too few episodes.
"""

import textwrap
from typing import NamedTuple

from lawm_jax.data import words
from lawm_jax.evaluate.tables import at, drawable, listed, mapping, real, show

# Episodes that a verdict needs. The bootstrap's intervals are too narrow if there are few: those
# that claim 95% hold the mean of normal (exponential) episodes in 50 (48)% of the cases for 2
# episodes, 84 (81)% for 5, 88 (85)% for 8 and 94 (91)% for 32. A test measures it. With 8, they
# miss at most three times as often as they claim.
LEAST = 8
WIDTH = 100  # columns of a printed line
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


def judge(evaluation, rows, name):
    """Returns the verdicts of an evaluation on a model; undecided if there are too few episodes.

    Args:
      evaluation: a module of `evaluations.EVALUATIONS`, or `plan.columns`.
      rows: its results on one data source.
      name: name of the model's row.

    Returns:
      A list of Verdict. The number of episodes is that of the intervals, see `metrics.interval`;
      results of an older version lack it and are always judged.
    """
    result, count = evaluation.judge(rows, name), max(_groups(rows), default=LEAST)
    if count >= LEAST:
        return result
    verb = "is" if count == 1 else "are"
    reason = f"{words.counted(count, 'episode')} {verb} too few to judge; {LEAST} needed"
    return [x._replace(answer=UNDECIDED, text=f"{reason}; {x.text}") for x in result]


def _groups(rows):
    """Yields the number of groups, such as episodes, of each interval that is in JSON data."""
    for x in rows if isinstance(rows, list) else mapping(rows).values():
        if isinstance(x, dict) and isinstance(x.get("groups"), int):
            yield x["groups"]
        elif isinstance(x, list | dict):
            yield from _groups(x)


def line(part, verdict, color=False):
    """Formats a verdict for the terminal, in lines of at most `WIDTH` columns.

    Args:
      part: name of the evaluation, as --only takes it.
      verdict: Verdict.
      color: whether to use ANSI colors.
    """
    mark, claim = MARKS[verdict.answer], "" if verdict.claim == part else f"{verdict.claim}: "
    start = f"  {mark} {part:11} "
    text = textwrap.fill(
        f"{claim}{verdict.text}",
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
    if color:
        text = text.replace(mark, f"\x1b[{COLORS[verdict.answer]}m{mark}\x1b[0m", 1)
    return text


def by_name(rows):
    """Maps names to rows; if rows have the same name, the first one counts."""
    named = {}
    for row in listed(rows):
        if isinstance(row, dict) and isinstance(row.get("name"), str):
            named.setdefault(row["name"], row)
    return named


def measured(row, key):
    """Returns the interval of a row, or None if there is none.

    A number has no bounds, and neither does an interval over fewer than `LEAST` episodes.
    """
    x = at(row, key)
    if real(x):
        return {"mean": x, "low": None, "high": None}
    if not isinstance(x, dict) or not drawable(x):
        return None
    return x | ({"low": None, "high": None} if x.get("groups", LEAST) < LEAST else {})


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
    if below(interval, limit):
        return HOLDS
    return FAILS if above(interval, limit) else UNDECIDED


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
    """Formats an interval, see `tables.show`, or its mean and the number of episodes if too few."""
    if None not in (interval["low"], interval["high"]):
        return show(interval, digits, sign)
    few = interval.get("groups", LEAST) < LEAST
    of = f" (of {words.counted(interval['groups'], 'episode')})" if few else ""
    return show(interval["mean"], digits, sign) + of

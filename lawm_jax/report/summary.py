"""Builds the report's summary: the verdict on each claim, with its number and the paper's."""

from lawm_jax.evaluate import verdicts
from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.plan import columns
from lawm_jax.report import page

ABOUT = (
    "A latent action world model learns from video alone: an inverse dynamics model infers the "
    "latent action between two steps, and a forward model predicts the next step from it. This "
    "report evaluates whether the latent actions explain what happens, without encoding the next "
    "frame, and whether they have the same effect in another scene."
)
RULES = (
    "Each verdict follows from the tables below by a fixed rule. Brackets contain 95% intervals "
    "from bootstrap resampling of whole held-out episodes; they do not include the variation "
    "between training seeds. The paper's models are larger and were trained on other data, so "
    "compare claims, not numbers."
)
NOTHING = "Nothing has been evaluated yet; see the table of missing results below."


def summary(runs):
    """Builds the section with one row per claim, data source and run."""
    rows = []
    for part in [*EVALUATIONS, "plan"]:
        for run, source, verdict in judged(runs, part):
            answer = f"{verdicts.MARKS[verdict.answer]}\u00a0{verdict.answer}"
            rows.append([verdict.claim, source, run.label, answer, verdict.text, verdict.paper])
    if not rows:
        return "Summary", page.paragraph(ABOUT) + page.paragraph(NOTHING, "note")
    heads = ["claim", "data", "model", "verdict", "finding", "the paper"]
    if len(runs) == 1:  # its name is in the page's title
        heads, rows = heads[:2] + heads[3:], [row[:2] + row[3:] for row in rows]
    table = page.table([(head, None) for head in heads], rows, kind="verdicts")
    return "Summary", page.paragraph(ABOUT) + table + page.paragraph(RULES, "note")


def judged(runs, part):
    """Lists (run, source, Verdict) of an evaluation or of "plan" for all runs."""
    result = []
    for run in runs:
        for source, rows in run.evals[part].items():
            if part == "plan":
                result += [(run, *judgment) for judgment in _judged_plans(source, rows, run.kind)]
            else:
                judgments = verdicts.judge(EVALUATIONS[part], rows, run.kind)
                result += [(run, source, verdict) for verdict in judgments]
    return result


def _judged_plans(source, rows, kind):
    """Lists (source, Verdict); `source` names the controller if there are several."""
    several = sum(bool(row.get("controller")) for row in rows) > 1
    judgments = []
    for row in rows:
        label = source
        if several and row.get("controller"):
            label += f", controller {row['controller']} ({row.get('controller_kind')})"
        judgments += [(label, verdict) for verdict in verdicts.judge(columns, [row], kind)]
    return judgments


def box(runs, part, claims=()):
    """Makes a box with the verdicts of an evaluation, or with those on some claims only."""
    selected = [x for x in judged(runs, part) if not claims or x[2].claim in claims]
    return lines([(source, run.label, verdict) for run, source, verdict in selected])


def lines(judgments):
    """Makes a box of [(data source or task, model, Verdict)]; "" if empty."""
    sentences = [
        f"{verdicts.MARKS[verdict.answer]} {source}, {model}: {verdict.text}."
        for source, model, verdict in judgments
    ]
    return page.conclusions(sentences)

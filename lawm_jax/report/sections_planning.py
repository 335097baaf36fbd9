"""Builds the report's sections on real actions: controllers and planning."""

from lawm_jax.evaluate import row_names, verdicts
from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.evaluate.tables import drawable, mapping, real
from lawm_jax.evaluate.verdicts import measured
from lawm_jax.plan import columns
from lawm_jax.report import figures, page, results, summary
from lawm_jax.report.sections import TABLES, absent, beside_paper, named, rollouts, tables
from lawm_jax.train import rundir

# Garrido et al. 2026, Tables S1 and S2: LPIPS of rollouts with inferred latents → with latents from
# a controller; columns as in `control`.
PAPER_CONTROL = [
    ["sparse", "low", "0.12 → 0.14", "0.23 → 0.25"],
    ["sparse", "mid", "0.10 → 0.12", "0.19 → 0.23"],
    ["sparse", "high", "0.09 → 0.14", "0.17 → 0.26"],
    ["noisy", "low", "0.13 → 0.13", "0.24 → 0.24"],
    ["noisy", "mid", "0.10 → 0.11", "0.17 → 0.21"],
    ["noisy", "high", "0.09 → 0.12", "0.17 → 0.22"],
    ["discrete", "low", "0.13 → 0.13", "0.24 → 0.24"],
    ["discrete", "high", "0.11 → 0.12", "0.20 → 0.21"],
]
# Table S1: planning error in meters at low, mid and high capacity, and of labeled baselines.
PAPER_REACH = [
    ["sparse", 0.33, 0.18, 0.13, None],
    ["noisy", 0.49, 0.11, 0.10, None],
    ["discrete", 0.18, None, 0.14, None],
    ["V-JEPA 2-AC", None, None, None, 0.15],
    ["best labeled V-JEPA 2 model", None, None, None, 0.05],
]
# Table S2: ATE / RPE in meters, with the same columns.
PAPER_WALK = [
    ["sparse", "1.68 / 0.48", "1.45 / 0.41", "1.43 / 0.42", None],
    ["noisy", "2.06 / 0.55", "1.49 / 0.41", "1.40 / 0.40", None],
    ["discrete", "1.81 / 0.51", None, "1.48 / 0.42", None],
    ["NoMaD", None, None, None, "1.93 / 0.52"],
    ["NWM", None, None, None, "1.13 / 0.35"],
]
CAPACITIES = "low", "mid", "high", "labeled"
OTHER = (
    "The paper uses other clips and larger models, so compare results only with the baselines of "
    "the same table."
)


def control(runs):
    """Builds the section on control by real actions, with the paper's Tables S1 and S2."""
    markup = page.paragraph(
        "Can the model be controlled with real actions as well as with its own latent actions? A "
        "controller maps real actions to latent ones. Ideally, rollouts with real actions are "
        "nearly as close to the video as those with inferred latents, and far better than those "
        "with no action. A controller that does not see the state (actions) fails if the same "
        "action looks different from another viewpoint."
    )
    markup += summary.box(runs, "control")
    models, drawn, sources = "", "", results.merged(runs, "control")
    for source, rows in sources.items():
        models += tables(source, EVALUATIONS["control"].tables(named(rows))[:1])
        drawn += rollouts(source, rows, "with real actions")
    columns = [(name, None) for name in ("latents", "capacity", "DROID", "RECON")]
    title = "The paper, inferred latents → controller"
    markup += beside_paper(models, columns, PAPER_CONTROL, title) + (drawn if models else "")
    command = "python -m lawm_jax.evaluate --workdir W --only control"
    markup += _missing(runs, lambda run: run.evals["control"], command)
    return "Control with real actions", markup


def labels(runs):
    """Builds the section on controllers of few labeled episodes, with a curve per data source."""
    markup = page.paragraph(
        "How many labeled episodes does a controller need? Controllers are trained on the real "
        "actions of increasing numbers of training episodes. Ideally, rollouts with a controller "
        "trained on few episodes are nearly as close to the video as those with inferred latents, "
        "and far closer than those with no action."
    )
    markup += summary.box(runs, "labels")
    sources = results.merged(runs, "labels")
    models = [tables(x, EVALUATIONS["labels"].tables(named(rows))) for x, rows in sources.items()]
    markup += page.folded(TABLES, "".join(models))
    for source in sources:
        lines, muted = _by_episodes(runs, source)
        if lines:
            axes = "labeled episodes", "state error"
            svg = figures.curves(None, lines | muted, *axes, muted=muted, log=True)
            caption = f"{source}: error of open-loop rollouts from real actions, 95% intervals."
            markup += page.drawing(svg, caption)
    command = "python -m lawm_jax.evaluate --workdir W --only labels"
    return "Labeled episodes", markup + absent(runs, lambda run: run.evals["labels"], command)


def _by_episodes(runs, source):
    """Returns the curves and the reference lines of a source: name -> [(episodes, interval)]."""
    lines, muted = {}, {}
    for run in runs:
        rows = verdicts.by_name(run.evals["labels"].get(source))
        errors = {name: measured(row, "error") for name, row in rows.items()}
        errors = {name: error for name, error in errors.items() if error}
        counted = {rows[name].get("episodes"): error for name, error in errors.items()}
        counted = {k: error for k, error in counted.items() if real(k) and k > 0}
        if not counted:
            continue
        lines[run.label] = sorted(counted.items())
        for kind in (row_names.INFERRED, row_names.NO_ACTION):
            label = kind if len(runs) == 1 else f"{run.label}: {kind}"
            for error in (x for name, x in errors.items() if name.endswith(kind)):
                muted[label] = [(k, error) for k in (min(counted), max(counted))]
    return lines, muted


def reach(runs):
    """Builds the section on planning manipulation, with the paper's Table S1."""
    text = (
        "Can the model plan real actions? The goal is the state of a clip at the end of the "
        "plan's horizon; the summed x, y and z displacements of the plan are compared with those "
        "of the clip's actions. Ideally, the "
        "error is well below that of no action and of actions retrieved from training data "
        "(nearest training window), and near that of the labeled model, which was trained on real "
        "actions. The Action Score is 80 for an error of 0 and 0 for errors of 0.1 m or more."
    )
    paper = _paper_table(PAPER_REACH, 2, "The paper, DROID: error, m")
    markup = _plans(runs, text, ("error", "error of the plan, m"), paper)
    return "Planning: manipulation", markup


def walk(runs):
    """Builds the section on planning navigation, with the paper's Table S2."""
    text = (
        "Can the model plan paths? The plan repeats one action at all steps, like the paper's "
        "straight lines, and is evaluated on the resulting poses. ATE is the root mean square "
        "distance between planned and true positions. RPE is the root mean square difference "
        "between their displacements per step. Both are in meters, in the frame of the start and "
        "without alignment, as in NWM. Yaw is the absolute error of the final heading, in radians. "
        "The mean action is hard to beat in ATE, so compare yaw and correlation, too. The row "
        "'truth, held' is close to the best possible with a single repeated action."
    )
    paper = _paper_table(PAPER_WALK, None, "The paper, RECON: ATE / RPE")
    markup = _plans(runs, text, ("ate", "ATE of the plan, m"), paper)
    return "Planning: navigation", markup


def closed(runs):
    """Builds the section on closed-loop control, which the paper does not evaluate."""
    text = (
        "Do the plans work? The first action of each plan is taken in a simulator, and the next "
        "plan starts from the resulting image, toward a goal image. Ideally, far more goals are "
        "reached than by chance, and nearly as many as by the policy that created the goals, which "
        "shows what is possible in the simulator. The paper has no such evaluation."
    )
    drawn = "success", "share of scenes that end at the goal"
    markup = _plans(runs, text, drawn, flag=" --closed-loop")
    return ("Closed loop", markup) if "<table" in markup else None


def _paper_table(rows, digits, title):
    columns = [("latents", None), *((name, digits) for name in CAPACITIES)]
    return page.table(columns, rows, title, "paper")


def _plans(runs, text, drawn, paper="", flag=""):
    """Makes the markup of a section on plans.

    Args:
      runs: list of Run.
      text: the section's introduction.
      drawn: key of the interval to plot, and its label; rows without this interval are omitted.
      paper: markup of the paper's table.
      flag: flag of `lawm_jax.plan` that creates these results.
    """
    key, label = drawn
    models, drawings, judgments = "", "", []
    for task, rows in results.merged(runs, "plan").items():
        rows = [(name, row) for name, row in rows if drawable(mapping(row.get(key)))]
        if not rows:
            continue
        for name, row in rows:
            if _is_latent_model(row):
                judgments += [(task, name, x) for x in verdicts.judge(columns, [row], row["name"])]
        muted = [name for name, row in rows if not _is_latent_model(row)]
        svg = figures.intervals(None, {name: row[key] for name, row in rows}, label, muted)
        caption = f"{task}: {label}, 95% intervals."
        models += tables(task, columns.tables("", named(rows)))
        drawings += page.drawing(svg, caption)
    markup = page.paragraph(text)
    if models:
        beside = page.beside(models, paper) + page.paragraph(OTHER, "note") if paper else models
        markup += summary.lines(judgments) + drawings + page.folded(TABLES, beside)

    def has(run):
        return any(key in row for rows in run.evals["plan"].values() for row in rows)

    command = f"python -m lawm_jax.plan --workdir W --task ...{flag}"
    return markup + _missing(runs, has, command)


def _is_latent_model(row):
    """Returns whether a row is of a latent action model, neither a baseline nor labeled."""
    return row["name"] not in row_names.BASELINES and not row["name"].startswith(row_names.LABELLED)


def _missing(runs, has, command):
    """Makes a note on runs without results on real actions.

    Deterministic runs, which cannot have such results, are ignored.
    """
    runs = [run for run in runs if run.kind != row_names.DETERMINISTIC]
    missing = absent(runs, has, command)
    alone = (run for run in runs if run.kind != row_names.LABELLED)
    if missing and not all(rundir.controllers(run.folder) for run in alone):
        missing += page.paragraph(
            "This requires a controller: python -m lawm_jax.train --config "
            "configs/controller.py:... --config.model=W --workdir W/controller/NAME",
            "note",
        )
    return missing

"""Builds the report's sections on latent actions, one function per section.

They map runs to (heading, markup) or None. sections_planning.py shares the helpers.
"""

import shlex

from lawm_jax.evaluate import prediction as evaluated
from lawm_jax.evaluate import row_names
from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.evaluate.tables import at, drawable, filled, listed, mapping, real, sentences, string
from lawm_jax.evaluate.verdicts import measured
from lawm_jax.report import figures, page, results, summary

TABLES = "Tables"  # summary of the collapsed tables of a section
NOT_COMPARABLE = page.paragraph(
    "The paper reports the LPIPS of decoded frames, for larger models and other data. Absolute "
    "values are not comparable with ours; compare the ratios instead.",
    "note",
)

# Garrido et al. 2026, Table 1 (Kinetics) and Table 2 (Kinetics, RECON).
PAPER_LEAKAGE = [
    ["sparse", "low", 0.66, 0.28, 2.3],
    ["sparse", "high", 0.50, 0.20, 2.4],
    ["noisy", "low", 0.69, 0.33, 2.1],
    ["noisy", "high", 0.54, 0.21, 2.5],
    ["discrete", "low", 0.69, 0.34, 2.0],
    ["discrete", "high", 0.68, 0.29, 2.3],
]
PAPER_TRANSFER = [
    ["sparse", "low", "0.26 → 0.31", 1.20, "0.24 → 0.29", 1.21],
    ["sparse", "high", "0.19 → 0.24", 1.30, "0.20 → 0.23", 1.14],
    ["noisy", "low", "0.30 → 0.34", 1.13, "0.29 → 0.33", 1.15],
    ["noisy", "high", "0.20 → 0.26", 1.34, "0.20 → 0.24", 1.22],
    ["discrete", "low", "0.32 → 0.33", 1.03, "0.32 → 0.33", 1.03],
    ["discrete", "high", "0.27 → 0.29", 1.07, "0.26 → 0.27", 1.05],
]


def tables(source, results, first="model"):
    """Makes the markup of one source's tables.

    Args:
      source: name of the source.
      results: list of `evaluate.tables.Table`, as returned by an evaluation's `tables`.
      first: heading of the column of row names.
    """
    markup = ""
    for table in results:
        heads = [(c.heading, f"+{c.digits}" if c.signed else c.digits) for c in table.columns]
        cells = [[row["name"], *(at(row, c.key) for c in table.columns)] for row in table.rows]
        cells = [values for values in cells if any(map(filled, values[1:]))]
        title = ", ".join(x for x in (source, table.caption) if x)
        markup += page.table([(first, None), *heads], cells, title) if cells else ""
        notes = [f"{row['name']}: {row['note']}." for row in table.rows if row.get("note")]
        if stated := " ".join(sentences(table)):
            notes.append(stated)
        markup += "".join(page.paragraph(note, "note") for note in notes)
    return markup


def named(rows):
    """Sets the names of rows, [(label, row)] as returned by `results.merged`, to the labels."""
    return [row | {"name": label} for label, row in rows]


def rollouts(source, rows, actions):
    """Makes a plot of open-loop rollout errors over time, and tables in states and pixels.

    Args:
      source: name of the source.
      rows: [(label, row)], as returned by `results.merged`.
      actions: kind of actions for the caption, such as "with inferred actions".
    """
    ahead, decoded = evaluated.rollouts(named(rows))
    muted = [label for label, row in rows if results.is_bound(row["name"])]
    lines = {label: [mapping(x) for x in listed(row.get("rollout"))] for label, row in rows}
    lines = {
        label: list(enumerate(x, 1)) for label, x in lines.items() if x and all(map(drawable, x))
    }
    markup = ""
    if lines:
        svg = figures.curves(None, lines, "steps ahead", "state error", muted=muted)
        caption = f"{source}: error of open-loop rollouts {actions}, 95% intervals."
        markup += page.drawing(svg, caption)
    return markup + page.folded("Rollouts in numbers", tables(source, [ahead, decoded]))


def prediction(runs):
    """Builds the section on prediction: one step and several steps ahead, and in pixels."""
    markup = page.paragraph(
        "How much of the next step do latent actions explain? A relative error of 1 is as bad as "
        "copying the last frame. A good model is well below the deterministic model, which has no "
        "latent actions, and near the unconstrained model (none), whose latent actions may carry "
        "any information. A labeled model is conditioned on the recorded actions."
    )
    sources = results.merged(runs, "prediction")
    markup += summary.box(runs, "prediction")
    markup += page.folded(TABLES, _all(sources, lambda rows: evaluated.tables(rows)[:1]))
    for source, rows in sources.items():
        markup += rollouts(source, rows, "with inferred latent actions")
    return "Prediction, one and several steps ahead", markup + _absent(runs, "prediction")


def ablation(runs):
    """Builds the section on controls with other latents."""
    text = (
        "How much of the gain over copying the last frame is due to the latent action of the "
        "current step? The inferred latents are replaced by those of another episode or of the "
        "previous step, by zero, or by random ones. Ideally, no replacement is better than "
        "copying. The share compares the best replacement with the inferred latents: 0 if it is "
        "as good as they are, 1 if it is only as good as copying."
    )
    return _section(runs, "ablation", "Ablation of the latent actions", text)


def capacity(runs):
    """Builds the section on error versus capacity, if runs of a kind differ in strength."""
    drawings = ""
    for source in dict.fromkeys(source for run in runs for source in run.evals["prediction"]):
        kinds, bounds = {}, {row_names.COPY: 1.0}
        for run in runs:
            rows = run.evals["prediction"].get(source)
            rows = {string(row.get("name")): row for row in map(mapping, listed(rows))}
            copy = mapping(mapping(rows.get(row_names.COPY)).get("error")).get("mean")
            for name, row in rows.items():
                if results.is_bound(name) and (relative := measured(row, "relative")):
                    bounds.setdefault(name, relative["mean"])
            error = mapping(mapping(rows.get(run.kind)).get("error"))
            strength = mapping(run.config.get("latent")).get("strength")
            if results.is_bound(run.kind) or not (
                drawable(error) and real(copy) and real(strength)
            ):
                continue
            value = {k: None if error[k] is None else error[k] / copy for k in error}
            kinds.setdefault(run.kind, []).append((strength, value))
        kinds = {kind: points for kind, points in kinds.items() if len(dict(points)) > 1}
        if kinds:
            svg = figures.capacity(None, kinds, bounds)
            caption = f"{source}: one-step error relative to copying, with 95% intervals."
            drawings += page.drawing(svg, caption, source)
    if not drawings:
        return None
    text = (
        "Does the regularizer control how much information a latent action carries? Capacity "
        "increases to the right. In the paper (Figure 4), sparse and noisy latents cover the whole "
        "range between the bounds, and discrete latents stay near the deterministic model."
    )
    return "Capacity", page.paragraph(text) + f'<div class="figures">{drawings}</div>\n'


def leakage(runs):
    """Builds the section on leakage, with the paper's Table 1."""
    markup = page.paragraph(
        "Do latent actions copy the next frame? At a cut to another clip, the next frame cannot be "
        "predicted unless it leaks through the latent action. At the cut, the error of a good "
        "model stays near that of copying the last frame (relative to copying near 1); a leak "
        "brings it toward 0. The ratio of the errors with and without a cut says little by itself, "
        "since it is high for copying, too. The column leak rescales this ratio: 0 as for copying "
        "the last frame, 1 as for a model that copies the future."
    )
    models = _all(results.merged(runs, "leakage"), EVALUATIONS["leakage"].tables)
    columns = [("latents", None), ("capacity", None), ("with cut", 2), ("without", 2), ("ratio", 1)]
    markup += summary.box(runs, "leakage")
    markup += beside_paper(models, columns, PAPER_LEAKAGE, "The paper, Kinetics")
    return "Leakage of the future", markup + _absent(runs, "leakage")


def transfer(runs):
    """Builds the section on cycle consistency of transfer, with the paper's Table 2."""
    markup = page.paragraph(
        "Do latent actions have the same effect in another scene? Those inferred from clip A are "
        "applied to clip B, inferred again from that prediction, and applied to A. Ideally, the "
        "ratio of the errors on A after and before this cycle is near 1, and little information is "
        "lost: a loss of 0 is as good as A's own latent actions, 1 is no better than shuffled "
        "ones. If shuffling does not increase the error, neither number is meaningful."
    )
    markup += summary.box(runs, "transfer", ("transfer",))
    sources = results.merged(runs, "transfer", "cycle")
    models = _all(sources, EVALUATIONS["transfer"].PARTS["cycle"].tables)
    columns = [("latents", None), ("capacity", None), ("Kinetics", None), ("ratio", 2)]
    columns += [("RECON", None), ("ratio", 2)]
    markup += beside_paper(models, columns, PAPER_TRANSFER, "The paper, original → after cycle")
    return "Transfer to another scene and back", markup + _absent(runs, "transfer", "cycle")


def locality(runs):
    """Builds the section on locality."""
    markup = page.paragraph(
        "Where does a transferred latent action act? The latent action of a motion in one region "
        "of the image is applied to a scene that could move there or in the mirrored region. "
        "Ideally, nearly all change is in the region of the motion, as in the paper's Figure 8 and "
        "more than by chance, and little in the mirrored region. The paper gives no numbers."
    )
    markup += summary.box(runs, "transfer", ("locality",))
    sources = results.merged(runs, "transfer", "locality")
    markup += page.folded(TABLES, _all(sources, EVALUATIONS["transfer"].PARTS["locality"].tables))
    return "Locality", markup + _absent(runs, "transfer", "locality")


def content(runs):
    """Builds the section on the content of latents: probes, codes in use, dimensions."""
    text = (
        "What do latent actions encode? A linear probe predicts the recorded actions from them: an "
        "R² of 1 means perfect prediction, 0 no information. The current state also predicts some "
        "actions: the second table has the R² of as many of its principal components, and the R² "
        "that latent actions add. The effective dimension and the effective rank count the "
        "directions in use; near 1, the latents have collapsed. Discrete latents should use a "
        "large share of the codes."
    )
    return _section(runs, "content", "Content of the latent actions", text)


def scene(runs):
    """Builds the section on whether latents identify the scene."""
    text = (
        "Do latent actions identify the scene? Nearest centroids, fitted to the first half of each "
        "episode, classify the episode of the latent actions of the second half. Ideally, they do "
        "so no better than chance. The accuracy relative to the state is 0 at chance and 1 if "
        "latents are as good as the state's principal components. Real actions may identify the "
        "episode to some extent, too."
    )
    return _section(runs, "scene", "Scene in the latent actions", text)


def sampling(runs):
    """Builds the section on sampling."""
    text = (
        "Are sampled latent actions similar to inferred ones? A classifier tries to distinguish "
        "them: an AUC of 0.5 is ideal, and 1 means that it always succeeds. The energy distance "
        "between the two sets should be below the 95th percentile of its null distribution, the "
        "distances between two sets of inferred latents. The column change is how much sampled "
        "latents change a state, relative to inferred ones. Noisy latents are inferred by sampling "
        "from their posteriors. In the paper (Appendix B), sampling works well at low capacity and "
        "not at high capacity."
    )
    return _section(runs, "sampling", "Sampling", text, first="sampler")


def other(runs, name):
    """Builds the section on an evaluation without a function here: its question and tables."""
    question = EVALUATIONS[name].__doc__.partition("\n")[0]
    return _section(runs, name, name.capitalize(), question)


def _all(sources, lay_out, first="model"):
    """Makes the tables of all `sources`, from `merged`; `lay_out` maps rows to `Table`s."""
    markup = [tables(source, lay_out(named(rows)), first) for source, rows in sources.items()]
    return "".join(markup)


def _section(runs, name, heading, text, first="model"):
    """Builds the section of an evaluation: `text`, the verdicts and, folded, the tables."""
    models = _all(results.merged(runs, name), EVALUATIONS[name].tables, first)
    markup = page.paragraph(text) + summary.box(runs, name) + page.folded(TABLES, models)
    return heading, markup + _absent(runs, name)


def beside_paper(models, columns, rows, title):
    """Returns folded tables beside one of the paper's, or nothing if there are none."""
    paper = page.table(columns, rows, title, "paper")
    return page.folded(TABLES, page.beside(models, paper) + NOT_COMPARABLE if models else "")


def _absent(runs, part, key=None):
    """Makes a note on the runs that lack an evaluation, with the command that creates it."""
    has = lambda run: any(mapping(v).get(key) if key else v for v in run.evals[part].values())  # noqa: E731
    return absent(runs, has, f"python -m lawm_jax.evaluate --workdir W --only {part}")


def absent(runs, has, command):
    """Makes a note on the runs for which `has` is false, with the command that fixes it."""
    lacking = [run for run in runs if not has(run)]
    names = [run.label for run in lacking]
    if not names:
        return ""
    if len(names) == 1:
        command = command.replace("--workdir W", f"--workdir {shlex.quote(str(lacking[0].folder))}")
    who = "Not measured yet" if len(names) == len(runs) else f"Not measured for {', '.join(names)}"
    return page.paragraph(f"{who}: {command}", "note")

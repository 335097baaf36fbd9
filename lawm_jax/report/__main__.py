"""Builds a report on runs: a single HTML file with all tables, pictures and videos embedded.

Examples:
  lawm report runs/first
  lawm report runs/first runs/arm --out page.html
  lawm report runs/first --out first.html

The report lists missing results, with the commands that create them. See docs/evaluate.md.
"""

import os

from absl import app

from lawm_jax.data import paths
from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.evaluate.figures import loss_curve
from lawm_jax.evaluate.tables import mapping, real
from lawm_jax.report import figures, page, results, sections, sections_planning, summary
from lawm_jax.report.results import is_bound
from lawm_jax.train import command, rundir
from lawm_jax.train.flags import define_output

OUT = define_output("out", "Output file. Default: report/page.html in the first run's folder.")

# Title and caption of each kind of file in W/report, in page order.
KINDS = {
    "data": ("Data", "Clips as the model receives them."),
    "rollout": (
        "Rollout",
        "After the first steps, the model sees only its own predictions and the latent actions "
        "inferred from the video. Ideally, everything moves as in the video.",
    ),
    "transfer": (
        "Transfer",
        "Latent actions inferred from one clip are applied to another. Ideally, the other scene "
        "shows the same motion.",
    ),
    "cycle": (
        "Cycle",
        "The latent actions of A are applied to B, inferred again from that prediction and applied "
        "to A. Ideally, A's own motion is recovered.",
    ),
    "cut": (
        "Scene cut",
        "Two clips joined by a cut. Ideally, the prediction fails at the cut, since the new scene "
        "is unknown.",
    ),
    "locality": (
        "Locality",
        "The latent action of a local motion is applied to a scene with two parts that could move. "
        "Ideally, only the part at the original motion's position moves.",
    ),
    "embedding": (
        "Embedding of latent actions",
        "Inferred and sampled latent actions in 2D. Ideally, they form one cloud, not two.",
    ),
    "loss": ("Training", "Training error relative to copying the last frame."),
}


def main(argv):
    """Parses the flags and writes the page."""
    if len(argv) < 2:
        raise app.UsageError("expected at least one folder of a run")
    text = build(argv[1:])
    out = paths.expand(OUT.value or os.path.join(rundir.report(argv[1]), "page.html"))
    paths.write(out, text)
    print(f"{out}: {len(text) / 1e3:.0f} kB")


def build(folders):
    """Builds the report on runs.

    Args:
      folders: the runs' folders, in display order.

    Returns:
      HTML.

    Raises:
      ValueError: a folder does not contain a run.
    """
    runs = results.with_labels([results.read(folder) for folder in folders])
    title = "Latent action world models"
    subtitle = f"Report on {'the run' if len(runs) == 1 else f'{len(runs)} runs:'} " + ", ".join(
        run.name for run in runs
    )
    parts = [section(runs) for section in (summary.summary, pictures)]
    parts += [section(runs) for group in SECTIONS.values() for section in group]
    parts += [sections.other(runs, name) for name in EVALUATIONS if name not in SECTIONS]
    parts += [section(runs) for section in (training, overview, others, configs)]
    return page.page(title, subtitle, [section for section in parts if section])


def overview(runs):
    """Builds the section that describes the runs and lists missing results."""
    rows, machines = [], []
    for run in runs:
        latent, data = mapping(run.config.get("latent")), mapping(run.config.get("data"))
        mixture = mapping(data.get("mixture")).items()
        mixture = [f"{name} {weight:g}" for name, weight in mixture if real(weight) and weight > 0]
        done = run.metrics[-1]["step"] if run.metrics else run.about.get("step")
        total = run.config.get("steps")
        steps = f"{done or 0} of {total}" if done != total else done
        strength = latent.get("strength") if not is_bound(run.kind) else None
        strength = figures.short(strength) if real(strength) else strength
        videos = data.get("videos") or ", ".join(mixture)
        encoder = mapping(run.config.get("encoder")).get("name")
        count = run.about.get("parameters")
        skipped = run.skipped or None
        rows.append([run.name, run.kind, strength, videos, encoder, count, steps, skipped])
        info = [run.about.get(key) for key in ("step", "commit", "date", "seconds", "machine")]
        versions = run.about.get("versions")
        if isinstance(versions, dict):
            versions = ", ".join(f"{name} {version}" for name, version in versions.items())
        machines.append([run.name, *info, versions])
    columns = ["run", "latents", "strength", "data", "encoder"]
    columns = [(name, None) for name in columns]
    columns += [("parameters", 0), ("steps", None), ("files skipped", 0)]
    markup = page.table(columns, rows, "Training")
    if any(run.about for run in runs):
        columns = [
            ("run", None),
            ("checkpoint step", 0),
            ("commit", None),
            ("date", None),
            ("seconds", 0),
        ]
        columns += [("machine", None), ("versions", None)]
        markup += page.table(columns, machines, "Evaluation")
    missing = [[run.name, what, command] for run in runs for what, command in run.missing]
    if missing:
        columns = [("run", None), ("missing", None), ("command that creates it", None)]
        markup += page.table(columns, missing, "Missing results")
    return "Runs", markup


def pictures(runs):
    """Builds the section with the pictures and videos of the runs."""
    markup = ""
    for run in runs:
        stems = {}
        for path in run.files:
            stems.setdefault(path.stem, []).append(path)
        entries = []
        for stem, files in stems.items():
            kind, _, source = stem.partition("_")
            if kind == "loss" and run.metrics:  # redrawn for all runs by `training`
                continue
            films = [path for path in files if path.suffix == ".mp4"]
            files = films + [p for p in files if p.suffix not in (".mp4", ".gif" if films else "")]
            title, caption = KINDS.get(kind, (stem, ""))
            title = f"{title}, {source}" if kind in KINDS and source else title
            place = list(KINDS).index(kind) if kind in KINDS else len(KINDS)
            wide = kind not in ("embedding", "loss")
            entries.append((place, stem, page.media(files, caption, title, wide)))
        if entries:
            entries = "".join(markup for *_, markup in sorted(entries))
            markup += f'<h3>{page.text(run.label)}</h3>\n<div class="figures">{entries}</div>\n'
    text = "What do the predictions look like? The frames are decoded from predicted states by a "
    text += "decoder, which blurs them, so compare them with the decoded states of the true video."
    none = page.paragraph(
        "There are no pictures yet; see the table of missing results below.", "note"
    )
    return "Pictures", page.paragraph(text) + (markup or none)


def training(runs):
    """Builds the section with the training curves of the runs and their bounds."""
    lines = {run.label: run.metrics for run in runs if run.metrics}
    for run in runs:
        for name, folder in rundir.bounds(run.folder).items():
            other = results.read(folder).metrics
            if other and other not in lines.values():
                lines[name if name not in lines else f"{name} ({run.name})"] = other
    if not lines:
        return "Training", page.paragraph("No run has a metrics.jsonl.", "note")
    text = (
        "Has training converged? Thick lines are moving averages over a tenth of the run; thin "
        "lines are single batches. If a curve is still falling at the end, train for more steps."
    )
    caption = "Training error relative to copying the last frame."
    return "Training", page.paragraph(text) + page.drawing(loss_curve(None, lines), caption)


def others(runs):
    """Builds the section with results that no other section shows, collapsed; None if empty."""
    folded = [
        page.folded(f"{run.label}: eval/{name}.json", page.source_code(content))
        for run in runs
        for name, content in run.others.items()
        if content
    ]
    return ("Other evaluations", "".join(folded)) if folded else None


def configs(runs):
    """Builds the section with the configs, collapsed."""
    named = {f"{run.label}: {run.folder}": run.config for run in runs if run.config}
    folded = [page.folded(name, page.source_code(config)) for name, config in named.items()]
    return "Configs", "".join(folded) or page.paragraph("No run has a config.json.", "note")


# The sections that show each evaluation; any other evaluation gets `sections.other`.
SECTIONS = {
    "prediction": (sections.prediction, sections.capacity),
    "ablation": (sections.ablation,),
    "leakage": (sections.leakage,),
    "transfer": (sections.transfer, sections.locality),
    "control": (
        sections_planning.control,
        sections_planning.reach,
        sections_planning.walk,
        sections_planning.closed,
    ),
    "labels": (sections_planning.labels,),
    "content": (sections.content,),
    "scene": (sections.scene,),
    "sampling": (sections.sampling,),
}


if __name__ == "__main__":
    command.run(main, positional=True)

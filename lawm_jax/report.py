"""Reports on runs as one HTML page: python -m lawm_jax.report W1 W2 ... --out page.html.

Reads what training and evaluation left in the folders of runs; what is missing is named on the
page, with the command that makes it. The page holds its pictures and films itself.
"""

import json
import pathlib
import shlex
import sys
from typing import NamedTuple

from absl import app, flags

from lawm_jax import figures, page

OUT = flags.DEFINE_string("out", None, "The page; report/page.html of the first run by default.")

PARTS = "prediction", "leakage", "transfer", "content", "sampling"
BOUNDS = "copy last frame", "deterministic", "none"
CONTROLS = "copies the future", "decoder alone"  # beginnings of rows that are no model
NOT_COMPARABLE = (
    "The paper's figures are LPIPS of decoded frames, of larger models on other "
    "data: absolute values are not comparable with ours. What to compare are the ratios."
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

# Kinds of files in W/report, in the order of the page: title and caption.
KINDS = {
    "data": ("Data", "Clips as the model gets them."),
    "rollout": (
        "Rollout",
        "After its first steps the model sees only its own predictions, and the actions that it "
        "inferred from the video. Good: everything moves as in the video.",
    ),
    "transfer": (
        "Transfer",
        "Actions inferred from one clip lead another. Good: the same motion in the other scene.",
    ),
    "cycle": (
        "Cycle",
        "Actions of A lead B, are inferred again from that prediction, and lead A. Good: A's own "
        "motion comes back.",
    ),
    "cut": (
        "Scene cut",
        "Two clips in one. Good: at the cut the prediction fails, as the new scene can't be known.",
    ),
    "locality": (
        "Locality",
        "One motion leads a scene that has two candidates. Good: the one at its place moves alone.",
    ),
    "embedding": (
        "Latent actions in the plane",
        "Inferred and sampled ones, projected together. Good: one cloud, not two.",
    ),
    "loss": ("Training", "Training error relative to copying the last frame."),
}


class Run(NamedTuple):
    """Holds what a folder says.

    Attributes:
      folder: pathlib.Path.
      name, label: the folder's name; what tables call its model, such as "noisy 1e-05".
      config, about: dicts, empty where missing.
      metrics: lines of metrics.jsonl with step, error and copy.
      evals: part -> {source: ...}.
      files: of W/report that a page can show.
      skipped: number of files that could not be read.
      missing: [(what, command that makes it)].
    """

    folder: pathlib.Path
    name: str
    label: str
    config: dict
    about: dict
    metrics: list
    evals: dict
    files: list
    skipped: int
    missing: list

    @property
    def kind(self):
        return _text(_dict(self.config.get("latent")).get("kind"))


def main(argv):
    """Parses the flags and writes the page."""
    if len(argv) < 2:
        raise app.UsageError("expected at least one folder of a run")
    try:
        text = build(argv[1:])
    except ValueError as error:
        sys.exit(f"lawm_jax.report: {error}")
    out = pathlib.Path(OUT.value or pathlib.Path(argv[1], "report", "page.html"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"{out}: {len(text) / 1e6:.1f} MB")


def build(folders):
    """Writes the page of some runs.

    Args:
      folders: of the runs, in the order in which to show them.

    Returns:
      HTML.

    Raises:
      ValueError: a folder is no run.
    """
    runs = _with_labels([read(folder) for folder in folders])
    title = "Latent action world models"
    subtitle = f"Report on {'the run' if len(runs) == 1 else f'{len(runs)} runs:'} " + ", ".join(
        run.name for run in runs
    )
    sections = overview, prediction, capacity, leakage, transfer, locality, content, sampling
    sections = [section(runs) for section in (*sections, pictures, training, configs)]
    return page.page(title, subtitle, [section for section in sections if section])


def read(folder):
    """Reads a run's folder; raises ValueError where it is none."""
    folder = pathlib.Path(folder)
    if not any((folder / part).exists() for part in ("config.json", "metrics.jsonl", "eval")):
        what = "holds no config.json, metrics.jsonl or eval" if folder.is_dir() else "is not there"
        raise ValueError(f"{folder}: expected the folder of a run, but it {what}")
    evaluate = f"python -m lawm_jax.evaluate --workdir {shlex.quote(str(folder))}"
    train = f"python -m lawm_jax.train --config ... --workdir {shlex.quote(str(folder))}"
    missing = []

    def load(name, command):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            missing.append((name, command))
        except (OSError, ValueError):
            missing.append((f"{name} (it is there, but can't be read)", command))
        else:
            if isinstance(value, dict):
                return value
            missing.append((f"{name} (it is there, but holds no object)", command))
        return {}

    config = load("config.json", train)
    lines = []
    if (folder / "metrics.jsonl").exists():
        lines = figures.read_metrics(folder / "metrics.jsonl")
    else:
        missing.append(("metrics.jsonl", train))
    about = load("eval/about.json", evaluate)
    evals = {part: load(f"eval/{part}.json", f"{evaluate} --only {part}") for part in PARTS}
    files = sorted((folder / "report").glob("*"))
    files = [path for path in files if path.suffix.lower() in page.TYPES]
    if not files:
        missing.append(("pictures in report/", f"{evaluate} --only pictures"))
    skipped = folder / "skipped.jsonl"
    skipped = len(figures.read_metrics(skipped)) if skipped.exists() else 0
    lines = [_dict(line) for line in lines]
    lines = [line for line in lines if all(_real(line.get(k)) for k in ("step", "error", "copy"))]
    name = folder.resolve().name
    return Run(folder, name, name, config, about, lines, evals, files, skipped, missing)


def _with_labels(runs):
    """Names models by kind and strength, and by folder where that leaves two alike."""
    labels = []
    for run in runs:
        strength = _dict(run.config.get("latent")).get("strength")
        plain = run.kind in BOUNDS or not _real(strength)
        labels.append(f"{run.kind or run.name}{'' if plain else f' {figures.short(strength)}'}")
    names = [run.name for run in runs]
    labels = [
        label if labels.count(label) == 1 else f"{label} ({name})"
        for label, name in zip(labels, names, strict=True)
    ]
    labels = [
        label if labels.count(label) == 1 else f"{label}, {run.folder}"
        for label, run in zip(labels, runs, strict=True)
    ]
    return [run._replace(label=label) for run, label in zip(runs, labels, strict=True)]


def merged(runs, part, key=None):
    """Collects rows of all runs: what several of them say alike, such as a bound, comes once.

    Args:
      runs: list of Run.
      part: name of the evaluation.
      key: of the rows within a source's value, if they are not the value itself.

    Returns:
      source -> [(label, row)], from copying over the bounds to the models.
    """
    sources = {}
    for run in runs:
        for source, rows in run.evals[part].items():
            rows = _dict(rows).get(key) if key else rows
            kept = sources.setdefault(source, [])
            for row in _list(rows):
                if not isinstance(_dict(row).get("name"), str):
                    continue
                own = row["name"] == run.kind and run.kind not in BOUNDS
                if own or not any(row == other for _, other in kept):
                    kept.append((run, row))
    return {source: _labelled(rows) for source, rows in sources.items() if rows}


def _labelled(rows):
    labels = [run.label if row["name"] == run.kind else str(row["name"]) for run, row in rows]
    keys = [(label, _text(row.get("metric"))) for label, (_, row) in zip(labels, rows, strict=True)]
    named = [
        (key[0] if keys.count(key) == 1 else f"{key[0]} ({run.label})", row)
        for key, (run, row) in zip(keys, rows, strict=True)
    ]

    def place(pair):
        name = pair[1]["name"]
        bounds = {"copy last frame": 0, "deterministic": 1, "none": 3}
        return 4 if str(name).startswith(CONTROLS) else bounds.get(name, 2)

    return sorted(named, key=place)


def tables(sources, columns, caption="", first="model"):
    """Makes a table per source and metric.

    Args:
      sources: of `merged`.
      columns: [(heading, digits, key)], where "a.b" is the key b within the key a.
      caption: follows the source's name.
      first: heading of the labels.
    """
    markup, heads = "", [(first, None), *((heading, digits) for heading, digits, _ in columns)]
    for source, rows in sources.items():
        for metric in dict.fromkeys(_text(row.get("metric")) for _, row in rows):
            chosen = [[label, *(_at(row, key) for *_, key in columns)]
                      for label, row in rows if _text(row.get("metric")) == metric]  # fmt: skip
            chosen = [values for values in chosen if any(x not in (None, "") for x in values[1:])]
            title = ", ".join(str(x) for x in (source, caption, metric) if x)
            markup += page.table(heads, chosen, title) if chosen else ""
        notes = [f"{label}: {row['note']}." for label, row in rows if row.get("note")]
        markup += "".join(page.paragraph(note, "note") for note in notes)
    return markup


def overview(runs):
    """Tells what the runs are, and what is missing."""
    about = (
        "A latent action world model learns from video alone: an inverse model infers an action "
        "between two steps, a forward model predicts the next step from it. The questions here: do "
        "these actions explain what happens, without smuggling in the next frame, and do they mean "
        "the same in another scene?"
    )
    rows, machines = [], []
    for run in runs:
        latent, data = _dict(run.config.get("latent")), _dict(run.config.get("data"))
        mixture = _dict(data.get("mixture")).items()
        mixture = [f"{name} {weight:g}" for name, weight in mixture if _real(weight) and weight > 0]
        done, whole = run.metrics[-1]["step"] if run.metrics else None, run.config.get("steps")
        steps = f"{done or 0} of {whole}" if done != whole else done
        strength = latent.get("strength") if run.kind not in ("none", "deterministic") else None
        strength = figures.short(strength) if _real(strength) else strength
        videos = data.get("videos") or ", ".join(mixture)
        encoder = _dict(run.config.get("encoder")).get("name")
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
    markup = page.paragraph(about) + page.table(columns, rows, "Training")
    if any(run.about for run in runs):
        columns = [("run", None), ("at step", 0), ("commit", None), ("date", None), ("seconds", 0)]
        columns += [("machine", None), ("versions", None)]
        markup += page.table(columns, machines, "Evaluation")
    markup += page.paragraph(
        "Brackets hold 95 % intervals, from drawing whole episodes of the held-out clips again and "
        "again. They say nothing about another training seed.",
        "note",
    )
    missing = [[run.name, what, command] for run in runs for what, command in run.missing]
    if missing:
        columns = [("run", None), ("missing", None), ("command that makes it", None)]
        markup += page.table(columns, missing, "What is missing")
    return "Runs", markup


def prediction(runs):
    """E1: one step, several steps, pixels."""
    markup = page.paragraph(
        "How much of the next step do latent actions explain? 1 is as bad as copying the last "
        "frame. A good model lies well below the deterministic one, which has no latent actions, "
        "and near the unconstrained one (none), whose actions may carry anything."
    )
    sources = merged(runs, "prediction")
    markup += page.found([_gain(source, rows) for source, rows in sources.items()])
    for source, rows in sources.items():
        one = {source: rows}
        columns = [("error", 4, "error"), ("relative to copying", 3, "relative")]
        columns += [("minus deterministic", "+4", "paired")]
        markup += tables(one, columns, "one step ahead") + _rollout(source, rows)
        names = dict.fromkeys(name for _, row in rows for name in _dict(row.get("pixels")))
        known = {"psnr": ("PSNR in dB, higher is better", 2), "ssim": ("SSIM, higher is better", 3)}
        columns = [
            (*known.get(name, (f"{name} distance, lower is better", 3)), f"pixels.{name}")
            for name in names
        ]
        markup += tables(one, columns, "rollouts, decoded")
    return "E1: one step and several ahead", markup + _absent(runs, "prediction")


def _gain(source, rows):
    """Says in a sentence what the best model's latent actions gain."""
    relative = {label: row["relative"] for label, row in rows if _real(row.get("relative"))}
    models = {label: row for label, row in rows if row["name"] not in BOUNDS and label in relative}
    if not models:
        return f"{source}: only bounds were measured."
    best = min(models, key=relative.get)
    text = f"{source}: {best} has {relative[best]:.3f} of the error of copying"
    low, high = relative.get("none"), relative.get("deterministic")
    if low is not None and high is not None and low < high:
        share = (high - relative[best]) / (high - low)
        text += (
            f", {100 * share:.0f} % of the way from deterministic ({high:.3f}) to none ({low:.3f})"
        )
    paired = _dict(models[best].get("paired"))
    if _real(paired.get("high")) and _real(paired.get("low")):
        if paired["high"] < 0:
            text += ". The gain over the deterministic model is clear: its interval excludes zero"
        else:
            text += ". No gain over the deterministic model can be told from chance"
    return text + "."


def _rollout(source, rows):
    """Draws and tabulates open-loop errors against the number of steps ahead."""
    rows = [(label, row["rollout"]) for label, row in rows if isinstance(row.get("rollout"), list)]
    rows = [(label, [_dict(x) for x in values]) for label, values in rows]
    rows = [(label, values) for label, values in rows if values and all(map(_interval, values))]
    if not rows:
        return ""
    P = max(len(values) for _, values in rows)
    steps = sorted({k for k in (1, 2, 4, 8, 16, 32) if k < P} | {P})
    columns = [("model", None)] + [(f"{k} step{'s' * (k > 1)} ahead", 3) for k in steps]
    shown = [[label, *(v[k - 1] if k <= len(v) else None for k in steps)] for label, v in rows]
    lines = {label: list(enumerate(values, 1)) for label, values in rows}
    svg = figures.curves(None, lines, "steps ahead", "error of the state", muted=BOUNDS)
    caption = f"{source}: error of open-loop rollouts with inferred actions, 95 % intervals."
    table = page.table(columns, shown, f"{source}, several steps ahead, open loop")
    return table + page.drawing(svg, caption)


def capacity(runs):
    """E1 over strengths: drawn where two runs of a kind differ in strength."""
    drawings = ""
    for source in dict.fromkeys(source for run in runs for source in run.evals["prediction"]):
        kinds, bounds = {}, {"copy last frame": 1.0}
        for run in runs:
            rows = run.evals["prediction"].get(source)
            rows = {_text(row.get("name")): row for row in map(_dict, _list(rows))}
            copy = _dict(_dict(rows.get("copy last frame")).get("error")).get("mean")
            for name in ("deterministic", "none"):
                if _real(_dict(rows.get(name)).get("relative")):
                    bounds.setdefault(name, rows[name]["relative"])
            error = _dict(_dict(rows.get(run.kind)).get("error"))
            strength = _dict(run.config.get("latent")).get("strength")
            if run.kind in BOUNDS or not (_interval(error) and _real(copy) and _real(strength)):
                continue
            value = {k: None if error[k] is None else error[k] / copy for k in error}
            kinds.setdefault(run.kind, []).append((strength, value))
        kinds = {kind: points for kind, points in kinds.items() if len(dict(points)) > 1}
        if kinds:
            svg = figures.capacity(None, kinds, bounds)
            caption = f"{source}: one-step error relative to copying, with 95 % intervals."
            drawings += page.drawing(svg, caption, source)
    if not drawings:
        return None
    text = (
        "Does the regulariser set how much a latent action may carry? Capacity grows to the right. "
        "The paper (its Figure 4) finds that sparse and noisy latents sweep the whole range "
        "between the bounds, and that discrete ones stay near the deterministic model."
    )
    return "Capacity", page.paragraph(text) + f'<div class="figures">{drawings}</div>\n'


def leakage(runs):
    """E2, beside Table 1."""
    markup = page.paragraph(
        "Do latent actions copy the next frame? At a cut to another clip the next frame can't be "
        "predicted, unless it leaks through the action. A good model's error at the cut stays near "
        "that of copying the last frame (relative near 1); a leak brings it towards 0. The ratio "
        "with / without a cut says little alone, since copying has a high one, too: leak is where "
        "it lies between that of copying (0) and that of a model that copies the future (1)."
    )
    sources = merged(runs, "leakage")
    flags = [
        (source, label, row["flag"])
        for source, rows in sources.items()
        for label, row in rows
        if row.get("flag") and not str(row["name"]).startswith((*BOUNDS[:1], *CONTROLS))
    ]
    markup += page.found(
        [f"{source}: {label}: {flag}." for source, label, flag in flags], warn=True
    )
    if sources and not flags:
        markup += page.found(["No model is flagged."])
    columns = [("with cut", 3, "with"), ("without", 3, "without"), ("ratio", 2, "ratio")]
    columns += [("relative to copying", 3, "relative"), ("leak", "+2", "leak")]
    if ours := tables(sources, columns):
        columns = [("latents", None), ("capacity", None), ("with cut", 2), ("without", 2)]
        columns += [("ratio", 1)]
        theirs = page.table(columns, PAPER_LEAKAGE, "The paper, Kinetics", "paper")
        markup += page.beside(ours, theirs) + page.paragraph(NOT_COMPARABLE, "note")
    return "E2: leakage of the future", markup + _absent(runs, "leakage")


def transfer(runs):
    """E3, beside Table 2."""
    markup = page.paragraph(
        "Does an action mean the same in another scene? Actions inferred on A lead B, are inferred "
        "again from that prediction, and lead A. A good ratio of A's errors, after to before, is "
        "near 1, and little information is lost on the way: 0 % is as good as A's own actions, "
        "100 % no better than shuffled ones. Where shuffled actions do no harm, neither says "
        "anything."
    )
    sources = merged(runs, "transfer", "cycle")
    columns = [("original", 3, "original"), ("after cycle", 3, "cycle")]
    columns += [("shuffled", 3, "shuffled"), ("ratio", 2, "ratio"), ("lost", 2, "lost")]
    if ours := tables(sources, columns):
        columns = [("latents", None), ("capacity", None), ("Kinetics", None), ("ratio", 2)]
        columns += [("RECON", None), ("ratio", 2)]
        theirs = page.table(columns, PAPER_TRANSFER, "The paper, original → after cycle", "paper")
        markup += page.beside(ours, theirs) + page.paragraph(NOT_COMPARABLE, "note")
    return "E3: transfer and back", markup + _absent(runs, "transfer", "cycle")


def locality(runs):
    """E4."""
    markup = page.paragraph(
        "Where does a transferred motion act? It is taken from one place of the image to a scene "
        "that could move there or at the mirrored place. Good: nearly all change falls in the "
        "motion's own region, as in the paper's Figure 8, more than chance would put there, and "
        "little in the mirrored one. The paper gives no numbers."
    )
    columns = [("cases", 0, "count"), ("change: own region", 2, "share.region")]
    columns += [("mirrored", 2, "share.mirrored"), ("action: own region", 2, "action.region")]
    columns += [("mirrored", 2, "action.mirrored"), ("chance", 2, "chance")]
    columns += [("effect of the action", 2, "effect")]
    markup += tables(merged(runs, "transfer", "locality"), columns)
    return "E4: locality", markup + _absent(runs, "transfer", "locality")


def content(runs):
    """Probes, use of codes, dimension."""
    markup = page.paragraph(
        "What do the latent actions hold? A linear probe reads the recorded actions from them: R² "
        "of 1 is all, 0 nothing. The effective dimension counts the directions that they use; near "
        "1 they have collapsed. Of codes, a good share is in use."
    )
    known = {"dimension": "effective dimension", "near_zero": "share near zero"}
    known |= {"hoyer": "Hoyer sparsity", "codes of": "codes"}
    for source, rows in merged(runs, "content").items():
        probed = []
        for label, row in rows:
            probe = _dict(row.get("probe"))
            pairs = zip(*(_list(probe.get(key)) for key in ("names", "r2")), strict=False)
            probed.append((label, {"probe": {str(name): r2 for name, r2 in pairs}} | {"name": ""}))
        names = dict.fromkeys(name for _, row in probed for name in row["probe"])
        columns = [(f"R² of {name}", 2, f"probe.{name}") for name in names]
        markup += tables({source: probed}, columns, "linear probe")
        told = [(label, {"latents": _flat(_dict(row.get("latents")))}) for label, row in rows]
        names = {k: v for _, row in told for k, v in row["latents"].items() if v is not None}
        columns = [
            (
                known.get(name, name.replace("_", " ")),
                0 if isinstance(x, int) else 2,
                f"latents.{name}",
            )
            for name, x in names.items()
        ]
        markup += tables({source: told}, columns, "statistics")
    return "Content of the latent actions", markup + _absent(runs, "content")


def sampling(runs):
    """E10."""
    markup = page.paragraph(
        "Can new latent actions be drawn that look like inferred ones? A classifier tries to tell "
        "them apart: an AUC of 0.5 is ideal, 1 means that it always can. The energy distance of "
        "the two sets should stay below its null, which two sets of inferred ones stay below in 19 "
        "of 20 draws; change is how much samples move a state, 1 being as much as inferred ones. "
        "The paper "
        "(its Appendix B) finds that low capacity samples well and high capacity does not."
    )
    columns = [("AUC", 3, "auc"), ("energy distance", 4, "energy_distance")]
    columns += [("its null", 4, "energy_null"), ("change", 3, "change")]
    sources = merged(runs, "sampling")
    verdicts = []
    for source, rows in sources.items():
        scored = [(label, _dict(row.get("auc"))) for label, row in rows]
        scored = [(k, auc) for k, auc in scored if _real(auc.get("mean")) and k[:8] != "inferred"]
        if scored:
            label, auc = min(scored, key=lambda pair: abs(pair[1]["mean"] - 0.5))
            alike = _real(auc.get("low")) and auc["low"] <= 0.5
            text = "can't be told from inferred ones" if alike else "can be told from inferred ones"
            verdicts.append(f"{source}: those of {label} {text} (AUC {auc['mean']:.3f}).")
    markup += page.found(verdicts) + tables(sources, columns, first="drawn from")
    return "E10: sampling", markup + _absent(runs, "sampling")


def pictures(runs):
    """Shows every picture and film of the runs."""
    markup = ""
    for run in runs:
        stems = {}
        for path in run.files:
            stems.setdefault(path.stem, []).append(path)
        shown = []
        for stem, paths in stems.items():
            kind, _, source = stem.partition("_")
            if kind == "loss" and run.metrics:  # drawn anew, for all runs
                continue
            films = [path for path in paths if path.suffix == ".mp4"]
            paths = films + [p for p in paths if p.suffix not in (".mp4", ".gif" if films else "")]
            title, caption = KINDS.get(kind, (stem, ""))
            title = f"{title}, {source}" if kind in KINDS and source else title
            place = list(KINDS).index(kind) if kind in KINDS else len(KINDS)
            wide = kind not in ("embedding", "loss")
            shown.append((place, stem, page.media(paths, caption, title, wide)))
        if shown:
            shown = "".join(markup for *_, markup in sorted(shown))
            markup += f'<h3>{page.text(run.label)}</h3>\n<div class="figures">{shown}</div>\n'
    text = "What do the numbers look like? Frames are read out of predicted states by a decoder, "
    text += "which blurs by itself: compare with the decoded states of the true video."
    none = page.paragraph("There are none: see the table of what is missing, above.", "note")
    return "Pictures", page.paragraph(text) + (markup or none)


def training(runs):
    """Draws the training curves, those of the runs' bounds among them."""
    lines = {run.label: run.metrics for run in runs if run.metrics}
    for run in runs:
        for path in sorted(run.folder.glob("bounds/*/metrics.jsonl")):
            name, other = path.parent.name, read(path.parent).metrics
            if other and other not in lines.values():
                lines[name if name not in lines else f"{name} ({run.name})"] = other
    if not lines:
        return "Training", page.paragraph("No run has a metrics.jsonl.", "note")
    text = (
        "Has training converged? Thick lines are means over a tenth of the run, thin ones single "
        "batches. A curve that still falls at its end asks for more steps."
    )
    caption = "Training error relative to copying the last frame."
    return "Training", page.paragraph(text) + page.drawing(figures.loss_curve(None, lines), caption)


def configs(runs):
    """Shows the configs, folded."""
    folded = [page.folded(f"{run.label}: {run.folder}", run.config) for run in runs if run.config]
    return "Configs", "".join(folded) or page.paragraph("No run has a config.json.", "note")


def _absent(runs, part, key=None):
    """Names the runs that lack a part, with the command that makes it."""
    has = [any(_dict(v).get(key) if key else v for v in run.evals[part].values()) for run in runs]
    names = [run.label for run, there in zip(runs, has, strict=True) if not there]
    if not names:
        return ""
    who = "Not measured yet" if len(names) == len(runs) else f"Not measured for {', '.join(names)}"
    command = f"python -m lawm_jax.evaluate --workdir W --only {part}"
    return page.paragraph(f"{who}: {command}", "note")


def _flat(values):
    """Brings what is nested, but for intervals, to the top: {"a": {"b": 1}} -> {"a b": 1}."""
    flat = {}
    for name, x in values.items():
        nested = isinstance(x, dict) and "mean" not in x
        flat |= {f"{name} {key}": y for key, y in x.items()} if nested else {name: x}
    return flat


def _at(row, path):
    for key in path.split(".", 1):
        row = _dict(row).get(key)
    return row


def _dict(x):
    return x if isinstance(x, dict) else {}


def _list(x):
    return x if isinstance(x, list) else []


def _text(x):
    return x if isinstance(x, str) else None


def _real(x):
    return (
        isinstance(x, int | float) and not isinstance(x, bool) and x == x and abs(x) != float("inf")
    )


def _interval(x):
    """Says whether x is an interval that can be drawn."""
    return (
        _real(x.get("mean"))
        and all(key in x and (x[key] is None or _real(x[key])) for key in ("low", "high"))
        and len(x) == 3
    )


if __name__ == "__main__":
    app.run(main)

"""Sections of the report on latent actions: a function per question, runs -> (heading, markup).

The paper's own figures stand beside ours where it has some. What all sections share is here, too.
"""

from lawm_jax.report import figures, page, results, row_names
from lawm_jax.report.results import at, drawable, listed, mapping, real, string

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
        for metric in dict.fromkeys(string(row.get("metric")) for _, row in rows):
            chosen = [[label, *(at(row, key) for *_, key in columns)]
                      for label, row in rows if string(row.get("metric")) == metric]  # fmt: skip
            chosen = [values for values in chosen if any(x not in (None, "") for x in values[1:])]
            title = ", ".join(str(x) for x in (source, caption, metric) if x)
            markup += page.table(heads, chosen, title) if chosen else ""
        notes = [f"{label}: {row['note']}." for label, row in rows if row.get("note")]
        markup += "".join(page.paragraph(note, "note") for note in notes)
    return markup


def rollouts(source, rows, led):
    """Tabulates and draws open-loop errors against the number of steps ahead, and decoded ones.

    Args:
      source: its name.
      rows: of `results.merged`.
      led: by what, such as "with inferred actions".
    """
    names = dict.fromkeys(name for _, row in rows for name in mapping(row.get("pixels")))
    known = {"psnr": ("PSNR in dB, higher is better", 2), "ssim": ("SSIM, higher is better", 3)}
    columns = [
        (*known.get(name, (f"{name} distance, lower is better", 3)), f"pixels.{name}")
        for name in names
    ]
    decoded = tables({source: rows}, columns, "rollouts, decoded")
    muted = [label for label, row in rows if results.is_bound(row["name"])]
    rows = [(label, row["rollout"]) for label, row in rows if isinstance(row.get("rollout"), list)]
    rows = [(label, [mapping(x) for x in values]) for label, values in rows]
    rows = [(label, values) for label, values in rows if values and all(map(drawable, values))]
    if not rows:
        return decoded
    P = max(len(values) for _, values in rows)
    steps = sorted({k for k in (1, 2, 4, 8, 16, 32) if k < P} | {P})
    columns = [("model", None)] + [(f"{k} step{'s' * (k > 1)} ahead", 3) for k in steps]
    shown = [[label, *(v[k - 1] if k <= len(v) else None for k in steps)] for label, v in rows]
    lines = {label: list(enumerate(values, 1)) for label, values in rows}
    svg = figures.curves(None, lines, "steps ahead", "error of the state", muted=muted)
    caption = f"{source}: error of open-loop rollouts {led}, 95 % intervals."
    table = page.table(columns, shown, f"{source}, several steps ahead, open loop")
    return table + page.drawing(svg, caption) + decoded


def prediction(runs):
    """Prediction: one step, several steps, pixels."""
    markup = page.paragraph(
        "How much of the next step do latent actions explain? 1 is as bad as copying the last "
        "frame. A good model lies well below the deterministic one, which has no latent actions, "
        "and near the unconstrained one (none), whose actions may carry anything. A labelled one "
        "knows the recorded actions."
    )
    sources = results.merged(runs, "prediction")
    markup += page.found([_gain(source, rows) for source, rows in sources.items()])
    for source, rows in sources.items():
        one = {source: rows}
        columns = [("error", 4, "error"), ("relative to copying", 3, "relative")]
        columns += [("minus deterministic", "+4", "paired")]
        markup += tables(one, columns, "one step ahead")
        markup += rollouts(source, rows, "with inferred actions")
    return "Prediction, one step and several ahead", markup + _absent(runs, "prediction")


def _gain(source, rows):
    """Says in a sentence what the best model's latent actions gain."""
    relative = {label: row["relative"] for label, row in rows if real(row.get("relative"))}
    models = {
        label: row for label, row in rows if not results.is_bound(row["name"]) and label in relative
    }
    if not models:
        return f"{source}: only bounds were measured."
    best = min(models, key=relative.get)
    text = f"{source}: {best} has {relative[best]:.3f} of the error of copying"
    low, high = relative.get(row_names.NONE), relative.get(row_names.DETERMINISTIC)
    if low is not None and high is not None and low < high:
        share = (high - relative[best]) / (high - low)
        text += (
            f", {100 * share:.0f} % of the way from deterministic ({high:.3f}) to none ({low:.3f})"
        )
    paired = mapping(models[best].get("paired"))
    if real(paired.get("high")) and real(paired.get("low")):
        if paired["high"] < 0:
            text += ". The gain over the deterministic model is clear: its interval excludes zero"
        else:
            text += ". No gain over the deterministic model can be told from chance"
    return text + "."


def capacity(runs):
    """Prediction over strengths: drawn where two runs of a kind differ in strength."""
    drawings = ""
    for source in dict.fromkeys(source for run in runs for source in run.evals["prediction"]):
        kinds, bounds = {}, {row_names.COPY: 1.0}
        for run in runs:
            rows = run.evals["prediction"].get(source)
            rows = {string(row.get("name")): row for row in map(mapping, listed(rows))}
            copy = mapping(mapping(rows.get(row_names.COPY)).get("error")).get("mean")
            for name, row in rows.items():
                if results.is_bound(name) and real(row.get("relative")):
                    bounds.setdefault(name, row["relative"])
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
    """Leakage, beside the paper's Table 1."""
    markup = page.paragraph(
        "Do latent actions copy the next frame? At a cut to another clip the next frame can't be "
        "predicted, unless it leaks through the action. A good model's error at the cut stays near "
        "that of copying the last frame (relative near 1); a leak brings it towards 0. The ratio "
        "with / without a cut says little alone, since copying has a high one, too: leak is where "
        "it lies between that of copying (0) and that of a model that copies the future (1)."
    )
    sources = results.merged(runs, "leakage")
    flags = [
        (source, label, row["flag"])
        for source, rows in sources.items()
        for label, row in rows
        if row.get("flag") and not str(row["name"]).startswith((row_names.COPY, *results.CONTROLS))
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
    return "Leakage of the future", markup + _absent(runs, "leakage")


def transfer(runs):
    """Transfer and back, beside the paper's Table 2."""
    markup = page.paragraph(
        "Does an action mean the same in another scene? Actions inferred on A lead B, are inferred "
        "again from that prediction, and lead A. A good ratio of A's errors, after to before, is "
        "near 1, and little information is lost on the way: 0 % is as good as A's own actions, "
        "100 % no better than shuffled ones. Where shuffled actions do no harm, neither says "
        "anything."
    )
    sources = results.merged(runs, "transfer", "cycle")
    columns = [("original", 3, "original"), ("after cycle", 3, "cycle")]
    columns += [("shuffled", 3, "shuffled"), ("ratio", 2, "ratio"), ("lost", 2, "lost")]
    if ours := tables(sources, columns):
        columns = [("latents", None), ("capacity", None), ("Kinetics", None), ("ratio", 2)]
        columns += [("RECON", None), ("ratio", 2)]
        theirs = page.table(columns, PAPER_TRANSFER, "The paper, original → after cycle", "paper")
        markup += page.beside(ours, theirs) + page.paragraph(NOT_COMPARABLE, "note")
    return "Transfer and back", markup + _absent(runs, "transfer", "cycle")


def locality(runs):
    """Locality."""
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
    markup += tables(results.merged(runs, "transfer", "locality"), columns)
    return "Locality", markup + _absent(runs, "transfer", "locality")


def content(runs):
    """Probes, use of codes, dimension."""
    markup = page.paragraph(
        "What do the latent actions hold? A linear probe reads the recorded actions from them: R² "
        "of 1 is all, 0 nothing. The effective dimension counts the directions that they use; near "
        "1 they have collapsed. Of codes, a good share is in use."
    )
    known = {"dimension": "effective dimension", "near_zero": "share near zero"}
    known |= {"hoyer": "Hoyer sparsity", "codes of": "codes"}
    for source, rows in results.merged(runs, "content").items():
        probed = []
        for label, row in rows:
            probe = mapping(row.get("probe"))
            pairs = zip(*(listed(probe.get(key)) for key in ("names", "r2")), strict=False)
            probed.append((label, {"probe": {str(name): r2 for name, r2 in pairs}} | {"name": ""}))
        names = dict.fromkeys(name for _, row in probed for name in row["probe"])
        columns = [(f"R² of {name}", 2, f"probe.{name}") for name in names]
        markup += tables({source: probed}, columns, "linear probe")
        told = [(label, {"latents": _flat(mapping(row.get("latents")))}) for label, row in rows]
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
    """Sampling."""
    markup = page.paragraph(
        "Can new latent actions be drawn that look like inferred ones? A classifier tries to tell "
        "them apart: an AUC of 0.5 is ideal, 1 means that it always can. The energy distance of "
        "the two sets should stay below its null, which two sets of inferred ones stay below in 19 "
        "of 20 draws; change is how much samples move a state, 1 being as much as inferred ones. "
        "Noisy latents are inferred by drawing from their posteriors. "
        "The paper "
        "(its Appendix B) finds that low capacity samples well and high capacity does not."
    )
    columns = [("AUC", 3, "auc"), ("energy distance", 4, "energy_distance")]
    columns += [("its null", 4, "energy_null"), ("change", 3, "change")]
    sources = results.merged(runs, "sampling")
    verdicts = []
    for source, rows in sources.items():
        scored = [(label, mapping(row.get("auc"))) for label, row in rows]
        scored = [(k, auc) for k, auc in scored if real(auc.get("mean")) and k[:8] != "inferred"]
        if scored:
            label, auc = min(scored, key=lambda pair: abs(pair[1]["mean"] - 0.5))
            alike = real(auc.get("low")) and auc["low"] <= 0.5
            text = "can't be told from inferred ones" if alike else "can be told from inferred ones"
            verdicts.append(f"{source}: those of {label} {text} (AUC {auc['mean']:.3f}).")
    markup += page.found(verdicts) + tables(sources, columns, first="drawn from")
    return "Sampling", markup + _absent(runs, "sampling")


def _absent(runs, part, key=None):
    """Names the runs that lack a part, with the command that makes it."""
    has = lambda run: any(mapping(v).get(key) if key else v for v in run.evals[part].values())  # noqa: E731
    return absent(runs, has, f"python -m lawm_jax.evaluate --workdir W --only {part}")


def absent(runs, has, command):
    """Names the runs of which `has` says that they lack something, with the command to make it."""
    names = [run.label for run in runs if not has(run)]
    if not names:
        return ""
    who = "Not measured yet" if len(names) == len(runs) else f"Not measured for {', '.join(names)}"
    return page.paragraph(f"{who}: {command}", "note")


def _flat(values):
    """Brings what is nested, but for intervals, to the top: {"a": {"b": 1}} -> {"a b": 1}."""
    flat = {}
    for name, x in values.items():
        nested = isinstance(x, dict) and "mean" not in x
        flat |= {f"{name} {key}": y for key, y in x.items()} if nested else {name: x}
    return flat

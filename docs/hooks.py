"""Build steps of the documentation: tables made from benchmarks/results, and inlined drawings.

In a page, a line `<!-- table NAME -->` becomes the table of `TABLES[NAME]`, and an image of
figures/*.svg becomes the drawing itself, so that it follows the page's light or dark theme. A new
table is a function and a line in `TABLES`. Needs only Python's standard library.
"""

import json
import pathlib
import re
import statistics

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CONTROLLERS = {
    None: "",
    "state": ", with state",
    "actions": ", actions alone",
    "state, by prediction": ", with state, by prediction",
}
FITTED = "Gaussian fit", "learned prior", "inferred, other episodes"  # samplers of all kinds
MODELS = {"labelled": "labeled actions", "none": "none", "noisy": "noisy", "sparse": "sparse"}


def on_page_markdown(markdown, **_):
    """Replaces the markers of a page; called by MkDocs."""
    marker = re.compile(r"^<!-- table ([\w-]+) -->$", re.M)
    markdown = marker.sub(lambda found: table(found[1]), markdown)
    return re.sub(r"!\[([^\]]*)\]\((figures/[\w-]+\.svg)\)", _inline, markdown)


def on_config(config):
    """Rebuilds the pages when a result changes; called by MkDocs."""
    config.watch.append(str(RESULTS))
    return config


def _inline(found):
    """Returns a drawing as HTML, without its own colors; style.css sets them."""
    text = (ROOT / "docs" / found[2]).read_text(encoding="utf-8")
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    text = "\n".join(line for line in text.splitlines() if line.strip())
    return f'<figure class="drawing" role="img" aria-label="{found[1]}">\n{text}\n</figure>'


def table(name):
    """Returns the Markdown table of a name in `TABLES`."""
    file, function = TABLES[name]
    heading, *rows = function(json.loads((RESULTS / file).read_text(encoding="utf-8")))
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def interval(x, digits=3, sign=""):
    """Formats {"mean", "low", "high"} as "0.806 [0.791, 0.822]"; None is an empty cell."""
    if not isinstance(x, dict):
        return "" if x is None else f"{x:{sign}.{digits}f}"
    mean, low, high = (f"{x[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return mean if x["low"] == x["mean"] == x["high"] else f"{mean} [{low},\u00a0{high}]"


def current(name):
    """Returns the name of a row that older result files name otherwise."""
    return name.replace("nearest neighbour", "nearest training window")


def by_name(rows):
    """Returns name -> row."""
    return {current(row["name"]): row for row in rows}


# Each function below takes a result file's content and returns the rows of a table, its heading
# first. Rows and columns are selected by what the file says, never by their place in it.


def control(result):
    """Rollouts from real actions: one row per world model."""
    columns = {
        "inferred latents": "inferred latents",
        "state": "controller with state",
        "actions": "controller of actions alone",
        "state, no action": "no action",
    }
    rows = [["world model", *columns.values()]]
    found = {kind: by_name(result[kind]["panda"]) for kind in ("noisy", "sparse", "none")}
    for kind, named in found.items():
        errors = [interval(named.get(name, {}).get("error")) for name in columns]
        rows.append([kind, *errors])
    first = found["noisy"]
    labelled = ["labeled actions, given the actions", interval(first["labelled"]["error"])]
    rows.append([*labelled, "", "", ""])
    rows.append(["copying the last frame", interval(first["copy last frame"]["error"]), "", "", ""])
    return rows


def _plans(result, task, closed):
    """Lists (plan run, plan of one horizon, rows by name) of a task."""
    return [
        (run, plan, by_name(plan["rows"]))
        for run in result["plans"]
        if run["task"] == task and run["closed_loop"] == closed
        for plan in run["plans"]
    ]


def _model(run):
    """Names a world model: kind of latent, strength and controller."""
    kind = re.match(r"[a-z]+", run["world_model"])[0]
    strength = f" {run['strength']:g}" if run["strength"] else ""
    return f"{MODELS[kind]}{strength}{CONTROLLERS[run['controller_kind']]}"


def reach(result):
    """Manipulation plans: one row per world model and planner, the newest commit first."""
    rows = [["world model, controller", "steps", "planner", "limit", "error, m", "commit"]]
    baselines = {}
    for run, _, named in _plans(result, "panda", closed=False):
        planner, limit = run["planner"]["name"], run["planner"]["bound"]
        own = run["world_model"]
        row = named.get(own) or named[re.match(r"[a-z]+", own)[0]]
        about = [_model(run), run["steps"], planner, "" if limit is None else f"{limit:g}"]
        rows.append([*about, interval(row["error"]), f"`{run['commit']}`"])
        names = "no action", "mean action", "random action", "nearest training window"
        baselines = baselines or {name: named[name]["error"] for name in names}
    for name, error in baselines.items():
        rows.append([name, "", "", "", interval(error), ""])
    return rows


def walk(result):
    """Navigation plans: the baselines, then one row per model, by steps ahead and walks."""
    heading = ["", "training", "steps ahead", "ATE, m", "minus mean action, m", "last yaw, rad"]
    found = {}
    for run, plan, named in _plans(result, "nav", closed=False):
        for name, row in named.items():
            if name == "truth, held":
                continue
            errors = [interval(row["ate"], 2), interval(row["paired"], 2, "+")]
            errors.append(f"{row['yaw']['mean']:.2f}")
            label, training, commit = _named(run, name)
            key = -plan["horizon"], training != "", run["walks"], run["steps"], label
            if training == "":
                key = key[0], False, 0, 0, label
            found.setdefault(key, [label, training, plan["horizon"], *errors, commit])
    return [[*heading, "commit"], *(found[key] for key in sorted(found))]


def _named(run, name):
    """Returns the label, the training data and the commit of a row; the last two of models only."""
    if name not in MODELS:
        return "the data's own policy" if name == "policy" else name, "", ""
    kind = run["controller_kind"] if name == re.match("[a-z]+", run["world_model"])[0] else None
    label = MODELS[name] + CONTROLLERS[kind]
    walks = f"{run['walks']} walks" if run["walks"] else ""
    walks += " and the Panda" if run["trained_on"] == "nav and panda" else ""
    steps = f"{walks}, {run['steps']} steps" if walks else f"{run['steps']} steps"
    return label, steps, f"`{run['commit']}`"


def _closed(result, task, unit):
    heading = ["", "training", f"within {unit} at the end", "at any time", "distance at the end, m"]
    found = {}
    for run, _, named in _plans(result, task, closed=True):
        for name, row in named.items():
            label, training, commit = _named(run, name)
            shares = [interval(row["success"], 2), interval(row["reached"], 2)]
            cells = [label, training, *shares, interval(row["distance"]), commit]
            found.setdefault(
                (training != "", run["walks"] if training else 0, training, label), cells
            )
    return [[*heading, "commit"], *(found[key] for key in sorted(found, key=str))]


def closed_panda(result):
    """Acting with the Panda in the simulator."""
    return _closed(result, "panda", "5 cm")


def closed_nav(result):
    """Acting on the walks in the simulator."""
    return _closed(result, "nav", "0.5 m")


def mixture(result):
    """The share of in-domain video: one row per share."""
    rows = [
        [
            "share of the Panda, %",
            "error of 3 steps, m",
            "minus no action, m",
            "one-step error / copying",
        ]
    ]
    for row in result["rows"]:
        paired = interval(row["less"]["no action"], 3, "+")
        rows.append([f"{row['share']:g}", interval(row["error"]), paired, f"{row['one_step']:.3f}"])
    for name, error in result["baselines"].items():
        rows.append([current(name), interval(error), "", ""])
    return rows


def newest(result):
    """Returns the last measured day of a benchmark."""
    return result["days"][-1]


def data(result):
    """Speed of reading: one row per way to read."""
    day = newest(result)
    single, wall = day["clips per CPU second"], day["clips per second, 2 workers"]
    median = {name: statistics.median(values) for name, values in single.items()}
    rows = [["", "clips per CPU second", "relative to decord", "clips/s, 2 workers on 2 cores"]]
    for name, speed in median.items():
        relative = speed / median["raw 720p, decord"]
        both = wall.get(f"{name}, alone", wall.get(name))
        rows.append([name, *map(_short, (speed, relative, both))])
    whole = "raw 720p, lawm_jax"
    return [*rows, [f"{whole}, by the whole pipeline", "", "", _short(wall[whole])]]


def _short(x):
    """Formats a speed with at least three digits."""
    return f"{x:.2f}" if x < 10 else f"{x:.0f}"


def memory(result):
    """Resident memory of the reading process over 10,000 clips."""
    rows = [["", "lowest, MB", "highest, MB"]]
    for name, sizes in newest(result)["resident MB"].items():
        rows.append([name, min(sizes), max(sizes)])
    return rows


def _median(values, digits):
    return f"{statistics.median(values):.{digits}f}"


def train_step(result):
    """Speed of a training step of nano: one row per implementation."""
    day = newest(result)
    rows = [["", "clips/s", "CPU seconds a step", "busy cores", "first step, s"]]
    for name, one in day["nano"].items():
        if "clips/s" in one:
            speeds = [_median(one["clips/s"], 1), _median(one["CPU seconds of a step"], 3)]
            rows.append([name, *speeds, f"{one['busy cores']:.2f}", f"{one['first']:.1f}"])
    ratio = day["nano"]["ratio"]
    low, high = (f"{x:.2f}" for x in ratio["interval"])
    rows.append(
        ["lawm_jax / PyTorch, compiled", f"{ratio['median']:.2f} [{low}, {high}]", "", "", ""]
    )
    return rows


def planner(result):
    """Speed of planning: one row per implementation and setting."""
    day = newest(result)
    rows = [["setting", "", "plans/s", "CPU seconds a plan", "busy cores"]]
    for setting in ("context of 1, 15 iterations", "context of 4, 3 iterations", "other planners"):
        for name, one in day[setting].items():
            speeds = [_median(one["plans/s"], 3), _median(one["CPU seconds"], 1)]
            rows.append([setting, name, *speeds, f"{one['busy cores']:.2f}"])
    ratio = day["ratio"]
    low, high = (f"{x:.1f}" for x in ratio["interval"])
    about = ["context of 1, 15 iterations", "lawm_jax / CEMSolver, compiled"]
    rows.append([*about, f"{ratio['median']:.1f} [{low}, {high}]", "", ""])
    return rows


def planner_memory(result):
    """Memory of planning."""
    rows = [["", "before, MB", "at most, MB"]]
    for name, sizes in newest(result)["resident MB, before and at most"].items():
        rows.append([name, *sizes])
    return rows


def swm(result):
    """Success in stable-worldmodel's environments: one row per environment and agent."""
    rows = [["environment", "agent", "success, %", "of each seed, %"]]
    for env, day in {day["env"]: day for day in result["days"]}.items():
        for name, one in day["agents"].items():
            seeds = ", ".join(f"{x:.0f}" for x in one["seeds"])
            rows.append([env, name, interval(one["success"], 1), seeds])
    return rows


def scaling(result):
    """How costs grow: one row per quantity."""
    rows = [["quantity", "values", "CPU seconds grow with the power", "expected"]]
    for name, curve in newest(result).items():
        if isinstance(curve, dict) and "exponent" in curve:
            low, high = (f"{x:.2f}" for x in curve["interval"])
            values = ", ".join(map(str, curve["values"]))
            found = f"{curve['exponent']:.2f} [{low}, {high}]"
            rows.append([name, values, found, f"{curve['expected']:.2f}"])
    return rows


def encoder(result):
    """Speed of V-JEPA 2's forward pass: one row per size and implementation."""
    day = newest(result)
    sizes = {"small": "ViT-S, 128 px", "large": "four blocks of ViT-L, 256 px"}
    rows = [["size", "", "clips/s", "first, s"]]
    for size, title in sizes.items():
        for name, one in day[size].items():
            rows.append([title, name, _median(one["clips/s"], 2), f"{one['first']:.1f}"])
    return rows


def faults(result):
    """Random kills of a training run of two processes."""
    rows = [["moment and process", "kills"]]
    rows += [[name, count] for name, count in sorted(result["moments"].items())]
    rows.append(["all", result["kills"]])
    return [*rows, ["runs that differ from one that was not killed", result["divergences"]]]


def aot(result):
    """Memory and limit of speed of a compiled step: one row per size and topology."""
    heading = [
        "size",
        "topology",
        "clips per chip",
        "attention",
        "memory, GiB",
        "of GiB",
        "fits",
        "limit, clips/s per chip",
        "chip hours per million clips, at least",
    ]
    rows = [heading]
    for one in result:
        size = next(flag for flag in one["flags"] if "size=" in flag).partition("size=")[2]
        note = " *" if any(flag.endswith("remat=blocks") for flag in one["flags"]) else ""
        note += ", accumulate=2" if "--config.optim.accumulate=2" in one["flags"] else ""
        where = one["topology"] + (f", {one['slices']} slices" if one["slices"] > 1 else "")
        total, room = (x / 2**30 for x in (one["memory"]["total"], one["hbm"]))
        sizes = [f"{total:.1f}", f"{room:.0f}", "yes" if one["fits"] else "no"]
        hours = f"{1e6 / one['clips'] / 3600:.1f}"
        attention = one.get("attention", "splash")  # results of before, of which TPUs' are left
        about = [f"`{size}`{note}", f"`{where}`", one["batch"] // one["chips"], attention]
        rows.append([*about, *sizes, f"{one['clips']:.0f}", hours])
    order = {f"`{size}`": i for i, size in enumerate(("base", "large", "huge", "giant"))}
    return [heading, *sorted(rows[1:], key=lambda row: order[re.match(r"`\w+`", row[0])[0]])]


def nano(result):
    """The shipped model's evaluations: one row per question, one column per data source."""

    def answers(source):
        """Returns question -> answer."""
        controller = "state, by prediction"
        parts = "prediction", "control", "sampling"
        predicted, driven, sampled = (by_name(result[part][source]) for part in parts)
        leaks = by_name(row for row in result["leakage"][source] if row["metric"] == "latent L1")
        probe = result["content"][source][0]["probe"]["r2"]
        parts = "ablation", "bias", "algebra", "flow", "scene", "invariance"
        ablated, bias, algebra, flow, scene, invariance = (
            by_name(result[part][source])["noisy"] for part in parts
        )
        return {
            "prediction: error one step ahead": interval(predicted["noisy"]["error"]),
            "relative to copying": interval(predicted["noisy"]["relative"]),
            "ablation: share of the gain from the step's own latent": interval(ablated["share"], 2),
            "leakage: leak, 1 for a model that copies": f"{leaks['noisy']['leak']:+.2f}",
            "transfer: lost in the cycle": interval(
                result["transfer"][source]["cycle"][0]["lost"], 2
            ),
            "bias: response in the moving region, without bias": interval(bias["after"], 2),
            "bias: the same by chance": interval(bias["chance"], 2),
            "algebra: additivity, 1 for unrelated latents": interval(algebra["additivity"], 2),
            "flow: R2 of the mean flow, x and y": ", ".join(
                interval(row["latents"], 2) for row in flow["flow"] if row["name"].endswith("mean")
            ),
            "scene: episode accuracy relative to the state": interval(scene["share"], 2),
            "invariance: kept": interval(invariance["kept"], 2),
            "content: R2 of the three actions": ", ".join(interval(r2, 2) for r2 in probe),
            "control: inferred latents": interval(driven["inferred latents"]["error"]),
            "control: controller by prediction": interval(driven[controller]["error"]),
            "control: no action": interval(driven[f"{controller}, no action"]["error"]),
            "sampling, AUC: N(0, I)": interval(result["sampling"][source][0]["auc"]),
            "sampling, AUC: learned prior": interval(sampled["learned prior"]["auc"]),
        }

    panda, nav = answers("panda"), answers("nav")
    return [["", "panda", "walks"], *([name, panda[name], nav[name]] for name in panda)]


def latents(result):
    """Short runs of every latent kind: one row per data source and kind."""
    kinds = {"noisy": "noisy 1e-5", "sparse": "sparse 1e-4", "discrete": "discrete, 16 codes"}
    kinds |= {"none": "none", "deterministic": "deterministic"}
    heading = ["", "latents", "prediction: error / copying", "leakage: error at a cut / copying"]
    heading += ["leak", "transfer: lost in the cycle", "probe R2 of the 3 actions"]
    rows = [[*heading, "sampling, AUC: own / Gaussian / learned prior"]]
    for source in ("panda", "nav"):
        parts = "prediction", "leakage", "content"
        predicted, cut, probed = (by_name(result[part][source]) for part in parts)
        cycle = by_name(result["transfer"][source]["cycle"])
        for kind, name in kinds.items():
            lost = cycle[kind]["lost"]
            cells = [source, name, interval(predicted[kind]["relative"])]
            cells += [interval(cut[kind]["relative"]), f"{cut[kind]['leak']:+.2f}"]
            cells.append("does nothing" if lost is None else interval(lost, 2))
            r2 = probed.get(kind, {}).get("probe", {}).get("r2", [])
            cells.append(" / ".join(f"{x['mean']:.2f}" for x in r2) or "-")
            drawn = by_name(result["sampling"].get(kind, {}).get(source, []))
            own = [row for key, row in drawn.items() if key not in FITTED][:1]
            drawn = own + [drawn[key] for key in FITTED[:2] if key in drawn]
            rows.append([*cells, " / ".join(f"{row['auc']['mean']:.2f}" for row in drawn) or "-"])
    return rows


def nano_plans(result):
    """The shipped model's plans: one row per task, planner and model."""
    rows = [["task", "planner", "", "error or ATE, m", "within the radius at the end"]]
    for run in result["plans"]:
        for plan in run["plans"]:
            task = f"{run['task']}, {plan['horizon']} steps"
            task += ", acting" if run["closed_loop"] else ""
            for row in plan["rows"]:
                error = row.get("error") or row.get("ate") or row["distance"]
                name = "nano" if row["name"] == "noisy" else current(row["name"])
                shares = interval(row.get("success"), 2)
                rows.append([task, run["planner"]["name"], name, interval(error), shares])
    return rows


def claims(result):
    """The paper's claims: one row per claim, failed ones first, with the contrast that decides."""
    order = "fails", "undecided", "holds"
    rows = [["claim", "answer", "p", "contrast with the weakest evidence"]]
    for name, row in sorted(result["claims"].items(), key=lambda x: order.index(x[1]["answer"])):
        tested = row["contrasts"].items()
        text, effect = max(tested, key=lambda x: x[1]["above"], default=("not measured", None))
        shown = f"{text}: {interval(effect, 3, '+')}" if effect else text
        p = "" if row["p"] is None else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
        rows.append([f"`{name}`", row["answer"], p, shown])
    return rows


def capacities(result):
    """What the runs of the claims measured, against capacity: one row per case."""
    keys = ("panda", "error"), ("nav", "error"), ("panda", "error at a cut")
    keys += (("panda", "error by real actions, state"), ("panda", "error of plans"))
    heading = ["world model", "Panda, error", "walks, error", "Panda, at a cut", "driven"]
    rows = [[*heading, "plans, m"]]
    cases = {}
    for row in result["curves"]:
        cases.setdefault(row["case"], {})[row["source"]] = row["values"]
    for case, values in cases.items():
        cells = [interval(values.get(source, {}).get(key)) for source, key in keys]
        rows.append([case.replace("labelled", "labeled actions"), *cells])
    return rows


def exponents(result):
    """How the error falls with steps, width and episodes: one row per axis and part."""
    rows = [["scaled by", "part", "exponent", "error relative to copying, by factor"]]
    for row in result["rows"]:
        points = ", ".join(f"{x['factor']:g}: {x['error']['mean']:.3f}" for x in row["points"])
        rows.append([row["name"], row["source"], interval(row["exponent"], 3, "+"), points])
    return rows


TABLES = {
    "nano": ("nano-2-core-epyc.json", nano),
    "nano-plans": ("nano-2-core-epyc.json", nano_plans),
    "latents": ("latents-2-core-epyc.json", latents),
    "control": ("control-2-core-epyc.json", control),
    "reach": ("planning-2-core-epyc.json", reach),
    "walk": ("planning-2-core-epyc.json", walk),
    "closed-panda": ("planning-2-core-epyc.json", closed_panda),
    "closed-nav": ("planning-2-core-epyc.json", closed_nav),
    "claims": ("claims-2-core-epyc.json", claims),
    "capacities": ("claims-2-core-epyc.json", capacities),
    "claims-quick": ("claims-quick-2-core-epyc.json", claims),
    "exponents": ("study-scaling-2-core-epyc.json", exponents),
    "mixture": ("mixture-2-core-epyc.json", mixture),
    "data": ("data-2-core-epyc.json", data),
    "memory": ("data-2-core-epyc.json", memory),
    "train-step": ("train-step-2-core-epyc.json", train_step),
    "planner": ("planner-2-core-epyc.json", planner),
    "planner-memory": ("planner-2-core-epyc.json", planner_memory),
    "swm": ("swm-2-core-epyc.json", swm),
    "scaling": ("scaling-2-core-epyc.json", scaling),
    "encoder": ("encoder-2-core-epyc.json", encoder),
    "faults": ("faults-2-core-epyc.json", faults),
    "aot": ("aot.json", aot),
}

"""The report: all that runs left on one page that needs nothing else."""

import base64
import functools
import html.parser
import json
import re
import shutil
import types

import numpy as np
import PIL.Image
import pytest
from conftest import run_module

from lawm_jax.evaluate import figures as pictures
from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.report import __main__ as report_module
from lawm_jax.report import figures, page, results, sections, summary

STRANGE = "<b>&\"'$x$"  # a source's name that must come out as it is


def interval(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def prediction(kind, error):
    """Makes one source's rows, with numbers that appear nowhere else."""

    def row(name, error, paired=None):
        rollout = [interval(error * (1 + 0.1 * k)) for k in range(6)]
        pixels = {"psnr": interval(30 - 20 * error, 0.2), "ssim": interval(1 - error)}
        row = {"name": name, "error": interval(error), "paired": paired}
        row["relative"] = interval(error / 0.36, 0.003)
        return row | {"rollout": rollout, "pixels": pixels}

    return [
        row("copy last frame", 0.36),
        row(kind, error, interval(error - 0.3412)),
        row("deterministic", 0.3412),
        row("none", 0.2834, interval(0.2834 - 0.3412)),
        {"name": "decoder alone", "pixels": {"psnr": interval(27.13), "ssim": interval(0.917)}},
    ]


def leakage(kind):
    keys = "with", "without", "ratio", "relative"
    rows = [("copy last frame", (0.71, 0.36, 1.97, 1.0), 0.0, None)]
    rows += [(kind, (0.523, 0.291, 1.79, 0.737), 0.736, "a flag & more")]
    rows += [("copies the future (error of noisy)", (0.29, 0.29, 1.0, 0.41), 1.0, "the control")]
    return [
        {"name": name, "metric": "latent L1", "leak": leak, "flag": flag}
        | dict(zip(keys, map(interval, values), strict=True))
        for name, values, leak, flag in rows
    ]


def transfer(kind):
    row = {"name": kind, "metric": "latent L1", "original": interval(0.2471)}
    row |= {"cycle": interval(0.2593), "shuffled": interval(0.3517), "ratio": interval(1.049)}
    place = {"name": kind, "count": 37, "share": {"region": interval(0.613), "mirrored": 0.124}}
    place |= {"action": {"region": None, "mirrored": None}, "chance": 0.253, "note": "few cases"}
    return {"cycle": [row | {"lost": None, "note": None}], "locality": [place]}


def content(kind):
    probe = {"names": ["x", "yaw"], "r2": [interval(0.153), interval(-0.617)]}
    describe = {"dimension": 7.53, "nats": 103.21, "codes": {"used": 11, "of": 16}}
    matched = {"name": "yaw", "added": interval(0.4417), "state": interval(0.2219)}
    return [{"name": kind, "probe": probe, "latents": describe, "matched": [matched]}]


def ablation(kind):
    row = {"name": kind, "error": interval(0.29), "gain": interval(0.0712), "best": "zero"}
    row |= {"share": interval(0.7341), "controls": [{"name": "zero", "error": interval(0.3417)}]}
    return [{"name": "copy last frame", "error": interval(0.36)}, row]


def bias(kind):
    values = dict(correlation=0.9317, before=0.6153, after=0.5719, chance=0.4021, left=0.0613)
    return [{"name": kind, "count": 43} | {key: interval(x) for key, x in values.items()}]


def algebra(kind):
    ahead = [("copy last frame", 0.4617, None), ("sum of two latents", 0.3913, interval(0.4271))]
    ahead = [{"name": name, "error": interval(x), "kept": kept} for name, x, kept in ahead]
    errors = dict(additivity=0.5137, reversal=1.0471, identity=0.9733)
    return [{"name": kind, "two_steps": ahead} | {key: interval(x) for key, x in errors.items()}]


def flow(kind):
    probed = {"latents": interval(0.8913), "state": interval(0.1177), "added": interval(0.7731)}
    flows = [probed | {"name": f"flow {axis}, mean"} for axis in "xy"]
    return [{"name": kind, "moving": interval(0.3017), "flow": flows}]


def invariance(kind):
    values = dict(within=0.2411, between=0.0913, any_within=0.0531, any_between=0.0017)
    values |= dict(gain=0.0896, kept=0.3807)
    return [{"name": kind} | {key: interval(x) for key, x in values.items()}]


def scene(kind):
    rows = [(kind, 0.1123, interval(0.0843)), ("the state's components", 0.9637, interval(1))]
    return [
        {"name": name, "episode": interval(x), "chance": 0.0313, "share": share}
        for name, x, share in rows
    ]


def sampling(kind):
    row = {"name": "N(0, I)", "auc": interval(0.711), "energy_distance": 0.0123}
    return [row | {"energy_null": 0.0017, "change": float("nan")}]


def labels(kind):
    errors = {"1 episode": 0.4127, "10 episodes": 0.3619, "inferred latents": 0.3001}
    errors |= {"10 episodes, no action": 0.5003}
    counts = dict(zip(errors, (1, 10), strict=False))
    return [
        {
            "name": name,
            "error": interval(x),
            "paired": interval(x - 0.3001),
            "episodes": counts.get(name),
        }
        for name, x in errors.items()
    ]


def surprise(kind):
    return [
        {"name": name, "metric": "a cut", "error": interval(x), "paired": interval(0.0417)}
        for name, x in (("copy last frame", 0.8123), (kind, 0.8717))
    ]


def control(error):
    """Makes rows of control with an error of inferred latents, and two controllers'."""
    errors = {"copy last frame": 0.4312, "inferred latents": error, "state": error + 0.0123}
    errors |= {"actions": error + 0.0567, "labelled": 0.2718, "state, no action": 0.3987}

    def row(name, x):
        paired = None if name == "inferred latents" else interval(x - error, 0.001)
        gain = None if name == "state, no action" else interval(x - 0.3987, 0.0005)
        row = {"name": name, "error": interval(x), "paired": paired, "no_action": gain}
        row |= {"test": paired and {"p": 0.0321, "d": 0.4}}
        return row | {"rollout": [interval(x * (1 + 0.2 * k)) for k in range(4)]}

    return [row(name, x) for name, x in errors.items()]


def plans(kind, error, planner="cem", controller="panda", sees="state", closed=False):
    """Makes what planning leaves: baselines and a labelled bound alike, one model."""

    def reach(name, x, correlation, distance=None):
        row = {"name": name, "error": interval(x), "score": {"mean": 0.0, "low": 0.0, "high": 3.2}}
        row |= {"correlation": correlation, "paired": interval(x - 0.1781), "distance": distance}
        return row

    def walk(name, x):
        row = {"name": name, "ate": interval(x), "rpe": interval(x / 2), "yaw": interval(x / 4)}
        return row | {
            "correlation": [0.61, -0.03, None],
            "paired": interval(x - 0.8),
            "distance": None,
        }

    def loop(name, x):
        row = {"name": name, "success": interval(1 - x), "reached": interval(1 - x / 2)}
        return row | {"distance": interval(x), "paired": interval(x - 0.1781), "path": [x, x]}

    made = [reach("no action", 0.1781, [None] * 3), reach("nearest neighbour", 0.1512, [0.2] * 3)]
    made += [reach(kind, error, [0.57, 0.92, None], interval(0.0612))]
    made += [reach("labelled", 0.0713, [0.7, 0.9, 0.9])]
    plan = {"horizon": 3, "rows": made}
    if closed:
        names = {"no action": 0.1781, "policy": 0.0113, kind: error, "labelled": 0.0713}
        rows = [loop(name, x) for name, x in names.items()]
        plan |= {"radius": 0.05, "steps": 10, "rows": rows}
    if controller == "nav":
        names = {"truth, held": 0.0871, "mean action": 0.8, kind: error}
        plan = {"horizon": 8, "rows": [walk(name, x) for name, x in names.items()]}
    task = "nav" if controller == "nav" else "panda"
    return {
        "task": task,
        "source": f"mini:{task}",
        "controller": f"/somewhere/W/controller/{controller}",
        "controller_kind": sees,
        "episodes": 16,
        "planner": {"name": planner, "bound": None, "samples": 64},
        "plans": [plan],
    }


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with all parts but a few, and one with the beginning of a log alone."""
    root = tmp_path_factory.mktemp("runs")
    for folder, strength, error in ("first & best", 1e-5, 0.2911), ("weak", 1e-3, 0.3304):
        run = root / folder
        latent = {"kind": "noisy", "strength": strength}
        data = {"mixture": {"panda": 1.0, "nav": 0.0}, "videos": ""}
        config = {"latent": latent, "data": data, "encoder": {}, "steps": 300}
        config["note"] = "</pre><script>"
        write(run / "config.json", config)
        lines = [{"step": k, "error": 0.4 - k / 3000, "copy": 0.4} for k in range(1, 301, 20)]
        write(run / "metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines) + '{"step": 30')
        write(run / "eval" / "prediction.json", {STRANGE: prediction("noisy", error)})
    run = root / "first & best"
    write(run / "skipped.jsonl", '{"path": "a"}\n{"path": "b"}\n')
    about = {"commit": "b49c3a8", "machine": "2 cores", "versions": {"jax": "0.10.2"}}
    write(run / "eval" / "about.json", about | {"seconds": 142.0, "date": "2026-11-23"})
    parts = ablation, leakage, transfer, bias, algebra, content, flow, scene, invariance, sampling
    for part in (*parts, surprise, labels):
        write(run / "eval" / f"{part.__name__}.json", {"panda": part("noisy")})
    write(root / "weak" / "eval" / "leakage.json", "{ this is no JSON")
    for folder, error in ("first & best", 0.0931), ("weak", 0.1874):
        out = root / folder / "eval"
        write(out / "control.json", {"panda": control(error + 0.2)})
        write(out / "plan_panda.json", plans("noisy", error))
    (root / "weak" / "controller" / "checkpoints" / "20").mkdir(parents=True)
    out = run / "eval"
    blind = plans("noisy", 0.1649, controller="blind", sees="actions")
    write(out / "plan_panda_controller=blind.json", blind)
    write(out / "plan_panda_planner=mppi.json", plans("noisy", 0.1003, "mppi"))
    write(out / "plan_panda_closed.json", plans("noisy", 0.0421, closed=True))
    write(out / "plan_nav.json", plans("noisy", 0.7512, controller="nav"))
    write(out / "plan_droid.json", {"plans": [{"rows": [{"name": 3}, "x"]}], "planner": "cem"})
    clips = {"video": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)}
    clips["rollout, noisy"] = clips["video"][::-1]
    (run / "report").mkdir()
    pictures.movie(run / "report" / "rollout_panda.mp4", clips)
    for name in ("rollout_panda.gif", "cut_panda.gif"):  # as others may leave
        PIL.Image.fromarray(clips["video"][0]).save(run / "report" / name)
    pictures.strips(run / "report" / "rollout_panda.png", "rollouts", clips)
    pictures.loss_curve(run / "report" / "loss.png", {"a": lines})
    pictures.embedding(run / "report" / "my own.png", {"inferred": np.eye(2)})
    write(root / "started" / "metrics.jsonl", "")
    return root


report = functools.partial(run_module, "report")


@pytest.fixture(scope="module")
def made(runs):
    """The page of all three runs."""
    out = runs / "page" / "all.html"
    run = report(*(runs / name for name in ("first & best", "weak", "started")), "--out", out)
    assert run.returncode == 0, run.stderr
    return out


class Reader(html.parser.HTMLParser):
    """Collects text, tables, attributes and the nesting of a page."""

    VOID = {"meta", "link", "img", "br", "use", "path"}

    def __init__(self, text):
        super().__init__()
        self.stack, self.words, self.attributes, self.rows = [], [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data)
        if {"td", "th"} & set(self.stack):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def read(made):
    return Reader(made.read_text(encoding="utf-8"))


def test_the_numbers_of_every_part_are_in_the_tables_with_their_intervals(read):
    for row in [
        ["copy last frame", "0.3600 [0.3500, 0.3700]", "1.000 [0.997, 1.003]", "–"],
        ["noisy 1e-5", "0.2911 [0.2811, 0.3011]", "0.809 [0.806, 0.812]",
         "−0.0501 [−0.0601, −0.0401]"],
        ["noisy 1e-3", "0.3304 [0.3204, 0.3404]", "0.918 [0.915, 0.921]",
         "−0.0108 [−0.0208, −0.0008]"],
        ["none", "0.2834 [0.2734, 0.2934]", "0.787 [0.784, 0.790]",
         "−0.0578 [−0.0678, −0.0478]"],
        ["none", "0.283 [0.273, 0.293]", "0.312 [0.302, 0.322]", "0.368 [0.358, 0.378]",
         "0.425 [0.415, 0.435]"],
        ["decoder alone", "27.13 [27.12, 27.14]", "0.917 [0.907, 0.927]"],
        ["noisy 1e-5", "0.523 [0.513, 0.533]", "0.291 [0.281, 0.301]", "1.79 [1.78, 1.80]",
         "0.737 [0.727, 0.747]", "+0.74"],
        ["sparse", "low", "0.66", "0.28", "2.3"],
        ["noisy", "high", "0.20 → 0.26", "1.34", "0.20 → 0.24", "1.22"],
        ["noisy 1e-5", "0.247 [0.237, 0.257]", "0.259 [0.249, 0.269]", "0.352 [0.342, 0.362]",
         "1.05 [1.04, 1.06]"],
        ["noisy 1e-5", "37", "0.61 [0.60, 0.62]", "0.12", "0.25"],
        ["noisy 1e-5", "0.15 [0.14, 0.16]", "−0.62 [−0.63, −0.61]"],
        ["noisy 1e-5", "7.53", "103.21", "11", "16"],
        ["N(0, I)", "0.711 [0.701, 0.721]", "0.0123", "0.0017", "–"],
    ]:  # fmt: skip
        assert row in read.rows


def test_what_several_runs_say_alike_comes_once_and_bounds_frame_the_models(read):
    names = [row[0] for row in read.rows]
    start = names.index("copy last frame")
    assert names[start : start + 5] == [
        "copy last frame",
        "deterministic",
        "noisy 1e-5",
        "noisy 1e-3",
        "none",
    ]


def test_controllers_of_few_episodes_are_a_curve_between_no_action_and_inferred_latents(made, read):
    lost = "+0.1126 [+0.1026, +0.1226]"
    assert ["1 episode", "0.4127 [0.4027, 0.4227]", lost] in read.rows
    section = made.read_text(encoding="utf-8").split("<h2>Labeled episodes</h2>")[1]
    section = section.split("</section>")[0]
    assert section.count("<svg") == 1 and "error of open-loop rollouts from real" in section
    for label in ("noisy 1e-5: no action", "noisy 1e-5: inferred latents", "labeled episodes"):
        assert label in section


def test_real_actions_and_plans_are_in_tables_beside_what_needs_no_model(read):
    left = "0.061 [0.051, 0.071]"
    for row in [
        ["noisy 1e-5: state", "0.3054 [0.2954, 0.3154]", "+0.0123 [+0.0113, +0.0133]",
         "−0.0933 [−0.0938, −0.0928]"],
        ["noisy 1e-3: state", "0.3997 [0.3897, 0.4097]", "+0.0123 [+0.0113, +0.0133]",
         "+0.0010 [+0.0005, +0.0015]"],
        ["noisy 1e-5: inferred latents", "0.293 [0.283, 0.303]", "0.352 [0.342, 0.362]",
         "0.469 [0.459, 0.479]"],
        ["noisy", "mid", "0.10 → 0.11", "0.17 → 0.21"],
        ["no action", "0.178 [0.168, 0.188]", "+0.000 [−0.010, +0.010]", "0.0 [0.0, 3.2]",
         "–", "–", "–", "–", "–"],
        ["noisy 1e-5 (panda)", "0.093 [0.083, 0.103]", "−0.085 [−0.095, −0.075]", "0.0 [0.0, 3.2]",
         "0.57", "0.92", "–", left, "state"],
        ["noisy 1e-5 (blind)", "0.165 [0.155, 0.175]", "−0.013 [−0.023, −0.003]", "0.0 [0.0, 3.2]",
         "0.57", "0.92", "–", left, "actions"],
        ["noisy 1e-5", "0.100 [0.090, 0.110]", "−0.078 [−0.088, −0.068]", "0.0 [0.0, 3.2]",
         "0.57", "0.92", "–", left, "state"],
        ["noisy", "0.49", "0.11", "0.10", "–"],
        ["noisy 1e-5", "0.751 [0.741, 0.761]", "−0.049 [−0.059, −0.039]", "0.376 [0.366, 0.386]",
         "0.19 [0.18, 0.20]", "0.61", "−0.03", "state"],
        ["NWM", "–", "–", "–", "1.13 / 0.35"],
        ["noisy 1e-5", "0.96 [0.95, 0.97]", "0.98 [0.97, 0.99]", "0.042 [0.032, 0.052]",
         "−0.136 [−0.146, −0.126]", "state"],
    ]:  # fmt: skip
        assert row in read.rows
    text = " ".join(read.words)
    asked = "panda (mini:panda), 3 steps, cem, 64 samples, 16 clips"
    found = "displacement error: 0.093 [0.083, 0.103] m; -0.085 [-0.095, -0.075] vs. no action"
    assert f"✓ {asked}, noisy 1e-5 (panda): {found}." in text
    assert f"✓ {asked.replace('cem', 'mppi')}, noisy 1e-5: displacement error: 0.100 " in text
    closed = f"{asked}, goal within 0.05 m, in closed loop"
    assert f"✓ {closed}, noisy 1e-5: distance at the end: 0.042 [0.032, 0.052] m" in text
    way = "✓ nav (mini:nav), 8 steps, cem, 64 samples, 16 clips, noisy 1e-5: ATE of the path: 0.751"
    assert f"{way} [0.741, 0.761] m; -0.049 [-0.059, -0.039] vs. the mean action" in text


def test_baselines_of_plans_and_a_labelled_bound_come_once_around_the_models(read):
    names = [row[0] for row in read.rows if len(row) == 9]
    models = ["noisy 1e-5 (panda)", "noisy 1e-5 (blind)", "noisy 1e-3"]
    start = names.index("no action")
    assert names[start : start + 6] == ["no action", "nearest training window", *models, "labelled"]
    led = [row for row in read.rows if row[1:2] == ["0.4312 [0.4212, 0.4412]"]]
    assert led == [["copy last frame", "0.4312 [0.4212, 0.4412]", "–", "–"]]  # of two runs
    assert ["labelled", "0.2718 [0.2618, 0.2818]", "–", "–"] in read.rows


def test_what_drives_a_run_is_asked_for_only_where_it_can_be_made(runs, read):
    missing = {tuple(row) for row in read.rows if len(row) == 3}
    assert not any(what == "eval/control.json" for _, what, _ in missing)
    text = " ".join(read.words)
    walks = "Not measured for noisy 1e-3, started: python -m lawm_jax.plan --workdir W --task ..."
    assert walks in text and "This requires a controller" in text


def test_a_run_of_labelled_actions_is_a_bound(runs, tmp_path):
    for name, kind, strength in ("labels", "labelled", 0.0), ("model", "noisy", 1e-5):
        config = {"latent": {"kind": kind, "strength": strength}, "steps": 4}
        config |= {"data": {}, "encoder": {}}
        write(tmp_path / name / "config.json", config)
        rows = [row for row in prediction(kind, 0.2911) if row["name"] != "none"]
        if kind == "noisy":
            other = next(row for row in rows if row["name"] == kind)
            rows.append(other | {"name": "labelled_long", "relative": interval(0.5)})
        write(tmp_path / name / "eval" / "prediction.json", {"panda": rows})
    run = report(tmp_path / "labels", tmp_path / "model", "--out", tmp_path / "page.html")
    assert run.returncode == 0, run.stderr
    read = Reader((tmp_path / "page.html").read_text())
    assert ["labels", "labelled", "–", "0 of 4"] in [row[:2] + row[2:4] for row in read.rows]
    names = [row[0] for row in read.rows]
    start = names.index("copy last frame")
    ranked = ["copy last frame", "deterministic", "noisy 1e-5", "labelled", "labelled_long"]
    assert names[start : start + 5] == ranked


def test_a_summary_names_the_controllers_of_plans_if_there_are_several():
    sure = {"mean": 0.1, "low": 0.1, "high": 0.1}
    row = {"name": "noisy", "error": sure, "paired": sure, "controller": "panda"}
    rows = [{"name": "no action", "error": sure}]
    rows += [row | {"controller_kind": kind} for kind in ("state", "state, by prediction")]
    labels = []
    for few in (rows[:2], rows):
        run = types.SimpleNamespace(kind="noisy", evals={"plan": {"panda": few}})
        labels.append([source for _, source, _ in summary.judged([run], "plan")])
    controller = "panda, controller panda"
    assert labels == [["panda"], [f"{controller} (state)", f"{controller} (state, by prediction)"]]


def test_a_summary_on_top_gives_each_claim_its_verdict_number_and_what_the_paper_found(read):
    heads = read.rows[0]
    assert heads == ["claim", "data", "model", "verdict", "finding", "the paper"]
    rows = [dict(zip(heads, row, strict=True)) for row in read.rows[1:] if len(row) == len(heads)]
    answers = {(x["claim"], x["data"], x["model"]): x["verdict"][2:] for x in rows}
    best, weak = "noisy 1e-5", "noisy 1e-3"
    assert answers["prediction", STRANGE, best] == answers["prediction", STRANGE, weak] == "holds"
    assert answers["no leakage", "panda", best] == "fails"  # it is flagged
    assert answers["locality", "panda", best] == "undecided"  # it has no interval
    assert answers["content", "panda", best] == "partly"  # of x, not of yaw
    assert answers["control", "panda", best] == "holds"
    assert answers["control", "panda", weak] == "fails"  # worse than without action, clip by clip
    assert answers["beyond PCA", "panda", best] == answers["own latents", "panda", best] == "holds"
    assert answers["no scene", "panda", best] == answers["same action", "panda", best] == "partly"
    assert answers["beyond bias", "panda", best] == answers["flow", "panda", best] == "holds"
    assert answers["algebra", "panda", best] == "fails"
    assert answers["sampling", "panda", best] == "fails"
    assert {x["claim"] for x in rows} >= {"transfer", "planning", "acting"}
    found = next(x["finding"] for x in rows if x["claim"] == "prediction")
    rest = "(deterministic 0.948, none 0.787)"
    assert found == f"one-step error relative to copying: 0.809 [0.806, 0.812] {rest}"
    assert "Table 1" in next(x["the paper"] for x in rows if x["claim"] == "no leakage")


def test_pictures_come_before_the_tables_which_are_folded(made):
    text = made.read_text(encoding="utf-8")
    assert text.index("<video") < text.index("The paper, Kinetics")
    folded = re.findall(
        r"<details><summary>(?:Tables|Rollouts in numbers).*?</details>", text, re.S
    )
    assert sum(part.count("<table") for part in folded) >= 12
    assert "few cases." in " ".join(folded) and "not comparable" in " ".join(folded)


def test_all_text_is_escaped(made, read):
    assert STRANGE in "".join(read.words)
    source = made.read_text(encoding="utf-8")
    assert "<script" not in source and STRANGE not in source
    assert "</pre><script>" in "".join(read.words)


def test_the_page_holds_its_pictures_and_films_and_refers_to_nothing_else(runs, read):
    links = [value for _, name, value in read.attributes if name.endswith(("src", "href"))]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    targets = {f"#{value}" for _, name, value in read.attributes if name == "id"}
    assert {link for link in links if link.startswith("#")} <= targets
    names = {name for _, name, _ in read.attributes}
    assert not names & {"srcset", "poster", "action", "onload", "onclick", "background"}
    style = page.STYLE + " ".join(v for _, name, v in read.attributes if name == "style" and v)
    assert "@import" not in style and "http" not in style
    held = {link.partition(",")[2] for link in links if link.startswith("data:")} - {""}
    files = ("rollout_panda.mp4", "rollout_panda.png", "cut_panda.gif", "my own.png")
    folder = runs / "first & best" / "report"
    # The GIF beside an MP4 and the old loss curve are left out.
    assert held == {base64.b64encode((folder / file).read_bytes()).decode() for file in files}


def test_missing_parts_are_named_with_the_command_that_makes_them(runs, read):
    missing = {tuple(row) for row in read.rows if len(row) == 3}
    weak = f"python -m lawm_jax.evaluate --workdir {runs}/weak"
    assert ("weak", "eval/transfer.json", f"{weak} --only transfer") in missing
    what = "eval/leakage.json (exists, but cannot be read)"
    assert ("weak", what, f"{weak} --only leakage") in missing
    assert ("weak", "pictures in report/", f"{weak} --only pictures") in missing
    train = f"python -m lawm_jax.train --config ... --workdir {runs}/started"
    assert ("started", "config.json", train) in missing
    assert not any(name == "first & best" for name, *_ in missing)
    assert (
        "Not measured yet: python -m lawm_jax.evaluate --workdir W --only distractors"
        in " ".join(read.words)
    )
    assert "Not measured for noisy 1e-3, started: " in " ".join(read.words)


def test_runs_capacity_curves_training_and_skipped_files_are_shown(made, read):
    assert ["first & best", "noisy", "1e-5", "panda 1", "281 of 300", "2"] in read.rows
    assert "b49c3a8" in "".join(read.words) and "jax 0.10.2" in "".join(read.words)
    assert read.words.count("1e-3") >= 1 and "one-step error relative to copying" in read.words
    assert "training error relative to copying" in read.words
    # Rollouts, capacity, led by actions, few labels, plans by two planners, a way, closed loop,
    # training.
    assert made.read_text().count("<svg") == 9


def test_a_damaged_line_is_left_out_and_named_and_an_unknown_evaluation_is_shown(tmp_path):
    run = tmp_path / "run"
    lines = [json.dumps({"step": k, "error": 0.3, "copy": 0.4}).encode() for k in (1, 2, 3)]
    lines = [lines[0], b'{"step": \xff\xfe}', lines[1], b"[1]", b"[" * 100_000, lines[2]]
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines) + b'\n{"step"')
    (run / "skipped.jsonl").write_bytes(b'{"path": "a"}\n\xff\n')
    (run / "eval").mkdir()
    (run / "eval" / "prediction.json").write_bytes(b"\xff\xfe")
    (run / "eval" / "leakage.json").write_bytes(b"[" * 100_000)
    write(run / "eval" / "unknown.json", {"panda": 0.7351})
    found = results.read(run)
    assert [row["step"] for row in found.metrics] == [1, 2, 3] and found.skipped == 1
    named = [what for what, _ in found.missing]
    assert "metrics.jsonl: skipped unreadable lines 2, 4, 5" in named
    assert {f"eval/{x}.json (exists, but cannot be read)" for x in ("prediction", "leakage")} <= {
        *named
    }
    text = report_module.build([run])
    assert "eval/unknown.json" in text and "0.7351" in text and "lines 2, 4, 5" in text
    assert len(pictures.parse_metrics((run / "metrics.jsonl").read_bytes())) == 4


def test_the_page_goes_beside_the_first_run_by_default(runs, tmp_path):
    shutil.copytree(runs / "weak", tmp_path / "W")
    run = report(tmp_path / "W")
    assert run.returncode == 0, run.stderr
    assert "noisy 1e-3" in (tmp_path / "W" / "report" / "page.html").read_text()


def test_a_folder_that_is_no_run_is_a_clear_error(tmp_path):
    write(tmp_path / "a" / "holiday.txt", "sun")
    for folder, why in ("a", "has no config.json"), ("b", "does not exist"):
        run = report(tmp_path / folder)
        assert run.returncode == 1 and "Traceback" not in run.stderr
        assert f"{tmp_path / folder}: expected the folder of a run, but it {why}" in run.stderr
        assert not (tmp_path / folder / "report").exists()
    assert "expected at least one folder" in "".join(report().stdout + report().stderr)


@pytest.mark.parametrize(
    "text,why",
    [
        ('{"latent": {"kind": "noi', "expected the config of a training run as JSON, got: "),
        ('{"latent": {"kind": "noisy"}, "data": {}}', "encoder: expected an object, got nothing"),
        ('{"encoder": {}, "data": []}', r"data: expected an object, got \[\]"),
        ('{"encoder": {}, "data": {}, "predictor": 3}', "predictor: expected an object, got 3"),
    ],
)
def test_a_damaged_config_is_an_error_that_names_the_file(text, why, tmp_path):
    write(tmp_path / "W" / "config.json", text)
    write(tmp_path / "W" / "eval" / "prediction.json", {"panda": prediction("noisy", 0.3)})
    with pytest.raises(ValueError, match=f"{tmp_path}/W/config.json: {why}"):
        report_module.build([tmp_path / "W"])


@pytest.mark.parametrize(
    "x,digits,text",
    [
        (1234567, 0, "1\u202f234\u202f567"),
        (-0.05, 2, "−0.05"),
        (None, 3, "–"),
        (float("inf"), 3, "–"),
        ("0.5", 3, "–"),
        ({"mean": 0.8061, "low": 0.79, "high": 0.82}, 3, "0.806 <small>[0.790, 0.820]</small>"),
        ({"mean": 0.8061, "low": None, "high": None}, 3, "0.806"),
        ({"mean": float("nan")}, 3, "–"),
    ],
)
def test_a_number_is_written_with_its_interval_or_as_a_dash(x, digits, text):
    assert page.number(x, digits) == text


def test_no_value_of_a_damaged_row_ends_the_report():
    plain = leakage, content, ablation, bias, algebra, flow, scene, invariance, sampling
    rows = {make.__name__: make("noisy") for make in plain}
    rows |= {"prediction": prediction("noisy", 0.3), "control": control(0.3)}
    parts = {EVALUATIONS[name].tables: found for name, found in rows.items()}
    halves = EVALUATIONS["transfer"].PARTS
    parts |= {half.tables: transfer("noisy")[name] for name, half in halves.items()}
    odd = [
        None,
        "x",
        "",
        3,
        True,
        [],
        [1],
        [[]],
        {},
        {"mean": "a"},
        {"²": [1]},
        {"names": 1, "r2": 2},
    ]
    for lay_out, rows in parts.items():
        whole = sections.tables("panda", lay_out(rows))
        assert whole.count("<tr>") > len(rows)
        for key in rows[1 % len(rows)].keys() - {"name"}:
            for value in odd:
                damaged = [*rows, rows[1 % len(rows)] | {key: value}, rows[0] | {key: value}]
                assert "<table" in sections.tables("panda", lay_out(damaged)), (key, value)


PLAY = """
const done = arguments[0], films = [...document.querySelectorAll("video")];
const wait = ms => new Promise(resolve => setTimeout(resolve, ms));
Promise.all(films.map(async film => {
  film.scrollIntoView();
  for (let i = 0; i < 50 && film.readyState < 2; i++) await wait(100);
  const ready = film.readyState, before = film.currentTime;
  await film.play();
  for (let i = 0; i < 50 && film.currentTime <= before; i++) await wait(100);
  return [ready, film.currentTime - before, film.videoWidth];
})).then(done, error => done(String(error)));
"""


@pytest.mark.browser
@pytest.mark.parametrize("width,height,mobile", [(1280, 800, False), (360, 740, True)])
def test_a_browser_shows_the_page_without_errors_overflow_or_network(
    browser, made, width, height, mobile
):
    screen = dict(width=width, height=height, deviceScaleFactor=1, mobile=mobile)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get_log("performance")
    browser.get(made.as_uri())
    run = browser.execute_script
    assert run("return [document.documentElement.scrollWidth <= innerWidth, innerWidth]") == [
        True,
        width,
    ]
    films = browser.execute_async_script(PLAY)
    assert len(films) == 1
    for ready, played, wide in films:
        assert ready >= 2 and played > 0 and wide > 400
    images = run("return [...document.images].map(x => [x.complete, x.naturalWidth])")
    assert len(images) == 3 and all(complete and wide > 0 for complete, wide in images)
    # Drawings are at least as large as their text needs, also on a phone.
    assert min(run("return [...document.querySelectorAll('svg')].map(x => x.clientWidth)")) > 300
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if "requestWillBeSent" == e["method"][8:]
    ]
    assert made.as_uri() in asked
    own = "file:", "data:", "chrome:", "chrome-untrusted:"  # the last two are of the new tab
    assert [url for url in asked if not url.startswith(own)] == []


def test_a_label_in_svg_keeps_its_markup_as_text():
    svg = figures.curves(None, {"<script>x</script>": [(1, interval(1.0))]}, "a", "b")
    assert "<script" not in svg and re.search("&lt;script", svg)

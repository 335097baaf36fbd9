"""How runs of mixtures are compared, and the study from the command line."""

import fcntl
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from lawm_jax.evaluate import metrics
from lawm_jax.evaluate.figures import COLORS
from lawm_jax.report import figures
from lawm_jax.study import mixture

EPISODES = [f"{i // 2}" for i in range(12)]  # two clips of each
MINI = ROOT / "lawm_jax" / "assets" / "lawm_mini"


def interval(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def result(kind, share, seed, errors):
    """What a run found whose model's plans have these errors [12]; those of seed 1 are older."""
    nearest = "nearest neighbour" if seed else "nearest training window"
    still = np.linspace(0.1, 0.3, 12)
    rows = [
        {"name": name, "clips": list(x), "error": metrics.interval(x, EPISODES)}
        for name, x in (("no action", still), (nearest, still / 2), (kind, errors))
    ]
    plan = {"task": "panda", "planner": {"name": "cem"}}
    plan["plans"] = [{"horizon": 3, "names": EPISODES, "rows": rows}]
    one = [
        {"name": "copy last frame", "relative": interval(1.0)},
        {"name": kind, "relative": interval(0.8 + seed / 10)},
    ]
    return dict(kind=kind, share=share, seed=seed, plan=plan, prediction=one)


def test_shares_are_compared_on_the_same_clips_by_the_mean_over_seeds():
    errors = {
        (share, seed): np.random.default_rng([share, seed]).uniform(0, 0.2, 12)
        for share in (50, 0)
        for seed in (0, 1)
    }
    found = mixture.compare([result("noisy", *key, x) for key, x in errors.items()])
    low, high = ((errors[share, 0] + errors[share, 1]) / 2 for share in (0, 50))
    first, second = found["rows"]
    assert (first["share"], second["share"]) == (0, 50) and first["kind"] == "noisy"
    assert first["error"]["mean"] == pytest.approx(low.mean())
    assert second["less"]["0 %"] == metrics.interval(high - low, EPISODES)
    assert second["less"]["nearest training window"]["mean"] == pytest.approx(high.mean() - 0.1)
    assert "0 %" not in first["less"] and first["one_step"] == pytest.approx(0.85)
    assert [x["seed"] for x in first["seeds"]] == [0, 1]
    assert first["seeds"][1]["error"]["mean"] == pytest.approx(errors[0, 1].mean())
    assert found["baselines"]["no action"]["mean"] == pytest.approx(0.2)
    text = mixture.table(found)
    assert f"noisy       50 %  {high.mean():.3f} [" in text
    assert f"0 %: {(high - low).mean():+.3f} [" in text


def test_the_lowest_share_is_each_kinds_own_and_other_clips_are_refused():
    runs = [result("noisy", 10, 0, np.full(12, 0.2)), result("sparse", 0, 0, np.full(12, 0.1))]
    runs.append(result("sparse", 10, 0, np.full(12, 0.05)))
    rows = {(row["kind"], row["share"]): row for row in mixture.compare(runs)["rows"]}
    assert rows["sparse", 10]["less"]["0 %"]["mean"] == pytest.approx(-0.05)
    assert not any("%" in name for name in rows["noisy", 10]["less"])
    runs[1]["plan"]["plans"][0]["names"] = EPISODES[::-1]
    with pytest.raises(ValueError, match="runs: expected plans for the same clips"):
        mixture.compare(runs)
    with pytest.raises(ValueError, match="runs: expected at least one"):
        mixture.compare([])


def test_the_figure_has_a_bar_for_each_interval_and_a_line_for_each_bound():
    interval = lambda mean: {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}  # noqa: E731
    lines = {kind: [(x, interval(0.2 - x / 1000)) for x in (0, 50, 100)] for kind in ("a", "b")}
    svg = figures.shares(None, lines, {"no action": 0.25}, "share", "error")
    for color in COLORS[:2]:
        assert svg.count(f"stroke: {color}; stroke-width: 1.2") == 3
    assert svg.count("stroke: #8c8c8c") == 1 and "no action" in svg


def study(*flags, name="mixture"):
    """Runs the study in another process."""
    line = [sys.executable, "-m", "lawm_jax.study", name, *map(str, flags)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1200)


def listed(*flags):
    """The commands of a study: (module, {flag: value}) each."""
    done = study("--list", *flags)
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.splitlines():
        _, _, module, *options = shlex.split(line)
        found.append((module, dict(x[2:].split("=", 1) for x in options)))
    return found


@pytest.fixture
def three(tmp_path):
    """A config of three sources."""
    text = (
        "from lawm_jax.configs import lawm\n"
        "def get_config(arg=''):\n"
        "    c = lawm.get_config(arg)\n"
        "    c.data.sources = dict(arm='droid:/d', web='/web', walks='mini:nav', rest='/rest')\n"
        "    c.data.mixture = dict(arm=7, web=3, walks=1, rest=2)\n"  # whole numbers, too
        "    return c\n"
    )
    (tmp_path / "three.py").write_text(text)
    return f"--config={tmp_path}/three.py:size=nano"


def test_a_share_is_that_of_the_inside_and_others_keep_their_weights(three, tmp_path):
    flags = three, "--inside=arm", "--outside=web,walks", "--task=droid", "--shares=10,0"
    found = listed(*flags, f"--workdir={tmp_path}/w", "--kinds=sparse", "--seeds=2")
    ingests, runs = found[:3], [found[i : i + 4] for i in range(3, len(found), 4)]
    assert [x["source"] for _, x in ingests] == ["droid:/d", "/web", "mini:nav"]
    assert len(runs) == 4
    for (model, controller, evaluate, plan), share, seed in zip(
        [[x for _, x in run] for run in runs], (0.1, 0, 0.1, 0), (0, 0, 1, 1), strict=True
    ):
        weights = json.loads(model["config.data.mixture"])
        expected = {"arm": share, "web": 0.75 * (1 - share), "walks": 0.25 * (1 - share)}
        assert weights == pytest.approx(expected)
        assert model["config"].endswith("three.py:size=nano,latent=sparse")
        assert model["config.seed"] == controller["config.seed"] == str(seed)
        assert model["workdir"] == controller["config.model"] == plan["workdir"]
        stored = f"records:{tmp_path}/w/states/arm"
        assert json.loads(model["config.data.sources"])["arm"] == stored
        assert controller["config.data.videos"] == stored and evaluate["data"] == f"arm={stored}"
        assert plan["task"] == "droid" and plan["data"] == "droid=droid:/d"
        assert plan["controller"] == controller["workdir"]
    assert len({run[0][1]["workdir"] for run in runs}) == 4


def test_clips_that_change_from_time_to_time_are_read_from_video(three, tmp_path):
    found = listed(
        *(three, "--config.data.augment.crop=True", "--inside=arm", "--shares=50"),
        *(f"--workdir={tmp_path}/w", "--kinds=noisy", "--steps=7", "--samples=9"),
    )
    assert [module for module, _ in found] == [
        f"lawm_jax.{name}" for name in ("train", "train", "evaluate", "plan")
    ]
    model, controller, _, plan = [x for _, x in found]
    assert json.loads(model["config.data.sources"])["arm"] == "droid:/d"
    assert controller["config.data.videos"] == "droid:/d"
    assert model["config.data.augment.crop"] == "True" and model["config.steps"] == "7"
    assert plan["samples"] == "9" and "iterations" not in plan
    weights = json.loads(model["config.data.mixture"])
    assert weights == pytest.approx({"arm": 0.5, "web": 0.25, "walks": 1 / 12, "rest": 1 / 6})


@pytest.mark.parametrize(
    "flags,message",
    [
        (
            ["--inside=leg"],
            "--inside: expected a data source of the config .nav, panda., got 'leg'",
        ),
        (["--config.data.videos=/x"], "--inside: .* .data.videos=/x., got"),
        (
            ["--outside=panda"],
            r"--outside: expected other data sources of the mixture, .'nav'., got",
        ),
        (["--shares=10,101"], "--shares: expected numbers from 0 to 100, got '101'"),
        (["--kinds=sparse,deterministic"], "--kinds: expected some of sparse, noisy"),
    ],
)
def test_wrong_flags_are_refused(flags, message, tmp_path):
    done = study(f"--workdir={tmp_path}", *flags)
    assert done.returncode
    assert re.search(message, done.stderr), done.stderr


def test_an_unknown_study_and_a_second_one_in_a_folder_are_refused(tmp_path):
    done = study(f"--workdir={tmp_path}", name="weather")
    assert (
        done.returncode
        and "NAME: expected one of claims, scaling, mixture, measures, got weather" in done.stderr
    )
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = study(f"--workdir={tmp_path}", "--config=configs/lawm.py:size=tiny")
    assert done.returncode and "is still running there" in done.stderr


@pytest.mark.slow
def test_a_small_study_runs_from_no_share_to_all_and_what_is_done_stays_done(tmp_path):
    for source in ("panda", "nav"):
        for split in ("train", "test"):
            folder = tmp_path / source / split
            folder.mkdir(parents=True)
            for file in sorted((MINI / source / split).iterdir())[:8]:  # four episodes
                shutil.copy(file, folder)
    text = (
        "from lawm_jax.configs import lawm\n"
        "def get_config(arg=''):\n"
        "    c = lawm.get_config(arg)\n"
        f"    c.data.sources = {{x: f'mini:{tmp_path}/{{x}}' for x in ('panda', 'nav')}}\n"
        "    return c\n"
    )
    (tmp_path / "few.py").write_text(text)
    work = tmp_path / "work"
    controller = "--controller=configs/controller.py:size=tiny", "--controller.steps=2"
    flags = [f"--config={tmp_path}/few.py:size=tiny", *controller, "--shares=0,100", "--steps=2"]
    flags += ["--kinds=none", "--episodes=4", f"--workdir={work}"]
    planner = "--samples=12", "--iterations=1"
    done = study(*flags, *planner)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs, 0 already done. Each run trains a world model on 16 clips" in done.stdout
    found = json.loads((work / "mixture.json").read_text())
    plans = [
        json.loads((work / "mixture" / f"none-{share}-0" / "plan.json").read_text())
        for share in (0, 100)
    ]
    assert [row["share"] for row in found["rows"]] == [0, 100]
    for row, plan in zip(found["rows"], plans, strict=True):
        assert row["error"] == plan["plans"][0]["rows"][-1]["error"]  # of the one seed
        assert row["less"]["no action"] == plan["plans"][0]["rows"][-1]["paired"]
        assert 0.5 < row["one_step"] < 1.5 and plan["planner"]["samples"] == 12
    assert Image.open(work / "mixture.png").size[0] > 500 and "none       100 %" in done.stdout

    modules = lambda *flags: [module.removeprefix("lawm_jax.") for module, _ in listed(*flags)]  # noqa: E731
    ingest, each = ["ingest"] * 2, ["train", "train", "evaluate", "plan"]
    again = study(*flags, *planner)
    assert "2 runs, 2 already done" in again.stdout and "$ python" not in again.stdout
    assert json.loads((work / "mixture.json").read_text()) == found
    assert modules(*flags, "--samples=13", "--iterations=1") == ingest + 2 * each
    longer = study(*flags, *planner, "--steps=3")
    assert (
        longer.returncode
        and "expected 2 steps, as before, or a new --workdir, got 3" in longer.stderr
    )
    (work / "mixture" / "none-0-0" / "controller" / "panda" / "checkpoints" / "9").mkdir()
    assert modules(*flags, *planner) == ingest + each

"""The rules of the claims, and what the study measures and runs."""

import functools
import json
import os
import re

import conftest
import ml_collections
import numpy as np
import pytest

from lawm_jax.data import mini
from lawm_jax.evaluate import (
    clips,
    context,
    cycle,
    leakage,
    locality,
    metrics,
    prediction,
    tables,
)
from lawm_jax.study import cases, claims, measures, rules, scaling
from lawm_jax.train import models

E, SEEDS = 16, 3
EPISODES = [f"{i}" for i in range(E)]
# Errors of an ideal study: (low, middle, high) capacity.
ERRORS = {"error": (0.93, 0.8, 0.72), "own": (0.9, 0.7, 0.6), "cycled": (0.9, 0.72, 0.64)}
ERRORS |= {"shuffled": (0.91, 1.0, 1.1), "cut": (1.8, 1.7, 1.6), "uncut": (0.93, 0.8, 0.72)}
ERRORS |= {"driven, state": (0.8, 0.6, 0.65), "driven, actions": (0.9, 0.8, 0.8)}
ERRORS |= {"effect inside": (0.5, 0.6, 0.6), "effect mirrored": (0.4, 0.2, 0.2)}
ERRORS |= {"AUC of N(0, I)": (0.55, 0.8, 0.95), "AUC of Langevin": (0.6, 0.8, 0.97)}
SAME = {"copying": 1.0, "copying cut": 2.0, "copying uncut": 1.0, "effect by chance": 0.4}


def run(seed, level, noise=0.001, **changed):
    """Results of a run, with noise by seed and episode."""
    random, values = np.random.default_rng([seed, *map(ord, str(level))]), {}
    for name, levels in (ERRORS | {k: (x,) * 3 for k, x in (SAME | changed).items()}).items():
        x = levels[level] if isinstance(level, int) else level
        if "AUC" in name:
            values[name] = x + noise * random.normal()
        else:
            values[name] = list(x + noise * random.normal(size=E))
    one = {"episodes": EPISODES, "values": values}
    plan = {"names": EPISODES, "rows": [{"name": "no action", "clips": [0.2] * E}]}
    error = (0.3, 0.1, 0.08)[level] if isinstance(level, int) else 0.1
    plan["rows"] += [{"name": x, "clips": [1.0] * E} for x in ("mean action", "random action")]
    plan["rows"] += [{"name": "noisy", "clips": list(error + noise * random.normal(size=E))}]
    found = {"measures": {"panda": one, "nav": one}}
    return found | {f"plan_{task}": {"plans": [plan]} for task in ("panda", "nav")}


def ideal(**changed):
    """Results of all runs of `claims` in which every claim holds, but for changed measures."""
    found = {}
    for seed in range(SEEDS):
        for kind in ("sparse", "noisy"):
            for i, level in enumerate(rules.LEVELS):
                found[f"{kind}-{level}", seed] = run(seed, i, **changed)
        others = {"deterministic": 0.95, "none": 0.7, "discrete-low": 0.94, "discrete-high": 0.9}
        others |= {"noisy-longer": 0.7, "noisy-wider": 0.7, "noisy-quarter": 0.9, "labelled": 0.5}
        found |= {(name, seed): run(seed, x) for name, x in others.items()}
        found["noisy-share-0", seed] = run(seed, 0)
        found["noisy-share-10", seed] = run(seed, 1)
    return found


def decide(results, names=tuple(rules.CLAIMS), kinds=("sparse", "noisy")):
    return rules.decide(rules.Measures(results, kinds, ("panda", "nav")), names)


def test_every_claim_holds_in_an_ideal_study_and_is_undecided_in_noise():
    found = decide(ideal())
    assert {row["answer"] for row in found.values()} == {"holds"}, found
    noise = {key: run(seed=i, level=0.8, noise=0.1) for i, key in enumerate(ideal())}
    names = "capacity", "cycle", "controller", "middle", "mixture", "scale"
    assert {row["answer"] for row in decide(noise, names).values()} == {"undecided"}


def test_the_figure_leaves_out_cases_without_an_error(tmp_path):
    results = ideal()
    for seed in range(SEEDS):
        del results["labelled", seed]["measures"]
    measured = rules.Measures(results, ("sparse", "noisy"), ("panda", "nav"))
    curves = rules.curves(measured, sorted({name for name, _ in results}))
    path = tmp_path / "claims.png"
    claims.draw(str(path), curves, ("sparse", "noisy"))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_model_that_copies_the_future_fails_the_claim_of_leakage():
    found = decide(ideal(cut=0.75), ["leakage"])["leakage"]
    assert found["answer"] == "fails" and found["fails"] < 0.001


def test_one_contrast_below_zero_fails_a_claim_and_a_missing_one_leaves_it_undecided():
    worse = ideal()
    for seed in range(SEEDS):
        worse["noisy-wider", seed] = run(seed, 0.9)
        del worse["labelled", seed]
    found = decide(worse, ["scale", "manipulation"])
    assert found["scale"]["answer"] == "fails"
    assert found["scale"]["contrasts"]["panda: twice the steps"]["low"] > 0
    missing = found["manipulation"]
    assert (missing["answer"], missing["missing"], missing["p"]) == ("undecided", "labelled", None)
    assert "manipulation: undecided (not measured)" in claims.table(found)
    assert claims.table(found).startswith("✗ scale: fails")


def test_p_values_are_corrected_over_all_claims_of_the_study():
    alone, among = decide(ideal(), ["controller"]), decide(ideal())
    assert among["controller"]["holds"] == alone["controller"]["holds"]
    twice = [2 * min(row["holds"], row["fails"]) for row in among.values()]
    assert [row["p"] for row in among.values()] == tables.holm(twice)


def test_exponents_are_slopes_of_the_logarithm(get_config):
    config, random = get_config("size=nano"), np.random.default_rng(0)
    found, true = {}, {"steps": -0.3, "width": -0.1, "episodes": 0.0}
    for name, points in scaling.axes(config).items():
        for factor, case in points:
            for seed in range(SEEDS):
                error = 0.8 * factor ** true[name] * np.exp(0.01 * random.normal(size=E))
                values = {"error": list(error), "copying": [1.0] * E}
                one = {"episodes": EPISODES, "values": values}
                found[case.name, seed] = {"measures": {"panda": one}}
    rows = scaling.compare(rules.Measures(found, (), ("panda",)), config)
    assert [row["exponent"]["mean"] for row in rows] == pytest.approx(list(true.values()), abs=0.01)
    for row in rows:
        assert row["exponent"]["low"] < true[row["name"]] < row["exponent"]["high"]
        assert any(x["factor"] == 1 for x in row["points"])
    assert "steps     panda  -0.3" in scaling.table(rows)


def test_measures_equal_those_of_the_evaluations(tmp_path, get_config, monkeypatch):
    monkeypatch.setattr(clips, "held_out", functools.partial(clips.held_out, most=32, items=8))
    monkeypatch.setattr(measures, "TRAINING", 16)
    config = get_config("size=tiny")
    config.data.mixture = ml_collections.ConfigDict({"panda": 1.0, "nav": 0.0})
    conftest.write_run(config, tmp_path)
    sources = {"panda": "mini:panda"}
    with open(measures.measure(str(tmp_path), sources), encoding="utf-8") as file:
        found = json.load(file)["panda"]
    source = context.Source(config, "panda", {"noisy": models.load(str(tmp_path))}, folder=None)
    seen = source.clips
    mean = {name: np.nanmean(np.float64(x)) for name, x in found["values"].items()}
    assert found["episodes"] == sorted(set(seen.episodes))
    row = prediction.compare(source.models, seen.s, seen.episodes)[1]
    assert mean["error"] == pytest.approx(row["error"]["mean"])
    row = leakage.measure(source.inferring, source.cut[1], seen.s, seen.episodes, 2)[1]
    assert mean["cut"] == pytest.approx(row["with"]["mean"])
    assert mean["uncut"] == pytest.approx(row["without"]["mean"])
    row = cycle.measure(source.inferring, seen.s, seen.episodes)[0]
    for name, key in (("own", "original"), ("cycled", "cycle"), ("shuffled", "shuffled")):
        assert mean[name] == pytest.approx(row[key]["mean"])
    row = locality.measure(source.inferring, seen.s, seen.episodes, source.model.merge)[0]
    clip, inside, *_ = locality.shares_of_effect(
        source.models["noisy"], seen.s, seen.episodes, source.model.merge
    )
    assert row["action"]["region"] == metrics.interval(inside, seen.episodes[clip])
    assert 0.5 < mean["AUC of N(0, I)"] <= 1


def test_a_part_of_the_episodes_is_every_nth_of_training_and_all_of_the_test(tmp_path, get_config):
    config = get_config("size=nano")
    asked = [cases.Case("a", "latent=noisy", every=4), cases.Case("b", "latent=noisy")]
    cases.link_parts(str(tmp_path), config, asked, ["panda"])
    folder = tmp_path / "data" / "every-4" / "panda"
    assert len(list((folder / "train").glob("*.mp4"))) == 32
    assert len(list((folder / "test").glob("*.npz"))) == 32
    assert os.path.exists(folder / "train" / "0004.mp4")
    config.data.sources.panda = "droid:/data"
    with pytest.raises(ValueError, match="config: expected data.sources.panda=mini:FOLDER"):
        cases.link_parts(str(tmp_path), config, asked, ["panda"])


@pytest.mark.parametrize("name,flag", [("claims", "--kinds=noisy"), ("scaling", "--quick")])
def test_a_flag_of_another_study_is_refused(name, flag, tmp_path):
    done = conftest.run_module("study", name, f"--workdir={tmp_path}", flag, "--list")
    wrong = flag.partition("=")[0]
    assert done.returncode == 2 and f"{wrong}: {name} does not use it" in done.stderr


def test_the_data_that_listed_commands_read_are_there(tmp_path):
    done = conftest.run_module("study", "claims", f"--workdir={tmp_path}", "--list")
    folders = re.findall(r"--source=mini:(/\S+)", done.stdout)
    assert len(folders) == 2 and all(os.path.isdir(x) for x in folders), done.stderr


@pytest.mark.slow
def test_the_quick_study_decides_three_claims_and_resumes(tmp_path):
    small = tmp_path / "small" / "panda"
    for split, count in (("train", 8), ("test", 4)):
        (small / split).mkdir(parents=True)
        for file in sorted(os.listdir(os.path.join(mini.FOLDER, "panda", split)))[: 2 * count]:
            os.symlink(os.path.join(mini.FOLDER, "panda", split, file), small / split / file)
    flags = [f"--workdir={tmp_path}/W", "--quick", "--seeds=1", "--steps=2"]
    flags += ["--config=lawm.py:size=tiny", f"--config.data.sources.panda=mini:{small}"]
    done = conftest.run_module("study", "claims", *flags, timeout=600)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "W" / "claims.json", encoding="utf-8") as file:
        found = json.load(file)
    assert set(found["claims"]) == {"capacity", "leakage", "cycle"}
    assert found["seeds"] == 1 and found["hours"] > 0 and found["commit"]
    assert {row["case"] for row in found["curves"]} == {x.name for x in claims.quick_cases()}
    assert all(row["contrasts"] for row in found["claims"].values())
    assert (tmp_path / "W" / "claims.png").stat().st_size > 10_000
    again = conftest.run_module("study", "claims", *flags, timeout=600)
    assert "5 runs, 5 already done" in again.stdout and "$ python" not in again.stdout

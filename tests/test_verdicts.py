"""Verdicts follow from the rows of an evaluation by the rules that docs/evaluate.md gives."""

import copy
import json

import numpy as np
import pytest
from conftest import ROOT

from lawm_jax.evaluate import metrics, verdicts
from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.plan import columns


def interval(low, high):
    return {"mean": (low + high) / 2, "low": low, "high": high}


def judge(part, rows, name="noisy"):
    """Returns claim -> answer."""
    module = columns if part == "plan" else EVALUATIONS[part]
    return {verdict.claim: verdict.answer for verdict in verdicts.judge(module, rows, name)}


def coverage(draw, groups, trials=1000):
    """Returns how often a 95% interval over clips of so many episodes holds the true mean, 0."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(trials):
        clips = draw(random, groups).repeat(4) + random.normal(size=4 * groups)
        found = metrics.interval(clips, np.arange(4 * groups) // 4)
        hits += found["low"] <= 0 <= found["high"]
    return hits / trials


@pytest.mark.parametrize(
    "draw",
    [
        lambda random, n: random.normal(size=n),
        lambda random, n: random.exponential(size=n) - 1,
    ],
    ids=["normal", "exponential"],
)
def test_intervals_of_enough_episodes_miss_at_most_three_times_as_often_as_they_claim(draw):
    noise = 2.5 * (0.15 * 0.85 / 1000) ** 0.5
    assert coverage(draw, verdicts.LEAST) > 0.85 - noise
    assert coverage(draw, verdicts.LEAST // 2) < 0.81
    assert coverage(draw, 2) < 0.55


@pytest.mark.parametrize("part", [*EVALUATIONS, "plan"])
def test_a_verdict_on_few_episodes_is_undecided_and_says_why(part):
    module = columns if part == "plan" else EVALUATIONS[part]
    before = module.judge(measured_rows(part), "noisy")
    for count in (1, 2, verdicts.LEAST - 1):
        found = verdicts.judge(module, of_episodes(measured_rows(part), count), "noisy")
        assert [verdict.claim for verdict in found] == [verdict.claim for verdict in before]
        assert {verdict.answer for verdict in found} == {"undecided"}
        plural = "episode is" if count == 1 else "episodes are"
        reason = f"{count} {plural} too few to judge; 8 needed; "
        assert all(verdict.text.startswith(reason) for verdict in found)
    enough = of_episodes(measured_rows(part), verdicts.LEAST)
    assert verdicts.judge(module, enough, "noisy") == before


def test_rows_over_few_episodes_do_not_decide_beside_those_over_many():
    inside, mirror = interval(0.6, 0.7), interval(0.2, 0.3)
    row = {"name": "noisy", "chance": interval(0.4, 0.4), "note": None}
    row["action"] = {"region": inside | {"groups": 3}, "mirrored": mirror | {"groups": 3}}
    cycle = {"name": "noisy", "lost": interval(0.1, 0.4) | {"groups": 32}}
    rows = {"cycle": [cycle], "locality": [row]}
    assert judge("transfer", rows) == {"transfer": "holds", "locality": "undecided"}
    *_, locality = EVALUATIONS["transfer"].judge(rows, "noisy")
    assert "0.65 (of 3 episodes); in the mirror image 0.25 (of 3 episodes)" in locality.text


def of_episodes(x, count):
    """Returns JSON data whose intervals are over `count` episodes."""
    if isinstance(x, dict):
        x = {key: of_episodes(value, count) for key, value in x.items()}
        return x | {"groups": count} if {"mean", "low", "high"} <= x.keys() else x
    return [of_episodes(value, count) for value in x] if isinstance(x, list) else x


@pytest.mark.parametrize(
    "relative,paired,answer",
    [
        (interval(0.7, 0.8), None, "holds"),
        (interval(0.9, 1.1), None, "undecided"),
        (interval(1.1, 1.2), None, "fails"),
        (interval(0.7, 0.8), interval(-0.2, -0.1), "holds"),
        (interval(0.7, 0.8), interval(-0.2, 0.1), "undecided"),  # no gain over no latents
        (interval(0.7, 0.8), interval(0.1, 0.2), "fails"),
        ({"mean": 0.7, "low": None, "high": None}, None, "undecided"),  # one episode
        (0.7, None, "undecided"),  # of a run that was evaluated before there were intervals
    ],
)
def test_prediction_is_better_than_copying_and_than_no_latents(relative, paired, answer):
    rows = [{"name": "noisy", "relative": relative, "paired": paired}]
    assert judge("prediction", rows) == {"prediction": answer}
    assert judge("prediction", rows, "sparse") == {}


@pytest.mark.parametrize(
    "share,answer",
    [
        (interval(0.6, 1.1), "holds"),
        (interval(0.1, 0.7), "partly"),
        (interval(-0.1, 0.2), "fails"),
        (interval(-0.1, 0.6), "undecided"),
        (None, "undecided"),  # there is no gain
    ],
)
def test_at_least_half_of_the_gain_needs_the_own_latents(share, answer):
    rows = [{"name": "noisy", "gain": interval(0.1, 0.2), "share": share, "best": "zero"}]
    assert judge("ablation", rows) == {"own latents": answer}
    assert judge("ablation", [{"name": "copy last frame"}], "copy last frame") == {}


@pytest.mark.parametrize("leak,answer", [(-0.1, "holds"), (0.6, "fails"), (None, "undecided")])
def test_a_leak_above_a_half_fails(leak, answer):
    rows = [{"name": "noisy", "relative": interval(0.8, 0.9), "leak": leak, "flag": None}]
    assert judge("leakage", rows) == {"no leakage": answer}


@pytest.mark.parametrize(
    "lost,answer",
    [(interval(0.1, 0.4), "holds"), (interval(0.4, 0.6), "undecided"), (None, "fails")],
)
def test_latents_without_effect_do_not_transfer(lost, answer):
    rows = {"cycle": [{"name": "noisy", "lost": lost, "note": lost and "no effect"}]}
    assert judge("transfer", rows) == {"transfer": answer}


@pytest.mark.parametrize(
    "inside,mirror,answer",
    [
        (interval(0.6, 0.7), interval(0.2, 0.3), "holds"),
        (interval(0.5, 0.7), interval(0.4, 0.6), "undecided"),
        (interval(0.3, 0.35), interval(0.1, 0.2), "undecided"),  # below chance
        (interval(0.1, 0.2), interval(0.3, 0.4), "fails"),
        (None, None, "undecided"),
    ],
)
def test_locality_is_more_than_in_the_mirror_image_and_by_chance(inside, mirror, answer):
    row = {"name": "noisy", "chance": interval(0.4, 0.4), "note": None}
    row["action"] = {"region": inside, "mirrored": mirror}
    assert judge("transfer", {"locality": [row]}) == {"locality": answer}


@pytest.mark.parametrize(
    "before,after,answer",
    [
        (interval(0.3, 0.4), interval(0.6, 0.7), "holds"),
        (interval(0.6, 0.7), interval(0.3, 0.5), "undecided"),
        (interval(0.6, 0.7), interval(0.2, 0.3), "fails"),
        (interval(0.6, 0.7), None, "fails"),  # nothing is left without the bias
        (None, None, "undecided"),  # no effect
    ],
)
def test_the_response_without_bias_lies_where_the_scene_moves(before, after, answer):
    row = {"name": "noisy", "before": before, "after": after, "chance": interval(0.4, 0.4)}
    assert judge("bias", [row]) == {"beyond bias": answer}
    assert judge("bias", [row], "sparse") == {}


@pytest.mark.parametrize(
    "errors,kept,answer",
    [
        ((0.1, 0.2, 0.3), 0.7, "holds"),
        ((0.1, 0.2, 0.3), 0.4, "partly"),
        ((0.1, 0.8, 0.9), None, "partly"),
        ((0.6, 0.8, 0.9), None, "fails"),
        ((0.6, 0.8, 0.9), 0.1, "fails"),
        ((0.45, 0.8, 0.9), None, "fails"),
        ((0.45, 0.45, 0.45), None, "undecided"),
    ],
)
def test_the_algebra_holds_if_all_errors_are_small_and_sums_predict(errors, kept, answer):
    row = dict(zip(("additivity", "reversal", "identity"), errors, strict=True))
    row = {key: interval(x, x + 0.1) for key, x in row.items()} | {"name": "noisy"}
    kept = None if kept is None else interval(kept, kept + 0.05)
    row["two_steps"] = [{"name": "sum of two latents", "kept": kept}]
    assert judge("algebra", [row]) == {"algebra": answer}
    assert judge("algebra", [row | {"identity": None}]) == {}


@pytest.mark.parametrize(
    "lows,answer",
    [((0.6, 0.7), "holds"), ((0.6, 0.1), "partly"), ((-0.1, -0.2), "fails"), ((), "undecided")],
)
def test_content_is_partly_there_if_a_probe_finds_some_real_actions(lows, answer):
    probe = {"names": ["x", "y"][: len(lows)], "r2": [interval(x, x + 0.1) for x in lows]}
    rows = [{"name": "noisy", "probe": probe, "latents": {"dimension": 3.0}}]
    assert judge("content", rows) == {"content": answer}


@pytest.mark.parametrize(
    "lows,answer",
    [
        ((0.02, 0.3), "holds"),
        ((0.3, -0.2), "partly"),
        ((-0.1, -0.05), "undecided"),
        ((-0.2, -0.3), "fails"),
    ],
)
def test_latents_that_add_nothing_to_the_states_components_fail(lows, answer):
    added = [{"name": str(i), "added": interval(x, x + 0.1)} for i, x in enumerate(lows)]
    rows = [{"name": "noisy", "latents": {}, "probe": None, "matched": added}]
    assert judge("content", rows) == {"content": "undecided", "beyond PCA": answer}


@pytest.mark.parametrize(
    "x,y,answer",
    [
        ((0.6, 0.2), (0.7, 0.1), "holds"),  # R² of latents, and what they add
        ((0.6, 0.2), (0.1, 0.1), "partly"),
        ((0.6, -0.2), (0.7, -0.1), "fails"),  # the state tells as much
        ((-0.1, 0.1), (-0.1, 0.1), "undecided"),
    ],
)
def test_the_mean_flow_is_told_by_latents_and_not_by_the_state(x, y, answer):
    def probed(name, latents, added):
        values = {
            "latents": interval(latents, latents + 0.1),
            "added": interval(added, added + 0.1),
        }
        return {"name": name} | values

    rows = [{"name": "noisy", "flow": [probed("flow x, mean", *x), probed("flow y, mean", *y)]}]
    assert judge("flow", rows) == {"flow": answer}
    still = {"name": "flow x, mean", "latents": None, "added": None}  # nothing moves
    assert judge("flow", [{"name": "noisy", "flow": [still]}]) == {}


@pytest.mark.parametrize(
    "share,answer",
    [
        (interval(-0.1, 0.3), "holds"),
        (interval(0.1, 0.3), "partly"),
        (interval(0.3, 0.7), "undecided"),
        (interval(0.6, 1.2), "fails"),
        (None, "undecided"),  # the state does not tell the scene
    ],
)
def test_latents_tell_less_than_half_of_what_the_state_tells_of_the_scene(share, answer):
    rows = [{"name": "noisy", "episode": interval(0.1, 0.2), "chance": 0.1, "share": share}]
    assert judge("scene", rows) == {"no scene": answer}


@pytest.mark.parametrize(
    "gain,kept,answer",
    [
        (0.5, interval(0.6, 0.8), "holds"),
        (0.2, interval(0.3, 0.6), "partly"),
        (-0.1, interval(-0.1, 0.2), "fails"),
        (-0.1, interval(-0.4, 0.6), "undecided"),
        (-0.1, None, "undecided"),
    ],
)
def test_an_action_is_the_same_elsewhere_if_half_of_the_likeness_is_kept(gain, kept, answer):
    row = dict.fromkeys(("within", "between", "any_between"), interval(0.1, 0.2))
    row |= {"name": "noisy", "gain": interval(gain, gain + 0.15), "kept": kept}
    assert judge("invariance", [row]) == {"same action": answer}
    assert judge("invariance", [row | {"within": None}]) == {}


@pytest.mark.parametrize(
    "led,answer",
    [
        (interval(0.30, 0.32), "holds"),
        (interval(0.42, 0.44), "partly"),  # it loses more than half
        (interval(0.47, 0.51), "undecided"),
        (interval(0.55, 0.60), "fails"),
    ],
)
def test_control_lies_between_no_action_and_inferred_latents(led, answer):
    errors = {"inferred latents": interval(0.29, 0.31), "state": led, "actions": interval(0.6, 0.7)}
    errors["state, no action"] = interval(0.48, 0.52)
    rows = [{"name": name, "error": error} for name, error in errors.items()]
    assert judge("control", rows) == {"control": answer}


@pytest.mark.parametrize(
    "gain,lost,answer",
    [
        (interval(-0.11, -0.09), interval(0.04, 0.06), "holds"),
        (interval(-0.11, -0.09), interval(0.08, 0.12), "partly"),  # half is 0.1
        (interval(-0.11, 0.01), interval(0.04, 0.06), "undecided"),
        (interval(0.01, 0.02), interval(0.2, 0.25), "fails"),
    ],
)
def test_control_is_judged_clip_by_clip(gain, lost, answer):
    wide = interval(0.2, 0.5)  # which decides nothing
    led = {"name": "state", "error": wide, "no_action": gain, "paired": lost}
    other = {"name": "actions", "error": interval(0.7, 0.8), "no_action": interval(0.1, 0.2)}
    rows = [{"name": "inferred latents", "error": interval(0.2, 0.4)}, led, other]
    rows += [{"name": "state, no action", "error": interval(0.4, 0.6)}]
    assert judge("control", rows) == {"control": answer}
    rows[0]["error"] = interval(0.5, 0.6)  # inferred latents gain nothing
    nothing = "undecided" if answer in ("holds", "partly") else answer
    assert judge("control", rows) == {"control": nothing}
    (verdict,) = EVALUATIONS["control"].judge(rows, "noisy")
    assert verdicts.short(gain, sign="+") in verdict.text
    assert verdicts.short(lost, sign="+") in verdict.text


@pytest.mark.parametrize("low,high,answer", [(0.48, 0.55, "holds"), (0.6, 0.7, "fails")])
def test_sampling_holds_if_the_best_sampler_is_indistinguishable(low, high, answer):
    rows = [{"name": "N(0, I)", "auc": interval(0.9, 1)}]
    rows += [{"name": "learned prior", "auc": interval(low, high)}]
    rows += [{"name": "inferred, other episodes", "auc": interval(0.49, 0.51)}]
    assert judge("sampling", rows) == {"sampling": answer}


@pytest.mark.parametrize(
    "copy,gains,answer",
    [
        (0.8, (0.1, 0.2, 0.1), "holds"),
        (0.8, (0.1, 0.0, 0.1), "partly"),
        (0.8, (0.0, 0.0, 0.0), "undecided"),
        (0.8, (-0.1, -0.06, -0.1), "fails"),
        (1.0, (0.1, 0.1, 0.1), "undecided"),  # copying always tells
    ],
)
def test_surprise_is_more_than_that_of_copying(copy, gains, answer):
    rows = []
    for metric, gain in zip(("an object teleports", "colors change", "a cut"), gains, strict=True):
        rows.append({"name": "copy last frame", "metric": metric, "error": interval(copy, copy)})
        row = {"error": interval(0.8, 0.9), "paired": interval(gain - 0.05, gain + 0.05)}
        rows.append({"name": "noisy", "metric": metric} | row)
    assert judge("surprise", rows) == {"surprise": answer}
    assert judge("surprise", rows, "sparse") == {}


@pytest.mark.parametrize(
    "lost,answer",
    [
        ((0.2, 0.1, 0.3), "holds"),
        ((0.2, 0.1, 0.9), "partly"),
        ((0.5, 0.5, 0.9), "undecided"),
        ((0.9, 1.5, 0.9), "fails"),
    ],
)
def test_distractors_cost_less_than_half(lost, answer):
    kinds = "moving background", "camera shake", "color drift"
    rows = [
        {"name": "noisy", "metric": kind, "lost": interval(x - 0.1, x + 0.1), "cycle": None}
        for kind, x in zip(kinds, lost, strict=True)
    ]
    assert judge("distractors", rows) == {"distractors": answer}
    cycle = [row | {"lost": interval(0, 0.1), "cycle": row["lost"]} for row in rows]
    assert judge("distractors", cycle) == {"distractors": answer}
    nothing = [row | {"lost": None} for row in rows]
    assert judge("distractors", nothing) == {"distractors": "undecided"}
    assert judge("distractors", rows, "sparse") == {}


@pytest.mark.parametrize(
    "lost,answer,text",
    [
        ({1: 0.08, 10: 0.06, 100: 0.05}, "holds", "1 episode suffices; "),
        ({1: 0.3, 10: 0.06, 100: 0.05}, "holds", "10 episodes suffice; "),
        ({1: 0.3, 10: 0.10, 100: 0.05}, "partly", "100 episodes suffice; "),
        ({1: 0.3, 10: 0.2, 100: 0.10}, "undecided", "error by"),
        ({1: 0.3, 10: 0.2, 100: 0.15}, "fails", "error by"),
    ],
)
def test_few_labels_are_at_most_10_episodes(lost, answer, text):
    wide = interval(0.1, 0.9)  # which decides nothing
    rows = [
        {
            "name": f"{k} episodes",
            "episodes": k,
            "error": wide,
            "paired": interval(x - 0.01, x + 0.01),
        }
        for k, x in lost.items()
    ]
    rows += [{"name": "inferred latents", "error": wide, "paired": None}]
    rows += [{"name": "100 episodes, no action", "error": wide, "paired": interval(0.19, 0.21)}]
    ((claim, got, said, _),) = EVALUATIONS["labels"].judge(rows, "noisy")
    assert (claim, got) == ("few labels", answer) and said.startswith(text)
    assert judge("labels", rows[:-1]) == {}
    rows[-1]["paired"] = interval(-0.2, -0.1)  # inferred latents gain nothing
    assert judge("labels", rows) == {"few labels": "undecided"}


@pytest.mark.parametrize("key,claim", [("error", "planning"), ("ate", "planning")])
@pytest.mark.parametrize("gain,answer", [(-0.1, "holds"), (0.1, "fails"), (0.0, "undecided")])
def test_plans_are_compared_with_their_baseline_clip_by_clip(key, claim, gain, answer):
    row = {"name": "noisy", key: interval(0.04, 0.06)}
    rows = [row | {"paired": interval(gain - 0.05, gain + 0.05), "distance": interval(0.1, 0.2)}]
    assert judge("plan", rows) == {claim: answer}


def test_a_line_is_colored_on_request_only():
    verdict = verdicts.Verdict("prediction", verdicts.FAILS, "1.2 of copying")
    assert verdicts.line("prediction", verdict) == "  ✗ prediction  1.2 of copying"
    colored = "  \x1b[31m✗\x1b[0m prediction  1.2 of copying"
    assert verdicts.line("prediction", verdict, color=True) == colored


@pytest.mark.parametrize("part", EVALUATIONS)
def test_a_printed_verdict_begins_with_the_name_for_only_in_lines_of_100_columns(part):
    for verdict in EVALUATIONS[part].judge(measured_rows(part), "noisy"):
        verdict = verdict._replace(text=" and ".join([verdict.text] * 3))
        first, *rest = verdicts.line(part, verdict).split("\n")
        assert first.split()[1] == part and len(first) <= 100
        assert all(len(line) <= 100 and line.startswith(" " * 16) for line in rest)
        said = " ".join([first.split(maxsplit=2)[2], *map(str.strip, rest)])
        assert said == (
            verdict.text if verdict.claim == part else f"{verdict.claim}: {verdict.text}"
        )


def damaged(x):
    """Yields copies of JSON data in which one value is replaced by something else."""
    for place in range(len(x)) if isinstance(x, list) else list(x) if isinstance(x, dict) else ():
        for value in (None, "x", 3, True, [], [[]], {}, {"mean": "a"}, {"names": 1, "r2": 2}):
            yield (
                x[:place] + [value] + x[place + 1 :] if isinstance(x, list) else x | {place: value}
            )
        for inner in damaged(x[place]):
            changed = copy.copy(x)
            changed[place] = inner
            yield changed


def measured_rows(part):
    """Returns rows of an evaluation of the model that ships, or some like them."""
    result = json.loads((ROOT / "benchmarks" / "results" / "nano-2-core-epyc.json").read_text())
    one, other = interval(0.1, 0.2), {"name": "zero", "error": interval(0.3, 0.4)}
    if part == "plan":
        return result["plans"][0]["plans"][0]["rows"]
    if part == "ablation":
        row = {"name": "noisy", "gain": one, "share": one, "best": "zero", "controls": [other]}
        return [{"name": "copy last frame", "error": one}, row]
    if part == "algebra":
        row = {"name": "noisy", "additivity": one, "reversal": one, "identity": one}
        return [row | {"two_steps": [{"name": "sum of two latents", "error": one, "kept": one}]}]
    if part == "bias":
        row = {"name": "noisy", "correlation": one, "before": one, "after": one, "chance": one}
        return [row | {"left": one, "note": "none"}]
    if part == "flow":
        probed = {"name": "flow x, mean", "latents": one, "state": one, "added": one}
        return [{"name": "noisy", "moving": one, "flow": [probed]}]
    if part == "invariance":
        row = dict.fromkeys(("within", "between", "any_between", "gain", "kept"), one)
        return [row | {"name": "noisy"}]
    if part == "scene":
        rows = [{"name": name, "episode": one} for name in ("noisy", "the state's components")]
        return [row | {"chance": 0.1, "share": one} for row in rows]
    if part == "surprise":
        names = "copy last frame", "noisy"
        return [{"name": name, "metric": "a cut", "error": one, "paired": one} for name in names]
    if part == "distractors":
        return [{"name": "noisy", "metric": "camera shake", "lost": one, "cycle": one}]
    if part == "labels":
        names = "3 episodes", "inferred latents", "3 episodes, no action"
        return [{"name": name, "error": one, "paired": one, "episodes": 3} for name in names]
    rows = result[part]["panda"]
    return (
        [row | {"matched": [other | {"added": one}]} for row in rows] if part == "content" else rows
    )


@pytest.mark.parametrize("part", [*EVALUATIONS, "plan"])
def test_no_damaged_result_ends_a_report(part):
    rows = measured_rows(part)
    if part != "transfer":
        rows = [{k: v for k, v in row.items() if k not in ("rollout", "pixels")} for row in rows][
            :3
        ]
    judge = columns.judge if part == "plan" else EVALUATIONS[part].judge
    count = 0
    for changed in damaged(rows):
        for verdict in judge(changed, "noisy"):
            assert verdict.answer in verdicts.MARKS and isinstance(verdict.text, str)
        count += 1
    assert count > 50

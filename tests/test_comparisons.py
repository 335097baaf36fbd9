"""Intervals over seeds and episodes, and corrected p-values."""

import html
import itertools

import numpy as np
import pytest
from scipy import stats

from lawm_jax.evaluate import comparisons, metrics, tables
from lawm_jax.report import sections


def test_effects_that_differ_by_one_factor_have_that_factors_t_interval():
    random = np.random.default_rng(0)
    for values in (random.normal(1, 1, (5, 1)), random.normal(1, 1, (1, 9))):
        for repeated in (values, values + np.zeros((5, 9))):
            found = comparisons.crossed(repeated)
            flat = values.ravel()
            low, high = stats.ttest_1samp(flat, 0).confidence_interval(0.95)
            assert (found["low"], found["high"]) == pytest.approx((low, high))
            above = stats.ttest_1samp(flat, 0, alternative="greater").pvalue
            assert found["above"] == pytest.approx(above)
            assert found["above"] + found["below"] == pytest.approx(1)


@pytest.mark.parametrize(
    "seeds,episodes,both", [(1, 0.2, 0.5), (0.2, 1, 0.5), (0.3, 1, 2), (0, 0, 1)]
)
def test_95_of_100_intervals_hold_the_mean_whatever_varies(seeds, episodes, both):
    random, hits, n = np.random.default_rng(1), 0, 2000
    for _ in range(n):
        values = 3 + random.normal(0, seeds, (3, 1)) + random.normal(0, episodes, (1, 32))
        found = comparisons.crossed(values + random.normal(0, both, (3, 32)))
        hits += found["low"] < 3 < found["high"]
    assert 0.93 < hits / n < 0.995


def test_a_single_value_has_no_interval_and_equal_effects_have_an_empty_one():
    assert comparisons.crossed([[2.0]]) == dict(
        mean=2.0, low=None, high=None, above=None, below=None
    )
    found = comparisons.crossed(np.full((3, 4), 0.5))
    assert (found["low"], found["high"], found["above"], found["below"]) == (0.5, 0.5, 0, 1)
    assert comparisons.crossed(np.zeros((3, 4)))["above"] == 0.5
    for wrong in (np.zeros(3), np.zeros((0, 2)), [[np.nan]]):
        with pytest.raises(ValueError, match=r"values: expected \[S, E\]"):
            comparisons.crossed(wrong)


def test_a_paired_test_is_students_on_the_means_of_episodes():
    random = np.random.default_rng(3)
    groups = [str(i // 4) for i in range(40)]
    difference = random.normal(0.5, 1, 10).repeat(4) + random.normal(0, 0.1, 40)
    means = difference.reshape(10, 4).mean(1)
    found = comparisons.paired(difference, groups)
    assert found["paired"] == metrics.interval(difference, groups)
    assert found["test"]["p"] == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert found["test"]["d"] == pytest.approx(means.mean() / means.std(ddof=1))
    assert comparisons.paired(difference, ["one"] * 40)["test"] is None
    assert comparisons.paired(np.ones(40), groups)["test"] is None


def test_a_sentence_states_only_a_difference_that_survives_the_correction():
    random = np.random.default_rng(4)
    column = tables.Column("minus copying", "paired", 3, "lower", signed=True)
    groups = [str(i) for i in range(20)]
    rows = [
        {"name": name} | comparisons.paired(random.normal(mean, 1, 20), groups)
        for name, mean in (("much", -3), ("none", 0.0))
    ]
    rows += [{"name": "baseline", "paired": None, "test": None}]
    much, none = tables.sentences(tables.Table("", (column,), rows))
    assert much.startswith("much: lower than copying (-") and "p < 0.001 over 2 comparisons" in much
    assert f"effect size {rows[0]['test']['d']:+.1f})." in much
    assert none.startswith("none: no significant difference from copying (")
    p = 0.03  # alone, it would be a difference
    rows[1]["test"]["p"] = p
    some = [rows[1], rows[1] | {"name": "other"}]
    both = tables.sentences(tables.Table("", (column,), some))
    assert all("no significant difference" in x for x in both)
    alone = tables.sentences(tables.Table("", (column,), some[:1]))
    assert "no significant difference" not in alone[0] and "p = 0.030, effect" in alone[0]
    assert html.escape(much) in sections.tables("panda", [tables.Table("", (column,), rows)])


def test_holms_method_is_the_closed_test_of_bonferronis():
    p = list(np.random.default_rng(2).uniform(0, 0.2, 6))
    for i, found in enumerate(tables.holm(p)):
        sets = (x for n in range(1, 7) for x in itertools.combinations(range(6), n) if i in x)
        assert found == pytest.approx(max(min(1, len(x) * min(p[j] for j in x)) for x in sets))
    assert tables.holm([0.01, None, 0.04]) == [0.02, None, 0.04]

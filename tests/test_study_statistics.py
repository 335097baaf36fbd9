"""Intervals over seeds and episodes, and corrected p-values."""

import itertools

import numpy as np
import pytest
from scipy import stats

from lawm_jax.study import statistics


def test_effects_that_differ_by_one_factor_have_that_factors_t_interval():
    random = np.random.default_rng(0)
    for values in (random.normal(1, 1, (5, 1)), random.normal(1, 1, (1, 9))):
        for repeated in (values, values + np.zeros((5, 9))):
            found = statistics.crossed(repeated)
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
        found = statistics.crossed(values + random.normal(0, both, (3, 32)))
        hits += found["low"] < 3 < found["high"]
    assert 0.93 < hits / n < 0.995


def test_a_single_value_has_no_interval_and_equal_effects_have_an_empty_one():
    assert statistics.crossed([[2.0]]) == dict(
        mean=2.0, low=None, high=None, above=None, below=None
    )
    found = statistics.crossed(np.full((3, 4), 0.5))
    assert (found["low"], found["high"], found["above"], found["below"]) == (0.5, 0.5, 0, 1)
    assert statistics.crossed(np.zeros((3, 4)))["above"] == 0.5
    for wrong in (np.zeros(3), np.zeros((0, 2)), [[np.nan]]):
        with pytest.raises(ValueError, match=r"values: expected \[S, E\]"):
            statistics.crossed(wrong)


def test_holms_method_is_the_closed_test_of_bonferronis():
    p = list(np.random.default_rng(2).uniform(0, 0.2, 6))
    for i, found in enumerate(statistics.holm(p)):
        sets = (x for n in range(1, 7) for x in itertools.combinations(range(6), n) if i in x)
        assert found == pytest.approx(max(min(1, len(x) * min(p[j] for j in x)) for x in sets))
    assert statistics.holm([0.01, None, 0.04]) == [0.02, None, 0.04]

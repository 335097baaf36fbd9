"""Statistics against scipy."""

import numpy as np
import pytest
import scipy.stats

from lawm_jax import metrics


def test_the_interval_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    ours = metrics.interval(values, samples=20000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours["mean"] == pytest.approx(values.mean())
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), rel=0.01)


def test_clips_of_one_episode_count_as_one_observation():
    random = np.random.default_rng(0)
    episodes = random.normal(size=20)
    values, groups = np.repeat(episodes, 8), np.repeat(np.arange(20), 8)
    whole = metrics.interval(values, groups)
    alone = metrics.interval(episodes)
    assert (whole["low"], whole["high"]) == pytest.approx((alone["low"], alone["high"]))
    naive = metrics.interval(values)
    assert whole["high"] - whole["low"] > 2 * (naive["high"] - naive["low"])


def test_the_same_values_give_the_same_interval_and_wrong_ones_an_error():
    values = np.arange(10.0)
    assert metrics.interval(values) == metrics.interval(values)
    with pytest.raises(ValueError, match=r"values: expected \[n\]"):
        metrics.interval([])
    with pytest.raises(ValueError, match="groups: expected 10 labels, got 3"):
        metrics.interval(values, [1, 2, 3])


def test_one_episode_gives_no_interval():
    one = metrics.interval([1.0, 3.0], ["a", "a"])
    assert one == {"mean": 2.0, "low": None, "high": None}

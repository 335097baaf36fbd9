"""Statistics against scipy, pixel metrics against scikit-image."""

import numpy as np
import pytest
import scipy.stats

from lawm_jax.evaluate import metrics, tables


def test_the_interval_agrees_with_scipys_percentile_bootstrap(monkeypatch):
    values = np.random.default_rng(0).gamma(2.0, size=60)
    monkeypatch.setattr(metrics, "SAMPLES", 20000)
    ours = metrics.interval(values)
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
    assert one == {"mean": 2.0, "low": None, "high": None, "groups": 1}


def test_the_ratio_agrees_with_scipys_paired_percentile_bootstrap(monkeypatch):
    random = np.random.default_rng(0)
    b = random.gamma(4.0, size=60)
    a = b * random.uniform(0.5, 1.5, 60)
    monkeypatch.setattr(metrics, "SAMPLES", 20000)
    ours = metrics.ratio(a, b)
    quotient = lambda a, b, axis: a.mean(axis) / b.mean(axis)  # noqa: E731
    theirs = scipy.stats.bootstrap(
        (a, b), quotient, paired=True, n_resamples=20000, method="percentile", rng=1
    ).confidence_interval
    assert ours["mean"] == pytest.approx(a.mean() / b.mean())
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), rel=0.01)


@pytest.mark.parametrize("statistic", ["interval", "ratio"])
def test_the_interval_holds_the_truth_as_often_as_it_says(statistic, monkeypatch):
    monkeypatch.setattr(metrics, "SAMPLES", 500)
    random, hits = np.random.default_rng(0), 0
    for _ in range(300):
        effect = np.repeat(random.normal(size=40), 3)  # 40 episodes of 3 clips
        a, b = 2 + effect + random.normal(size=120), 8 + effect + random.normal(size=120)
        episodes = np.repeat(np.arange(40), 3)
        if statistic == "interval":
            got, truth = metrics.interval(a, episodes), 2
        else:
            got, truth = metrics.ratio(a, b, episodes), 2 / 8
        hits += got["low"] <= truth <= got["high"]
    assert 0.9 < hits / 300 < 0.98  # 0.95, the percentile method's bias, 4 standard errors


def test_a_ratio_of_proportional_values_is_exact_and_its_interval_a_point():
    b = np.random.default_rng(0).gamma(4.0, size=20)
    got = metrics.ratio(0.5 * b, b, np.arange(20) // 4)
    assert got == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5, "groups": 5})


def test_a_ratio_draws_the_clips_that_an_interval_draws():
    values, groups = np.random.default_rng(0).normal(size=30), np.arange(30) // 3
    assert metrics.ratio(values, np.ones(30), groups) == metrics.interval(values, groups)


def test_a_ratio_without_bounds_has_none_and_a_wrong_one_is_an_error():
    assert metrics.ratio([1.0, 3.0], [2.0, 2.0], ["a", "a"]) == {
        "mean": 1.0,
        "low": None,
        "high": None,
        "groups": 1,
    }
    assert metrics.ratio([1.0, 1.0], [0.0, 2.0])["high"] is None  # drawn twice, the first gives 1/0
    with pytest.raises(ValueError, match="b: expected a nonzero mean"):
        metrics.ratio([1.0, 2.0], [1.0, -1.0])
    with pytest.raises(ValueError, match="b: expected 2 values, as many as a, got 1"):
        metrics.ratio([1.0, 2.0], [1.0])


def pictures(dtype):
    """Draws two stacks of pictures [2, 3, 40, 33, 3] on the scale 0..255: smooth, with noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:40, :33]
    phase = random.uniform(0, 6, (2, 3, 1, 1, 3))
    a = 128 + 120 * np.sin(0.2 * x[..., None] + phase) * np.cos(0.1 * y[..., None])
    a[0, 0] = 255  # flat and bright: variances are differences of large numbers
    b = a + random.normal(size=a.shape) * np.array([1, 5, 40]).reshape(3, 1, 1, 1)
    return a.astype(dtype), np.clip(b, 0, 255).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_ssim_and_psnr_equal_scikit_images(dtype):
    theirs = pytest.importorskip("skimage.metrics")
    a, b = pictures(dtype)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1)
    pairs = list(zip(a.reshape(6, 40, 33, 3), b.reshape(6, 40, 33, 3), strict=True))
    ssim = [theirs.structural_similarity(*pair, data_range=255, **options) for pair in pairs]
    psnr = [theirs.peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs]
    ssim, psnr = (np.reshape(x, (2, 3)) for x in (ssim, psnr))
    np.testing.assert_allclose(metrics.ssim(a, b), ssim, atol=1e-6)
    np.testing.assert_allclose(metrics.psnr(a, b), psnr, rtol=1e-9)
    assert np.ptp(ssim) > 0.3 and np.ptp(psnr) > 10
    assert metrics.ssim(a[0, 0], b[0, 0]) == pytest.approx(ssim[0, 0])  # a single picture


def test_identical_pictures_give_1_and_100_db_and_opposite_ones_their_closed_form():
    a, _ = pictures("uint8")
    np.testing.assert_array_equal(metrics.psnr(a, a), np.full((2, 3), 100.0))
    np.testing.assert_allclose(metrics.ssim(a, a), 1, rtol=1e-12)
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert metrics.psnr(black, white) == 0  # and no wrap-around of uint8
    assert metrics.ssim(black, white) == pytest.approx(0.01**2 / (1 + 0.01**2), rel=1e-6)


def test_pictures_of_other_shapes_are_an_error():
    a = np.zeros((2, 16, 16, 3))
    for metric in (metrics.psnr, metrics.ssim):
        with pytest.raises(
            ValueError, match=r"a, b: expected the same shape \[..., H, W, 3\], got"
        ):
            metric(a, a[:1])
        with pytest.raises(
            ValueError, match=r"a, b: expected the same shape \[..., H, W, 3\], got"
        ):
            metric(a[..., :1].repeat(16, -1), a[..., :1].repeat(16, -1))
    with pytest.raises(ValueError, match=r"a: expected .*H and W at least 11, got \(2, 10, 16, 3"):
        metrics.ssim(a[:, :10], a[:, :10])


@pytest.mark.parametrize(
    "x,digits,sign,text",
    [
        ({"mean": 0.80604, "low": 0.7909, "high": 0.8221}, 3, "", "0.806 [0.791, 0.822]"),
        ({"mean": 0.04, "low": -0.012, "high": 0.0951}, 2, "+", "+0.04 [-0.01, +0.10]"),
        ({"mean": 2.5, "low": None, "high": None}, 1, "", "2.5 [no interval]"),
        (None, 3, "", "-"),
        (0.1234, 2, "+", "+0.12"),
        ("state", None, "", "state"),
    ],
)
def test_an_interval_is_written_with_its_bounds_or_says_that_it_has_none(x, digits, sign, text):
    assert tables.show(x, digits, sign) == text


def test_the_area_under_the_curve_is_that_of_sklearn_and_its_interval_resamples_episodes():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    groups = np.repeat(list("abcdefgh"), [1, 2, 3, 4, 5, 6, 7, 8])
    n = len(groups)
    negative = random.integers(0, 9, n)  # with ties
    positive = random.integers(3, 12, n)
    label = np.repeat([1, 0], n)
    found = metrics.auc(positive, negative, groups)
    expected = roc_auc_score(label, np.concatenate([positive, negative]))
    assert found["mean"] == pytest.approx(expected, abs=1e-12)

    clips = [np.flatnonzero(groups == name) for name in "abcdefgh"]
    drawn = [np.concatenate([clips[i] for i in random.integers(0, 8, 8)]) for _ in range(1500)]
    areas = [
        roc_auc_score(np.repeat([1, 0], len(i)), np.concatenate([positive[i], negative[i]]))
        for i in drawn
    ]
    assert [found["low"], found["high"]] == pytest.approx(
        np.quantile(areas, [0.025, 0.975]), abs=0.01
    )

    other = random.integers(0, 9, n), negative
    less = roc_auc_score(label, np.concatenate(other))
    difference = metrics.auc(positive, negative, groups, minus=other)
    assert difference["mean"] == pytest.approx(expected - less, abs=1e-12)
    same = metrics.auc(positive, negative, groups, minus=(positive, negative))
    assert same == dict(mean=0, low=0, high=0, groups=8)


def test_an_area_under_the_curve_of_one_episode_has_no_interval_and_lengths_must_agree():
    one = metrics.auc([2, 3], [1, 2], ["a", "a"])
    assert one == dict(mean=0.875, low=None, high=None, groups=1)
    with pytest.raises(ValueError, match="negative: expected 2 values, as many as positive, got 1"):
        metrics.auc([1, 2], [1])
    with pytest.raises(ValueError, match="groups: expected 2 labels, got 3"):
        metrics.auc([1, 2], [1, 2], list("abc"))

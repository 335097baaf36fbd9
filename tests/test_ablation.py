"""What other latents do to the error, for models that use latents in a known way."""

import json
import types

import numpy as np
import pytest
import scipy.stats
from conftest import judged, sure

from lawm_jax import latents
from lawm_jax.evaluate import ablation, leakage, metrics, tables

EPISODES = np.repeat([f"episode {i}" for i in range(20)], 3)
DRIFT, SIZE = 3.0, 1.0


def moves(seed=0):
    """Draws 60 clips of 201 states that move by 3 + 1 or, as often, by 3 - 1, and the +1 and -1."""
    equal = np.tile([-SIZE, SIZE], (60, 100))
    z = np.random.default_rng(seed).permuted(equal, axis=1)[..., None]
    s = np.concatenate([np.zeros((60, 1, 1)), np.cumsum(DRIFT + z, 1)], 1)
    return np.float32(s[..., None] * np.ones((2, 4))), np.float32(z)


def adding(share):
    """Makes a forward model that knows the drift, and adds a share of its latent."""
    return lambda s, z: s + DRIFT + share * z[..., None]


def ablate(share, z=None):
    s, moved = moves()
    z = moved if z is None else z
    controls = ablation.controls(z, EPISODES, np.zeros((1, 1, 1)))
    return ablation.compare(adding(share), s, z, controls, EPISODES) | {"name": "noisy"}


def judge(row):
    return judged(ablation, "own latents", [row])


def test_a_model_that_ignores_latents_has_one_error_with_all_of_them():
    row = ablate(0.0)
    assert [x["name"] for x in row["controls"]] == [
        "another episode's",
        "previous step's",
        "zero",
        "random",
    ]
    for control in row["controls"]:
        assert control["error"] == row["error"] and control["relative"] == row["relative"]
        assert control["paired"] == sure(0, 20)
    assert row["gain"]["mean"] == pytest.approx(DRIFT - SIZE)
    assert row["share"] == sure(0, 20)
    answer, text = judge(row)
    assert answer == "fails" and "0.00 [0.00, 0.00]" in text


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_model_that_adds_latents_has_the_errors_of_the_closed_form(share):
    row, (_, z) = ablate(share), moves()
    # An error is the difference of what moved, -1 or 1, and the share of the given latent.
    other = z[leakage.partners(EPISODES, 1)[0]]
    before = np.concatenate([z[:, -1:], z[:, :-1]], 1)
    error = {
        "another episode's": np.abs(z - share * other).mean((1, 2)),
        "previous step's": np.abs(z - share * before).mean((1, 2)),
        "zero": np.full(60, SIZE),
    }
    none = (1 - share) * SIZE
    assert row["error"]["mean"] == pytest.approx(none, abs=1e-4)
    assert row["gain"]["mean"] == pytest.approx(DRIFT - none, rel=1e-3)
    found = {x["name"]: x for x in row["controls"]}
    for name, expected in error.items():
        close = dict(rel=1e-3, abs=1e-3)
        assert found[name]["error"] == pytest.approx(metrics.interval(expected, EPISODES), **close)
        paired = metrics.interval(expected - none, EPISODES)
        assert found[name]["paired"] == pytest.approx(paired, **close)
    # With a Gaussian latent, the mean of a folded normal distribution.
    folded = scipy.stats.foldnorm(1 / share, scale=share * SIZE).mean()
    assert found["random"]["error"]["mean"] == pytest.approx(folded, rel=0.02)
    best = min(found.values(), key=lambda x: x["error"]["mean"])
    assert row["best"] == best["name"]
    part = (best["error"]["mean"] - none) / (DRIFT - none)
    assert row["share"]["mean"] == pytest.approx(part, rel=1e-3)
    assert row["share"]["low"] < part < row["share"]["high"] and judge(row)[0] == "partly"


def test_the_gain_is_all_of_the_latents_if_nothing_else_tells_the_next_state():
    s, z = moves()
    change = DRIFT + z
    controls = ablation.controls(change, EPISODES, np.zeros((1, 1, 1)))
    row = ablation.compare(lambda s, z: s + z[..., None], s, change, controls, EPISODES)
    found = {x["name"]: x["relative"]["mean"] for x in row["controls"]}
    assert found["zero"] == pytest.approx(1, rel=1e-3)  # like copying
    assert row["share"]["mean"] == pytest.approx(min(found.values()), rel=1e-3)  # no error with z
    assert 0.2 < row["share"]["mean"] < 0.5  # another step's latent knows the drift


def test_without_a_gain_over_copying_there_is_no_share():
    s, z = moves()
    controls = ablation.controls(z, EPISODES, np.zeros((1, 1, 1)))
    row = ablation.compare(lambda s, z: s, s, z, controls, EPISODES) | {"name": "noisy"}
    assert row["share"] is None and judge(row)[0] == "undecided"
    json.dumps(row, allow_nan=False)


def test_the_latents_of_a_control_are_of_other_episodes_or_steps_or_like_all():
    random = np.random.default_rng(0)
    z = np.float32(random.normal([1, -2], [0.5, 3], (60, 50, 2)))
    made = ablation.controls(z, EPISODES, np.zeros((1, 1, 2)))
    owner = {row.tobytes(): name for row, name in zip(z[:, 0], EPISODES, strict=True)}
    given = [owner[row.tobytes()] for row in made["another episode's"][:, 0]]
    assert all(a != b for a, b in zip(given, EPISODES, strict=True))
    np.testing.assert_array_equal(made["previous step's"][:, 1:], z[:, :-1])
    assert not made["zero"].any() and made["zero"].shape == z.shape
    np.testing.assert_allclose(made["random"].mean((0, 1)), [1, -2], atol=0.15)
    np.testing.assert_allclose(made["random"].std((0, 1)), [0.5, 3], rtol=0.05)
    for x in made.values():
        assert x.dtype == np.float32


def test_controls_of_codes_are_codes():
    model = types.SimpleNamespace(latent=latents.make("discrete", 4, 8))
    random = np.random.default_rng(0)
    codebook = np.float32(random.normal(size=(8, 4)))
    params = {"latent": {"codebook": codebook}}
    s, seen = np.float32(random.normal(size=(12, 4, 2, 8))), []

    def predict(s, z):
        seen.append(z)
        return 0.5 * s

    source = types.SimpleNamespace(
        pairs=True,
        latents=["discrete"],
        loaded={"discrete": (model, params)},
        models={"discrete": types.SimpleNamespace(predict=predict)},
        clips=types.SimpleNamespace(s=s, episodes=np.repeat(list("abcdef"), 2)),
        z=lambda name: codebook[random.integers(0, len(codebook), (12, 3))],
    )
    copy, row = ablation.run(source)
    assert (copy["name"], row["name"]) == ("copy last frame", "discrete")
    moved = np.abs(np.diff(s, axis=1)).mean((1, 2, 3))
    assert copy["error"] == pytest.approx(metrics.interval(moved, source.clips.episodes))
    _, _, _, zero, drawn = seen
    assert (zero == codebook[np.square(codebook).sum(1).argmin()]).all()
    assert (drawn[:, :, None] == codebook).all(-1).any(-1).all()
    text = tables.text("x", ablation.tables([copy, row]))
    assert "discrete, previous step's" in text and text.count("\n") == 7
    source.clips.s = s[:, :2]  # one latent per clip: no previous step
    assert ablation.run(source) is None


def test_random_codes_are_as_frequent_as_inferred_ones():
    z = np.float32(np.random.default_rng(0).choice([3, 5, 9], (60, 50, 1), p=[0.7, 0.2, 0.1]))
    drawn = ablation.controls(z, EPISODES, np.zeros((1, 1, 1)), codes=True)["random"]
    values, counts = np.unique(drawn, return_counts=True)
    assert list(values) == [3, 5, 9]
    np.testing.assert_allclose(counts / 3000, [0.7, 0.2, 0.1], atol=0.03)

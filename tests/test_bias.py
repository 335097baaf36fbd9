"""Where predictions depend on latents, for models that move a square and have a known bias."""

import json

import numpy as np
import pytest
from conftest import judged, sure

from lawm_jax.evaluate import batched, bias, tables

EPISODES = np.repeat([f"episode {i}" for i in range(12)], 4)
SIDE, T, D = 12, 4, 3
BIAS = np.float32(np.random.default_rng(1).uniform(0.5, 1, (SIDE, SIDE)))


def squares():
    """Makes 48 clips of a square of 2 x 2 cells that moves up or down, at random places."""
    random = np.random.default_rng(0)
    s = np.zeros((48, T, SIDE, SIDE, D), np.float32)
    for i, clip in enumerate(s):
        column = random.choice([1, 2, 3, 7, 8, 9])
        row, speed = (1, 1) if i % 2 else (9, -1)
        row += speed * random.integers(4)
        for t in range(T):
            clip[t, row + speed * t : row + speed * t + 2, column : column + 2] = 4
    return s.reshape(48, T, SIDE**2, D)


def speed(s):
    """Infers by how many rows the square moved."""
    rows = s.reshape(*s.shape[:2], SIDE, -1).sum(-1)
    center = (rows * np.arange(SIDE)).sum(-1) / rows.sum(-1)
    return np.diff(center, axis=1)[..., None].astype(np.float32)


def moving(own, shared):
    """Makes a model that moves the square by z if `own`, and adds z times `shared` everywhere."""

    def predict(s, z):
        x = s.reshape(len(s), SIDE, SIDE, D).copy()
        for clip, latent in zip(x, z[:, 0, 0], strict=True):
            clip[:] = np.roll(clip, round(float(latent)), 0) if own else clip
            clip += latent * np.float32(shared * BIAS[..., None])
        return x.reshape(s.shape)

    return batched.Batched(speed, predict, None)


def elsewhere(s, z):
    """Reacts to z in one cell, which depends on the scene but not on where the square is."""
    x, place = s.copy(), [int(clip.argmax()) * 7919 % SIDE**2 for clip in s]
    x[np.arange(len(s)), 0, place] += z[:, 0]
    return x


@pytest.fixture(scope="module")
def found():
    models = {
        "own": moving(True, 0.0),
        "biased": moving(True, 0.5),
        "bias alone": moving(False, 0.5),
        "idle": moving(False, 0.0),
        "elsewhere": batched.Batched(speed, elsewhere, None),
    }
    return {row["name"]: row for row in bias.measure(models, squares(), EPISODES, 1)}


def judge(row):
    return judged(bias, "beyond bias", [row], row["name"])


def test_all_of_the_effect_of_a_moved_square_is_at_the_square(found):
    row = found["own"]
    assert row["before"] == pytest.approx(sure(1, 12))
    assert row["after"] == pytest.approx(sure(1, 12))
    assert row["left"]["mean"] == pytest.approx(1) and row["chance"]["mean"] < 0.25
    assert row["correlation"]["high"] < 0.5
    assert 30 < row["count"] < 64  # the clips that give the latents give no scene
    assert judge(row)[0] == "holds"


def test_a_bias_takes_its_share_and_is_removed_exactly(found):
    row = found["biased"]
    # Latents are -1 or 1, as often; a response is then the size of what z = 1 does. The bias's is
    # its pattern; at the square's 8 cells it adds to the step of 4 / 2 with the one or other sign.
    assert row["before"]["high"] < 0.7 and row["correlation"]["low"] > 0
    assert row["after"] == pytest.approx(sure(1, 12), abs=1e-5)
    answer, text = judge(row)
    assert answer == "holds" and "1.00 [1.00, 1.00] without bias, 0." in text


def test_the_response_is_the_deviation_of_the_prediction_in_closed_form():
    scene = squares()[1, 0]
    z = np.float32([[-1], [1], [1], [-1]])
    got = bias.response(moving(True, 0.5).predict, scene[None], z, 1)[0]
    image = scene.reshape(SIDE, SIDE, D)[..., 0]
    up, down = np.roll(image, -1, 0) - 0.5 * BIAS, np.roll(image, 1, 0) + 0.5 * BIAS
    np.testing.assert_allclose(got, np.abs(up - down) / 2, atol=1e-5)


def test_a_bias_alone_is_the_same_in_all_scenes(found):
    row = found["bias alone"]
    assert row["correlation"] == pytest.approx(sure(1, 12), abs=1e-4)
    assert row["before"]["mean"] == pytest.approx(row["chance"]["mean"], abs=0.03)
    assert row["after"] is None and row["left"]["mean"] < 1e-4
    answer, text = judge(row)
    assert (answer, text) == ("fails", "the response is the same in all scenes")


def test_a_response_that_is_not_where_the_scene_moves_does_not_hold(found):
    row = found["elsewhere"]
    assert row["left"]["mean"] == pytest.approx(1) and row["after"]["low"] < row["chance"]["mean"]
    assert judge(row)[0] != "holds"


def test_latents_without_effect_and_scenes_without_motion_are_said(found):
    row = found["idle"]
    assert row["note"] == "the latents have no effect" and row["before"] is None
    assert judge(row)[0] == "undecided"
    everywhere = np.random.default_rng(0).normal(size=(48, T, SIDE**2, 32)).astype(np.float32)
    (none,) = bias.measure({"own": moving(True, 0.0)}, everywhere, EPISODES, 1)
    assert none["count"] == 0 and "moves only one region" in none["note"]
    text = tables.text("squares", bias.tables([*found.values(), none]))
    assert text.count("the response is the same") == 1 and "remaining response" in text
    json.dumps([*found.values(), none], allow_nan=False)
    (few,) = bias.measure({"own": moving(True, 0.0)}, squares()[[0, 2, 1]], list("abc"), 1)
    assert few["count"] == T - 1  # of the clip in the middle
    assert few["before"]["mean"] == pytest.approx(1)
    with pytest.raises(ValueError, match="s, episodes: expected at least 2 clips, got 1 and 1"):
        bias.measure({}, everywhere[:1], EPISODES[:1], 1)


def test_the_correlation_is_that_of_maps_of_other_episodes():
    maps = np.random.default_rng(0).normal(size=(6, 3, 4))
    names = np.array(list("aabbcc"))
    r = np.corrcoef(maps.reshape(6, -1))
    expected = [np.mean([r[i, j] for j in range(6) if names[j] != names[i]]) for i in range(6)]
    assert bias.correlation(maps, names)["mean"] == pytest.approx(np.mean(expected))
    maps[2:] = 1  # constant
    assert bias.correlation(maps, names) is None

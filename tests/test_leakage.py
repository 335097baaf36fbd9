"""Leakage of made-up models whose leak is known: one that copies the future, one that is honest."""

import json

import numpy as np
import pytest
from conftest import sure

from lawm_jax.evaluate import batched, leakage, tables

N, D, T, FIRST = 16, 4, 6, 3
EPISODES = np.repeat([f"episode {i}" for i in range(12)], 3)


def scenes(noise=0.02):
    """Makes states of smooth patterns on a ring of tokens that turn at a constant speed."""
    random = np.random.default_rng(0)
    place = np.arange(N)[:, None] * 2 * np.pi / N
    s = np.empty((len(EPISODES), T, N, D), np.float32)
    for clip in s:
        phase, speed = random.uniform(0, 2 * np.pi, D), random.choice([-1, 1])
        pattern = np.sin(place + phase) + 0.5 * np.sin(2 * place - phase)
        for t in range(T):
            clip[t] = np.roll(pattern, t * speed, axis=0)
    return s + noise * random.normal(size=s.shape).astype(np.float32)


def turns(s):
    """Infers by how many tokens the ring turned: the shift that explains the next state best."""
    fits = [-np.abs(np.roll(s[:, :-1], k, 2) - s[:, 1:]).mean((2, 3)) for k in range(N)]
    return np.argmax(fits, axis=0)[..., None].astype(np.float32)


def turn(s, z):
    index = (np.arange(N) - z.astype(int)) % N
    return np.take_along_axis(s, index[..., None], axis=2)


def steady(s):
    """Infers the turn from the first two states only: what goes on, with no look at the cut."""
    return np.repeat(turns(s[:, :2]), s.shape[1] - 1, axis=1)


def peek(s):
    return s[:, 1:].reshape(len(s), s.shape[1] - 1, -1)


def unpack(s, z):
    """Gives the state that the latent holds, each value wrong by 0.1."""
    wrong = np.where(np.arange(D) % 2, 0.1, -0.1).astype(np.float32)
    return z.reshape(s.shape) + wrong


HONEST = batched.Batched(steady, turn, None)
BEST_TURN = batched.Batched(turns, turn, None)
LEAKY = batched.Batched(peek, unpack, None)


@pytest.fixture(scope="module")
def rows():
    s = scenes()
    s_cut, _ = leakage.stitch(s, EPISODES)
    models = {"leaky": LEAKY, "honest": HONEST, "turn": BEST_TURN}
    rows = leakage.measure(models, s_cut, s, EPISODES, FIRST, main=["leaky", "honest"])
    return {row["name"]: row for row in rows} | {"s": s, "s_cut": s_cut}


def test_copying_the_last_frames_row_equals_numpy(rows):
    for key, s in (("with", rows["s_cut"]), ("without", rows["s"])):
        expected = np.mean([np.mean(np.abs(clip[FIRST] - clip[FIRST - 1])) for clip in s])
        assert rows["copy last frame"][key]["mean"] == pytest.approx(expected, rel=1e-5)
    row = rows["copy last frame"]
    assert row["ratio"]["mean"] == pytest.approx(row["with"]["mean"] / row["without"]["mean"])
    assert row["ratio"]["mean"] > 1.5
    assert row["relative"] == pytest.approx(sure(1.0, 12))
    assert row["leak"] == pytest.approx(0, abs=1e-9)
    assert row["flag"] is None


def test_a_model_whose_latent_is_the_next_state_is_flagged(rows):
    row = rows["leaky"]
    for key in ("with", "without"):
        assert row[key] == pytest.approx(sure(0.1, 12), rel=1e-4)
    assert row["ratio"]["mean"] == pytest.approx(1, abs=1e-4)
    share = 0.1 / rows["copy last frame"]["with"]["mean"]
    assert row["relative"]["mean"] == pytest.approx(share, rel=1e-4)
    assert row["leak"] == pytest.approx(1, abs=1e-3)
    assert row["flag"] == "copies the future"


def test_models_that_infer_a_motion_are_not_flagged(rows):
    for name in ("honest", "turn"):
        row = rows[name]
        assert row["without"]["mean"] < 0.1 * rows["copy last frame"]["without"]["mean"]
        assert row["ratio"]["mean"] > rows["copy last frame"]["ratio"]["mean"]
        assert row["leak"] < 0
        assert row["flag"] is None


def test_a_copy_of_the_future_is_as_wrong_as_the_model_it_stands_beside(rows):
    for name in ("leaky", "honest"):
        row = rows[f"copies the future (error of {name})"]
        assert row["with"]["mean"] == pytest.approx(rows[name]["without"]["mean"], rel=0.05)
        assert row["ratio"]["mean"] == pytest.approx(1, abs=0.05)
        assert row["flag"] == "copies the future"
    assert not any("turn)" in name for name in rows)


def test_a_cut_that_changes_no_more_than_any_step_tells_nothing():
    s = np.random.default_rng(0).normal(size=(len(EPISODES), T, N, D)).astype(np.float32)
    s_cut, _ = leakage.stitch(s, EPISODES)
    for row in leakage.measure({"leaky": LEAKY}, s_cut, s, EPISODES, FIRST):
        assert row["leak"] is None
        assert row["flag"].startswith(
            "leakage is undetermined: a cut changes the error of copying only by a factor of 0.9"
        )


def test_scenes_that_stand_still_tell_nothing_and_divide_by_no_zero():
    s = np.repeat(scenes()[:, :1], T, axis=1)
    s_cut, _ = leakage.stitch(s, EPISODES)
    rows = leakage.measure({"leaky": LEAKY}, s_cut, s, EPISODES, FIRST)
    assert rows[0]["ratio"] is None
    assert all(row["flag"].endswith("nothing moves without a cut") for row in rows)
    json.dumps(rows, allow_nan=False)
    heads, *lines = tables.text("still", leakage.tables(rows)).split("\n")[1:]
    assert "leak" not in heads and all(x.endswith("nothing moves without a cut") for x in lines)


def test_the_distance_of_the_caller_takes_the_place_of_the_latents():
    def root_mean_square(predicted, truth):
        assert predicted.shape == truth.shape == (len(EPISODES), 1, N, D)
        return np.sqrt(np.square(predicted - truth).mean((1, 2, 3)))

    s = scenes()
    s_cut, _ = leakage.stitch(s, EPISODES)
    rows = leakage.measure({"leaky": LEAKY}, s_cut, s, EPISODES, FIRST, root_mean_square)
    assert {row["metric"] for row in rows} == {"root_mean_square"}
    expected = np.sqrt(np.square(np.diff(s_cut, axis=1)[:, FIRST - 1]).mean((1, 2))).mean()
    assert rows[0]["with"]["mean"] == pytest.approx(expected, rel=1e-5)


def test_partners_are_of_other_episodes_and_of_different_ones():
    for sizes in ([4] * 10, [1, 2, 30], [50, 1, 1]):
        episodes = np.repeat([f"episode {i}" for i in range(len(sizes))], sizes)
        episodes = np.random.default_rng(1).permutation(episodes)
        pairs = leakage.partners(episodes, 2)
        assert pairs.shape == (2, len(episodes))
        b, c = episodes[pairs]
        assert (b != episodes).all() and (c != episodes).all() and (b != c).all()
        np.testing.assert_array_equal(leakage.partners(episodes, 2), pairs)
    pairs = leakage.partners(EPISODES, 2)
    for row in pairs:  # episodes of one size: every clip serves once
        np.testing.assert_array_equal(np.sort(row), np.arange(len(EPISODES)))


@pytest.mark.parametrize("tubelet", [1, 2])
def test_clips_are_stitched_between_steps_to_clips_of_other_episodes(tubelet):
    n, F = len(EPISODES), 10
    video = np.empty((n, F, 2, 2, 3), np.uint8)
    video[:] = np.arange(n).reshape(-1, 1, 1, 1, 1) * 5
    video[..., 0] = np.arange(F).reshape(1, -1, 1, 1)  # red tells the frame, green the clip
    stitched, other = leakage.stitch(video, EPISODES, tubelet)
    cut = {1: 5, 2: 4}[tubelet]
    assert stitched.dtype == np.uint8 and stitched.shape == video.shape
    np.testing.assert_array_equal(stitched[:, :, 0, 0, 0], np.tile(np.arange(F), (n, 1)))
    clip = np.where(np.arange(F) < cut, np.arange(n)[:, None], other[:, None])
    np.testing.assert_array_equal(stitched[:, :, 0, 0, 1], 5 * clip)
    assert (EPISODES != EPISODES[other]).all()


def test_the_pairs_depend_on_the_episodes_alone_and_come_out_twice():
    first = leakage.stitch(scenes(), EPISODES)
    again = leakage.stitch(scenes(), EPISODES)
    other = leakage.stitch(np.zeros((len(EPISODES), 2, 1, 1)), EPISODES)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], other[1])


def test_the_rows_are_json_come_out_twice_and_fit_a_table(rows):
    args = rows["s_cut"], rows["s"], EPISODES, FIRST
    once = leakage.measure({"leaky": LEAKY, "honest": HONEST}, *args)
    assert leakage.measure({"leaky": LEAKY, "honest": HONEST}, *args) == once
    assert json.loads(json.dumps(once, allow_nan=False)) == once
    assert [row["name"] for row in once] == [
        *("copy last frame", "leaky", "honest"),
        "copies the future (error of leaky)",
    ]
    text = tables.text("rings", leakage.tables(once))
    assert "rings, scene cuts, latent L1 [95% interval]" in text
    assert "0.100 [0.100, 0.100]   0.100 [0.100, 0.100]   1.00 [1.00, 1.00]" in text


def test_a_distance_can_be_to_what_is_no_state(rows):
    s, s_cut = rows["s"], rows["s_cut"]
    frames = [1000 + x[:, FIRST : FIRST + 1] for x in (s_cut, s)]
    distance = lambda a, b: np.abs(a + 1000 - b).mean((1, 2, 3))  # noqa: E731
    asked = {"honest": HONEST}, s_cut, s, EPISODES, FIRST
    plain, other = leakage.measure(*asked), leakage.measure(*asked, distance, truth=frames)
    for one, two in zip(plain, other, strict=True):
        for key in ("with", "without"):
            assert two[key]["mean"] == pytest.approx(one[key]["mean"], rel=1e-3)
    both = plain + [row | {"metric": "frames"} for row in other]
    one, two = leakage.tables(both)
    assert (one.caption, two.caption) == ("scene cuts, latent L1", "scene cuts, frames")
    assert len(one.rows) == len(two.rows) == len(plain)


def test_a_trained_models_functions_fit(tiny):
    model, params, s = tiny("sparse")
    s = np.random.default_rng(0).normal(size=(6, *s.shape[1:])).astype(np.float32)
    episodes = np.array(["a", "a", "b", "b", "c", "c"])
    s_cut, _ = leakage.stitch(s, episodes)
    functions = {"sparse": batched.batched(model, params)}
    row = leakage.measure(functions, s_cut, s, episodes, 2)[1]
    z = functions["sparse"].infer(s_cut)
    expected = np.abs(functions["sparse"].predict(s_cut[:, :-1], z)[:, 1] - s_cut[:, 2]).mean()
    assert row["with"]["mean"] == pytest.approx(expected, rel=1e-4)  # the model is causal


ONE = r"episode of each of 36 clips, at least 2 different ones, got shape \(36,\) with 1"


def test_wrong_arguments_are_errors_that_say_what_was_expected():
    s = scenes()
    one = np.repeat("episode", len(s))
    with pytest.raises(ValueError, match=ONE):
        leakage.stitch(s, one)
    with pytest.raises(ValueError, match=ONE):
        leakage.measure({}, s, s, one, FIRST)
    with pytest.raises(
        ValueError, match=r"episodes: expected.*each of 36 clips.*got shape \(35,\)"
    ):
        leakage.stitch(s, EPISODES[1:])
    for tubelet in 4, 6:  # 6 frames are a step and a half, or one
        expected = f"multiple of tubelet={tubelet} and at least {2 * tubelet}, .* got 6 frames"
        with pytest.raises(ValueError, match=expected):
            leakage.stitch(s, EPISODES, tubelet=tubelet)
    with pytest.raises(ValueError, match="first: expected 1 to 5, got 6"):
        leakage.measure({}, s, s, EPISODES, T)
    with pytest.raises(ValueError, match="s_cut: expected the shape of s"):
        leakage.measure({}, s[1:], s, EPISODES, FIRST)

"""Transfer and locality of made-up models: what is lost and where latents act are known."""

import json

import jax
import numpy as np
import pytest
from conftest import sure

from lawm_jax.evaluate import batched, cycle, leakage, locality, tables, transfer

EPISODES = np.repeat([f"episode {i}" for i in range(10)], 4)
N, D, T = 16, 4, 6


def rings(noise=0.02):
    """Makes states of random patterns on a ring of tokens; the last channel is always 0."""
    random = np.random.default_rng(0)
    s = np.empty((len(EPISODES), T, N, D), np.float32)
    for clip in s:
        pattern, speed = random.normal(size=(N, D)), random.integers(-3, 4)
        clip[:] = [np.roll(pattern, t * speed, axis=0) for t in range(T)]
    s += noise * random.normal(size=s.shape).astype(np.float32)
    s[..., -1] = 0
    return s


def turns(s):
    """Infers by how many tokens the ring turned: the shift that explains the next state best."""
    fits = [-np.abs(np.roll(s[:, :-1], k, 2) - s[:, 1:]).mean((2, 3)) for k in range(N)]
    return np.argmax(fits, axis=0)[..., None].astype(np.float32)


def roll_out(s, z, mark=0):
    """Turns the last state of the context by one latent after the other."""
    context, states = s.shape[1], [s[:, -1]]
    for t in range(context - 1, z.shape[1]):
        index = (np.arange(N) - z[:, t].astype(int)) % N
        states.append(np.take_along_axis(states[-1], index[..., None], axis=1))
    states = np.stack(states[1:], axis=1)
    states[..., -1] = mark
    return states


def lost_on_predictions(s):
    """Infers as `turns` does, but at random on predictions, which bear a mark."""
    random = np.random.default_rng(0).integers(-3, 4, (len(s), T - 1, 1))
    return np.where((s[:, 1:, :1, -1] > 0.5), random, turns(s)).astype(np.float32)


def still(s, z):
    return np.repeat(s[:, -1:], z.shape[1] - s.shape[1] + 1, axis=1)


FAITHFUL = batched.Batched(turns, None, roll_out)
FORGETFUL = batched.Batched(lost_on_predictions, None, lambda s, z: roll_out(s, z, mark=1))
IDLE = batched.Batched(turns, None, still)


def error(predicted, s):
    return np.mean(np.abs(predicted.astype(np.float64) - s))


def test_too_few_episodes_or_a_wrong_context_are_errors():
    s = rings()
    one = np.repeat("a", len(s))
    two = np.where(np.arange(len(s)) % 2, "a", "b")
    with pytest.raises(ValueError, match="episodes: expected at least 3 different episodes, got 2"):
        cycle.measure({"faithful": FAITHFUL}, s, two)
    for call in (locality.measure, lambda _, *args: locality.example(*args)):
        with pytest.raises(
            ValueError, match="episodes: expected at least 2 different episodes, got 1"
        ):
            call({}, s, one, 1)
        with pytest.raises(ValueError, match=r"episodes: expected 40 names, got \(39,\)"):
            call({}, s, EPISODES[1:], 1)
    with pytest.raises(ValueError, match="context: expected 1 to 5 steps, got 6"):
        cycle.measure({}, s, EPISODES, context=T)


def test_latents_that_mean_the_same_everywhere_lose_nothing():
    s = rings()
    (row,) = cycle.measure({"faithful": FAITHFUL}, s, EPISODES)
    expected = error(roll_out(s[:, :1], turns(s)), s[:, 1:])
    assert row["original"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert row["ratio"] == pytest.approx(sure(1, 10))
    assert row["lost"] == pytest.approx(sure(0, 10), abs=1e-6)
    third = leakage.partners(EPISODES, 2)[1]
    expected = error(roll_out(s[:, :1], turns(s)[third]), s[:, 1:])
    assert row["shuffled"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert row["note"] is None


def test_an_inference_that_fails_on_predictions_loses_everything():
    (row,) = cycle.measure({"forgetful": FORGETFUL}, rings(), EPISODES)
    assert row["lost"]["mean"] == pytest.approx(1, abs=0.15)
    assert row["lost"]["low"] < 1 < row["lost"]["high"]
    assert row["ratio"]["mean"] > 1.5
    assert row["note"] is None


def test_latents_that_do_nothing_have_a_ratio_of_1_and_a_note_that_says_so():
    (row,) = cycle.measure({"idle": IDLE}, rings(), EPISODES)
    assert row["ratio"] == sure(1.0, 10)
    assert row["lost"] is None
    assert row["original"] == row["cycle"] == row["shuffled"]
    note = "no clear effect of the latents: shuffling them changes the error by 0.0%"
    assert row["note"] == note
    assert note in tables.text("rings", cycle.tables([row]))


def test_a_distance_can_be_to_what_is_no_state():
    s = rings()
    distance = lambda a, b: np.abs(a + 1000 - b).mean((1, 2, 3))  # noqa: E731
    (plain,) = cycle.measure({"faithful": FAITHFUL}, s, EPISODES)
    (other,) = cycle.measure({"faithful": FAITHFUL}, s, EPISODES, 1, distance, 1000 + s[:, 1:])
    for key in ("original", "cycle", "shuffled"):
        assert other[key]["mean"] == pytest.approx(plain[key]["mean"], rel=1e-3, abs=1e-3)


def test_a_context_keeps_its_own_latents():
    n, context = len(EPISODES), 3
    s = np.random.default_rng(0).normal(size=(n, T, 1, 1)).astype(np.float32)
    calls = []

    def rollout(s, z):
        calls.append((s, z))
        return z[:, s.shape[1] - 1 :, :, None]  # the prediction is the latent

    model = batched.Batched(lambda s: s[:, 1:, :, 0] + 10, None, rollout)
    (row,) = cycle.measure({"recorder": model}, s, EPISODES, context)
    z = s[:, 1:, :, 0] + 10
    b, third = leakage.partners(EPISODES, 2)
    join = lambda own, led: np.concatenate([own[:, :2], led[:, 2:]], 1)  # noqa: E731
    expected = [(s[b], join(z[b], z)), (s, z), (s, join(z, z + 10)), (s, join(z, z[third]))]
    found = sorted(calls, key=lambda call: [np.allclose(call[1], x[1]) for x in expected].index(1))
    for (start, given), (states, latents) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(start, states[:, :context])
        np.testing.assert_allclose(given, latents, rtol=1e-5)
    assert row["original"]["mean"] == pytest.approx(10, rel=1e-5)
    assert row["cycle"]["mean"] == pytest.approx(20, rel=1e-5)


def test_the_distance_of_the_caller_takes_the_place_of_the_latents():
    def root_mean_square(predicted, truth):
        assert predicted.shape == truth.shape == (len(EPISODES), T - 2, N, D)
        return np.sqrt(np.square(predicted - truth).mean((1, 2, 3)))

    s = rings()
    (row,) = cycle.measure({"idle": IDLE}, s, EPISODES, 2, root_mean_square)
    expected = np.sqrt(np.square(s[:, 1:2] - s[:, 2:]).mean((1, 2, 3))).mean()
    assert row["metric"] == "root_mean_square"
    assert row["original"]["mean"] == pytest.approx(expected, rel=1e-5)


def test_rows_do_not_depend_on_the_other_models_and_are_json():
    s = rings()
    models = {"idle": IDLE, "faithful": FAITHFUL}
    rows = cycle.measure(models, s, EPISODES)
    assert rows[1:] == cycle.measure({"faithful": FAITHFUL}, s, EPISODES)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    perfect = np.zeros_like(s)
    json.dumps(cycle.measure(models, perfect, EPISODES), allow_nan=False)


@pytest.mark.parametrize("merge", [1, 2, 4])
def test_cells_undo_what_encode_does(merge):
    grid = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 5))
    tokens = np.empty((2, 3, (8 // merge) ** 2, merge**2 * 5))
    for row in range(8):
        for column in range(8):
            token = row // merge * (8 // merge) + column // merge
            first = 5 * (row % merge * merge + column % merge)
            tokens[:, :, token, first : first + 5] = grid[:, :, row, column]
    np.testing.assert_array_equal(locality.cells(tokens, merge), grid)


def test_cells_are_those_of_the_encoder(get_config):
    from lawm_jax import world_model

    video = np.random.default_rng(0).integers(0, 256, (1, 8, 64, 64, 3), np.uint8)
    grids = []
    for merge in (1, 2):
        config = get_config("size=tiny")
        config.encoder.merge = merge
        model = world_model.build(config)
        params = {"encoder": world_model.init_encoder(model, video)}
        s = jax.jit(lambda v, model=model, params=params: world_model.encode(model, params, v))
        grids.append(locality.cells(np.asarray(s(video)), merge))
    assert grids[0].std() > 0
    np.testing.assert_allclose(*grids, rtol=1e-5, atol=1e-6)


def test_tokens_that_are_no_square_of_cells_are_an_error():
    with pytest.raises(ValueError, match=r"x: expected a square number of tokens.*got \(15, 4\)"):
        locality.cells(np.zeros((15, 4)), 1)
    with pytest.raises(ValueError, match=r"x: expected .* a multiple of 4 channels, got \(16, 6\)"):
        locality.cells(np.zeros((16, 6)), 2)


SIDE = 12


def squares(d=3):
    """Makes scenes, [n, T, rows, columns, d], in which one square moves up or down by a cell.

    It is on the left or on the right; what it covers is random, and differs between clips.
    """
    random = np.random.default_rng(0)
    s = np.empty((len(EPISODES), T, SIDE, SIDE, d), np.float32)
    for i, clip in enumerate(s):
        clip[:] = random.normal(size=(SIDE, SIDE, d))
        column, up = [2, 8][i // 2 % 2], i % 2
        for t in range(T):
            row = 2 + (T - 1 - t if up else t)
            clip[t, row : row + 2, column : column + 2] = 4
    return s


def merged(s, merge=2):
    """Joins cells to tokens, the other way round than `cells`."""
    n, T, side, _, d = s.shape
    s = s.reshape(n, T, side // merge, merge, side // merge, merge, d).swapaxes(3, 4)
    return s.reshape(n, T, (side // merge) ** 2, merge**2 * d)


def motion(s):
    """Infers where the image moves, and by how much: row and column of the centre, up or down."""
    size = np.abs(np.diff(locality.cells(s, 2), axis=1)).mean(-1)
    place = np.arange(SIDE)
    total = size.sum((2, 3))
    row = (size.sum(3) * place).sum(2) / total
    column = (size.sum(2) * place).sum(2) / total
    bright = (locality.cells(s, 2) == 4).all(-1)
    centre = (bright.sum(3) * place).sum(2) / bright.sum((2, 3))
    return np.stack([row, column, np.diff(centre, axis=1)], -1).astype(np.float32)


def mover(everything):
    """Makes a model that moves what is at the latent's place, or everything."""

    def predict(s, z):
        x = locality.cells(s, 2).copy()
        for clip, latent in zip(x, z, strict=True):
            row, column, speed = (round(float(v)) for v in latent[0])
            rows, columns = slice(row - 1, row + 2), slice(column - 1, column + 2)
            moved = np.roll(clip[0], speed, axis=0)
            if everything:
                clip[0] = moved
            else:
                clip[0, rows, columns] = moved[rows, columns]
        return merged(x)

    return batched.Batched(motion, predict, None)


MODELS = {
    "local": mover(everything=False),
    "global": mover(everything=True),
    "idle": batched.Batched(motion, lambda s, z: s, None),
    "own": batched.Batched(motion, lambda s, z: s + 0.5, None),
}


@pytest.fixture(scope="module")
def local():
    rows = locality.measure(MODELS, merged(squares()), EPISODES, 2)
    return {row["name"]: row for row in rows}


def test_a_local_latent_acts_in_the_region_and_not_in_its_mirror_image(local):
    row = local["local"]
    for key in ("share", "action"):
        assert row[key]["region"]["mean"] > 0.99
        assert row[key]["mirrored"]["mean"] < 0.01
    assert row["effect"]["mean"] == pytest.approx(1)
    assert row["note"] is None


def test_a_latent_that_moves_everything_acts_by_chance(local):
    row = local["global"]
    assert 0.1 < row["chance"]["mean"] < 0.3
    for key in ("share", "action"):
        for place in ("region", "mirrored"):
            assert row[key][place]["mean"] == pytest.approx(row["chance"]["mean"], rel=0.15)


def test_a_change_that_is_not_due_to_the_action_is_told_apart(local):
    nothing = {"region": None, "mirrored": None}
    row = local["own"]
    assert row["share"]["region"] == pytest.approx(row["chance"])
    assert row["action"] == nothing
    assert row["effect"]["mean"] == 0
    assert row["note"] == "the latents have no effect"
    assert local["idle"]["share"] == local["idle"]["action"] == nothing
    assert local["idle"]["effect"] is None
    assert local["idle"]["note"] == row["note"]


def test_the_regions_are_the_moving_squares_with_a_margin():
    s = squares()
    clip, t, region, _ = locality.transitions(merged(s), 2, most=10**6)
    assert len(clip) == len(EPISODES) * (T - 1)
    expected = np.zeros((SIDE, SIDE), bool)
    i = 7  # down, from t to t + 1
    where = np.flatnonzero((clip == i) & (t == 2))[0]
    changed = np.abs(s[i, 3] - s[i, 2]).mean(-1)
    for row, column in np.argwhere(changed > changed.max() / 2):
        expected[row - 1 : row + 2, column - 1 : column + 2] = True
    np.testing.assert_array_equal(region[where], expected)


def test_sources_are_few_and_evenly_spread():
    clip, t, region, held = locality.transitions(merged(squares()), 2)
    assert len(clip) == len(t) == len(region) == len(held) == 64
    order = clip * (T - 1) + t
    assert order[0] == 0 and order[-1] == len(EPISODES) * (T - 1) - 1
    assert set(np.diff(order)) == {3, 4}  # 64 of 200


def test_motion_of_everything_or_of_mirror_images_does_not_qualify():
    random = np.random.default_rng(0)
    everywhere = random.normal(size=(len(EPISODES), T, SIDE, SIDE, 32)).astype(np.float32)
    both = np.maximum(squares(), squares()[:, :, :, ::-1])
    for s in (everywhere, both, np.ones_like(both)):
        rows = locality.measure(MODELS, merged(s), EPISODES, 2)
        assert [row["count"] for row in rows] == [0] * 4
        assert rows[0]["share"] == {"region": None, "mirrored": None}
        assert locality.example(merged(s), EPISODES, 2) is None
        found = locality.shares_of_effect(next(iter(MODELS.values())), merged(s), EPISODES, 2)
        assert [len(x) for x in found] == [0] * 4
        text = tables.text("squares", locality.tables(rows))
        assert "no transition moves only one region of the image" in text
        json.dumps(rows, allow_nan=False)


def test_the_example_is_of_one_clip_and_a_target_of_another_episode():
    s = squares()
    s[5, 4, 2:10, 8:10] = 9  # the liveliest transition of all, on the right
    source, t, target, region = locality.example(merged(s), EPISODES, 2)
    assert (source, EPISODES[source] != EPISODES[target]) == (5, True)
    assert t in (3, 4)
    assert region.shape == (SIDE, SIDE) and region[5, 9] and not region[:, : SIDE // 2].any()


def test_locality_comes_out_twice_as_json_and_fits_a_table(local):
    rows = locality.measure(MODELS, merged(squares()), EPISODES, 2)
    assert rows == list(local.values())
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    text = tables.text("squares", transfer.tables({"locality": rows, "cycle": []}))
    local, idle = (next(x for x in text.split("\n") if name in x) for name in ("local ", "idle "))
    assert " ".join(local.split()).startswith("local 64 1.00 [1.00, 1.00] 0.00 [0.00, 0.00]")
    assert idle.split()[2:6] == ["-"] * 4


def test_a_trained_models_functions_fit(tiny):
    model, params, s = tiny("noisy")
    s = np.random.default_rng(0).normal(size=(6, *s.shape[1:])).astype(np.float32)
    s[3] = s[3, :1]
    s[3, 2, 0, :8] += 5  # one cell of the first token
    episodes = np.array(["a", "a", "b", "b", "c", "c"])
    models = {"noisy": batched.batched(model, params)}
    (row,) = cycle.measure(models, s, episodes, context=2)
    assert row["ratio"]["low"] <= row["ratio"]["mean"] <= row["ratio"]["high"]
    (row,) = locality.measure(models, s, episodes, 2)
    assert row["count"] == 2 and row["chance"]["mean"] == 4 / 16
    assert 0 < row["action"]["region"]["mean"] < 1
    json.dumps(row, allow_nan=False)

"""Block matching of known motion, and probes of latents that know the motion or do not."""

import functools
import json
import types

import numpy as np
import pytest
from conftest import judged

from lawm_jax.data import pipeline
from lawm_jax.evaluate import flow, probing, tables

EPISODES = np.repeat([f"episode {i}" for i in range(20)], 3)


def texture(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32)


def shifted(image, x, y):
    """Moves an image [h, w] to the right and down; what comes in is new."""
    new = texture(*image.shape, seed=99)
    h, w = image.shape
    new[max(y, 0) : h + min(y, 0), max(x, 0) : w + min(x, 0)] = image[
        max(-y, 0) : h + min(-y, 0), max(-x, 0) : w + min(-x, 0)
    ]
    return new


@pytest.mark.parametrize("x,y", [(3, -2), (0, 5), (-5, 1), (0, 0)])
def test_the_flow_of_a_shifted_texture_is_the_shift(x, y):
    image = texture(64, 48)
    got = flow.match(image[None], shifted(image, x, y)[None])
    assert got.shape == (1, 8, 6, 2)
    inner = got[0, 1:-1, 1:-1]  # whole blocks stay in the image
    np.testing.assert_array_equal(inner, np.broadcast_to([x, y], inner.shape))


def test_the_flow_agrees_with_phase_correlation():
    registration = pytest.importorskip("skimage.registration")
    image = texture(64, 64)
    moved = np.roll(image, (2, -4), (0, 1))
    (y, x), *_ = registration.phase_cross_correlation(moved, image)
    found = np.median(flow.match(image[None], moved[None]).reshape(-1, 2), axis=0)
    np.testing.assert_array_equal(found, [x, y])


def test_the_flow_of_video_of_an_arm_agrees_with_tv_l1(get_config):
    registration = pytest.importorskip("skimage.registration")
    config = get_config("size=nano")
    clips = list(pipeline.episodes(config, "panda", most=8))[::3]
    video = np.stack([clip["video"][:4] for clip in clips])
    found = flow.measure(video).mean((2, 3)).reshape(-1, 2)
    gray = video.mean(-1)[:, :, ::2, ::2] / 255
    pairs = [(clip[t], clip[t + 1]) for clip in gray for t in range(3)]
    y, x = np.mean([registration.optical_flow_tvl1(*pair) for pair in pairs], (2, 3)).T
    assert len(pairs) > 20
    assert np.corrcoef(found[:, 0], x)[0, 1] > 0.9 and np.corrcoef(found[:, 1], y)[0, 1] > 0.9


def test_one_object_moves_and_the_noisy_or_flat_background_does_not():
    image = texture(64, 64) * np.pad(np.ones((16, 16)), ((24, 24), (24, 24)))
    noise = np.random.default_rng(1).uniform(-1, 1, (64, 64)).astype(np.float32)
    moved = np.roll(image, 4, 1) + noise
    got = flow.match(image[None], moved[None])[0]
    expected = np.zeros((8, 8, 2))
    expected[3:5, 3:5] = 4, 0
    np.testing.assert_array_equal(got[3:5, 3:5], expected[3:5, 3:5])
    # Of the flat blocks, only those that the object enters fit elsewhere.
    rest = np.ones((8, 8), bool)
    rest[3:5, 3:6] = False
    assert not got[rest].any()


def test_frames_are_reduced_and_the_flow_is_in_their_pixels():
    image = np.kron(texture(64, 64), np.ones((2, 2)))
    moves = [(0, 0), (4, -6), (-2, -2)]  # of the whole, frame by frame
    frames = [np.roll(image, (y, x), (0, 1)) for x, y in moves]
    video = np.stack(frames)[None, ..., None].repeat(3, -1).astype(np.uint8)
    got = flow.measure(video)
    assert got.shape == (1, 2, 8, 8, 2)
    found = np.median(got.reshape(2, -1, 2), axis=1)
    np.testing.assert_array_equal(found, [[4, -6], [-6, 4]])
    # A frame is then 65 x 70 pixels: neither a multiple of the block nor square.
    assert flow.measure(video[:, :, :65, :70]).shape == (1, 2, 8, 8, 2)


def test_means_and_quantiles_are_over_the_blocks():
    found = np.random.default_rng(0).integers(-5, 6, (2, 3, 4, 5, 2))
    got = flow.summarize(found)
    assert got.shape == (2, 3, len(flow.NAMES)) and flow.NAMES[5] == "flow y, 10%"
    y = found[1, 2, :, :, 1]
    np.testing.assert_allclose(got[1, 2, 4:], [y.mean(), *np.quantile(y, [0.1, 0.5, 0.9])])


def source(z=None, actions=None):
    """Makes 60 clips of a texture that is shifted at random in x from step to step, never in y."""
    random = np.random.default_rng(0)
    moves = random.integers(-4, 5, (60, 3))
    image = texture(64, 64)
    place = np.concatenate([np.zeros((60, 1), int), moves.cumsum(1)], 1)
    video = np.stack([[np.roll(image, x, 1) for x in clip] for clip in place])
    video = video[..., None].repeat(3, -1).astype(np.uint8)
    z = random.normal(size=(60, 3, 2)) if z is None else z(moves)
    s = random.normal(size=(60, 4, 2, 8)).astype(np.float32)
    clips = types.SimpleNamespace(s=s, video=video, actions=actions, episodes=EPISODES)
    made = types.SimpleNamespace(clips=clips, pairs=True, per_step=1, latents=["noisy"])
    made.z = lambda name: z.astype(np.float32)
    made.components = lambda width: probing.components(s, EPISODES, width)
    return made


judge = functools.partial(judged, flow, "flow")


def test_latents_that_are_the_motion_tell_the_flow_of_unlabeled_video():
    rows = flow.run(source(lambda moves: np.stack([2 * moves + 1, 0 * moves], -1)))
    by_name = {x["name"]: x for x in rows[0]["flow"]}
    assert by_name["flow x, mean"]["latents"]["low"] > 0.98
    assert by_name["flow x, 50%"]["latents"]["low"] > 0.99
    assert by_name["flow x, mean"]["state"]["high"] < 0.1
    assert by_name["flow y, 50%"]["latents"] is None  # nothing moves in y
    assert rows[0]["moving"]["mean"] == pytest.approx(8 / 9, abs=0.1)
    answer, text = judge(rows)
    assert answer == "holds" and text.startswith("R² of the mean flow: x 1.00 [")
    json.dumps(rows, allow_nan=False)
    assert "noisy, flow x, 10%" in tables.text("x", flow.tables(rows))


def test_latents_that_know_nothing_of_the_motion_do_not_tell_it():
    rows = flow.run(source())
    by_name = {x["name"]: x for x in rows[0]["flow"]}
    assert abs(by_name["flow x, mean"]["latents"]["mean"]) < 0.1
    assert judge(rows)[0] in ("fails", "undecided")


def test_states_without_video_have_no_flow():
    asked = source()
    asked.clips.video = None
    assert flow.run(asked) is None

"""Prediction, and what all evaluations share: batches, clips, pixels; with known errors."""

import jax
import numpy as np
import pytest
from conftest import COMPUTES_MORE, sure

import lawm_jax as lawm
from lawm_jax import world_model
from lawm_jax.evaluate import batched, clips, metrics, pixels, prediction, tables
from lawm_jax.nn import perceptual
from lawm_jax.train import sharding

EPISODES = np.repeat([f"episode {i}" for i in range(5)], 2)


def walk(seed=0):
    """Draws 10 clips of 6 steps whose states move by a constant: [10, 6, 4, 8], and the moves."""
    random = np.random.default_rng(seed)
    start, move = random.normal(size=(2, 10, 1, 4, 8)).astype(np.float32)
    return start + move * np.arange(6, dtype=np.float32)[:, None, None], move


def moving(share):
    """Makes a model whose latent is the change, of which it adds a share."""
    flat = lambda x: x.reshape(*x.shape[:2], -1)  # noqa: E731
    back = lambda z: share * z.reshape(*z.shape[:2], 4, 8)  # noqa: E731

    def rollout(s, z):
        z = back(z)[:, s.shape[1] - 1 :]
        return s[:, -1:] + np.cumsum(z, axis=1)

    return batched.Batched(lambda s: flat(np.diff(s, axis=1)), lambda s, z: s + back(z), rollout)


def test_errors_are_those_of_models_whose_errors_are_known():
    s, move = walk()
    size = np.abs(move).mean((1, 2, 3))  # of one step, per clip
    models = {"main": moving(0.75), "deterministic": moving(0.0), "perfect": moving(1.0)}
    copy, main, none, perfect = prediction.compare(models, s, EPISODES)
    assert copy["name"] == "copy last frame"
    assert copy["error"] == pytest.approx(metrics.interval(size, EPISODES))
    assert main["error"] == pytest.approx(metrics.interval(size / 4, EPISODES), rel=1e-4)
    assert main["relative"] == pytest.approx(sure(0.25, 5), rel=1e-4)
    assert main["paired"] == pytest.approx(metrics.interval(-0.75 * size, EPISODES), rel=1e-4)
    assert none["relative"]["mean"] == pytest.approx(1) and none["paired"] is None
    assert perfect["error"]["mean"] == pytest.approx(0, abs=1e-6)
    for row, share in ((copy, 1), (main, 0.25), (none, 1)):
        ahead = [x["mean"] for x in row["rollout"]]
        np.testing.assert_allclose(ahead, share * size.mean() * np.arange(1, 6), rtol=1e-4)


def test_without_a_deterministic_model_nothing_is_paired():
    s, _ = walk()
    rows = prediction.compare({"main": moving(0.5)}, s, EPISODES)
    assert [row["paired"] for row in rows] == [None, None]


def test_the_table_tells_names_and_numbers():
    s, _ = walk()
    rows = prediction.compare({"main": moving(0.5), "deterministic": moving(0.0)}, s, EPISODES)
    text = tables.text("walks", prediction.tables(rows))
    title, heads, copy, main, *_ = text.split("\n")
    assert title == "walks, one step ahead [95% interval]"
    assert heads.split("   ")[-1].strip() == "minus deterministic ↓" and "error ↓" in heads
    assert copy.split()[:3] == ["copy", "last", "frame"] and copy.split()[-4:] == [
        "1.000",
        "[1.000,",
        "1.000]",
        "-",
    ]
    assert "   0.500 [0.500, 0.500]   " in main and main.split("   ")[-1].startswith(" -")
    assert "5 steps ahead" in text and "distance" not in text  # there are no pixels
    one = prediction.compare({"main": moving(0.5)}, s, np.array(["same"] * 10))
    assert "no interval" in tables.text("walks", prediction.tables(one))


def test_functions_over_many_clips_equal_the_models_own(tiny):
    model, params, s = tiny("noisy")
    many = np.concatenate([np.asarray(s) + i for i in range(5)])[:7]  # two batches, one not full
    functions = batched.batched(model, params, batch=4)
    z = functions.infer(many)
    infer, predict, rollout = (
        jax.jit(f, static_argnums=0) for f in (lawm.infer_actions, lawm.predict, lawm.rollout)
    )
    np.testing.assert_allclose(z, infer(model, params, many)[0], atol=1e-5)
    expected = predict(model, params, many[:, :-1], z)
    np.testing.assert_allclose(functions.predict(many[:, :-1], z), expected, atol=1e-4)
    expected = rollout(model, params, many[:, :1], z)
    np.testing.assert_allclose(functions.rollout(many[:, :1], z), expected, atol=1e-4)


@pytest.fixture(scope="module")
def embedded(get_config):
    """Returns a tiny model's recipe, its encoder's and decoder's params, and held-out clips."""
    config = get_config("size=tiny")
    model = lawm.build(config)
    params = {"encoder": world_model.init_encoder(model, None)}
    params |= world_model.init_decoder(model, None, None)
    apply = lambda params, video: lawm.encode(model, params, video)  # noqa: E731
    apply = jax.jit(apply, compiler_options=COMPUTES_MORE)
    encode = batched.in_batches(apply, params)
    return config, model, params, encode, clips.held_out(config, "panda", encode, items=2)


@pytest.mark.parametrize("count", [1, 8])
def test_all_devices_that_hold_the_parameters_share_the_clips(count):
    mesh = sharding.make_mesh(devices=jax.devices()[:count])
    params = sharding.distribute(mesh, {"w": np.arange(3.0, dtype=np.float32)})
    seen, known = [], []

    def function(params, x, y):
        seen.append({shard.data.shape for shard in x.addressable_shards})
        known.append(jax.sharding.get_abstract_mesh().shape == mesh.abstract_mesh.shape)
        return x * params["w"][None] + y

    x, y = np.random.default_rng(0).normal(size=(2, 21, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        batched.in_batches(function, params, batch=10)(x, y), x * params["w"][None] + y
    )
    share = 10 if count == 1 else 2  # clips of 10, or of 16, the next that 8 devices divide
    assert seen == [{(share, 3)}] * (3 if count == 1 else 2) and all(known)


def test_held_out_clips_are_the_same_twice_and_have_labels(embedded):
    config, _, _, encode, found = embedded
    again = clips.held_out(config, "panda", encode, items=2)
    for one, two in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, two)
    n = len(found.s)
    assert found.s.shape == (n, 4, 4, 448) and found.video.shape == (n, 4, 64, 64, 3)
    assert found.actions.shape == (n, 3, 3) and len(set(found.episodes)) == 2


def test_training_clips_are_none_of_the_held_out_ones(embedded):
    config, _, _, encode, found = embedded
    one, two = (clips.training(config, "panda", encode, 4) for _ in range(2))
    np.testing.assert_array_equal(one.s, two.s)
    assert one.video.shape == (4, 4, 64, 64, 3)
    for clip in one.video:
        assert (np.abs(clip[0].astype(int) - found.video[:, 0]).mean((1, 2, 3)) > 0).all()


def test_a_source_without_clips_is_an_error(embedded):
    config, _, _, encode, _ = embedded
    long = config.copy_and_resolve_references()
    long.data.frames = 4000
    with pytest.raises(ValueError, match="panda: no held-out clip of 4000 frames"):
        clips.held_out(long, "panda", encode)


def test_pictures_of_true_states_are_measured_as_the_metrics_say(embedded):
    _, model, params, _, found = embedded
    seen = pixels.Pixels(model, params, found, most=3)
    assert len(seen.chosen) == 3 and len(set(seen.chosen)) == 3
    got = seen.measure(seen.s[:, 1:])
    decode = jax.jit(lawm.decode, static_argnums=0)
    painted = np.asarray(decode(model, params, seen.s))[:, 1:]
    true = found.video[seen.chosen][:, 1:]
    expected = metrics.interval(metrics.psnr(painted, true).mean(1), seen.episodes)
    assert got["psnr"] == pytest.approx(expected, rel=1e-3)
    assert got.keys() == {"psnr", "ssim", "effnet"}
    worse = seen.measure(np.zeros_like(seen.s[:, 1:]))
    assert worse["psnr"]["mean"] < got["psnr"]["mean"] - 3
    assert worse["ssim"]["mean"] < got["ssim"]["mean"]
    assert worse["effnet"]["mean"] > 1.5 * got["effnet"]["mean"]
    painted = decode(model, params, seen.s[:, 1:])
    assert np.abs(seen.to_frames(seen.s[:, 1:], np.asarray(painted))).max() < 1e-6
    distance = jax.jit(perceptual.distance, static_argnums=0)
    off = distance(*perceptual.load("effnet"), painted, true).mean(1)
    np.testing.assert_allclose(seen.to_frames(seen.s[:, 1:], true), off, rtol=1e-3)
    assert off.min() > 0.01

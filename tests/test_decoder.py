"""The pixel decoder: causality, the order of patches, its training, its place in a model."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import COMPUTES_MORE, write_run

import lawm_jax as lawm
from lawm_jax import world_model
from lawm_jax.data import pipeline
from lawm_jax.evaluate import metrics
from lawm_jax.nn import perceptual
from lawm_jax.nn.decoder import Decoder
from lawm_jax.train import models, objectives

DECODER = Decoder(patch=4, tubelet=2, width=24, heads=2, depth=2, steps=3)
apply = jax.jit(DECODER.apply)
paint = jax.jit(world_model.decode_float, static_argnums=0)
encode = jax.jit(lawm.encode, static_argnums=0)
decode = jax.jit(lawm.decode, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    """Draws the parameters of `DECODER` for 9 tokens of 5 channels."""
    return jax.jit(DECODER.init)(jax.random.key(0), jnp.zeros((1, 3, 9, 5)))["params"]


def test_a_decoder_paints_every_frame_of_every_step(params):
    video = apply({"params": params}, jnp.zeros((2, 3, 9, 5)))
    assert video.shape == (2, 6, 12, 12, 3) and video.dtype == jnp.float32


def test_a_decoder_sees_no_later_step(params):
    s = jax.random.normal(jax.random.key(1), (1, 3, 9, 5))
    before = apply({"params": params}, s)
    after = apply({"params": params}, s.at[:, 2].add(1.0))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any()


def test_a_longer_clip_is_painted_piece_by_piece(params):
    s = jax.random.normal(jax.random.key(1), (2, 8, 9, 5))
    video = apply({"params": params}, s)
    assert video.shape == (2, 16, 12, 12, 3)
    for begin in (0, 3, 6):
        piece = apply({"params": params}, s[:, begin : begin + 3])
        np.testing.assert_allclose(video[:, 2 * begin : 2 * begin + 6], piece, atol=1e-5)


def test_each_token_paints_its_own_patch_of_its_own_frames(params):
    blocks = params["stack"]["blocks"]
    alone = {k: jax.tree.map(jnp.zeros_like, blocks[k]) for k in ("proj", "fc2")}
    params = params | {"stack": {"blocks": blocks | alone}}  # tokens don't see each other
    s = jax.random.normal(jax.random.key(1), (1, 3, 9, 5))
    change = apply({"params": params}, s.at[0, 1, 5].add(1.0))
    change = np.array(change - apply({"params": params}, s))[0]
    assert (change[2:4, 4:8, 8:12] != 0).all()  # token 5: row 1, column 2; step 1: frames 2 and 3
    change[2:4, 4:8, 8:12] = 0
    assert (change == 0).all()


def test_a_patch_is_laid_out_frame_by_frame_row_by_row(params):
    pattern = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    out = {"kernel": jnp.zeros_like(params["out"]["kernel"]), "bias": pattern.ravel()}
    video = apply({"params": params | {"out": out}}, jnp.zeros((1, 3, 9, 5)))
    np.testing.assert_array_equal(video[0], np.tile(pattern, (3, 3, 3, 1)))


def config(get_config, **options):
    settings = get_config("size=tiny")
    settings.encoder.update(**options)
    return settings


def test_the_embedded_encoder_comes_with_its_decoder(get_config):
    video = jax.ShapeDtypeStruct((1, 4, 64, 64, 3), jnp.uint8)
    model = lawm.build(get_config("size=tiny"))
    params = lawm.init(model, jax.random.key(0), video)
    s = jax.random.normal(jax.random.key(1), (2, 3, 4, 448))
    frames = decode(model, params, s)
    assert frames.shape == (2, 3, 64, 64, 3) and frames.dtype == jnp.uint8


def test_merged_tokens_are_painted_as_the_cells_they_hold(get_config):
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), np.uint8)
    painted = []
    for merge in (1, 2, 4):
        model = lawm.build(config(get_config, merge=merge))
        params = {"encoder": world_model.init_encoder(model, None)}
        params |= world_model.init_decoder(model, None, None)
        painted.append(paint(model, params, encode(model, params, video)))
    np.testing.assert_array_equal(painted[0], painted[1])
    np.testing.assert_array_equal(painted[0], painted[2])


def test_where_frames_are_repeated_a_step_shows_its_last_frame(get_config):
    model = lawm.build(get_config("size=tiny"))
    twice = dataclasses.replace(model, repeat=True)
    params = world_model.init_decoder(model, None, None)
    s = jax.random.normal(jax.random.key(0), (1, 2, 4, 448))
    np.testing.assert_array_equal(decode(twice, params, s), decode(model, params, s))


def test_a_model_without_a_decoder_says_how_to_get_one(get_config):
    model = lawm.build(config(get_config, normalise=True))
    assert model.decoder is None
    with pytest.raises(ValueError, match="no decoder; train one with configs/decoder.py"):
        lawm.decode(model, {}, jnp.zeros((1, 2, 4, 448)))


@pytest.fixture(scope="module")
def sharp(get_config):
    """Returns of each source held-out clips, decoded from their states and as they are."""
    settings = get_config("size=nano")
    model = lawm.build(settings)
    params = {"encoder": world_model.init_encoder(model, None)}
    params |= world_model.init_decoder(model, None, None)
    paint = lambda video: lawm.decode(model, params, lawm.encode(model, params, video))  # noqa: E731
    both = jax.jit(paint, compiler_options=COMPUTES_MORE)
    found = {}
    for name in ("panda", "nav"):
        clips = pipeline.episodes(settings, name, most=16)
        video = np.stack([clip["video"] for clip in clips if clip["start"] == 0])
        found[name] = np.asarray(both(video)), video
    return found


@pytest.mark.parametrize("name", ["panda", "nav"])
def test_the_embedded_decoder_shows_held_out_clips_with_22_db(name, sharp):
    assert metrics.psnr(*sharp[name]).mean() >= 22


@pytest.mark.parametrize("name", ["panda", "nav"])
def test_the_embedded_decoder_beats_the_mean_picture_and_looks_better_than_a_thumbnail(name, sharp):
    painted, video = sharp[name]
    mean = np.broadcast_to(video.mean((0, 1)), video.shape)
    assert metrics.psnr(painted, video).mean() > metrics.psnr(mean, video).mean() + 4
    n, F, H, W, _ = video.shape
    true = video.reshape(n, F, H // 16, 16, W // 16, 16, 3).mean((3, 5), dtype=np.float32)
    true = true.repeat(16, 2).repeat(16, 3)  # the mean colours of all patches, 192 true numbers
    network, params = perceptual.load("effnet")
    far = jax.jit(lambda params, a, b: perceptual.distance(network, params, a, b))
    far = lambda a, f=far: np.asarray(f(params, a[:, ::4], video[:, ::4])).mean()  # noqa: E731
    assert far(np.float32(painted)) < 0.7 * far(true)


@pytest.mark.parametrize("size", ["tiny", "nano", "large"])
def test_the_decoders_configs_build(size, decoder_config):
    settings = decoder_config(f"size={size}")
    settings.encoder.weights = ""
    settings.encoder.dtype = settings.decoder.dtype = "float32"
    model = lawm.build(settings)
    assert model.predictor is None and model.decoder.patch == model.encoder.patch
    video = jax.ShapeDtypeStruct((1, 2, settings.data.size, settings.data.size, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda key: lawm.init(model, key, video), jax.random.key(0))
    assert shapes.keys() == {"encoder", "decoder"}
    s = world_model.state_shape(model, shapes["encoder"], video)
    painted = jax.eval_shape(lambda p, s: lawm.decode(model, p, s), shapes, s)
    assert painted.shape == video.shape


def test_an_unknown_size_is_refused(decoder_config):
    with pytest.raises(ValueError, match="expected size=tiny|nano|large"):
        decoder_config("size=big")


def test_the_loss_is_the_mean_error_and_the_distance_times_its_weight(decoder_config):
    settings = decoder_config("size=tiny")
    settings.decoder.update(weight=0.5, frames=0)
    model = lawm.build(settings)
    video = np.random.default_rng(0).integers(0, 256, (2, 2, 64, 64, 3), np.uint8)
    decoder = objectives.OBJECTIVES["decoder"]
    frozen = decoder.init_frozen(model, video, None)
    s = encode(model, frozen, video)
    params = jax.jit(lambda key: world_model.init_decoder(model, key, s))(jax.random.key(0))
    inputs = jax.jit(decoder.inputs, static_argnums=0)(model, frozen, {"video": video})
    loss = jax.jit(decoder.loss, static_argnums=0)
    value, got = loss(model, params, frozen, inputs, None)
    painted = paint(model, params, s)
    error = np.abs(np.asarray(painted, np.float64) - video).mean() / 255
    np.testing.assert_allclose(got["error"], error, rtol=1e-5)
    np.testing.assert_allclose(value, error + 0.5 * got["perceptual"], rtol=1e-5)
    square = np.square(np.clip(painted, 0, 255).astype(np.float64) - video).mean()
    np.testing.assert_allclose(got["psnr"], 10 * np.log10(255**2 / square), rtol=1e-5)
    some = dataclasses.replace(model, decoder=model.decoder.clone(frames=1))
    noise = [decoder.noise(some, {"video": video}, jax.random.key(i)) for i in range(8)]
    values = [loss(some, params, frozen, inputs, x)[0] for x in noise]
    with pytest.raises(ValueError, match=r"data: expected video .*, got \['states'\]"):
        decoder.noise(some, {"states": s}, jax.random.key(0))
    assert np.ptp(values) > 0 and abs(np.mean(values) - value) < np.ptp(values)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, get_config, decoder_config, one_device):
    """Trains a tiny decoder, and writes a tiny world model; returns their folders."""
    from lawm_jax.train import loop

    folder = tmp_path_factory.mktemp("runs")
    write_run(get_config("size=tiny"), folder / "model")
    returned = loop.fit(decoder_config("size=tiny"), str(folder / "decoder"))
    return folder, returned


def test_the_same_loop_trains_a_decoder(runs):
    import json

    folder, (model, params) = runs
    rows = [json.loads(row) for row in (folder / "decoder/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 20 and rows[-1]["error"] < 0.7 * rows[0]["error"]
    assert params.keys() == {"encoder", "decoder"}
    loaded, again = lawm.load(folder / "decoder")
    assert loaded == model
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_a_model_is_loaded_with_the_decoder_in_its_folder_or_the_one_named(runs):
    folder, (_, trained) = runs
    _, params = lawm.load(folder / "model")
    embedded = world_model.init_decoder(lawm.build(_config(folder / "model")), None, None)
    jax.tree.map(np.testing.assert_array_equal, params["decoder"], embedded["decoder"])
    (folder / "model" / "decoder" / "checkpoints").mkdir(parents=True)  # one that has just begun
    jax.tree.map(np.testing.assert_array_equal, lawm.load(folder / "model")[1], params)
    shutil.rmtree(folder / "model" / "decoder")
    model, named = lawm.load(folder / "model", decoder=folder / "decoder")
    jax.tree.map(np.testing.assert_array_equal, named["decoder"], trained["decoder"])
    (folder / "model" / "decoder").symlink_to(folder / "decoder")
    other, params = lawm.load(folder / "model")
    (folder / "model" / "decoder").unlink()
    assert other == model
    jax.tree.map(np.testing.assert_array_equal, params, named)
    models.save(str(folder / "copy"), model, named)
    other, params = lawm.load(folder / "copy")
    assert other == model
    jax.tree.map(np.testing.assert_array_equal, params, named)
    s = jax.random.normal(jax.random.key(0), (1, 2, 4, 448))
    np.testing.assert_array_equal(decode(model, named, s), decode(other, params, s))


def _config(workdir):
    from lawm_jax.train import rundir

    return rundir.read_config(str(workdir))


def test_another_encoders_decoder_is_refused(runs, get_config):
    folder, _ = runs
    write_run(config(get_config, normalise=True), folder / "other")
    with pytest.raises(ValueError, match="encoder with normalise True, got False"):
        lawm.load(folder / "other", decoder=folder / "decoder")

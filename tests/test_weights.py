"""Encoders by name; directories, checkpoints and what is wrong with them."""

import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lawm_jax.nn import pretrained
from lawm_jax.nn.efficientnet import EfficientNetLite0
from lawm_jax.nn.vjepa2 import SIZES, VERSION_2_1, VJEPA2

TINY = VJEPA2(**SIZES["tiny"])
CONFIG = {
    "model_type": "vjepa2",
    "hidden_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "tubelet_size": 2,
}
QKV = ("query", "key", "value")


def draw():
    """Draws the tensors of a tiny encoder: {Hugging Face's name: array}."""
    random = np.random.default_rng(0)
    return {k: random.normal(size=s).astype(np.float32) for k, s in pretrained.shapes(TINY).items()}


def write(folder, tensors, **config):
    """Writes a directory as Hugging Face's models have it, with a predictor that is not read."""
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    tensors = {f"encoder.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors | {"predictor.proj.bias": np.zeros(3)}, folder / "model.safetensors")
    return folder


def meta_names(tensors):
    """Renames tensors as Meta's checkpoints have them, and joins query, key and value."""
    metas = {"pos_embed": np.zeros((1, 8, 96), np.float32)}
    for name, tensor in tensors.items():
        if "query" in name:
            tensor = np.concatenate([tensors[name.replace("query", p)] for p in QKV])
            name = name.replace("query", "qkv")
        name = name.replace("embeddings.patch_embeddings", "patch_embed").replace(
            "layernorm", "norm"
        )
        metas[name.replace("layer.", "blocks.").replace("attention", "attn")] = tensor
    return {
        f"module.backbone.{n}": t for n, t in metas.items() if "key" not in n and "value" not in n
    }


def write_meta(file, **parts):
    """Saves {part: {name: tensor}} with torch, beside what a training run also keeps."""
    torch = pytest.importorskip("torch")
    parts = {key: {n: torch.from_numpy(t) for n, t in part.items()} for key, part in parts.items()}
    torch.save(parts | {"epoch": 3, "lr": 1e-3}, file)
    return file


def assert_equal(params, tensors):
    jax.tree.map(np.testing.assert_array_equal, params, pretrained.from_hugging_face(tensors, 2))


def test_every_name_makes_an_encoder_and_equal_arguments_make_equal_ones():
    for name in pretrained.ENCODERS:
        one, two = (pretrained.make_encoder(name, dtype="bfloat16", remat="dots") for _ in range(2))
        assert one == two and hash(one) == hash(two)
        assert len(one.mean) == len(one.std) == 3
        assert one.patch == 16 and one.tubelet in (1, 2)
    assert pretrained.make_encoder("vjepa2_large").causal
    assert not pretrained.make_encoder("vjepa2_large", causal=False).causal
    assert not pretrained.make_encoder("vjepa2.1_large").tiled


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        ValueError, match="name: expected one of efficientnet_lite0, .* got 'resnet'"
    ):
        pretrained.make_encoder("resnet")


@pytest.mark.parametrize("name", ["embedded", "efficientnet_lite0"])
def test_the_embedded_encoder_needs_no_download(name):
    encoder, params = pretrained.load_encoder(name)
    assert (
        encoder
        == EfficientNetLite0()
        == pretrained.make_encoder(name.replace("embedded", "efficientnet_lite0"))
    )
    s = encoder.apply({"params": params}, np.zeros((1, 2, 32, 32, 3), np.float32))
    assert s.shape == (1, 2, 4, 112)


def test_a_directory_is_read_and_its_predictor_is_not(tmp_path):
    tensors = draw()
    encoder, params = pretrained.load_encoder(write(tmp_path, tensors), dtype="bfloat16")
    assert encoder == pretrained.make_encoder("vjepa2_tiny", dtype="bfloat16")
    assert_equal(params, tensors)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_half_precision_files_and_those_of_classifiers_are_read_as_float32(tmp_path):
    tensors = {k: t.astype(jax.numpy.bfloat16) for k, t in draw().items()}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    named = {f"vjepa2.encoder.{name}": tensor for name, tensor in tensors.items()}
    save_file(named | {"classifier.bias": np.zeros(2)}, tmp_path / "model.safetensors")
    _, params = pretrained.load_encoder(str(tmp_path))
    assert_equal(params, tensors)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.mark.parametrize("prefix", ["embeddings.", ""])
def test_a_directory_of_version_2_1_is_told_by_its_tensors(tmp_path, prefix):
    tensors = draw()
    norm = {part: tensors.pop(f"layernorm.{part}") for part in ("weight", "bias")}
    extra = {f"norms_block.{i}.{k}": x + (i - 3) for i in range(4) for k, x in norm.items()}
    extra["embeddings.patch_embeddings_img.proj.weight"] = np.zeros((96, 3, 1, 16, 16))
    for modality, value in (("img", 5.0), ("video", 0.5)):
        extra[f"{prefix}{modality}_mod_embed"] = np.full((1, 1, 96), value, np.float32)
    encoder, params = pretrained.load_encoder(write(tmp_path, tensors | extra))
    assert encoder == TINY.clone(**VERSION_2_1)
    tensors |= {f"layernorm.{part}": x for part, x in norm.items()}
    tensors["embeddings.patch_embeddings.proj.bias"] += np.float32(0.5)
    assert_equal(params, tensors)


def test_a_config_of_version_2_1_sets_its_rotary_positions(tmp_path):
    write(tmp_path, draw(), use_rope_interleave=True, interpolate_rope=False)
    assert pretrained.load_encoder(tmp_path)[0] == TINY.clone(tiled=False)


@pytest.mark.parametrize("part", ["target_encoder", "ema_encoder", "encoder"])
def test_a_checkpoint_of_meta_gives_its_moving_average_if_it_has_one(tmp_path, part):
    tensors = draw()
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    parts = {"encoder": meta_names(other), "predictor": {}} | {part: meta_names(tensors)}
    encoder, params = pretrained.load_encoder(
        write_meta(tmp_path / "vitt.pt", **parts), causal=False
    )
    assert encoder == TINY.clone(causal=False)
    assert_equal(params, tensors)


def test_a_checkpoint_of_meta_of_version_2_1_is_told_by_its_tensors(tmp_path):
    tensors = draw()
    metas = meta_names(tensors)
    norm = {part: metas.pop(f"module.backbone.norm.{part}") for part in ("weight", "bias")}
    metas |= {
        f"module.backbone.norms_block.{i}.{k}": x + (i - 3)
        for i in range(4)
        for k, x in norm.items()
    }
    metas["module.backbone.patch_embed_img.proj.weight"] = np.zeros((96, 3, 1, 16, 16))
    metas["module.backbone.video_mod_embed"] = np.full((1, 1, 96), 0.5, np.float32)
    encoder, params = pretrained.load_encoder(write_meta(tmp_path / "vitt.pt", ema_encoder=metas))
    assert encoder == TINY.clone(**VERSION_2_1)
    tensors["embeddings.patch_embeddings.proj.bias"] += np.float32(0.5)
    assert_equal(params, tensors)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"encoder": EfficientNetLite0}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt: not a checkpoint made of plain tensors"):
        pretrained.load_encoder(tmp_path / "evil.pt")


def test_broken_checkpoints_of_meta_say_what_was_expected(tmp_path):
    metas = meta_names(draw())
    with pytest.raises(
        ValueError, match="expected one of the keys target_encoder, ema_encoder, encoder, got"
    ):
        pretrained.load_encoder(write_meta(tmp_path / "a.pt", model=metas))
    with pytest.raises(ValueError, match="got {'width': 0, 'depth': 0, 'mlp': 0}"):
        pretrained.load_encoder(write_meta(tmp_path / "b.pt", encoder={"x": np.zeros(2)}))
    less = {name: tensor for name, tensor in metas.items() if "blocks.1." not in name}
    with pytest.raises(
        ValueError, match=r"sizes tiny, .* got {'width': 96, 'depth': 1, 'mlp': 384}"
    ):
        pretrained.load_encoder(write_meta(tmp_path / "c.pt", encoder=less))
    del metas["module.backbone.norm.bias"]
    with pytest.raises(ValueError, match=r"1 tensors are missing \(layernorm.bias \[96\]\)"):
        pretrained.load_encoder(write_meta(tmp_path / "d.pt", encoder=metas))
    (tmp_path / "e.pt").write_bytes(b"no zip file")
    with pytest.raises(ValueError, match="plain tensors"):
        pretrained.load_encoder(tmp_path / "e.pt")
    with pytest.raises(FileNotFoundError, match=r"f\.pt"):
        pretrained.load_encoder(tmp_path / "f.pt")


def test_without_torch_a_checkpoint_of_meta_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.pt").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torch"):
        pretrained.load_encoder(tmp_path / "a.pt")


def test_missing_misshapen_and_foreign_tensors_are_named(tmp_path):
    tensors = draw()
    del tensors["layer.1.mlp.fc2.bias"]
    tensors["layer.0.norm1.weight"] = np.zeros(7, np.float32)
    tensors["cls_token"] = np.zeros((1, 1, 96), np.float32)
    with pytest.raises(ValueError) as caught:
        pretrained.load_encoder(write(tmp_path, tensors))
    assert "2 tensors are missing (layer.0.norm1.weight [96], layer.1.mlp.fc2.bias [96])" in str(
        caught.value
    )
    assert "2 are unexpected (cls_token [1, 1, 96], layer.0.norm1.weight [7])" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 3}, r"16 tensors are missing \(layer\.2\."),
        ({"mlp_ratio": 2}, r"mlp\.fc1\.bias \[192\]"),
        ({"hidden_act": "relu"}, "hidden_act: expected gelu, got relu"),
        ({"model_type": "vit"}, "got model_type 'vit'"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load_encoder(write(tmp_path, draw(), **config))


def test_a_config_without_sizes_is_refused_and_so_is_a_truncated_file(tmp_path):
    write(tmp_path, draw())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected a complete safetensors file"):
        pretrained.load_encoder(tmp_path)
    write(tmp_path, draw())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vjepa2"}))
    with pytest.raises(ValueError, match="missing: hidden_size, num_attention_heads"):
        pretrained.load_encoder(tmp_path)


def test_an_incomplete_directory_says_which_files_are_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected config\.json and model\.safetensors"):
        pretrained.load_encoder(tmp_path)
    write(tmp_path, draw())
    (tmp_path / "model.safetensors").rename(tmp_path / "other")
    index = {"weight_map": {"encoder.layernorm.bias": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-00001\.safetensors"):
        pretrained.load_encoder(tmp_path)


@pytest.mark.parametrize("name", ["facebook/does-not-exist", "/no/such/directory", "vjepa2_large"])
def test_a_name_that_cannot_be_had_tells_the_way_without_network(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=f"{name}: neither a local directory.*--local-dir DIR"
    ):
        pretrained.load_encoder(name)


@pytest.mark.parametrize(
    "file, text",
    [
        ("config.json", b""),
        ("config.json", b"{'model_type': 1}"),
        ("config.json", b"\xff\xfe\x00"),
        ("config.json", b"[1, 2]"),
        ("config.json", b"null"),
        ("model.safetensors.index.json", b"{"),
        ("model.safetensors.index.json", b"{}"),
        ("model.safetensors.index.json", b'{"weight_map": [1]}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b.safetensors"}}'),
    ],
)
def test_a_damaged_json_file_of_an_encoder_names_itself(file, text, tmp_path):
    folder = write(tmp_path, draw())
    if "index" in file:
        (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(text)
    with pytest.raises(ValueError, match=f"{file}: .*expected .*, got"):
        pretrained.load_encoder(folder)


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = write(tmp_path, draw())
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002.safetensors: expected"):
        pretrained.load_encoder(folder)


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_size", "96"),
        ("num_attention_heads", 0),
        ("num_attention_heads", 5),
        ("num_hidden_layers", -2),
        ("num_hidden_layers", None),
        ("mlp_ratio", []),
        ("patch_size", 16.5),
        ("tubelet_size", True),
    ],
)
def test_a_size_that_is_none_is_named(key, value, tmp_path):
    folder = write(tmp_path, draw(), **{key: value})
    with pytest.raises(ValueError, match="config.json: .*expected .*, got"):
        pretrained.load_encoder(folder)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8"])
def test_weights_of_another_precision_are_refused_by_name(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    folder = write(tmp_path, draw())
    name = "encoder.layer.1.mlp.fc1.weight"
    tensors = {f"encoder.{key}": torch.tensor(x) for key, x in draw().items()}
    tensors[name] = tensors[name].to(getattr(torch, dtype))
    save(tensors, folder / "model.safetensors")
    code = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8": "I8"}[dtype]
    with pytest.raises(ValueError, match=f"{name}: expected one of the dtypes F64, .*, got {code}"):
        pretrained.load_encoder(folder)
    file = tmp_path / "meta.pt"
    torch.save({"encoder": {"patch_embed.proj.weight": tensors[name]}}, file)
    with pytest.raises(ValueError, match=f"patch_embed.proj.weight: expected a floating .*{dtype}"):
        pretrained.load_encoder(file)


def test_a_tilde_in_the_name_of_a_folder_of_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "encoder").mkdir()
    write(tmp_path / "encoder", draw())
    encoder, _ = pretrained.load_encoder("~/encoder")
    assert encoder == TINY

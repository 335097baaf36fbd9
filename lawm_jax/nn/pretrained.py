"""Encoders by name, and public weights as their parameters."""

import json
import pathlib
import re
import zipfile

import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import unflatten_dict

from lawm_jax.data import metadata, paths
from lawm_jax.nn.efficientnet import EfficientNetLite0
from lawm_jax.nn.vjepa2 import SIZES, VERSION_2_1, VJEPA2

EFFICIENTNET = pathlib.Path(__file__).parents[1] / "assets" / "efficientnet_lite0.safetensors"
DECODER = pathlib.Path(__file__).parents[1] / "assets" / "decoder_nano.safetensors"

ENCODERS = {
    "efficientnet_lite0": EfficientNetLite0(),
    "vjepa2_tiny": VJEPA2(**SIZES["tiny"]),
    "vjepa2_large": VJEPA2(**SIZES["large"]),
    "vjepa2_huge": VJEPA2(**SIZES["huge"]),
    "vjepa2_giant": VJEPA2(**SIZES["giant"]),
    "vjepa2.1_base": VJEPA2(**SIZES["base"], **VERSION_2_1),
    "vjepa2.1_large": VJEPA2(**SIZES["large"], **VERSION_2_1),
    "vjepa2.1_giant": VJEPA2(**SIZES["giant"], **VERSION_2_1),
    "vjepa2.1_gigantic": VJEPA2(**SIZES["gigantic"], **VERSION_2_1),
}

# Fields of VJEPA2 -> keys of Hugging Face's config.json.
CONFIG_FIELDS = {
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "depth": "num_hidden_layers",
    "patch": "patch_size",
    "tubelet": "tubelet_size",
}

# Meta's names of tensors -> Hugging Face's, applied in turn.
META_NAMES = (
    (r"^(module\.|backbone\.)+", ""),
    (r"^patch_embed\.", "embeddings.patch_embeddings."),
    (r"^blocks\.", "layer."),
    (r"\.attn\.", ".attention."),
    (r"^norm\.", "layernorm."),
)

# Dtypes of safetensors files that are weights as they are; float8 comes with scales of its own.
DTYPES = ("F64", "F32", "F16", "BF16")

# Meta's checkpoints hold the trained encoder and its moving average (which 2.1 names anew).
META_PARTS = ("target_encoder", "ema_encoder", "encoder")


def make_encoder(name, causal=True, dtype="float32", remat=""):
    """Makes an encoder's recipe.

    Args:
      name: a key of `ENCODERS`.
      causal: whether a state sees no later frame. EfficientNet-Lite0 sees one frame at a time: it
        is causal anyway, and takes none of these options.
      dtype: of matrix products and activations, as a string.
      remat: see `Stack`.

    Returns:
      a frozen Linen module; equal arguments give equal, equally hashed modules.

    Raises:
      ValueError: unknown name.
    """
    if name not in ENCODERS:
        raise ValueError(f"name: expected one of {', '.join(ENCODERS)}, got {name!r}")
    encoder = ENCODERS[name]
    if not isinstance(encoder, VJEPA2):
        return encoder
    return encoder.clone(causal=causal, dtype=jnp.dtype(dtype), remat=remat)


def options_of(encoder):
    """Returns the arguments with which `make_encoder` makes an encoder: a dict."""
    if not isinstance(encoder, VJEPA2):
        return {"name": next(name for name, other in ENCODERS.items() if other == encoder)}
    options = dict(causal=encoder.causal, dtype=jnp.dtype(encoder.dtype).name, remat=encoder.remat)
    name = next(name for name in ENCODERS if make_encoder(name, **options) == encoder)
    return {"name": name} | options


def load_encoder(name_or_dir, causal=True, dtype="float32"):
    """Loads an encoder with its public weights.

    V-JEPA 2.1 is told from 2.0 by its tensors `norms_block.*` and `video_mod_embed`, or by
    `use_rope_interleave` in config.json. Meta published 2.1 as .pt files; directories of 2.1 are
    assumed to be like the community's conversions (transformers 5.23 knows none). Repeated frames
    take 2.1's video branch, as clips do.

    Args:
      name_or_dir: one of
        "embedded" (or "efficientnet_lite0"), the image encoder that comes with the package;
        a directory with config.json and model.safetensors, or its shards and their index;
        a file .pt or .pth from Meta, read with torch, weights_only=True: of its encoders the
        moving average `target_encoder`, as Meta's evaluations do, else `ema_encoder` or `encoder`;
        a Hugging Face name, such as "facebook/vjepa2-vitl-fpc64-256", downloaded once.
      causal, dtype: see `make_encoder`; causal=False is the public model.

    Returns:
      encoder: the recipe.
      params: nested dict of float32 numpy arrays; `encoder.apply({"params": params}, x)`.

    Raises:
      FileNotFoundError: no such file or directory, and no such name or no network.
      ValueError: weights that are not a V-JEPA 2 encoder, or not completely; names the tensors.
      ModuleNotFoundError: a .pt file, without torch.
    """
    name, path = str(name_or_dir), pathlib.Path(paths.expand(name_or_dir))
    if name in ("embedded", "efficientnet_lite0"):
        return efficientnet()
    if path.suffix in (".pt", ".pth"):
        size, tensors = _read_meta(path)
    else:
        size, tensors = _read_hugging_face(path if path.is_dir() else _download(name))
    if any("norms_block." in name or "video_mod_embed" in name for name in tensors):
        size, tensors = VERSION_2_1 | size, _as_version_2_0(tensors)
    encoder = VJEPA2(**size, causal=causal, dtype=jnp.dtype(dtype))
    _check(encoder, tensors, path)
    return encoder, from_hugging_face(tensors, encoder.depth)


def efficientnet(path=EFFICIENTNET):
    """Loads the embedded image encoder: its recipe and params, float32 numpy arrays."""
    return ENCODERS["efficientnet_lite0"], unflatten_dict(_read_safetensors(path), sep="/")


def embedded_decoder(path=DECODER):
    """Returns the options of the embedded encoder's pixel decoder, a config's section `decoder`."""
    with safetensors.safe_open(path, "numpy") as file:
        options = json.loads(file.metadata()["decoder"])
    options.pop("unroll", None)  # networks had it once
    return options


def embedded_decoder_params(path=DECODER):
    """Loads that decoder's params: nested dict of float32 numpy arrays (float16 in the file)."""
    tensors = {name: x.astype(np.float32) for name, x in _read_safetensors(path).items()}
    return unflatten_dict(tensors, sep="/")


def from_hugging_face(tensors, depth):
    """Converts a V-JEPA 2 encoder from Hugging Face's layout; layers are stacked.

    Args:
      tensors: {name without the prefix "encoder.": array}, as `shapes` lists them.
      depth: number of layers.

    Returns:
      params of `VJEPA2`: nested dict of float32 numpy arrays.
    """

    def array(name):
        return np.asarray(tensors[name], np.float32)

    def stack(name):
        return np.stack([array(f"layer.{i}.{name}") for i in range(depth)])

    def dense(name):
        return {"kernel": stack(f"{name}.weight").swapaxes(1, 2), "bias": stack(f"{name}.bias")}

    patch = array("embeddings.patch_embeddings.proj.weight")
    qkv = [dense(f"attention.{part}") for part in ("query", "key", "value")]
    blocks = {
        "qkv": {key: np.stack([part[key] for part in qkv], axis=-2) for key in ("kernel", "bias")},
        "proj": dense("attention.proj"),
        "fc1": dense("mlp.fc1"),
        "fc2": dense("mlp.fc2"),
    }
    for name in ("norm1", "norm2"):
        blocks[name] = {"scale": stack(f"{name}.weight"), "bias": stack(f"{name}.bias")}
    return {
        "embed": {
            "kernel": patch.transpose(2, 3, 4, 1, 0).reshape(-1, len(patch)),
            "bias": array("embeddings.patch_embeddings.proj.bias"),
        },
        "stack": {"blocks": blocks},
        "norm": {"scale": array("layernorm.weight"), "bias": array("layernorm.bias")},
    }


def shapes(encoder):
    """Lists the tensors of a V-JEPA 2 encoder in Hugging Face's layout: {name: shape}."""
    D, M, p = encoder.width, encoder.mlp, encoder.patch
    layer = {"mlp.fc1": (M, D), "mlp.fc2": (D, M), "norm1": (D,), "norm2": (D,)}
    layer |= {f"attention.{part}": (D, D) for part in ("query", "key", "value", "proj")}
    depth = range(encoder.depth)
    weights = {f"layer.{i}.{key}": shape for i in depth for key, shape in layer.items()}
    weights["embeddings.patch_embeddings.proj"] = (D, 3, encoder.tubelet, p, p)
    weights["layernorm"] = (D,)
    biases = {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    return {f"{name}.weight": shape for name, shape in weights.items()} | biases


def _check(encoder, tensors, path):
    """Compares the tensors' names and shapes with what the encoder needs."""
    want = {f"{name} {list(shape)}" for name, shape in shapes(encoder).items()}
    got = {f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()}
    if want != got:
        lack, extra = sorted(want - got), sorted(got - want)
        raise ValueError(
            f"{path}: expected a V-JEPA 2 encoder, width {encoder.width}, depth {encoder.depth}; "
            f"{len(lack)} tensors are missing ({', '.join(lack[:4])}), {len(extra)} do not belong "
            f"({', '.join(extra[:4])})"
        )


def _read_hugging_face(folder):
    """Reads config.json and the encoder's tensors: VJEPA2's size, {name: array}."""
    config, single = folder / "config.json", folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if not config.is_file() or not (single.is_file() or index.is_file()):
        raise FileNotFoundError(
            f"{folder}: expected config.json and {single.name}, or shards of it with {index.name}"
        )
    config = metadata.load(config, "the config of a V-JEPA 2 model")
    shards, tensors = [single], {}
    if not single.is_file():
        listed = metadata.load(index, "an index of shards")
        names = metadata.field(index, listed, "weight_map", "an object").values()
        wrong = [name for name in names if not isinstance(name, str) or "/" in name]
        if wrong or not names:
            raise ValueError(f"{index}: weight_map: expected names of files, got {wrong[:3]}")
        shards = sorted({folder / name for name in names})
    for file in shards:
        tensors |= _read_safetensors(file, r"(?:vjepa2\.)?encoder\.(.+)")
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True, "in_chans": 3}
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"{folder}/config.json: {key}: expected {value}, got {config[key]}")
    lack = [key for key in (*CONFIG_FIELDS.values(), "mlp_ratio") if key not in config]
    if lack or not str(config.get("model_type")).startswith("vjepa2"):
        raise ValueError(
            f"{folder}/config.json: expected that of a V-JEPA 2 model, got model_type "
            f"{config.get('model_type')!r}; missing: {', '.join(lack) or 'nothing'}"
        )
    for key in (*CONFIG_FIELDS.values(), "mlp_ratio"):
        kinds = (int, float) if key == "mlp_ratio" else int
        value = config[key]
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < 2**31:
            raise ValueError(f"{folder}/config.json: {key}: expected a number, got {value!r}")
    size = {field: config[key] for field, key in CONFIG_FIELDS.items()}
    size["mlp"] = int(config["hidden_size"] * config["mlp_ratio"])
    if size["width"] % size["heads"]:
        raise ValueError(
            f"{folder}/config.json: hidden_size: expected a multiple of num_attention_heads, got "
            f"{size['width']} and {size['heads']}"
        )
    if "use_rope_interleave" in config:
        size["tiled"] = not config["use_rope_interleave"]
        size["grid"] = VERSION_2_1["grid"] if config.get("interpolate_rope") else 0
    return size, tensors


def _read_safetensors(file, pattern="(.+)"):
    """Reads the tensors whose names match, named by the pattern's group: {name: array}."""
    if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f"{file}: expected a safetensors file, found none")
    try:
        with safetensors.safe_open(file, "numpy") as f:
            names = {name: re.fullmatch(pattern, name) for name in f.keys()}  # noqa: SIM118
            names = {name: match[1] for name, match in names.items() if match}
            for name in names:
                dtype = f.get_slice(name).get_dtype()
                if dtype not in DTYPES:
                    raise ValueError(
                        f"{file}: {name}: expected one of {', '.join(DTYPES)}, got {dtype}"
                    )
            return {new: f.get_tensor(name) for name, new in names.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error})") from error


def read_torch(file):
    """Reads a file of `torch.save`, and nothing in it but plain tensors and containers of them.

    Args:
      file: path; one of a PyTorch older than 1.6, as torchvision's are, will do.

    Returns:
      What was saved: {name: tensor}, perhaps nested; the tensors on the CPU.

    Raises:
      ModuleNotFoundError: torch is not installed.
      OSError: the file can't be read.
      ValueError: not such a file, or one with other objects.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{file}: to read it, pip install torch") from error
    try:
        mapped = zipfile.is_zipfile(file)  # the older format can't be
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # on other bytes the restricted unpickler fails in many ways
        raise ValueError(f"{file}: not a checkpoint made of plain tensors ({error})") from error


def _read_meta(file):
    """Reads Meta's checkpoint: VJEPA2's size, {Hugging Face's name: array}."""
    parts = read_torch(file)
    key = isinstance(parts, dict) and next((key for key in META_PARTS if key in parts), None)
    if not key or not isinstance(parts[key], dict):
        got = [str(name) for name in list(parts)[:4]] if isinstance(parts, dict) else type(parts)
        raise ValueError(f"{file}: expected one of {', '.join(META_PARTS)}, got {got}")
    tensors = {}
    for name, tensor in parts[key].items():
        dtype = str(getattr(tensor, "dtype", type(tensor))).removeprefix("torch.")
        if dtype not in ("float64", "float32", "float16", "bfloat16"):
            raise ValueError(f"{file}: {name}: expected a floating point tensor, got {dtype}")
        for pattern, new in META_NAMES:
            name = re.sub(pattern, new, name)
        array = tensor.float().numpy()
        if ".attention.qkv." in name:
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                tensors[name.replace("qkv", part)] = rows
        elif name != "pos_embed":  # a relic of V-JEPA 1: positions are rotary
            tensors[name] = array
    return _size(tensors, file), tensors


def _size(tensors, file):
    """Finds the size that the shapes tell; they do not tell the number of heads."""
    patch = tensors.get("embeddings.patch_embeddings.proj.weight", np.zeros((0,) * 5))
    depth = sum(name.endswith(".mlp.fc1.weight") for name in tensors)
    found = {
        "width": len(patch),
        "depth": depth,
        "mlp": len(tensors.get("layer.0.mlp.fc1.bias", [])),
    }
    for size in SIZES.values():
        if found.items() <= size.items():
            *_, tubelet, pixels, _ = patch.shape
            return size | {"patch": pixels, "tubelet": tubelet}
    raise ValueError(f"{file}: expected one of the sizes {', '.join(SIZES)}, got {found}")


def _as_version_2_0(tensors):
    """Gives V-JEPA 2.1's tensors the layout of 2.0's.

    The embedding of the modality "video" is added to the patch embedding's bias; of the norms of
    several depths the last is the output's; what images need goes.
    """
    image = re.compile("patch_embed(dings)?_img|img_mod_embed")
    tensors = {name: tensor for name, tensor in tensors.items() if not image.search(name)}
    bias = "embeddings.patch_embeddings.proj.bias"
    for name in [n for n in tensors if n.endswith("video_mod_embed") and bias in tensors]:
        tensors[bias] = tensors[bias] + tensors.pop(name).reshape(-1)
    for name in sorted(name for name in tensors if name.startswith("norms_block.")):
        tensors[f"layernorm.{name.split('.')[-1]}"] = tensors.pop(name)  # the last one stays
    return tensors


def _download(name):
    """Downloads a model from Hugging Face, or finds it in its cache: its directory."""
    import huggingface_hub

    try:
        patterns = ["config.json", "*.safetensors", "*.safetensors.index.json"]
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # of several libraries: no network, no such name, no access
        raise FileNotFoundError(
            f"{name}: neither a directory here nor a model that Hugging Face would send "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Without network: run "
            f"`hf download {name} --local-dir DIR` where there is one, copy DIR here, and pass "
            "the path of DIR instead of the name"
        ) from error

"""Encoders by name, and loading of public weights."""

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

# Attributes of VJEPA2 -> keys of Hugging Face's config.json.
CONFIG_FIELDS = {
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "depth": "num_hidden_layers",
    "patch": "patch_size",
    "tubelet": "tubelet_size",
}

# Substitutions that turn Meta's tensor names into Hugging Face's, applied in order.
META_NAMES = (
    (r"^(module\.|backbone\.)+", ""),
    (r"^patch_embed\.", "embeddings.patch_embeddings."),
    (r"^blocks\.", "layer."),
    (r"\.attn\.", ".attention."),
    (r"^norm\.", "layernorm."),
)

# Supported dtypes in safetensors files; float8 tensors would need their scales.
DTYPES = ("F64", "F32", "F16", "BF16")

# Meta's checkpoints hold the encoder and its moving average, which has a new name in 2.1.
META_PARTS = ("target_encoder", "ema_encoder", "encoder")


def make_encoder(name, causal=True, dtype="float32", remat=""):
    """Builds an encoder, without its weights.

    Args:
      name: a key of `ENCODERS`.
      causal: whether states do not depend on later frames. EfficientNet-Lite0 ignores this and the
        following options; it processes frames separately and is always causal.
      dtype: of matrix products and activations, as a string.
      remat: see `Stack`.

    Returns:
      A frozen Linen module; equal arguments give equal modules with equal hashes.

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
    """Returns the arguments (a dict) from which `make_encoder` builds an equal encoder."""
    if not isinstance(encoder, VJEPA2):
        return {"name": next(name for name, other in ENCODERS.items() if other == encoder)}
    options = dict(causal=encoder.causal, dtype=jnp.dtype(encoder.dtype).name, remat=encoder.remat)
    name = next(name for name in ENCODERS if make_encoder(name, **options) == encoder)
    return {"name": name} | options


def load_encoder(name_or_dir, causal=True, dtype="float32"):
    """Loads an encoder with its public weights.

    V-JEPA 2.1 is distinguished from 2.0 by the tensors `norms_block.*` and `video_mod_embed`, or by
    `use_rope_interleave` in config.json. Meta published 2.1 as .pt files; a directory with 2.1
    is assumed to be in the format of community conversions (transformers 5.23 does not support it).
    Clips use the video branch of 2.1, also if frames are repeated.

    Args:
      name_or_dir: one of
        "embedded" (or "efficientnet_lite0"), the image encoder that comes with the package;
        a directory with config.json and model.safetensors, or its shards and their index;
        a .pt or .pth file from Meta, read with torch (weights_only=True): its `target_encoder`, the
        moving average that Meta evaluates, if present, else `ema_encoder` or `encoder`;
        a Hugging Face name, e.g. "facebook/vjepa2-vitl-fpc64-256", which is downloaded once.
      causal, dtype: see `make_encoder`; causal=False is the public model.

    Returns:
      encoder: a Linen module.
      params: nested dict of float32 numpy arrays; `encoder.apply({"params": params}, x)`.

    Raises:
      FileNotFoundError: the file, directory or name does not exist, or there is no network.
      ValueError: the weights are not a complete V-JEPA 2 encoder; the message names the tensors.
      ModuleNotFoundError: a .pt file, and torch is not installed.
    """
    name, path = str(name_or_dir), pathlib.Path(paths.expand(name_or_dir))
    if name in ("embedded", "efficientnet_lite0"):
        return efficientnet()
    if path.suffix in (".pt", ".pth"):
        size, tensors = _read_meta(path)
    else:
        size, tensors = _read_hugging_face(path if path.is_dir() else download(name))
    if any("norms_block." in name or "video_mod_embed" in name for name in tensors):
        size, tensors = VERSION_2_1 | size, _as_version_2_0(tensors)
    encoder = VJEPA2(**size, causal=causal, dtype=jnp.dtype(dtype))
    _check(encoder, tensors, path)
    return encoder, from_hugging_face(tensors, encoder.depth)


def efficientnet(path=EFFICIENTNET):
    """Loads the embedded image encoder and its parameters, float32 numpy arrays."""
    return ENCODERS["efficientnet_lite0"], unflatten_dict(_read_safetensors(path), sep="/")


def embedded_decoder():
    """Returns the options of the embedded encoder's decoder, as in a config's `decoder` section."""
    with safetensors.safe_open(DECODER, "numpy") as file:
        options = json.loads(file.metadata()["decoder"])
    options.pop("unroll", None)  # a former option of networks
    return options


def embedded_decoder_params():
    """Loads the embedded decoder's parameters, as float32 (float16 in the file)."""
    tensors = {name: x.astype(np.float32) for name, x in _read_safetensors(DECODER).items()}
    return unflatten_dict(tensors, sep="/")


def from_hugging_face(tensors, depth):
    """Converts a V-JEPA 2 encoder from Hugging Face's layout; stacks the layers.

    Args:
      tensors: {name without the prefix "encoder.": array}, as listed by `shapes`.
      depth: number of layers.

    Returns:
      Parameters of `VJEPA2`: nested dict of float32 numpy arrays.
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
    """Compares the tensors' names and shapes with those of the encoder."""
    expected = {f"{name} {list(shape)}" for name, shape in shapes(encoder).items()}
    got = {f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()}
    if expected != got:
        missing, extra = sorted(expected - got), sorted(got - expected)
        raise ValueError(
            f"{path}: expected a V-JEPA 2 encoder of width {encoder.width} and depth "
            f"{encoder.depth}; {len(missing)} tensors are missing ({', '.join(missing[:4])}), "
            f"{len(extra)} are unexpected ({', '.join(extra[:4])})"
        )


def _read_hugging_face(folder):
    """Reads config.json and the encoder's tensors: options of VJEPA2, {name: array}."""
    config, single = folder / "config.json", folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if not config.is_file() or not (single.is_file() or index.is_file()):
        raise FileNotFoundError(
            f"{folder}: expected config.json and {single.name}, or its shards and {index.name}"
        )
    config = metadata.load(config, "the config of a V-JEPA 2 model")
    shards, tensors = [single], {}
    if not single.is_file():
        listed = metadata.load(index, "an index of shards")
        names = metadata.field(index, listed, "weight_map", "an object").values()
        wrong = [name for name in names if not isinstance(name, str) or "/" in name]
        if wrong or not names:
            raise ValueError(f"{index}: weight_map: expected file names, got {wrong[:3]}")
        shards = sorted({folder / name for name in names})
    for file in shards:
        tensors |= _read_safetensors(file, r"(?:vjepa2\.)?encoder\.(.+)")
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True, "in_chans": 3}
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"{folder}/config.json: {key}: expected {value}, got {config[key]}")
    missing = [key for key in (*CONFIG_FIELDS.values(), "mlp_ratio") if key not in config]
    if missing or not str(config.get("model_type")).startswith("vjepa2"):
        raise ValueError(
            f"{folder}/config.json: expected the config of a V-JEPA 2 model, got model_type "
            f"{config.get('model_type')!r}; missing: {', '.join(missing) or 'nothing'}"
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
    """Reads the tensors whose names match `pattern`, renamed to its first group: {name: array}."""
    if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f"{file}: expected a safetensors file, got none")
    try:
        with safetensors.safe_open(file, "numpy") as f:
            names = {name: re.fullmatch(pattern, name) for name in f.keys()}  # noqa: SIM118
            names = {name: match[1] for name, match in names.items() if match}
            for name in names:
                dtype = f.get_slice(name).get_dtype()
                if dtype not in DTYPES:
                    raise ValueError(
                        f"{file}: {name}: expected one of the dtypes {', '.join(DTYPES)}, got "
                        f"{dtype}"
                    )
            return {new: f.get_tensor(name) for name, new in names.items()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: expected a complete safetensors file ({error})") from error


def read_torch(file):
    """Reads a file written by `torch.save`, accepting only plain tensors and containers of them.

    Args:
      file: path; files written by PyTorch before 1.6, e.g. torchvision's, are supported.

    Returns:
      The saved object: {name: tensor}, possibly nested; the tensors are on the CPU.

    Raises:
      ModuleNotFoundError: torch is not installed.
      OSError: the file cannot be read.
      ValueError: it is not such a file, or it contains other objects.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file}: reading it requires torch: pip install torch"
        ) from error
    try:
        mapped = zipfile.is_zipfile(file)  # the older format cannot be memory-mapped
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # the restricted unpickler raises many types
        raise ValueError(f"{file}: not a checkpoint made of plain tensors ({error})") from error


def _read_meta(file):
    """Reads Meta's checkpoint: options of VJEPA2, {Hugging Face's name: array}."""
    parts = read_torch(file)
    key = isinstance(parts, dict) and next((key for key in META_PARTS if key in parts), None)
    if not key or not isinstance(parts[key], dict):
        got = [str(name) for name in list(parts)[:4]] if isinstance(parts, dict) else type(parts)
        raise ValueError(f"{file}: expected one of the keys {', '.join(META_PARTS)}, got {got}")
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
        elif name != "pos_embed":  # unused in V-JEPA 2, which has rotary positions
            tensors[name] = array
    return _size(tensors, file), tensors


def _size(tensors, file):
    """Returns the published size with these shapes, which do not give the number of heads."""
    patch = tensors.get("embeddings.patch_embeddings.proj.weight", np.zeros((0,) * 5))
    depth = sum(name.endswith(".mlp.fc1.weight") for name in tensors)
    dims = {
        "width": len(patch),
        "depth": depth,
        "mlp": len(tensors.get("layer.0.mlp.fc1.bias", [])),
    }
    for size in SIZES.values():
        if dims.items() <= size.items():
            *_, tubelet, pixels, _ = patch.shape
            return size | {"patch": pixels, "tubelet": tubelet}
    raise ValueError(f"{file}: expected one of the sizes {', '.join(SIZES)}, got {dims}")


def _as_version_2_0(tensors):
    """Converts V-JEPA 2.1's tensors to the layout of 2.0.

    Adds the embedding of the modality "video" to the bias of the patch embedding, uses the last of
    the norms of several depths as the output norm, and removes the image branch.
    """
    image = re.compile("patch_embed(dings)?_img|img_mod_embed")
    tensors = {name: tensor for name, tensor in tensors.items() if not image.search(name)}
    bias = "embeddings.patch_embeddings.proj.bias"
    if bias in tensors:  # otherwise `_check` reports that it is missing
        for name in [name for name in tensors if name.endswith("video_mod_embed")]:
            tensors[bias] = tensors[bias] + tensors.pop(name).reshape(-1)
    for name in sorted(name for name in tensors if name.startswith("norms_block.")):
        tensors[f"layernorm.{name.split('.')[-1]}"] = tensors.pop(name)  # keeps the last one
    return tensors


def download(name):
    """Downloads a model from Hugging Face, unless it is cached; returns its directory."""
    import huggingface_hub

    try:
        patterns = ["config.json", "*.safetensors", "*.safetensors.index.json"]
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # several libraries: no network, unknown name, no access
        raise FileNotFoundError(
            f"{name}: neither a local directory nor a model that can be downloaded from Hugging "
            f"Face ({type(error).__name__}: {str(error).partition(chr(10))[0]}). Without network "
            f"access, run `hf download {name} --local-dir DIR` on another machine, copy DIR here, "
            "and pass the path of DIR instead of the name"
        ) from error

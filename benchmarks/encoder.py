"""Benchmarks video encoding: python -m benchmarks.encoder [--sizes S] [--json FILE].

Compares lawm_jax's V-JEPA 2 encoder with Hugging Face's `VJEPA2Model(skip_predictor=True)`, as
released with PyTorch's attention, and with torch.compile. They alternate in one process on the same
clips and random weights, saved by Hugging Face and loaded by `lawm.load_encoder`; the states must
agree. lawm_jax also runs data parallel, with one JAX device per CPU core, and frame-causal, as in
training. The ratio is that of the fastest non-causal lawm_jax variant to Hugging Face.

  small  ViT-S: width 384, 12 blocks, 4 clips of 16 frames of 128 pixels
  large  ViT-L's width of 1024, 4 of its 24 blocks, 2 clips of 16 frames of 256 pixels
  vitl   ViT-L with all 24 blocks, 8 clips: for a GPU
  tiny   for testing

Both use float32, and bfloat16 on a GPU (not tested). Requires `pip install -e '.[torch]'` and a C++
compiler; takes about 6 minutes on 2 cores.
"""

import os
import tempfile

import numpy as np
from absl import flags

from benchmarks import timing
from lawm_jax.train import command
from lawm_jax.train.flags import define_names, define_output

JSON = define_output("json", "JSON file to append the results to.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of rounds per comparison.", 1)
PROFILE = flags.DEFINE_integer("profile", 0, "Number of longest lawm_jax operations to print.", 0)

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU
F = 16
# width, number of heads, depth, pixels, clips
WORK = {
    "tiny": (96, 4, 2, 32, 2),
    "small": (384, 6, 12, 128, 4),
    "large": (1024, 16, 4, 256, 2),
    "vitl": (1024, 16, 24, 256, 8),
}
SIZES = define_names("sizes", ["small", "large"], [*WORK], "Sizes to measure.")


def public_model(width, heads, depth, pixels):
    """Returns Hugging Face's model with random weights, including biases and norms."""
    import torch
    import transformers

    config = transformers.VJEPA2Config(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=depth,
        mlp_ratio=4,
        crop_size=pixels,
        pred_hidden_size=24,  # the predictor is skipped
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    torch.manual_seed(0)
    model = transformers.VJEPA2Model(config).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.normal_(0.0, 0.1 if x.ndim == 1 else 0.02)
            if x.ndim == 1 and "norm" in name and name.endswith("weight"):
                x.add_(1.0)
    return model


def theirs(model, clips, compiled=False):
    """Returns a function, round -> states, that encodes clips [B, F, H, W, 3] with Hugging Face."""
    import torch

    torch.set_num_threads(timing.cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = model.to(device, dtype)
    video = torch.tensor(np.ascontiguousarray(clips.transpose(0, 1, 4, 2, 3))).to(device, dtype)
    run = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def encode(number):
        return run(video, skip_predictor=True).last_hidden_state.float().cpu().numpy()

    return encode


def ours(folder, clips, devices, causal=False):
    """Returns a function, round -> states, that encodes clips [B, F, H, W, 3] on `devices`."""
    import jax

    import lawm_jax as lawm
    from lawm_jax.train import cpu, sharding

    dtype = "float32" if devices[0].platform == "cpu" else "bfloat16"
    encoder, params = lawm.load_encoder(folder, causal=causal, dtype=dtype)
    mesh = lawm.make_mesh(devices=devices)
    params = jax.device_put(params, sharding.state_sharding(mesh, params))
    video = sharding.place(mesh, {"video": clips})["video"]
    run = jax.jit(lambda params, video: encoder.apply({"params": params}, video))
    run = run.lower(params, video).compile(cpu.options())

    def encode(number):
        s = np.asarray(run(params, video))
        return s.reshape(len(s), -1, s.shape[-1])

    encode.text = run.as_text()
    return encode


def compare(size, rounds, longest):
    """Times all encoders in turn; returns their rows with "clips/s", and the median speeds."""
    import jax

    *shape, pixels, B = WORK[size]
    model = public_model(*shape, pixels)
    clips = np.random.default_rng(0).normal(size=(B, F, pixels, pixels, 3)).astype(np.float32)
    first, everywhere = jax.devices()[:1], jax.devices()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        rows = {"lawm_jax": ours(folder, clips, first)}
        if len(everywhere) > 1 and B % len(everywhere) == 0:
            rows["lawm_jax, a device per core"] = ours(folder, clips, everywhere)
        rows["lawm_jax, frame-causal"] = ours(folder, clips, first, causal=True)
    rows["Hugging Face"] = theirs(model, clips)
    rows["Hugging Face, compiled"] = theirs(model, clips, compiled=True)
    found = timing.in_turn(rows, rounds)
    print(f"{size}: {B} clips of {F} frames of {pixels} pixels, width, heads, depth {shape}")
    expected, speed = found["Hugging Face"]["results"][0], {}
    for name, row in found.items():
        off = np.abs(row.pop("results")[0] - expected).max()
        row["off"] = float(off)
        row["clips/s"] = [B / seconds for seconds in row.pop("seconds")]
        speed[name] = np.median(row["clips/s"])
        print(
            f"  {name:30}{speed[name]:9.3f} clips/s, first call {row['first']:.1f} s, states "
            f"differ by at most {off:.1e}",
            flush=True,
        )
    if longest:
        run = rows["lawm_jax"]
        timing.show(timing.profile(lambda: run(0), run.text), longest)
    return found, speed


def main(argv):
    """Runs all comparisons and prints the results."""
    del argv
    from lawm_jax.train import cpu

    cpu.keep_memory()
    cpu.device_per_core()
    results, headline = timing.about("jax", "torch", "transformers"), []
    for size in SIZES.value:
        results[size], speed = compare(size, ROUNDS.value, PROFILE.value)
        alike = "lawm_jax", "lawm_jax, a device per core"
        best = max(speed[name] for name in alike if name in speed)
        plain, compiled = speed["Hugging Face"], speed["Hugging Face, compiled"]
        headline.append(
            f"{size} {best / plain:.2f} x Hugging Face ({best / compiled:.2f} compiled)"
        )
    timing.save(JSON.value, results)
    print(", ".join(headline))


if __name__ == "__main__":
    command.run(main)

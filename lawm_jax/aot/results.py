"""Formats results for the terminal and stores them, with the versions of the compilers."""

import importlib.metadata
import json
import os
import subprocess

from lawm_jax.data import paths, words

ATTENTION = {
    "cuDNN": "cuDNN, which keeps logits on the chip",
    "splash": "splash attention, which keeps logits on the chip",
    "XLA": "XLA, which writes logits to memory",
}


def versions():
    """Returns the commit and the versions of the compiler packages."""
    installed = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "nvidia-cudnn-cu12"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
    )
    return {"commit": commit.stdout.strip() or None, "versions": installed}


def describe(result):
    """Formats a result for the terminal."""
    memory, chips = result["memory"], result["chips"]
    gib = lambda x: f"{x / 2**30:.2f} GiB"  # noqa: E731
    room = f"the device's {gib(result['room'])}"
    if result["room"] < result["hbm"]:
        share = result["room"] / result["hbm"]
        room = f"the {gib(result['room'])} of JAX's pool ({share:.0%} of {gib(result['hbm'])})"
    each = words.counted(f"{result['batch'] / chips:g}", "clip")
    lines = [
        f"{result['topology']} x {result['slices']}: {chips} chips, mesh {result['mesh']}, batch "
        f"{result['batch']}, {each} per chip"
        + (f", accumulated in {result['accumulate']} parts" if result["accumulate"] > 1 else ""),
        f"work per device and step: {result['flops'] / 1e12:.1f} TFLOP, {result['bytes'] / 1e9:.1f}"
        f" GB, {result['intensity']:.0f} FLOP per byte; {result['model_flops'] / 1e12:.2f} TFLOP "
        "per clip, without rematerialization and the optimizer",
        f"attention: {ATTENTION[result['attention']]}",
    ]
    if memory:
        lines.append(
            f"memory per device: arguments {gib(memory['argument'])}, temporary "
            f"{gib(memory['temp'])}, in total {gib(memory['total'])} of {room}"
        )
    if result["fits"]:
        total = result["batch"] / result["seconds"]
        lines.append(
            f"fits; a step takes at least {result['seconds'] * 1e3:.0f} ms (limited by "
            f"{result['bound']}): {total / chips:.1f} clips/s per chip, {total:.0f} in total"
        )
    else:
        lines.append(
            f"does not fit into {room}: process fewer clips at once (--config.optim.accumulate="
            f"{2 * result['accumulate']}, or a larger power of two, keeps the batch size; "
            f"--batch-per-chip does not) or increase --config.mesh.fsdp. {result.get('error', '')}"
        )
    return "\n".join(lines)


def add(path, result):
    """Appends a result to the list in a JSON file, which is created if missing."""
    rows = json.loads(paths.at(path).read_text()) if os.path.exists(path) else []
    paths.write(path, json.dumps([*rows, result], indent=1))

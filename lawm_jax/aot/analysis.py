"""Compiles a training step ahead of time; determines its memory use and bounds its time."""

import dataclasses
import time

import jax

from lawm_jax import latents
from lawm_jax.aot.flops import count, roofline
from lawm_jax.train import cpu, loop
from lawm_jax.train.step import train_step

# Autotuning needs a GPU, and Triton matrix products of XLA 0.10 fail without it.
KERNELS = {"__cudnn$fmha": "cuDNN", "tpu_custom_call": "splash"}  # calls of fused attention
UNTIMED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def check(config, devices, chip, pool=1.0):
    """Compiles a world model's training step for devices, which may be absent.

    Args:
      config: nested dict, as in configs/lawm.py.
      devices: list of devices, real or from a topology description.
      chip: flops.Chip of one device.
      pool: fraction of the device's memory that a step may use.

    Returns:
      dict: `mesh`, `batch`, `accumulate`, `hbm` (the device's memory), `room` (the part of it that
      a step may use), `fits`, `attention` ("cuDNN" or "splash", kernels that keep the logits on the
      chip, or "XLA"), `memory` in bytes per device (`total` is the sum in use at once; None if the
      compiler ran out of memory), and the entries of `estimate`.

    Raises:
      ValueError: the config is not of a world model, or does not match the devices.
    """
    if "predictor" not in config or latents.make(**config["latent"]).labelled:
        raise ValueError("--config: expected a world model without labels, such as configs/lawm.py")
    run = loop.Run.abstract(config, devices)
    result = {"device": devices[0].device_kind, "mesh": dict(run.mesh.shape), "fits": True}
    result |= {"batch": run.batch["video"].shape[0], "accumulate": run.accumulate}
    lowered = run.lower()
    text = lowered.as_text()
    attention = next((name for call, name in KERNELS.items() if call in text), "XLA")
    result |= {"hbm": chip.memory, "room": pool * chip.memory, "attention": attention}
    result |= estimate(run, chip, attention != "XLA")
    platform, start = devices[0].platform, time.monotonic()
    options = UNTIMED if platform in ("gpu", "cuda") else cpu.options(platform)
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = " ".join(str(error).split())[:400]
        return result | {"fits": False, "memory": None, "error": text}
    usage = compiled.memory_analysis()
    names = "argument", "output", "alias", "temp", "generated_code"
    memory = {name: getattr(usage, f"{name}_size_in_bytes") for name in names}
    memory["peak"] = getattr(usage, "peak_memory_in_bytes", None)
    memory["total"] = sum(memory[name] for name in names) - 2 * memory["alias"]
    result["fits"] = memory["total"] <= result["room"]
    return result | {"memory": memory, "compile_seconds": time.monotonic() - start}


def estimate(run, chip, fused=True):
    """Computes a lower bound on a step's time per device from its FLOPs and memory traffic.

    Args:
      run: loop.Run of a world model.
      chip: flops.Chip of one device.
      fused: whether attention keeps its logits on the chip.

    Returns:
      dict: `flops` and `bytes` per device and step (the device processes its shard of the batch
      with all weights, and reads, updates and writes its shard of the state); `optimiser_flops`, a
      part of `flops`; `model_flops` per clip, without the optimizer and without rematerialization;
      `intensity` in FLOPs per byte; `seconds` per step, and their `bound`, "compute" or "memory";
      `clips` per second and device.
    """
    video = run.batch["video"]
    clips = video.shape[0] // run.mesh.size
    batch = {"video": jax.ShapeDtypeStruct((clips, *video.shape[1:]), video.dtype)}
    nets = {name: getattr(run.model, name) for name in ("inverse", "predictor")}
    nets = {name: net and net.clone(remat="") for name, net in nets.items()}
    plain = dataclasses.replace(run.model, **nets)

    def step(model):
        return lambda *args: train_step(model, run.tx, *args, run.accumulate, run.objective)

    args = run.frozen, run.like, batch
    flops, size = count(step(run.model), *args, fused=fused)
    once, _ = count(step(plain), *args)
    params = run.like["params"]
    update, moved = count(run.tx.update, params, run.like["opt"], params)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, run.like["opt"])))
    fsdp = run.mesh.shape["fsdp"]
    flops = flops - update + update / fsdp
    size = size - moved + (moved + 2 * state) / fsdp
    seconds, bound = roofline(flops, size, chip)
    return {
        "flops": flops,
        "bytes": size,
        "optimiser_flops": update / fsdp,
        "model_flops": (once - update) / clips,
        "intensity": flops / size,
        "seconds": seconds,
        "bound": bound,
        "clips": clips / seconds,
    }

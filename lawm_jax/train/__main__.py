"""Trains a world model, a decoder, a controller or a baseline; rerunning the command resumes a run.

Examples:
  lawm train --config lawm.py:size=nano,latent=noisy --workdir runs/first
  lawm train --config lawm.py --config.data.videos=mini:panda --workdir runs/arm
  lawm train --config controller.py --config.model=runs/arm --workdir runs/arm/controller

Commonly set config fields; each is a flag, as in --config.steps=500:
  --config.data.videos           folder, glob or list of your videos, or another source, KIND:WHERE
  --config.data.mixture.NAME     sampling weight of a data source of the config, such as panda
  --config.data.batch            clips per step, over all devices
  --config.data.workers          number of processes that read video; 0: use threads
  --config.steps                 number of training steps, and length of the learning rate schedule
  --config.seed
  --config.log_every             steps between log lines
  --config.checkpoint_every      steps between checkpoints
  --config.eval_every            steps between evaluations of the held-out loss
  --config.optim.ema             decay of the parameter average (EMA) that is evaluated and saved
  --config.latent.strength       l1 (sparse latents), beta (noisy) or number of codes (discrete)
  --config.encoder.weights       Hugging Face name, folder or file
  --config.optim.accumulate      number of parts into which a batch is split to save memory
  --config.mesh.fsdp             maximum number of devices that the parameters are sharded over
See docs/train.md; for several machines, see launch/README.md.
"""

import shlex
import signal
import sys

from absl import flags

from lawm_jax.train import command
from lawm_jax.train.flags import CONFIGS, define_config

CONFIG = define_config(
    "config",
    None,
    "FILE.py:ARGUMENTS, where FILE.py is your own config or one of lawm.py (size=...,latent=...,"
    "strength=...), controller.py, labelled.py and decoder.py. These list all fields; they are in "
    f"{CONFIGS}.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run folder, local or gs://BUCKET/FOLDER; created if missing."
)
INIT_FROM = flags.DEFINE_string(
    "init_from",
    None,
    "Run or exported model that initializes the parameters of a new run, where shapes match.",
)
PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "Number of steps to trace with the JAX profiler, for xprof, in W/profile.",
    lower_bound=0,
)
flags.mark_flags_as_required(["config", "workdir"])
STOPPED = 128 + signal.SIGTERM


def main(argv):
    """Parses the flags and trains."""
    import jax

    from lawm_jax.train import cpu, distributed, loop

    cpu.keep_memory()
    distributed.start()
    if loop.fit(CONFIG.value, WORKDIR.value, INIT_FROM.value, PROFILE.value) is None:
        sys.exit(STOPPED)
    if CONFIG.value.objective == "world_model" and jax.process_index() == 0:
        evaluate = f"{command.program().removesuffix('train')}evaluate"
        print(f"next: {evaluate} --workdir {shlex.quote(WORKDIR.value)}")


if __name__ == "__main__":
    command.run(main, resumes=True)

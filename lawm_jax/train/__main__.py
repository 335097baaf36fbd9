"""Trains a world model, a decoder, a controller or a baseline; the same command resumes a run.

Examples:
  lawm train --config lawm.py:size=nano,latent=noisy --workdir runs/first
  lawm train --config lawm.py --config.data.videos=mini:panda --workdir runs/arm
  lawm train --config controller.py --config.model=runs/arm --workdir runs/arm/controller

Fields of a config that are often set, each by a flag such as --config.steps=500:
  --config.data.videos           folder, glob or list of your videos, or another source, KIND:WHERE
  --config.data.mixture.NAME     weight of one of the config's data sources, such as panda
  --config.data.batch            clips per step on all devices
  --config.data.workers          processes that read video; 0: threads
  --config.steps                 length of the run, which the learning rate follows
  --config.seed
  --config.log_every             steps between lines of the log
  --config.checkpoint_every      steps between checkpoints
  --config.eval_every            steps between losses on held-out clips
  --config.optim.ema             decay of the average of parameters that is evaluated and saved
  --config.latent.strength       l1 of sparse or beta of noisy latents, or number of codes
  --config.encoder.weights       Hugging Face name, folder or file
  --config.optim.accumulate      parts of a batch, processed in sequence to save memory
  --config.mesh.fsdp             maximum number of devices that the parameters are sharded over
See docs/train.md, and launch/README.md for several machines.
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
    "FILE.py:ARGUMENTS, a file of yours or one of lawm.py (size=...,latent=...,strength=...), "
    f"controller.py, labelled.py and decoder.py, which list all fields, in {CONFIGS}.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, local or gs://BUCKET/FOLDER; created if missing."
)
INIT_FROM = flags.DEFINE_string(
    "init_from", None, "Run or other model from whose parameters a new run starts where they fit."
)
PROFILE = flags.DEFINE_integer(
    "profile", 0, "Number of steps to trace for xprof, in W/profile.", lower_bound=0
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

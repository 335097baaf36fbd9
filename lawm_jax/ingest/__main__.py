"""Converts a data set to records that are fast to read, at the frame rate and size of training.

Examples:
  lawm ingest --source mini:panda --config lawm.py:size=nano --out data/arm
  lawm train --config lawm.py --config.data.videos=records:data/arm --workdir runs/fast
  lawm ingest --source mini:panda --encoder lawm.py:size=nano --out data/states

Running the same command again resumes the conversion. Files that cannot be read are listed in
OUT/report.jsonl, each with the reason. See docs/data.md.
"""

import os

from absl import app, flags

from lawm_jax.train import command
from lawm_jax.train.flags import define_config, define_output, renamed

VIDEOS = flags.DEFINE_string(
    "videos",
    None,
    "Folder, glob or list file of videos. In folders and globs, only files with a video suffix are "
    "read: .mp4, .mov, .avi, .mkv, .webm and more.",
)
SOURCE = flags.DEFINE_string(
    "source", None, "KIND:WHERE, where KIND is droid, recon, lerobot, tfds, webdataset, mini, ..."
)
OUT = define_output("out", "Output folder.", folder=True)
FPS = flags.DEFINE_float("fps", 4.0, "Frames per second.")
SIZE = flags.DEFINE_integer("size", 256, "Side of the center-cropped frames, in pixels.")
RESIZE = flags.DEFINE_integer(
    "resize",
    0,
    "Short side before cropping, in pixels (data.resize); 0: 292/256 of --size, as in training.",
)
FRAMES = flags.DEFINE_integer("frames", 128, "Maximum number of frames per record.")
LEAST = flags.DEFINE_integer("least", 16, "Minimum number of frames per record.")
QUALITY = flags.DEFINE_integer(
    "quality", -1, "JPEG quality; 0 stores raw frames; -1 means 90, or 0 if --size is below 128."
)
HOLDOUT = flags.DEFINE_float(
    "holdout", 0.05, "Fraction of items held out for testing, if the source has no test split."
)
WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Number of reader processes.")
LIMIT = flags.DEFINE_float(
    "limit", 120.0, "Number of seconds without progress after which a file is skipped."
)
PART = flags.DEFINE_string(
    "part",
    "0/1",
    "i/n, with 0 <= i < n: the part that this machine converts if n machines share --out.",
)
CONFIG = define_config("config", None, "Training config that sets --fps, --size and --resize.")
ENCODER = define_config(
    "encoder", None, "Training config of an encoder; its states are stored instead of frames."
)
VALIDATE = flags.DEFINE_bool(
    "validate", False, "Only check that all items can be read, and write OUT/report.jsonl."
)
STATISTICS = flags.DEFINE_bool(
    "statistics", False, "Only compute the action statistics of --source."
)


def main(argv):
    """Parses the flags and ingests the source."""
    if bool(VIDEOS.value) == bool(SOURCE.value):
        raise app.UsageError("expected --videos or --source, and not both")
    from lawm_jax.ingest import plans, run

    source = f"videos:{VIDEOS.value}" if VIDEOS.value else SOURCE.value
    typed = f"--videos {VIDEOS.value}" if VIDEOS.value else f"--source {SOURCE.value}"
    plan = plans.Plan(
        source=source,
        fps=FPS.value,
        size=SIZE.value,
        resize=RESIZE.value,
        frames=FRAMES.value,
        least=LEAST.value,
        quality=QUALITY.value,
        holdout=HOLDOUT.value,
        write=not VALIDATE.value,
    )
    with renamed({f"{source}: ": f"{typed}: "}):
        run.run(
            plan,
            OUT.value,
            given=[flag.name for flag in (FPS, SIZE, RESIZE) if flag.present],
            config=CONFIG.value,
            encoder=ENCODER.value,
            workers=WORKERS.value,
            limit=LIMIT.value,
            part=PART.value,
            only_statistics=STATISTICS.value,
        )


if __name__ == "__main__":
    command.run(main, resumes=True)

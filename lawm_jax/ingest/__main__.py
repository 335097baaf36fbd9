"""Converts any source once, at the rate and size of training, into shards that stream fast.

python -m lawm_jax.ingest --videos /data/web --config lawm.py:size=large --out /data/web256
python -m lawm_jax.train --config lawm.py:size=large --config.data.videos=records:/data/web256 ...

The same command continues an interrupted run. Unreadable files are left out and listed, with the
reason, in OUT/report.jsonl. --validate writes only that report. --encoder stores the states of a
config's frozen encoder instead of frames: training with that encoder reads them in place of video.
--statistics measures the actions of a labeled source, for normalization.
"""

import os

from absl import app, flags, logging

from lawm_jax.data import video
from lawm_jax.train.flags import define_config

VIDEOS = flags.DEFINE_string(
    "videos",
    None,
    "Folder, glob or list file of videos. In folders and globs, only files with these suffixes are "
    f"read: {' '.join(video.SUFFIXES)}.",
)
SOURCE = flags.DEFINE_string(
    "source", None, "KIND:WHERE, where KIND is droid, recon, lerobot, tfds, mini, ..."
)
OUT = flags.DEFINE_string("out", None, "Folder to write to.")
FPS = flags.DEFINE_float("fps", 4.0, "Frames per second.")
SIZE = flags.DEFINE_integer("size", 256, "Side of the center-cropped frames, in pixels.")
RESIZE = flags.DEFINE_integer(
    "resize",
    0,
    "Short side before the crop, in pixels (data.resize); 0: 292/256 of --size, as in training.",
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
    "limit", 120.0, "Seconds without progress after which a file is skipped."
)
PART = flags.DEFINE_string(
    "part", "0/1", "i/n, with 0 <= i < n: the part to make if n machines share --out."
)
CONFIG = define_config("config", None, "Training config that sets --fps, --size and --resize.")
ENCODER = define_config(
    "encoder", None, "Training config whose encoder's states to store instead of frames."
)
VALIDATE = flags.DEFINE_bool(
    "validate", False, "Only check that all items can be read, and write the report."
)
STATISTICS = flags.DEFINE_bool("statistics", False, "Only measure action statistics of --source.")


def main(argv):
    """Parses the flags and ingests the source."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    if bool(VIDEOS.value) == bool(SOURCE.value):
        raise app.UsageError("expected --videos or --source, and not both")
    logging.set_verbosity(logging.WARNING)
    from lawm_jax.ingest import plans, run

    plan = plans.Plan(
        source=f"videos:{VIDEOS.value}" if VIDEOS.value else SOURCE.value,
        fps=FPS.value,
        size=SIZE.value,
        resize=RESIZE.value,
        frames=FRAMES.value,
        least=LEAST.value,
        quality=QUALITY.value,
        holdout=HOLDOUT.value,
        write=not VALIDATE.value,
    )
    try:
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
    except run.Refused as error:
        raise SystemExit(f"--{error}") from None
    except BlockingIOError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    app.run(main)

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
CLIPS = 16  # clips per device and encoder call


def main(argv):
    """Parses the flags and ingests the source."""
    if len(argv) > 1:
        raise app.UsageError(f"expected flags only, got {argv[1:]}")
    if bool(VIDEOS.value) == bool(SOURCE.value):
        raise app.UsageError("expected --videos or --source, and not both")
    logging.set_verbosity(logging.WARNING)
    from lawm_jax.data import paths, records, settings
    from lawm_jax.ingest import shards

    spec = f"videos:{VIDEOS.value}" if VIDEOS.value else SOURCE.value
    fps, size, resize = FPS.value, SIZE.value, RESIZE.value or SIZE.value * 292 // 256
    for flag in (CONFIG, ENCODER):
        twice = [x.name for x in (FPS, SIZE, RESIZE) if flag.value and x.present]
        if twice:
            raise SystemExit(f"--{twice[0]}: expected it or --{flag.name}, which sets it, got both")
        try:
            settings.check(flag.value or {}, per_device=True)
        except ValueError as error:
            raise SystemExit(f"--{flag.name}: {error}") from None
    if CONFIG.value:
        fps, size, resize = (CONFIG.value.data[key] for key in ("fps", "size", "resize"))
    quality = QUALITY.value
    if quality == -1:
        quality = 0 if size < records.RAW_BELOW else 90
    plan = shards.Plan(
        source=spec,
        fps=fps,
        size=size,
        resize=resize,
        frames=FRAMES.value,
        least=min(LEAST.value, FRAMES.value),
        quality=quality,
        holdout=HOLDOUT.value,
        write=not VALIDATE.value,
    )
    part = tuple(int(n) for n in PART.value.split("/") if n.isdecimal())
    if len(part) != 2 or "/".join(map(str, part)) != PART.value:
        raise SystemExit(f"--part: expected i/n with 0 <= i < n, got {PART.value}")
    try:
        shards.check(plan, WORKERS.value, LIMIT.value, part)
    except ValueError as error:
        raise SystemExit(f"--{error}") from None
    if STATISTICS.value:
        _measure(plan)
        return
    if not OUT.value:
        raise SystemExit("--out: expected a folder to write to, got none")
    out = paths.expand(OUT.value)
    encode = None
    if ENCODER.value:
        plan, encode = _encoder(plan, ENCODER.value)
    try:
        info = shards.ingest(
            plan, out, workers=WORKERS.value, limit=LIMIT.value, part=part, encode=encode
        )
    except BlockingIOError as error:
        raise SystemExit(str(error)) from None
    if info is None:
        print(f"{out}: part {PART.value} is done; other parts are not done yet")
        return
    print(_summary(out, info))
    if plan.write and info["total_labelled"]:
        _measure(plan._replace(source=f"records:{out}"), replace=True)


def _summary(out, info):
    text = (
        f"{out}: {info['total_items'] - info['total_bad']} of {info['total_items']} items, "
        f"{info['total_records']} records, {info['total_frames']} frames"
    )
    if info["total_dropped"]:
        text += f", {info['total_dropped']} frames dropped that were too few for a record"
    if info["total_bad"]:
        text += f"; {info['total_bad']} items have problems, see {out}/report.jsonl"
    return text


def _encoder(plan, config):
    """Returns the plan to store states, and a function that converts a shard of clips to states."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from array_record.python import array_record_module

    from lawm_jax import world_model
    from lawm_jax.data import records
    from lawm_jax.train import sharding

    data = config.data
    model, mesh = world_model.build(config), sharding.make_mesh()
    batch = CLIPS * mesh.size
    per_step = 1 if model.repeat else model.encoder.tubelet
    # If states don't depend on other frames, a record may hold many clips.
    frames = max(plan.frames, data.frames) if model.encoder.alone else data.frames
    at_once = max(1, batch * data.frames // frames)  # records
    video = jax.ShapeDtypeStruct((batch, data.frames, data.size, data.size, 3), jnp.uint8)
    params = {"encoder": world_model.init_encoder(model, video)}
    params = jax.device_put(params, sharding.state_sharding(mesh, params))
    encode = jax.jit(lambda params, v: world_model.encode(model, params, v).astype(jnp.bfloat16))

    def convert(clips, states):
        reader = array_record_module.ArrayRecordReader(clips)
        writer = array_record_module.ArrayRecordWriter(states, records.OPTIONS)
        count = reader.num_records()
        for first in range(0, count, at_once):
            some = reader.read(range(first, min(first + at_once, count)))
            stored = [records.unpack(record) for record in some]
            video = np.concatenate([record["video"] for record in stored])
            steps = [len(record["video"]) // per_step for record in stored]
            empty = -len(video) % (batch * data.frames)
            video = np.pad(video, [(0, empty)] + [(0, 0)] * 3)
            video = video.reshape(-1, batch, data.frames, *video.shape[1:])
            placed = (sharding.place(mesh, {"video": part})["video"] for part in video)
            s = np.concatenate([np.asarray(encode(params, part)) for part in placed])
            s = np.split(s.reshape(-1, *s.shape[2:]), np.cumsum(steps))
            for record, states in zip(stored, s, strict=False):
                writer.write(records.with_states(record, states))
        writer.close()

    plan = plan._replace(
        fps=data.fps, size=data.size, resize=data.resize, frames=frames, least=data.frames
    )
    return plan._replace(quality=0, encoder=config.encoder.to_dict()), convert


def _measure(plan, replace=False):
    """Measures the label statistics of a training source, and stores them beside the data."""
    from lawm_jax.data import catalog, statistics
    from lawm_jax.ingest import shards

    source = shards.open_source(plan, "train")
    folder = catalog.parse("source", plan.source).folder
    path = statistics.write(folder, statistics.measure(source, plan.fps), replace=replace)
    print(f"label statistics: {path}")


if __name__ == "__main__":
    app.run(main)

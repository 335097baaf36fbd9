"""Stores the states of a frozen encoder in place of frames."""

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python import array_record_module

from lawm_jax import world_model
from lawm_jax.data import records
from lawm_jax.train import sharding

CLIPS = 16  # clips per device and encoder call


def prepare(plan, config):
    """Prepares an ingest of states.

    Args:
      plan: `plans.Plan` of the same ingest of frames.
      config: training config, whose encoder and view are used.

    Returns:
      The plan to store states, and a function, (path of a shard of raw clips, path of the shard to
      write), that converts a shard of clips to states.
    """
    data = config.data
    model, mesh = world_model.build(config), sharding.make_mesh()
    per_step = 1 if model.repeat else model.encoder.tubelet
    # If states don't depend on other frames, a record may hold many clips.
    frames = max(plan.frames, data.frames) if model.encoder.alone else data.frames
    at_once = max(1, CLIPS * mesh.size * data.frames // frames)  # records
    encode = _make_encode(model, mesh, data)

    def convert(clips, states):
        reader = array_record_module.ArrayRecordReader(clips)
        writer = array_record_module.ArrayRecordWriter(states, records.OPTIONS)
        count = reader.num_records()
        for first in range(0, count, at_once):
            batch = reader.read(range(first, min(first + at_once, count)))
            stored = [records.unpack(record) for record in batch]
            s = encode(np.concatenate([record["video"] for record in stored]))
            steps = [len(record["video"]) // per_step for record in stored]
            for record, part in zip(stored, np.split(s, np.cumsum(steps)), strict=False):
                writer.write(records.with_states(record, part))
        writer.close()

    plan = plan._replace(
        fps=data.fps, size=data.size, resize=data.resize, frames=frames, least=data.frames
    )
    return plan._replace(quality=0, encoder=config.encoder.to_dict()), convert


def _make_encode(model, mesh, data):
    """Returns a function that encodes consecutive clips: frames [F, H, W, 3] -> states [T, N, D].

    The frames are padded to full batches of clips; the states of the padding come last.
    """
    batch = CLIPS * mesh.size
    shape = jax.ShapeDtypeStruct((batch, data.frames, data.size, data.size, 3), jnp.uint8)
    params = {"encoder": world_model.init_encoder(model, shape)}
    params = jax.device_put(params, sharding.state_sharding(mesh, params))
    run = jax.jit(lambda params, v: world_model.encode(model, params, v).astype(jnp.bfloat16))

    def encode(video):
        empty = -len(video) % (batch * data.frames)
        video = np.pad(video, [(0, empty)] + [(0, 0)] * 3)
        video = video.reshape(-1, batch, data.frames, *video.shape[1:])
        placed = (sharding.place(mesh, {"video": part})["video"] for part in video)
        s = np.concatenate([np.asarray(run(params, part)) for part in placed])
        return s.reshape(-1, *s.shape[2:])

    return encode

"""E1: how much of the next state the latent actions explain, on held-out clips.

Source: Garrido et al. 2026, section 5 and Figure 4.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax import metrics, world_model


def held_out(config, name, most=256):
    """Loads the fixed held-out clips of one source.

    Args:
      config: a run's config.
      name: one of `pipeline.names(config)`.
      most: number of videos or episodes at most, evenly spread: all clips are kept in memory.

    Returns:
      video uint8 [n, F, H, W, 3], or states bfloat16 [n, T, N, D] where the source holds those, and
      the episode of each clip, [n] str.

    Raises:
      ValueError: no clip can be read.
    """
    from lawm_jax.data import pipeline

    clips = list(pipeline.episodes(config, name, most=most))
    if not clips:
        raise ValueError(f"{name}: no held-out clip of {config.data.frames} frames can be read")
    key = "states" if "states" in clips[0] else "video"
    return np.stack([c[key] for c in clips]), np.array([str(c["episode"]) for c in clips])


@functools.partial(jax.jit, static_argnums=0)
def one_step(model, params, video):
    """Computes each clip's one-step error with the latents that the inverse model infers.

    Args:
      model, params: of the world model (model is static).
      video: uint8 [B, F, H, W, 3], or its states [B, T, N, D].

    Returns:
      error, copy: [B] mean absolute error over steps, tokens and channels, of the prediction and
      of copying the last state.
    """
    if video.ndim == 4:
        s = video.astype(jnp.float32)
    else:
        s = world_model.encode(model, params, video)
    z, _ = world_model.infer_actions(model, params, s)
    error = jnp.abs(world_model.predict(model, params, s[:, :-1], z) - s[:, 1:])
    return error.mean((1, 2, 3)), jnp.abs(s[:, 1:] - s[:, :-1]).mean((1, 2, 3))


def one_step_errors(model, params, video, batch=8):
    """Computes `one_step` over many clips: [n, F, H, W, 3] -> errors, copying errors, [n] each."""
    results = []
    for i in range(0, len(video), batch):
        part = video[i : i + batch]
        filled = np.concatenate([part, part[-1:].repeat(batch - len(part), 0)])
        results.append([np.asarray(x)[: len(part)] for x in one_step(model, params, filled)])
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def compare(models, video, episodes):
    """Compares models on the same clips.

    Args:
      models: name -> (model, params); the first is the one in question. "deterministic", where
        present, is the lower bound that the paired differences refer to.
      video: uint8 [n, F, H, W, 3].
      episodes: [n], the groups of the bootstrap.

    Returns:
      One dict per row, the first for copying the last state: `name`, `error` (interval),
      `relative` (error / copying), and `paired` (interval of the difference to the deterministic
      model), None for copying and where there is no such model.
    """
    errors = {}
    for name, (model, params) in models.items():
        errors[name], copy = one_step_errors(model, params, video)
    rows = [{"name": "copy last frame", "error": metrics.interval(copy, episodes)}]
    for name, error in errors.items():
        rows.append({"name": name, "error": metrics.interval(error, episodes)})
        if "deterministic" in errors and name != "deterministic":
            rows[-1]["paired"] = metrics.interval(error - errors["deterministic"], episodes)
    for row in rows:
        row["relative"] = row["error"]["mean"] / float(copy.mean())
        row.setdefault("paired", None)
    return rows


def table(results):
    """Writes results (source -> rows of `compare`) as text for a terminal."""
    lines = []
    for source, rows in results.items():
        lines += [f"held-out one-step IDM error, {source} (mean absolute, [95 % interval])"]
        for row in rows:
            text = f"  {row['name']:<18}{_show(row['error'])}   {row['relative']:.3f} of copying"
            if row["paired"]:
                text += f"   minus deterministic: {_show(row['paired'], '+')}"
            lines.append(text)
    return "\n".join(lines)


def _show(x, sign=""):
    if x["low"] is None:
        return f"{x['mean']:{sign}.4f} [one episode: no interval]"
    return f"{x['mean']:{sign}.4f} [{x['low']:{sign}.4f}, {x['high']:{sign}.4f}]"

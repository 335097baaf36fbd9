"""Rotary position embedding over three axes (time, row, column), as in V-JEPA 2."""

import jax.numpy as jnp


def table(steps, tokens, head_dim, *, start=0, tiled=False, grid=0):
    """Computes the cosines and sines for `rotate`.

    The channels of a head are divided into three equal even parts, for time, row and column; the
    remaining channels are not rotated.

    Args:
      steps: T, number of time steps.
      tokens: N, tokens per step, a square grid in row-major order.
      head_dim: channels of one attention head, at least 6.
      start: first time position; may be traced (a cached rollout passes the current step).
      tiled: True for V-JEPA 2.0, which repeats angles as [f0..fn, f0..fn] although pairs are
        interleaved: the two channels of a pair rotate by different angles. False for V-JEPA 2.1
        and our networks, which repeat them as [f0, f0, f1, f1, ...]: a true rotation, so that
        attention depends only on relative positions.
      grid: as in V-JEPA 2.1, scales row and column positions to those of a grid with this side
        (16), for any frame size; 0 does not scale them.

    Returns:
      cos, sin: [T, N, head_dim] float32.

    Raises:
      ValueError: `tokens` is not a square number, or `head_dim` is too small.

    Source: Assran et al. 2025 (V-JEPA 2), section 2.1; Su et al. 2021 for one axis; `grid` from
    facebookresearch/vjepa2, app/vjepa_2_1 (`interpolate_rope`).
    """
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"tokens: expected a square number (frames are square), got {tokens}")
    if head_dim < 6:
        raise ValueError(f"head_dim: expected at least 6 (three axes), got {head_dim}")
    part = 2 * ((head_dim // 3) // 2)
    omega = 10000.0 ** (-jnp.arange(part // 2) / (part / 2))
    stretch = (grid - 1) / max(side - 1, 1) if grid else 1
    cell = jnp.arange(tokens)[None]
    positions = (
        start + jnp.arange(steps)[:, None],
        cell // side * stretch,
        cell % side * stretch,
    )
    angles = []
    for position in positions:
        angle = jnp.broadcast_to(position, (steps, tokens))[..., None] * omega[None, None]
        angles.append(jnp.tile(angle, 2) if tiled else jnp.repeat(angle, 2, axis=-1))
    rest = jnp.zeros((steps, tokens, head_dim - 3 * part))
    angles = jnp.concatenate([*angles, rest], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
    """Rotates interleaved pairs of channels of queries or keys.

    Args:
      x: [B, heads, T, N, head_dim].
      cos, sin: [T, N, head_dim] float32, from `table`.

    Returns:
      [B, heads, T, N, head_dim], in the dtype of x.
    """
    cos, sin = cos[None, None], sin[None, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    swapped = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return (x * cos + swapped * sin).astype(x.dtype)

"""Flow: whether a linear map predicts optical flow from latent actions.

The optical flow of each step, found by block matching, takes the place of real actions, which
unlabeled video does not have. As in `content`, the principal components of the current state are
probed, too: they already predict some motion. Noisy latents are the posterior means.

Source: ours; block matching as in Jain & Jain 1981, "Displacement measurement and its application
in interframe image coding", but by an exhaustive search for the least absolute difference.
"""

import itertools

import numpy as np

from lawm_jax.evaluate import content, metrics, probing, verdicts
from lawm_jax.evaluate.tables import Table, mapping, parts

SIDE = 64  # frames are reduced to about this size before matching
BLOCK, REACH = 8, 5  # pixels of reduced frames: side of a block, largest displacement
NOISE = 1.0  # gray levels by which a displacement must fit better than none
QUANTILES = 10, 50, 90  # percent
NAMES = [f"flow {x}, {y}" for x in "xy" for y in ("mean", *(f"{q}%" for q in QUANTILES))]
MEANS = NAMES[0], NAMES[1 + len(QUANTILES)]


def run(source):
    """Probes the latents of the models of a `context.Source`; None without video."""
    video, episodes = source.clips.video, source.clips.episodes
    if video is None or not source.pairs:
        return None
    frames = video[:, source.per_step - 1 :: source.per_step]  # the last frame of each step
    flow = np.concatenate([measure(frames[i : i + 16]) for i in range(0, len(frames), 16)])
    moving = metrics.interval(flow.any(-1).mean((1, 2, 3)), episodes)
    target, rows = summarize(flow), []
    for name in source.latents:
        z = source.z(name)
        states = source.components(z.shape[2])
        probed = probing.beside_state(z, target, states, episodes, NAMES)
        rows.append({"name": name, "moving": moving, "flow": probed})
    return rows


def measure(frames):
    """Measures the optical flow between consecutive frames, by block matching.

    Args:
      frames: uint8 [n, T, H, W, 3].

    Returns:
      [n, T-1, rows, columns, 2], for each block of the earlier frame by how many pixels of `frames`
      it moves to the right and down. The largest displacement is about a twelfth of the shorter
      side; what moves further, or in or out of the image, is matched wrongly.
    """
    n, T, H, W, _ = frames.shape
    k = max(1, min(H, W) // SIDE)
    h, w = H // k, W // k
    gray = frames[:, :, : h * k, : w * k].mean(-1, dtype=np.float32)
    gray = gray.reshape(n, T, h, k, w, k).mean((3, 5))
    pairs = (x.reshape(-1, h, w) for x in (gray[:, :-1], gray[:, 1:]))
    flow = k * match(*pairs)
    return flow.reshape(n, T - 1, *flow.shape[1:])


def match(a, b):
    """Finds the displacement of each block of images a in images b.

    Args:
      a, b: float32 [m, h, w], gray levels.

    Returns:
      [m, h // BLOCK, w // BLOCK, 2], the displacement to the right and down, at most REACH each,
      with the least mean absolute difference; the shortest of equal ones, and 0 unless it fits
      better than no displacement by at least NOISE.
    """
    m, h, w = a.shape
    rows, columns = h // BLOCK, w // BLOCK
    a = a[:, : rows * BLOCK, : columns * BLOCK]
    b = np.pad(b, ((0, 0), (REACH, REACH), (REACH, REACH)), "edge")
    reach = range(-REACH, REACH + 1)
    moves = sorted(itertools.product(reach, reach), key=lambda move: np.hypot(*move))
    across = np.kron(np.eye(columns), np.ones((BLOCK, 1))).astype(np.float32)  # sums of rows
    best, least = np.zeros((m, rows, columns, 2), int), None
    for x, y in moves:
        moved = b[:, REACH + y :, REACH + x :][:, : rows * BLOCK, : columns * BLOCK]
        cost = (np.abs(a - moved) @ across).reshape(m, rows, BLOCK, columns).sum(2) / BLOCK**2
        if least is None:
            least = cost - NOISE
        better = cost < least
        best[better], least[better] = (x, y), cost[better]
    return best


def summarize(flow):
    """Computes mean and QUANTILES over blocks: [n, T-1, rows, columns, 2] -> [n, T-1, 8], NAMES."""
    flat = flow.reshape(*flow.shape[:2], -1, 2).astype(np.float64)
    values = [flat.mean(2)[None], np.percentile(flat, QUANTILES, axis=2)]
    return np.moveaxis(np.concatenate(values), 0, -1).reshape(*flow.shape[:2], -1)


def tables(rows):
    """Returns the rows of `run` as a list of Table."""
    caption = "linear probe for optical flow"
    return [Table(caption, content.BESIDE, parts(rows, "flow"))]


def judge(rows, name):
    """Judges if latents predict the mean flow (R² above 0.5), and better than the state does."""
    row = verdicts.by_name(rows).get(name)
    probed, results = verdicts.by_name(mapping(row).get("flow")), {}
    for axis, key in zip("xy", MEANS, strict=True):
        r2, added = (verdicts.measured(probed.get(key), x) for x in ("latents", "added"))
        if r2 and added:
            results[axis] = r2, added
    if not results:
        return []

    def predicted(threshold):
        above, extra = verdicts.above, content.LEAST
        return [above(r2, threshold) and above(added, extra) for r2, added in results.values()]

    answer = verdicts.UNDECIDED
    if all(predicted(0.5)):
        answer = verdicts.HOLDS
    elif any(predicted(0)):
        answer = verdicts.PARTLY
    elif all(verdicts.below(added, content.LEAST) for _, added in results.values()):
        answer = verdicts.FAILS
    text = ", ".join(
        f"{axis} {verdicts.short(r2, 2)} ({added['mean']:+.2f} over the state's)"
        for axis, (r2, added) in results.items()
    )
    if moving := verdicts.measured(row, "moving"):
        text += f"; {100 * moving['mean']:.0f}% of the image moves"
    return [verdicts.Verdict("flow", answer, f"R² of the mean flow: {text}", "not measured")]

"""The form `arrays`: parts of many clips, OUT/SOURCE/SPLIT/NNNNN.npz, and OUT/export.json.

No array holds Python objects, so `numpy.load` reads them with its default, allow_pickle=False.
"""

import os

import numpy as np

PART = 2**28  # approximate bytes of a part
ABOUT = {
    "latents": "[n, T-1, A], latent t leads from time step t to t + 1; the mean, for noisy latents",
    "codes": "[n, T-1], the codebook index of each discrete latent",
    "states": "[n, T, N, D], the encoder's states: N tokens per time step",
    "actions": "[n, F-1, U], action f leads from frame f to f + 1",
    "state": "[n, F, k], the recorded state of the robot or vehicle at each frame",
    "episode": "[n], the file or episode of each clip",
    "start": "[n], the first frame of each clip: a step of the episode, or seconds of a video",
}


def write(folder, name, split, batches):
    """Writes the clips of one source and split.

    Args:
      folder: OUT, which exists.
      name, split: the source's name, and "train" or "test".
      batches: iterator of dicts of arrays [n, ...], see `run.inferred`; each of the same keys.

    Returns:
      A dict for export.json: `clips`, `parts` (paths of the files in OUT) and `arrays`, name ->
      shape of one clip and dtype.
    """
    inside = os.path.join(name, split)
    os.makedirs(os.path.join(folder, inside))
    parts, clips, first = [], 0, {}
    for rows in _joined(batches):
        parts.append(os.path.join(inside, f"{len(parts):05d}.npz"))
        np.savez(os.path.join(folder, parts[-1]), **rows)
        clips += len(rows["latents"])
        first = first or rows
    arrays = {
        key: {"shape": list(x.shape[1:]), "dtype": "str" if x.dtype.kind == "U" else str(x.dtype)}
        for key, x in first.items()
    }
    return {"clips": clips, "parts": parts, "arrays": arrays}


def _joined(batches):
    """Joins consecutive batches to parts of about `PART` bytes."""
    waiting, size = [], 0
    for rows in batches:
        waiting.append(rows)
        size += sum(x.nbytes for x in rows.values())
        if size >= PART:
            yield _concatenated(waiting)
            waiting, size = [], 0
    if waiting:
        yield _concatenated(waiting)


def _concatenated(batches):
    return {key: np.concatenate([rows[key] for rows in batches]) for key in batches[0]}

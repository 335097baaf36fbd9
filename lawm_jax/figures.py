"""Pictures of what a model learned. Matplotlib draws; nothing here computes with the model."""

import json

import numpy as np


def read_out(s, video, merge=1, ridge=1.0):
    """Fits a linear read-out from states to pixels: a stand-in for a decoder.

    Every cell of the state's grid, with its eight neighbours, predicts its own patch of pixels.

    Args:
      s: float32 [n, N, D], states of single time steps.
      video: uint8 [n, H, W, 3], their frames.
      merge: how many cells a token holds along each side.
      ridge: weight of the squared coefficients.

    Returns:
      A function from states [..., N, D] to uint8 frames [..., H, W, 3].
    """
    x = _cells(s, merge)
    n, rows, columns, D = x.shape
    H, W = video.shape[1:3]
    h, w = H // rows, W // columns
    y = video.reshape(n, rows, h, columns, w, 3).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(-1, h * w * 3).astype(np.float32)
    mean = y.mean(0)
    x = _neighbours(x)
    gram = x.T @ x + ridge * np.eye(x.shape[1], dtype=np.float32)
    weights = np.linalg.solve(gram, x.T @ (y - mean))

    def frames(s):
        cells = _neighbours(_cells(s.reshape(-1, *s.shape[-2:]), merge))
        out = (cells @ weights + mean).reshape(-1, rows, columns, h, w, 3)
        out = out.transpose(0, 1, 3, 2, 4, 5).reshape(*s.shape[:-2], H, W, 3)
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)

    return frames


def _cells(s, merge):
    """Undoes the merging of tokens: [n, N, D] -> [n, rows, columns, D / merge^2]."""
    n, N, D = s.shape
    side = round(N**0.5)
    s = np.asarray(s, np.float32).reshape(n, side, side, merge, merge, D // merge**2)
    return s.transpose(0, 1, 3, 2, 4, 5).reshape(n, side * merge, side * merge, -1)


def _neighbours(x):
    """Joins each cell with those around it: [n, rows, columns, D] -> [n * rows * columns, 9 D]."""
    n, rows, columns, D = x.shape
    if D > 256:  # wide tokens say enough alone
        return x.reshape(-1, D)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifts = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return np.concatenate(shifts, axis=-1).reshape(-1, 9 * D)


def strips(path, title, rows, first=0):
    """Draws rows of frames under each other.

    Args:
      path: of the PNG.
      title: above the picture.
      rows: label -> uint8 [T, H, W, 3], or None for a gap; rows may differ in T.
      first: number of the first column.
    """
    plt = _pyplot()
    T = max(len(frames) for frames in rows.values() if frames is not None)
    figure, axes = plt.subplots(
        len(rows), T, figsize=(1.25 * T + 1.5, 1.3 * len(rows) + 0.5), squeeze=False
    )
    for line, (label, frames) in zip(axes, rows.items(), strict=True):
        for t, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if t < len(frames):
                axis.imshow(frames[t])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for t, axis in enumerate(axes[0]):
        axis.set_title(f"step {first + t}", fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def loss_curve(path, runs):
    """Draws training error, relative to copying the last frame, against steps.

    Args:
      path: of the PNG.
      runs: name -> lines of metrics.jsonl, as dicts with `step`, `error`, `copy`.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for name, lines in runs.items():
        steps = [line["step"] for line in lines]
        axis.plot(steps, [line["error"] / line["copy"] for line in lines], label=name)
    axis.axhline(1, color="grey", linestyle=":", label="copy last frame")
    axis.set(xlabel="step", ylabel="training error / copying")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def read_metrics(path):
    """Reads metrics.jsonl: a list of dicts, one per logged step."""
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot

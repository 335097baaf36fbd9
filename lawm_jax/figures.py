"""Pictures of what a model learned. Matplotlib draws; nothing here computes with the model."""

import json

import numpy as np


def read_out(s, video, merge=1, ridge=0.1):
    """Fits a linear read-out from changes of states to changes of pixels.

    It stands in for a decoder: each cell of the grid, with its eight neighbours, tells how its own
    patch of pixels differs from the clip's first frame. What does not change stays sharp.

    Args:
      s: float32 [n, T, N, D], states of clips.
      video: uint8 [n, T, H, W, 3], one frame per step.
      merge: how many cells a token holds along each side.
      ridge: weight of the squared coefficients, relative to the mean square of the features.

    Returns:
      A function of states [T, N, D] and the true frame of the first of them, uint8 [H, W, 3], that
      gives uint8 [T, H, W, 3].
    """
    H, W = video.shape[2:4]
    x = _features(s[:, 1:] - s[:, :1], merge)
    n, rows, columns, width = x.shape
    h, w = H // rows, W // columns
    y = video[:, 1:].astype(np.float32) - video[:, :1].astype(np.float32)
    y = y.reshape(n, rows, h, columns, w, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, h * w * 3)
    x = x.reshape(-1, width)
    gram = x.T @ x
    gram += ridge * np.trace(gram) / width * np.eye(width, dtype=np.float32)
    weights = np.linalg.solve(gram, x.T @ y)

    def frames(s, first):
        change = _features(s - s[:1], merge) @ weights
        change = change.reshape(-1, rows, columns, h, w, 3).transpose(0, 1, 3, 2, 4, 5)
        frames = first.astype(np.float32)[None] + change.reshape(-1, H, W, 3)
        return np.clip(np.rint(frames), 0, 255).astype(np.uint8)

    return frames


def _features(s, merge):
    """Lays out states as cells with their neighbours: [..., N, D] -> [n, rows, columns, 9 d]."""
    side, D = round(s.shape[-2] ** 0.5), s.shape[-1] // merge**2
    x = np.asarray(s, np.float32).reshape(-1, side, side, merge, merge, D)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * merge, side * merge, D)
    if D > 256:  # wide tokens say enough alone
        return x
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifts = [padded[:, i:, j:][:, : x.shape[1], : x.shape[2]] for i in range(3) for j in range(3)]
    return np.concatenate(shifts, axis=-1)


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

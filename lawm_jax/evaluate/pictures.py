"""Pictures of what a model does, to look at: rollouts, transferred actions, cycles, scene cuts.

Source: Garrido et al. 2026, section 5 and Figures 5 to 9.
"""

import os

import numpy as np

from lawm_jax.evaluate import transfer
from lawm_jax.report import figures


def draw(folder, name, models, clips, pixels, merge, stitched=None, s_cut=None, fps=4.0):
    """Draws one source's pictures, each as a PNG of frames and as a film.

    Args:
      folder: to write KIND_NAME.png and .mp4 to.
      name: of the source.
      models: label -> Batched; the first one's actions are transferred.
      clips: `Clips` with video.
      pixels: `Pixels`, whose decoder paints.
      merge: of the world model's tokens.
      stitched, s_cut: video uint8 [n, F, H, W, 3] and states [n, T, N, D] with a cut in the middle;
        None where there are too few episodes, then there is no picture of cuts and of locality.
      fps: time steps per second.
    """
    lead, other = choose(clips)
    pair = clips.s[[lead, other]]
    step = pixels.per_step
    shown = lambda video: video[:, step - 1 :: step]  # noqa: E731  (a step shows its last frame)
    paint = lambda s: shown(pixels.decode(s))  # noqa: E731
    video = shown(clips.video[[lead, other]])
    rolled, label = {}, next(iter(models))
    for key, model in models.items():
        z = model.infer(pair[[0, 0]])
        rolled[key] = np.concatenate([pair[:, :1], model.rollout(pair[:, :1], z)], 1)
    painted = {key: paint(s) for key, s in rolled.items()}
    sheet = lambda kind, title, rows: _write(folder, f"{kind}_{name}", title, rows, fps)  # noqa: E731
    sheet(
        "rollout",
        f"{name}: rollout from step 0 with inferred actions",
        {"video": video[0], "its states, decoded": paint(pair[:1])[0]}
        | {key: frames[0] for key, frames in painted.items()},
    )
    sheet(
        "transfer",
        f"{name}: the actions of one clip, transferred to another ({label})",
        {
            "source": video[0],
            "target, as it was": video[1],
            "target, source's actions": painted[label][1],
        },
    )
    model = models[label]
    back = model.rollout(pair[:1, :1], model.infer(rolled[label][1:]))
    back = np.concatenate([pair[:1, :1], back], 1)
    sheet(
        "cycle",
        f"{name}: actions from A to B and back ({label})",
        {
            "A": video[0],
            "A, its own actions": painted[label][0],
            "B, actions of A": painted[label][1],
            "A, actions read off B": paint(back)[0],
        },
    )
    if stitched is None:
        return
    s = s_cut[lead : lead + 1]
    guess = {key: model.predict(s[:, :-1], model.infer(s)) for key, model in models.items()}
    guess = {key: np.concatenate([s[:, :1], x], 1) for key, x in guess.items()}
    sheet(
        "cut",
        f"{name}: each step predicted from the true past, over a scene cut",
        {"video": shown(stitched[lead : lead + 1])[0], "its states, decoded": paint(s)[0]}
        | {key: paint(x)[0] for key, x in guess.items()},
    )
    found = transfer.example(clips.s, clips.episodes, merge)
    if found:
        rows = _locality(found, models[label], clips, paint, shown, merge)
        title = f"{name}: where an action moves something, red ({label})"
        columns = "before", "after", "change"
        figures.strips(os.path.join(folder, f"locality_{name}.png"), title, rows, columns)


def _locality(found, model, clips, paint, shown, merge):
    """Draws where a source moves, and where its action changes the prediction of a target."""
    clip, t, other, _ = found
    pair = clips.s[[clip, other]][:, t : t + 2]
    z = model.infer(pair[:1])
    guess = np.concatenate([pair[1:, :1], model.predict(pair[1:, :1], z)], 1)
    video = shown(clips.video[[clip, other]])[:, t : t + 2]
    painted = paint(guess)[0]
    change = lambda s: np.abs(transfer.cells(s[1] - s[0], merge)).mean(-1)  # noqa: E731
    return {
        "source": np.stack([*video[0], _heat(video[0, 0], change(pair[0]))]),
        "target, predicted": np.stack(
            [video[1, 0], painted[1], _heat(video[1, 0], change(guess[0]))]
        ),
    }


def _heat(frame, change):
    """Reddens a frame uint8 [H, W, 3] where a map [rows, columns] is high."""
    change = np.clip(change - np.median(change), 0, None)
    change = change / max(change.max(), 1e-9)
    rows, columns = (size // n for size, n in zip(frame.shape[:2], change.shape, strict=True))
    share = 0.7 * change.repeat(rows, 0).repeat(columns, 1)[..., None]
    return np.rint((1 - share) * frame + share * np.array([255, 0, 0])).astype(np.uint8)


def choose(clips):
    """Chooses a lively clip to lead, and one of another episode: their numbers."""
    first = np.unique(clips.episodes, return_index=True)[1][:8]
    lead = first[np.abs(np.diff(clips.s[first], axis=1)).mean((1, 2, 3)).argmax()]
    return int(lead), int(first[(list(first).index(lead) + 1) % len(first)])


def _write(folder, stem, title, rows, fps):
    path = os.path.join(folder, stem)
    figures.strips(f"{path}.png", title, rows)
    figures.movie(f"{path}.mp4", rows, fps)

"""Distractors: whether latents stay the same if something moves that no action explains.

Held-out clips are changed in three ways. Moving background: the still part of a clip, except for a
margin around what moves, is replaced by a clip of another episode. Camera shake: each frame is
shifted by a few pixels at random. Color drift: the gain of each channel changes steadily. Nothing
is trained on such clips: a linear probe of real actions is fitted to the latents of unchanged clips
and tested on those of changed clips of other episodes; and the latents of changed clips replace the
clip's own in the cycle of `transfer`, in unchanged scenes.

The background is masked in, not blended, so that an action looks the same with and without it. It
therefore tests nothing where everything moves, as with a moving camera.

Principal components of the change from state to state stand for latents, of as many dimensions,
that encode everything that changes. Noisy latents are the posterior means.

Source: ours; the distractors are those of Stone et al. 2021, "The Distracting Control Suite".
"""

import numpy as np
import scipy.ndimage

from lawm_jax.evaluate import cycle, leakage, metrics, probing, row_names, verdicts
from lawm_jax.evaluate.tables import Column, by_metric, listed, mapping

BACKGROUND, SHAKE, DRIFT = "moving background", "camera shake", "color drift"
LEVELS = 16  # pixels that change by more, of 256 levels, move
MARGIN = 1 / 32  # share of the image side that is kept around what moves
LEAST = 0.25  # share of the image that must be still for a moving background
SHIFT = 1 / 32  # maximum shift of a frame, as a share of the image height
GAIN = 0.3  # maximum logarithm of a channel's gain in the last frame
COLUMNS = (
    Column("R² of unchanged clips", "clean", 2, "higher"),
    Column("R² of changed clips", "r2", 2, "higher"),
    Column("share lost", "lost", 2, "lower"),
    Column("lost in the cycle", "cycle", 2, "lower"),
)


def run(source):
    """Distracts the models of a `context.Source` that infer latents."""
    if not source.pairs or not source.latents:
        return None
    video, episodes = source.clips.video, source.clips.episodes
    if video is None:
        print(f"{source.name}: skipping distractors, which require video")
        return None
    swapped, share = background(video, episodes)
    kinds = {BACKGROUND: lambda: swapped, SHAKE: lambda: shake(video), DRIFT: lambda: drift(video)}
    if share < LEAST:
        print(
            f"{source.name}: skipping the moving background of distractors, since only "
            f"{100 * share:.0f}% of the image is still"
        )
        del kinds[BACKGROUND]
    cycles = {name: Cycle(source.models[name], source.clips.s, episodes) for name in source.latents}
    return [
        row | {"metric": kind}
        for kind, change in kinds.items()
        for row in distract(source, source.encode(change()), cycles)
    ]


def distract(source, s, cycles):
    """Compares the latents of the changed clips, with states s, with those of the source's clips.

    Args:
      source: context.Source.
      s: [n, T, N, D].
      cycles: name of a model -> Cycle.

    Returns:
      One dict per row: `name`, the results of `probed` if real actions are known, and `cycle`, the
      result of `Cycle.lost`.
    """
    latents = {name: (source.z(name), source.models[name].infer(s)) for name in cycles}
    u, episodes, rows = source.clips.actions, source.clips.episodes, []
    if u is not None:
        u = probing.align(u, s.shape[1])
        width = next(iter(latents.values()))[0].shape[2]
        latents[row_names.CHANGE] = changes(source.clips.s, s, width)
    for name, (clean, changed) in latents.items():
        row = {"name": name} | (probed(clean, changed, u, episodes) if u is not None else {})
        row["cycle"] = cycles[name].lost(changed) if name in cycles else None
        rows.append(row)
    return rows


def changes(clean, changed, width):
    """Projects changes of states to their principal components, which are fitted to clean clips.

    Args:
      clean, changed: [n, T, N, D], states.
      width: number of components.

    Returns:
      Two arrays [n, T-1, width].
    """
    # The last step, which `probing` leaves out, has no change.
    change = [np.concatenate([np.diff(s, axis=1), 0 * s[:, -1:]], 1) for s in (clean, changed)]
    project = probing.principal(probing.take(change[0], np.arange(len(clean))), width)
    return [project(x) for x in change]


def probed(clean, changed, u, episodes):
    """Probes latents of changed clips with a linear map that is fitted to those of clean clips.

    Args:
      clean, changed: [n, T-1, A], latents of the same clips, unchanged and changed.
      u: [n, T-1, U] real actions, aligned.
      episodes: [n] str; the probe is fitted to one half of them and tested on the other.

    Returns:
      dict of intervals, which are None if no action varies:
        clean, r2: mean R² over the actions, on clean and on changed clips.
        lost: (clean - r2) / clean, clip by clip; None if the interval of `clean` does not lie above
          0.
    """
    before, spread = probing.errors([clean, clean], u, episodes)
    after, _ = probing.errors([clean, clean], u, episodes, [changed, changed])
    varies = spread.any(0)
    if not varies.any():
        return dict.fromkeys(("clean", "r2", "lost"))
    before, after, spread = (
        x[:, varies] / spread[:, varies].mean(0) for x in (before, after, spread)
    )
    before, after, spread = before.mean(1), after.mean(1), spread.mean(1)
    result = {"clean": metrics.ratio(spread - before, spread, episodes)}
    result |= {"r2": metrics.ratio(spread - after, spread, episodes), "lost": None}
    if verdicts.above(result["clean"], 0):
        result["lost"] = metrics.ratio(after - before, spread - before, episodes)
    return result


class Cycle:
    """Measures what latents lose in the cycle of `transfer`, relative to the clips' own latents."""

    def __init__(self, model, s, episodes):
        """Measures the errors with the clips' own latents and with those of a third clip.

        Args:
          model: Batched.
          s: [n, T, N, D], states.
          episodes: [n] str, from at least 3 episodes.
        """
        self.model, self.s, self.episodes = model, s, episodes
        self.other, third = leakage.partners(episodes, 2)
        z = model.infer(s)
        self.original, shuffled = self.error(z), self.error(z[third])
        self.gain, self.cycled = shuffled - self.original, self.after(z)

    def error(self, z):
        """Computes the error of open-loop rollouts of latents z [n, T-1, A]: [n]."""
        return leakage.latent_l1(self.model.rollout(self.s[:, :1], z), self.s[:, 1:])

    def after(self, z):
        """Computes that error after latents were transferred to another clip and inferred again."""
        return self.error(cycle.transferred(self.model, self.s[self.other, :1], z))

    def lost(self, z):
        """Computes how much more is lost in the cycle with latents z than with the clips' own.

        Returns:
          Interval of (error after the cycle with z - with the clips' own latents) / (error with a
          third clip's latents - with the clips' own, without a cycle); None if the latents have no
          effect, see `cycle.measure`.
        """
        gain = metrics.interval(self.gain, self.episodes)
        if not verdicts.above(gain, cycle.NOTHING * self.original.mean()):
            return None
        return metrics.ratio(self.after(z) - self.cycled, self.gain, self.episodes)


def background(video, episodes):
    """Shows clips of other episodes where nothing moves in a clip.

    Args:
      video: uint8 [n, F, H, W, 3].
      episodes: [n] str.

    Returns:
      Changed clips like `video`, and the mean share of the image that is replaced.
    """
    other, changed, share = leakage.partners(episodes, 1)[0], np.empty_like(video), []
    margin = 2 * round(MARGIN * video.shape[2]) + 1
    for i, clip in enumerate(video):
        moves = np.ptp(clip, axis=0).max(-1) > LEVELS
        still = ~scipy.ndimage.maximum_filter(moves, margin)
        changed[i] = np.where(still[..., None], video[other[i]], clip)
        share.append(still.mean())
    return changed, float(np.mean(share))


def shake(video):
    """Shifts each frame of video [n, F, H, W, 3] at random; borders repeat the outermost pixels."""
    n, F, H, W, _ = video.shape
    most, shaken = max(1, round(SHIFT * H)), np.empty_like(video)
    shifts = np.random.default_rng(0).integers(0, 2 * most + 1, (n, F, 2))
    pads = [(most, most), (most, most), (0, 0)]
    for i in range(n):
        for t, (y, x) in enumerate(shifts[i]):
            shaken[i, t] = np.pad(video[i, t], pads, "edge")[y : y + H, x : x + W]
    return shaken


def drift(video):
    """Changes the gain of each channel of video [n, F, H, W, 3] steadily, from 1 on."""
    n, F = video.shape[:2]
    last = np.random.default_rng(0).uniform(-GAIN, GAIN, (n, 1, 3))
    gains = np.exp(last * np.linspace(0, 1, F)[:, None])[:, :, None, None]
    return np.stack(
        [
            np.clip(np.rint(x * gain), 0, 255).astype(np.uint8)
            for x, gain in zip(video, gains, strict=True)
        ]
    )


def tables(rows):
    """Returns the rows of `run` as a list of Table, one per distractor."""
    return by_metric("with distractors", COLUMNS, rows)


def judge(rows, name):
    """Judges whether latents keep more than half of their information, with every distractor."""
    rows = [row for row in map(mapping, listed(rows)) if row.get("name") == name]
    parts, good, bad = [], [], []
    for row in rows:
        losses = {"of R²": "lost", "in the cycle": "cycle"}
        losses = {kind: verdicts.measured(row, key) for kind, key in losses.items()}
        losses = {kind: x for kind, x in losses.items() if x}
        if losses:
            values = " and ".join(f"{x['mean']:.2f} {kind}" for kind, x in losses.items())
            parts.append(f"{row.get('metric')} {values}")
            good.append(all(verdicts.below(x, 0.5) for x in losses.values()))
            bad.append(any(verdicts.above(x, 0.5) for x in losses.values()))
    if not rows:
        return []
    answer = verdicts.overall(good, fails=bool(bad) and all(bad))
    text = f"share lost: {', '.join(parts)}"
    if not parts:
        text = "no loss to measure: latents have no R² and no effect"
    return [verdicts.Verdict("distractors", answer, text, "not measured")]

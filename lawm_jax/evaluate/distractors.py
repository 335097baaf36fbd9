"""Distractors: whether latents stay the same if something moves that no action explains.

Held-out clips are changed in three ways. Moving background: where nothing moves in a clip, it shows
a clip of another episode; what moves in it, and a margin around it, stays as it was. Camera shake:
each frame is shifted by a few pixels at random. Color drift: the gain of each channel changes
steadily. Nothing is trained on such clips: a linear probe of real actions is fitted to the latents
of unchanged clips and tested on those of changed ones, of other episodes; and the latents of
changed clips take the place of the clip's own in the cycle of `transfer`, in unchanged scenes.

The background is masked in, not blended, so that an action looks the same with and without it;
hence it asks nothing where everything moves, as before a moving camera.

Principal components of the change from state to state are what latents of equally many dimensions
would be that encode whatever changes. Noisy latents are the posterior means.

Source: ours; the distractors are those of Stone et al. 2021, "The Distracting Control Suite".
"""

import numpy as np
import scipy.ndimage

from lawm_jax.evaluate import cycle, leakage, metrics, probing, row_names, verdicts
from lawm_jax.evaluate.tables import Column, by_metric, listed, mapping

BACKGROUND, SHAKE, DRIFT = "moving background", "camera shake", "color drift"
LEVELS = 16  # pixels that change by more, of 256 levels, move
MARGIN = 1 / 32  # of the image, kept around what moves
LEAST = 0.25  # share of the image that must be still for a moving background
SHIFT = 1 / 32  # of the image, by which a frame is shifted at most
GAIN = 0.3  # logarithm of a channel's gain in the last frame, at most
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
    shown, share = background(video, episodes)
    made = {BACKGROUND: lambda: shown, SHAKE: lambda: shake(video), DRIFT: lambda: drift(video)}
    if share < LEAST:
        print(
            f"{source.name}: skipping a moving background in distractors, since only "
            f"{100 * share:.0f} % of the image is still"
        )
        del made[BACKGROUND]
    cycles = {name: Cycle(source.models[name], source.clips.s, episodes) for name in source.latents}
    return [
        row | {"metric": kind}
        for kind, change in made.items()
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
    moved = [np.concatenate([np.diff(s, axis=1), 0 * s[:, -1:]], 1) for s in (clean, changed)]
    project = probing.principal(probing.some(moved[0], np.arange(len(clean))), width)
    return [project(x) for x in moved]


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
    varied = spread.any(0)
    if not varied.any():
        return dict.fromkeys(("clean", "r2", "lost"))
    before, after, spread = (
        x[:, varied] / spread[:, varied].mean(0) for x in (before, after, spread)
    )
    before, after, spread = before.mean(1), after.mean(1), spread.mean(1)
    found = {"clean": metrics.ratio(spread - before, spread, episodes)}
    found |= {"r2": metrics.ratio(spread - after, spread, episodes), "lost": None}
    if verdicts.above(found["clean"], 0):
        found["lost"] = metrics.ratio(after - before, spread - before, episodes)
    return found


class Cycle:
    """Measures what latents lose in the cycle of `transfer`, relative to the clips' own latents."""

    def __init__(self, model, s, episodes):
        """Measures the errors with the own latents and those of a third clip.

        Args:
          model: Batched.
          s: [n, T, N, D], states.
          episodes: [n] str, from at least 3 episodes.
        """
        self.model, self.s, self.episodes = model, s, episodes
        self.other, third = leakage.partners(episodes, 2)
        z = model.infer(s)
        self.original, shuffled = self.error(z), self.error(z[third])
        self.gain, self.own = shuffled - self.original, self.after(z)

    def error(self, z):
        """Computes the error of open-loop rollouts of latents z [n, T-1, A]: [n]."""
        return leakage.latent_l1(self.model.rollout(self.s[:, :1], z), self.s[:, 1:])

    def after(self, z):
        """Computes that error after latents were transferred to another clip and inferred again."""
        return self.error(cycle.transferred(self.model, self.s[self.other, :1], z))

    def lost(self, z):
        """Computes how much more is lost in the cycle with latents z than with the clips' own.

        Returns:
          Interval of (error after the cycle with z - with own latents) / (error of a third clip's
          latents - of own latents, without a cycle); None if the latents have no effect, see
          `cycle.measure`.
        """
        gain = metrics.interval(self.gain, self.episodes)
        if not verdicts.above(gain, cycle.NOTHING * self.original.mean()):
            return None
        return metrics.ratio(self.after(z) - self.own, self.gain, self.episodes)


def background(video, episodes):
    """Shows clips of other episodes where nothing moves in a clip.

    Args:
      video: uint8 [n, F, H, W, 3].
      episodes: [n] str.

    Returns:
      Changed clips like `video`, and the mean share of the image that is replaced.
    """
    other, shown, share = leakage.partners(episodes, 1)[0], np.empty_like(video), []
    margin = 2 * round(MARGIN * video.shape[2]) + 1
    for i, clip in enumerate(video):
        moves = np.ptp(clip, axis=0).max(-1) > LEVELS
        still = ~scipy.ndimage.maximum_filter(moves, margin)
        shown[i] = np.where(still[..., None], video[other[i]], clip)
        share.append(still.mean())
    return shown, float(np.mean(share))


def shake(video):
    """Shifts each frame of video [n, F, H, W, 3] at random; borders repeat the outermost pixels."""
    n, F, H, W, _ = video.shape
    most, shown = max(1, round(SHIFT * H)), np.empty_like(video)
    shifts = np.random.default_rng(0).integers(0, 2 * most + 1, (n, F, 2))
    around = [(most, most), (most, most), (0, 0)]
    for i in range(n):
        for t, (y, x) in enumerate(shifts[i]):
            shown[i, t] = np.pad(video[i, t], around, "edge")[y : y + H, x : x + W]
    return shown


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
    """Judges whether latents keep more than half of what they tell, with every distractor."""
    rows = [row for row in map(mapping, listed(rows)) if row.get("name") == name]
    told, good, bad = [], [], []
    for row in rows:
        lost = {"of R²": "lost", "in the cycle": "cycle"}
        lost = {what: verdicts.measured(row, key) for what, key in lost.items()}
        lost = {what: x for what, x in lost.items() if x}
        if lost:
            shown = " and ".join(f"{x['mean']:.2f} {what}" for what, x in lost.items())
            told.append(f"{row.get('metric')} {shown}")
            good.append(all(verdicts.below(x, 0.5) for x in lost.values()))
            bad.append(any(verdicts.above(x, 0.5) for x in lost.values()))
    if not rows:
        return []
    answer = verdicts.overall(good, fails=bool(bad) and all(bad))
    text = (
        f"lost: {', '.join(told)}" if told else "latents have nothing to lose: no R² and no effect"
    )
    return [verdicts.Verdict("distractors", answer, text, "not measured")]

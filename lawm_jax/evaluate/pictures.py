"""Draws pictures of a model's predictions: rollouts, transferred actions, cycles and scene cuts.

Source: Garrido et al. 2026, section 5 and Figures 5 to 9.
"""

import os

import numpy as np

from lawm_jax.evaluate import figures, locality, sampling


def draw(source):
    """Draws the pictures of a `context.Source`, and videos of those that have time steps.

    Writes KIND_NAME.png and .mp4 to the source's folder. The transferred actions are those of the
    main model. Scene cuts and locality are only drawn if `source.pairs`.
    """
    if source.samples:
        _embedding(source)
    if source.main not in source.inferring:
        return
    if source.pixels is None:
        why = "it has no video" if source.clips.video is None else "no decoder (configs/decoder.py)"
        print(f"{source.name}: skipping pictures: {why}")
        return
    Drawing(source).all()


class Drawing:
    """Draws the pictures of one data source that show predictions decoded to frames."""

    def __init__(self, source):
        """Selects the two clips that most pictures show; `source.pixels` must not be None."""
        self.source, self.clips, self.step = source, source.clips, source.per_step
        self.merge = source.model.merge
        strength = source.model.latent.strength
        self.main = f"{source.main}, {strength:g}"
        self.models = {
            self.main if key == source.main else key: model
            for key, model in source.inferring.items()
        }
        self.lead, other = choose(self.clips)
        self.chosen = [self.lead, other]
        self.pair, self.video = self.clips.s[self.chosen], self.last(self.clips.video[self.chosen])

    def all(self):
        """Draws every picture that the clips allow."""
        pair, rolled = self.pair, {}
        for key, model in self.models.items():
            z = model.infer(pair[[0, 0]])  # the first clip's latents, for both clips
            ahead = model.rollout(pair[:, :1], z)
            rolled[key] = np.concatenate([pair[:, :1], ahead], 1)
        painted = {key: self.paint(s) for key, s in rolled.items()}
        self.rollout(painted)
        self.transfer(painted[self.main][1])
        self.cycle(rolled[self.main][1:], *painted[self.main])
        if self.source.pairs:
            self.cut()
            self.locality()

    def rollout(self, painted):
        """Draws rollouts of the first clip; `painted` maps labels to frames of both clips."""
        rows = {"video": self.video[0], "decoded states": self.paint(self.pair[:1])[0]}
        rows |= {key: frames[0] for key, frames in painted.items()}
        self.sheet("rollout", "rollout from step 0 with inferred latent actions", rows)

    def transfer(self, moved):
        """Draws the second clip as recorded and with the first clip's actions (`moved`)."""
        rows = {"source": self.video[0], "target": self.video[1]}
        rows["target, with the source's latent actions"] = moved
        title = f"latent actions of one clip, transferred to another ({self.main})"
        self.sheet("transfer", title, rows)

    def cycle(self, s, own, moved):
        """Draws the first clip's latents transferred to the second clip, and back.

        `s` [1, T, N, D] are the states of the second clip with the first clip's latents.
        """
        model, start = self.models[self.main], self.pair[:1, :1]
        back = np.concatenate([start, model.rollout(start, model.infer(s))], 1)
        rows = {"A": self.video[0], "A, with its own latents": own, "B, with A's latents": moved}
        rows["A, with latents inferred from B"] = self.paint(back)[0]
        self.sheet("cycle", f"latent actions transferred from A to B and back ({self.main})", rows)

    def cut(self):
        """Draws each step of a clip with a scene cut, predicted from the true past."""
        stitched, s = (x[self.lead : self.lead + 1] for x in self.source.cut)
        rows = {"video": self.last(stitched)[0], "decoded states": self.paint(s)[0]}
        for key, model in self.models.items():
            ahead = model.predict(s[:, :-1], model.infer(s))
            rows[key] = self.paint(np.concatenate([s[:, :1], ahead], 1))[0]
        self.sheet("cut", "one-step predictions from the true past, across a scene cut", rows)

    def locality(self):
        """Draws where a clip moves and where its latent changes another clip's prediction."""
        example = locality.example(self.clips.s, self.clips.episodes, self.merge)
        if not example:
            return
        clip, t, other, _ = example
        model, pair = self.models[self.main], self.clips.s[[clip, other]][:, t : t + 2]
        ahead = model.predict(pair[1:, :1], model.infer(pair[:1]))
        predicted = np.concatenate([pair[1:, :1], ahead], 1)
        video = self.last(self.clips.video[[clip, other]])[:, t : t + 2]
        change = lambda s: np.abs(locality.cells(s[1] - s[0], self.merge)).mean(-1)  # noqa: E731
        tinted = [_heat(v[0], change(s[0])) for v, s in zip(video, (pair, predicted), strict=True)]
        rows = {
            "source": np.stack([*video[0], tinted[0]]),
            "predicted target": np.stack([video[1, 0], self.paint(predicted)[0, 1], tinted[1]]),
        }
        title = f"{self.source.name}: where a latent action acts, in red ({self.main})"
        path = os.path.join(self.source.folder, f"locality_{self.source.name}.png")
        figures.strips(path, title, rows, ("before", "after", "change"))

    def last(self, video):
        """Selects the last frame of each time step: [n, F, H, W, 3] -> [n, T, H, W, 3]."""
        return video[:, self.step - 1 :: self.step]

    def paint(self, s):
        """Decodes states [n, T, N, D] to one frame per step, uint8 [n, T, H, W, 3]."""
        return self.last(self.source.pixels.decode(s))

    def sheet(self, kind, title, rows):
        """Writes rows of frames, label -> uint8 [T, H, W, 3], as a PNG and as a video."""
        path = os.path.join(self.source.folder, f"{kind}_{self.source.name}")
        figures.strips(f"{path}.png", f"{self.source.name}: {title}", rows)
        figures.movie(f"{path}.mp4", rows, self.source.config.data.fps / self.step)


def _embedding(source):
    """Draws inferred latents and the samples of each sampler in the plane."""
    points, method = sampling.embed(source.samples, method=source.embedding)
    points = {
        f"{name}, {method}" if name == "inferred" else name: x[:1000] for name, x in points.items()
    }
    figures.embedding(os.path.join(source.folder, f"embedding_{source.name}.png"), points)


def _heat(frame, change):
    """Tints a frame uint8 [H, W, 3] red where a map [rows, columns] is high."""
    change = np.clip(change - np.median(change), 0, None)
    change = change / max(change.max(), 1e-9)
    rows, columns = (size // n for size, n in zip(frame.shape[:2], change.shape, strict=True))
    share = 0.7 * change.repeat(rows, 0).repeat(columns, 1)[..., None]
    return np.rint((1 - share) * frame + share * np.array([255, 0, 0])).astype(np.uint8)


def choose(clips):
    """Returns the indices of the clip with the most motion and of one from another episode."""
    first = np.unique(clips.episodes, return_index=True)[1][:8]
    lead = first[np.abs(np.diff(clips.s[first], axis=1)).mean((1, 2, 3)).argmax()]
    return int(lead), int(first[(list(first).index(lead) + 1) % len(first)])

"""Holds the model and the clips that all browsers share, and the ways to control them."""

import numpy as np

from lawm_jax.play import directions

SHOWN_CODES = 32
# Keys of the first three directions, minus and plus; of real actions, as the camera of the embedded
# arm sees x, y and z, and of a walk.
KEYS = {
    None: (("a", "d"), ("s", "w"), ("q", "e")),
    "reach": (("w", "s"), ("a", "d"), ("q", "e")),
    "walk": (("s", "w"), ("e", "q"), ("d", "a")),
}
SIGNS = {"left": ("right", "left"), "turn left": ("turn right", "turn left")}
SIGNS |= {"forward": ("back", "forward")}


class Shared:
    """Holds the constants that all sessions share.

    Attributes:
      world: `world.World`.
      sources: name -> `library.Source`, with encoded clips.
      planner: `planning.Planner`.
      fps: frames per second of the clips.
      about, notes: texts about the model for the page, a str and a list.
      plans: name of a source -> {"plan", "simulator"}, reasons why it can't plan or act, or "".
    """

    def __init__(self, world, sources, planner, fps, about, notes):
        self.world, self.planner, self.fps = world, planner, fps
        self.sources = {source.name: source for source in sources}
        self.about, self.notes = about, notes
        inferred = world.model.latent.inferred
        self._all = directions.principal(self.latents("")) if inferred else None
        self.plans = {
            source.name: {
                "plan": planner.missing(source),
                "simulator": planner.missing_simulator(source),
            }
            for source in sources
        }

    def latents(self, name):
        """Returns the inferred latents of a source, or of all for uploads, whose name is ""."""
        chosen = [self.sources[name]] if name else self.sources.values()
        return np.concatenate([source.latents for source in chosen])

    def axes(self, name):
        """Returns the directions of a source's latents, or None if the model infers none."""
        return self.sources[name].axes if name else self._all

    def controls(self, name):
        """Describes the ways to control clips of a source: a list of dicts for the page."""
        controls, world = [], self.world
        if name in world.controllers:
            source = self.sources[name]
            mean, std = world.action_scale(name)
            size = np.sqrt(mean**2 + std**2)
            kind = "walk" if source.names[:1] == ("forward",) else "reach"
            unit = lambda i: "rad" if "turn" in source.names[i] else "m"  # noqa: E731
            axes = [
                {
                    "minus": SIGNS.get(label, (f"{label} −", f"{label} +"))[0],
                    "plus": SIGNS.get(label, (f"{label} −", f"{label} +"))[1],
                    "swapped": label in SIGNS and label != "forward",  # left is on the left
                    "keys": KEYS[kind][i] if i < 3 else ("", ""),
                    "hint": f"{size[i]:.2g} {unit(i)} per step"
                    if source.task
                    else f"{size[i]:.2g}",
                }
                for i, label in enumerate(source.names)
            ]
            controls.append({"by": "actions", "label": "Real actions", "axes": axes})
        if world.codes:
            used = np.bincount(world.nearest(self.latents(name)).ravel(), minlength=world.codes)
            codes = np.sort(np.argsort(-used, kind="stable")[:SHOWN_CODES])
            codes = [[int(code), int(used[code])] for code in codes]
            controls.append({"by": "codes", "label": "Codes", "codes": codes, "count": world.codes})
        elif world.model.latent.inferred:
            axes = self.axes(name)
            described = [
                {
                    "minus": f"{i + 1} −",
                    "plus": f"{i + 1} +",
                    "keys": KEYS[None][i],
                    "hint": axes.hints[i] or f"{axes.share[i]:.0%} of variance",
                }
                for i in range(len(axes.directions))
            ]
            controls.append({"by": "axes", "label": "Latent directions", "axes": described})
        return controls

"""The clips that a person can play: held-out clips of the data sources, and uploaded videos."""

import dataclasses
import os

import ml_collections
import numpy as np

from lawm_jax.data import catalog, episodes, frames, mini, video
from lawm_jax.evaluate import run
from lawm_jax.plan import run as plan_run
from lawm_jax.play import directions
from lawm_jax.train import rundir

CLIPS = 12  # per data source
FIRST = "panda"  # the page opens on it
LONGER = 2  # clips have this many times the frames of training clips, where episodes allow it
AXES = {"reach": ("x", "y", "z"), "walk": ("forward", "left", "turn left")}


@dataclasses.dataclass
class Clip:
    """Holds a clip.

    Attributes:
      label: name to show.
      video: uint8 [F, H, W, 3], of the model's size.
      actions: float32 [F-1, U], or None.
      s, z: its states [F, N, D] and inferred latents [F-1, A], from `fill`; z is None if the model
        infers none.
    """

    label: str
    video: np.ndarray
    actions: np.ndarray | None = None
    s: np.ndarray | None = None
    z: np.ndarray | None = None

    def fill(self, world):
        """Encodes the clip and infers its latents; returns the clip."""
        self.s = world.encode(self.video)
        self.z = world.infer(self.s) if world.model.latent.inferred else None
        return self


@dataclasses.dataclass
class Source:
    """Holds the clips of one data source.

    Attributes:
      name, spec: its name and specification, as in a config's `data.sources`.
      task: a key of `plan.run.TASKS` whose actions it has, or None.
      clips: list of `Clip`.
      axes: `directions.Axes` of the inferred latents, or None.
    """

    name: str
    spec: str
    task: str | None
    clips: list
    axes: directions.Axes | None = None

    @property
    def actions(self):
        """float32 [n, F-1, U], the real actions of the clips."""
        return np.stack([clip.actions for clip in self.clips])

    @property
    def names(self):
        """The names of the real actions."""
        if self.clips[0].actions is None:
            return ()
        U = self.clips[0].actions.shape[1]
        names = AXES[plan_run.TASKS[self.task][0]] if self.task else ()
        return names[:U] + tuple(f"action {i + 1}" for i in range(len(names), U))

    def fill(self, world):
        """Encodes the clips and computes the directions of their latents."""
        for clip in self.clips:
            clip.fill(world)
        if world.model.latent.inferred:
            u = self.names and self.actions.reshape(-1, len(self.names))
            self.axes = directions.principal(self.latents, u if self.names else None, self.names)

    @property
    def latents(self):
        """The inferred latents of all clips, [n (F-1), A]."""
        return np.concatenate([clip.z for clip in self.clips])


def open_sources(workdir, data=None, only=None):
    """Reads held-out clips of every data source that has video.

    Sources of stored states cannot be shown. If no source of the run has video, the embedded data
    is used, provided that it has the frame rate of the run.

    Args:
      workdir: folder of the run or exported model.
      data: name -> data source to use instead of the run's own, as in `lawm_jax.evaluate`; parts
        that the run was trained on are left out.
      only: name of the only source to read, or None for all.

    Returns:
      A list of `Source`, their number of frames F, and frames per second.

    Raises:
      ValueError: no source has video, or `only` is none of them.
    """
    config = ml_collections.ConfigDict(rundir.read_world_model(workdir))
    config.data.augment = dict(crop=False, area=(0.3, 1), ratio=(1, 1), flip=0, jitter=0, cut=0)
    fps = config.data.get("fps", mini.FPS)
    if data:
        config.data.holdout, without = run.unseen(data, workdir, rundir.bounds(workdir).values())
        sources, missing = _read(catalog.with_sources(config, data), only, without)
    else:
        sources, missing = _read(config, only)
    if not sources and not data and fps == mini.FPS:
        print("".join(f"{text}\n" for text in missing), end="")
        print("none of the run's sources has readable video; using the embedded data")
        embedded = {"panda": "mini:panda", "nav": "mini:nav"}
        sources, missing = _read(catalog.with_sources(config, embedded), only)
    if not sources:
        raise ValueError(
            "data: expected a source with video, got none; add one with --data NAME=SOURCE:\n"
            + "\n".join(missing)
        )
    for text in missing:
        print(f"skipping {text}")
    sources.sort(key=lambda source: source.name != FIRST)
    return sources, min(len(source.clips[0].video) for source in sources), fps


def _read(config, only, without=None):
    """Reads the sources of a config: a list of `Source`, and why others cannot be played.

    `without` maps names to `pipeline.identities` to leave out.
    """
    sources, missing, names = [], [], catalog.names(config)
    if only is not None and only not in names:
        return [], [f"source: expected one of {', '.join(names)}, got {only!r}"]
    for name in names if only is None else [only]:
        spec = config.data.videos or config.data.sources[name]
        try:
            clips = _clips(config, name, (without or {}).get(name, ()))
        except (ValueError, OSError) as error:
            missing.append(f"{name}: {error}")
        else:
            sources.append(Source(name, spec, _task(name, spec), clips))
    return sources, missing


def _clips(config, name, without):
    """Draws `CLIPS` held-out clips, evenly spaced over the episodes, at random positions."""
    config, least = config.copy_and_resolve_references(), config.data.frames
    for count in (LONGER * least, least):
        config.data.frames = count
        source, clips = catalog.source(config, name, "test"), []
        if getattr(source, "encoder", None):
            raise ValueError("expected video, got stored states")
        items = [x for x in source.items if episodes.identity(source, x) not in without]
        for i in range(CLIPS if items else 0):
            first = i * len(items) // CLIPS
            for item in [items[(first + more) % len(items)] for more in range(4)]:
                try:
                    clip = source.clip(item, np.random.default_rng(i))
                except frames.UnreadableVideo:
                    continue
                label = os.path.splitext(os.path.basename(str(clip["episode"])))[0]
                clips.append(Clip(f"{name} {label}", clip["video"], clip.get("actions")))
                break
        if clips:
            return clips
    raise ValueError(f"no held-out clip of {least} frames can be read")


def _task(name, spec):
    """Returns the task whose actions a source has, by its name, kind or folder; or None."""
    kind, where, _ = catalog.parse(name, spec)
    base = os.path.basename(where) if isinstance(where, str) else ""
    return next((key for key in (name, kind, base) if key in plan_run.TASKS), None)


def read_upload(path, label, start, count, fps, longest, size, resize):
    """Reads up to `count` frames of a video file from a time on.

    Args:
      path: the file.
      label: name to show, and for error messages.
      start: seconds from the first frame.
      count, fps: number of frames, and frames per second.
      longest: maximum length of the video, seconds.
      size, resize: see `frames.View`.

    Returns:
      A `Clip`, not encoded.

    Raises:
      ValueError: the file isn't a video, is damaged or too long, or has fewer than two frames after
        `start`.
    """
    try:
        seconds = video.duration(path)
        if seconds > longest:
            raise ValueError(
                f"{label}: expected at most {longest:g} s of video, got {seconds:.0f} s"
            )
        available = int((seconds - start) * fps + 1e-6)
        if available < 2:
            raise ValueError(
                f"{label}: expected at least {2 / fps:g} s of video after {start:g} s, got a "
                f"video of {seconds:.3g} s"
            )
        view = frames.View(size, resize)
        clip = video.read_clip(path, start, min(count, available), fps, view)
    except frames.UnreadableVideo as error:
        raise ValueError(f"{label}: expected a video, got: {error.reason}") from error
    return Clip(label, clip["video"])

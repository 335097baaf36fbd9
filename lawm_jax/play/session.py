"""Sessions: the state of one browser, which answers the page's messages. Contains no web code."""

from lawm_jax.play import directions, films, pictures
from lawm_jax.play import world as world_
from lawm_jax.play.messages import Refused, command, number, values

UPLOADS = 3  # maximum number of uploaded clips per session
RECORDED = 1200  # frames of a recording, a minute at 20 per second
# Maximum size of a step, in standard deviations of latents or root mean squares of real actions.
LARGEST = 8.0
FUTURES, AHEAD = 4, 14  # number of films in the tab Sample, and of steps in each
PLANNED = 8  # maximum number of steps of a plan


class Session:
    """Holds the rollout, the recording and the uploads of one browser.

    Attributes:
      shared: `Shared`, the model and clips of all sessions.
      uploads: list of `library.Clip`, at most `UPLOADS`.
      imagined: `world.Imagined`, or None before `start`.
      source: name of the data source that it started from, "" for uploads.
      frames, recording: the recorded frames as JPEG, and whether steps are added to them.
    """

    def __init__(self, shared):
        self.shared, self.uploads, self.frames = shared, [], []
        self.imagined, self.source, self.recording = None, None, False

    def answer(self, message):
        """Answers a message.

        Args:
          message: {"do": a key of `COMMANDS`, and the command's arguments}.

        Returns:
          A dict for JSON, or bytes: an MP4, or a frame: its number in 4 bytes (big-endian), then a
          JPEG.

        Raises:
          Refused: the command is unknown, an argument is invalid, or the command is not possible
            now.
        """
        do = command(message)
        if do not in COMMANDS:
            raise Refused(f"do: expected one of {', '.join(COMMANDS)}, got {do[:80]!r}")
        return COMMANDS[do](self, message)

    def add(self, clip):
        """Adds an uploaded clip, dropping the oldest if there are more than `UPLOADS`.

        Returns:
          {"clips"}: descriptions of all uploads, the new one last.
        """
        self.uploads = [*self.uploads, clip][-UPLOADS:]
        return {"clips": [_describe(clip) for clip in self.uploads]}

    def hello(self, message):
        """Returns the initial content of the page: {"sources", "fps", "about", "notes"}.

        A source has `name`, `clips` (see `_describe`), and `plan` and `simulator`: the reason why
        it cannot plan or act, or "" (see `Shared.plans`).
        """
        del message  # unused
        shared = self.shared
        sources = [
            {"name": source.name, "clips": [_describe(clip) for clip in source.clips]}
            | shared.plans[source.name]
            for source in shared.sources.values()
        ]
        return {"sources": sources, "fps": shared.fps, "about": shared.about, "notes": shared.notes}

    def start(self, message):
        """Starts imagining from the first frame of a clip."""
        clip, self.source = self._clip(message), self._source(message)
        world, self.frames, self.recording = self.shared.world, [], False
        self.imagined = world_.Imagined(world, world.start(clip.video, clip.s))
        return {
            "real": pictures.image(clip.video[0]),
            "imagined": pictures.image(self.imagined.picture()),
            "controls": self.shared.controls(self.source),
        }

    def clip(self, message):
        """Returns the frames of a clip."""
        return {"frames": [pictures.image(picture) for picture in self._clip(message).video]}

    def step(self, message):
        """Takes a step, by latent directions, a code, or a real action."""
        imagined, kind = self._imagined(), message.get("by")
        world, size = self.shared.world, number(message, "size", 0, LARGEST, 1.0)
        if kind == "codes" and world.codes:
            z = world.code(int(number(message, "code", 0, world.codes - 1)))
        elif kind == "axes" and self.shared.axes(self.source) is not None and not world.codes:
            axes = self.shared.axes(self.source)
            z = directions.along(axes, values(message, len(axes.directions)), size)
        elif kind == "actions" and self.source in world.controllers:
            mean, std = world.action_scale(self.source)
            u = directions.action(mean, std, values(message, len(mean)), size)
            z = world.map(self.source, u, imagined.state)
        else:
            kinds = [x["by"] for x in self.shared.controls(self.source)]
            raise Refused(f"by: expected one of {kinds}, got {str(kind)[:80]!r}")
        return self._frame(imagined.step(z))

    def undo(self, message):
        """Takes back a step."""
        self._imagined().undo()
        return self._frame(self.imagined.picture(), record=False)

    def reset(self, message):
        """Returns to the start."""
        self._imagined().reset()
        return self._frame(self.imagined.picture(), record=False)

    def record(self, message):
        """Starts a new recording, or ends it."""
        self.recording = bool(message.get("on"))
        if self.recording:
            self.frames = [pictures.jpeg(self._imagined().picture())]
        return {"recording": self.recording, "most": RECORDED}

    def film(self, message):
        """Returns the recording as MP4."""
        if not self.frames:
            raise Refused("record: expected a recording to save, got none; start one first")
        rate = number(message, "rate", 1, 60, 20.0)
        return pictures.movie(self.frames, rate)

    def transfer(self, message):
        """Applies the latents of one clip in the scene of another."""
        action, scene = self._clip(message, "action"), self._clip(message, "scene")
        self._needs_latents()
        result = films.transfer(self.shared.world, action, scene)
        count = len(result)
        rows = {"action clip": action.video[:count], "scene": scene.video[:count]}
        return self._films(rows | {"scene, with the actions of the action clip": result})

    def sample(self, message):
        """Samples futures of a clip."""
        clip, world = self._clip(message), self.shared.world
        self._needs_latents()
        seed = int(number(message, "seed", 0, 2**31, 0))
        latents = self.shared.latents(self._source(message))
        futures = films.sample(world, clip, latents, FUTURES, AHEAD, seed)
        rows = {"clip": clip.video[: AHEAD + 1]}
        rows |= {f"future {i + 1}": film for i, film in enumerate(futures)}
        learned = world.model.prior is not None
        gaussian = "a Gaussian fitted to inferred ones (there is no learned prior)"
        distribution = "the learned prior" if learned else gaussian
        answer = self._films(rows)
        return answer | {
            "text": f"Latent actions sampled from {distribution}. {answer['text']}".strip()
        }

    def look(self, message):
        """Describes the latents of a clip."""
        clip, name = self._clip(message), self._source(message)
        self._needs_latents()
        axes = self.shared.axes(name)
        series, codes, effect, change = films.look(self.shared.world, axes, clip)
        return {
            "frames": [pictures.image(picture) for picture in clip.video],
            "series": series.round(3).tolist(),
            "labels": [f"direction {i + 1}" for i in range(len(series))],
            "hints": list(axes.hints),
            "share": axes.share.round(3).tolist(),
            "codes": None if codes is None else codes.tolist(),
            "effect": effect.round(4).tolist(),
            "change": change.round(4).tolist(),
        }

    def plan(self, message):
        """Plans from one frame of a clip to another; "distance" is [at the start, at the end]."""
        clip, name = self._clip(message), self._source(message)
        source = self.shared.sources.get(name)
        missing = (
            self.shared.plans[name]["plan"] if source else "Uploaded videos have no real actions."
        )
        if missing:
            raise Refused(missing)
        last = len(clip.video) - 1
        first = int(number(message, "first", 0, last - 1))
        goal = int(number(message, "goal", first + 1, min(last, first + PLANNED)))
        u, imagined, (after, before) = self.shared.planner.plan(source, clip, first, goal)
        rows = {"clip": clip.video[first : goal + 1], "imagined plan": imagined}
        rows |= {"goal": [clip.video[goal]]}
        pairs = zip(source.names, u.sum(0), clip.actions[first:goal].sum(0), strict=True)
        return self._films(rows) | {
            "actions": [[label, round(float(a), 3), round(float(b), 3)] for label, a, b in pairs],
            "distance": [round(before, 3), round(after, 3)],
        }

    def act(self, message):
        """Acts in the simulator toward a goal."""
        name = self._source(message)
        missing = "Uploaded videos have no simulator."
        if name in self.shared.sources:
            missing = self.shared.plans[name]["plan"] or self.shared.plans[name]["simulator"]
        if missing:
            raise Refused(missing)
        scene = int(number(message, "scene", 0, 10**6, 0))
        try:
            result = self.shared.planner.act(self.shared.sources[name], scene)
        except ImportError as error:
            raise Refused(str(error)) from error
        recorded, goal, distances, radius = result
        done = self._films({"simulator": recorded, "goal": [goal]})
        return done | {"path": distances.round(3).tolist(), "radius": radius}

    def _imagined(self):
        if self.imagined is None:
            raise Refused("start: expected a clip to be started first, got none")
        if not self.shared.world.paints:
            raise Refused(NO_DECODER)
        return self.imagined

    def _frame(self, picture, record=True):
        data = pictures.jpeg(picture)
        if record and self.recording and len(self.frames) < RECORDED:
            self.frames.append(data)
        return self.imagined.count.to_bytes(4, "big") + data

    def _films(self, rows):
        clips = []
        for label, row in rows.items():
            if all(picture is not None for picture in row):  # without a decoder, real ones only
                clips.append({"label": label, "frames": [pictures.image(x) for x in row]})
        return {"films": clips, "text": "" if self.shared.world.paints else NO_DECODER}

    def _needs_latents(self):
        if not self.shared.world.model.latent.inferred:
            raise Refused(
                "This model was trained on real actions, so it infers no latent actions from video."
            )

    def _source(self, message, prefix=""):
        """Returns the name of a message's source, "" for uploads."""
        name = message.get(f"{prefix}_source" if prefix else "source")
        if name != "" and (not isinstance(name, str) or name not in self.shared.sources):
            names = ", ".join(self.shared.sources)
            raise Refused(f"source: expected one of {names}, or '' for uploads, got {name!r:.80}")
        return name

    def _clip(self, message, prefix=""):
        """Returns the clip that a message names."""
        name, key = self._source(message, prefix), f"{prefix}_clip" if prefix else "clip"
        clips = self.shared.sources[name].clips if name else self.uploads
        if not clips:
            raise Refused("clip: expected an uploaded video, got none yet")
        return clips[int(number(message, key, 0, len(clips) - 1))]


COMMANDS = {
    "hello": Session.hello,
    "frames": Session.clip,
    "start": Session.start,
    "step": Session.step,
    "undo": Session.undo,
    "reset": Session.reset,
    "record": Session.record,
    "film": Session.film,
    "transfer": Session.transfer,
    "sample": Session.sample,
    "look": Session.look,
    "plan": Session.plan,
    "act": Session.act,
}
# Commands that take milliseconds; the others take seconds, and run in another thread.
QUICK = {"hello", "frames", "start", "step", "undo", "reset", "record"}
NO_DECODER = (
    "This model has no decoder, so its imagined frames cannot be shown. Train one with "
    "configs/decoder.py and place the run in W/decoder."
)


def _describe(clip):
    return {
        "label": clip.label,
        "picture": pictures.image(clip.video[0]),
        "frames": len(clip.video),
    }

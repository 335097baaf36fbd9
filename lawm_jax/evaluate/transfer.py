"""Transfer: whether latent actions have the same effect in another clip, at the same position.

Two measures, `cycle` and `locality`; see the modules of these names. Noisy latents are the
posterior means.
"""

from lawm_jax.evaluate import cycle, locality, verdicts
from lawm_jax.evaluate.tables import mapping

PARTS = {"cycle": cycle, "locality": locality}


def run(source):
    """Evaluates the models of a `context.Source`: {"cycle": rows, "locality": rows}.

    With a decoder, the cycle of the main model is also measured in pixels, as in Table 2.
    """
    if not source.pairs:
        return None
    s, episodes, pixels = source.clips.s, source.clips.episodes, source.pixels
    rows = cycle.measure(source.inferring, s, episodes)
    if pixels:
        main, truth = {source.main: source.models[source.main]}, pixels.video[:, source.per_step :]
        settings = dict(distance=source.to_frames, truth=truth)
        rows += cycle.measure(main, pixels.s, pixels.episodes, **settings)
    where = locality.measure(source.inferring, s, episodes, source.model.merge)
    return {"cycle": rows, "locality": where}


def tables(results):
    """Returns the results of `run` as a list of Table."""
    return [table for name, part in PARTS.items() for table in part.tables(results[name])]


def judge(results, name):
    """Judges both measures, see `cycle.judge` and `locality.judge`."""
    rows = {part: verdicts.by_name(mapping(results).get(part)).get(name) for part in PARTS}
    return [PARTS[part].judge(row) for part, row in rows.items() if row]

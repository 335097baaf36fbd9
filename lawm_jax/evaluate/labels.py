"""Labels: how many labeled episodes a controller of real actions needs.

Controllers are trained on the real actions of 1, 3, 10, 30 and 100 training episodes, or of as many
as there are, and compared as in `control`. All have the same number of updates, fewer than in
configs/controller.py. One controller is trained per number of episodes.

Source: ours.
"""

from lawm_jax.data import words
from lawm_jax.evaluate import control, row_names, verdicts
from lawm_jax.evaluate.tables import Table, real

COUNTS = 1, 3, 10, 30, 100
FEW = 10


def run(source):
    """Trains controllers for the main model of a `context.Source` and compares them."""
    if source.clips.actions is None or not source.pairs or source.main not in source.latents:
        return None
    from lawm_jax.evaluate import batched, clips, controllers  # reading results needs no JAX

    by_frame = source.by_frame({source.main: (source.model, source.params)})
    if by_frame is None:
        print(f"{source.name}: skipping labels, which requires states of single frames")
        return None
    models, held_out, _ = by_frame
    model, params = models[source.main]
    encode = batched.encoder(model, params)
    labeled = clips.labelled(source.config, source.name, encode, max(COUNTS))
    if labeled is None:
        print(f"{source.name}: skipping labels, since no training episode can be read")
        return None
    counts = numbers(len(set(labeled.episodes)))
    fitted = controllers.fit(model, params, labeled, counts)
    named = {words.counted(k, "episode"): fitted[k] for k in reversed(counts)}
    rows = control.compare(named, held_out.s, held_out.actions, held_out.episodes)
    counted = dict(zip(named, reversed(counts), strict=True))
    rows = [row | {"episodes": counted.get(row["name"])} for row in rows]
    return sorted(rows, key=lambda row: row["episodes"] or 0)


def numbers(episodes):
    """Lists the numbers of episodes to train on, of which there are `episodes`."""
    most = min(episodes, max(COUNTS))
    return [k for k in COUNTS if k < most] + [most]


def tables(rows):
    """Returns the rows of `run` as a list of Table."""
    caption = "open-loop rollouts from real actions, by number of labeled episodes"
    return [Table(caption, control.COLUMNS[:2], rows)]


def judge(rows, name):
    """Judges how many episodes a controller needs to lose less than half.

    The loss is the error minus that of inferred latents, clip by clip; half refers to the mean loss
    with no action.
    """
    rows = {key: row for key, row in verdicts.by_name(rows).items() if _measured(row)}
    errors = {row["episodes"]: _measured(row) for row in rows.values() if real(row.get("episodes"))}
    idle = next((_measured(x) for k, x in rows.items() if k.endswith(row_names.NO_ACTION)), None)
    if not errors or idle is None:
        return []
    (_, loss), half = errors[max(errors)], idle[1]["mean"] / 2
    enough = [k for k in sorted(errors) if half > 0 and verdicts.below(errors[k][1], half)]
    text = ", ".join(f"{k} {errors[k][0]['mean']:.3f}" for k in sorted(errors))
    text = f"error by number of labeled episodes: {text}; no action {idle[0]['mean']:.3f}, "
    text += f"inferred latents {idle[0]['mean'] - idle[1]['mean']:.3f}"
    if enough:
        answer = verdicts.HOLDS if enough[0] <= FEW else verdicts.PARTLY
        text = f"{words.counted(enough[0], 'episode')} suffice{'s' * (enough[0] == 1)}; {text}"
    else:
        fails = half > 0 and verdicts.above(loss, half)
        answer = verdicts.FAILS if fails else verdicts.UNDECIDED
    return [verdicts.Verdict("few labels", answer, text, "not measured")]


def _measured(row):
    """Returns the error of a row and the error minus that of inferred latents, or None."""
    pair = [verdicts.measured(row, key) for key in ("error", "paired")]
    return pair if all(pair) else None

"""Columns and verdicts of planning results, for the terminal and the report. Needs no JAX."""

from lawm_jax.evaluate import row_names, verdicts
from lawm_jax.evaluate.tables import Column, Table

LAST = (
    Column("predicted distance to the goal", "distance"),
    Column("controller", "controller_kind", None),
)
REACH = (
    Column("error, m", "error", 3, "lower"),
    Column("minus no action", "paired", 3, "lower", signed=True),
    Column("Action Score", "score", 1, "higher"),
    Column("orientation, rad", "orientation", 3, "lower"),
    Column("gripper", "gripper", 3, "lower"),
    *(Column(f"correlation {x}", f"correlation.{i}", 2, "higher") for i, x in enumerate("xyz")),
    *LAST,
)
WALK = (
    Column("ATE, m", "ate", 3, "lower"),
    Column("minus mean action", "paired", 3, "lower", signed=True),
    Column("RPE, m", "rpe", 3, "lower"),
    Column("ATE, waypoints", "ate_waypoints", 2, "lower"),
    Column("RPE, waypoints", "rpe_waypoints", 2, "lower"),
    Column("yaw, rad", "yaw", 2, "lower"),
    *(
        Column(f"correlation {x}", f"correlation.{i}", 2, "higher")
        for i, x in enumerate(("x", "y", "yaw"))
    ),
    *LAST,
)
CLOSED = (
    Column("success at the end", "success", 2, "higher"),
    Column("success at any time", "reached", 2, "higher"),
    Column("distance at the end, m", "distance", 3, "lower"),
    Column("minus no action", "paired", 3, "lower", signed=True),
    LAST[-1],
)


def tables(caption, rows):
    """Returns rows of `tasks.reach`, `tasks.walk` or `closed_loop.evaluate` as a list of Table."""
    kinds = {"success": CLOSED, "error": REACH, "ate": WALK}
    return [Table(caption, next(kinds[key] for key in kinds if key in rows[0]), rows)]


# Claims about plans by the key of their error: finding, baseline and the paper's result.
CLAIMS = {
    "error": (
        "planning",
        "displacement error",
        row_names.NO_ACTION,
        "0.10 m on DROID with noisy latents, 0.05 m with labels (Table S1)",
    ),
    "ate": (
        "planning",
        "ATE of the path",
        f"the {row_names.MEAN_ACTION}",
        "ATE 1.40 m on RECON with noisy latents, 1.13 m with NWM (Table S2)",
    ),
    "distance": ("acting", "distance at the end", row_names.NO_ACTION, "not measured"),
}


def judge(rows, name):
    """Judges whether a model's plans are better than no action or, for walks, the mean action."""
    row = verdicts.by_name(rows).get(name)
    key = next((key for key in CLAIMS if verdicts.measured(row, key)), None)
    gain = verdicts.measured(row, "paired")
    if key is None or gain is None:
        return []
    claim, finding, baseline, paper = CLAIMS[key]
    text = f"{finding}: {verdicts.short(verdicts.measured(row, key))} m; "
    text += f"{verdicts.short(gain, sign='+')} vs. {baseline}"
    if success := verdicts.measured(row, "success"):
        text += f"; success rate {verdicts.short(success, 2)}"
    return [verdicts.Verdict(claim, verdicts.lower(gain), text, paper)]

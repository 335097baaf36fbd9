"""Columns of planning results, for the terminal and the report. Needs no JAX."""

from lawm_jax.evaluate.tables import Column, Table

LAST = (
    Column("predicted distance to the goal", "distance"),
    Column("controller", "controller_kind", None),
)
REACH = (
    Column("error, m", "error", 3, "lower"),
    Column("minus no action", "paired", 3, "lower", signed=True),
    Column("Action Score", "score", 1, "higher"),
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

"""Planning protocols: the settings of other authors' evaluations, taken from their code.

A protocol sets the candidates, the initial Gaussian, the limits of plans, the context, the crop and
the number of clips. The errors are the same functions for all: those of jepa-wms and NWM, see
`tasks.reach` and `metrics.trajectory_errors`. docs/control.md lists the remaining differences.
"""

import math
from typing import NamedTuple


class Protocol(NamedTuple):
    """Describes how to plan.

    Attributes:
      tasks: the tasks that it is defined for.
      options: options of CEM; None for `tasks.REACH` and `tasks.WALK`.
      mean, std: of the initial Gaussian of every step, numbers or tuples of U; None for those of
        training actions.
      limits: bounds of the absolute values of actions, or None.
      horizons: steps of plans; None for the task's.
      episodes: number of clips.
      window: maximum number of states that a prediction attends to; None for that of training.
      context: number of known states up to the start.
      straight: whether plans are straight lines, see `search.straight_line`.
      full_height: whether frames show the full height of the picture.
    """

    tasks: tuple
    options: dict | None = None
    mean: float | tuple = 0.0
    std: float | tuple | None = None
    limits: tuple | None = None
    horizons: tuple | None = None
    episodes: int = 64
    window: int | None = None
    context: int = 1
    straight: bool = False
    full_height: bool = False


# NWM's units of RECON: 0.25 m between waypoints, and normalized by data_config.yaml's action_stats.
_WAYPOINT, _LOW, _HIGH = 0.25, (-2.5, -4.0), (5.0, 4.0)
_MU, _SIGMA = (-0.1, 0.0, 0.0), (0.02, 0.1, 0.1)  # data_hyperparams_plan.yaml
_HALF = [(high - low) / 2 for low, high in zip(_LOW, _HIGH, strict=True)]
_CENTER = [(high + low) / 2 for low, high in zip(_LOW, _HIGH, strict=True)]

PROTOCOLS = {
    "paper": Protocol(("panda", "droid", "nav", "recon")),
    # github.com/facebookresearch/jepa-wms at commit 6eafb14: evals/simu_env_planning, CEMPlanner
    # and configs/.../droid_L2_cem_sourcedset_H3_nas3_maxnorm01_ctxt2_gH3_r256_alpha0_ep64.
    "jepa-wms": Protocol(
        ("panda", "droid"),
        options=dict(samples=300, elites=10, iterations=15, average=True),
        std=0.1,
        limits=(0.1,) * 6 + (0.75,),
        horizons=(3,),
        window=2,
        full_height=True,
    ),
    # github.com/facebookresearch/nwm at commit 3f6cd8e: planning_eval.py as its README calls it.
    "nwm": Protocol(
        ("recon",),
        options=dict(samples=120, elites=5, iterations=1, average=True, keep_mean=False),
        mean=(
            *(_WAYPOINT * (c + h * m) for c, h, m in zip(_CENTER, _HALF, _MU, strict=False)),
            _MU[2] * math.pi,
        ),
        std=(
            *(_WAYPOINT * h * s for h, s in zip(_HALF, _SIGMA, strict=False)),
            _SIGMA[2] * math.pi,
        ),
        horizons=(8,),
        episodes=100,
        context=4,
        straight=True,
    ),
}

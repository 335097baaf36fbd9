"""The table of evaluations, keyed by their names in --only and W/eval/NAME.json.

Each is a module with three functions: `run` evaluates one data source and returns rows for JSON,
`tables` formats rows for the terminal and the report, and `judge` states their verdicts on a model.
To add one, write a module and add a line here. Needs no JAX, so that the report can import it.

Those in `SLOW` run with --all or if --only names them; all others run by default.
"""

from lawm_jax.evaluate import (
    ablation,
    algebra,
    bias,
    content,
    control,
    distractors,
    flow,
    invariance,
    labels,
    leakage,
    prediction,
    sampling,
    scene,
    surprise,
    transfer,
)

EVALUATIONS = {
    "prediction": prediction,
    "ablation": ablation,
    "leakage": leakage,
    "transfer": transfer,
    "bias": bias,
    "algebra": algebra,
    "content": content,
    "flow": flow,
    "scene": scene,
    "invariance": invariance,
    "control": control,
    "sampling": sampling,
    "surprise": surprise,
    "distractors": distractors,
    "labels": labels,
}
SLOW = "surprise", "distractors", "labels"

"""The table of evaluations, keyed by their names in --only and W/eval/NAME.json.

Each is a module with three functions: `run` evaluates one data source and returns rows for JSON,
`tables` formats rows for the terminal and the report, and `judge` states their verdicts on a model.
To add one, write a module and add a line here. Needs no JAX, so that the report can import it.
"""

from lawm_jax.evaluate import (
    ablation,
    algebra,
    bias,
    content,
    control,
    flow,
    invariance,
    leakage,
    prediction,
    sampling,
    scene,
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
}

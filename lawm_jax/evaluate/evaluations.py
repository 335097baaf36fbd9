"""The evaluations, by the names that --only and W/eval/NAME.json have.

Each is a module with `run`, which asks a question of one source's clips and returns rows for JSON,
and `tables`, which lays these out for the terminal and the report. A new one is a module, and a
line here. Needs no JAX, so that the report can read results without it.
"""

from lawm_jax.evaluate import control, leakage, prediction, probing, sampling, transfer

EVALUATIONS = {
    "prediction": prediction,
    "leakage": leakage,
    "transfer": transfer,
    "content": probing,
    "control": control,
    "sampling": sampling,
}

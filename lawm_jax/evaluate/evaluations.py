"""The table of evaluations, keyed by their names in --only and W/eval/NAME.json.

Each is a module with `run`, which evaluates one data source and returns rows for JSON, and
`tables`, which formats rows for the terminal and the report. To add one, write a module and add a
line here. Needs no JAX, so that the report can import it.
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

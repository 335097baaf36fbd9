"""Makes the shipped model, `lawm.load("nano")`: simulates, trains, evaluates and exports it.

python -m lawm_jax.assets.make_nano D

Between 3 and 4 hours on 2 CPU cores, by the sum of its steps; needs `pip install 'lawm_jax[sim]'`.
The same command resumes.
"""

import importlib.metadata
import json
import pathlib
import shutil
import subprocess
import sys

from lawm_jax.evaluate import row_names, tables
from lawm_jax.evaluate.evaluations import EVALUATIONS
from lawm_jax.plan import columns
from lawm_jax.train import exported, rundir, sharing

EPISODES = {"panda": 480, "nav": 600}
STAGES = (20_000, {"panda": 1.0, "nav": 1.5}), (10_000, {"panda": 1.0, "nav": 3.0})
ACTING = "--planner=icem", "--samples=60", "--iterations=10"
CARD = """---
{metadata}
---
# nano: a latent action world model of an arm and of walks

The model that ships with lawm_jax, to try everything without training: 1.6 M parameters that
learned from video alone what an action is (Garrido et al. 2026, https://arxiv.org/abs/2601.05230).

    import lawm_jax as lawm

    model, params = lawm.load("nano", controller="panda", prior=True)

**Parts.** Inverse dynamics model, forward model and noisy latents of 64 dimensions (beta 1e-5); a
controller for the real actions of each task, `panda` and `nav`; a learned prior. The frozen encoder
(EfficientNet-Lite0) and its pixel decoder come with the package.

**Data.** {panda} simulated episodes of a Franka Panda (MuJoCo) and {nav} walks through levels of
Freedoom (ViZDoom), 64 frames each at about 4 Hz, made by `lawm_jax.envs.policies`; the first 128
and 120 of them are lawm_mini. The world model and the prior saw only the images; the controllers
also saw the true actions.

**Recipe.** `python -m lawm_jax.assets.make_nano D`: `configs/lawm.py:size=nano,latent=noisy` on 8
clips of 8 frames per step, in two stages with a learning rate schedule each,

{stages}

then 1200 steps of `configs/controller.py:size=nano` for each task, and 1800 with `loss=prediction`.

**Limits.** It knows this arm, this table and these rooms at 128 x 128 pixels, and nothing else. It
sees 8 frames; longer rollouts slide that window. Of the walks it learned turns better than speed:
plans of 8 steps are no better than the mean action, and in closed loop it reaches 0.4 of the
goals (below). One training run, one seed.

## Metrics

On lawm_mini's test episodes: other seeds of the arm, other levels of the walks. Errors of
predictions are mean absolute errors of states.

```
{results}
```
"""


def commands(folder):
    """Lists (output path, command line) of each step before the export."""
    data, model = folder / "data", folder / "nano"
    lines, sources, video = [], [], []
    for name, count in EPISODES.items():
        simulate = "--out", data, "--only", name, "--episodes", count
        lines.append((data / f"{name}.done", ["lawm_jax.envs.policies", *simulate]))
        given = "--source", f"mini:{data.resolve() / name}", "--encoder", "lawm.py:size=nano"
        lines.append((None, ["lawm_jax.ingest", *given, "--out", folder / f"states_{name}"]))
        sources.append(f"--config.data.sources.{name}=records:{folder.resolve()}/states_{name}")
        video.append(f"--data={name}=mini:{name}")
    first, begin = folder / "first", []
    for workdir, (steps, mixture) in zip((first, model), STAGES, strict=True):
        weights = [f"--config.data.mixture.{name}={weight}" for name, weight in mixture.items()]
        given = "--config=lawm.py:size=nano,latent=noisy", f"--config.steps={steps}", *weights
        lines.append((None, ["lawm_jax.train", *given, *sources, *begin, f"--workdir={workdir}"]))
        begin = [f"--init_from={workdir}"]
    for name in EPISODES:
        latent, given = model / "latent" / name, (f"--config.model={model}", *sources)
        config = f"--config=controller.py:size=nano,source={name}"
        lines.append((None, ["lawm_jax.train", config, *given, f"--workdir={latent}"]))
        given += f"--init_from={latent}", f"--workdir={model / 'controller' / name}"
        lines.append((None, ["lawm_jax.train", f"{config},loss=prediction", *given]))
    lines.append((None, ["lawm_jax.evaluate", f"--workdir={model}", *video]))
    plans = ("panda", ()), ("panda", ACTING), ("nav", ())
    closed = ("panda", (*ACTING, "--closed-loop")), ("nav", ("--closed-loop",))
    for name, options in plans + closed:
        given = f"--task={name}", f"--data={name}=mini:{name}", *options
        lines.append((None, ["lawm_jax.plan", f"--workdir={model}", *given]))
    return lines


def results(workdir):
    """Returns the tables of all evaluations and plans in a run's folder."""
    text = []
    names = "prediction", "ablation", "leakage", "bias", "algebra", "content", "flow", "scene"
    for name in (*names, "invariance", "control", "sampling"):
        content = json.loads(pathlib.Path(rundir.evaluation(workdir, name)).read_text())
        for source, rows in content.items():
            text.append(tables.text(source, EVALUATIONS[name].tables(rows)))
    for path in sorted(pathlib.Path(rundir.evaluation(workdir, "x")).parent.glob("plan_*.json")):
        content = json.loads(path.read_text())
        for plan in content["plans"]:
            caption = f"plans of {plan['horizon']} steps by {content['planner']['name']}"
            if "radius" in plan:
                caption = f"closed loop, {caption}, success within {plan['radius']:g} m"
            rows = [row | {"name": row_names.current(row["name"])} for row in plan["rows"]]
            text.append(tables.text(content["task"], columns.tables(caption, rows)))
    return "\n\n".join(text)


def main(folder):
    """Runs all commands and writes the model's files to assets/nano."""
    folder = pathlib.Path(folder)
    for done, line in commands(folder):
        if done is None or not done.exists():
            print("+", *line, flush=True)
            subprocess.run([sys.executable, "-m", *(f"{x}" for x in line)], check=True)
            if done:
                done.touch()
    export(folder / "nano")


def export(workdir):
    """Writes a run's model with its card to assets/nano."""
    metadata = importlib.metadata.metadata("lawm_jax")
    stages = []
    for steps, mixture in STAGES:
        weights = " and ".join(f"{weight:g} ({name})" for name, weight in mixture.items())
        stages.append(f"* {steps} steps, sampling weights {weights}")
    text = CARD.format(
        metadata=sharing.metadata(license=metadata["License-Expression"].lower()),
        stages="\n".join(stages),
        results=results(workdir),
        **EPISODES,
    )
    shutil.rmtree(exported.SHIPPED["nano"], ignore_errors=True)
    sources = {name: f"mini:{name}" for name in EPISODES}
    sharing.save_pretrained(exported.SHIPPED["nano"], workdir, sources, text)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs a study of many training runs: python -m lawm_jax.study NAME --workdir W.

mixture: how does planning depend on the share of in-domain video in the world model's training
data? For each share, kind of latent and seed, it trains a world model on a mixture with that share
of --inside, on the same number of clips. Then it trains a controller on the labeled data of
--inside and plans on its held-out clips, which are the same for all runs.

The study runs other commands one after the other and prints them; --list only prints them. The
same command resumes an interrupted study. It writes W/mixture.json and W/mixture.png and prints a
table; the runs are in W/mixture/KIND-SHARE-SEED. If the encoder processes each frame
independently, the states, which all runs share, are computed once and stored in W/states; for nano
this more than halves the study's time.
"""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time

from absl import app, flags, logging
from ml_collections import config_flags

from lawm_jax.train import rundir
from lawm_jax.train.flags import define_config

STUDIES = ("mixture",)
LATENTS = ("sparse", "noisy", "discrete", "none")

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study, created if missing.")
CONFIG = define_config(
    "config", "lawm.py:size=nano", "Config of the world models, with data sources and a mixture."
)
CONTROLLER = define_config("controller", "controller.py:size=nano", "Config of the controllers.")
INSIDE = flags.DEFINE_string("inside", "panda", "Name of the in-domain data source, to plan on.")
OUTSIDE = flags.DEFINE_list(
    "outside", None, "Names of the other data sources. Default: all others in the mixture."
)
TASK = flags.DEFINE_string("task", None, "As in lawm_jax.plan. Default: the name of --inside.")
SHARES = flags.DEFINE_list(
    "shares", "0,10,25,50,75,90,100", "Shares of --inside in the mixture, in percent."
)
KINDS = flags.DEFINE_list("kinds", "sparse,noisy", "Kinds of latents.")
STEPS = flags.DEFINE_integer(
    "steps", None, "Training steps of the world models. Default: the config's.", lower_bound=1
)
SEEDS = flags.DEFINE_integer("seeds", 1, "Number of runs per share and kind.", lower_bound=1)
EPISODES = flags.DEFINE_integer("episodes", 64, "As in lawm_jax.plan.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", None, "As in lawm_jax.plan.", lower_bound=1)
ITERATIONS = flags.DEFINE_integer("iterations", None, "As in lawm_jax.plan.", lower_bound=1)
LIST = flags.DEFINE_bool("list", False, "Only print the remaining commands.")
flags.mark_flags_as_required(["workdir"])


def main(argv):
    """Parses the flags and runs the study."""
    if len(argv) != 2 or argv[1] not in STUDIES:
        got = " ".join(argv[1:]) or "none"
        raise app.UsageError(f"NAME: expected one of {', '.join(STUDIES)}, got {got}")
    logging.set_verbosity(logging.WARNING)
    from lawm_jax.data import paths, settings

    for config in (CONFIG.value, CONTROLLER.value):
        settings.check(config)
    workdir = os.path.abspath(paths.expand(WORKDIR.value))
    stored, runs = _mixture(workdir)
    if LIST.value:
        todo = [run for run in runs if _result(run) is None]
        for line in (stored if todo else []) + [line for run in todo for line in run["commands"]]:
            print(_shown(line))
        return
    with _claimed(workdir):
        _run(stored, runs)
        _report(runs, workdir)


def _mixture(workdir):
    """Returns the commands that store states, and a dict per run with its commands."""
    config, inside, task = CONFIG.value, INSIDE.value, TASK.value or INSIDE.value
    outside, shares = _outside(config.data), [_percent(text) for text in SHARES.value]
    if not KINDS.value or not set(KINDS.value) <= set(LATENTS):
        raise app.UsageError(f"--kinds: expected some of {', '.join(LATENTS)}, got {KINDS.value}")
    (file, options), (small, own) = _given("config"), _given("controller")
    if STEPS.value:
        options["steps"] = STEPS.value
    sources = {name: config.data.sources[name] for name in [inside, *outside]}
    from lawm_jax import world_model  # slow import, after the flags are checked

    video, stored, augment = sources[inside], [], config.data.augment
    changed = augment.crop or augment.flip or augment.jitter or augment.cut  # random per clip
    if world_model.build(config).encoder.alone and not changed:
        for name, spec in sources.items():
            out = os.path.join(workdir, "states", name)
            what = dict(source=spec, out=out, holdout=config.data.holdout, encoder=file)
            of = {key: x for key, x in options.items() if key.startswith(("data.", "encoder."))}
            stored.append(_command("ingest", what, encoder=of))
            sources[name] = f"records:{out}"
    planner = dict(episodes=EPISODES.value, samples=SAMPLES.value, iterations=ITERATIONS.value)
    configs = [json.loads(x.value.to_json_best_effort()) for x in (CONFIG, CONTROLLER)]
    every = [
        (kind, share, seed)
        for seed in range(config.seed, config.seed + SEEDS.value)
        for share in dict.fromkeys(shares)
        for kind in dict.fromkeys(KINDS.value)
    ]
    runs = []
    for kind, share, seed in every:
        folder = os.path.join(workdir, "mixture", f"{kind}-{share:g}-{seed}")
        controller = os.path.join(folder, "controller", inside)
        latent = f"{file}{',' if ':' in file else ':'}latent={kind}"
        weights = _weights(config.data.mixture, inside, outside, share)
        mine = {"seed": seed, "data.sources": sources, "data.mixture": weights}
        theirs = {"seed": seed, "model": folder, "data.videos": sources[inside]}
        data = f"{inside}={sources[inside]}"
        # Planning needs video, not states: `plan` then draws the same clips for every model.
        plan = dict(workdir=folder, task=task, data=f"{task}={video}", controller=controller)
        plan["json"] = os.path.join(folder, "plan.json")
        commands = [
            _command("train", dict(config=latent, workdir=folder), config=options | mine),
            _command("train", dict(config=small, workdir=controller), config=own | theirs),
            _command("evaluate", dict(workdir=folder, only="prediction", data=data)),
            _command("plan", plan | planner),
        ]
        run = dict(kind=kind, share=share, seed=seed, folder=folder, commands=commands)
        run["steps"] = {folder: STEPS.value or config.steps, controller: CONTROLLER.value.steps}
        runs.append(run | {"settings": [configs, stored, commands]})
    return stored, runs


def _outside(data):
    """Returns the names of the out-of-domain sources."""
    weights = {name: weight for name, weight in data.mixture.items() if weight > 0}
    if data.videos or INSIDE.value not in data.sources:
        got = f"data.videos={data.videos}" if data.videos else ", ".join(data.sources)
        raise app.UsageError(
            f"--inside: expected a data source of the config ({got}), got {INSIDE.value!r}"
        )
    others = weights.keys() - {INSIDE.value}
    names = sorted(others) if OUTSIDE.value is None else OUTSIDE.value
    if not names or not set(names) <= others:
        raise app.UsageError(
            f"--outside: expected other data sources of the mixture, {sorted(others)}, got {names}"
        )
    return names


def _percent(text):
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 100:
            return float(text)
    raise app.UsageError(f"--shares: expected numbers from 0 to 100, got {text!r}")


def _weights(mixture, inside, outside, share):
    """Returns mixture weights: `share` percent `inside`, the rest split as in `mixture`."""
    whole = sum(mixture[name] for name in outside)
    rest = {name: (100 - share) / 100 * mixture[name] / whole for name in outside}
    return {name: round(float(w), 9) for name, w in ({inside: share / 100} | rest).items()}


def _given(name):
    """Returns a config flag's file and its command-line overrides, without the data sources."""
    flag = flags.FLAGS[name]
    options = config_flags.get_override_values(flag)
    ours = "data.sources", "data.mixture"
    options = {key: value for key, value in options.items() if not key.startswith(ours)}
    return config_flags.get_config_filename(flag), options


def _command(module, own, **configs):
    """Returns a command line with the flags `own` and config overrides, flag name -> options."""
    line = [sys.executable, "-m", f"lawm_jax.{module}"]
    line += [f"--{key}={value}" for key, value in own.items() if value is not None]
    for name, options in configs.items():
        line += [f"--{name}.{key}={_text(value)}" for key, value in options.items()]
    return line


def _text(value):
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _shown(line):
    return shlex.join(["python", *line[1:]])


@contextlib.contextmanager
def _claimed(workdir):
    """Locks the workdir until all processes of this study have ended."""
    os.makedirs(workdir, exist_ok=True)
    with open(os.path.join(workdir, "lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"{workdir}: a study, or a command that it started, is still running there")
        os.set_inheritable(lock.fileno(), True)
        yield


def _run(stored, runs):
    """Prints the amount of work and runs the commands of all unfinished runs."""
    todo = [run for run in runs if _result(run) is None]
    for run in todo:
        for folder, steps in run["steps"].items():
            begun = _read(rundir.config(folder)).get("steps", steps)
            if begun != steps:
                sys.exit(
                    f"{folder}: expected {begun} steps as before, or a new --workdir, got {steps}"
                )
    model, controller = CONFIG.value, CONTROLLER.value
    print(
        f"{len(runs)} runs, {len(runs) - len(todo)} of them done. Each trains a world model on "
        f"{(STEPS.value or model.steps) * model.data.batch} clips and a controller on "
        f"{controller.steps * controller.data.batch}, and computes {EPISODES.value} plans.",
        flush=True,
    )
    for line in stored if todo else []:
        _call(line)
    begin = time.monotonic()
    for done, run in enumerate(todo, 1):
        for line in run["commands"]:
            _call(line)
            for folder, steps in run["steps"].items():
                if f"--workdir={folder}" in line and _newest(folder) < steps:
                    sys.exit(f"{folder}: stopped early; run the same command to resume the study")
        _record(run)
        each = (time.monotonic() - begin) / done / 60
        left = f"{each:.1f} minutes per run, {each * (len(todo) - done):.0f} minutes left"
        print(f"{done} of {len(todo)} runs: {left}", flush=True)


def _record(run):
    """Saves a finished run's results with its settings and checkpoints in study.json."""
    found = {"settings": run["settings"], "checkpoints": [*map(_newest, run["steps"])]}
    found["plan"] = _read(os.path.join(run["folder"], "plan.json"))
    path = rundir.evaluation(run["folder"], "prediction")
    found["prediction"] = _read(path)[INSIDE.value]
    path = os.path.join(run["folder"], "study.json")
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1, allow_nan=False)
    os.replace(f"{path}.new", path)


def _call(line):
    """Runs a command; forwards SIGTERM to it, and exits if it was stopped or failed."""
    print(f"\n$ {_shown(line)}", flush=True)
    asked = []
    process = subprocess.Popen(line, close_fds=False)  # inherits the lock

    def stop(*_):
        asked.append(True)
        process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked or code:
        sys.exit(
            "stopped; run the same command to resume" if asked else f"failed with exit code {code}"
        )


def _newest(folder):
    """Returns the step of a run's latest checkpoint, 0 without any; does not initialize JAX."""
    path = rundir.checkpoints(folder)
    names = os.listdir(path) if os.path.isdir(path) else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def _read(path):
    """Loads a JSON file, {} if it does not exist."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _result(run):
    """Returns a run's saved results, or None if the settings or checkpoints have changed."""
    found = _read(os.path.join(run["folder"], "study.json"))
    same = found.get("settings") == run["settings"]
    return found if same and found["checkpoints"] == [*map(_newest, run["steps"])] else None


def _report(runs, workdir):
    """Compares all runs; writes W/mixture.json and W/mixture.png and prints a table."""
    from lawm_jax.report import figures
    from lawm_jax.study import mixture

    names, inside = ("kind", "share", "seed"), INSIDE.value
    found = mixture.compare([{k: run[k] for k in names} | _result(run) for run in runs])
    with open(os.path.join(workdir, "mixture.json"), "w", encoding="utf-8") as file:
        json.dump({"inside": inside} | found, file, indent=1, allow_nan=False)
    lines = {}
    for row in found["rows"]:
        lines.setdefault(row["kind"], []).append((row["share"], row["error"]))
    bounds = {f"{k} {x['mean']:.3f}": x["mean"] for k, x in found["baselines"].items()}
    labels = f"share of {inside} in the world model's video, %", f"planning {found['measure']}, m"
    figures.shares(os.path.join(workdir, "mixture.png"), lines, bounds, *labels)
    print(f"\n{mixture.table(found)}\n{workdir}/mixture.json and .png")


if __name__ == "__main__":
    app.run(main)

"""Plans in stable-worldmodel's environments: python -m benchmarks.swm --env=TwoRoom --workdir=W.

Collects episodes with that package's own policies; trains a world model on their frames alone, a
controller on the actions of a tenth of the episodes, and a baseline on all labeled actions. Then
its `World.evaluate` measures how often each agent reaches goal images from held-out episodes: the
frame 25 steps after a random start, within 50 steps, in 50 episodes per seed. Both models plan with
our CEM and with that package's CEMSolver: plans of 5 x 5 actions, executed to the end before the
next plan, as in its published settings. These have 300 candidates, 30 elites and 30 iterations
(--samples=300 --iterations=30), which take 9 times as long as the default.

Each stage runs once; rerunning the command continues after the last finished one. --plan only
prints the stages. Requires `pip install -e '.[swm]'`. The stages of TwoRoom take about 15 minutes
in total on 2 CPU cores.
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import flags, logging

from benchmarks import timing
from lawm_jax.train import command
from lawm_jax.train.flags import define_output

ENV = flags.DEFINE_enum("env", "TwoRoom", ["TwoRoom", "PushT"], "Environment.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for data, runs and results.", required=True)
EPISODES = flags.DEFINE_integer("episodes", 500, "Number of training episodes.", 20)
STEPS = flags.DEFINE_integer("steps", 900, "Training steps of each world model.", 1)
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of evaluations of each agent.", 1)
SAMPLES = flags.DEFINE_integer("samples", 100, "Candidates of a plan.", 20)
ITERATIONS = flags.DEFINE_integer("iterations", 10, "Iterations of a plan.", 1)
AGENTS = flags.DEFINE_string("agents", "", "Agents to evaluate, separated by ;, or all.")
PLAN = flags.DEFINE_bool("plan", False, "Only print the plan.")
JSON = define_output("json", "JSON file to append the results to.")

FRAMESKIP = 5  # environment steps per step of the models
RATE = 10  # environment steps per second
HORIZON = 5  # model steps of a plan
GOAL, BUDGET = 25, 50  # environment steps to the goal, and at most
COUNT = 50  # episodes per seed


@dataclasses.dataclass(frozen=True)
class Env:
    """Describes an environment of stable-worldmodel.

    Attributes:
      name: of `World`.
      collector: function of a seed that returns the policy that collects episodes.
      size: side of the pictures, pixels.
      limit: maximum number of steps of an episode.
      tests: number of held-out episodes, of which starts and goals are drawn.
    """

    name: str
    collector: Callable
    size: int
    limit: int
    tests: int


def _expert(seed):
    from stable_worldmodel.envs.two_room import ExpertPolicy

    return ExpertPolicy(action_noise=3.0, action_repeat_prob=0.1, seed=seed)


def _weak(seed):
    from stable_worldmodel.envs.pusht import WeakPolicy

    return WeakPolicy(dist_constraint=100, seed=seed)


# Policies and limits of scripts/data/collect_tworooms.py and collect_weak_pusht.py.
ENVS = {
    "TwoRoom": Env("swm/TwoRoom-v1", _expert, size=64, limit=100, tests=100),
    "PushT": Env("swm/PushT-v1", _weak, size=96, limit=100, tests=60),
}


def collect(env, folder, count, seed):
    """Records `count` episodes to FOLDER/data.h5, unless they are there."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    world = make_world(env, min(count, 10), env.limit)
    world.set_policy(env.collector(seed))
    world.collect(partial / "data.h5", episodes=count, seed=seed, format="hdf5", progress=False)
    world.close()
    partial.rename(folder)


def make_world(env, count, limit):
    """Returns a `World` of `count` environments, with the pictures' size of `env`."""
    import gymnasium as gym
    import stable_worldmodel as swm
    import torch

    torch.set_num_threads(1)
    gym.logger.min_level = gym.logger.ERROR
    side = (env.size, env.size)
    return swm.World(env.name, num_envs=count, image_shape=side, max_episode_steps=limit)


def take_part(folder, whole, share):
    """Copies the first share of the episodes of WHOLE/data.h5 to FOLDER/data.h5."""
    import h5py

    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with h5py.File(whole / "data.h5") as old, h5py.File(partial / "data.h5", "w") as new:
        count = round(share * len(old["ep_len"]))
        rows = int(old["ep_len"][:count].sum())
        for key in old:
            new[key] = old[key][: count if key in ("ep_len", "ep_offset") else rows]
    partial.rename(folder)


def commands(env, workdir, steps):
    """Lists the commands that encode and train: (title, what is there afterwards, module, flags).

    Those of `lawm_jax.train` continue where they were interrupted, and end at once if there is
    nothing left to do.
    """
    states = {name: workdir / "states" / name for name in DATA}
    every, few = (f"records:{path.resolve()}" for path in states.values())
    width, fps = 2 * FRAMESKIP, RATE / FRAMESKIP
    for name, out in states.items():
        source = f"swm:{workdir.resolve() / 'data' / name}?rate={RATE}"
        view = "--encoder=lawm.py:size=nano", f"--encoder.data.size={env.size}"
        view += f"--encoder.data.fps={RATE}", f"--encoder.data.frames={HORIZON * FRAMESKIP + 1}"
        given = f"--source={source}", f"--out={out}", *view
        yield f"states of {name}", out / "info.json", "lawm_jax.ingest", given
    clips = f"--config.data.fps={fps}", f"--config.data.frames={HORIZON + 1}"
    clips += "--config.data.batch=16", f"--config.data.size={env.size}"
    common = (*clips, f"--config.data.videos={every}", f"--config.steps={steps}")
    model, labelled = workdir / "latent", workdir / "labelled"
    given = "--config=lawm.py:size=nano,latent=noisy", *common, f"--workdir={model}"
    yield "world model of pictures", None, "lawm_jax.train", given
    given = "--config=labelled.py:size=nano", *common, f"--config.latent.dim={width}"
    yield "labeled world model", None, "lawm_jax.train", (*given, f"--workdir={labelled}")
    given = "--config=controller.py:size=nano", *clips[:3], f"--config.data.videos={few}"
    given += f"--config.controller.actions={width}", "--config.steps=500", f"--config.model={model}"
    yield "controller", None, "lawm_jax.train", (*given, f"--workdir={model / 'controller'}")


def measure(folder, fps, size):
    """Measures the statistics of the actions between frames at `fps`, unless they are there."""
    path = folder / "statistics.json"
    if path.exists() and json.loads(path.read_text())["fps"] == fps:
        return
    path.unlink(missing_ok=True)  # `ingest` measures those at the rate of the records
    given = f"--source=records:{folder.resolve()}", "--statistics", f"--fps={fps}"
    given += f"--size={size}", f"--resize={size}"
    subprocess.run([sys.executable, "-m", "lawm_jax.ingest", *given], check=True)


DATA = "train", "few"


def train(env, workdir, steps):
    """Runs `commands` and measures the actions before the first training."""
    for title, done, module, options in commands(env, workdir, steps):
        if done is not None and done.exists():
            continue
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", module, *options], check=True)
        if done is not None:
            measure(done.parent, RATE / FRAMESKIP, env.size)
        print(f"{title}: {time.monotonic() - begin:.0f} s", flush=True)


def starts(dataset, seed):
    """Draws episodes and start steps as scripts/plan/eval_wm.py does: two int arrays [COUNT]."""
    places = [
        (episode, start)
        for episode, length in enumerate(dataset.lengths)
        for start in range(length - GOAL)
    ]
    drawn = np.random.default_rng(seed).choice(len(places), COUNT, replace=False)
    return np.array(places)[np.sort(drawn)].T


def agents(workdir, options):
    """Returns name -> function of a seed that makes a policy for `World.set_policy`.

    Args:
      workdir: holds the trained models; without them, only the random agent is returned.
      options: `samples`, `elites` and `iterations` of both CEMs.
    """
    from stable_worldmodel.policy import RandomPolicy

    from lawm_jax.plan import policy

    def ours(load, seed):
        return policy.Policy(*load(), HORIZON, options=options, seed=seed)

    def theirs(load, seed):
        return solver_policy(*load(), options, seed)

    found = {"random": lambda seed: RandomPolicy(seed=seed)}
    for name, folder in (("pictures, few labels", "latent"), ("labeled actions", "labelled")):
        if (workdir / folder / "checkpoints").exists():
            load = functools.cache(functools.partial(_load, workdir / folder))
            found[name] = functools.partial(ours, load)
            found[f"{name}, CEMSolver"] = functools.partial(theirs, load)
    return found


def _load(folder):
    import lawm_jax as lawm

    return lawm.load(str(folder), mesh=lawm.make_mesh())


def solver_policy(model, params, options, seed):
    """Returns the package's own policy and CEMSolver, with our model as its cost.

    `model`, `params`, `options` and `seed` are as in `agents`.
    """
    import stable_worldmodel as swm

    from lawm_jax.plan import policy

    solver = swm.solver.CEMSolver(
        Cost(model, params),
        var_scale=float(policy.action_std(model, params).mean()),  # it is a standard deviation
        num_samples=options["samples"],
        topk=options["elites"],
        n_steps=options["iterations"],
        seed=seed,
    )
    config = swm.PlanConfig(HORIZON, receding_horizon=HORIZON, action_block=FRAMESKIP)
    return swm.policy.WorldModelPolicy(solver=solver, config=config)


class Cost:
    """Evaluates candidates of a CEMSolver with our model: its protocol `Costable`.

    Candidates are clipped to the action space [-1, 1], as the environments clip actions.
    """

    def __init__(self, model, params):
        import jax

        from lawm_jax.evaluate import batched
        from lawm_jax.plan import search
        from lawm_jax.train import cpu

        self.encode = batched.frame_encoder(model, params)

        @functools.partial(jax.jit, compiler_options=cpu.options())
        def cost(params, start, goal, plans):
            return search.goal_cost(search.from_start(model, params, start), goal)(plans)

        self.cost = functools.partial(cost, params)

    def get_cost(self, infos, candidates):
        """Returns the costs [1, S] (a tensor) of candidates [1, S, H, U] from infos' pictures."""
        import torch

        if "states" not in infos:  # once per plan
            pictures = (infos[key][:, 0].numpy() for key in ("pixels", "goal"))
            infos["states"] = [self.encode(x)[0, 0] for x in pictures]
        plans = np.clip(candidates[0].numpy(), -1, 1)
        return torch.tensor(np.asarray(self.cost(*infos["states"], plans)))[None]


def evaluate(env, workdir, make, seeds):
    """Evaluates one agent on the starts and goals of all seeds at once: a dict of results."""
    import stable_worldmodel as swm

    columns = ["pixels", "state"]
    dataset = swm.data.HDF5Dataset(path=workdir / "data/test/data.h5", keys_to_load=columns)
    drawn = [starts(dataset, seed) for seed in range(seeds)]
    episodes, begins = np.concatenate(drawn, axis=1)
    world = make_world(env, len(episodes), 2 * BUDGET)
    world.set_policy(make(0))
    begin = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):  # CEMSolver prints timings
        found = world.evaluate(
            dataset=dataset,
            episodes_idx=episodes.tolist(),
            start_steps=begins.tolist(),
            goal_offset=GOAL,
            eval_budget=BUDGET,
            callables=CALLABLES,
        )
    world.close()
    return {
        "reached": found["episode_successes"].astype(int).reshape(seeds, COUNT).tolist(),
        "episodes": episodes.reshape(seeds, COUNT).tolist(),
        "starts": begins.reshape(seeds, COUNT).tolist(),
        "seconds": time.monotonic() - begin,
    }


# Sets the state and the goal of an environment from the columns of the data set.
CALLABLES = [
    {"method": "_set_state", "args": {"state": {"value": "state"}}},
    {"method": "_set_goal_state", "args": {"goal_state": {"value": "goal_state"}}},
]


def evaluate_all(env, workdir, options, names, seeds):
    """Evaluates agents that have no results yet; returns name -> `summarize`'s result."""
    found, folder = {}, workdir / "results"
    folder.mkdir(exist_ok=True)
    asked = "{samples} x {iterations}".format(**options)
    known = agents(workdir, options)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--agents: expected some of {'; '.join(known)}, got {unknown[0]}")
    for name, make in known.items():
        if names and name not in names:
            continue
        path = folder / f"{name}, {asked}, {seeds} seeds.json"
        if not path.exists():
            path.write_text(json.dumps(evaluate(env, workdir, make, seeds)))
        found[name] = summarize(json.loads(path.read_text()))
        mean, low, high = found[name]["success"].values()
        each = ", ".join(f"{x:.0f}" for x in found[name]["seeds"])
        print(f"  {name:34}{mean:5.1f}% [{low:.1f}, {high:.1f}], seeds {each}", flush=True)
    return found


def summarize(result):
    """Summarizes a result of `evaluate`: success in percent, its interval, each seed's."""
    from lawm_jax.evaluate import metrics

    success = metrics.interval(np.ravel(result["reached"]), np.ravel(result["episodes"]))
    return {
        "success": {key: 100 * success[key] for key in ("mean", "low", "high")},
        "seeds": [100 * float(np.mean(x)) for x in result["reached"]],
        "seconds": result["seconds"],
    }


def main(argv):
    """Runs all stages and prints the results."""
    del argv
    from lawm_jax.train import cpu

    logging.set_verbosity(logging.WARNING)
    cpu.device_per_core()
    env, workdir = ENVS[ENV.value], pathlib.Path(WORKDIR.value)
    few = round(EPISODES.value / 10)
    print(
        f"{env.name}, {env.size} x {env.size} pixels: collects {EPISODES.value} episodes to train "
        f"on, {few} of them with labels, and {env.tests} to test on; trains {STEPS.value} steps; "
        f"{SEEDS.value} x {COUNT} episodes per agent"
    )
    for title, _, module, options in commands(env, workdir, STEPS.value):
        print(f"  {title}: python -m {module}", *options)
    if PLAN.value:
        return
    data = workdir / "data"
    collect(env, data / "train", EPISODES.value, seed=0)
    take_part(data / "few", data / "train", 0.1)
    collect(env, data / "test", env.tests, seed=1_000_000)
    train(env, workdir, STEPS.value)
    options = dict(samples=SAMPLES.value, elites=SAMPLES.value // 10, iterations=ITERATIONS.value)
    names = [name for name in AGENTS.value.split(";") if name]
    found = evaluate_all(env, workdir, options, names, SEEDS.value)
    about = timing.about("jax", "torch", "stable-worldmodel") | {"env": ENV.value}
    about |= {"episodes": EPISODES.value, "labeled episodes": few, "steps": STEPS.value}
    timing.save(JSON.value, about | options | {"agents": found})


if __name__ == "__main__":
    command.run(main)

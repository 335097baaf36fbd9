"""Plans and their errors, in a world whose answer is known, and from the command line."""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, run_module, write_run
from test_simulate import panda_episode, skip_unless

import configs.controller
import lawm_jax as lawm
from lawm_jax import latents, world_model
from lawm_jax.aot import targets
from lawm_jax.aot.flops import CHIPS
from lawm_jax.data import poses
from lawm_jax.evaluate import context, metrics, tables
from lawm_jax.evaluate import run as evaluate_run
from lawm_jax.evaluate.clips import Clips, fixed
from lawm_jax.export import run as export_run
from lawm_jax.nn.controller import Controller
from lawm_jax.plan import baselines, columns, protocols, search, tasks
from lawm_jax.plan import run as plan_run
from lawm_jax.play import library
from lawm_jax.train import models, objectives, rundir

encode = jax.jit(world_model.encode, static_argnums=0)
init_controller = jax.jit(world_model.init_controller, static_argnums=0)
PATTERN = np.linalg.qr(np.random.default_rng(7).normal(size=(32, 3)))[0].T
PATTERN = 6 * PATTERN.reshape(3, 4, 8).astype(np.float32)  # [U, N, D], orthogonal


class Linear(nn.Module):
    """A forward model of a known world: each action adds its pattern to the state."""

    @nn.compact
    def __call__(self, s, z, past=(), keep=False):
        s = jnp.broadcast_to(s, (len(z), *s.shape[1:]))
        s = s + jnp.einsum("btu,und->btnd", z, jnp.array(PATTERN))
        return (s, jnp.zeros((1, len(z), 1, 1))) if keep else s


@pytest.fixture
def world(tiny):
    """A model of that world, of labelled actions in their own units."""
    model = dataclasses.replace(
        tiny("none")[0],
        inverse=None,
        predictor=Linear(),
        latent=latents.Labelled(3),
        normalise=False,
    )
    params = {"predictor": {}, "latent": {"mean": jnp.zeros(3), "std": jnp.ones(3)}}
    return model, params


def episodes(count, steps, seed, scale=(0.03, 0.02, 0.04), turn=False):
    """Clips of that world, or of one where actions are moves of a vehicle: [count, steps + 1]."""
    random = np.random.default_rng(seed)
    u = (random.normal(size=(count, steps, 3)) * scale).astype(np.float32)
    if turn:  # keeps its speed and turn, so that a held action is the truth
        u = np.repeat(u[:, :1], steps, 1)
    s = random.normal(size=(count, 1, 4, 8)).astype(np.float32)
    moved = np.einsum("btu,und->btnd", u.cumsum(1), PATTERN)
    return Clips(np.concatenate([s, s + moved], 1), None, u, np.arange(count).astype(str))


def rows(found):
    return {row["name"]: row for row in found}


def test_in_a_known_world_the_plans_sum_is_the_truths(world):
    clips, training = episodes(6, 4, 0), episodes(32, 6, 1)
    found = rows(tasks.reach({"model": world}, clips, training))
    moved = clips.actions[:, :3].sum(1)
    none = np.abs(moved).sum(1)
    assert found["no action"]["error"]["mean"] == pytest.approx(none.mean(), rel=1e-5)
    assert found["model"]["error"]["mean"] < 0.05 * none.mean()
    assert found["model"]["correlation"] == pytest.approx([1, 1, 1], abs=0.01)
    assert found["model"]["distance"]["mean"] < 0.01
    difference = found["model"]["error"]["mean"] - found["no action"]["error"]["mean"]
    assert found["model"]["paired"]["mean"] == pytest.approx(difference)
    assert found["model"]["score"]["mean"] == pytest.approx(
        800 * (0.1 - found["model"]["error"]["mean"])
    )


def test_all_baselines_errors_are_those_of_numpy(world):
    clips, training = episodes(40, 3, 0), episodes(64, 5, 1)
    found = rows(tasks.reach({}, clips, training, seed=3))
    moved = clips.actions.sum(1)
    mean = 3 * training.actions.reshape(-1, 3).mean(0)
    expected = np.abs(mean - moved).sum(1).mean()
    assert found["mean action"]["error"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert found["mean action"]["correlation"] == [None] * 3
    assert found["no action"]["correlation"] == [None] * 3
    # Random and true sums are independent Gaussians: the mean of |N(0, 2 * 3 std^2)| on each axis.
    std = training.actions.reshape(-1, 3).std(0)
    expected = np.sqrt(6 * 2 / np.pi) * std.sum()
    assert found["random action"]["error"]["mean"] == pytest.approx(expected, rel=0.15)
    assert all(row["distance"] is None for row in found.values())


def test_the_score_is_that_of_the_error_and_falls_to_0_at_a_tenth_of_a_metre():
    found = metrics.action_score({"mean": 0.05, "low": 0.025, "high": 0.2})
    assert found == {"mean": pytest.approx(40), "low": 0, "high": pytest.approx(60)}
    assert metrics.action_score({"mean": 0.1, "low": None, "high": None})["mean"] == 0


def test_retrieval_finds_the_window_that_starts_and_ends_as_asked():
    clips, training = episodes(3, 3, 0), episodes(8, 6, 1)
    s, u = training.s.copy(), training.actions
    places = [(5, 0), (2, 3), (7, 1)]  # clip, and first step
    noise = np.random.default_rng(2).normal(size=(2, 3, 4, 8)) * 0.01
    start, goal = clips.s[:, 0], clips.s[:, 3]
    for (clip, t), a, b, eps in zip(places, start, goal, noise.swapaxes(0, 1), strict=True):
        s[clip, t], s[clip, t + 3] = a + eps[0], b + eps[1]
    s[0, 0] = start[0]  # starts so as well, and ends elsewhere
    found = baselines.nearest(start, goal, s, u, 3)
    np.testing.assert_array_equal(found, [u[clip, t : t + 3] for clip, t in places])


@pytest.mark.parametrize("planner", ["icem", "mppi", "gradient", "cem_gradient"])
def test_every_planner_gets_near_the_goal(world, planner):
    clips, training = episodes(4, 3, 0), episodes(32, 5, 1)
    found = rows(tasks.reach({"model": world}, clips, training, planner=planner))
    assert found["model"]["error"]["mean"] < 0.35 * found["no action"]["error"]["mean"]


def test_bounds_are_in_deviations_of_the_training_actions(world):
    clips, training = episodes(4, 3, 0, scale=(1, 1, 1)), episodes(32, 5, 1)
    found = rows(tasks.reach({"model": world}, clips, training, bound=0.5))["model"]
    # Goals are so far away that all three steps go as far as they may.
    expected = -3 * 0.5 * training.actions.reshape(-1, 3).std(0).sum()
    assert found["paired"]["mean"] == pytest.approx(expected, rel=0.02)


def test_a_vehicle_that_holds_its_action_is_followed(world):
    scale = (0.3, 0.1, 0.1)
    clips = episodes(12, 8, 0, scale, turn=True)
    training = episodes(64, 12, 1, scale, turn=True)
    found = rows(tasks.walk({"model": world}, clips, training, spacing=0.25))
    held = found["truth, held"]
    assert held["ate"]["mean"] < 1e-6 and held["yaw"]["mean"] < 1e-6
    model, mean = found["model"], found["mean action"]
    assert model["ate"]["mean"] < 0.4 * mean["ate"]["mean"]  # mean of the best 5 of 120
    assert model["yaw"]["mean"] < 0.5 * mean["yaw"]["mean"]
    assert min(model["correlation"]) > 0.8
    assert model["ate_waypoints"]["mean"] == pytest.approx(4 * model["ate"]["mean"])
    finer = dict(samples=300, elites=10, iterations=12, average=False)
    found = rows(tasks.walk({"model": world}, clips, training, options=finer))
    assert found["model"]["ate"]["mean"] < 0.05 * mean["ate"]["mean"]
    assert "ate_waypoints" not in found["model"]
    text = tables.text("nav", columns.tables("plans of 8 steps", list(found.values())))
    assert "nav, plans of 8 steps" in text and "nearest training window" in text


def test_straight_lines_that_turn_at_their_ends_are_found_from_a_context(world):
    nwm = protocols.PROTOCOLS["nwm"]
    random = np.random.default_rng(0)
    u = np.zeros((12, 11, 3), np.float32)
    u[:, :, 0] = random.normal(0.219, 0.019, (12, 1))
    u[:, 10, 2] = random.normal(0, 0.3, 12)  # the last of 8 steps after 4 known states
    s = random.normal(size=(12, 1, 4, 8)).astype(np.float32)
    s = np.concatenate([s, s + np.einsum("btu,und->btnd", u.cumsum(1), PATTERN)], 1)
    clips, training = Clips(s, None, u, np.arange(12).astype(str)), episodes(16, 9, 1)
    few = dict(samples=300, elites=10, iterations=12)
    found = rows(tasks.walk({"model": world}, clips, training, options=few, protocol=nwm))
    assert found["model"]["ate"]["mean"] < 0.01 and found["model"]["yaw"]["mean"] < 0.01
    assert found["random action"]["ate"]["mean"] > 0.2


def matrices(actions):
    """The poses after each step as 3 x 3 matrices of SE(2), by products of moves."""
    pose, found = np.eye(3), []
    for dx, dy, turn in actions.astype(np.float64):
        c, s = np.cos(turn), np.sin(turn)
        pose = pose @ np.array([[c, -s, dx], [s, c, dy], [0, 0, 1]])
        found.append(pose)
    return np.array(found)


def paths():
    random = np.random.default_rng(0)
    scale = np.array([0.5, 0.2, 0.7], np.float32)
    return random.normal(size=(2, 5, 8, 3)).astype(np.float32) * scale


def test_poses_are_products_of_moves_and_give_the_moves_back():
    actions = paths()[0][0]
    found, true = poses.follow(actions), matrices(actions)
    np.testing.assert_allclose(found[:, :2], true[:, :2, 2], atol=1e-12)
    np.testing.assert_allclose(np.cos(found[:, 2]), true[:, 0, 0], atol=1e-12)
    start = np.concatenate([np.zeros((1, 3)), found])
    np.testing.assert_allclose(poses.body_frame(start[:, :2], start[:, 2]), actions, atol=1e-5)
    with pytest.raises(ValueError, match=r"actions: expected \[..., T, 3\], got \(3,\)"):
        poses.follow(np.zeros(3))


def test_trajectory_errors_are_those_of_positions_in_the_frame_of_the_start():
    for planned, true in zip(*paths(), strict=True):
        ate, rpe, yaw = (x[0] for x in metrics.trajectory_errors(planned[None], true[None]))
        a, b = matrices(planned), matrices(true)
        off = (a - b)[:, :2, 2]
        assert ate == pytest.approx(np.sqrt((off**2).sum(1).mean()))
        assert rpe == pytest.approx(np.sqrt((np.diff(off, axis=0) ** 2).sum(1).mean()))
        turn = np.linalg.inv(b[-1]) @ a[-1]
        assert yaw == pytest.approx(abs(np.arctan2(turn[1, 0], turn[0, 0])), abs=1e-6)
    with pytest.raises(
        ValueError, match="expected the same shape .n, H, 3. with H at least 2, got"
    ):
        metrics.trajectory_errors(planned[None, :1], true[None, :1])


def test_a_straight_plan_of_an_arcs_speed_has_the_chords_of_its_turns_as_rpe():
    # 8 steps of 0.25 m that turn by 90 degrees in all: before step k the heading is off by k pi/16.
    straight = np.tile(np.float32([0.25, 0, 0]), (1, 8, 1))
    arc = straight + np.float32([0, 0, np.pi / 16])
    chords = 2 * 0.25 * np.sin(np.pi / 32 * np.arange(1, 8))
    _, rpe, yaw = metrics.trajectory_errors(straight, arc)
    assert rpe[0] == pytest.approx(np.sqrt(np.mean(chords**2))) == pytest.approx(0.208, abs=5e-4)
    assert yaw[0] == pytest.approx(np.pi / 2, abs=1e-6)


def test_trajectory_errors_are_evos_as_nwm_calls_it():
    reason = "needs pip install evo"
    ape = pytest.importorskip("evo.main_ape", reason=reason)
    rpe = pytest.importorskip("evo.main_rpe", reason=reason)
    core = pytest.importorskip("evo.core.metrics", reason=reason)
    trajectory = pytest.importorskip("evo.core.trajectory", reason=reason)

    def path(actions):
        """Positions alone, and one heading for all, as NWM's `actions_to_traj`."""
        flat = matrices(actions)[:, :2, 2]
        where = np.concatenate([flat, np.zeros((len(flat), 1))], 1)
        turned = np.tile([0.0, 0, 0, 1], (len(flat), 1))
        times = np.arange(len(flat), dtype=float)
        return trajectory.PoseTrajectory3D(where, turned, times)

    part = core.PoseRelation.translation_part
    options = dict(pose_relation=part, align=False, correct_scale=False)
    frames = dict(delta=1.0, delta_unit=core.Unit.frames, rel_delta_tol=0.1)
    for planned, true in zip(*paths(), strict=True):
        pair = path(true), path(planned)
        expected = [ape.ape(*pair, **options), rpe.rpe(*pair, **options, **frames)]
        ate, moves, _ = metrics.trajectory_errors(planned[None], true[None])
        found = [result.stats["rmse"] for result in expected]
        assert (ate[0], moves[0]) == pytest.approx(found, rel=1e-6)


def test_what_does_not_fit_is_refused(world, tiny):
    clips, training = episodes(2, 3, 0), episodes(4, 5, 1)
    gaussian = np.zeros((3, 3)), np.ones((3, 3))
    start, goal = clips.s[:, 0], clips.s[:, 3]
    with pytest.raises(ValueError, match=r"start, goal: .* got \(2, 4, 8\) and \(2, 3, 8\)"):
        search.search(*world, start, goal[:, :3], *gaussian)
    with pytest.raises(ValueError, match="horizon: expected 1 to 3, the actions of clips, got 4"):
        tasks.reach({}, clips, training, horizon=4)
    with pytest.raises(
        ValueError, match="horizon: expected 1 to 5, the actions of training, got 6"
    ):
        tasks.reach({}, episodes(2, 8, 0), training, horizon=6)
    with pytest.raises(ValueError, match="planner: expected one of .*, got 'magic'"):
        search.search(*world, start, goal, *gaussian, planner="magic")
    with pytest.raises(ValueError, match="options: expected options of mppi, got .'elites'"):
        search.search(*world, start, goal, *gaussian, planner="mppi", options={"elites": 3})
    model, params, s = tiny("noisy")
    with pytest.raises(ValueError, match="has no controller; train one with configs/controller.py"):
        search.search(model, params, s[:, 0], s[:, 1], *gaussian)
    arms = clips._replace(actions=np.zeros((2, 3, 7), np.float32))
    with pytest.raises(ValueError, match="clips: expected actions of 3 values, got 7"):
        tasks.walk({}, arms, training, horizon=3)
    with pytest.raises(ValueError, match="clips: expected 3 actions for 4 states, got None"):
        tasks.reach({}, clips._replace(actions=None), training)


def test_rolled_out_actions_are_rolled_out_latents_mapped_step_by_step(tiny):
    model, params, s = tiny("none")
    model = dataclasses.replace(model, controller=Controller(16, 2, "state", 16, 2, 1))
    params = params | init_controller(model, jax.random.key(3), s)
    u = jax.random.normal(jax.random.key(4), (2, 2, 2))
    z = jnp.zeros((2, 1, 16))
    prefill = jax.jit(world_model.prefill, static_argnums=0)
    cache = prefill(model, params, s[:, :2], z)
    one = prefill(model, params, s[:1, :2], z[:1])

    @jax.jit
    def slowly(u):
        state, led, states = s[:, 1:2], z, []
        for t in range(2):  # every step again from the whole past
            led = jnp.concatenate(
                [led, world_model.map_actions(model, params, u[:, t : t + 1], state)], 1
            )
            state = world_model.rollout(model, params, s[:, :2], led)[:, -1:]
            states.append(state)
        return jnp.concatenate(states, 1)

    drive = jax.jit(lambda cache, u: world_model.rollout_actions(model, params, cache, u))
    found = drive(cache, u)
    np.testing.assert_allclose(found, slowly(u), atol=1e-4)
    np.testing.assert_allclose(drive(one, u)[0], found[0], atol=1e-4)  # one context for both
    with pytest.raises(ValueError, match=r"u: expected \[2, at least 1, U\], got \(3, 3, 2\)"):
        world_model.rollout_actions(model, params, cache, jnp.zeros((3, 3, 2)))
    with pytest.raises(ValueError, match=r"u: expected \[P, at least 1, U\]"):
        world_model.rollout_actions(model, params, one, jnp.zeros((3, 0, 2)))


def command(module, *flags, **environment):
    """Runs a module of the package in another process."""
    return run_module(module, *flags, env=os.environ | environment, timeout=200)


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    """Writes a tiny world model, a controller of it and a labelled bound, on the Panda."""
    folder = tmp_path_factory.mktemp("runs") / "model"
    get = lambda name, arg: importlib.import_module(f"configs.{name}").get_config(arg)  # noqa: E731
    configs = {
        "": get("lawm", "size=tiny,latent=none"),
        "bounds/labelled": get("labelled", "size=tiny,source=panda"),
        "controller/panda": get("controller", "size=tiny,kind=state"),
    }
    for name, config in configs.items():
        if "controller" in config:
            config.model = str(folder)
            made = objectives.complete(json.loads(config.to_json_best_effort()))
            config = type(config)(made)
        write_run(config, folder / name, (4,))
    return folder


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Less of the training part, which is encoded anew for each plan."""
    monkeypatch.setattr(plan_run, "TRAINING", 16)


def test_plans_are_printed_and_written(run, capsys):
    path = plan_run.plan(str(run), "panda", episodes=6, samples=24, iterations=2)
    assert "panda, plans of 3 steps" in capsys.readouterr().out
    assert path == str(run / "eval" / "plan_panda_episodes=6_samples=24_iterations=2.json")
    written = json.loads(pathlib.Path(path).read_text())
    assert written["controller"].endswith("controller/panda") and written["episodes"] == 6
    assert written["controller_kind"] == "state"
    named = plan_run.plan(
        str(run), "panda", episodes=2, samples=24, iterations=1, controller="panda"
    )
    assert json.loads(pathlib.Path(named).read_text())["controller"] == written["controller"]
    assert f"controller: {written['controller']}, trained on panda" in capsys.readouterr().out
    (plan,) = written["plans"]
    names = ["no action", "mean action", "random action", "nearest training window"]
    names += ["none", "labelled"]
    assert [row["name"] for row in plan["rows"]] == names and plan["horizon"] == 3
    # On true labels of lawm_mini, of the same fixed clips.
    config = importlib.import_module("configs.lawm").get_config("size=tiny")
    clips = fixed(config, "panda", lambda video: np.zeros((len(video), 4, 1, 1)), 6)
    assert clips.video.shape == (6, 4, 64, 64, 3) and len(set(clips.episodes)) == 6
    none = np.abs(clips.actions.sum(1)).sum(1).mean()
    assert plan["rows"][0]["error"]["mean"] == pytest.approx(none, rel=1e-5)


def test_a_vehicle_is_planned_for_by_labelled_actions_and_a_controller_by_name(run, capsys):
    folder = str(run / "bounds" / "labelled")
    with pytest.raises(
        plan_run.Refused, match="workdir: expected .* got one of another data source"
    ):
        plan_run.plan(folder, "nav")
    with pytest.raises(
        plan_run.Refused, match=r"expected one for nav \(mini:nav\) in .* got none; train it"
    ):
        plan_run.plan(str(run), "nav")
    few = dict(planner="mppi", episodes=3, horizon=[2], samples=8, iterations=2)
    walks = dict(data="recon=mini:nav")  # they stand in for it
    path = plan_run.plan(str(run), "recon", controller="panda", **walks, **few)
    settings = "controller=panda_planner=mppi_episodes=3_horizon=2_samples=8_iterations=2"
    assert path == str(run / "eval" / f"plan_recon_data=mini-nav_{settings}.json")
    written = json.loads(pathlib.Path(path).read_text())
    row = written["plans"][0]["rows"][-1]
    assert row["name"] == "none" and "ATE, waypoints" in capsys.readouterr().out
    assert row["ate_waypoints"]["mean"] == pytest.approx(row["ate"]["mean"] / 0.25)
    assert written["planner"]["name"] == "mppi"
    assert written["controller"].endswith("controller/panda")


@pytest.mark.parametrize(
    "given, name",
    [
        (dict(planner="cem", bound=None), ""),
        (dict(planner="mppi", bound=0.5), "_planner=mppi_bound=0.5"),
        (
            dict(data="panda=mini:/a b/panda", controller="W/c/blind", horizon=[8, 4]),
            "_data=mini-a-b-panda_controller=W-c-blind_horizon=8,4",
        ),
    ],
)
def test_results_of_other_settings_get_other_names(given, name):
    assert plan_run.result_name("panda", False, given) == f"plan_panda{name}"
    assert plan_run.result_name("panda", True, given) == f"plan_panda_closed{name}"


def test_the_command_passes_its_flags_on():
    code = """
from absl import app
from lawm_jax.plan import __main__, run
from lawm_jax.plan import protocols
assert __main__.TASKS == list(run.TASKS)
assert __main__.PROTOCOLS == list(protocols.PROTOCOLS)
run.plan = lambda *given, **more: print(given, {k: v for k, v in more.items() if v is not None})
flags = "--data=panda=x --controller=c --planner=mppi --episodes=2 --horizon=4 --horizon=3 "
flags += "--samples=5 --iterations=6 --bound=0.5 --chunk=7 --closed-loop --json=f "
flags += "--protocol=nwm --episodes_from=e.csv"
app.run(__main__.main, ["plan", "--workdir=W", "--task=panda", *flags.split()])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    expected = dict(data="panda=x", controller="c", planner="mppi", episodes=2, horizon=[4, 3])
    expected |= dict(samples=5, iterations=6, bound=0.5, chunk=7, closed_loop=True, json_file="f")
    expected |= dict(protocol="nwm", episodes_from="e.csv")
    assert done.stdout == f"{('W', 'panda')} {expected}\n", done.stderr


@pytest.mark.parametrize(
    "flags, why",
    [
        (["--samples=10"], "--samples: expected at least 11 for cem, got 10"),
        (["--task=nav", "--samples=5"], "--samples: expected at least 6 for cem, got 5"),
        (["--planner=magic"], "--planner: expected one of cem, icem, .*, got 'magic'"),
        (["--bound=0"], "expected a positive number"),
        (["--bound=nan"], "expected a positive number"),
        (["--horizon=0"], "--horizon: expected a positive integer, got 0"),
        (["--chunk=0"], "--chunk: expected a positive integer"),
        (["--iterations=-1"], "--iterations: expected a positive integer"),
    ],
)
def test_flags_out_of_range_are_errors_before_work_begins(flags, why):
    done = command("plan", "--workdir=nowhere", "--task=panda", *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(f"error: (--bound=.*)?{why}", done.stderr)


def test_a_protocol_sets_what_no_flag_sets(run, monkeypatch, tmp_path):
    seen = []
    original, read = tasks.load, rundir.read_config

    def zoomed(folder):
        config = read(folder)
        config["data"]["resize"] = 73
        return config

    monkeypatch.setattr(rundir, "read_config", zoomed)

    def load(config, *given):
        seen.append((config.data.resize, config.data.size, given[4]))
        return original(config, *given)

    monkeypatch.setattr(tasks, "load", load)
    rows_ = [{"episode": "test/0003.mp4", "start": 5}, {"episode": "test/0001", "start": 60}]
    (tmp_path / "clips.json").write_text(json.dumps(rows_))
    few = dict(samples=24, iterations=2, episodes_from=str(tmp_path / "clips.json"))
    path = plan_run.plan(str(run), "panda", protocol="jepa-wms", **few)
    written = json.loads(pathlib.Path(path).read_text())
    assert written["protocol"] == "jepa-wms" and written["episodes"] == 2
    assert re.search(r"_protocol=jepa-wms_episodes_from=clips.json-\w{6}.json$", path)
    assert written["episodes_from"] == few["episodes_from"]
    (plan,) = written["plans"]
    assert plan["horizon"] == 3 and [x[-8:] for x in plan["names"]] == ["0003.mp4", "0001.mp4"]
    few = dict(samples=8, episodes=2, controller="panda", data="recon=mini:nav")
    path = plan_run.plan(str(run), "recon", protocol="nwm", **few)
    (plan,) = json.loads(pathlib.Path(path).read_text())["plans"]
    assert plan["horizon"] == 8 and rows(plan["rows"])["none"]["ate"]["mean"] > 0
    assert seen == [(64, 64, 4), (73, 64, 12)]  # the full height; 4 known states and 8 ahead


@pytest.mark.parametrize(
    "task, asked, why",
    [
        ("nav", dict(protocol="nwm"), "protocol: expected --task recon for nwm, got nav; .*recon="),
        ("recon", dict(protocol="jepa-wms"), "expected --task panda or droid for jepa-wms"),
        ("panda", dict(protocol="mine"), "protocol: expected one of paper, jepa-wms, nwm"),
        ("panda", dict(protocol="jepa-wms", closed_loop=True), "closed-loop: .* got jepa-wms"),
        ("panda", dict(episodes_from="x.csv", closed_loop=True), "closed-loop: .* got one"),
        ("recon", dict(protocol="nwm", samples=5), "samples: expected at least 6 for cem, got 5"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(task, asked, why):
    with pytest.raises(plan_run.Refused, match=why):
        plan_run.plan("nowhere", task, **asked)


def test_a_new_planner_is_a_function_and_a_line(run, monkeypatch):
    def guess(cost, key, mean, std, samples=3, chunk=None):
        plans = mean[None] + std[None] * jax.random.normal(key, (samples, *mean.shape))
        costs = cost(plans)
        return plans[costs.argmin()], costs.min()

    monkeypatch.setitem(search.PLANNERS, "guess", guess)
    path = plan_run.plan(str(run), "panda", planner="guess", episodes=2, samples=5)
    written = json.loads(pathlib.Path(path).read_text())
    assert written["planner"] == {"name": "guess", "bound": None, "samples": 5}
    assert rows(written["plans"][0]["rows"])["none"]["distance"]["mean"] > 0


def test_a_controller_without_a_checkpoint_is_said_to_be_untrained(run, tmp_path):
    folder = tmp_path / "young"
    folder.mkdir()
    shutil.copy(run / "controller" / "panda" / "config.json", folder)
    for name, why in (
        (folder, f"{folder}: expected a trained controller, got a run without checkpoints"),
        (tmp_path / "none", "none: not found; expected a run's folder or the name"),
    ):
        with pytest.raises(plan_run.Refused, match=f"controller: .*{why}"):
            plan_run.plan(str(run), "panda", controller=str(name))
    with pytest.raises(FileNotFoundError, match="expected a trained controller, got a run without"):
        models.load(str(run), controller=str(folder))


def test_commands_on_a_world_model_refuse_the_folder_of_a_controller(run, tmp_path):
    folder, why = str(run / "controller" / "panda"), "expected the folder of a world model, got "
    for command in (
        lambda: evaluate_run.evaluate(folder),
        lambda: plan_run.plan(folder, "panda"),
        lambda: export_run.export(folder, str(tmp_path / "out")),
        lambda: library.open_sources(folder),
    ):
        with pytest.raises(ValueError, match=f"workdir: {why}that of a controller, .*panda$"):
            command()


def test_plans_are_acted_on_in_the_simulator(run, capsys):
    skip_unless(panda_episode)
    few = dict(episodes=2, samples=12, iterations=1)
    path = plan_run.plan(str(run), "panda", closed_loop=True, **few)
    assert "panda, closed loop, plans of 3 steps" in capsys.readouterr().out
    assert path.endswith("plan_panda_closed_episodes=2_samples=12_iterations=1.json")
    written = json.loads(pathlib.Path(path).read_text())
    (plan,) = written["plans"]
    assert written["episodes"] == 2 and plan["steps"] == 2 * plan["policy_steps"] == 10
    found = rows(plan["rows"])
    names = ["no action", "mean action", "random action", "policy", "none", "labelled"]
    assert list(found) == names and all(len(row["path"]) == 11 for row in found.values())
    assert found["policy"]["success"]["mean"] == 1 and found["no action"]["success"]["mean"] == 0
    assert found["no action"]["distance"]["mean"] >= 2 * plan["radius"]


def test_a_closed_loop_that_cannot_be_is_refused(run, monkeypatch):
    ask = functools.partial(plan_run.plan, str(run), closed_loop=True)
    with pytest.raises(plan_run.Refused, match="expected --task panda or nav, .* got droid"):
        ask("droid", data="droid=droid:/data")
    why = "data: expected the simulator's own data for --closed-loop, .* got lerobot:/data"
    with pytest.raises(plan_run.Refused, match=why):
        ask("panda", data="panda=lerobot:/data")
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(
        plan_run.Refused, match="closed-loop: .*the simulators require: pip install"
    ):
        ask("panda")


def test_evaluate_leads_by_every_controller_of_a_source(run, monkeypatch):
    few = functools.partial(context.clips.held_out, most=6)
    monkeypatch.setattr(context.clips, "held_out", few)
    evaluate_run.evaluate(str(run), only=["control"])
    found = json.loads((run / "eval" / "control.json").read_text())
    names = ["copy last frame", "inferred latents", "state", "labelled"]
    assert [row["name"] for row in found["panda"]] == [*names, "state, no action"]
    assert found.keys() == {"panda"}
    assert all(row["pixels"].keys() == {"psnr", "ssim", "effnet"} for row in found["panda"])


def test_controllers_are_found_by_their_source(run, tmp_path):
    kinds = {"blind": "actions", "panda": "state", "untrained": "state", "predicts": "state"}
    for name, kind in kinds.items():
        folder = tmp_path / "controller" / name
        folder.mkdir(parents=True)
        config = json.loads((run / "controller" / "panda" / "config.json").read_text())
        config["controller"]["kind"] = kind
        config["objective"] = "controller" + "_by_prediction" * (name == "predicts")
        (folder / "config.json").write_text(json.dumps(config))
        if name != "untrained":
            (folder / "checkpoints" / "4").mkdir(parents=True)
    found = models.controllers_of(str(tmp_path), "panda", "droid:/elsewhere")
    assert list(found.values()) == ["state", "state, by prediction", "actions"]
    assert [pathlib.Path(folder).name for folder in found] == ["panda", "predicts", "blind"]
    assert models.controllers_of(str(tmp_path), "arm", "mini:panda") == found
    assert models.controllers_of(str(tmp_path), "nav", "mini:nav") == {}
    model, _ = models.load(str(run), controller=next(iter(models.controllers_of(run, "panda", ""))))
    assert model.controller.kind == "state"


@pytest.mark.parametrize("causal", [True, False])
def test_start_and_goal_are_encoded_alone_whatever_lies_between(get_config, monkeypatch, causal):
    config = get_config("size=tiny")
    options = dict(name="vjepa2_tiny", weights="", merge=1, normalise=True, repeat=True)
    config.encoder.update(causal=causal, **options)
    model = world_model.build(config)
    video = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 64, 64, 3), np.uint8)
    video[1, :, [0, 3]] = video[0, :, [0, 3]]  # other frames between the same ones
    params = {"encoder": world_model.init_encoder(model, video[0])}
    u, n, found, shown = np.zeros((2, 3, 3), np.float32), np.arange(2), [], []

    def load(config, name, encode, count):
        return Clips(encode(shown[-1]), shown[-1], u, n)

    for name in ("fixed", "training"):
        monkeypatch.setattr(f"lawm_jax.evaluate.clips.{name}", load)
    for frames in video:
        shown.append(frames)
        found.append(tasks.load(config, "droid", model, params, 2, 4, 2))
    for (clips, training), frames in zip(found, video, strict=True):
        for t in range(4):
            alone = encode(model, params, frames[:, t : t + 1])
            np.testing.assert_allclose(clips.s[:, t : t + 1], alone, atol=1e-4)
        np.testing.assert_array_equal(training.s, clips.s)
    np.testing.assert_array_equal(found[0][0].s[:, [0, 3]], found[1][0].s[:, [0, 3]])
    whole = [np.asarray(encode(model, params, frames)) for frames in video]
    assert np.abs(whole[0] - whole[1])[:, 3].mean() > 1e-3  # what this is about


def test_a_window_is_that_of_training(get_config):
    config = get_config("size=tiny")  # clips of 4 frames, one a step
    assert tasks.window(config, world_model.build(config)) == 3
    config.encoder.update(name="vjepa2_tiny", weights="", merge=1)
    config.data.frames = 16
    assert tasks.window(config, world_model.build(config)) == 7
    config.encoder.repeat = True
    assert tasks.window(config, world_model.build(config)) == 15


def test_plans_longer_than_training_slide_a_window(world):
    seen = []
    clips, training = episodes(2, 6, 0), episodes(16, 8, 1)
    options = dict(samples=8, elites=2, iterations=1)
    original = world_model.rollout_actions

    def drive(*args):
        seen.append(args[4])
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_model, "rollout_actions", drive)
        for windows in (None, {"model": 4}):
            tasks.reach({"model": world}, clips, training, 5, options=options, windows=windows)
    assert set(seen) == {None, 4}


def test_candidates_at_a_time_follow_the_memory_that_they_take(get_config):
    model = world_model.build(get_config("size=tiny,latent=none"))
    nano = Controller(16, 3, "state", 32, 2, 1)
    model = dataclasses.replace(model, controller=nano)
    s = jnp.zeros((1, 2, 64, 32))
    draw = lambda key: (  # noqa: E731
        world_model.init_dynamics(model, key, s) | world_model.init_controller(model, key, s)
    )
    params, s = jax.eval_shape(draw, jax.random.key(0)), s[:, :1]

    def temp(P, steps, window=None):
        def run(params, u):
            cache = world_model.prefill(model, params, s, jnp.zeros((1, 0, 16)))
            return world_model.rollout_actions(model, params, cache, u, window)[:, -1]

        u = jax.ShapeDtypeStruct((P, steps, 3), jnp.float32)
        compiled = jax.jit(run).lower(params, u).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for steps, window in ((1, None), (3, None), (3, 2)):
        each = (temp(96, steps, window) - temp(32, steps, window)) / 64
        said = search.candidate_bytes(model, 64, 32, steps, window)
        assert 0.4 < said / each < 3, (steps, window, said, each)
    few = search.most_candidates(model, 2**14, 2**10, 8)
    assert few == 1 and search.most_candidates(model, 4, 32, 3) > 100


def test_the_same_seed_gives_the_same_plan(world):
    clips, gaussian = episodes(3, 3, 0), (np.zeros((3, 3)), np.full((3, 3), 0.03))
    options = dict(samples=20, elites=4, iterations=2)
    plan = lambda seed: search.search(  # noqa: E731
        *world, clips.s[:, 0], clips.s[:, 3], *gaussian, options=options, seed=seed
    )[0]
    np.testing.assert_array_equal(plan(0), plan(0))
    assert not np.array_equal(plan(0), plan(1))


@pytest.mark.pod
@pytest.mark.slow
def test_planning_at_the_papers_size_over_8_steps_fits_chips_of_16_gb(get_config, monkeypatch):
    pytest.importorskip("libtpu", reason="needs libtpu: pip install 'lawm_jax[tpu]'")
    for name, value in targets.QUIET.items():
        monkeypatch.setenv(name, value)
    _, chips, found = targets.devices("v5e:2x4")
    config = get_config("size=large")
    config.encoder.weights = ""
    config.controller = configs.controller.get_config("size=large").controller
    model, (H, N, D) = lawm.build(config), (8, 256, 1024)
    s = jax.ShapeDtypeStruct((1, 2, N, D), jnp.float32)
    init = lambda key: (  # noqa: E731
        world_model.init_dynamics(model, key, s) | world_model.init_controller(model, key, s)
    )
    std = np.ones((H, model.controller.actions), np.float32)
    mesh = jax.sharding.Mesh(np.array(found), ("devices",))
    run, everywhere = search.jitted(model, std, mesh)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), chips))
    state = jax.ShapeDtypeStruct((chips, N, D), jnp.float32)
    mean = jax.ShapeDtypeStruct((chips, *std.shape), jnp.float32)
    shapes = jax.eval_shape(init, jax.random.key(0)), keys, state, state, mean
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
    )
    memory = run.lower(*shapes).compile().memory_analysis()
    encoder = 0.7e9  # in bfloat16, not an argument of the search
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + encoder
    assert needed < CHIPS["v5e"].memory

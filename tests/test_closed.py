"""Acting by plans made at every step: in a world whose answer is known, in real simulators."""

import functools
import itertools

import jax
import numpy as np
import pytest
from conftest import sure
from test_plan import PATTERN, episodes, rows, world  # noqa: F401
from test_simulate import MANIFEST, nav_episode, panda_episode, skip_unless

from lawm_jax.envs import policies, simulators
from lawm_jax.evaluate import tables
from lawm_jax.plan import closed_loop, columns
from lawm_jax.plan.search import make_search

SCALE = 0.03, 0.02, 0.04
OPTIONS = dict(samples=64, elites=8, iterations=8)


class Point:
    """Simulates a point that an action moves; its picture tells where it is."""

    alive = 0

    def __init__(self, gain=1.0):
        self.state, self.gain, self.taken = np.float32([0.3, -0.1, 0.2, 9]), gain, []
        Point.alive += 1
        assert Point.alive == 1  # of real ones only one may live

    def step(self, action):
        self.taken.append(np.array(action))
        self.state = self.state + self.gain * np.float32([*action[:3], 0])
        if abs(self.state[0]) > 5:
            raise simulators.LeftLevel("too far")

    def render(self):
        return 100 + self.state[None, None, :3]

    def close(self):
        Point.alive -= 1


def encode(video):
    return np.einsum("btu,und->btnd", video[:, :, 0, 0] - 100, PATTERN)


def straight(point, random):
    """Yields actions that keep to a random direction; the fourth number is no action's."""
    action = random.choice([-1, 1], 3) * SCALE
    while True:
        yield [*(action + random.normal(0, 0.005, 3)), 1.0]


def task(policy=straight, held=False, make=Point, **options):
    def places():
        for seed in itertools.count():
            yield str(seed), make, policy, np.random.default_rng(seed), 6

    return closed_loop.Task(places, **dict(steps=4, radius=0.03, axes=3, held=held) | options)


def training(scale=SCALE, turn=False):
    return episodes(64, 6, 1, scale, turn)


def evaluate(world, asks, count=6, horizon=3, **options):  # noqa: F811
    scenes, models = closed_loop.draw_scenes(asks, count), {"model": world} if world else {}
    options = dict(options={} if asks.held else OPTIONS) | options
    return scenes, rows(
        closed_loop.evaluate(models, encode, asks, scenes, training(), horizon, **options)
    )


def test_plans_lead_to_the_goal_and_baselines_do_not(world):  # noqa: F811
    scenes, found = evaluate(world, task())
    assert list(found) == ["no action", "mean action", "random action", "policy", "model"]
    length = functools.partial(np.linalg.norm, axis=-1)
    ways = np.stack([scene.policy.sum(0) for scene in scenes])
    away = length(ways).mean()
    assert found["no action"]["distance"]["mean"] == pytest.approx(away, rel=1e-5)
    assert found["no action"]["path"] == pytest.approx([away] * 9, rel=1e-5)
    mean = 8 * training().actions.reshape(-1, 3).mean(0)
    expected = length(mean - ways).mean()
    assert found["mean action"]["distance"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert found["policy"]["distance"]["mean"] < 1e-6
    assert found["policy"]["success"] == sure(1, 6)
    model = found["model"]
    assert model["success"]["mean"] == model["reached"]["mean"] == 1
    assert model["distance"]["mean"] < 0.05 * away
    difference = model["distance"]["mean"] - found["no action"]["distance"]["mean"]
    assert model["paired"]["mean"] == pytest.approx(difference)
    assert max(found[name]["success"]["mean"] for name in list(found)[:3]) == 0


def test_planning_anew_makes_up_for_actions_that_achieve_less_than_the_model_believes(world):  # noqa: F811
    found = evaluate(world, task(make=functools.partial(Point, gain=0.6)))[1]
    assert found["model"]["success"]["mean"] == 1
    # A plan that is carried out to its end leaves 0.4 of the way.
    assert found["model"]["distance"]["mean"] < 0.2 * found["no action"]["distance"]["mean"]


def test_a_held_plan_leads_there_too(world):  # noqa: F811
    _, found = evaluate(world, task(held=True, radius=0.045), horizon=4)
    assert found["model"]["success"]["mean"] == 1
    assert found["model"]["distance"]["mean"] < 0.25 * found["no action"]["distance"]["mean"]


@pytest.mark.parametrize("speed", [0.03, -0.03])
def test_a_held_plan_stops_at_a_goal_ahead_and_at_one_behind(world, speed):  # noqa: F811
    asks = task(lambda point, random: itertools.repeat([speed, 0, 0]), held=True, radius=0.012)
    u = np.random.default_rng(0).uniform([-0.03, -0.001, -0.001], [0.05, 0.001, 0.001], (64, 6, 3))
    clips = training()._replace(actions=u.astype(np.float32))
    scenes = closed_loop.draw_scenes(asks, 3)
    found = rows(closed_loop.evaluate({"model": world}, encode, asks, scenes, clips, 6))
    assert found["no action"]["distance"]["mean"] == pytest.approx(0.12)
    assert found["mean action"]["success"]["mean"] == 0
    assert found["model"]["success"]["mean"] == 1  # it is there, and stays
    assert max(found["model"]["path"][-2:]) < 0.012


@pytest.mark.parametrize("nearest", [False, True])
def test_the_cost_is_that_of_the_last_or_of_the_nearest_predicted_state(world, nearest):  # noqa: F811
    model, params = world
    std, mean = np.full((4, 3), 0.01, np.float32), np.float32([[[0.05, 0, 0]]]).repeat(4, 1)
    run = make_search(model, std, "cem", OPTIONS, nearest=nearest)
    start = np.zeros((1, 4, 8), np.float32)
    goal = start + 0.1 * PATTERN[0]
    u, distance = run(params, jax.random.split(jax.random.key(0), 1), start, goal, mean)
    states = np.einsum("tu,und->tnd", np.asarray(u[0]).cumsum(0), PATTERN)
    away = np.sqrt(np.square(states - goal).mean((1, 2)))
    assert float(distance[0]) == pytest.approx(away.min() if nearest else away[-1], abs=1e-5)
    assert (away.argmin() < 3) == nearest


def test_actions_stay_within_those_of_training(world):  # noqa: F811
    points = []

    def make():
        points.append(Point())
        return points[-1]

    fast = lambda point, random: itertools.repeat([0.2, -0.2, 0.2])  # noqa: E731
    for bound in (None, 1.5):
        points.clear()
        finer = dict(samples=300, iterations=15)
        evaluate(world, task(fast, make=make), count=1, bound=bound, options=finer)
        taken = np.stack(points[-1].taken[-8:])  # the model's, the last row
        u = training().actions.reshape(-1, 3)
        most, least = u.max(0), u.min(0)
        if bound:
            most, least = bound * u.std(0), -bound * u.std(0)
        np.testing.assert_allclose(taken[:4].mean(0), [most[0], least[1], most[2]], rtol=0.05)
        assert (taken <= most + 1e-6).all() and (taken >= least - 1e-6).all()


def test_the_same_seed_gives_the_same_numbers(world):  # noqa: F811
    found = [evaluate(world, task(), count=2, seed=seed)[1] for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0]["random action"] != found[2]["random action"]
    assert found[0]["model"] != found[2]["model"]


def test_success_is_at_the_end_and_reached_at_any_time():
    there_and_back = lambda point, random: itertools.repeat([0.02, 0, 0])  # noqa: E731
    scene = closed_loop.draw_scenes(task(there_and_back), 1)[0]
    path = closed_loop.run_episode(scene, lambda t, point: [0.02, 0, 0], 8)
    np.testing.assert_allclose(path, 0.02 * np.abs(np.arange(9) - 4), atol=1e-6)
    row = closed_loop.summarize({"no action": [path[:1].repeat(9)], "x": [path]}, 0.03, ["a"])[1]
    assert row["success"]["mean"] == 0 and row["reached"]["mean"] == 1
    assert row["path"] == pytest.approx(path.tolist()) and row["success"]["low"] is None


def test_one_who_walks_out_of_the_level_stays_where_that_happened():
    scene = closed_loop.draw_scenes(task(), 1)[0]
    path = closed_loop.run_episode(scene, lambda t, point: [2, 0, 0] if t > 1 else [0, 0, 0], 8)
    assert Point.alive == 0
    assert path[4] > path[3] > path[2] == path[1] == path[0]
    np.testing.assert_array_equal(path[5:], path[4])


def test_ways_that_are_no_task_are_passed_over():
    kinds = []

    def policy(point, random):
        kinds.append(random.choice(["near", "jump", "exit", "good"]))
        for step in itertools.count():
            far = {"jump": 2.0, "exit": 9.0}.get(kinds[-1], 0.05) if step in (4, 7) else 0.05
            yield [0.005 if kinds[-1] == "near" else far, 0, 0]

    scenes = closed_loop.draw_scenes(task(policy), 5)
    good = [str(seed) for seed, kind in enumerate(kinds) if kind == "good"]
    assert [scene.group for scene in scenes] == good and len(good) == 5
    assert set(kinds) == {"near", "jump", "exit", "good"} and Point.alive == 0


def test_the_first_three_numbers_alone_are_taken_from_the_start_on():
    scene = closed_loop.draw_scenes(task(), 1)[0]
    assert scene.policy.shape == (4, 3) and all(len(action) == 4 for action in scene.before)
    assert 0 < len(scene.before) < 6
    np.testing.assert_allclose(
        scene.goal, closed_loop.start(scene).state[:3] + scene.policy.sum(0), atol=1e-6
    )
    Point.alive = 0


def test_what_does_not_fit_is_refused(world):  # noqa: F811
    scenes = closed_loop.draw_scenes(task(), 1)
    ask = lambda training, horizon=3, **options: closed_loop.evaluate(  # noqa: E731
        {"model": world}, encode, task(), scenes, training, horizon, **options
    )
    with pytest.raises(
        ValueError, match="horizon: expected 1 to 6, the actions of training, got 7"
    ):
        ask(training(), 7)
    with pytest.raises(ValueError, match="training: expected 6 actions for 7 states, got None"):
        ask(training()._replace(actions=None))
    with pytest.raises(ValueError, match="planner: expected one of .*, got 'magic'"):
        ask(training(), planner="magic")


def test_the_table_has_a_line_for_each_row():
    asks = task()
    _, found = evaluate(None, asks, count=3)
    text = tables.text("panda", columns.tables("closed loop", list(found.values())))
    lines = text.split("\n")
    assert len(lines) == 2 + 4 and lines[0] == "panda, closed loop [95% interval]"
    assert lines[2].startswith("  no action") and "1.00 [1.00, 1.00]" in lines[5]


@pytest.mark.parametrize("name", ["panda", "nav"])
def test_a_real_scene_begins_again_as_it_did_and_its_policy_sees_the_goal_again(name):
    skip_unless({"panda": panda_episode, "nav": nav_episode}[name])
    asks = closed_loop.TASKS[name]
    (scene,) = closed_loop.draw_scenes(asks, 1)
    seen = []
    for _ in range(2):
        simulator = closed_loop.start(scene)
        seen.append((simulator.render().copy(), simulator.state))
        away = np.linalg.norm(simulator.state[: asks.axes] - scene.goal)
        for action in scene.policy:
            simulator.step(action)
        picture, state = simulator.render().copy(), simulator.state
        simulator.close()
        np.testing.assert_array_equal(picture, scene.picture)
        np.testing.assert_array_equal(state[: asks.axes], scene.goal)
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a, b)
    assert away >= 2 * asks.radius
    assert np.abs(seen[0][0].astype(float) - scene.picture).mean() > 1


def test_dark_scenes_are_passed_over():
    class Cellar(Point):
        def render(self):
            return super().render() - (61 if self.state[0] < 0.3 else 0)

    places = [closed_loop.draw_scenes(task(make=make), 6) for make in (Point, Cellar)]
    towards = [[scene.policy.sum(0)[0] > 0 for scene in scenes] for scenes in places]
    assert all(towards[1]) and not all(towards[0])


def test_no_scene_is_one_to_train_on():
    trained = {
        entry.get("level", str(entry["seed"])) for entry in MANIFEST if entry["split"] == "train"
    }
    for asks in closed_loop.TASKS.values():
        groups = {place[0] for place in itertools.islice(asks.places(), 40)}
        assert groups and not groups & trained
    assert set(policies.nav_levels("train")).isdisjoint(policies.nav_levels("test"))

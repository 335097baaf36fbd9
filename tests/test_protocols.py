"""Planning as the code of jepa-wms and NWM does it, and lists of clips.

Expected values were printed by their own functions, called with the noise that numpy draws here:
jepa-wms at commit 6eafb14, NWM at commit 3f6cd8e.
"""

import csv
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawm_jax import latents, world_model
from lawm_jax.data import mini, poses
from lawm_jax.evaluate.clips import Clips
from lawm_jax.plan import listed, planners, protocols, search, tasks

JEPA, NWM = protocols.PROTOCOLS["jepa-wms"], protocols.PROTOCOLS["nwm"]
# CEMPlanner.plan with 3 iterations, 12 candidates, 4 elites, and the L2 objective of the last
# action to 0.2.
JEPA_PLAN = [
    [-0.04153564, 0.03627102, -0.03341955, 0.05779984, 0.02647086, 0.00651916, -0.03923460],
    [0.06459779, 0.06379324, 0.04196340, 0.07045186, 0.04122449, 0.05403873, 0.04620793],
]
# generate_actions on RECON: the first candidate in meters and radians; the final position in
# waypoints; the final yaw, whose turn it multiplies by pi twice.
NWM_FIRST = [0.23849589, 0.17764914, 0.64021176, -0.80214036]  # x, y, first and last turn
NWM_END, NWM_YAW = [7.53396997, 1.07027307], 0.50499517


@pytest.fixture
def draws(monkeypatch):
    """Returns a function that lets `cem` use the given noise [iterations, P, T, U]."""

    def use(noise):
        table = jnp.array(noise)
        monkeypatch.setattr(jax.random, "split", lambda key, count: jnp.arange(count))

        def drawn(key, shape, exponent):
            assert shape == table.shape[1:]  # as many candidates as theirs
            return table[key]

        monkeypatch.setattr(planners, "colored_noise", drawn)

    return use


def test_cem_is_that_of_jepa_wms(draws):
    noise = np.random.default_rng(5).normal(size=(3, 2, 12, 7)).astype(np.float32)
    draws(noise.swapaxes(1, 2)[:, 1:])  # the mean takes the place of the first candidate
    high = np.array(JEPA.limits)
    options = JEPA.options | dict(samples=12, elites=4, iterations=3, low=-high, high=high)
    cost = lambda plans: jnp.square(plans[:, -1] - 0.2).mean(1)  # noqa: E731
    mean, std = jnp.zeros((2, 7)), jnp.full((2, 7), JEPA.std)
    plan, _ = planners.cem(cost, jax.random.key(0), mean, std, **options)
    np.testing.assert_allclose(plan, JEPA_PLAN, atol=1e-7)


def test_candidates_and_plan_are_those_of_nwm(draws):
    noise = np.random.default_rng(6).normal(size=(1, 120, 1, 3)).astype(np.float32)
    mean, std = (jnp.array(x, jnp.float32)[None] for x in (NWM.mean, NWM.std))
    first = np.asarray(search.straight_line(mean[None] + std[None] * noise[0], 8))[0]
    x, y, begin, end = NWM_FIRST
    np.testing.assert_allclose(first[:, :2], np.tile([x, y], (8, 1)), atol=1e-6)
    np.testing.assert_allclose(first[:, 2], [begin, *np.zeros(6), end], atol=1e-6)

    def cost(plans):
        total = search.straight_line(plans, 8).sum(1)
        return jnp.abs(total - jnp.array([[2.0, 0.3, 0.2]])).sum(1)

    draws(noise)
    plan, _ = planners.cem(cost, jax.random.key(0), mean, std, **NWM.options)
    moves = tasks.moves_of_line(search.straight_line(plan[None], 8))
    path = poses.follow(moves)[0]
    np.testing.assert_allclose(path[-1, :2] / 0.25, NWM_END, atol=1e-5)
    np.testing.assert_allclose(np.diff(path[:, :2], axis=0), path[:1, :2].repeat(7, 0), atol=1e-6)
    towards = np.arctan2(plan[0, 1], plan[0, 0])
    assert path[-1, 2] == pytest.approx(float(towards + plan[0, 2]), abs=1e-6)
    assert NWM_YAW == pytest.approx(float(towards + np.pi * plan[0, 2]), abs=1e-5)


def test_plans_from_a_context_see_its_last_states_at_every_step(tiny, monkeypatch):
    def mean(cost, key, mean, std, samples=1, chunk=None):
        return mean, cost(mean[None])[0]

    monkeypatch.setitem(search.PLANNERS, "mean", mean)
    model, params, _ = tiny("none")
    A = model.latent.dim
    model = dataclasses.replace(model, inverse=None, latent=latents.Labelled(A))
    params = params | {"latent": {"mean": jnp.zeros(A), "std": jnp.ones(A)}}
    random = np.random.default_rng(0)
    s, goal = (random.normal(size=(2, *n, 4, 32)).astype(np.float32) for n in ((3,), ()))
    u, z = (random.normal(size=(*n, A)).astype(np.float32) for n in ((4,), (2, 2)))
    found = search.search(
        model, params, s[:, -1], goal, u, np.ones_like(u), "mean", past=(s[:, :-1], z)
    )
    states, actions = s, np.concatenate([z, np.repeat(u[None], 2, 0)], 1)
    for t in range(4):
        seen = states[:, t : t + 3], actions[:, t : t + 3]
        states = np.concatenate([states, world_model.predict(model, params, *seen)[:, -1:]], 1)
    expected = np.sqrt(np.square(states[:, -1] - goal).mean((1, 2)))
    np.testing.assert_allclose(found[1], expected, rtol=1e-4)


def clips_of(count, steps, size, seed):
    random = np.random.default_rng(seed)
    u = random.normal(size=(count, steps, size)).astype(np.float32)
    s = random.normal(size=(count, steps + 1, 4, 8)).astype(np.float32)
    return Clips(s, None, u, np.arange(count).astype(str))


def test_the_errors_of_orientation_and_gripper_are_those_of_the_sums():
    clips = clips_of(5, 3, 7, 0)
    found = tasks.reach({}, clips, clips_of(4, 6, 7, 1), protocol=JEPA)[0]
    total = np.abs(clips.actions.sum(1))
    assert found["name"] == "no action"
    for key, x in (("error", total[:, :3]), ("orientation", total[:, 3:6])):
        assert found[key]["mean"] == pytest.approx(x.sum(1).mean(), rel=1e-6)
    assert found["gripper"]["mean"] == pytest.approx(total[:, 6].mean(), rel=1e-6)
    with pytest.raises(ValueError, match="at most 7 values, .* limits, got 8"):
        tasks.reach({}, clips_of(2, 3, 8, 0), clips_of(2, 6, 8, 1), protocol=JEPA)


def test_the_goal_of_a_context_is_ahead_of_its_last_state():
    clips, training = clips_of(3, 11, 3, 0), clips_of(4, 9, 3, 1)
    found = {row["name"]: row for row in tasks.walk({}, clips, training, protocol=NWM)}
    expected = tasks.walk(
        {}, clips._replace(s=clips.s[:, 3:], actions=clips.actions[:, 3:]), training
    )
    expected = {row["name"]: row for row in expected}
    for name in ("truth, held", "no action", "nearest training window"):
        assert found[name] == expected[name]
    with pytest.raises(ValueError, match="horizon: expected 1 to 10, the actions of clips, got 11"):
        tasks.walk({}, clips_of(3, 10, 3, 0), training, protocol=NWM)


# Lists of clips


def blank(video):
    return np.zeros((*video.shape[:2], 1, 1), np.float32)


@pytest.fixture
def config(get_config):
    config = get_config("size=tiny")
    config.data.frames = 6
    return config


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_listed_clips_start_where_the_list_says(config, tmp_path, suffix, capsys):
    rows = [{"episode": "test/0003.mp4", "start": 7, "x": 1}, {"episode": "train/0001", "start": 2}]
    path = tmp_path / f"list.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    asked = listed.read(path)
    assert asked == [("test/0003.mp4", 7), ("train/0001", 2)]
    found = listed.load(config, "panda", blank, asked, before=2)
    assert found.video.shape == (2, 6, 64, 64, 3)
    for i, (episode, start) in enumerate([("test/0003", 7), ("train/0001", 2)]):
        labels = np.load(f"{mini.FOLDER}/panda/{episode}.npz")
        np.testing.assert_array_equal(found.actions[i], labels["actions"][start - 2 : start + 3])
    assert "1 of 2 listed clips are in the training split of panda" in capsys.readouterr().out


def test_a_listed_clip_that_is_not_there_is_an_error_and_a_damaged_one_is_left_out(
    config, tmp_path, capsys
):
    for (episode, start), why in {
        ("0003", 2): r"expected the name of one episode .* got '0003', the name of 2: "
        r".*/panda/test/0003.mp4 \(test\), .*/panda/train/0003.mp4 \(train\)$",
        ("test/9999", 2): "got 'test/9999', the name of none",
        ("test/0003", 1): "expected a start of .*0003.mp4 from 2 to 60, got 1",
        ("test/0003", 61): "from 2 to 60, got 61",
    }.items():
        with pytest.raises(ValueError, match=f"episodes_from: .*{why}"):
            listed.load(config, "panda", blank, [(episode, start)], before=2)
    shutil.copytree(f"{mini.FOLDER}/panda/test", tmp_path / "arm" / "test")
    shutil.copytree(f"{mini.FOLDER}/panda/test", tmp_path / "arm" / "train")
    (tmp_path / "arm" / "test" / "0003.npz").write_bytes(b"damaged")
    config.data.sources.panda = f"mini:{tmp_path}/arm"
    found = listed.load(config, "panda", blank, [("test/0003", 2), ("test/0004", 2)])
    assert len(found.episodes) == 1 and "skipped a listed clip: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected clips of panda that can be read, got none"):
        listed.load(config, "panda", blank, [("test/0003", 2)])


@pytest.mark.parametrize(
    "name, text, why",
    [
        ("a.csv", "episode,start\n0001,-1\n", "row 1: expected an episode and its start.*'-1'"),
        ("a.csv", "name\n0001\n", "row 1: expected episode and start, got name"),
        ("a.csv", "episode,start\n", "expected rows with episode and start, got none"),
        ("a.json", "[1]", "row 1: expected"),
        ("a.json", '[{"episode": "a", "start": 1.5}]', "row 1: .* got 'a' and 1.5"),
        ("a.json", "{}", "content: expected a list"),
        ("a.json", "[", "expected a list of clips, got: "),
    ],
)
def test_a_list_of_another_form_is_an_error_that_names_the_row(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: {why}"):
        listed.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="none.csv: expected a list of clips, got no such"):
        listed.read(tmp_path / "none.csv")

"""stable-worldmodel: its data sets are read as it reads them, and its World runs our policy."""

import dataclasses
import importlib
import itertools
import pathlib
import pickle
import sys
import types

import flax.linen as nn
import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from test_data import SIZE, F, config, draw, numbers, same, take
from test_plan import PATTERN, world  # noqa: F401

from lawm_jax import latents
from lawm_jax.data import catalog, frames, pipeline, statistics
from lawm_jax.plan import policy

LENGTHS = 30, 3, 41, 22, 3, 9
COLUMNS = "pixels", "action", "state"


def write(folder, lengths=LENGTHS, **changes):
    """Writes episodes as `HDF5Writer` does; frame i is number i. `changes` replace columns."""
    rows, random = sum(lengths), np.random.default_rng(0)
    columns = {
        "pixels": np.stack([draw(i, 64, 48) for i in range(rows)]),
        "action": random.normal(size=(rows, 2)).astype(np.float32),
        "state": random.normal(size=(rows, 4)),
        "terminated": np.zeros(rows, bool),
        "ep_len": np.int32(lengths),
        "ep_offset": np.cumsum([0, *lengths[:-1]]),
    } | changes
    if columns["action"] is not None:
        columns["action"][np.cumsum(lengths) - 1] = np.nan  # leads to nothing
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "data.h5", "w") as file:
        for key, value in columns.items():
            if value is not None:
                file.create_dataset(key, data=value, chunks=(1, *value.shape[1:]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("swm") / "data")


def settings(folder, options="rate=8&state=state", **data):
    source = f"swm:{folder}{options and '?'}{options}"
    return config(mixture={"swm": 1.0}, sources={"swm": source}, **data)


def check(clip, folder, stride):
    """Checks that a clip shows rows of one episode, with the actions and states between them."""
    with h5py.File(folder / "data.h5") as file:
        first = int(file["ep_offset"][clip["episode"]]) + int(clip["start"])
        rows = range(first, first + len(clip["video"]) * stride, stride)
        assert rows[-1] < file["ep_offset"][clip["episode"]] + file["ep_len"][clip["episode"]]
        actions = [np.ravel(file["action"][a:b]) for a, b in itertools.pairwise(rows)]
        np.testing.assert_array_equal(clip["actions"], np.stack(actions))
        np.testing.assert_array_equal(clip["state"], np.float32(file["state"][:][list(rows)]))
    assert numbers(clip["video"]) == list(rows)
    assert clip["actions"].dtype == clip["state"].dtype == np.float32
    assert clip["video"].shape == (len(rows), SIZE, SIZE, 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_clips_show_their_rows_with_all_actions_between_them(folder, stride):
    found = catalog.source(settings(folder, f"rate={4 * stride}&state=state", holdout=0.0), "swm")
    random, starts = np.random.default_rng(0), set()
    long = [item for item in found.items if LENGTHS[item] > (F - 1) * stride]
    for item in long * 8:
        clip = found.clip(item, random)
        check(clip, folder, stride)
        starts.add((item, clip["start"]))
    assert len(long) >= 3 and len(starts) > 12
    for item in long:
        (part,) = found.parts(item, 100)
        check(part, folder, stride)
        assert len(part["video"]) == -(-LENGTHS[item] // stride)


def test_batches_are_full_and_short_episodes_are_reported(folder, tmp_path):
    log = tmp_path / "skipped.jsonl"
    stream = pipeline.clips(settings(folder, holdout=0.0, batch=8), skipped=str(log))
    for batch in take(stream, 6):
        assert batch["video"].shape == (8, F, SIZE, SIZE, 3)
        assert batch["actions"].shape == (8, F - 1, 4) and batch["state"].shape == (8, F, 4)
    assert 1 <= log.read_text().count("3 steps, but a clip needs 7") <= 2


def test_statistics_are_those_of_the_concatenated_actions(folder):
    data = settings(folder, holdout=0.0).data
    found = catalog.KINDS["swm"]("x", str(folder), "train", data, None, rate="8")
    measured = statistics.measure(found, 4.0)
    taken = []
    with h5py.File(folder / "data.h5") as file:
        for item in found.items:
            start, pairs = file["ep_offset"][item], (LENGTHS[item] - 1) // 2
            taken.append(file["action"][start : start + 2 * pairs].reshape(pairs, 4))
    np.testing.assert_allclose(measured["actions"]["std"], np.concatenate(taken).std(0), rtol=1e-6)
    assert measured["skipped"] == 0 and "state" not in measured


def test_it_reads_what_the_package_reads(tmp_path):
    pytest.importorskip("hdf5plugin")
    data = pytest.importorskip("stable_worldmodel.data")
    random = np.random.default_rng(1)
    with data.HDF5Writer(tmp_path / "data.h5") as writer:
        for number, length in enumerate((12, 17)):
            episode = {"pixels": [draw(20 * number + i, 48, 48) for i in range(length)]}
            episode["action"] = list(random.normal(size=(length, 2)).astype(np.float32))
            episode["state"] = list(random.normal(size=(length, 3)))
            writer.write_episode(episode)
    theirs = data.HDF5Dataset(path=tmp_path / "data.h5", frameskip=2, num_steps=F)
    wanted = {at: theirs[i] for i, at in enumerate(theirs.clip_indices)}
    theirs.h5_file.close()
    for split in "train", "test":
        ours = catalog.source(settings(tmp_path, holdout=0.5), "swm", split)
        (item,) = ours.items
        clip, found = next(ours.fixed(item)), wanted[item, 0]
        np.testing.assert_array_equal(clip["actions"], found["action"].numpy()[:-1])
        np.testing.assert_array_equal(clip["state"], np.float32(found["state"].numpy()))
        np.testing.assert_array_equal(clip["video"], found["pixels"].numpy().transpose(0, 2, 3, 1))


def test_a_number_that_is_none_loses_the_clips_that_meet_it(tmp_path):
    action = np.ones((40, 2), np.float32)
    action[11] = np.nan
    write(tmp_path, (40,), action=action)
    found, starts = catalog.source(settings(tmp_path, "rate=4"), "swm"), set()
    random = np.random.default_rng(0)
    for _ in range(200):
        try:
            starts.add(found.clip(0, random)["start"])
        except frames.UnreadableVideo as error:
            assert "actions at step" in str(error) and 9 <= error.start <= 11
    assert starts == {*range(37)} - {9, 10, 11}


def test_a_source_reads_the_same_in_another_process(folder):
    settled = settings(folder, holdout=0.0)
    found = catalog.source(settled, "swm")
    sent = pickle.loads(pickle.dumps(found))
    clips = [each.clip(2, np.random.default_rng(5)) for each in (found, sent)]
    same(clips[:1], clips[1:])


def test_no_file_makes_the_reader_open_another_one(tmp_path):
    secret = write(tmp_path / "secret") / "data.h5"
    write(tmp_path / "a", action=None)
    with h5py.File(tmp_path / "a/data.h5", "r+") as file:
        file["action"] = h5py.ExternalLink(secret, "action")
        assert len(file["action"]) == sum(LENGTHS)  # HDF5 itself opens it
    with pytest.raises(ValueError, match="action is a link, which isn't followed"):
        catalog.source(settings(tmp_path / "a"), "swm")


def test_what_does_not_fit_is_an_error_that_says_what_was_expected(folder, tmp_path):
    rows = sum(LENGTHS)
    for name, change, text in (
        ("gray", {"pixels": np.zeros((rows, 8, 8, 1), np.uint8)}, r"pixels: expected uint8 \[rows"),
        ("real", {"pixels": np.zeros((rows, 8, 8, 3))}, r"pixels: expected uint8 .* got float64"),
        ("text", {"state": np.array([[b"here"]] * rows)}, "state: expected numbers"),
        ("lack", {"state": np.zeros((rows - 1, 2))}, f"at least {rows} rows, got {rows - 1}"),
        ("none", {"state": None}, "no dataset state"),
        (
            "real_lengths",
            {"ep_len": np.float64(LENGTHS)},
            r"ep_len: expected integers \[episodes\]",
        ),
        ("uneven", {"ep_offset": np.arange(3)}, "a start and a length of each episode"),
        ("negative", {"ep_offset": np.arange(5) - 1}, "a start and a length of each episode"),
    ):
        with pytest.raises(ValueError, match=text):
            catalog.source(settings(write(tmp_path / name, **change)), "swm")
    for where, text in (
        (tmp_path / "nothing", "expected a folder that holds one"),
        (folder / "data.h5", "expected a folder that holds one"),
        (tmp_path, "expected one file .* got none"),
    ):
        with pytest.raises(ValueError, match=text):
            catalog.source(settings(where), "swm")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/data.h5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="file signature not found"):
        catalog.source(settings(tmp_path / "broken"), "swm")
    with pytest.raises(ValueError, match="rate: expected a positive number .* got 'fast'"):
        catalog.source(settings(folder, "rate=fast"), "swm")


# The policy


class Pool:
    """Environments of points that move by their actions; pictures tell where they are."""

    num_envs = 4

    def __init__(self, shape=(3,), most=2.0):
        low, high = np.full(shape, -most), np.full(shape, most)
        self.single_action_space = types.SimpleNamespace(shape=shape, low=low, high=high)
        self.goals = np.random.default_rng(0).uniform(-4, 4, (self.num_envs, 3))
        self.places, self.taken = np.zeros((self.num_envs, 3)), []

    def infos(self, **others):
        show = lambda x: 100 + x[:, None, None, None]  # noqa: E731
        return {"pixels": show(self.places), "goal": show(self.goals)} | others

    def step(self, actions):
        self.taken.append(actions)
        self.places = self.places + actions.reshape(self.num_envs, -1, 3).sum(1)


@pytest.fixture
def plan(world, monkeypatch):  # noqa: F811
    """Returns a function that makes a policy of the known world, and the pool that it is set to."""
    patterns = lambda video: np.einsum("btu,und->btnd", video[:, :, 0, 0] - 100, PATTERN)  # noqa: E731
    see = lambda model, params: lambda video: patterns(video).astype(np.float32)  # noqa: E731
    monkeypatch.setattr(policy.batched, "frame_encoder", see)
    settled = dict(options=dict(samples=100, elites=10, iterations=12))

    def make(horizon=3, pool=None, **options):
        made, pool = policy.Policy(*world, horizon, **settled | options), pool or Pool()
        made.set_env(pool)
        return made, pool

    return make


def test_a_policy_leads_every_environment_to_its_goal_within_its_action_space(plan):
    made, pool = plan()
    for _ in range(6):
        pool.step(made.get_action(pool.infos()))
    np.testing.assert_allclose(pool.places, pool.goals, atol=0.2)
    taken = np.stack(pool.taken)
    assert taken.dtype == np.float32 and np.abs(taken).max() <= 2 < np.abs(pool.goals).max()


def test_a_plan_is_executed_in_part_before_the_next_one(plan, monkeypatch):
    count = []
    plain = policy.search.in_groups
    monkeypatch.setattr(
        policy.search, "in_groups", lambda *args: count.append(args[2][3].copy()) or plain(*args)
    )
    for execute, wanted in (None, 2), (1, 6), (2, 3):
        count.clear()
        made, pool = plan(execute=execute)
        for _ in range(6):
            pool.step(made.get_action(pool.infos()))
        assert len(count) == wanted
        # The rest of a plan is where the next search begins.
        kept = 3 - (execute or 3)
        assert not count[0].any() and not count[1][:, kept:].any()
        assert np.abs(count[1][:, :kept]).sum(axis=(0, 2)).all()


def test_an_action_of_the_model_may_span_steps_of_the_environment(plan):
    made, pool = plan(horizon=2, pool=Pool(shape=(1,)))
    taken = [made.get_action(pool.infos()) for _ in range(6)]
    assert [x.shape for x in taken] == [(4, 1)] * 6
    sums = np.stack(taken)[..., 0].reshape(2, 3, 4).sum(0)  # steps of the model, its width
    reach = np.clip(pool.goals, -4, 4)  # of two steps
    np.testing.assert_allclose(sums.T, reach, atol=0.3)


def test_environments_that_ended_get_no_plan_and_those_that_were_reset_a_new_one(plan, monkeypatch):
    asked = []
    plain = policy.search.in_groups
    monkeypatch.setattr(
        policy.search, "in_groups", lambda *args: asked.append(len(args[2][1])) or plain(*args)
    )
    made, pool = plan()
    ended = np.array([[False], [True], [False], [True]])
    actions = made.get_action(pool.infos(terminated=ended))
    assert not actions[[1, 3]].any() and actions[[0, 2]].all() and asked == [2]
    infos = pool.infos(_needs_flush=np.array([True, False, False, False]))
    made.get_action(infos)
    assert asked == [2, 3] and "_needs_flush" not in infos


def test_plans_depend_on_the_seed_alone(plan):
    found = []
    for seed in 0, 0, 1:
        made, pool = plan(seed=seed)
        found.append(made.get_action(pool.infos()))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-4


def test_a_policy_that_does_not_fit_is_refused(plan, tiny):
    with pytest.raises(ValueError, match="env: .*width divides the model's, 3, got 2"):
        plan(pool=Pool(shape=(2,)))
    with pytest.raises(ValueError, match="execute: expected 1 to horizon = 3 steps, got 4"):
        plan(execute=4)
    model, params, _ = tiny("noisy")
    with pytest.raises(ValueError, match="model: expected a controller, or a labeled model"):
        policy.Policy(model, params, 3)


# Within the package


class Sum(nn.Module):
    """A forward model of TwoRoom without walls: positions move by the sum of five actions.

    Actions are in units of 0.7, their standard deviation.
    """

    @nn.compact
    def __call__(self, s, z, past=(), keep=False):
        s = jnp.broadcast_to(s, (len(z), *s.shape[1:]))
        s = s + 0.7 * z.reshape(*z.shape[:2], 1, 5, 2).sum(3)
        return (s, jnp.zeros((1, len(z), 1, 1))) if keep else s


def find_dot(video):
    """Returns where the red dot is, in steps of 5 pixels: [n, 1, H, W, 3] -> [n, 1, 1, 2]."""
    red = np.maximum(video[..., 0].astype(np.float32) - video[..., 1], 0)
    rows, columns = np.mgrid[: red.shape[2], : red.shape[3]]
    weigh = lambda x: (red * x).sum((2, 3)) / red.sum((2, 3))  # noqa: E731
    place = np.stack([weigh(columns), weigh(rows)], -1) + 0.5
    return (place * 224 / red.shape[2] / 5).astype(np.float32)[:, :, None]


class Recorder(list):
    """Keeps episodes in memory, as `World.collect` writes and `World.evaluate` reads them."""

    column_names = "pixels", "state"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write_episodes(self, episodes):
        self += [
            {key: np.stack(ep[key]) for key in (*self.column_names, "action")} for ep in episodes
        ]

    @property
    def lengths(self):
        return [len(episode["state"]) for episode in self]

    def load_chunk(self, episodes, starts, ends):
        import torch

        for number, start, end in zip(episodes, starts, ends, strict=True):
            chunk = {key: torch.tensor(self[number][key][start:end]) for key in self.column_names}
            yield chunk | {"pixels": chunk["pixels"].permute(0, 3, 1, 2)}


@pytest.fixture
def package(monkeypatch):
    """Returns the benchmark's module, whose flags are forgotten afterwards."""
    from absl import flags

    pytest.importorskip("stable_worldmodel")
    module = importlib.import_module("benchmarks.swm")
    yield module
    for flag in [*flags.FLAGS.flags_by_module_dict()[module.__name__]]:
        delattr(flags.FLAGS, flag.name)
    del sys.modules[module.__name__]


def test_a_part_is_the_first_episodes_and_starts_leave_room_for_the_goal(package, folder, tmp_path):
    package.take_part(tmp_path / "few", folder, 0.5)
    with h5py.File(folder / "data.h5") as old, h5py.File(tmp_path / "few/data.h5") as new:
        assert new.keys() == old.keys() and new["ep_len"][:].tolist() == list(LENGTHS[:3])
        for key in COLUMNS:
            np.testing.assert_array_equal(new[key], old[key][: sum(LENGTHS[:3])])
    lengths = np.array([60, 20, 70, 26])
    episodes, begins = package.starts(types.SimpleNamespace(lengths=lengths), 0)
    places = set(zip(episodes.tolist(), begins.tolist(), strict=True))
    assert len(places) == package.COUNT and (begins + package.GOAL < lengths[episodes]).all()
    assert {0, 2} <= {*episodes} <= {0, 2, 3}
    other = package.starts(types.SimpleNamespace(lengths=lengths), 1)
    assert not np.array_equal(other, [episodes, begins])


@pytest.mark.filterwarnings("ignore")
def test_in_the_packages_world_a_model_that_knows_the_motion_reaches_goals(
    package,
    world,  # noqa: F811
    monkeypatch,
):
    env = package.ENVS["TwoRoom"]
    recorded, limit = Recorder(), 40
    collecting = package.make_world(env, 4, limit)
    collecting.set_policy(env.collector(0))
    collecting.collect(writer=recorded, episodes=12, seed=3, progress=False)
    # A row's action leads to the next row, as the data source assumes: 5 pixels where it is free.
    moves = [np.diff(e["state"], axis=0) - 5 * e["action"][:-1] for e in recorded]
    assert np.median(np.abs(np.concatenate(moves))) < 1e-4
    model = dataclasses.replace(world[0], predictor=Sum(), latent=latents.Labelled(10))
    params = {"predictor": {}, "latent": {"mean": jnp.zeros(10), "std": jnp.full(10, 0.7)}}
    monkeypatch.setattr(policy.batched, "frame_encoder", lambda model, params: find_dot)
    # Goals 15 steps after the start, in the same room.
    places = [
        (i, 0)
        for i, e in enumerate(recorded)
        if len(e["state"]) > 16 and (e["state"][0, 0] < 112) == (e["state"][15, 0] < 112)
    ]
    options = dict(samples=100, elites=10, iterations=10)
    made = {
        "ours": policy.Policy(model, params, 5, options=options),
        "theirs": package.solver_policy(model, params, options, 0),
        "random": package.agents(pathlib.Path("nothing"), options)["random"](0),
    }
    reached = {}
    for name, one in made.items():
        acting = package.make_world(env, len(places), 100)
        acting.set_policy(one)
        found = acting.evaluate(
            dataset=recorded,
            episodes_idx=[i for i, _ in places],
            start_steps=[t for _, t in places],
            goal_offset=15,
            eval_budget=25,
            callables=package.CALLABLES,
        )
        reached[name] = found["success_rate"]
    assert len(places) >= 5 and reached["ours"] == reached["theirs"] == 100 > reached["random"]

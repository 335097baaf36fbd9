"""What controllers learn from few episodes, in a world whose answer is known."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from test_control import PATTERN, Linear, Oracle

from lawm_jax import latents
from lawm_jax.evaluate import batched, clips, control, controllers, labels, row_names, tables


@pytest.fixture(scope="module")
def world(tiny):
    """A model of latents with 2 dimensions that are real actions, doubled; and its parameters."""
    model = dataclasses.replace(
        tiny("none")[0],
        inverse=Oracle(),
        predictor=Linear(),
        latent=latents.Unconstrained(2),
        normalise=False,
    )
    return model, {"predictor": {}, "inverse": {}}


def draw(episodes, seed, plain=None):
    """Draws 4 clips of each episode; in the first `plain` ones, only the first action is taken."""
    random = np.random.default_rng(seed)
    names = np.repeat([f"{seed} {i:03}" for i in range(episodes)], 4)
    u = random.normal(size=(len(names), 3, 2)).astype(np.float32)
    if plain is not None:
        u[: 4 * plain, :, 1] = 0
    start = random.normal(size=(len(names), 1, 4, 8))
    moved = np.einsum("btu,und->btnd", 2 * u.cumsum(1), PATTERN)
    s = np.concatenate([start, start + moved], 1).astype(np.float32)
    return clips.Clips(s, None, u, names)


def test_a_controller_knows_the_actions_of_its_episodes_and_no_others(world):
    known, held_out = draw(30, seed=1), draw(10, seed=2)
    order = np.random.default_rng(0).permutation(np.unique(known.episodes))
    first = np.isin(known.episodes, order[:3])
    known.actions[~first] = np.nan  # the labels of the others
    few = controllers.fit(*world, known, [3], steps=3)[3]
    again = controllers.fit(*world, known, [3], steps=3)[3]
    (few_z, again_z) = (
        batched.driven(*x, held_out.s[:, 0], held_out.actions) for x in (few, again)
    )
    assert np.isfinite(few_z).all()
    np.testing.assert_array_equal(few_z, again_z)


def test_more_episodes_lead_closer_to_inferred_latents(world):
    known, held_out = draw(30, seed=1), draw(10, seed=2)
    order = np.random.default_rng(0).permutation(np.unique(known.episodes))
    for clip, name in enumerate(known.episodes):
        if name in order[:3]:  # these tell nothing of the second action
            known.actions[clip, :, 1] = 0
            moved = np.einsum("tu,und->tnd", 2 * known.actions[clip].cumsum(0), PATTERN)
            known.s[clip, 1:] = known.s[clip, :1] + moved
    found = controllers.fit(*world, known, [3, 30], steps=150)
    assert list(found) == [3, 30]
    led = {f"{k} episodes": found[k] for k in (30, 3)}
    rows = control.compare(led, held_out.s, held_out.actions, held_out.episodes)
    error = {row["name"]: row["error"]["mean"] for row in rows}
    still = error["30 episodes, no action"]
    assert error[row_names.INFERRED] < 1e-4 * still
    assert error["30 episodes"] < 0.3 * still
    # The first action alone leaves what the second does.
    second = np.einsum("bt,nd->btnd", 2 * held_out.actions[..., 1].cumsum(1), PATTERN[1])
    assert error["3 episodes"] > 0.9 * np.abs(second).mean()
    model, params = found[30]
    scale = params["controller"]["scale"]
    np.testing.assert_allclose(scale["action_mean"], known.actions.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(scale["action_std"], known.actions.std((0, 1)), rtol=1e-5)


def test_a_source_is_compared_by_all_numbers_of_its_episodes(world, monkeypatch, capsys):
    held_out, asked = draw(6, seed=2), []

    def labelled(config, name, encode, items):
        asked.append((config, name, items))
        return draw(5, seed=1)

    monkeypatch.setattr(clips, "labelled", labelled)
    short = lambda *args: fit(*args, steps=2)  # noqa: E731
    fit = controllers.fit
    monkeypatch.setattr(controllers, "fit", short)
    source = types.SimpleNamespace(
        name="x",
        config="the config",
        main="none",
        latents=["none"],
        pairs=True,
        model=world[0],
        params=world[1] | {"encoder": {}},
        clips=held_out,
        by_frame=lambda models: (models, held_out, None),
    )
    rows = labels.run(source)
    assert asked == [("the config", "x", 100)]
    assert [(row["name"], row["episodes"]) for row in rows] == [
        ("copy last frame", None),
        ("inferred latents", None),
        ("5 episodes, no action", None),
        ("1 episode", 1),
        ("3 episodes", 3),
        ("5 episodes", 5),
    ]
    ((claim, *_),) = labels.judge(rows, "none")
    assert claim == "few labels" and "3 episodes" in tables.text("x", labels.tables(rows))
    json.dumps(rows, allow_nan=False)

    monkeypatch.setattr(clips, "labelled", lambda *args: None)
    assert labels.run(source) is None
    assert "x: skipping labels, since no training episode can be read" in capsys.readouterr().out
    source.by_frame = lambda models: None
    assert labels.run(source) is None
    assert "requires states of single frames" in capsys.readouterr().out
    source.clips = held_out._replace(actions=None)
    assert labels.run(source) is None


@pytest.mark.parametrize(
    "episodes,expected",
    [(1, [1]), (3, [1, 3]), (47, [1, 3, 10, 30, 47]), (500, [1, 3, 10, 30, 100])],
)
def test_numbers_of_episodes_are_as_many_as_there_are(episodes, expected):
    assert labels.numbers(episodes) == expected


def test_labels_are_of_training_episodes(get_config):
    config = get_config("size=tiny")
    encode = lambda video: np.zeros((len(video), 4, 1, 1), np.float32)  # noqa: E731
    known = clips.labelled(config, "panda", encode, 3, most=20)
    assert len(set(known.episodes)) == 3 and known.actions.shape == (20, 3, 3)
    assert all("train" in name and "test" not in name for name in known.episodes)
    assert jax.tree.all(jax.tree.map(lambda x: len(x) == 20, known._asdict()))

"""Play: what a person does on the page is what the model imagines, and no browser breaks it."""

import base64
import dataclasses
import io
import json
import pathlib
import shutil
import tempfile
import threading
import time

import jax
import numpy as np
import PIL.Image
import pytest
from conftest import run_module, write_controller, write_prior, write_run
from test_simulate import panda_episode, skip_unless

from lawm_jax import world_model

pytest.importorskip("starlette")
pytest.importorskip("httpx")
testclient = pytest.importorskip("starlette.testclient")

from lawm_jax.play import (  # noqa: E402  # noqa: E402
    directions,
    films,
    library,
    load,
    messages,
    planning,
    server,
    session,
    uploads,
)
from lawm_jax.play import shared as shared_  # noqa: E402
from lawm_jax.play import world as world_  # noqa: E402

decode = jax.jit(world_model.decode, static_argnums=0)
map_actions = jax.jit(world_model.map_actions, static_argnums=0)
predict = jax.jit(world_model.predict, static_argnums=0)
rollout = jax.jit(world_model.rollout, static_argnums=0)
rollout_actions = jax.jit(world_model.rollout_actions, static_argnums=(0, 4))
ROUNDING = dict(rtol=1e-4, atol=1e-4)


def loaded(folder, **options):
    """Loads a run with few clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "CLIPS", 3)
        return load.load(str(folder), say=lambda text: None, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory, get_config, one_device):
    """A run with a controller of the Panda, and none of the walks."""
    folder = tmp_path_factory.mktemp("play") / "noisy"
    config = get_config("size=tiny,latent=noisy")
    write_run(config, folder)
    write_controller(config, folder, "panda")
    return folder


@pytest.fixture(scope="module")
def shared(run):
    return loaded(run)


@pytest.fixture(scope="module")
def discrete(tmp_path_factory, get_config, one_device):
    folder = tmp_path_factory.mktemp("play") / "discrete"
    write_run(get_config("size=tiny,latent=discrete,strength=8"), folder)
    return loaded(folder, source="panda")


@pytest.fixture
def one(shared):
    """A session that has started from a clip of the Panda."""
    found = session.Session(shared)
    found.answer({"do": "start", "source": "panda", "clip": 1})
    return found


@pytest.fixture
def client(shared):
    """Returns a client of the server, and the server."""
    made = server.Server(shared)
    with testclient.TestClient(made.app, base_url="http://localhost") as found:
        found.server = made
        yield found


def picture(reply):
    """Decodes a frame: its number, and the picture."""
    return int.from_bytes(reply[:4], "big"), np.asarray(PIL.Image.open(io.BytesIO(reply[4:])))


def shown(url):
    data = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


# The imagined world.


def test_real_actions_lead_where_a_rollout_with_a_window_leads(shared):
    world, source = shared.world, shared.sources["panda"]
    model, params = world.controllers["panda"]
    steps = world.window + 3
    assert world.window == 3
    start = world.start(source.clips[0].video, source.clips[0].s)
    u = np.random.default_rng(0).normal(size=(steps, 3)).astype(np.float32) * 0.05
    states, pictures = world.drive("panda", start, u)
    no_latents = np.zeros((1, 0, model.latent.dim), np.float32)
    cache = world_model.prefill(model, params, start[None, None], no_latents)
    expected = rollout_actions(model, params, cache, u[None], world.window)[0]
    np.testing.assert_allclose(np.stack(states), expected, **ROUNDING)
    assert np.abs(np.stack(states) - start).max() > 0.1
    painted = decode(model, params, expected[None])[0]
    assert np.abs(np.stack(pictures).astype(int) - painted).max() <= 1


def test_a_key_of_real_actions_is_map_actions_and_predict(shared, one):
    model, params = shared.world.controllers["panda"]
    start = one.imagined.state
    count, image = picture(
        one.answer({"do": "step", "by": "actions", "values": [0, 1, -0.5], "size": 2})
    )
    scale = params["controller"]["scale"]
    size = np.sqrt(scale["action_mean"] ** 2 + scale["action_std"] ** 2)
    u = (2 * np.array([0, 1, -0.5]) * size)[None, None].astype(np.float32)
    z = map_actions(model, params, u, start[None, None])
    expected = predict(model, params, start[None, None], z)
    np.testing.assert_allclose(one.imagined.state, expected[0, 0], **ROUNDING)
    assert count == 1 and image.shape == (64, 64, 3)
    painted = decode(model, params, expected)[0, 0]
    assert np.abs(image.astype(int) - painted).mean() < 6  # JPEG


def test_a_key_of_a_direction_is_a_latent_along_it(shared, one):
    world, axes, start = shared.world, shared.sources["panda"].axes, one.imagined.state
    one.answer({"do": "step", "by": "axes", "values": [0, -1], "size": 1.5})
    z = axes.mean - 1.5 * axes.directions[1]
    expected = predict(
        world.model, world.params, start[None, None], z[None, None].astype(np.float32)
    )
    np.testing.assert_allclose(one.imagined.state, expected[0, 0], **ROUNDING)


def test_a_code_is_the_codebooks_entry(discrete):
    one, world = session.Session(discrete), discrete.world
    reply = one.answer({"do": "start", "source": "panda", "clip": 0})
    (way,) = reply["controls"]
    assert way["by"] == "codes" and way["count"] == 8 and len(way["codes"]) == 8
    assert sum(used for _, used in way["codes"]) == len(discrete.latents("panda"))
    start = one.imagined.state
    one.answer({"do": "step", "by": "codes", "code": 5})
    z = world.params["latent"]["codebook"][5][None, None]
    expected = predict(world.model, world.params, start[None, None], z)
    np.testing.assert_allclose(one.imagined.state, expected[0, 0], **ROUNDING)
    for code in (8, -1, None, "5"):
        with pytest.raises(messages.Refused, match="code: expected a number from 0 to 7, got"):
            one.answer({"do": "step", "by": "codes", "code": code})
    with pytest.raises(messages.Refused, match=r"by: expected one of \['codes'\], got 'axes'"):
        one.answer({"do": "step", "by": "axes", "values": [1]})


def test_undo_restores_each_state_and_reset_the_first(one):
    states, frames = [one.imagined.state], [picture(one.answer({"do": "undo"}))[1]]
    for i in range(6):
        reply = one.answer({"do": "step", "by": "axes", "values": [1, 0, (-1) ** i]})
        states.append(one.imagined.state)
        frames.append(picture(reply)[1])
    for i in range(5, 1, -1):
        count, image = picture(one.answer({"do": "undo"}))
        assert count == i
        np.testing.assert_array_equal(one.imagined.state, states[i])
        assert np.abs(image.astype(int) - frames[i]).max() <= 12
    one.answer({"do": "step", "by": "axes", "values": [1, 0, 1]})
    np.testing.assert_allclose(one.imagined.state, states[3], **ROUNDING)
    count, image = picture(one.answer({"do": "reset"}))
    assert count == 0
    np.testing.assert_array_equal(one.imagined.state, states[0])
    np.testing.assert_array_equal(image, frames[0])
    assert picture(one.answer({"do": "undo"}))[0] == 0


def test_a_long_game_keeps_as_many_states_as_fit_and_goes_on(one, monkeypatch):
    monkeypatch.setattr(world_, "KEPT", 5 * one.imagined.state.nbytes)
    for _ in range(12):
        one.answer({"do": "step", "by": "axes", "values": [0.3]})
    assert one.imagined.count == 12
    for _ in range(9):
        count, _ = picture(one.answer({"do": "undo"}))
    assert count == 7
    assert picture(one.answer({"do": "reset"}))[0] == 0


def test_principal_directions_are_those_of_the_latents_and_point_the_way_of_actions():
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(6, 6)))[0].T
    along = random.normal(size=(500, 2))
    along -= along.mean(0)
    along = np.linalg.svd(along, full_matrices=False)[0] * np.sqrt(500) * [3, 1]  # uncorrelated
    z = np.float32(2 + along @ basis[:2])
    u = np.stack([0.1 * random.normal(size=500) - along[:, 0], along[:, 1]], 1)
    axes = directions.principal(z, u, ("x", "turn"))
    assert len(axes.directions) == 2 and axes.hints[1] == "turn, r = 1.00"
    np.testing.assert_allclose(axes.mean, z.mean(0), atol=1e-5)
    np.testing.assert_allclose(axes.directions, [-3 * basis[0], basis[1]], atol=1e-3)
    np.testing.assert_allclose(axes.share, [0.9, 0.1], atol=1e-3)
    np.testing.assert_allclose(
        directions.along(axes, [0, -1], 2), axes.mean - 2 * axes.directions[1], atol=1e-5
    )


def test_a_shorter_clip_is_encoded_as_the_beginning_of_a_longer_one(shared):
    clip = shared.sources["panda"].clips[0]
    assert len(clip.video) == 8  # twice those of training
    np.testing.assert_allclose(shared.world.encode(clip.video[:3]), clip.s[:3], **ROUNDING)
    np.testing.assert_allclose(shared.world.infer(clip.s[:3]), clip.z[:2], **ROUNDING)


def test_transfer_is_a_rollout_of_one_clips_latents_from_anothers_first_frame(shared):
    action, scene = shared.sources["panda"].clips[0], shared.sources["nav"].clips[1]
    model, params, W = shared.world.model, shared.world.params, shared.world.window
    result = films.transfer(shared.world, action, scene)
    ahead = rollout(model, params, scene.s[None, :1], action.z[None, :W])
    painted = decode(model, params, ahead)[0]
    assert len(result) == 8
    assert np.abs(np.stack(result[1 : W + 1]).astype(int) - painted).max() <= 1


# What the tabs answer.


def test_each_tab_answers_with_films(shared, one):
    place = {"source": "panda", "clip": 1}
    reply = one.answer(
        {"do": "transfer", "action_source": "nav", "action_clip": 0}
        | {"scene_source": "panda", "scene_clip": 2}
    )
    assert [len(film["frames"]) for film in reply["films"]] == [8, 8, 8]
    first = shared.sources["nav"].clips[0].video[0]
    assert np.abs(shown(reply["films"][0]["frames"][0]).astype(int) - first).mean() < 6
    reply = one.answer({"do": "sample", **place})
    assert [film["label"] for film in reply["films"]][1:] == [f"future {i}" for i in (1, 2, 3, 4)]
    assert "Gaussian" in reply["text"]
    reply = one.answer({"do": "look", **place})
    assert np.shape(reply["series"]) == (3, 7) and len(reply["effect"]) == 7
    assert min(reply["effect"]) > 0 and len(reply["frames"]) == 8 and reply["codes"] is None
    assert len(one.answer({"do": "frames", **place})["frames"]) == 8
    json.dumps(one.answer({"do": "hello"}))


def test_a_learned_prior_is_sampled_in_each_state(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    write_prior(folder)
    found = loaded(folder, source="panda")
    reply = session.Session(found).answer({"do": "sample", "source": "panda", "clip": 0})
    assert "learned prior" in reply["text"] and "no learned prior" not in reply["text"]
    write_prior(folder, 7)
    found = loaded(folder, source="panda")
    assert found.world.model.prior is None
    assert any("expected the prior of step 1, got that of step 7" in x for x in found.notes)


def test_a_plan_is_shown_beside_the_clip_with_its_actions(shared, one, monkeypatch):
    monkeypatch.setattr(planning, "OPTIONS", dict(samples=16, elites=4, iterations=2))
    asked = {"do": "plan", "source": "panda", "clip": 1, "first": 2}
    reply = one.answer(asked | {"goal": 4})
    assert [len(film["frames"]) for film in reply["films"]] == [3, 3, 1]
    clip = shared.sources["panda"].clips[1]
    assert [row[0] for row in reply["actions"]] == ["x", "y", "z"]
    true = clip.actions[2:4].sum(0)
    np.testing.assert_allclose([row[2] for row in reply["actions"]], true, atol=1e-3)
    before = np.sqrt(np.square(clip.s[2] - clip.s[4]).mean())
    assert reply["distance"][0] == pytest.approx(before, abs=2e-3)
    for wrong in ({"goal": 2}, {"goal": 9}, {"first": 7, "goal": 8}, {"goal": "4"}):
        with pytest.raises(messages.Refused, match="expected a number from"):
            one.answer(asked | wrong)
    with pytest.raises(messages.Refused, match="Planning needs a controller for nav"):
        one.answer(asked | {"source": "nav", "goal": 4})


def test_a_plan_acts_in_the_simulator(shared, one, monkeypatch):
    skip_unless(panda_episode)
    monkeypatch.setattr(planning, "OPTIONS", dict(samples=8, elites=3, iterations=1))
    monkeypatch.setattr(planning, "SCENES", 1)
    reply = one.answer({"do": "act", "source": "panda", "scene": 3})
    assert [len(film["frames"]) for film in reply["films"]] == [10, 1]
    assert len(reply["path"]) == 11 and reply["path"][0] > 0.1 and reply["radius"] == 0.05


def test_what_a_missing_simulator_needs_is_said(shared, one, monkeypatch):
    monkeypatch.setattr(planning, "NEEDS", {"panda": "a_simulator_that_is_not_there"})
    said = planning.Planner(shared.world).missing_simulator(shared.sources["panda"])
    assert "pip install 'lawm_jax[sim]'" in said
    other = dataclasses.replace(shared.sources["panda"], spec="videos:/somewhere")
    assert "has no simulator" in planning.Planner(shared.world).missing_simulator(other)


def test_a_recording_is_a_film_of_the_frames_since(one, tmp_path):
    from lawm_jax.data import video

    with pytest.raises(messages.Refused, match="expected a recording to save, got none"):
        one.answer({"do": "film"})
    one.answer({"do": "record", "on": True})
    for _ in range(5):
        one.answer({"do": "step", "by": "axes", "values": [1]})
    one.answer({"do": "record", "on": False})
    one.answer({"do": "step", "by": "axes", "values": [1]})
    path = tmp_path / "film.mp4"
    path.write_bytes(one.answer({"do": "film", "rate": 10}))
    assert video.duration(str(path)) == pytest.approx(0.6, abs=0.01)  # with the first one


def test_a_recording_ends_at_its_limit(one, monkeypatch):
    monkeypatch.setattr(session, "RECORDED", 3)
    one.answer({"do": "record", "on": True})
    for _ in range(5):
        one.answer({"do": "step", "by": "axes", "values": [1]})
    assert len(one.frames) == 3


def test_a_model_without_decoder_says_so_and_still_shows_latents(shared):
    world = shared.world
    blind = dataclasses.replace(world.model, decoder=None)
    blind = world_.World(blind, world.params, world.window, world.frames)
    rest = list(shared.sources.values()), planning.Planner(blind), shared.fps, "", []
    found = shared_.Shared(blind, *rest)
    one = session.Session(found)
    assert one.answer({"do": "start", "source": "panda", "clip": 0})["imagined"] is None
    for message in ({"do": "step", "by": "axes", "values": [1]}, {"do": "undo"}):
        with pytest.raises(messages.Refused, match="no decoder"):
            one.answer(message)
    assert min(one.answer({"do": "look", "source": "panda", "clip": 0})["effect"]) > 0
    reply = one.answer({"do": "sample", "source": "panda", "clip": 0})
    assert len(reply["films"]) == 1 and "no decoder" in reply["text"]


def test_a_model_without_actions_is_refused(tmp_path, get_config, one_device):
    write_run(get_config("size=tiny,latent=deterministic"), tmp_path / "run")
    with pytest.raises(ValueError, match="expected a world model that is conditioned on actions"):
        loaded(tmp_path / "run", source="panda")


def test_sources_without_video_give_way_to_the_embedded_data(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["sources"] = {name: "records:/nowhere" for name in ("panda", "nav")}
    (folder / "config.json").write_text(json.dumps(config))
    found, *_ = library.open_sources(str(folder))
    assert [source.name for source in found] == ["panda", "nav"], "the page opens on the arm"
    found, frames, fps = library.open_sources(str(folder), only="panda")
    assert [source.spec for source in found] == ["mini:panda"] and (frames, fps) == (8, 4.0)
    assert "using the embedded data" in capsys.readouterr().out
    with pytest.raises(ValueError, match="source: expected one of .*, got 'street'"):
        library.open_sources(str(folder), only="street")
    with pytest.raises(ValueError, match="add one with --data NAME=SOURCE"):
        library.open_sources(str(folder), {"mine": "videos:/nowhere"})


def test_videos_of_ones_own_can_be_played(run, videos):
    found = loaded(run, data={"mine": videos})
    (source,) = found.sources.values()
    assert source.task is None and len(source.clips) >= 1
    one = session.Session(found)
    reply = one.answer({"do": "start", "source": "mine", "clip": 0})
    assert [way["by"] for way in reply["controls"]] == ["axes"]


# The server.

SOCKET, POLICY = "ws://localhost/socket", "content-security-policy"

WRONG = [
    "no JSON",
    "[" * 5000,
    "[]",
    "3",
    '"step"',
    '{"do": "fly"}',
    '{"do": ["step"]}',
    '{"do": "start", "source": "moon", "clip": 0}',
    '{"do": "start", "source": "panda", "clip": 99}',
    '{"do": "start", "source": "panda", "clip": NaN}',
    '{"do": "start", "source": "", "clip": 0}',
    '{"do": "start", "source": {}, "clip": 0}',
    '{"do": "step", "by": "axes", "values": [1, 0, 0]}',  # before the start
    '{"do": "plan"}',
    '{"do": "sample", "source": "panda", "clip": 0, "seed": -1}',
    json.dumps({"do": "hello", "more": "x" * 2**14}),
]
LATER = [
    {"by": "axes"},
    {"by": "axes", "values": [1, 0, 0, 0]},
    {"by": "axes", "values": [2]},
    {"by": "axes", "values": ["1"]},
    {"by": "axes", "values": [1], "size": 1e9},
    {"by": "axes", "values": [float("nan")]},
    {"by": "codes", "code": 1},
    {"by": None},
    {"values": [1]},
]


def test_a_bad_message_gets_an_error_and_the_session_goes_on(client):
    with client.websocket_connect(SOCKET) as socket:
        socket.receive_json()
        for text in WRONG:
            socket.send_text(text)
            assert "expected" in socket.receive_json()["error"], text
        socket.send_json({"do": "start", "source": "panda", "clip": 0})
        assert socket.receive_json()["real"].startswith("data:image/jpeg")
        for message in LATER:
            socket.send_text(json.dumps({"do": "step"} | message))
            assert "expected" in socket.receive_json()["error"], message
        socket.send_json({"do": "step", "by": "axes", "values": [1, 0, 0]})
        assert picture(socket.receive_bytes())[0] == 1
    assert client.server.open == {}


def test_an_error_of_the_code_is_no_secret_and_ends_nothing(client, monkeypatch):
    def fail(*_):
        raise RuntimeError("/a/path")

    monkeypatch.setitem(session.COMMANDS, "look", fail)
    with client.websocket_connect(SOCKET) as socket:
        socket.receive_json()
        socket.send_json({"do": "look"})
        assert socket.receive_json() == {"error": server.FAILED}
        socket.send_json({"do": "hello"})
        assert "sources" in socket.receive_json()


def test_two_sessions_imagine_apart(client):
    with client.websocket_connect(SOCKET) as a, client.websocket_connect(SOCKET) as b:
        assert a.receive_json()["token"] != b.receive_json()["token"]
        for socket in (a, b):
            socket.send_json({"do": "start", "source": "panda", "clip": 0})
            socket.receive_json()
        step = {"do": "step", "by": "axes"}
        for _ in range(3):  # two at once, as the page does
            a.send_json(step | {"values": [1]})
            a.send_json(step | {"values": [1]})
            b.send_json(step | {"values": [-1]})
        last = [picture(a.receive_bytes()) for _ in range(6)][-1]
        other = [picture(b.receive_bytes()) for _ in range(3)][-1]
        assert (last[0], other[0]) == (6, 3)
        assert np.abs(last[1].astype(int) - other[1]).max() > 5


def test_no_more_than_a_few_sessions_are_open(client, monkeypatch):
    monkeypatch.setattr(server, "SESSIONS", 2)
    with client.websocket_connect(SOCKET) as a, client.websocket_connect(SOCKET) as b:
        a.receive_json(), b.receive_json()
        with client.websocket_connect(SOCKET) as c:
            assert "expected at most 2 open pages" in c.receive_json()["error"]
        begun = client.post("/session", json={})
        assert begun.status_code == 503 and begun.json()["full"]
    assert client.post("/session", json={}).json()["token"]


def test_other_sites_and_names_are_refused(client, shared):
    with pytest.raises(testclient.WebSocketDisconnect):
        with client.websocket_connect(SOCKET, headers={"origin": "http://evil.example"}):
            pass
    assert client.post("/session", content="{}").status_code == 415
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    with client.websocket_connect(SOCKET, headers={"origin": "http://localhost"}) as socket:
        assert socket.receive_json()["token"]


def test_the_page_needs_nothing_from_elsewhere(client):
    for path in ("/", *(f"/{name}" for name in server.FILES)):
        reply = client.get(path)
        assert reply.status_code == 200 and "default-src 'none'" in reply.headers[POLICY]
        assert "http://" not in reply.text and "https://" not in reply.text
    for path in ("/page.py", "/server.py", "/..%2fpyproject.toml", "/nothing"):
        assert client.get(path).status_code == 404


def test_without_a_websocket_the_same_messages_are_posted(client, monkeypatch):
    token = client.post("/session", json={}).json()["token"]
    ask = lambda message: client.post(f"/session/{token}", content=json.dumps(message))  # noqa: E731
    assert ask({"do": "start", "source": "panda", "clip": 0}).json()["controls"]
    reply = ask({"do": "step", "by": "axes", "values": [1]})
    assert picture(reply.content)[0] == 1
    assert "expected" in ask({"do": "fly"}).json()["error"]
    assert client.post(f"/session/{token}", content="x" * 2**15).status_code == 413
    assert client.post("/session/another", content="{}").status_code == 404
    monkeypatch.setattr(server, "IDLE", 0.0)
    time.sleep(0.01)
    client.post("/session", json={})
    assert ask({"do": "hello"}).json() == {"error": server.GONE, "gone": True}


def upload(client, token, name, content, **query):
    url = f"/session/{token}/upload"
    return client.post(url, params={"name": name} | query, content=content)


@pytest.fixture
def token(client):
    return client.post("/session", json={}).json()["token"]


@pytest.fixture
def no_files_left(monkeypatch, tmp_path):
    """Checks that the folder of temporary files is empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def film(videos):
    return (pathlib.Path(videos) / "1.mp4").read_bytes()


def test_an_upload_is_played_like_a_clip(client, token, videos, no_files_left):
    reply = upload(client, token, "../../My film.MP4", film(videos))
    (clip,) = reply.json()["clips"]
    assert clip["label"] == "My film.MP4" and clip["frames"] == 8
    ask = lambda message: client.post(f"/session/{token}", content=json.dumps(message))  # noqa: E731
    begun = ask({"do": "start", "source": "", "clip": 0}).json()
    assert [way["by"] for way in begun["controls"]] == ["axes"]
    assert picture(ask({"do": "step", "by": "axes", "values": [1]}).content)[0] == 1
    asked = {"do": "transfer", "action_source": "", "action_clip": 0}
    done = ask(asked | {"scene_source": "panda", "scene_clip": 0}).json()
    assert [len(x["frames"]) for x in done["films"]] == [8, 8, 8]
    assert len(ask({"do": "look", "source": "", "clip": 0}).json()["effect"]) == 7
    assert (
        "Uploaded videos have no real actions" in ask({"do": "plan", "source": "", "clip": 0}).text
    )
    late = upload(client, token, "b.mp4", film(videos), start=3).json()["clips"][-1]
    assert late["frames"] == 4
    for _ in range(3):
        clips = upload(client, token, "c.mp4", film(videos)).json()["clips"]
    assert [clip["label"] for clip in clips] == ["c.mp4"] * 3


def test_an_upload_that_is_no_video_says_what_was_expected(
    client, token, videos, no_files_left, monkeypatch
):
    def error(name, content, **query):
        reply = upload(client, token, name, content, **query)
        assert 400 <= reply.status_code < 500
        return reply.json()["error"]

    whole = film(videos)
    assert "expected a video (" in error("a.py", b"print()") and "got .py" in error("a.py", b"x")
    assert "no suffix" in error("video", whole) and "empty file" in error("a.mp4", b"")
    assert error("a.mp4", b"print('no video')" * 99).startswith("a.mp4: expected a video, got:")
    assert error("a.mp4", whole[: len(whole) // 3]).startswith("a.mp4: expected a video, got:")
    assert "got a video of 4 s" in error("a.mp4", whole, start=3.9)
    for start in ("x", "-1", "nan", "inf"):
        assert "start: expected" in error("a.mp4", whole, start=start)
    monkeypatch.setattr(uploads, "LONGEST", 3.0)
    assert "expected at most 3 s of video, got 4 s" in error("a.mp4", whole)
    listed = f"{videos}/1.mp4\n".encode()
    assert "got .txt" in error("a.txt", listed) and "expected a video" in error("a.mp4", listed)
    playlist = f"#EXTM3U\n#EXTINF:1,\n{videos}/1.mp4\n".encode()
    assert "expected a video" in error("a.mp4", playlist)


def test_an_upload_that_is_too_large_is_refused_while_it_arrives(
    client, token, videos, no_files_left, monkeypatch
):
    monkeypatch.setattr(uploads, "LARGEST", 2**20)
    sent = []

    def endless():
        while len(sent) < 64:
            sent.append(1)
            yield bytes(2**18)

    for content in (bytes(2**20 + 1), endless()):
        reply = upload(client, token, "a.mp4", content)
        assert reply.status_code == 422
        assert "a.mp4: expected at most 1 MB, got" in reply.json()["error"]
    assert upload(client, token, "a.mp4", film(videos)).status_code == 200


def test_the_limit_of_an_upload_holds_before_all_of_it_is_read(monkeypatch, no_files_left):
    import asyncio

    monkeypatch.setattr(uploads, "LARGEST", 2**20)
    sent = []

    async def endless():
        while True:
            sent.append(1)
            yield bytes(2**18)

    with pytest.raises(messages.Refused, match="expected at most 1 MB, got more"):
        asyncio.run(uploads.receive(endless(), "a.mp4"))
    assert len(sent) == 5


def test_the_command_says_what_is_missing(tmp_path):
    done = run_module("play", "--workdir", str(tmp_path / "nowhere"))
    assert done.returncode and "not found; expected a run's folder" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    done = run_module("play", "--data", "mine")
    assert "--data: expected NAME=SOURCE, got 'mine'" in done.stdout + done.stderr


# The page, in a browser.


@pytest.fixture(scope="module")
def address(shared):
    """The address of a server in a thread."""
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("websockets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "OPTIONS", dict(samples=8, elites=3, iterations=1))
        found = uvicorn.Server(server.config(shared, 0))
        thread = threading.Thread(target=found.run, daemon=True)
        thread.start()
        wait(lambda: found.started)
        yield f"http://localhost:{found.servers[0].sockets[0].getsockname()[1]}/"
        found.should_exit = True
        thread.join(10)


def wait(until, seconds=60):
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.02)


def choose_first(run):
    """Waits until the page is open, and then until it shows the first source's clip."""
    wait(lambda: run("return played.ready > 0"))
    run("played.ready = 0; document.querySelector('#sources button').click()")
    wait(lambda: run("return played.ready > 0"))
    assert run("return document.getElementById('ways').children.length") == 2


HOLD = """
const press = (type, key) => dispatchEvent(new KeyboardEvent(type, { key }));
press(arguments[0], arguments[1]);
"""
RESULT = {"transfer": 3, "sample": 5, "plan": 3, "look": 1}  # canvases


@pytest.mark.browser
@pytest.mark.parametrize("width,height,mobile", [(1280, 900, False), (360, 740, True)])
def test_a_browser_plays_and_opens_every_tab_without_errors(
    browser, address, width, height, mobile
):
    screen = dict(width=width, height=height, deviceScaleFactor=1, mobile=mobile)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(address)
    run = browser.execute_script
    click = lambda name: run(f"document.getElementById('{name}').click()")  # noqa: E731
    fits = lambda: run("return document.documentElement.scrollWidth <= innerWidth")  # noqa: E731
    choose_first(run)
    assert fits()
    pixels = "return document.getElementById('imagined').toDataURL()"
    for way in (0, 1):  # real actions, and latent directions
        run(f"document.getElementById('ways').children[{way}].click()")
        before, drawn = run(pixels), run("return played.drawn")
        run(HOLD, "keydown", "d")
        wait(lambda drawn=drawn: run("return played.drawn") > drawn + 5)
        run(HOLD, "keyup", "d")
        wait(lambda: run("return flying") == 0)
        drawn = run("return played.drawn")
        time.sleep(0.2)
        assert run("return played.drawn") == drawn and run(pixels) != before
        click("reset")
        wait(lambda: run("return document.getElementById('count').textContent") == "step 0")
    for tab, canvases in RESULT.items():
        click(f"tab-{tab}")
        if tab != "look":
            click(f"run-{tab}")
        count = f"return document.querySelectorAll('#{tab} .out canvas').length"
        wait(lambda count=count, canvases=canvases: run(count) == canvases)
        assert fits(), tab
        assert run("return document.querySelectorAll('.error:not([hidden])').length") == 0
    assert errors(browser) == []


def errors(browser):
    """Lists the page's errors; that a refused request was refused is the browser's own note."""
    lines = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    return [line for line in lines if line["source"] != "network" or "422" not in line["message"]]


@pytest.mark.browser
def test_a_page_refuses_bad_uploads_and_plays_a_good_one(browser, address, videos, tmp_path):
    browser.get(address)
    run = browser.execute_script
    wait(lambda: run("return played.ready > 0"))
    field = browser.find_element("id", "upload")
    shown = (
        "const x = document.getElementById('upload-error'); return x.hidden ? '' : x.textContent"
    )
    large, broken = tmp_path / "large.mp4", tmp_path / "broken.mp4"
    with large.open("wb") as file:
        file.truncate(200 * 2**20)
    broken.write_bytes(b"no video" * 1000)
    for path, message in (large, "at most 50 MB, got 200 MB"), (broken, "expected a video, got"):
        field.send_keys(str(path))
        wait(lambda message=message: message in run(shown))
        assert path.name in run(shown)
    field.send_keys(str(pathlib.Path(videos, "1.mp4")))
    wait(lambda: run("return state.uploads.length") == 1)
    wait(lambda: run(shown) == "")
    assert errors(browser) == []


@pytest.mark.browser
def test_two_browsers_play_at_once_and_a_held_key_keeps_the_world_moving(
    browser, new_browser, address
):
    count = "return +document.getElementById('count').textContent.match(/\\d+/)[0]"
    browsers = [browser, new_browser()]  # a window that loses the focus lets go of its keys
    for one in browsers:
        run = one.execute_script
        one.get(address)
        choose_first(run)
        run(HOLD, "keydown", "d")
    for one in browsers:
        run = one.execute_script
        begin = run("return played.drawn")
        wait(lambda run=run, begin=begin: run("return played.drawn") > begin + 20)
        assert run("return held.size") == 1
    for one in browsers:
        run = one.execute_script
        run(HOLD, "keyup", "d")
        wait(lambda run=run: run("return flying") == 0)
        assert run(count) > 20
        assert errors(one) == []

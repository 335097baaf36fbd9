"""What the notebooks call: the page below a cell, one's own videos, and pictures to display."""

import json
import os
import socket
import sys
import types
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from conftest import write_run

from lawm_jax import world_model
from lawm_jax.data import video
from lawm_jax.nn import pretrained
from lawm_jax.train import rundir

pytest.importorskip("uvicorn")
pytest.importorskip("IPython")

from lawm_jax.play import figures, library, notebook  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory, get_config, one_device):
    folder = tmp_path_factory.mktemp("notebook") / "run"
    config = get_config("size=tiny,latent=noisy")
    config.data.mixture.nav = 0.0
    write_run(config, folder)
    return folder


@pytest.fixture
def shown(monkeypatch):
    """Collects what is displayed, with few clips loaded."""
    import IPython.display

    found = []
    monkeypatch.setattr(IPython.display, "display", found.append)
    monkeypatch.setattr(library, "CLIPS", 2)
    return found


def add_colab(monkeypatch, **modules):
    """Makes `google.colab` importable, as in Colab."""
    import importlib

    real = importlib.import_module
    made = {f"google.colab.{name}": types.SimpleNamespace(**x) for name, x in modules.items()}
    find = lambda name: made[name] if name in made else real(name)  # noqa: E731
    monkeypatch.setattr(notebook.importlib, "import_module", find)


def get(page):
    with urllib.request.urlopen(str(page), timeout=10) as reply:
        return reply.read().decode()


def test_the_page_is_served_in_the_background_until_it_is_stopped(run, shown):
    page = notebook.inline(str(run))
    assert [(frame.src, frame.height) for frame in shown] == [(str(page), 900)]
    assert "<html" in get(page)
    with pytest.raises(OSError, match=f"port: expected a free port, got {page.port}"):
        notebook.inline(str(run), port=page.port)
    page.stop()
    page.stop()
    assert not page.thread.is_alive()
    with pytest.raises(urllib.error.URLError):
        get(page)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", page.port))


def test_in_colab_the_page_is_shown_through_its_proxy_under_any_name(run, shown, monkeypatch):
    asked = []
    show = lambda *args, **options: asked.append((args, options))  # noqa: E731
    add_colab(monkeypatch, output=dict(serve_kernel_port_as_iframe=show))
    page = notebook.inline(str(run))
    assert asked == [((page.port,), {"height": "900"})] and shown == []
    request = urllib.request.Request(str(page), headers={"Host": "x-7860.colab.example"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert reply.status == 200
    page.stop()


def test_the_page_says_what_it_requires(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(ImportError, match=r"pip install 'lawm_jax\[play\]'"):
        notebook.inline(str(run))


def test_without_videos_of_ones_own_there_are_films_and_a_broken_file(tmp_path, capsys):
    folder = notebook.own_videos(str(tmp_path / "videos"))
    assert len(os.listdir(folder)) == notebook.EXAMPLES + 1
    assert "17 files" in capsys.readouterr().out
    with pytest.raises(video.UnreadableVideo):
        video.duration(os.path.join(folder, "broken.mp4"))
    assert notebook.own_videos(folder) == folder and len(os.listdir(folder)) == 17
    assert notebook.own_videos(str(tmp_path / "none"), "/data/*.mp4") == "/data/*.mp4"
    assert not (tmp_path / "none").exists()


def test_uploads_of_colab_are_written_into_the_folder_and_nowhere_else(tmp_path, monkeypatch):
    sent = {"a.mp4": b"abc", "../b.mov": b"de"}
    add_colab(monkeypatch, files=dict(upload=lambda: sent))
    folder = tmp_path / "videos"
    assert notebook.own_videos(str(folder)) == str(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "a.mp4": b"abc",
        "b.mov": b"de",
    }
    assert list(tmp_path.iterdir()) == [folder]


def test_skipped_files_are_printed_with_their_reasons(tmp_path, capsys):
    notebook.print_skipped(str(tmp_path))
    assert capsys.readouterr().out == "skipped files: 0\n"
    line = json.dumps({"source": "videos", "path": "a.mp4", "reason": "no video"})
    with open(rundir.skipped(str(tmp_path)), "w") as file:
        file.write(line + "\n")
    notebook.print_skipped(str(tmp_path))
    assert capsys.readouterr().out == "skipped files: 1\n  a.mp4: no video\n"


def test_random_weights_take_the_place_of_those_that_cannot_be_had_with_a_notice(
    tmp_path, monkeypatch, capsys
):
    def fail(name):
        raise FileNotFoundError(f"{name}: no network. Without network access, run ...")

    monkeypatch.setattr(pretrained, "download", fail)
    assert notebook.vjepa2_weights("facebook/x") == ""
    out = capsys.readouterr().out
    assert "RANDOM WEIGHTS" in out and "(facebook/x: no network)" in out
    assert notebook.vjepa2_weights("") == "" and "RANDOM" in capsys.readouterr().out
    assert notebook.vjepa2_weights(str(tmp_path)) == str(tmp_path)
    monkeypatch.setattr(pretrained, "download", lambda name: tmp_path)
    assert notebook.vjepa2_weights("facebook/x") == "facebook/x"
    assert "RANDOM" not in capsys.readouterr().out


def test_a_compiled_function_returns_what_the_function_returns(tiny):
    model, params, s = tiny()
    z = jax.random.normal(jax.random.key(0), (2, 3, 16))
    got = notebook.compiled(world_model.predict)(model, params, s[:, :3], z)
    expected = world_model.predict(model, params, s[:, :3], z)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_sweep_is_a_rollout_of_the_mean_and_a_deviation_along_each_direction(run):
    model, params = notebook.load_run(str(run))[1:]
    random = np.random.default_rng(0)
    known = random.normal(size=(2, 3, 16)) * np.array([3.0, 2.0] + [1e-3] * 14) + 1
    s = world_model.encode(model, params, random.integers(256, size=(1, 1, 64, 64, 3), dtype="u1"))
    rows = figures.sweep(model, params, s, known.astype(np.float32), steps=2)
    assert list(rows) == ["direction 1 −", "direction 1 +", "direction 2 −", "direction 2 +"]
    flat = known.reshape(-1, 16)
    _, size, right = np.linalg.svd(flat - flat.mean(0))
    way = right[0] * size[0] / np.sqrt(len(flat)) * np.sign(right[0, np.abs(right[0]).argmax()])
    z = np.tile(flat.mean(0) - way, (1, 2, 1)).astype(np.float32)
    ahead = world_model.rollout(model, params, s, z)
    expected = np.asarray(world_model.decode(model, params, ahead))[0]
    got = rows["direction 1 −"]
    assert got.shape == (3, 64, 64, 3)
    assert np.abs(got[1:].astype(int) - expected).max() <= 1


def test_projections_are_in_standard_deviations_of_the_known_latents():
    known = np.random.default_rng(0).normal(size=(5, 7, 4)) * np.array([4.0, 2, 1, 0.5])
    z = np.concatenate(list(known))
    series = figures.projections(known, z)
    assert len(series) == 3 and all(len(x) == 35 for x in series.values())
    for x in series.values():
        assert abs(x.mean()) < 1e-6 and abs(x.std() - 1) < 1e-6
    assert next(iter(series)).startswith("direction 1 (")


def test_real_actions_are_read_from_latents_that_are_a_linear_map_of_them():
    random = np.random.default_rng(0)
    u = random.normal(size=(40, 7, 3))
    z = np.concatenate([u @ random.normal(size=(3, 3)), random.normal(size=(40, 7, 2))], -1)
    panels = figures.read_actions(z[1:], u[1:], z[0], u[0])
    assert list(panels) == list(figures.XYZ)
    for i, panel in enumerate(panels.values()):
        np.testing.assert_array_equal(panel["recorded"], u[0, :, i])
        assert np.abs(panel["read from latent actions"] - u[0, :, i]).max() < 0.2


def test_states_are_colored_alike_where_they_are_alike():
    random = np.random.default_rng(0)
    s = random.normal(size=(4, 16, 8))
    rows = figures.colored({"a": s, "b": s[:2], "c": s + 9})
    assert rows["a"].shape == (4, 128, 128, 3) and rows["a"].dtype == np.uint8
    np.testing.assert_array_equal(rows["a"][:2], rows["b"])
    np.testing.assert_array_equal(rows["a"][:, 0, 0], rows["a"][:, 31, 31])  # one token
    assert np.unique(rows["a"]).size > 100 and (rows["c"] != rows["a"]).mean() > 0.9


def test_figures_and_films_are_embedded(tmp_path):
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    assert figures.strips("title", {"a": frames})._repr_png_()
    assert figures.curves({"panel": {"a": [1.0, 2.0], "b": [0.5, 0.2]}})._repr_png_()
    html = figures.film({"a": frames, "shorter": frames[:1]})._repr_html_()
    assert "<video" in html and "data:video/mp4;base64," in html
    assert figures.film({}) is None


def test_a_missing_simulator_or_controller_is_said_and_shows_nothing(run, capsys, monkeypatch):
    from lawm_jax.play import load

    monkeypatch.setattr(library, "CLIPS", 2)
    shared = load.load(str(run), say=lambda text: None)
    assert notebook.act(shared, "panda") == {}
    assert "Planning needs a controller for panda" in capsys.readouterr().out
    frames = [np.full((8, 8, 3), i, np.uint8) for i in range(2)]
    planner = types.SimpleNamespace(
        missing=lambda source: "",
        missing_simulator=lambda source: "",
        act=lambda source, scene: (frames, frames[1], np.array([0.2, 0.1, 0.04]), 0.05),
    )
    rows = notebook.act(types.SimpleNamespace(planner=planner, sources=shared.sources), "panda")
    np.testing.assert_array_equal(rows["simulator"], np.stack(frames))
    np.testing.assert_array_equal(rows["goal"], np.stack([frames[1]] * 2))
    out = capsys.readouterr().out
    assert (
        out
        == "0.200 m from the goal at the start, 0.040 m after 2 steps: reached (within 0.05 m)\n"
    )

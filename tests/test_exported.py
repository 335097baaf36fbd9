"""Exported models: plain files that others can load, from a folder or from the Hub."""

import base64
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, write_controller, write_prior, write_run

import lawm_jax as lawm
from lawm_jax.train import checkpoints, exported, loop, models, rundir


@pytest.fixture(scope="module")
def run(tmp_path_factory, get_config, one_device):
    """A run of step 3 with controllers of two sources, a prior, and data in a local folder."""
    folder = tmp_path_factory.mktemp("private") / "model"
    config = get_config("size=tiny,latent=noisy")
    write_run(config, folder, (2, 3))
    for source in ("panda", "nav"):
        write_controller(config, folder, source, 3)
    write_prior(folder, 3)
    saved = json.loads((folder / "config.json").read_text())
    saved["data"]["sources"] = {"panda": f"records:{folder}/states", "nav": "mini:nav"}
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """The exported run."""
    path = tmp_path_factory.mktemp("exported") / "model"
    lawm.save_pretrained(path, run)
    return path


def equal(a, b):
    assert a[0] == b[0]
    jax.tree.map(np.testing.assert_array_equal, a[1], b[1])


@pytest.mark.parametrize("controller", ["", "panda", "nav"])
def test_an_exported_model_is_loaded_as_its_run_is(run, folder, controller):
    options = dict(controller=controller, prior=True)
    equal(lawm.load(folder, **options), lawm.load(run, **options))
    assert checkpoints.newest(folder) == 3
    assert models.controllers_of(folder, controller or "panda", "") == {
        str(folder / "controller" / (controller or "panda")): "state"
    }


def test_an_export_holds_plain_files_and_no_path_of_this_machine(run, folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = {"config.json", "model.safetensors"}
    modes = {(folder / name).stat().st_mode for name in files}
    assert modes == {(folder / "config.json").stat().st_mode}, "all can be read by the same users"
    own = {f"controller/{source}/{name}" for source in ("panda", "nav") for name in names}
    assert files == names | own | {"README.md", "prior.safetensors"}
    assert not any(str(run).encode() in path.read_bytes() for path in map(folder.joinpath, files))
    sources = json.loads((folder / "config.json").read_text())["data"]["sources"]
    assert sources == {"panda": "records:/path/to/panda", "nav": "mini:nav"}
    named = {
        name.split("/")[0] for name in safetensors.numpy.load_file(folder / "model.safetensors")
    }
    assert named == {"inverse", "predictor"}, "the embedded encoder and decoder are not copied"


def test_given_sources_replace_those_of_the_run(run, tmp_path):
    lawm.save_pretrained(tmp_path / "out", run, sources={"panda": "mini:panda"}, card="Mine.")
    sources = rundir.read_config(tmp_path / "out")["data"]["sources"]
    assert sources == {"panda": "mini:panda", "nav": "mini:nav"}
    assert (tmp_path / "out" / "README.md").read_text() == "Mine."


def test_a_model_that_was_saved_is_exported_whole(run, tmp_path):
    model, params = lawm.load(run, controller="panda", prior=True)
    lawm.save(tmp_path / "saved", model, params)
    lawm.save_pretrained(tmp_path / "out", tmp_path / "saved")
    equal(lawm.load(tmp_path / "out"), (model, params))


def test_nothing_is_exported_over_a_model_or_from_a_run_without_checkpoint(run, folder, tmp_path):
    with pytest.raises(ValueError, match="expected a folder without a model"):
        lawm.save_pretrained(folder, run)
    shutil.copy(run / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint found"):
        lawm.save_pretrained(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_model_in_memory_is_refused_with_the_function_that_saves_it(run, tmp_path):
    model, params = lawm.load(run)
    with pytest.raises(ValueError, match=r"expected the folder of a run, got a W.*lawm\.save\("):
        lawm.save_pretrained(tmp_path / "out", model, params)
    assert not (tmp_path / "out").exists()


def shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


def rename(path):
    arrays = safetensors.numpy.load_file(path)
    first = next(iter(arrays))
    safetensors.numpy.save_file({"other": arrays.pop(first)} | arrays, path, {"step": "3"})


def reshape(path):
    arrays = safetensors.numpy.load_file(path)
    first = next(iter(arrays))
    arrays[first] = np.concatenate([arrays[first]] * 2)
    safetensors.numpy.save_file(arrays, path, {"step": "3"})


def foreign(path):
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)


@pytest.mark.parametrize(
    "change, text",
    [
        (shorten, "expected parameters written by `save_pretrained`"),
        (foreign, "expected parameters written by `save_pretrained`, got KeyError"),
        (rename, "missing: .*unexpected: other"),
        (reshape, "missing: .*unexpected: "),
    ],
)
def test_a_damaged_export_is_refused_by_name(folder, tmp_path, change, text):
    shutil.copytree(folder, tmp_path / "copy")
    change(tmp_path / "copy" / "model.safetensors")
    with pytest.raises(ValueError, match=f"model.safetensors: .*{text}"):
        lawm.load(tmp_path / "copy", controller="")


def test_an_export_has_one_step(folder):
    with pytest.raises(ValueError, match="expected step 2, got only step 3"):
        lawm.load(folder, step=2)


def test_no_run_starts_in_an_exported_model(folder, get_config):
    with pytest.raises(ValueError, match="expected a new --workdir .* got an exported model"):
        loop.fit(get_config("size=tiny"), str(folder))


def test_a_controller_is_trained_for_an_exported_model(folder):
    from lawm_jax.configs import controller
    from lawm_jax.train import objectives

    config = controller.get_config("size=tiny").to_dict() | {"model": str(folder)}
    completed = objectives.complete(config)
    assert completed["model_step"] == 3 and completed["latent"]["kind"] == "noisy"


@pytest.mark.parametrize("name", ["missing", "runs/two/deep", "/no/such", "a/b?c"])
def test_a_model_that_is_nowhere_is_an_error_that_says_where_models_are(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    expected = f"{re.escape(name)}: not found; expected a run's folder, nano, or ORGANIZATION/NAME"
    with pytest.raises(FileNotFoundError, match=expected):
        lawm.load(name)


@pytest.mark.parametrize("source, most", [("panda", 0.80), ("nav", 0.85)])
def test_the_model_that_ships_predicts_held_out_clips(source, most, get_config):
    config = get_config("size=nano")
    config.data.videos = f"mini:{source}"
    model, params = lawm.load("nano", controller=source, prior=True)
    assert {"predictor", "inverse", "decoder", "controller", "prior"} <= params.keys()
    encode, infer, predict = (
        jax.jit(f, static_argnums=0) for f in (lawm.encode, lawm.infer_actions, lawm.predict)
    )
    errors = []
    for _, batch in zip(range(4), lawm.clips(config, "test"), strict=False):
        s = encode(model, params, batch["video"])
        ahead = predict(model, params, s[:, :-1], infer(model, params, s)[0])
        errors.append([np.abs(x - s[:, 1:]).mean() for x in (ahead, s[:, :-1])])
    ours, copying = np.mean(errors, 0)
    assert ours < most * copying


class Hub(http.server.BaseHTTPRequestHandler):
    """Stands in for the Hugging Face Hub: creates repositories, takes commits, gives files."""

    repositories, commit, asked = {}, "0" * 40, []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            self.repositories.setdefault(name, {})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
        url = f"http://{self.headers['Host']}/{name}/commit/{self.commit}"
        self.answer({"commitUrl": url, "commitOid": self.commit})

    def do_GET(self):
        parts = self.path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.repositories.get("/".join(parts[2:4]))
            if files is None:
                return self.answer({"error": "Repository not found"}, 404)
            if "tree" in parts:
                return self.answer([self.entry(*file) for file in files.items()])
            found = [{"rfilename": name} for name in files]
            return self.answer({"id": "/".join(parts[2:4]), "sha": self.commit, "siblings": found})
        content = self.repositories.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        if content is None:
            return self.answer({"error": "not found"}, 404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def entry(self, path, content):
        return {"type": "file", "path": path, "size": len(content), "oid": f"{hash(content)}"}

    def answer(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


SHARE = """
import sys, jax, numpy as np, lawm_jax as lawm
folder, name = sys.argv[1:]
try:
    lawm.load(name)
except FileNotFoundError as error:
    print(error)
print(lawm.push_to_hub(folder, name, token="secret"))
ours, theirs = (lawm.load(x, controller="nav", prior=True) for x in (folder, name))
assert ours[0] == theirs[0]
jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])
"""


def test_a_model_travels_through_the_hub(folder, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", SHARE, str(folder), "someone/nano-copy"]
    try:
        result = subprocess.run(
            command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True
        )
    finally:
        server.shutdown()
    assert result.returncode == 0, result.stderr
    assert "someone/nano-copy: not found; expected a run's folder" in result.stdout
    assert result.stdout.endswith(f"/commit/{Hub.commit}\n")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert Hub.repositories["someone/nano-copy"].keys() == files
    assert ("/api/repos/create", "Bearer secret") in Hub.asked


def test_only_an_exported_model_is_pushed(run):
    with pytest.raises(FileNotFoundError, match="model.safetensors: not found; expected a folder"):
        lawm.push_to_hub(run, "someone/run")


def test_a_model_of_the_hub_is_copied_before_results_are_written(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(exported.SHIPPED, "small", pathlib.Path(folder))
    assert exported.find("small") == str(folder)
    copy = str(tmp_path / "small")
    assert exported.working_copy("small") == copy
    assert (tmp_path / "small" / "controller" / "nav" / "model.safetensors").exists()
    (tmp_path / "small" / "README.md").write_text("Mine.")
    assert exported.working_copy("small") == copy, "the copy is used again"
    assert (tmp_path / "small" / "README.md").read_text() == "Mine."
    (tmp_path / "small" / "model.safetensors").write_bytes(b"another model")
    with pytest.warns(UserWarning, match="using this folder, which differs from the"):
        assert exported.working_copy("small") == copy
    assert exported.find("small") == str(folder), "a folder never takes a shipped model's place"
    assert exported.working_copy(str(folder)) == str(folder)

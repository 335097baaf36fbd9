"""A wheel is enough: the commands, the configs and the data work without a checkout."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

pytest.importorskip("build")

CONFIGS = "controller.py", "decoder.py", "labelled.py", "lawm.py"
FEW = "--config.steps=2", "--config.data.mixture.nav=0.0"


def run(*command, cwd, **env):
    """Runs a command in a folder; returns what it prints."""
    done = subprocess.run(
        [str(x) for x in command],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Builds the source distribution and from that the wheel, of a copy of what git tracks."""
    copy, out = (tmp_path_factory.mktemp(name) for name in ("checkout", "dist"))
    files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    (copy / "files").write_text(files)
    run("tar", "--null", "--files-from", copy / "files", "-cf", copy / "all.tar", cwd=ROOT)
    run("tar", "-xf", "all.tar", cwd=copy)
    run(sys.executable, "-m", "build", "--outdir", out, copy, cwd=copy)
    (found,) = out.glob("lawm_jax-*.whl")
    return found


@pytest.fixture(scope="module")
def lawm(wheel, tmp_path_factory):
    """Installs the wheel beside its requirements; returns a function that runs `lawm`."""
    site, empty = (tmp_path_factory.mktemp(name) for name in ("site", "empty"))
    pip = sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"
    run(*pip, "--target", site, wheel, cwd=empty)
    where = run(sys.executable, "-c", "import lawm_jax; print(lawm_jax.__file__)", cwd=empty,
                PYTHONPATH=str(site))  # fmt: skip
    assert pathlib.Path(where.strip()).is_relative_to(site)
    return lambda *words: run(site / "bin" / "lawm", *words, cwd=empty, PYTHONPATH=str(site))


def test_the_wheel_brings_configs_and_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"lawm_jax/configs/{name}" for name in CONFIGS} <= names
    assert {"lawm_jax/assets/lawm_mini/panda/test/0000.mp4", "lawm_jax/report/style.css"} <= names
    assert {"lawm_jax/assets/nano/model.safetensors", "lawm_jax/play/page.html"} <= names
    assert not [name for name in names if name.startswith(("configs/", "tests/", "benchmarks/"))]


def test_help_is_a_screen_and_names_every_command(lawm):
    text = lawm("--help")
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 80
    for name in ("train", "evaluate", "plan", "export", "report", "ingest", "study", "aot", "play"):
        assert f"\n  {name} " in text


@pytest.mark.slow  # the same as noxfile.py's sessions do, beside this environment's packages
def test_the_wheel_trains_evaluates_and_reports_in_an_empty_folder(lawm):
    trained = lawm("train", "--config", "lawm.py:size=tiny,latent=noisy", *FEW, "--workdir", "W")
    assert "step 2/2" in trained
    table = lawm("evaluate", "--workdir", "W", "--only", "prediction")
    assert "copy last frame" in table and "noisy" in table
    assert "page.html" in lawm("report", "W")


def test_an_unknown_command_or_config_names_those_that_there_are(lawm):
    for words, text in (
        (["trane"], "expected one of train, evaluate"),
        (["train", "--config", "lwam.py", "--workdir", "W2"], "lawm.py, got lwam.py"),
        (["train", "--config", "lawm.py:size=huuge", "--workdir", "W2"], "got size=huuge"),
        (["train", "--config", "configs/labelled.py:size=l", "--workdir", "W2"], "got size=l"),
    ):
        with pytest.raises(AssertionError, match=text) as error:
            lawm(*words)
        assert "Traceback" not in str(error.value)

"""Proves the bounds of requirements.txt: pip install nox && nox -s oldest newest colab.

Each session makes a fresh environment, installs the wheel into it, trains, evaluates and reports in
an empty folder, and runs the quick part of the tests, or those that follow a `--`.
"""

import json
import pathlib
import re
import shutil

import nox

nox.options.sessions = ["oldest", "newest", "colab"]
nox.options.error_on_missing_interpreters = True
ROOT = pathlib.Path(__file__).parent
# What Colab's runtimes have installed: https://github.com/googlecolab/backend-info
COLAB = ROOT.parent / "shared" / "real" / "colab"
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": ""}


@nox.session
def oldest(session):
    """The lower bounds of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [re.sub(r"\[\w+\]", "", line).replace(">=", "==") for line in lines]
    # The tests write data sets with tensorflow-datasets, whose tensorflow-metadata asks pip for
    # protobuf 4.25 and, from 1.21 on, fails below 6.31. The package itself imports neither.
    install(session, [*pins, "tensorflow-metadata==1.17.3"])
    prove(session)


@nox.session
def newest(session):
    """The newest of everything that this Python can have."""
    install(session, [])
    prove(session)


@nox.session
def colab(session):
    """The versions that Colab's runtime has: nothing that is there may be moved."""
    if not COLAB.is_dir():
        session.skip(f"needs Colab's pip-freeze.txt in {COLAB}")
    wheel, needed = install(session, list(frozen("pip-freeze.txt").values()))
    prove(session)
    notebooks = "-n2", "--dist=load", "-m", "slow", "tests/test_notebook.py"
    session.run("python", "-m", "pytest", *notebooks, env=ENVIRONMENT)
    for file in ("pip-freeze.txt", "pip-freeze.gpu.txt", "pip-freeze.tpu.txt"):
        stay(session, wheel, needed, frozen(file))


def frozen(file):
    """Reads a list of `pip freeze`: name -> NAME==VERSION, without what is not from PyPI."""
    lines = [line.split("#")[0].strip() for line in (COLAB / file).read_text().splitlines()]
    pins = [line for line in lines if re.fullmatch(r"[\w.-]+==[\w.!]+", line)]
    return {canonical(pin.split("==")[0]): pin for pin in pins}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def stay(session, wheel, needed, there):
    """Fails where a plain install into an environment that has `there` would move any of it."""
    wanted = [there[name] for name in needed if name in there]
    folder = pathlib.Path(session.create_tmp())
    site = folder / "site"
    session.run("python", "-m", "venv", "--clear", str(site), silent=True)
    pip = str(site / "bin" / "pip")
    session.run(pip, "install", "-q", "--no-deps", *wanted, external=True)
    report = folder / "report.json"
    session.run(pip, "install", "-q", "--dry-run", "--report", str(report), wheel, external=True)
    names = {row["metadata"]["name"] for row in json.loads(report.read_text())["install"]}
    moved = sorted(name for name in names if canonical(name) in there)
    if moved:
        session.error(f"a plain install would move {', '.join(moved)}")
    session.log(f"a plain install adds {len(names)} packages and moves none of {len(wanted)}")


def install(session, pins):
    """Builds the wheel, installs it and then what the tests need, which moves nothing.

    Returns the wheel's path and the names of all that it needs, directly or not.
    """
    folder = pathlib.Path(session.create_tmp())
    for old in folder.glob("*.whl"):
        old.unlink()
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # else files that are gone stay in the wheel
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT))
    (wheel,) = map(str, folder.glob("lawm_jax-*.whl"))
    there = add(session, pins, wheel)
    add(session, there, f"{wheel}[test]")
    return wheel, [canonical(pin.split("==")[0]) for pin in there]


def add(session, pins, wanted):
    """Installs under constraints; returns the pins of all that is installed then."""
    constraints = pathlib.Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(pins))
    session.install("-q", "-c", str(constraints), wanted)
    command = "python", "-m", "pip", "freeze", "--exclude", "lawm_jax"
    return session.run(*command, silent=True).splitlines()


def prove(session):
    """Trains, evaluates and reports in an empty folder, then runs a quick part of the tests."""
    empty = pathlib.Path(session.create_tmp()) / "empty"
    session.run("rm", "-rf", str(empty), external=True)
    empty.mkdir()
    with session.chdir(empty):
        flags = "--config.steps=10", "--config.data.mixture.nav=0.0", "--workdir=W"
        session.run("lawm", "train", "--config=lawm.py:size=nano", *flags, env=ENVIRONMENT)
        session.run("lawm", "evaluate", "--workdir=W", "--only=prediction", env=ENVIRONMENT)
        session.run("lawm", "report", "W", env=ENVIRONMENT)
    tests = session.posargs or ["@tests/quick.txt"]
    session.run("python", "-m", "pytest", "-n2", "--dist=loadfile", *tests, env=ENVIRONMENT)

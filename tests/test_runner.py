"""Tests of the runner of studies, with short commands in place of training runs."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from lawm_jax.study import commands, runner
from tests.conftest import ROOT

SAVE = "import json, os, sys; json.dump(sorted(os.sched_getaffinity(0)), open(sys.argv[1], 'w'))"
linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")


def run(folder, program, *more):
    """A run of one command, which may write FOLDER/value."""
    os.makedirs(folder, exist_ok=True)
    value = os.path.join(folder, "value")
    line = [sys.executable, "-c", textwrap.dedent(program), value, *more]
    return commands.Run({}, str(folder), [line], {}, {"value": (value, None)}, [program])


@linux
def test_runs_at_the_same_time_have_separate_cores_and_logs(tmp_path, capfd):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    # Each waits for the other's value, so neither could end if they ran one after the other.
    wait = f"""
    {SAVE}
    import time
    while not os.path.exists(sys.argv[2]): time.sleep(0.01)
    print('seen')
    """
    names = "a", "b"
    other = {"a": tmp_path / "b" / "value", "b": tmp_path / "a" / "value"}
    runs = [run(tmp_path / name, wait, str(other[name])) for name in names]
    runner.run_all([], runs, "Each waits.", jobs=2)
    parts = [runner.result(x)["value"] for x in runs]
    assert sorted(sum(parts, [])) == cores and len(parts[0]) - len(parts[1]) in (-1, 0, 1)
    assert [(tmp_path / f"{x}.log").read_text().splitlines()[-1] for x in names] == ["seen"] * 2
    assert sorted(os.sched_getaffinity(0)) == cores
    printed = capfd.readouterr().out
    assert "is done, 2 of 2 runs" in printed and "seen" not in printed
    runner.run_all([], runs, "", jobs=2)
    assert "2 runs, 2 already done" in capfd.readouterr().out


def test_a_failed_run_stops_the_others_and_names_its_log(tmp_path):
    slow = "import time; time.sleep(600)"
    runs = [run(tmp_path / "slow", slow), run(tmp_path / "bad", "raise SystemExit(3)")]
    runs.append(run(tmp_path / "later", SAVE))
    begin = time.monotonic()
    with pytest.raises(SystemExit, match="failed with exit code 3; see .*bad.log"):
        runner.run_all([], runs, "", jobs=2)
    assert time.monotonic() - begin < 60
    assert [runner.result(x) for x in runs] == [None] * 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_sigterm_stops_all_runs_and_says_how_to_resume(tmp_path, jobs):
    slow = "open(sys.argv[1] + '.begun', 'w'); import time; time.sleep(600)"
    script = f"""
    from tests.test_runner import run
    from lawm_jax.study import runner
    runs = [run({str(tmp_path)!r} + f"/{{x}}", "import sys; {slow}") for x in range(2)]
    runner.run_all([], runs, "", {jobs})
    """
    study = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/value.begun"))) < jobs and time.monotonic() < deadline:
        time.sleep(0.05)
    study.send_signal(signal.SIGTERM)
    _, printed = study.communicate(timeout=60)
    assert study.returncode == 1
    assert printed.endswith("stopped; run the same command to resume\n")
    assert len(list(tmp_path.glob("*/value.begun"))) == jobs

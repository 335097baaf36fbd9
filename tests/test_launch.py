"""The launchers, with stand-ins for gcloud, kubectl, sbatch and others that record their calls."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT

LAUNCH = ROOT / "launch"
TRAIN = ["python", "-m", "lawm_jax.train", "--config", "configs/lawm.py:size=large"]
AWKWARD = ["a b", "it's", '"quoted"', "$HOME", "$(x)", "back\\slash", "*", "", "--", "-x"]
NAMES = "gcloud", "kubectl", "sbatch", "srun", "scontrol", "scancel", "sky", "tar", "sleep"

# Appends NUL-separated words and a newline to $CALLS. `next FILE` answers with FILE's next line.
STAND_IN = r"""#!/usr/bin/env bash
{ printf '%s' "$(basename "$0")"; printf '\0%s' "$@"; printf '\1'; } >>"$CALLS"
next() { head -n 1 "$1"; [ "$(wc -l <"$1")" = 1 ] || sed -i 1d "$1"; }
"""


class Machine:
    """A machine with stand-ins on its PATH."""

    def __init__(self, folder):
        self.folder, self.calls_file = folder, folder / "calls"
        self.bin, self.home = folder / "bin", folder / "home"
        for path in (self.bin, self.home, folder / "tmp"):
            path.mkdir()
        for name in NAMES:
            self.stand_in(name)
        self.stand_in("tar", "cat >/dev/null\n")
        self.env = {
            **{name: os.environ[name] for name in ("LANG",) if name in os.environ},
            "PATH": f"{self.bin}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "CALLS": str(self.calls_file),
            "TMPDIR": str(folder / "tmp"),
        }

    def stand_in(self, name, body=""):
        """Makes a command that records its call and runs some lines of bash."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(STAND_IN + body)
        path.chmod(0o755)

    def answers(self, name, lines):
        """Writes the answers that `next` gives one by one; the last one stays."""
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def venv(self, extras):
        """Makes what env.sh takes for an environment that is complete; returns its folder."""
        venv = self.home / "lawm_venv"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
        files = [(ROOT / name).read_bytes() for name in ("requirements.txt", "pyproject.toml")]
        sum_ = subprocess.run(["cksum"], input=b"".join(files), capture_output=True).stdout
        (venv / ".lawm_jax").write_text(f"{extras or 'package'} {sum_.decode().strip()}\n")
        return venv

    def run(self, script, *args, **env):
        """Runs a launcher; returns exit code, output and errors."""
        command = ["bash", str(script if "/" in str(script) else LAUNCH / script), *args]
        return subprocess.run(
            command, env=self.env | env, capture_output=True, text=True, timeout=60, cwd=self.home
        )

    @property
    def calls(self):
        """The calls so far, as lists of words."""
        if not self.calls_file.exists():
            return []
        return [call.split("\0") for call in self.calls_file.read_text().split("\1")[:-1]]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def cloud(machine, states, nodes=("READY",), **codes):
    """Lets gcloud answer with these states in turn, and fail with `codes[verb]`."""
    states, nodes = machine.answers("states", states), machine.answers("nodes", nodes)
    fails = "".join(f'*" {verb} "*) exit {code} ;;\n' for verb, code in codes.items())
    body = f'case "$* " in\n{fails}*tpu-vm\\ list*) next {nodes} ;;\n'
    machine.stand_in("gcloud", f"{body}*queued-resources\\ list*) next {states} ;;\nesac\n")


def verbs(machine):
    """What was done to the slice, without questions and waiting: create, scp, ssh, delete."""
    words = [call[4] for call in machine.calls if call[:2] == ["gcloud", "compute"]]
    return [word for word in words if word not in ("list", "describe")]


POD = "tpu_pod.sh", "run", "pod", "--type", "v5p-64", "--", *TRAIN


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_any_script():
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert len(scripts) >= 9
    command = ["shellcheck", "--external-sources", "--shell=bash", *map(str, scripts)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_every_script_is_short():
    assert {p.name for p in LAUNCH.glob("*.sh") if len(p.read_text().splitlines()) > 120} == set()


DRY = {
    "tpu_pod.sh": (POD[1:5], ["create pod", "--accelerator-type=v5p-64", "scp", "ssh pod"]),
    "slurm.sh": (["--nodes", "8"], ["sbatch", "--nodes=8", "--gpus-per-node=8", "srun"]),
    "gke.sh": (
        ["run", "x", "--image=i", "--volume=v", "--tpu=v6e", "--topology=16x16"],
        ["kubectl apply", "kind: JobSet"],
    ),
    "local_processes.sh": (["2"], ["JAX_PROCESS_ID=0", "JAX_PROCESS_ID=1"]),
}


@pytest.mark.parametrize("script", DRY)
def test_a_dry_run_prints_every_command_and_runs_none(script, machine):
    args, expected = DRY[script]
    result = machine.run(script, *args, "--dry-run", "--", *TRAIN)
    assert result.returncode == 0, result.stderr
    assert machine.calls == []
    assert list((machine.folder / "tmp").iterdir()) == []
    for text in [*expected, "lawm_jax.train"]:
        assert text in result.stdout


@pytest.mark.parametrize("script", DRY)
def test_wrong_options_end_with_code_2_and_help_is_the_scripts_head(script, machine):
    result = machine.run(script, "--helpp", "--", "x")
    assert result.returncode == 2 and "--helpp" in result.stderr
    result = machine.run(script, "--help")
    assert result.returncode == 0 and f"bash launch/{script}" in result.stdout
    assert "--dry-run" in result.stdout
    result = machine.run(script, *DRY[script][0])
    assert result.returncode == 2 and "expected -- and a command" in result.stderr
    assert machine.calls == []


def test_a_slice_is_made_only_where_there_is_none(machine):
    cloud(machine, ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], ["CREATING", "READY"])
    result = machine.run(*POD[:5], "--spot", "--zone", "us-east5-a", "--", *TRAIN)
    assert result.returncode == 0, result.stderr
    assert verbs(machine) == ["create", "scp", "ssh"]
    create = next(call for call in machine.calls if "create" in call)
    assert create[5:] == [
        *("pod", "--zone=us-east5-a", "--accelerator-type=v5p-64"),
        *("--runtime-version=v2-alpha-tpuv5", "--node-id=pod", "--spot"),
    ]
    for call in machine.calls:
        if call[4:5] in (["scp"], ["ssh"]):  # all at once: a slice starts only when all are there
            assert {"--node=all", "--worker=all", "--batch-size=all"} <= set(call)
    assert sum(call[0] == "sleep" for call in machine.calls) == 3
    machine.calls_file.unlink()
    assert machine.run(*POD).returncode == 0
    assert verbs(machine) == ["scp", "ssh"]


@pytest.mark.parametrize(
    "type_, version",
    [
        ("v6e-256", "v2-alpha-tpuv6e"),
        ("v5litepod-64", "v2-alpha-tpuv5-lite"),
        ("v4-64", "tpu-ubuntu2204-base"),
    ],
)
def test_each_type_has_its_runtime_and_several_slices_are_nodes_of_one(type_, version, machine):
    cloud(machine, ["", "ACTIVE"])
    args = "tpu_pod.sh", "run", "pod", f"--type={type_}", "--slices=2", "--", *TRAIN
    assert machine.run(*args).returncode == 0
    create = next(call for call in machine.calls if "create" in call)
    assert f"--runtime-version={version}" in create
    assert {"--node-count=2", "--node-prefix=pod"} <= set(create)
    assert not any(word.startswith("--node-id") or word == "--spot" for word in create)


@pytest.mark.parametrize(
    "states, nodes",
    [(["SUSPENDED", "", "ACTIVE"], ["READY"]), (["ACTIVE"], ["PREEMPTED", "READY"])]
    + [(["SUSPENDING", "SUSPENDED", "ACTIVE"], ["READY"])],
)
def test_after_a_preemption_the_slice_is_made_anew_and_runs_the_same(states, nodes, machine):
    cloud(machine, ["ACTIVE"])
    machine.run(*POD)
    before = machine.calls[-1]
    machine.calls_file.unlink()
    cloud(machine, states, nodes)
    assert machine.run(*POD).returncode == 0
    done = verbs(machine)
    assert done[0] == "delete" and done[-2:] == ["scp", "ssh"] and "create" in done
    delete = next(call for call in machine.calls if "delete" in call)
    assert delete[5:] == ["pod", "--force", "--quiet"]
    assert machine.calls[-1] == before


def test_a_request_that_failed_ends_with_its_reason_and_is_left_alone(machine):
    cloud(machine, ["FAILED"])
    result = machine.run(*POD)
    assert result.returncode == 2 and "the request for pod failed" in result.stderr
    assert verbs(machine) == []
    assert machine.calls[-1][4:6] == ["describe", "pod"]


@pytest.mark.parametrize(
    "verb, states, done",
    [
        ("list", ["ACTIVE"], []),
        ("create", [""], ["create"]),
        ("delete", ["SUSPENDED"], ["delete"]),
        ("scp", ["ACTIVE"], ["scp"]),
        ("ssh", ["ACTIVE"], ["scp", "ssh"]),
    ],
)
def test_a_command_that_fails_ends_all_with_its_exit_code(verb, states, done, machine):
    cloud(machine, states, **{verb: 7})
    assert machine.run(*POD).returncode == 7
    assert verbs(machine) == done


def test_deleting_takes_a_name_and_nothing_else(machine):
    assert machine.run("tpu_pod.sh", "delete", "pod").returncode == 0
    assert machine.calls == [
        ["gcloud", *"compute tpus queued-resources delete pod --force --quiet".split()]
    ]
    machine.calls_file.unlink()
    for args in (["delete"], ["delete", ""], ["delete", "*"], ["delete", "--all"], ["remove", "x"]):
        assert machine.run("tpu_pod.sh", *args).returncode == 2
    assert machine.calls == []


@pytest.fixture
def workers(machine):
    """A slice of one worker, which is this machine: scp copies, ssh runs."""
    checkout = machine.folder / "checkout"
    shutil.copytree(LAUNCH, checkout / "launch")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    (checkout / ".gitignore").write_text("ignored\n")
    (checkout / "ignored").write_text("")
    (checkout / "not yet committed.py").write_text("")
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    (machine.bin / "tar").unlink()
    machine.venv("tpu,buckets")
    machine.stand_in(
        "gcloud",
        'case "$*" in *tpu-vm\\ list*) echo READY ;; *queued-resources\\ list*) echo ACTIVE ;;\n'
        '*\\ scp\\ *) cp "$5" "$HOME/${6#*:}" ;;\n'
        '*\\ ssh\\ *) for word; do case $word in --command=*) cd "$HOME"\n'
        'exec bash -c "${word#--command=}" ;; esac; done ;; esac\n',
    )
    return checkout / "launch" / "tpu_pod.sh"


SAY = "import json, os, sys; print(json.dumps([os.environ.get('A'), os.getcwd(), sys.argv[1:]]))"


def test_workers_get_the_checkout_the_environment_and_the_words_as_they_were(machine, workers):
    command = ["python", "-c", f"{SAY}; sys.exit(5)", *AWKWARD]
    setup = "touch 'set up'"
    args = "run", "pod", "--setup", setup, "--env", "A=it's $HOME", "--", *command
    result = machine.run(workers, *args)
    assert result.returncode == 5, result.stderr
    home = machine.home
    assert json.loads(result.stdout) == ["it's $HOME", str(home / "lawm_jax"), AWKWARD]
    assert (home / "set up").exists()
    assert (home / "lawm_jax" / "not yet committed.py").exists()
    assert not (home / "lawm_jax" / "ignored").exists()
    assert (home / "lawm.log").read_text() == result.stdout


@pytest.mark.parametrize("args", [(), ("--help",), ("--dry-run",)])
def test_the_workers_script_without_a_command_prints_its_use_and_does_nothing(machine, args):
    result = machine.run("worker.sh", *args)
    assert result.returncode == 2 and "bash launch/worker.sh [NAME=VALUE ...]" in result.stdout
    assert list(machine.home.iterdir()) == []


@pytest.mark.skipif(not shutil.which("pkill"), reason="needs procps")
def test_the_same_line_joins_a_command_that_runs_and_stop_ends_it(machine, workers):
    code = (
        "import signal, sys, time; print('begins', flush=True)\n"
        "def stop(*_):\n    print('saved', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('is ready', flush=True); time.sleep(200)"
    )
    args = ["bash", str(workers), "run", "pod", "--", "python", "-c", code]
    options = dict(env=machine.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = subprocess.Popen(args, **options)
    log, end = machine.home / "lawm.log", time.monotonic() + 120
    while time.monotonic() < end and not (log.exists() and "is ready" in log.read_text()):
        time.sleep(0.05)
    second = subprocess.Popen(args, **options)
    assert "attaching to the running command" in second.stdout.readline()
    assert machine.run(workers, "stop", "pod").returncode == 0
    for process in (first, second):
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 143 and "saved" in out, errors + log.read_text()
    assert log.read_text().count("begins") == 1


def test_a_killed_command_is_named_as_one_that_left_no_exit_code(machine, workers):
    result = machine.run(workers, "run", "pod", "--", "bash", "-c", "kill -KILL $PPID")
    assert result.returncode == 1
    assert "the command was killed or still runs: it left no exit code" in result.stderr


def test_slurm_submits_itself_and_the_job_runs_the_command_on_every_node(machine):
    args = ["--nodes", "8", "--partition", "gpu", "--env", "A=b c", "--sbatch", "--x=1 --y"]
    result = machine.run("slurm.sh", *args, "--", "python", "-c", SAY, *AWKWARD)
    assert result.returncode == 0, result.stderr
    [call] = machine.calls
    where = call.index(str(LAUNCH / "slurm.sh"))
    options, job = call[1:where], call[where:]
    assert {"--nodes=8", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue"} <= set(options)
    assert {"--partition=gpu", "--x=1", "--y", "--cpus-per-task=64"} <= set(options)
    assert "--signal=B:USR1@300" in options and "--open-mode=append" in options

    [export] = [word for word in options if word.startswith("--export=ALL,")]
    name, _, value = export.removeprefix("--export=ALL,").partition("=")
    copy = machine.folder / "slurm_script"  # Slurm runs a copy in a folder of its own
    shutil.copy(job[0], copy)
    machine.venv("cuda")
    in_job = {name: value, "SLURM_JOB_ID": "7", "LAWM_VENV": str(machine.home / "lawm_venv")}
    machine.stand_in("srun", 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    result = machine.run(copy, *job[1:], **in_job)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ["b c", str(ROOT), AWKWARD]
    step = machine.calls[1]
    assert step[:5] == ["srun", "--nodes=8", "--ntasks-per-node=1", "--cpus-per-task=64", "--label"]
    assert len(machine.calls) == 2


def job(machine, body, *args):
    """Starts slurm.sh within a job whose srun runs `body`."""
    machine.venv("cuda")
    machine.stand_in("srun", body)
    env = {"SLURM_JOB_ID": "7", "LAWM_VENV": str(machine.home / "lawm_venv")}
    command = ["bash", str(LAUNCH / "slurm.sh"), "--nodes=2", "--", "true"]
    return subprocess.Popen(
        command, env=machine.env | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("code, requeued", [(0, False), (3, False), (143, True)])
def test_a_slurm_job_goes_back_to_the_queue_only_if_it_was_stopped(code, requeued, machine):
    process = job(machine, f"exit {code}\n")
    process.communicate(timeout=60)
    assert process.returncode == code
    assert (["scontrol", "requeue", "7"] in machine.calls) == requeued


def test_before_its_time_is_up_a_slurm_job_stops_the_steps_and_goes_back_to_the_queue(machine):
    ready, stop = machine.folder / "ready", machine.folder / "stop"
    process = job(machine, f"touch {ready}\nuntil [ -e {stop} ]; do read -t 0.05 <> <(:); done\n")
    machine.stand_in("scancel", f"touch {stop}\n")
    end = time.monotonic() + 60
    while time.monotonic() < end and not ready.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    expected = [["scancel", "--signal=TERM", "7"], ["scontrol", "requeue", "7"]]
    assert [call for call in machine.calls if call[0] != "srun"] == expected


def manifest(machine, *args, command=TRAIN):
    """The pod's spec and the whole JobSet, as gke.sh would apply it."""
    fixed = "run", "big", "--image=repo/lawm:1", "--volume=shared", *args
    result = machine.run("gke.sh", *fixed, "--dry-run", "--", *command)
    assert result.returncode == 0, result.stderr
    assert "${" not in result.stdout.replace(" ".join(command), "")
    jobset = yaml.safe_load(result.stdout)
    [replicated] = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]["template"]["spec"], jobset, result.stdout


@pytest.mark.parametrize(
    "tpu, topology, accelerator, hosts, chips",
    [  # a host of a slice of several has 4 chips
        ("v5p", "4x4x4", "tpu-v5p-slice", 16, 4),
        ("v4", "2x2x4", "tpu-v4-podslice", 4, 4),
        ("v6e", "16x16", "tpu-v6e-slice", 64, 4),
        ("v5e", "4x8", "tpu-v5-lite-podslice", 8, 4),
        ("v6e", "1x1", "tpu-v6e-slice", 1, 1),
    ],
)
def test_a_jobset_has_a_worker_for_every_host_of_the_slice(
    tpu, topology, accelerator, hosts, chips, machine
):
    args = f"--tpu={tpu}", f"--topology={topology}", "--slices=2", "--restarts=9"
    pod, jobset, _ = manifest(machine, *args)
    assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "big"
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 9}
    [replicated] = jobset["spec"]["replicatedJobs"]
    work = replicated["template"]["spec"]
    assert replicated["replicas"] == 2
    assert work["parallelism"] == work["completions"] == hosts
    assert work["completionMode"] == "Indexed" and work["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 120
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    [container] = pod["containers"]
    assert container["resources"] == {
        key: {"google.com/tpu": chips} for key in ("requests", "limits")
    }
    assert container["command"] == TRAIN and container["image"] == "repo/lawm:1"
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/workdir"}]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}


def test_gpu_workers_find_each_other_and_have_shared_memory(machine):
    args = "--gpu=nvidia-h100-80gb", "--nodes=8", "--env", "A=it's $(x)"
    pod, jobset, _ = manifest(machine, *args, command=[*TRAIN, *AWKWARD, "two\nlines"])
    work = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert work["parallelism"] == work["completions"] == 8
    [container] = pod["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == "big-worker-0-0.big:8482"
    assert env["JAX_NUM_PROCESSES"]["value"] == "8"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert env["JAX_PROCESS_ID"]["valueFrom"] == {"fieldRef": {"fieldPath": index}}
    assert env["A"]["value"] == "it's $$(x)"  # $$( is how Kubernetes writes $(
    plain = [word.replace("$(", "$$(") for word in AWKWARD]
    assert container["command"] == [*TRAIN, *plain, "two\nlines"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert {"name": "memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert {"name": "memory", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 120


@pytest.mark.parametrize(
    "found, code, done",
    [
        ("", 0, ["apply"]),
        ("JobSet ", 2, []),
        ("JobSet Failed", 0, ["delete", "apply"]),
        ("JobSet Completed", 0, ["delete", "apply"]),
    ],
)
def test_a_jobset_is_applied_unless_one_is_running(found, code, done, machine):
    applied = machine.folder / "applied"
    body = f'case $1 in get) printf %s "{found}" ;; apply) cat >{applied} ;; esac\n'
    machine.stand_in("kubectl", body)
    args = "--image=repo/lawm:1", "--volume=shared", "--tpu=v6e", "--topology=4x4"
    result = machine.run("gke.sh", "run", "big", *args, "--", *TRAIN)
    assert result.returncode == code, result.stderr
    assert [call[1] for call in machine.calls[1:]] == done
    if "apply" in done:
        _, expected, _ = manifest(machine, "--tpu=v6e", "--topology=4x4")
        assert yaml.safe_load(applied.read_text()) == expected


def test_a_pod_without_a_volume_has_an_empty_folder_in_its_place(machine):
    args = "--image=i", "--gpu=nvidia-h100-80gb", "--dry-run", "--", "x"
    jobset = yaml.safe_load(machine.run("gke.sh", "run", "big", *args).stdout)
    [replicated] = jobset["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["volumes"][0] == {"name": "shared", "emptyDir": {}}


def test_a_failing_kubectl_ends_gke_with_its_exit_code(machine):
    machine.stand_in("kubectl", "[ $1 != apply ] || exit 9\n")
    args = "--image=i", "--volume=v", "--gpu=nvidia-h100-80gb"
    assert machine.run("gke.sh", "run", "big", *args, "--", "x").returncode == 9
    machine.stand_in("kubectl", "[ $1 != get ] || exit 8\n")
    assert machine.run("gke.sh", "run", "big", *args, "--", "x").returncode == 8


@pytest.mark.parametrize(
    "args", [["--tpu=v6e", "--topology=4x4x4"], ["--tpu=v5p", "--topology=8x8"], ["--tpu=v9"], []]
)
def test_a_topology_that_the_type_cannot_have_is_an_error(args, machine):
    result = machine.run("gke.sh", "run", "x", "--image=i", "--volume=v", *args, "--", "x")
    assert result.returncode == 2 and "expected" in result.stderr
    assert machine.calls == []


def test_a_wrong_number_is_named_by_its_option(machine):
    args = "--image=i", "--volume=v", "--gpu=t", "--nodes=0", "--", "x"
    result = machine.run("gke.sh", "run", "x", *args)
    assert result.returncode == 2
    assert "gke.sh: --nodes: expected a positive integer, got '0'" in result.stderr


def test_the_sky_job_recovers_and_tells_jax_which_node_it_is(machine):
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert 143 in task["resources"]["job_recovery"]["recover_on_exit_codes"]
    machine.venv("cuda,buckets")
    say = "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"
    (machine.home / "lawm_venv" / "bin" / "python").unlink()
    machine.stand_in("fake_python", f"exec {sys.executable} -c '{say}' \"$@\"\n")
    (machine.bin / "fake_python").rename(machine.home / "lawm_venv" / "bin" / "python")
    env = {
        **{key: value for key, value in task["envs"].items() if value is not None},
        **{
            "VIDEOS": "/data/*",
            "BUCKET": "mine",
            "SKYPILOT_TASK_ID": "sky-1",
            "SKYPILOT_NUM_NODES": "2",
        },
        **{"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5"},
    }
    result = subprocess.run(
        ["bash", "-c", task["run"]], cwd=ROOT, env=machine.env | env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    seen, words = json.loads(result.stdout)
    assert words[:2] == ["-m", "lawm_jax.train"]
    assert {"--config.data.videos=/data/*", "gs://mine/sky-1"} <= set(words)
    assert seen["JAX_COORDINATOR_ADDRESS"] == "10.0.0.4:8482"
    assert (seen["JAX_NUM_PROCESSES"], seen["JAX_PROCESS_ID"]) == ("2", "1")


def local(machine, count, code, *args, **env):
    """Runs Python code as processes of this machine."""
    command = str(count), "--", sys.executable, "-u", "-c", code, *args
    return machine.run("local_processes.sh", *command, **env)


def test_local_processes_know_who_they_are_and_mark_their_lines(machine):
    code = (
        "import json, os, sys; print(json.dumps([sys.argv[1:],"
        "{k: v for k, v in os.environ.items() if k.startswith('JAX_')}]))"
    )
    result = local(machine, 3, code, *AWKWARD, JAX_PLATFORMS="cpu")
    assert result.returncode == 0, result.stderr
    lines = sorted(result.stdout.splitlines())
    assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
    found = [json.loads(line[4:]) for line in lines]
    assert all(words == AWKWARD for words, _ in found)
    assert [env["JAX_PROCESS_ID"] for _, env in found] == ["0", "1", "2"]
    assert {env["JAX_NUM_PROCESSES"] for _, env in found} == {"3"}
    [address] = {env["JAX_COORDINATOR_ADDRESS"] for _, env in found}
    assert address.startswith("localhost:")
    assert not any("JAX_LOCAL_DEVICE_IDS" in env for _, env in found)


def test_local_processes_share_the_gpus(machine):
    machine.stand_in("nvidia-smi", "for i in 0 1 2 3 4 5 6 7; do echo GPU $i; done\n")
    code = "import os; print(os.environ['JAX_LOCAL_DEVICE_IDS'])"
    result = local(machine, 2, code)
    assert sorted(result.stdout.splitlines()) == ["[0] 0,1,2,3", "[1] 4,5,6,7"]
    result = local(machine, 3, code)
    assert result.returncode == 2 and "8 GPUs, got 3" in result.stderr


def test_a_local_process_that_fails_ends_the_others_with_its_exit_code(machine):
    code = (
        "import os, sys, time\nif os.environ['JAX_PROCESS_ID'] == '1': sys.exit(6)\ntime.sleep(200)"
    )
    begin = time.monotonic()
    result = local(machine, 3, code, JAX_PLATFORMS="cpu")
    assert result.returncode == 6 and "process 1 ended with exit code 6" in result.stderr
    assert time.monotonic() - begin < 100


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_reach_every_local_process_as_sigterm(name, machine):
    code = (
        "import signal, sys, time\ndef stop(*_):\n    print('saved'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready'); time.sleep(200)"
    )
    command = ["bash", str(LAUNCH / "local_processes.sh"), "2", "--", sys.executable, "-u", "-c"]
    process = subprocess.Popen(
        [*command, code],
        env=machine.env | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == 143


@pytest.fixture
def snake(machine):
    """Returns the path of a python whose encoder fails and whose other modules do nothing."""
    results = (
        """for word; do [[ $word != --json=* ]] || echo '{"large": 1.5}' >"${word#--json=}"; done"""
    )
    machine.stand_in(
        "snake",
        f"""case "$1 $2" in
"-m benchmarks.encoder") echo "no room for it" >&2; exit 3 ;;
-m*) {results} ;;
*) exec {sys.executable} "$@" ;;
esac
""",
    )
    return str(machine.bin / "snake")


def test_a_gpu_check_notes_what_failed_and_goes_on(machine, snake):
    out = machine.folder / "gpu.json"
    args = "gpu_check.sh", f"--python={snake}", f"--out={out}"
    result = machine.run(*args, JAX_PLATFORMS="cpu")
    assert result.returncode == 1 and result.stdout.endswith(f"{out}: encoder failed\n")
    parts = ["tests", "attention", "train_step", "planner", "encoder", "training", "evaluation"]
    found = json.loads(out.read_text())
    assert list(found) == ["date", "machine", "commit", "versions", "device", "devices", *parts]
    assert (found["device"], found["devices"]) == ("cpu", 1)
    assert [found[name]["exit code"] for name in parts] == [0, 0, 0, 0, 3, 0, 0]
    assert "no room for it" in found["encoder"]["log"]
    assert found["planner"]["large"] == found["train_step"]["large"] == 1.5
    assert list((machine.folder / "tmp").iterdir()) == []
    run = [call[2:] for call in machine.calls if call[1:2] == ["-m"]]
    assert [words[0] for words in run][1:5] == [f"benchmarks.{name}" for name in parts[1:5]]


def test_a_gpu_check_takes_less_than_9_minutes_and_says_what_it_would_run(machine, snake):
    result = machine.run("gpu_check.sh", f"--python={snake}", "--dry-run")
    assert result.returncode == 0 and machine.calls == []
    limits = [int(row.split()[3]) for row in result.stdout.splitlines()]
    assert len(limits) == 7 and sum(limits) < 9 * 60
    assert "-n 4" in result.stdout
    tpu = machine.run("tpu_check.sh", f"--python={snake}", "--dry-run")
    same = [row for row in result.stdout.splitlines() if "benchmarks.encoder" not in row]
    same = "\n".join(same).replace("-n 4", "-n 0")  # in one process, without PyTorch
    assert untimed(tpu.stdout).strip() == untimed(same) and len(same.splitlines()) == 6


def test_a_check_of_several_devices_counts_them_and_may_print_its_results(machine, snake):
    flags = f"--python={snake}", "--out=/dev/stdout"
    several = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    printed = machine.run("gpu_check.sh", *flags, JAX_PLATFORMS="cpu", **several).stdout
    found = json.loads(printed[printed.index("\n{") : printed.rindex("}") + 1])
    assert (found["device"], found["devices"]) == ("cpu", 8)


def test_a_tpu_check_gets_a_newer_python_and_elsewhere_the_error_says_how(machine):
    machine.stand_in(
        "python3", 'case "$*" in --version) echo Python 3.10.12 ;; -c*) exit 1 ;; esac'
    )
    environment = {"LAWM_VENV": str(machine.folder / "none")}
    result = machine.run("gpu_check.sh", **environment)
    assert result.returncode == 1 and "got Python 3.10.12, " in result.stderr
    assert "with LAWM_UV=1" in result.stderr and "uv" not in sum(machine.calls, [])
    machine.run("tpu_check.sh", **environment)
    assert ["python3", "-m", "uv", "python", "install", "--quiet", "3.12"] in machine.calls


def untimed(text):
    """Removes the names of temporary folders."""
    return re.sub(r"/tmp\.\w+", "", text)


def test_a_gpu_check_without_a_gpu_is_an_error(machine, snake):
    result = machine.run("gpu_check.sh", f"--python={snake}", JAX_PLATFORMS="cuda")
    assert result.returncode == 2
    assert "expected a device of JAX_PLATFORMS=cuda, got none" in result.stderr
    result = machine.run("gpu_check.sh", "--smal")
    assert result.returncode == 2 and "--small" in result.stderr
    assert "--dry-run" in machine.run("gpu_check.sh", "--help").stdout

"""Which other processes a run has, by the environment; and two that train as one does."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from conftest import ROOT

from lawm_jax.train import distributed

NO_TPU = {"TPU_SKIP_MDS_QUERY": "1"}  # JAX sets it where it finds no TPU
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "0"}
STEP = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "n[1-8]"}


def test_jax_says_where_there_is_no_tpu():
    if jax.default_backend() != "tpu":
        assert "TPU_SKIP_MDS_QUERY" in os.environ


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SLURM,  # the batch script itself, or an allocation's shell: not a step
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
    ],
)
def test_a_process_alone_joins_nobody(environ, monkeypatch):
    assert distributed.detect(NO_TPU | environ) is None
    monkeypatch.setattr(os, "environ", NO_TPU | environ)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("joined"))
    distributed.start()


@pytest.mark.parametrize(
    "environ",
    [
        SLURM | STEP | {"SLURM_STEP_TASKS_PER_NODE": "8"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"},
        {"TPU_PROCESS_ADDRESSES": "host-0:8471,host-1:8471", "TPU_WORKER_HOSTNAMES": "host-0"},
        {"TPU_WORKER_HOSTNAMES": "host-0", "MEGASCALE_NUM_SLICES": "2"},
    ],
)
def test_jax_finds_the_others_by_itself(environ):
    assert distributed.detect(NO_TPU | environ) == {}


@pytest.mark.parametrize(
    "environ",
    [
        SLURM | STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)"},
        {
            "SLURM_STEP_NUM_TASKS": "1",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
        },
    ],
)
def test_one_process_per_node_takes_all_its_gpus(environ):
    assert distributed.detect(NO_TPU | environ) == {"local_device_ids": []}


def test_jax_leaves_every_device_to_a_process_that_asks_for_none(monkeypatch):
    """What `local_device_ids=[]` relies on: JAX's own rule would be one GPU per Slurm task."""
    from jax._src.clusters import ClusterEnv

    for name, value in (SLURM | STEP).items():
        monkeypatch.setenv(name, value)
    find = ClusterEnv.auto_detect_unset_distributed_params
    assert find(None, None, None, None, None, 300) == ("n1:61447", 8, 3, [0])
    assert find(None, None, None, [], None, 300) == ("n1:61447", 8, 3, [])


def test_an_address_and_numbers_are_all_that_is_needed(monkeypatch):
    environ = {
        "JAX_COORDINATOR_ADDRESS": "first:1234",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "JOB_COMPLETION_INDEX": "3",
    }
    expected = {
        "coordinator_address": "first:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }
    assert distributed.detect(NO_TPU | environ) == expected
    mpi = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
    address = {"JAX_COORDINATOR_ADDRESS": "first:1234"}
    assert distributed.detect(NO_TPU | address | mpi) == expected  # Open MPI 5 gives no address
    given = {}
    monkeypatch.setattr(os, "environ", NO_TPU | environ)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: given.update(options))
    distributed.start()
    assert expected.items() <= given.items()
    heartbeat, shutdown = given["heartbeat_timeout_seconds"], given["shutdown_timeout_seconds"]
    assert heartbeat >= 30 and heartbeat + shutdown < 120


@pytest.mark.parametrize(
    "environ, text",
    [
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "JAX_COORDINATOR_ADDRESS: expected HOST",
        ),
        ({"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_PROCESS_ID.*got None"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES: expected a number, got 'two'"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES, JAX_PROCESS_ID: expected both"),
        ({"JOB_COMPLETION_INDEX": "1"}, "in an indexed Kubernetes job"),
    ],
)
def test_half_an_answer_is_an_error_instead_of_several_lonely_runs(environ, text):
    with pytest.raises(ValueError, match=text):
        distributed.detect(NO_TPU | environ)


@pytest.fixture
def metadata():
    """A metadata server of a Compute Engine machine; returns its address and what it says."""
    says = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = says.get(self.path.removeprefix("/computeMetadata/v1/instance/attributes/"))
            known = found is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((found or "").encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", says
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "endpoints, slices, expected",
    [
        ("10.0.0.2", None, None),
        ("unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3", None, {}),
        ("10.0.0.2", "2", {}),
        ("10.0.0.2", "1", None),
        (None, None, None),  # no TPU of Compute Engine
    ],
)
def test_hosts_of_a_slice_of_compute_engine_are_counted(endpoints, slices, expected, metadata):
    address, says = metadata
    says |= {"worker-network-endpoints": endpoints}
    says |= {"tpu-env": f"TYPE: 'V5P'\nMEGASCALE_NUM_SLICES: '{slices}'\n" if slices else "A: 'b'"}
    assert distributed.detect({"GCE_METADATA_IP": address}) == expected


def test_a_machine_without_a_metadata_server_is_alone():
    assert distributed.detect({"GCE_METADATA_IP": "127.0.0.1:1"}) is None


NAMES = "loss", "error", "cost", "copy", "grad_norm", "update_norm", "lr"
SMALL = ["steps=6", "log_every=1", "checkpoint_every=3", "data.size=32", "encoder.merge=1"]
SMALL += ["predictor.depth=1", "inverse.depth=1"]


def command(workdir, *options):
    flags = [f"--config.{option}" for option in [*SMALL, *options]]
    config = "--config=configs/lawm.py:size=tiny,latent=noisy"
    return [sys.executable, "-m", "lawm_jax.train", config, *flags, f"--workdir={workdir}"]


def several(count, *args):
    return ["bash", "launch/local_processes.sh", str(count), "--", *args]


def log(workdir):
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows], [[row[name] for name in NAMES] for row in rows]


def test_two_processes_train_as_one_does_stop_together_and_continue(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    alone = subprocess.Popen(command(one), env=env | {"JAX_NUM_CPU_DEVICES": "2"}, **options)
    both = subprocess.Popen(several(2, *command(two)), env=env, **options)
    for process in (alone, both):
        out, _ = process.communicate(timeout=900)
        assert process.returncode == 0, out
    assert "[0] step 6/6" in out and "[1] step" not in out  # process 0 speaks
    steps, numbers = log(two)
    expected_steps, expected = log(one)
    assert steps == expected_steps == [1, 2, 3, 4, 5, 6]
    assert numbers == expected  # bit for bit: the same examples, noise and sums of two
    assert {path.name for path in (two / "checkpoints").iterdir()} == {"3", "6"}
    assert (two / "config.json").read_text() == (one / "config.json").read_text()

    longer = command(two, "steps=100000", "checkpoint_every=100000")
    process = subprocess.Popen(several(2, *longer), env=env, **options)
    end = time.monotonic() + 600
    while time.monotonic() < end and max(log(two)[0]) < 9 and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 143, out
    assert "resuming after step 6" in out and "on request" in out
    saved = max(int(path.name) for path in (two / "checkpoints").iterdir())
    assert saved == max(log(two)[0]) >= 9

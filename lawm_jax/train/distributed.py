"""Connects the processes of a run, on hosts of a TPU slice, nodes of a cluster, or one machine.

JAX detects TPUs, Slurm and Open MPI, but `jax.distributed.initialize()` fails if there is only one
process, and under Slurm it gives each process a single GPU. So this module detects whether there
are several processes and leaves the rest to JAX.
"""

import os
import re
import urllib.error
import urllib.request

import jax

# A process that dies silently is detected after HEARTBEAT seconds, and one that fails waits
# SHUTDOWN seconds for the others. In both cases all processes exit within two minutes.
HEARTBEAT, SHUTDOWN = 60, 30

# Launchers' variables: number of processes, this process's rank, and processes per node.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"),
)


def start():
    """Connects to the other processes of this run; does nothing if there are none.

    Must be called once, before any JAX call that initializes the backends, such as a computation or
    `jax.devices()`.

    Raises:
      ValueError: the environment variables that describe the processes are incomplete or not
        numbers.
      RuntimeError: the backends are already initialized, or the other processes cannot be reached
        within five minutes.
    """
    options = detect(os.environ)
    if options is not None:
        jax.distributed.initialize(
            **options, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN
        )


def detect(environ):
    """Returns the arguments with which a run of several processes initializes JAX.

    Checks, in this order: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID (set by
    everything in launch/ except for TPU slices); Open MPI; a Slurm step; one or more TPU slices, on
    GKE and then on Compute Engine.

    Args:
      environ: environment variables, a mapping of strings.

    Returns:
      None if there is only this process, else keyword arguments for `jax.distributed.initialize`,
      which detects the remaining ones.

    Raises:
      ValueError: see `start`.

    Source: jax/_src/distributed.py and jax/_src/clusters of jax 0.10.2 and 0.11.2.
    """
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if "JAX_NUM_PROCESSES" in environ:
        return _explicit(address, environ["JAX_NUM_PROCESSES"], environ.get("JAX_PROCESS_ID"))
    for size, rank, local in LAUNCHERS:
        if _number(size, environ.get(size, "1")) > 1:
            if address:
                return _explicit(address, environ[size], environ.get(rank))
            # By default, JAX shows process i of a node only the i-th GPU. An empty list, unlike
            # None, prevents this, so that a single process per node sees all GPUs.
            one_per_node = re.fullmatch(r"1(\(x\d+\))?", environ.get(local, ""))
            return {"local_device_ids": []} if one_per_node else {}
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    slices = environ.get("MEGASCALE_NUM_SLICES")
    # JAX sets TPU_SKIP_MDS_QUERY on machines without a TPU.
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in environ:
        hosts = _metadata(environ, "worker-network-endpoints")
        match = re.search(r"MEGASCALE_NUM_SLICES:\s*'?(\d+)", _metadata(environ, "tpu-env") or "")
        slices = slices or (match and match[1])
    if hosts and len(hosts.split(",")) * _number("MEGASCALE_NUM_SLICES", slices or "1") > 1:
        return {}
    if address or environ.get("JOB_COMPLETION_INDEX", "0") != "0":
        raise ValueError(
            "JAX_NUM_PROCESSES, JAX_PROCESS_ID: expected both if JAX_COORDINATOR_ADDRESS is set or "
            "in an indexed Kubernetes job (see launch/gke/gpu.yaml), got neither"
        )
    return None


def _explicit(address, count, rank):
    """Returns all arguments of `initialize`, without detection; None for a single process."""
    count = _number("JAX_NUM_PROCESSES", count)
    if count == 1:
        return None
    if not address:
        raise ValueError("JAX_COORDINATOR_ADDRESS: expected HOST:PORT of process 0, got nothing")
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": _number("JAX_PROCESS_ID", rank),
        "cluster_detection_method": "deactivate",
    }


def _number(name, text):
    if text is None or not text.isdigit():
        raise ValueError(f"{name}: expected a number, got {text!r}")
    return int(text)


def _metadata(environ, key):
    """Queries the machine's metadata server, as JAX does; None if there is none."""
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return None

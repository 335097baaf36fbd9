"""Joins the processes of a run: hosts of a TPU slice, nodes of a cluster, or several on a machine.

JAX knows TPU, Slurm and Open MPI by itself, but `jax.distributed.initialize()` is an error where
there is one process alone, and under Slurm it gives each process a single GPU. So this module says
whether there are others, and lets JAX find out the rest.
"""

import os
import re
import urllib.error
import urllib.request

import jax

# A process that dies without a word is missed after HEARTBEAT seconds, and one that ends with an
# error waits SHUTDOWN seconds for the others: either way all have ended within two minutes.
HEARTBEAT, SHUTDOWN = 60, 30

# How launchers name the number of processes, which of them this one is, and how many share a node.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"),
)


def start():
    """Joins the other processes of this run; does nothing where there are none.

    To be called once, before anything that uses a device.

    Raises:
      ValueError: the environment says only in part which processes there are.
      RuntimeError: a device was used before, or the others can't be reached within five minutes.
    """
    options = detect(os.environ)
    if options is not None:
        jax.distributed.initialize(
            **options, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN
        )


def detect(environ):
    """Finds out whether the run has other processes.

    In this order: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID, which
    everything in launch/ but the TPU slices sets; Open MPI; a Slurm step; a TPU slice or several of
    GKE, then of Compute Engine.

    Args:
      environ: environment variables, a mapping of strings.

    Returns:
      None where this process is alone, else what `jax.distributed.initialize` has to be told;
      it finds the rest by itself.

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
            # JAX gives process i of a node the node's i-th GPU. One process per node takes all.
            alone = re.fullmatch(r"1(\(x\d+\))?", environ.get(local, ""))
            return {"local_device_ids": []} if alone else {}
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    slices = environ.get("MEGASCALE_NUM_SLICES")
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in environ:  # JAX sets it where there is no TPU
        hosts = _metadata(environ, "worker-network-endpoints")
        found = re.search(r"MEGASCALE_NUM_SLICES:\s*'?(\d+)", _metadata(environ, "tpu-env") or "")
        slices = slices or (found and found[1])
    if hosts and len(hosts.split(",")) * _number("MEGASCALE_NUM_SLICES", slices or "1") > 1:
        return {}
    if address or environ.get("JOB_COMPLETION_INDEX", "0") != "0":
        raise ValueError(
            "JAX_NUM_PROCESSES, JAX_PROCESS_ID: expected beside JAX_COORDINATOR_ADDRESS, and in an "
            "indexed Kubernetes job as in launch/gke/gpu.yaml, got neither"
        )
    return None


def _explicit(address, count, rank):
    """Says what `initialize` needs where nothing is left to find out."""
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
    """Asks the machine's metadata server, as JAX does; None where there is none."""
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return None

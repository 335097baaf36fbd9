"""The device mesh, and the rule by which arrays are sharded over it."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

SMALL = 2**14  # elements; smaller arrays are replicated, to save collectives


def make_mesh(data=-1, fsdp=1, devices=None):
    """Builds a mesh with the axes `data` (batch) and `fsdp` (batch and parameters).

    Args:
      data, fsdp: number of devices along each axis; -1 for one of them uses the remaining devices.
        With data=-1, `fsdp` is a maximum: the mesh uses the largest divisor of the number of
        devices up to it, so that one config runs on 1 device and on 64.
      devices: devices to use, by default all devices of all processes.

    Returns:
      A jax.sharding.Mesh.

    Raises:
      ValueError: the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1 and fsdp > 0:
        fsdp = max(n for n in range(1, fsdp + 1) if len(devices) % n == 0)
        data = len(devices) // fsdp
    elif fsdp == -1 and data > 0:
        fsdp = len(devices) // data
    if data * fsdp != len(devices) or data < 1 or fsdp < 1:
        raise ValueError(
            f"mesh.data, mesh.fsdp: expected a product of {len(devices)}, the number of devices, "
            f"got {data} and {fsdp}"
        )
    return Mesh(_grid(data, fsdp, devices), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def _grid(data, fsdp, devices):
    """Arranges devices so that neighbors along `fsdp` are physically close: [data, fsdp].

    `jax.make_mesh` can neither split an axis of a torus (8 of 4x4x4) nor use several slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and data % slices == 0:
        return mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp), (slices, 1), devices, allow_split_physical_axes=True
        )
    if slices > 1:
        return np.array(devices).reshape(data, fsdp)
    return mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)


def state_sharding(mesh, tree):
    """Shards large arrays along the largest axis that `fsdp` divides, replicates the rest.

    Args:
      mesh: from `make_mesh`.
      tree: arrays or jax.ShapeDtypeStructs.

    Returns:
      A tree of NamedSharding.
    """
    fsdp = mesh.shape["fsdp"]

    def rule(x):
        spec = [None] * x.ndim
        axes = [i for i, n in enumerate(x.shape) if n % fsdp == 0]
        if fsdp > 1 and math.prod(x.shape) >= SMALL and axes:
            spec[max(axes, key=lambda i: x.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, tree)


def batch_sharding(mesh):
    """Returns the sharding of a batch: its leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def distribute(mesh, tree):
    """Shards a tree that every process holds in full, according to `state_sharding`.

    Each device gets its shard from its own process. `jax.device_put` would first compare every
    leaf across processes.

    Args:
      mesh: from `make_mesh`.
      tree: numpy arrays, or process-local JAX arrays.

    Returns:
      The tree of global arrays.
    """

    def spread(x, sharding):
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(spread, tree, state_sharding(mesh, tree))


def batch_size(data, devices):
    """Returns the global batch size set by a config's section `data`."""
    return data["batch"] or data["batch_per_device"] * devices


def place(mesh, batch):
    """Transfers this process's slice of a batch to its devices.

    Args:
      mesh: from `make_mesh`.
      batch: dict of numpy arrays [B / processes, ...].

    Returns:
      dict of global arrays [B, ...], sharded over all devices.
    """
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for key, value in batch.items()
    }

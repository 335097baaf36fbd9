"""The optimizer: Muon for the networks' hidden matrices and AdamW for all other parameters."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, scale_by_muon

QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the five Newton-Schulz iterations
MATRICES = ("qkv", "proj", "fc1", "fc2", "modulation")


def make(config, steps):
    """Builds the optimizer.

    Args:
      config: the section `optim`: `muon` and `adamw` (peak learning rates; if `muon` is 0, AdamW
        updates all parameters), `weight_decay`, `b2`, `warmup` (fraction of the steps with linear
        warmup) and `final` (learning rate at the end of the cosine, as a fraction of the peak).
      steps: length of the training.

    Returns:
      tx, an optax.GradientTransformation for parameters with stacked blocks, and the schedule,
      step -> fraction of the peak learning rates.

    Source: Garrido et al. 2026, appendix A; Muon from Jordan et al. 2024.
    """
    warmup = max(1, round(config["warmup"] * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, max(steps, 2), config["final"])
    decay = optax.add_decayed_weights(config["weight_decay"])
    muon = optax.chain(
        scale_by_muon(QUINTIC, 0, weight_dimension_numbers=matrix_axes),  # momentum only
        _orthogonalize(),
        decay,
        optax.scale_by_learning_rate(lambda step: config["muon"] * schedule(step)),
    )
    adamw = optax.chain(
        optax.scale_by_adam(b2=config["b2"]),
        optax.masked(decay, _is_kernel),
        optax.scale_by_learning_rate(lambda step: config["adamw"] * schedule(step)),
    )
    if not config["muon"]:
        return adamw, schedule
    return optax.partition({"muon": muon, "adamw": adamw}, labels), schedule


def labels(params):
    """Labels each parameter with the optimizer that updates it: "muon" or "adamw"."""
    axes = matrix_axes(params)
    is_axes = lambda x: x is None or isinstance(x, MuonDimensionNumbers)  # noqa: E731
    return jax.tree.map(lambda x: "adamw" if x is None else "muon", axes, is_leaf=is_axes)


def matrix_axes(params):
    """Returns the matrix axes of each parameter that Muon updates, and None for the others.

    Muon updates the embedding [in, out] and the kernels of the blocks, stacked as [depth, in, out],
    or as [depth, in, n, out] if a layer has n matrices (qkv, modulation), which are orthogonalized
    separately. optax's default rule would select the stacked biases and skip the stacked kernels.
    """

    def axes(path, x):
        names = [entry.key for entry in path if hasattr(entry, "key")]
        if "blocks" in names and names[-1] == "kernel" and names[-2] in MATRICES:
            return MuonDimensionNumbers(reduction_axis=1, output_axis=x.ndim - 1)
        if names[-2:] == ["embed", "kernel"]:
            return MuonDimensionNumbers(reduction_axis=0, output_axis=1)
        return None

    return jax.tree_util.tree_map_with_path(axes, params)


def _orthogonalize():
    """Orthogonalizes the momentum, scaled by sqrt(max(1, out / in)) as Muon's authors do."""

    def update(updates, state, params=None):
        del params

        def orthogonalize(x, axes):
            ends = axes.reduction_axis, axes.output_axis
            scale = max(1, x.shape[ends[1]] / x.shape[ends[0]]) ** 0.5
            x = newton_schulz(jnp.moveaxis(x, ends, (-2, -1)))
            return scale * jnp.moveaxis(x, (-2, -1), ends)

        return jax.tree.map(orthogonalize, updates, matrix_axes(updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def newton_schulz(x):
    """Moves the singular values of matrices toward 1: [in, out] or [depth, ..., in, out], float32.

    If a mesh is set, each device processes whole layers: products of sharded matrices, as in
    optax's implementation, would need communication in every iteration.

    Source: Jordan et al. 2024.
    """
    depth, wide = len(x), x.shape[-2] <= x.shape[-1]
    x = _whole(x if wide else x.swapaxes(-1, -2))
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)

    a, b, c = QUINTIC
    for _ in range(5):  # unrolled: an XLA loop uses fewer cores of a CPU
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    if x.ndim > 2:
        x = _whole(x)[:depth]
    return x if wide else x.swapaxes(-1, -2)


def _whole(x):
    """Shards layers [depth, ...] over `fsdp`, zero-padded to a multiple of its size."""
    mesh = jax.sharding.get_abstract_mesh()
    fsdp = mesh.shape.get("fsdp", 1)
    if fsdp == 1 or x.ndim == 2:
        return x
    x = jnp.pad(x, [(0, -len(x) % fsdp)] + [(0, 0)] * (x.ndim - 1))
    # JAX 0.7 takes no PartitionSpec alone where only an abstract mesh is set.
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("fsdp")))


def _is_kernel(params):
    """Selects the kernels for weight decay, not biases, norms, queries or codebooks."""
    is_kernel = lambda path, x: getattr(path[-1], "key", "") == "kernel"  # noqa: E731
    return jax.tree_util.tree_map_with_path(is_kernel, params)


def global_norm(tree):
    """Computes the L2 norm over all leaves: float32 scalar."""
    return jnp.sqrt(sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)))

"""The optimiser: Muon for the networks' hidden matrices, AdamW for the rest, a schedule each."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from optax.contrib import MuonDimensionNumbers, scale_by_muon

QUINTIC = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz, five times
MATRICES = ("qkv", "proj", "fc1", "fc2", "modulation")


def make(config, steps):
    """Builds the optimiser.

    Args:
      config: the section `optim`: `muon`, `adamw` (peak learning rates; where muon's is 0, AdamW
        takes everything), `weight_decay`, `b2`,
        `warmup` (share of the steps that warm up linearly) and `final` (learning rate at the end
        of the cosine, as a share of the peak).
      steps: length of the training.

    Returns:
      tx, an optax.GradientTransformation for trees of parameters that hold stacked blocks, and
      the schedule of the share of the peak rates, step -> float.

    Source: Garrido et al. 2026, appendix A; Muon from Jordan et al. 2024.
    """
    warmup = max(1, round(config["warmup"] * steps))
    share = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, max(steps, 2), config["final"])
    decay = optax.add_decayed_weights(config["weight_decay"])
    muon = optax.chain(
        scale_by_muon(QUINTIC, 0, weight_dimension_numbers=matrix_axes),  # the momentum alone
        _orthogonalise(),
        decay,
        optax.scale_by_learning_rate(lambda step: config["muon"] * share(step)),
    )
    adamw = optax.chain(
        optax.scale_by_adam(b2=config["b2"]),
        optax.masked(decay, _is_kernel),
        optax.scale_by_learning_rate(lambda step: config["adamw"] * share(step)),
    )
    if not config["muon"]:
        return adamw, share
    return optax.partition({"muon": muon, "adamw": adamw}, labels), share


def labels(params):
    """Says for each parameter which optimiser takes it: "muon" or "adamw"."""
    axes = matrix_axes(params)
    is_axes = lambda x: x is None or isinstance(x, MuonDimensionNumbers)  # noqa: E731
    return jax.tree.map(lambda x: "adamw" if x is None else "muon", axes, is_leaf=is_axes)


def matrix_axes(params):
    """Names the matrix axes of what Muon takes; None for every other parameter.

    Muon takes the embedding [in, out] and the blocks' kernels, stacked as [depth, in, out], or as
    [depth, in, n, out] where a layer holds n matrices (qkv, the modulation), which are
    orthogonalised apart. optax's default rule would take the stacked biases for matrices and
    leave the stacked kernels out.
    """

    def axes(path, x):
        names = [entry.key for entry in path if hasattr(entry, "key")]
        if "blocks" in names and names[-1] == "kernel" and names[-2] in MATRICES:
            return MuonDimensionNumbers(reduction_axis=1, output_axis=x.ndim - 1)
        if names[-2:] == ["embed", "kernel"]:
            return MuonDimensionNumbers(reduction_axis=0, output_axis=1)
        return None

    return jax.tree_util.tree_map_with_path(axes, params)


def _orthogonalise():
    """Orthogonalises the momentum, times sqrt(max(1, out / in)), as Muon's authors do."""

    def update(updates, state, params=None):
        del params

        def one(x, axes):
            ends = axes.reduction_axis, axes.output_axis
            scale = max(1, x.shape[ends[1]] / x.shape[ends[0]]) ** 0.5
            x = newton_schulz(jnp.moveaxis(x, ends, (-2, -1)))
            return scale * jnp.moveaxis(x, (-2, -1), ends)

        return jax.tree.map(one, updates, matrix_axes(updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def newton_schulz(x):
    """Moves the singular values of matrices towards 1: [in, out] or [depth, ..., in, out], float32.

    Where the trainer's step names a mesh, each device takes whole layers: of parts of matrices,
    every step would gather and sum some. optax's own function takes them as they lie.

    Source: Jordan et al. 2024.
    """
    depth, wide = len(x), x.shape[-2] <= x.shape[-1]
    x = _whole(x if wide else x.swapaxes(-1, -2))
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)

    a, b, c = QUINTIC
    for _ in range(5):  # unrolled: a loop of XLA's keeps fewer of a CPU's cores busy
        gram = x @ x.swapaxes(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    if x.ndim > 2:
        x = _whole(x)[:depth]
    return x if wide else x.swapaxes(-1, -2)


def _whole(x):
    """Spreads layers [depth, ...] over `fsdp`, with zeros up to a multiple of it."""
    fsdp = jax.sharding.get_abstract_mesh().shape.get("fsdp", 1)
    if fsdp == 1 or x.ndim == 2:
        return x
    x = jnp.pad(x, [(0, -len(x) % fsdp)] + [(0, 0)] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, PartitionSpec("fsdp"))


def _is_kernel(params):
    """Selects what weight decay applies to: kernels, and no bias, norm, query or codebook."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: getattr(path[-1], "key", "") == "kernel", params
    )


def global_norm(tree):
    """Computes the L2 norm over all leaves: float32 scalar."""
    return jnp.sqrt(sum(jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)))

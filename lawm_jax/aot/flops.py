"""The work of a function, counted from its jaxpr, and what chips can do of it per second."""

import dataclasses
import math

import jax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Chip:
    """Holds what a chip's maker says of it: `memory` in bytes (of a GPU what CUDA reports, which is
    less), `flops` dense bfloat16 operations per second, `bandwidth` of the memory in bytes per
    second, and where it says so."""

    memory: float
    flops: float
    bandwidth: float
    source: str


GOOGLE, NVIDIA = (
    "https://docs.cloud.google.com/tpu/docs/",
    "https://www.nvidia.com/en-us/data-center/",
)
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1200e9, GOOGLE + "v4"),
    "v5e": Chip(16e9, 197e12, 800e9, GOOGLE + "v6e"),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, GOOGLE + "v5p"),
    "v6e": Chip(32 * 2**30, 918e12, 1638e9, GOOGLE + "tpu7x"),
    "tpu7x": Chip(192 * 2**30, 2307e12, 7380e9, GOOGLE + "tpu7x"),
    "l4": Chip(21.96 * 2**30, 121e12, 300e9, NVIDIA + "l4/"),
    "a100": Chip(85100068864, 312e12, 2039e9, NVIDIA + "a100/"),
    "h100": Chip(84942979072, 989e12, 3350e9, NVIDIA + "h100/"),
    "h200": Chip(151397597184, 989e12, 4800e9, NVIDIA + "h200/"),
}


def count(function, *shapes):
    """Counts the matrix products and convolutions of a function, loops by their length.

    XLA's own `cost_analysis` counts a loop's body once. What is counted is what is traced, so a
    gradient has its backward pass, and its second forward pass where it computes one. Everything
    else is taken to be fused into them. Attention, a product over two batch axes or more, is taken
    to keep its logits on the chip.

    Args:
      function: to be traced, not run.
      *shapes: its arguments, or their jax.ShapeDtypeStructs.

    Returns:
      FLOPs, two for each multiplication and addition, and the bytes of the memory's traffic, each
      product's operands and result moved once.
    """
    return _count(jax.make_jaxpr(function)(*shapes).jaxpr)


def _count(jaxpr):
    flops = size = 0
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, inner_jaxprs(eqn)
        if name in ("dot_general", "conv_general_dilated"):
            own = _product(eqn)
        elif name == "cond":
            own = max(map(_count, inner))
        else:
            times = eqn.params["length"] if name == "scan" else 1
            own = [times * sum(part) for part in zip((0, 0), *map(_count, inner), strict=True)]
        flops, size = flops + own[0], size + own[1]
    return flops, size


def inner_jaxprs(eqn):
    """Lists the jaxprs that an equation runs: a loop's body, branches, what it calls."""
    values = [x for v in eqn.params.values() for x in (v if isinstance(v, (list, tuple)) else [v])]
    closed = [x.jaxpr for x in values if isinstance(x, core.ClosedJaxpr)]
    return closed + [x for x in values if isinstance(x, core.Jaxpr)]


def _product(eqn):
    """Counts FLOPs and bytes of one matrix product or convolution."""
    (a, b), out = (x.aval for x in eqn.invars), eqn.outvars[0].aval
    sizes = [x.size * x.dtype.itemsize for x in (a, b, out)]
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "conv_general_dilated":
        return 2 * out.size * b.size // b.shape[numbers.rhs_spec[0]], sum(sizes)
    (contracted, _), (batch, _) = numbers
    if len(batch) > 1:
        sizes.remove(max(sizes))
    return 2 * out.size * math.prod(a.shape[axis] for axis in contracted), sum(sizes)


def roofline(flops, size, chip):
    """Computes the shortest time that a chip can need.

    Args:
      flops, size: operations and bytes of traffic, see `count`.
      chip: a Chip.

    Returns:
      seconds, and "compute" or "memory", whichever sets them.

    Source: Williams, Waterman & Patterson 2009.
    """
    compute, memory = flops / chip.flops, size / chip.bandwidth
    return max(compute, memory), "compute" if compute >= memory else "memory"

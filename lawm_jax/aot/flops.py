"""Counts the FLOPs and memory traffic of a function from its jaxpr, and lists chips' peak rates."""

import dataclasses
import math

import jax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Chip:
    """Holds a chip's specifications: `memory` in bytes (for a GPU as reported by CUDA, less than in
    the data sheet), `flops`, peak dense bfloat16 FLOPs per second, memory `bandwidth` in bytes per
    second, and `source`, the URL of the data sheet."""

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


def count(function, *shapes, fused=True):
    """Counts the FLOPs and bytes of a function's matrix products and convolutions.

    Counts a scan's body once per iteration; XLA's `cost_analysis` counts it once. Gradients include
    the backward pass and any rematerialization. All other operations are assumed to be fused into
    the products. Products with two batch axes or more are those of attention.

    Args:
      function: traced, but not run.
      *shapes: its arguments, or their jax.ShapeDtypeStructs.
      fused: whether attention keeps its logits on the chip. If not, the softmax reads them from
        memory and writes the weights to memory.

    Returns:
      FLOPs, two per multiply-add, and bytes of memory traffic, where each product reads its
      operands and writes its result once.
    """
    return _count(jax.make_jaxpr(function)(*shapes).jaxpr, 0 if fused else 2)


def _count(jaxpr, passes):
    flops = size = 0
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, inner_jaxprs(eqn)
        if name in ("dot_general", "conv_general_dilated"):
            cost = _product(eqn, passes)
        elif name == "cond":
            cost = max(_count(x, passes) for x in inner)
        else:
            times = eqn.params["length"] if name == "scan" else 1
            parts = [_count(x, passes) for x in inner]
            cost = [times * sum(part) for part in zip((0, 0), *parts, strict=True)]
        flops, size = flops + cost[0], size + cost[1]
    return flops, size


def inner_jaxprs(eqn):
    """Lists the jaxprs inside an equation, such as loop bodies, branches and called functions."""
    values = [x for v in eqn.params.values() for x in (v if isinstance(v, (list, tuple)) else [v])]
    closed = [x.jaxpr for x in values if isinstance(x, core.ClosedJaxpr)]
    return closed + [x for x in values if isinstance(x, core.Jaxpr)]


def _product(eqn, passes):
    """Counts the FLOPs and bytes of one matrix product or convolution.

    The logits of attention, its largest operand or result, are moved `passes` times.
    """
    (a, b), out = (x.aval for x in eqn.invars), eqn.outvars[0].aval
    sizes = [x.size * x.dtype.itemsize for x in (a, b, out)]
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "conv_general_dilated":
        return 2 * out.size * b.size // b.shape[numbers.rhs_spec[0]], sum(sizes)
    (contracted, _), (batch, _) = numbers
    if len(batch) > 1:
        sizes.append((passes - 1) * max(sizes))
    return 2 * out.size * math.prod(a.shape[axis] for axis in contracted), sum(sizes)


def roofline(flops, size, chip):
    """Computes a lower bound on the time that a chip needs.

    Args:
      flops, size: FLOPs and bytes of memory traffic, as returned by `count`.
      chip: Chip.

    Returns:
      Seconds, and the bottleneck, "compute" or "memory".

    Source: Williams, Waterman & Patterson 2009.
    """
    compute, memory = flops / chip.flops, size / chip.bandwidth
    return max(compute, memory), "compute" if compute >= memory else "memory"

"""Benchmarks attention: python -m benchmarks.attention [--size S] [--json FILE].

Times attention of the forward model (frame-causal) and of the inverse model (within a frame), with
its gradient, in bfloat16. Compares the device's fused kernel (cuDNN on NVIDIA GPUs; on TPUs, splash
attention with each block size, to choose `predictor.block`) with XLA's attention, alternating on
the same random arrays. CPUs have no fused kernel. FLOP/s count the products of each query with the
keys that it attends to, forward and backward without recomputation; the peak is that of a measured
matrix product. Sizes:

  large  the paper's: 16 heads of 64, 8 steps of 256 tokens, 8 clips per device
  tiny   2 heads of 16, 3 steps of 128 tokens, 2 clips per device, for testing

Not yet run on a device with a fused kernel; should take less than a minute on a GPU.
"""

import numpy as np
from absl import flags

from benchmarks import timing
from lawm_jax.train import command
from lawm_jax.train.flags import define_output

SIZES = {"large": (8, 16, 8, 256, 64), "tiny": (2, 2, 3, 128, 16)}
SIZE = flags.DEFINE_enum("size", "large", [*SIZES], "Size of the model.")
JSON = define_output("json", "JSON file to append the results to.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Minimum number of rounds per comparison.", 1)
STEPS = flags.DEFINE_integer("steps", 10, "Number of calls per round.", 1)
BLOCKS = (128, 256, 512, 1024)


def shapes(size, devices):
    """Returns network -> [B, heads, T, N, head_dim], for the clips of all devices."""
    clips, heads, T, N, dim = SIZES[size]
    clips *= devices
    return {
        "forward model": (clips, heads, T, N, dim),
        "inverse model": (clips * (T - 1), heads, 1, N, dim),
    }


def variants(mesh, x):
    """Returns name -> function (q, k, v) that computes attention of arrays like x."""
    import jax

    from lawm_jax.nn import blocks

    plain = lambda q, k, v: blocks.attention(q, k, v, True)  # noqa: E731

    def fused(block):
        def run(q, k, v):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return blocks.attention(q, k, v, True, block)

        return run

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        kernel = blocks.kernel(x)
    if kernel is None:
        return {"XLA": plain}
    if jax.default_backend() != "tpu":
        return {"cuDNN": fused(0), "XLA": plain}
    sizes = [block for block in BLOCKS if x.shape[2] * x.shape[3] % block == 0]
    return {f"splash, {block}": fused(block) for block in sizes} | {"XLA": plain}


def measure(shape, rounds, steps):
    """Times all variants of attention, and a matrix product.

    Returns:
      name -> {"first": seconds of the first call, "tokens/s", "FLOP/s": of each round, "temporary
      bytes": of the program on a device, "difference": the largest from XLA's gradients, relative
      to the largest gradient}; and the median FLOP/s of the product.
    """
    import jax

    B, heads, T, N, dim = shape
    programs, arrays = compiled(shape)

    def repeat(program):
        for _ in range(steps):
            found = program(*arrays)
        return jax.block_until_ready(found)

    calls = {name: lambda _, program=program: repeat(program) for name, program in programs.items()}
    multiply, work = timing.product("bfloat16")
    rows = timing.in_turn(calls | {"peak": multiply}, rounds)
    peak = work / np.median(rows.pop("peak")["seconds"])
    exact = [np.asarray(x, np.float32) for x in rows["XLA"]["results"][0]]
    largest = max(np.abs(x).max() for x in exact)
    flops = 3 * 4 * B * heads * dim * N**2 * T * (T + 1) // 2
    found = {}
    for name, row in rows.items():
        grads = [np.asarray(x, np.float32) for x in row["results"][0]]
        off = max(np.abs(a - b).max() for a, b in zip(grads, exact, strict=True))
        found[name] = {
            "first": row["first"],
            "tokens/s": [steps * B * T * N / s for s in row["seconds"]],
            "FLOP/s": [steps * flops / s for s in row["seconds"]],
            "temporary bytes": programs[name].memory_analysis().temp_size_in_bytes,
            "difference": float(off / largest),
        }
    return found, float(peak)


def compiled(shape):
    """Returns name -> compiled gradient of attention, and its arguments."""
    import jax
    import jax.numpy as jnp

    from lawm_jax.train import sharding

    mesh = sharding.make_mesh()
    draw = lambda key: jax.random.normal(key, shape, jnp.bfloat16)  # noqa: E731
    drawn = [draw(key) for key in jax.random.split(jax.random.key(0), 4)]
    arrays = jax.device_put(drawn, sharding.batch_sharding(mesh))
    programs = {}
    for name, run in variants(mesh, drawn[0]).items():
        backward = jax.jit(lambda q, k, v, out, run=run: jax.vjp(run, q, k, v)[1](out))
        programs[name] = backward.lower(*arrays).compile()
    return programs, arrays


def main(argv):
    """Runs all comparisons and prints the results."""
    del argv
    import jax

    found = timing.about("jax") | {"device": jax.devices()[0].device_kind}
    for network, shape in shapes(SIZE.value, jax.device_count()).items():
        rows, peak = measure(shape, ROUNDS.value, STEPS.value)
        print(f"{network}, {shape}: {peak / 1e12:.3f} TFLOP/s of a matrix product")
        found[network] = rows | {"FLOP/s of a product": peak}
        for name, row in rows.items():
            rate = np.median(row["FLOP/s"])
            print(
                f"  {name:14}{np.median(row['tokens/s']):14.0f} tokens/s, {rate / 1e12:.3f} "
                f"TFLOP/s, {rate / peak:.2f} of the peak, {row['temporary bytes'] / 2**20:.0f} MiB "
                f"temporary, difference {row['difference']:.1e}"
            )
    timing.save(JSON.value, found)


if __name__ == "__main__":
    command.run(main)

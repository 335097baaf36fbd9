"""Which parameters Muon takes, its update against numpy, weight decay and the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawm_jax.train import optim

CONFIG = dict(muon=0.02, adamw=1e-3, weight_decay=0.0, b2=0.95, warmup=0.0, final=0.1)
SHAPES = dict(embed=(6, 8), qkv=(2, 8, 3, 8), proj=(2, 8, 8), fc1=(2, 8, 32), fc2=(2, 32, 8))


def kernels(draw):
    """Makes parameters of an embedding and a stack from a function of their shape."""
    layers = {name: {"kernel": draw(shape)} for name, shape in SHAPES.items()}
    return {"embed": layers.pop("embed"), "stack": {"blocks": layers}}


def kernel(tree, name):
    """Finds the kernel of a layer of `SHAPES`."""
    return (tree if name == "embed" else tree["stack"]["blocks"])[name]["kernel"]


def matrices(x):
    """Lists the matrices of a kernel [in, out], [depth, in, out] or [depth, in, n, out]."""
    x = np.asarray(x, np.float64)
    x = x[None] if x.ndim == 2 else x
    return list(x) if x.ndim == 3 else [layer[:, i] for layer in x for i in range(x.shape[2])]


def scale_of(shape):
    """Computes the peak rate times sqrt(max(1, out / in)) for a kernel of a shape."""
    return 0.02 * max(1, shape[-1] / shape[0 if len(shape) == 2 else 1]) ** 0.5


def newton_schulz(x):
    """Orthogonalises a matrix roughly, by Muon's quintic iteration (Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x.shape[0] <= x.shape[1]
    x = (x if wide else x.T) / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def second_update(config, grads, params):
    """Returns the update of step 1, after the same gradients at step 0 (where the rate is 0)."""
    tx, _ = optim.make(CONFIG | config, 100)
    update = jax.jit(tx.update)
    first, state = update(grads, jax.jit(tx.init)(params), params)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(first))
    return update(grads, state, params)[0]


def test_muon_takes_the_kernels_of_embeddings_and_stacked_blocks_and_adamw_the_rest(tiny):
    model, params, s = tiny("discrete")
    labels = jax.tree_util.tree_flatten_with_path(optim.labels(params))[0]
    names = {"/".join(key.key for key in path): label for path, label in labels}
    layers = {"predictor": ("qkv", "proj", "fc1", "fc2", "modulation")}
    layers["inverse"] = layers["predictor"][:-1]
    muon = {f"{net}/stack/blocks/{x}/kernel" for net in layers for x in layers[net]}
    muon |= {f"{net}/embed/kernel" for net in layers}
    assert {name for name, label in names.items() if label == "muon"} == muon
    assert {label for label in names.values()} == {"muon", "adamw"}
    for name in (
        "latent/codebook",
        "predictor/embed/bias",
        "predictor/latent1/kernel",
        "predictor/out/kernel",
        "predictor/modulation/kernel",
        "predictor/stack/blocks/qkv/bias",
        "inverse/stack/blocks/norm1/scale",
        "inverse/head/kernel",
        "inverse/query",
    ):
        assert names[name] == "adamw"


def test_the_update_of_stacked_kernels_equals_newton_schulz_of_each_matrix():
    rng = np.random.default_rng(0)
    grads = kernels(lambda shape: jnp.array(rng.normal(size=shape), jnp.float32))
    updates = second_update({}, grads, kernels(jnp.ones))
    for name, shape in SHAPES.items():
        scale = scale_of(shape)
        got = matrices(kernel(updates, name))
        want = [newton_schulz(g) for g in matrices(kernel(grads, name))]
        np.testing.assert_allclose(got, -scale * np.array(want), atol=1e-4 * scale, err_msg=name)


def test_the_singular_values_of_an_update_are_about_one():
    rng = np.random.default_rng(0)

    def draw(shape):
        """Draws matrices whose singular values go from 0.2 to 1."""
        shape = (2, 3, 8, 8) if len(shape) == 4 else shape
        u, s, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
        x = u * np.linspace(1, 0.2, s.shape[-1]) @ v
        return jnp.array(x.swapaxes(1, 2) if x.ndim == 4 else x, jnp.float32)

    updates = second_update({}, kernels(draw), kernels(jnp.ones))
    for name, shape in SHAPES.items():
        for update in matrices(kernel(updates, name)):
            values = np.linalg.svd(update, compute_uv=False)
            values /= scale_of(shape)
            assert 0.6 < values.min() <= values.max() < 1.3, name


def test_weight_decay_shrinks_kernels_and_nothing_else(tiny):
    _, params, _ = tiny("discrete")
    updates = second_update({"weight_decay": 0.04}, jax.tree.map(jnp.zeros_like, params), params)
    labels = optim.labels(params)
    flat = [jax.tree_util.tree_flatten_with_path(t)[0] for t in (updates, params, labels)]
    for (path, update), (_, x), (_, label) in zip(*flat, strict=True):
        rate = {"muon": 0.02, "adamw": 1e-3}[label] if path[-1].key == "kernel" else 0.0
        np.testing.assert_allclose(update, -rate * 0.04 * x, rtol=1e-4, atol=1e-12, err_msg=path)


def test_adamw_follows_its_own_rate_and_betas():
    params = {"head": {"bias": jnp.zeros(3)}}
    tx, _ = optim.make(CONFIG, 100)
    first, second = np.float32([1, -2, 3]), np.float32([2, 1, -1])
    _, state = tx.update({"head": {"bias": jnp.array(first)}}, tx.init(params), params)
    update, _ = tx.update({"head": {"bias": jnp.array(second)}}, state, params)
    m = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
    v = (0.95 * 0.05 * first**2 + 0.05 * second**2) / (1 - 0.95**2)
    np.testing.assert_allclose(update["head"]["bias"], -1e-3 * m / np.sqrt(v), rtol=1e-4)


def test_the_schedule_warms_up_linearly_and_falls_as_a_cosine():
    _, share = optim.make(CONFIG | {"warmup": 0.1, "final": 0.01}, 1000)
    half = 0.01 + 0.99 * 0.5  # the cosine, half way from step 100 to 1000
    expected = {0: 0.0, 50: 0.5, 100: 1.0, 550: half, 1000: 0.01}
    for step, value in expected.items():
        assert share(step) == pytest.approx(value, abs=1e-6)


def test_the_rates_of_both_optimisers_follow_the_schedule():
    config = CONFIG | {"warmup": 0.5, "weight_decay": 1.0}
    params = {"stack": {"blocks": {"fc1": {"kernel": jnp.ones((1, 4, 4))}}}}
    params |= {"head": {"kernel": jnp.ones((4, 4))}}
    tx, _ = optim.make(config, 20)
    update, state = jax.jit(tx.update), tx.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for step in range(12):
        updates, state = update(zero, state, params)
        share = step / 10 if step <= 10 else 0.1 + 0.9 * (1 + np.cos(0.1 * np.pi)) / 2
        for x, rate in zip(jax.tree.leaves(updates), (1e-3, 0.02), strict=True):  # head, stack
            np.testing.assert_allclose(x, -rate * share, rtol=1e-4)


def test_the_global_norm_is_over_all_leaves():
    tree = {"a": jnp.array([3.0]), "b": {"c": jnp.full((2, 2), 2.0)}}
    assert float(optim.global_norm(tree)) == pytest.approx(5.0)

"""The promises of the world model: causality, identity, rollouts, the loss, errors."""

import dataclasses
import functools
import importlib
import json
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import lawm_jax as lawm
from lawm_jax import latents, world_model
from lawm_jax.nn import blocks
from lawm_jax.nn.controller import Controller
from lawm_jax.nn.prior import Prior

KINDS = ("sparse", "noisy", "discrete", "none", "deterministic")
predict = jax.jit(lawm.predict, static_argnums=0)
rollout = jax.jit(lawm.rollout, static_argnums=0)
prefill = jax.jit(lawm.prefill, static_argnums=0)
rollout_latents = jax.jit(lawm.rollout_latents, static_argnums=0)
infer = jax.jit(lawm.infer_actions, static_argnums=0)
map_actions = jax.jit(lawm.map_actions, static_argnums=0)
encode = jax.jit(lawm.encode, static_argnums=0)
sample = jax.jit(lawm.sample_actions, static_argnums=(0, 3))
loss = jax.jit(lawm.loss, static_argnums=0)
init_controller = jax.jit(world_model.init_controller, static_argnums=0)


def draw(shape, seed=0):
    return jnp.array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def ahead(model, params, states, z):
    """Predicts the state after the last one of up to 5, whose number costs no compilation."""
    last, more = states.shape[1] - 1, 5 - states.shape[1]
    states = np.pad(states, ((0, 0), (0, more), (0, 0), (0, 0)))  # predictions don't look ahead
    z = np.pad(z[:, : last + 1], ((0, 0), (0, more), (0, 0)))
    return np.asarray(predict(model, params, states, z))[:, last : last + 1]


def video(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("short", [0, 256], ids=["per step", "masked"])
@pytest.mark.parametrize("normalise", [False, True])
def test_no_prediction_depends_on_the_future_through_s_or_through_z(
    tiny, short, normalise, monkeypatch
):
    monkeypatch.setattr(blocks, "SHORT", short)
    model, params, s = tiny("none", normalise=normalise)
    z, weight = draw((2, 4, 16)), draw(s.shape, 1)

    @jax.jit
    def gradients(s, z):
        """Gradients of a scalar of each predicted step: [T', B, T, ...] each."""
        steps = lambda s, z: (weight * lawm.predict(model, params, s, z)).sum((0, 2, 3))  # noqa: E731
        return jax.jacrev(steps, argnums=(0, 1))(s, z)

    for grad in gradients(s, z):
        size = np.abs(grad).reshape(4, 2, 4, -1).max((1, 3))  # [predicted step, step]
        past = np.tri(4, dtype=bool)
        np.testing.assert_array_equal(size[~past], 0)
        assert size[past].min() > 1e-4


def test_a_latent_action_depends_on_its_two_states_only(tiny):
    model, params, s = tiny("none")
    steps = lambda s: lawm.infer_actions(model, params, s)[0].sum((0, 2))  # noqa: E731
    size = np.abs(jax.jit(jax.jacrev(steps))(s)).max((1, 3, 4))  # [latent, step]
    own = np.eye(3, 4, dtype=bool) | np.eye(3, 4, 1, dtype=bool)
    np.testing.assert_array_equal(size[~own], 0)
    assert size[own].min() > 1e-4


@pytest.mark.parametrize("normalise", [False, True])
def test_the_untrained_model_copies_the_last_frame(tiny, normalise):
    model, params, s = tiny("noisy", trained=False, normalise=normalise)
    out = predict(model, params, s, 10 * draw((2, 4, 16)))
    np.testing.assert_allclose(out, s, atol=1e-5 if normalise else 0)
    out = rollout(model, params, s[:, :2], 10 * draw((2, 4, 16)))
    np.testing.assert_allclose(out, jnp.repeat(s[:, 1:2], 3, 1), atol=1e-5 if normalise else 0)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("context", [1, 3])
def test_a_rollout_equals_predictions_fed_back_one_by_one(tiny, context, normalise):
    model, params, s = tiny("noisy", normalise=normalise)
    P, states = 3, np.asarray(s[:, :context])
    z = draw((2, context - 1 + P, 16))
    for _ in range(P):
        states = np.concatenate([states, ahead(model, params, states, z)], axis=1)
    out = rollout(model, params, s[:, :context], z)
    assert out.shape == (2, P, 4, 32)
    np.testing.assert_allclose(out, states[:, context:], rtol=1e-5, atol=1e-5)
    assert np.abs(out[:, 1:] - out[:, :-1]).max() > 0.1


def test_a_rollout_of_one_step_equals_a_prediction(tiny):
    model, params, s = tiny("noisy")
    z = draw((2, 4, 16))
    expected = predict(model, params, s, z)[:, -1:]
    np.testing.assert_allclose(rollout(model, params, s, z), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("context", [1, 3])
def test_rolled_out_latents_equal_predictions_fed_back_one_by_one(tiny, context, normalise):
    model, params, s = tiny("noisy", normalise=normalise)
    past, z = draw((1, context - 1, 16), 3), draw((5, 3, 16), 4)
    cache = prefill(model, params, s[:1, :context], past)
    out = rollout_latents(model, params, cache, z)
    states = np.repeat(s[:1, :context], 5, axis=0)
    latents = np.concatenate([np.repeat(past, 5, axis=0), z], axis=1)
    for _ in range(3):
        states = np.concatenate([states, ahead(model, params, states, latents)], axis=1)
    assert out.shape == (5, 3, 4, 32) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, states[:, context:], rtol=1e-5, atol=1e-5)
    again = rollout(model, params, states[:, :context], latents)
    np.testing.assert_allclose(out, again, rtol=1e-5, atol=1e-5)
    assert np.abs(out[1:] - out[:-1]).max() > 0.1


def test_caches_of_several_contexts_go_with_a_candidate_each(tiny):
    model, params, s = tiny("noisy")
    z, past = draw((2, 2, 16)), draw((2, 2, 16), 1)
    out = rollout_latents(model, params, prefill(model, params, s[:, :3], past), z)
    for i in range(2):
        cache = prefill(model, params, s[i : i + 1, :3], past[i : i + 1])
        alone = rollout_latents(model, params, cache, z[i : i + 1])
        np.testing.assert_allclose(out[i], alone[0], rtol=1e-5, atol=1e-5)


def test_a_shared_cache_is_never_copied_for_each_candidate(tiny):
    model, params, s = tiny("noisy")
    z = draw((7, 2, 16))

    def shapes(contexts):
        """Lists the shapes of all that is computed from a cache of so many contexts."""
        s3, past = jnp.repeat(s[:1, :3], contexts, axis=0), draw((contexts, 2, 16))
        cache = prefill(model, params, s3, past)
        text = str(jax.make_jaxpr(lambda z, m: lawm.rollout_latents(model, params, m, z))(z, cache))
        return [set(map(int, x.split(","))) for x in re.findall(r"f32\[([\d,]+)\]", text)]

    copies = {7, 8, 16}  # candidates, tokens of the context's keys, their width
    assert any(copies <= x for x in shapes(7))
    assert not any(copies <= x for x in shapes(1))


def test_rolled_out_states_follow_the_models_precision(get_config, tiny):
    config = get_config("size=tiny")
    config.predictor.dtype = "bfloat16"
    half = world_model.build(config)
    model, params, s = tiny("noisy")
    z, past = draw((3, 2, 16)), draw((1, 2, 16), 1)
    cache = prefill(half, params, s[:1, :3], past)
    assert {x.dtype for x in jax.tree.leaves(cache[1])} == {jnp.dtype("bfloat16")}
    out = rollout_latents(half, params, cache, z)
    exact = rollout_latents(model, params, prefill(model, params, s[:1, :3], past), z)
    assert out.dtype == jnp.float32
    size = np.abs(out - exact).max() / np.abs(exact).max()
    assert 1e-4 < size < 0.05


def test_a_plan_is_found_by_gradients_through_a_rollout(tiny):
    # The goal is what known latents lead to: the cost of those is 0.
    from lawm_jax.plan import planners

    model, params, s = tiny("noisy")
    cache = prefill(model, params, s[:1, :1], jnp.zeros((1, 0, 16)))
    known = 0.5 * draw((1, 1, 16))
    goal = rollout_latents(model, params, cache, known)[:, -1]

    def plan(key):
        def cost(z):
            ahead = lawm.rollout_latents(model, params, cache, z)[:, -1]
            return jnp.square(ahead - goal).mean((1, 2))

        zeros = jnp.zeros((1, 16))
        return planners.gradient(cost, key, zeros, zeros + 1, 4, 60), cost(zeros[None])[0]

    (_, value), before = jax.jit(plan)(jax.random.key(0))
    assert value < 0.02 * before


def test_compiled_functions_equal_those_that_run_eagerly(tiny):
    model, params, s = tiny("noisy", normalise=True)
    with jax.disable_jit():
        eager = lawm.loss(model, params, s, jax.random.key(0))  # it infers, and predicts
    jitted = loss(model, params, s, jax.random.key(0))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), jitted, eager)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_absolute_error_plus_the_mean_cost(tiny, kind):
    model, params, s = tiny(kind, strength=8 if kind == "discrete" else 0.01)
    key = jax.random.key(3)
    z, cost = infer(model, params, s, key)
    out = np.asarray(predict(model, params, s[:, :-1], z), np.float64)
    error = np.abs(out - s[:, 1:]).mean()
    value, metrics = loss(model, params, s, key)
    assert float(metrics["error"]) == pytest.approx(error, rel=1e-5)
    assert float(metrics["cost"]) == pytest.approx(np.asarray(cost).mean(), rel=1e-5)
    assert float(metrics["copy"]) == pytest.approx(np.abs(s[:, 1:] - s[:, :-1]).mean(), rel=1e-5)
    assert float(value) == pytest.approx(error + np.asarray(cost).mean(), rel=1e-5)
    assert (float(metrics["cost"]) > 0) == (kind not in ("none", "deterministic"))
    assert ("latents" in metrics) == (kind == "discrete")


def test_a_noisy_loss_samples_by_its_key(tiny):
    model, params, s = tiny("noisy")
    a, b, c = (float(loss(model, params, s, jax.random.key(i))[0]) for i in (0, 0, 1))
    assert a == b != c


def test_equal_configs_give_equal_models_and_one_trace(get_config):
    first, second = (world_model.build(get_config("size=tiny")) for _ in range(2))
    assert first is not second and first == second and hash(first) == hash(second)
    traces = []
    count = jax.jit(lambda model, x: traces.append(model) or x, static_argnums=0)
    count(first, 1.0), count(second, 2.0)
    assert len(traces) == 1
    other = get_config("size=tiny")
    other.predictor.depth += 1
    assert world_model.build(other) != first


@pytest.fixture(scope="module")
def encoder(get_config):
    """Returns a function (**encoder options) -> model, and the encoder's parameters."""

    def make(resize=64, **options):
        config = get_config("size=tiny")
        config.data.resize = resize
        config.encoder.update(options)
        return world_model.build(config)

    return make, {"encoder": world_model.init_encoder(make(), video((1, 2, 64, 64, 3)))}


def raw_states(model, params, frames):
    """Runs the encoder alone on float frames [B, F, 64, 64, 3]: [B, F, 16, 112]."""
    x = (np.asarray(frames, np.float32) - 127) / 128
    return np.asarray(jax.jit(model.encoder.apply)({"params": params["encoder"]}, jnp.array(x)))


def test_states_are_the_encoders_tokens_of_normalised_frames(encoder):
    make, params = encoder
    model, frames = make(merge=1), video((2, 2, 64, 64, 3))
    expected = raw_states(model, params, frames)
    assert expected.shape == (2, 2, 16, 112)
    np.testing.assert_allclose(encode(model, params, frames), expected, rtol=1e-4, atol=1e-4)


def test_merging_is_space_to_depth(encoder):
    make, params = encoder
    model, frames = make(merge=2), video((1, 2, 64, 64, 3))
    raw = raw_states(model, params, frames).reshape(1, 2, 4, 4, 112)
    got = np.asarray(encode(model, params, frames))
    assert got.shape == (1, 2, 4, 448)
    for row in range(2):
        for column in range(2):
            patch = [raw[:, :, 2 * row + i, 2 * column + j] for i in range(2) for j in range(2)]
            expected = np.concatenate(patch, -1)
            np.testing.assert_allclose(got[:, :, 2 * row + column], expected, rtol=1e-4, atol=1e-4)


def test_normalised_states_are_layer_norms_of_single_tokens(encoder):
    make, params = encoder
    model, frames = make(merge=2, normalise=True), video((1, 2, 64, 64, 3))
    raw = raw_states(model, params, frames)
    expected = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-6)
    got = np.asarray(encode(model, params, frames)).reshape(1, 2, 2, 2, 2, 2, 112)
    got = got.transpose(0, 1, 2, 4, 3, 5, 6).reshape(1, 2, 16, 112)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


def test_frames_of_another_size_are_resized_and_centre_cropped(encoder):
    torch = pytest.importorskip("torch")
    make, params = encoder
    model, frames = make(merge=1, resize=72), video((1, 2, 144, 192, 3))
    images = torch.tensor(frames[0]).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(
        images, (72, 96), mode="bilinear", antialias=True, align_corners=False
    )
    cropped = resized[:, :, 4:68, 16:80].permute(0, 2, 3, 1).numpy()[None]
    expected = raw_states(model, params, cropped)
    got = encode(model, params, frames)
    assert got.shape == (1, 2, 16, 112)
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-2)


def test_repeated_frames_give_one_time_step_each(get_config):
    config = get_config("size=tiny")
    config.encoder.update(name="vjepa2_tiny", weights="", merge=1, normalise=True, repeat=True)
    model = world_model.build(config)
    frames = video((1, 3, 64, 64, 3))
    params = {"encoder": world_model.init_encoder(model, frames)}
    got = encode(model, params, frames)
    config.encoder.repeat = False
    twice = encode(world_model.build(config), params, np.repeat(frames, 2, axis=1))
    assert got.shape == (1, 3, 16, 96)
    np.testing.assert_allclose(got, twice, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="video: expected a multiple of 2 frames, got 3"):
        lawm.encode(world_model.build(config), params, frames)


def test_init_makes_the_parameters_that_a_kind_needs(get_config):
    frames = jax.ShapeDtypeStruct((2, 4, 64, 64, 3), jnp.uint8)
    for kind, more in {"noisy": {"inverse"}, "deterministic": set()}.items():
        model = lawm.build(get_config(f"size=tiny,latent={kind}"))
        shapes = jax.eval_shape(lambda key: lawm.init(model, key, frames), jax.random.key(0))  # noqa: B023
        assert set(shapes) == {"encoder", "decoder", "predictor"} | more
        dim = {"noisy": 32}.get(kind)
        assert dim is None or shapes["inverse"]["head"]["kernel"].shape == (32, dim)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 4, 15), "z: expected (2, 4, 16) for s of shape (2, 4, 4, 32), got (2, 4, 15)"),
        ((2, 3, 16), "z: expected (2, 4, 16) for s of shape (2, 4, 4, 32), got (2, 3, 16)"),
    ],
)
def test_predicting_with_a_wrong_latent_is_an_error(tiny, shape, message):
    model, params, s = tiny("noisy")
    with pytest.raises(ValueError, match=re.escape(message)):
        lawm.predict(model, params, s, jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 3, 16), (2, 4, 15), (1, 4, 16), (2, 16)])
def test_rolling_out_with_a_wrong_latent_is_an_error(tiny, shape):
    model, params, s = tiny("noisy")
    message = f"z: expected [2, at least 4, 16] for a context of 4 steps, got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        lawm.rollout(model, params, s, jnp.zeros(shape))


def test_rolling_out_with_a_wrong_context_or_latent_is_an_error(tiny):
    model, params, s = tiny("noisy")
    with pytest.raises(ValueError, match=r"s: expected \[B, T, N, D\], got"):
        lawm.rollout(model, params, s[0], jnp.zeros((4, 3, 16)))
    for state, z in ((s[0], (4, 3, 16)), (s, (2, 4, 16)), (s, (1, 3, 16)), (s, (2, 3, 15))):
        message = f"s, z: expected [B, T, N, D] and [B, T-1, 16], got {state.shape} and {z}"
        with pytest.raises(ValueError, match=re.escape(message)):
            lawm.prefill(model, params, state, jnp.zeros(z))
    one, two = (prefill(model, params, s[:n, :1], jnp.zeros((n, 0, 16))) for n in (1, 2))
    wrong = (
        (one, "P", (5, 0, 16)),
        (one, "P", (5, 16)),
        (one, "P", (5, 1, 15)),
        (two, 2, (5, 1, 16)),
    )
    for cache, size, z in wrong:
        message = f"z: expected [{size}, at least 1, 16], got {z}"
        with pytest.raises(ValueError, match=re.escape(message)):
            lawm.rollout_latents(model, params, cache, jnp.zeros(z))


def test_other_wrong_arguments_are_errors_that_say_what_was_expected(tiny, encoder, get_config):
    model, params, s = tiny("noisy")
    with pytest.raises(ValueError, match=r"s: expected .*at least 2 time steps, got \(2, 1, 4"):
        lawm.infer_actions(model, params, s[:, :1])
    with pytest.raises(ValueError, match=r"video: expected \[B, F, H, W, 3\], got \(4, 64, 64, 3"):
        lawm.encode(encoder[0](), encoder[1], video((4, 64, 64, 3)))
    with pytest.raises(ValueError, match=r"shape: expected a last axis of size 16, got \(2, 15\)"):
        lawm.sample_actions(model, params, jax.random.key(0), (2, 15))
    for section, key, value, message in (
        ("data", "size", 72, "data.size.*divisible by 32 .*got 72"),
        ("data", "resize", 32, "data.resize.*got 64 and 32"),
        ("latent", "kind", "vague", "latent.kind: .*got 'vague'"),
        ("encoder", "name", "vague", "expected one of .*got 'vague'"),
        ("predictor", "heads", 5, "predictor.width: expected a multiple .*got 32 and 5"),
    ):
        config = get_config("size=tiny")
        config[section][key] = value
        with pytest.raises(ValueError, match=message):
            lawm.build(config)
    for argument in ("size=vague", "latent=vague", "sizes=tiny"):
        with pytest.raises(ValueError, match=r"--config: expected"):
            get_config(argument)
    with pytest.raises(ValueError, match="latent.strength: .*got 1.0"):
        lawm.build(get_config("size=tiny,latent=discrete,strength=1"))


def test_what_is_no_floating_point_or_no_uint8_is_refused_also_when_traced(tiny, encoder):
    make, params = encoder
    model, frames = make(), video((1, 2, 64, 64, 3))
    for wrong in (frames / 255, frames > 127, frames.astype(np.uint16), frames.astype(np.int32)):
        with pytest.raises(ValueError, match="video: expected uint8 .*got (float|bool|uint16|int)"):
            jax.eval_shape(lambda v: lawm.encode(model, params, v), wrong)
        with pytest.raises(ValueError, match="video: expected uint8"):
            lawm.init(model, jax.random.key(0), wrong)
    model, params, s = tiny("none")
    z, key = jnp.zeros((2, 4, 16)), jax.random.key(0)
    cache = prefill(model, params, s, z[:, :3])
    whole = lambda x: x.astype(jnp.int32)  # noqa: E731
    painter, own = make(), {"decoder": {}}
    calls = {
        "s": [
            lambda: lawm.infer_actions(model, params, whole(s)),
            lambda: lawm.predict(model, params, whole(s), z),
            lambda: lawm.prefill(model, params, whole(s), z[:, :3]),
            lambda: lawm.rollout(model, params, whole(s)[:, :1], z),
            lambda: lawm.loss(model, params, whole(s), key),
            lambda: lawm.decode(painter, own, whole(s)),
        ],
        "z": [
            lambda: lawm.predict(model, params, s, whole(z)),
            lambda: lawm.rollout_latents(model, params, cache, whole(z)),
            lambda: lawm.rollout(model, params, s[:, :1], z > 0),
        ],
    }
    for name, each in calls.items():
        for call in each:
            with pytest.raises(ValueError, match=f"^{name}: expected floating point, got"):
                call()
    half = predict(model, params, s.astype(jnp.bfloat16), z)
    assert half.shape == s.shape


def test_a_window_slides_over_states_and_is_all_that_a_prediction_reads(tiny):
    model, params, s = tiny("none")
    model = dataclasses.replace(model, controller=Controller(16, 2, "state", 16, 2, 1))
    params = params | init_controller(model, jax.random.key(3), s)
    u, nothing = jax.random.normal(jax.random.key(4), (2, 4, 2)), jnp.zeros((1, 0, 16))
    cache = prefill(model, params, s[:1, :1], nothing)
    drive = lambda window: world_model.rollout_actions(model, params, cache, u, window)  # noqa: E731
    drive = jax.jit(drive, static_argnums=0)
    states, latents_ = [jnp.repeat(s[:1, :1], 2, 0)], []
    for t in range(4):  # the last two states and latents, and nothing else
        latents_.append(map_actions(model, params, u[:, t : t + 1], states[-1]))
        seen = [jnp.concatenate(x[-2:], 1) for x in (states, latents_)]
        states.append(predict(model, params, *seen)[:, -1:])
    np.testing.assert_allclose(drive(2), jnp.concatenate(states[1:], 1), atol=1e-4)
    np.testing.assert_allclose(drive(4), drive(None), atol=1e-6)
    assert np.abs(drive(2) - drive(None)).max() > 1e-3
    longer = prefill(model, params, s[:, :2], jnp.zeros((2, 1, 16)))
    with pytest.raises(ValueError, match="window: expected None or at least 5 steps .*got 4"):
        world_model.rollout_actions(model, params, longer, u, 4)
    with pytest.raises(ValueError, match="window: .*got 0"):
        drive(0)


def test_sampled_actions_follow_their_kind(tiny):
    key, shape = jax.random.key(0), (500, 3, 16)
    noisy = sample(*tiny("noisy")[:2], key, shape)
    assert noisy.shape == shape
    assert abs(float(noisy.mean())) < 0.03 and float(noisy.std()) == pytest.approx(1, abs=0.03)
    model, params, _ = tiny("sparse", strength=5.0)
    sparse = sample(model, params, key, shape)
    assert sparse.shape == shape
    energy = latents.energy(sparse, 5.0).mean()
    assert float(energy) < 0.8 * float(latents.energy(noisy, 5.0).mean())
    np.testing.assert_array_equal(sample(*tiny("deterministic")[:2], key, shape), 0)
    with pytest.raises(ValueError, match="no distribution to sample from"):
        lawm.sample_actions(*tiny("none")[:2], key, shape)


def test_sampled_discrete_actions_are_codes_in_use(tiny):
    model, params, _ = tiny("discrete", reset_after=100)
    codebook, idle = params["latent"]["codebook"], jnp.full(16, 90.0).at[jnp.array([2, 5])].set(3)
    params = params | {"latent": {"codebook": codebook, "idle": idle}}
    z = np.asarray(sample(model, params, jax.random.key(0), (400, 16)))
    distance = np.abs(z[:, None] - np.asarray(codebook)).max(-1)
    np.testing.assert_array_equal(distance.min(1), 0)
    codes, counts = np.unique(distance.argmin(1), return_counts=True)
    assert codes.tolist() == [2, 5] and counts.min() > 150


def test_weights_of_another_encoder_than_the_config_names_are_refused(get_config):
    config = get_config("size=tiny")
    config.encoder.name = "vjepa2_tiny"
    config.encoder.weights = "embedded"
    config.encoder.merge = 1
    model = world_model.build(config)
    video = jax.ShapeDtypeStruct((1, 4, 64, 64, 3), jnp.uint8)
    with pytest.raises(
        ValueError, match="(?s)encoder.name: expected the encoder of embedded.*vjepa2_tiny"
    ):
        world_model.init_encoder(model, video)


@pytest.mark.parametrize(
    "name,options",
    [
        ("lawm", "size=nano,latent=noisy"),
        ("lawm", "size=tiny,latent=sparse"),
        ("lawm", "size=large,latent=discrete"),
        ("lawm", "size=base,latent=deterministic"),
        ("labelled", "size=nano"),
        ("decoder", "size=large"),
        ("decoder", "size=nano"),
    ],
)
def test_a_model_knows_the_config_that_builds_it(name, options):
    module = importlib.import_module(f"configs.{name}")
    model = lawm.build(module.get_config(options))
    config = world_model.to_config(model)
    assert lawm.build(json.loads(json.dumps(config))) == model
    assert lawm.build(ml_collections.ConfigDict(config)) == model
    prior = dataclasses.replace(model, prior=Prior(width=16, depth=1))
    assert lawm.build(world_model.to_config(prior)) == prior != model

"""A learned prior over latent actions: flow matching from noise to latents, given the state."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

FREQUENCIES = 16  # number of frequencies in the Fourier features of time
RANK = 16  # principal directions of states: few, to avoid overfitting to a small dataset


class Prior(nn.Module):
    """Predicts the velocity that transports noise to a latent action, given the state.

    The parameter `scale` whitens the latents. The network's output, initially zero, is added to the
    velocity that transports noise to whitened Gaussian latents. The untrained prior is thus a
    Gaussian with the latents' mean and covariance, and the network learns the deviation from it.

    Attributes:
      width, depth: width and number of the residual blocks.
    """

    width: int = 128
    depth: int = 2

    @nn.compact
    def __call__(self, x, time, s):
        """Computes the velocity, in whitened units.

        Args:
          x: [B, A], between noise (time 0) and a whitened latent (time 1).
          time: [B], 0 to 1.
          s: [B, N, D], the state in which the action is taken; only its mean over tokens is used.

        Returns:
          [B, A] float32.
        """
        A, D = x.shape[-1], s.shape[-1]
        scale = self.param("scale", lambda key: _unscaled(A, D))
        norm = lambda name: nn.LayerNorm(epsilon=1e-6, name=name)  # noqa: E731
        time = time[:, None]
        angle = math.pi * time * jnp.arange(1.0, FREQUENCIES + 1)[None]
        time_features = nn.Dense(self.width, name="time")(
            jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        )
        state = (s.mean(axis=1) - scale["state_mean"][None]) @ scale["state_directions"]
        condition = nn.silu(nn.Dense(self.width, name="state")(state) + time_features)
        h = nn.Dense(self.width, name="embed")(x * jnp.sqrt(A * scale["share"])[None])
        for i in range(self.depth):
            inner = nn.Dense(self.width, name=f"in_{i}")(norm(f"norm_{i}")(h))
            inner = nn.silu(inner + nn.Dense(self.width, name=f"condition_{i}")(condition))
            h = h + nn.Dense(self.width, name=f"out_{i}")(inner)
        out = nn.Dense(A, name="velocity", kernel_init=nn.initializers.zeros)(norm("norm")(h))
        return (2 * time - 1) / (jnp.square(time) + jnp.square(1 - time)) * x + out


def _unscaled(A, D):
    """Returns the `scale` that leaves latents and states unchanged; see `init`."""
    scale = {"mean": jnp.zeros(A), "root": jnp.eye(A), "inverse": jnp.eye(A)}
    state = {"state_mean": jnp.zeros(D), "state_directions": jnp.eye(D, min(RANK, D))}
    return scale | {"share": jnp.full(A, 1 / A)} | state


def init(prior, key, z, s):
    """Initializes a prior, with a `scale` that whitens the given latents.

    Args:
      prior: Prior.
      key: PRNG key.
      z: [B, A], latents.
      s: [B, N, D], states.

    Returns:
      The parameters. `scale` holds the latents' `mean` [A]; the matrices `root` and `inverse`,
      [A, A], from whitened latents (columns) to latents and back; `share` [A], the fraction of the
      standardized latents' variance in each whitened direction; `state_mean` [D]; and
      `state_directions` [D, R], principal directions in units of the first's standard deviation.
    """
    params = prior.init(key, z, jnp.zeros(len(z)), s)["params"]
    mean, std = z.mean(0), z.std(0)
    std = jnp.maximum(std, 1e-6 * std.max() + 1e-12)  # smaller values are rounding errors
    x = (z - mean[None]) / std[None]
    variance, directions = jnp.linalg.eigh(x.T @ x / len(x))
    size = jnp.sqrt(jnp.maximum(variance, 1e-6))
    root = std[:, None] * directions * size[None]
    inverse = (directions / size[None]).T / std[None]
    share = jnp.square(size) / jnp.square(size).sum()
    scale = {"mean": mean, "root": root, "inverse": inverse, "share": share}
    state = s.mean(axis=1)
    center = state.mean(0)
    variance, directions = jnp.linalg.eigh(jnp.cov(state, rowvar=False).reshape(2 * center.shape))
    directions = directions[:, ::-1][:, :RANK] / jnp.sqrt(variance[-1] + 1e-12)
    return params | {"scale": scale | {"state_mean": center, "state_directions": directions}}


def flow_loss(prior, params, key, z, s):
    """Computes the flow-matching loss on straight paths from noise to latents.

    Args:
      prior, params: the prior; `scale` gets no gradient.
      key: PRNG key for noise and times.
      z: [B, A], latents.
      s: [B, N, D], the states in which they are taken.

    Returns:
      Scalar: squared error of the velocity z - noise at (1 - t) noise + t z, t uniform. The
      whitened directions are weighted by their share of the standardized latents' variance.

    Raises:
      ValueError: z and s do not fit each other.

    Source: Lipman et al. 2023, "Flow Matching for Generative Modeling", section 4 (the optimal
    transport path, with sigma_min = 0); Liu et al. 2023, "Flow Straight and Fast".
    """
    if z.ndim != 2 or s.ndim != 3 or len(z) != len(s):
        raise ValueError(f"z, s: expected [B, A] and [B, N, D], got {z.shape} and {s.shape}")
    scale = jax.lax.stop_gradient(params["scale"])
    target = (z - scale["mean"][None]) @ scale["inverse"].T
    draw, when = jax.random.split(key)
    noise = jax.random.normal(draw, z.shape)
    # Evenly spaced times have less variance than independent ones.
    time = (jnp.arange(len(z)) / len(z) + jax.random.uniform(when)) % 1.0
    x = noise + time[:, None] * (target - noise)
    velocity = prior.apply({"params": params}, x, time, s)
    return (jnp.square(velocity - (target - noise)) @ scale["share"]).mean()


def sample(prior, params, key, s, steps=32):
    """Samples a latent action for each state by integrating the velocity from noise.

    Args:
      prior, params: the prior.
      key: PRNG key.
      s: [B, N, D], states.
      steps: number of midpoint steps, with two evaluations of the network each.

    Returns:
      z: [B, A] float32.
    """
    scale = params["scale"]
    velocity = lambda x, time: prior.apply(  # noqa: E731
        {"params": params}, x, jnp.full(len(s), time), s
    )

    def move(x, step):
        time = step / steps
        middle = x + velocity(x, time) / (2 * steps)
        return x + velocity(middle, time + 1 / (2 * steps)) / steps, None

    noise = jax.random.normal(key, (len(s), len(scale["mean"])))
    x, _ = jax.lax.scan(move, noise, jnp.arange(float(steps)))
    return scale["mean"][None] + x @ scale["root"].T

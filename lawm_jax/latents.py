"""The kinds of latent action: how each restricts a latent's information, and how to sample it.

Each kind is a frozen dataclass in `KINDS` that holds its hyperparameters. Other modules call its
methods and never compare names. To add a kind, write its class and a line of `KINDS`.

Methods that draw random numbers take a PRNG key. `restrict` draws none: it takes the noise that the
method `noise` drew, so that a training step can draw the noise of the whole batch and process the
batch in parts.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Unconstrained:
    """Passes latents through unchanged: the upper bound, and the base class of the other kinds.

    Attributes:
      dim: A, the latent's width.
      kind: name in configs and results.
      inferred: whether an inverse dynamics model infers the latent from states.
      labelled: whether real actions replace the latent.
      random: whether training samples the latent, with the noise that `noise` draws.
      batchwise: whether the cost depends on the other latents of the batch.
      resets: whether `update` changes the latent's parameters after each training step.
    """

    dim: int

    kind: ClassVar[str] = "none"
    inferred: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    random: ClassVar[bool] = False
    batchwise: ClassVar[bool] = False
    resets: ClassVar[bool] = False

    @property
    def features(self):
        """Number of outputs per step of the inverse dynamics model."""
        return self.dim

    @property
    def strength(self):
        """Hyperparameter that limits the latent's information, as in configs."""
        return 0.0

    def init(self, key):
        """Returns the latent's initial parameters, params["latent"]; {} if it has none."""
        del key
        return {}

    def noise(self, key, shape):
        """Draws the noise of `restrict` for latents of shape [B, T, A]; None if it needs none."""
        del key, shape

    def restrict(self, params, h, noise=None, others=None):
        """Restricts the information in latents.

        Args:
          params: from `init`.
          h: [B, T, features], outputs of the inverse dynamics model, or real actions if labeled.
          noise: from `noise`; None for the mean of a random kind.
          others: [B', T, A], latents of the rest of the batch, for a batchwise kind.

        Returns:
          z: [B, T, A] float32.
          cost: [B, T], added to the prediction error.
        """
        del params, noise, others
        return h, jnp.zeros(h.shape[:-1])

    def quantize(self, params, z):
        """Maps arbitrary vectors [..., A] to valid latents of this kind."""
        del params
        return z

    def sample(self, params, key, shape):
        """Samples latents of shape (..., A), independently of states."""
        raise ValueError(
            f"model: latents of kind {self.kind!r} have no distribution to sample from"
        )

    def samplers(self, params):
        """Returns the sampling methods to evaluate: name -> function (key, shape, training) -> z.

        `training` are latents inferred from training clips, [m, A].
        """
        del params
        return {}


@dataclasses.dataclass(frozen=True)
class Deterministic(Unconstrained):
    """Replaces latents with zero: the lower bound."""

    kind: ClassVar[str] = "deterministic"
    inferred: ClassVar[bool] = False

    def restrict(self, params, h, noise=None, others=None):
        del params, noise, others
        return jnp.zeros_like(h), jnp.zeros(h.shape[:-1])

    def sample(self, params, key, shape):
        del params, key
        return jnp.zeros(shape)


@dataclasses.dataclass(frozen=True)
class Labelled(Unconstrained):
    """Replaces latents with standardized real actions [B, T, U]; `dim` is U.

    The parameters, {"mean": [U], "std": [U]}, are training set statistics and get no gradient.
    """

    kind: ClassVar[str] = "labelled"
    inferred: ClassVar[bool] = False
    labelled: ClassVar[bool] = True

    def init(self, key):
        del key
        return {"mean": jnp.zeros(self.dim), "std": jnp.ones(self.dim)}

    def restrict(self, params, h, noise=None, others=None):
        del noise, others
        mean, std = (jax.lax.stop_gradient(params[name])[None, None] for name in ("mean", "std"))
        return (h - mean) / std, jnp.zeros(h.shape[:-1])


@dataclasses.dataclass(frozen=True)
class Noisy(Unconstrained):
    """Adds noise to latents and penalizes the information that they carry; see `noisy`.

    Attributes:
      beta: weight of the KL divergence.
    """

    beta: float

    kind: ClassVar[str] = "noisy"
    random: ClassVar[bool] = True

    @property
    def features(self):
        return 2 * self.dim

    @property
    def strength(self):
        return self.beta

    def noise(self, key, shape):
        return jax.random.normal(key, shape)

    def restrict(self, params, h, noise=None, others=None):
        del params, others
        return noisy(h, noise, self.beta)

    def sample(self, params, key, shape):
        del params
        return jax.random.normal(key, shape)

    def samplers(self, params):
        return {"N(0, I)": lambda key, shape, training: self.sample(params, key, shape)}


@dataclasses.dataclass(frozen=True)
class Sparse(Unconstrained):
    """Penalizes latents that are not sparse; see `sparse`.

    Attributes:
      l1: weight of the L1 norm.
      weight: weight of the cost relative to the prediction error; 1 in the paper.
    """

    l1: float
    weight: float = 1.0

    kind: ClassVar[str] = "sparse"
    batchwise: ClassVar[bool] = True

    @property
    def strength(self):
        return self.l1

    def restrict(self, params, h, noise=None, others=None):
        del params, noise
        z, cost = sparse(h, self.l1, others=others)
        return z, self.weight * cost

    def sample(self, params, key, shape):
        del params
        return langevin(key, shape, self.l1)

    def samplers(self, params):
        def scaled(key, shape, training):
            """Samples at a temperature that matches the mean magnitude of `training`."""
            size = float(np.abs(training).mean())
            return langevin(key, shape, self.l1, 1000, 0.1, scale=size)

        return {
            "Langevin": lambda key, shape, training: self.sample(params, key, shape),
            "Langevin, scaled": scaled,
        }


@dataclasses.dataclass(frozen=True)
class Discrete(Unconstrained):
    """Replaces latents with the nearest code of a learned codebook; see `discrete`.

    The parameters are {"codebook": [K, A], "idle": [K]}, see `reset_codes`.

    Attributes:
      codes: K, the number of codes.
      reset_after: number of latents after which an unused code is reset, below 2^24 (in the paper
        300k videos, about 2.5M latents).
    """

    codes: int
    reset_after: int

    kind: ClassVar[str] = "discrete"
    resets: ClassVar[bool] = True

    def __post_init__(self):
        if self.codes < 2 or self.codes != int(self.codes):
            raise ValueError(
                f"latent.strength: expected the number of codes, at least 2, got {self.codes}"
            )
        if not 0 < self.reset_after < 2**24:
            raise ValueError(
                f"latent.reset_after: expected 1 to 2^24 - 1 latents, got {self.reset_after}"
            )

    @property
    def strength(self):
        return self.codes

    def init(self, key):
        K = int(self.codes)
        return {"codebook": jax.random.normal(key, (K, self.dim)), "idle": jnp.zeros(K)}

    def restrict(self, params, h, noise=None, others=None):
        del noise, others
        return discrete(h, params["codebook"])

    def quantize(self, params, z):
        return params["codebook"][nearest(params["codebook"], z)]

    def sample(self, params, key, shape):
        """Samples uniformly from the codes in use."""
        codebook, idle = params["codebook"], params["idle"]
        in_use = jnp.where(idle <= idle.min() + self.reset_after / 2, 0.0, -jnp.inf)
        return codebook[jax.random.categorical(key, in_use, shape=shape[:-1])]

    def samplers(self, params):
        return {"codes in use": lambda key, shape, training: self.sample(params, key, shape)}

    def update(self, params, idle, h, key):
        """Resets unused codes after a training step, see `reset_codes`.

        Args:
          params: the latent's parameters after the step.
          idle: [K], before the step.
          h: [B, T, A], the step's latents before quantization.
          key: PRNG key.

        Returns:
          The new parameters, and metrics: `codes`, the number of codes in use.
        """
        codebook, idle = reset_codes(params["codebook"], idle, h, key, self.reset_after)
        in_use = (idle < self.reset_after / 2).sum().astype(jnp.float32)
        return {"codebook": codebook, "idle": idle}, {"codes": in_use}


# Name in configs -> function of (dim, strength, reset_after, weight).
KINDS = {
    "sparse": lambda dim, strength, reset_after, weight: Sparse(dim, strength, weight),
    "noisy": lambda dim, strength, reset_after, weight: Noisy(dim, strength),
    "discrete": lambda dim, strength, reset_after, weight: Discrete(dim, strength, reset_after),
    "none": lambda dim, strength, reset_after, weight: Unconstrained(dim),
    "deterministic": lambda dim, strength, reset_after, weight: Deterministic(dim),
    "labelled": lambda dim, strength, reset_after, weight: Labelled(dim),
}


def make(kind, dim, strength=0.0, reset_after=2_500_000, weight=1.0):
    """Builds a kind of latent from a config's `latent` section.

    Args:
      kind: a key of `KINDS`.
      dim: A, the latent's width (U for labeled actions).
      strength: l1 (sparse), beta (noisy) or the number of codes (discrete); otherwise unused.
      reset_after: see `Discrete`.
      weight: see `Sparse`.

    Raises:
      ValueError: unknown kind, or a hyperparameter out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"latent.kind: expected one of {sorted(KINDS)}, got {kind!r}")
    return KINDS[kind](dim, strength, reset_after, weight)


def options_of(latent):
    """Returns the arguments (a dict) from which `make` builds an equal latent."""
    names = "kind", "dim", "strength", "reset_after", "weight"
    return {name: getattr(latent, name) for name in names if hasattr(latent, name)}


def noisy(moments, noise, beta):
    """Adds noise to latent actions and computes the cost of the information they carry.

    Args:
      moments: [B, T, 2A], mean and log-variance of q(z_t | s_t, s_t+1), the latter clipped to
        [-10, 6].
      noise: [B, T, A] from N(0, I); None for the mean.
      beta: weight of the KL divergence.

    Returns:
      z: [B, T, A] float32.
      cost: [B, T], beta * KL(q || N(0, I)) in nats, summed over A.

    Raises:
      ValueError: the last axis of `moments` is odd.

    Source: Garrido et al. 2026, section 3, "Noise addition"; KL from Kingma & Welling 2013,
    appendix B.
    """
    if moments.shape[-1] % 2:
        raise ValueError(
            f"moments: expected an even last axis (mean, log-variance), got {moments.shape}"
        )
    mean, log_var = _mean_and_log_variance(moments)
    kl = nats(moments).sum(-1)
    if noise is None:
        return mean, beta * kl
    return mean + jnp.exp(0.5 * log_var) * noise, beta * kl


def nats(moments):
    """Computes KL(q || N(0, 1)) of each dimension of noisy latents: [..., 2A] -> [..., A], nats."""
    mean, log_var = _mean_and_log_variance(moments)
    return 0.5 * (jnp.square(mean) + jnp.exp(log_var) - 1 - log_var)


def _mean_and_log_variance(moments):
    mean, log_var = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_var, -10, 6)


def energy(z, l1, floor=1.0):
    """Computes the energy of latents, which is low for sparse, nonzero latents.

    Args:
      z: [..., A].
      l1: weight of the L1 norm.
      floor: l2 in the paper, the weight of the term that keeps the squared norm above sqrt(A).

    Returns:
      [...], floor * max(sqrt(A) - |z|_2^2, 0) + l1 * |z|_1.

    Source: Garrido et al. 2026, section 3; compares sqrt(A) with a squared norm, as printed there.
    """
    short = jnp.maximum(math.sqrt(z.shape[-1]) - jnp.square(z).sum(-1), 0)
    return floor * short + l1 * jnp.abs(z).sum(-1)


def sparse(h, l1, variance=0.1, covariance=0.001, mean=0.1, others=None):
    """Computes the cost that makes latents sparse, with statistics that prevent collapse.

    The statistics are over all latents of the global batch.

    Args:
      h: [B, T, A] with B * T at least 2.
      l1: weight of the L1 norm.
      variance, covariance, mean: V, C and M, the weights of the three statistics.
      others: [B', T, A], latents of the rest of the global batch if h is only a part of it. They
        get no gradient. The statistics' gradient for h is multiplied by the number of (equal)
        parts, so that the mean gradient over parts is that of the whole batch.

    Returns:
      z: [B, T, A], equal to h.
      cost: [B, T], the energy of each latent plus the batch's V * mean_d max(1 - std_d, 0)
        + C * mean_{i != j} Cov_ij^2 + M * mean_d mean_d^2.

    Source: Garrido et al. 2026, section 3, "Sparsity". The mean term printed there is unbounded
    below; this is the squared batch mean, which is zero for centered latents, the stated aim.
    """
    A = h.shape[-1]
    flat = h.reshape(-1, A)
    if others is not None:
        flat = jnp.concatenate([flat, jax.lax.stop_gradient(others.reshape(-1, A))])
    center = flat.mean(0, keepdims=True)
    cov = (flat - center).T @ (flat - center) / (len(flat) - 1)
    var = jnp.diag(cov)
    off_diagonal = (jnp.square(cov).sum() - jnp.square(var).sum()) / (A * (A - 1))
    batch = (
        variance * jnp.maximum(1 - jnp.sqrt(var + 1e-6), 0).mean()
        + covariance * off_diagonal
        + mean * jnp.square(center).mean()
    )
    if others is not None:
        share = flat.size / h.size
        batch = share * batch + (1 - share) * jax.lax.stop_gradient(batch)
    return h, energy(h, l1) + batch


def nearest(codebook, h):
    """Returns the index of the nearest code: codebook [K, A], h [..., A] -> [...] int32."""
    flat = h.reshape(-1, h.shape[-1])
    distance = jnp.square(codebook).sum(-1)[None] - 2 * flat @ codebook.T
    return jnp.argmin(distance, axis=-1).astype(jnp.int32).reshape(h.shape[:-1])


def discrete(h, codebook, commitment=0.25):
    """Replaces each latent with its nearest code, with straight-through gradients.

    Args:
      h: [B, T, A].
      codebook: [K, A].
      commitment: weight of the term that moves a latent toward its code.

    Returns:
      z: [B, T, A], codes; the gradient passes to h unchanged.
      cost: [B, T], mean over A of (sg(h) - code)^2 + commitment * (h - sg(code))^2.

    Source: Garrido et al. 2026, section 3, "Discretisation"; van den Oord et al. 2017.
    """
    stop = jax.lax.stop_gradient
    code = codebook[nearest(stop(codebook), stop(h))]
    cost = jnp.square(stop(h) - code) + commitment * jnp.square(h - stop(code))
    return h + stop(code - h), cost.mean(-1)


def reset_codes(codebook, idle, h, key, reset_after):
    """Tracks how long codes are unused, and replaces dead codes with latents of this batch.

    Every device computes this from the global batch, so replicated codebooks stay equal.

    Args:
      codebook: [K, A].
      idle: [K] float32, the number of latents since each code was last chosen.
      h: [B, T, A], this batch's latents before quantization.
      key: PRNG key that selects the latents.
      reset_after: number of latents after which an unused code is dead.

    Returns:
      codebook, idle: of the same shapes; `idle` of a replaced code is 0.

    Source: Garrido et al. 2026, section 3 (reset of codes unused for 300k videos).
    """
    K, A = codebook.shape
    flat = h.reshape(-1, A)
    used = jnp.zeros(K, bool).at[nearest(codebook, flat)].set(True)
    idle = jnp.where(used, 0.0, idle + len(flat))
    dead = idle >= reset_after
    pick, jitter = jax.random.split(key)
    fresh = flat[jax.random.randint(pick, (K,), 0, len(flat))]
    fresh = fresh + 1e-3 * jax.random.normal(jitter, fresh.shape)
    return jnp.where(dead[:, None], fresh, codebook), jnp.where(dead, 0.0, idle)


def langevin_step(z, key, slope, alpha):
    """Takes one step of Langevin dynamics: z - alpha / 2 dE/dz + N(0, alpha).

    Args:
      z: [..., A].
      key: PRNG key.
      slope: function z -> dE/dz for any energy E, [..., A] -> [..., A].
      alpha: step size. The relative error of the samples' variance is about alpha / 4 times the
        energy's curvature; the samples diverge if the curvature is 4 / alpha or more.

    Returns:
      [..., A]; after many steps, samples from exp(-E).

    Source: Garrido et al. 2026, appendix B; Welling & Teh 2011.
    """
    return z - 0.5 * alpha * slope(z) + math.sqrt(alpha) * jax.random.normal(key, z.shape)


def langevin(key, shape, l1, steps=200, alpha=0.01, scale=None):
    """Samples sparse latents from exp(-energy) by stochastic gradient Langevin dynamics.

    The paper gives neither temperature nor number of steps. At temperature 1 and a small l1,
    samples are much larger than inferred latents: the mean |z_i| is 1 / l1, reached after about
    8 / (alpha l1^2) steps. Fewer steps give samples of plain diffusion, N(0, 1 + alpha * steps).
    With `scale`, the weight of |z|_1 is 1 / scale, as at temperature l1 * scale (the floor keeps
    its weight, or it would be too steep for the step size). The initial noise and the steps are
    in units of scale; steps = 1000 and alpha = 0.1 are about 12 relaxation times.

    Args:
      key: PRNG key.
      shape: (..., A).
      l1: as in `energy`; unused with `scale`.
      steps, alpha: number and size of the steps, starting from N(0, I), or N(0, scale^2).
      scale: mean |z_i| of the latents to imitate, or None to sample from the energy itself.

    Returns:
      z: [..., A] float32.

    Raises:
      ValueError: scale is not positive.

    Source: Garrido et al. 2026, appendix B; Welling & Teh 2011.
    """
    if scale is not None and not scale > 0:
        raise ValueError(f"scale: expected a positive number or None, got {scale}")
    unit, price = (1.0, l1) if scale is None else (scale, 1 / scale)
    slope = jax.grad(lambda y: energy(unit * y, price).sum())
    start, key = jax.random.split(key)
    move = lambda y, key: (langevin_step(y, key, slope, alpha), None)  # noqa: E731
    y, _ = jax.lax.scan(move, jax.random.normal(start, shape), jax.random.split(key, steps))
    return unit * y

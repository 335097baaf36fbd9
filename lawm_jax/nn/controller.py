"""The controller: a real action and the state in which it is taken -> a latent action."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax.nn.blocks import Stack, attend

KINDS = "state", "actions"


class Controller(nn.Module):
    """Maps real actions to latent actions, independently for each time step.

    Kind "state" is the paper's adapter: self-attention blocks over the tokens of the state, a
    cross-attention block whose only query is the embedded action, and a linear head. Kind "actions"
    is an MLP of the action alone.

    The parameter `scale` holds mean and standard deviation of real actions (per dimension) and of
    latents (one standard deviation for all), so that inputs and outputs are in their original
    units. It is measured before the first training step and then constant.

    Attributes:
      features: A, the latent's width.
      actions: U, the real action's width.
      kind: one of `KINDS`.
      width, heads, depth, remat, dtype: of the self-attention blocks, see `Stack`; the
        cross-attention block has the same width and heads.

    Source: Garrido et al. 2026, section 5 (controllers).
    """

    features: int
    actions: int
    kind: str
    width: int
    heads: int
    depth: int = 2
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, u, s):
        """Maps the action of each time step.

        Args:
          u: [B, T, U] float32, real actions in the units of the training data.
          s: [B or 1, T, N, D], the states in which the actions are taken; a batch of 1 is shared by
            all actions and processed once. Ignored by kind "actions".

        Returns:
          z: [B, T, A] float32; entry t depends only on u[:, t] and s[:, t].
        """
        scale = self.param("scale", lambda key: unscaled(self.features, self.actions))
        scale = jax.lax.stop_gradient(scale)
        dense = lambda features, name: nn.Dense(features, name=name, dtype=self.dtype)  # noqa: E731
        norm = lambda x, name: (  # noqa: E731
            nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)(x).astype(self.dtype)
        )
        x = (u - scale["action_mean"][None, None]) / scale["action_std"][None, None]
        x = nn.silu(dense(self.width, "action1")(x.astype(self.dtype)))
        x = nn.silu(dense(self.width, "action2")(x))
        x = dense(self.width, "action3")(x)
        if self.kind == "state":
            batch, T, N, D = s.shape
            tokens = dense(self.width, "embed")(s.reshape(batch * T, 1, N, D).astype(self.dtype))
            tokens = Stack(
                self.width, self.heads, self.depth, remat=self.remat, dtype=self.dtype, name="stack"
            )(tokens)
            tokens = norm(tokens[:, 0], "norm_tokens")
            heads = batch * T, -1, self.heads, self.width // self.heads
            split = lambda x: x.reshape(heads).swapaxes(1, 2)  # noqa: E731
            q, k, v = (
                dense(self.width, name)(inputs)
                for name, inputs in (("q", norm(x, "norm_q")), ("k", tokens), ("v", tokens))
            )
            # All actions taken in the same state are queries of one attention call over its tokens.
            q = q.reshape(batch, -1, T, self.width).swapaxes(1, 2)
            attended = attend(split(q), split(k), split(v)).swapaxes(1, 2).reshape(q.shape)
            attended = attended.swapaxes(1, 2).reshape(x.shape)
            x = x + dense(self.width, "proj")(attended)
            h = jax.nn.gelu(dense(4 * self.width, "fc1")(norm(x, "norm_mlp")), approximate=False)
            x = x + dense(self.width, "fc2")(h)
        z = nn.Dense(self.features, name="head")(norm(x, "norm").astype(jnp.float32))
        return scale["latent_mean"][None, None] + scale["latent_std"] * z


def unscaled(A, U):
    """Returns the `scale` that leaves actions and latents unchanged."""
    return {
        "action_mean": jnp.zeros(U),
        "action_std": jnp.ones(U),
        "latent_mean": jnp.zeros(A),
        "latent_std": jnp.ones(()),
    }

"""Implements the forward model and the state controller in PyTorch, to benchmark planning.

Given the same parameters, the results equal those of lawm_jax (tests/test_benchmarks.py). The code
is idiomatic PyTorch, with scaled_dot_product_attention and LayerNorm; modules have lawm_jax's
names, and the cost has the interface of stable-worldmodel's models. Needs only `torch`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def rotary(steps, tokens, head_dim):
    """Returns rotary embeddings of time, row, column: cos, sin [steps * tokens, head_dim]."""
    part, side = 2 * (head_dim // 6), round(tokens**0.5)
    cell = torch.arange(steps * tokens)
    places = cell // tokens, cell % tokens // side, cell % side
    speed = 10000.0 ** (-torch.arange(0, part, 2) / part)
    angles = torch.cat([torch.outer(place.float(), speed) for place in places], dim=1)
    angles = F.pad(angles.repeat_interleave(2, dim=1), (0, head_dim - 3 * part))
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotates pairs of channels: x [B, heads, L, head_dim], cos and sin [L, head_dim]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack([-odd, even], dim=-1).flatten(-2) * sin).to(x.dtype)


class Block(nn.Module):
    """Applies attention and an MLP, with AdaLN-zero per step if `conditioned`."""

    def __init__(self, width, heads, conditioned):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not conditioned)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not conditioned)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width) if conditioned else None

    def forward(self, x, positions, mask, condition=None):
        """Maps x [B, T, N, D] to the same shape; mask [T N, T N], condition [B, T, D], or None."""
        if self.modulation is None:
            x = x + self.attend(self.norm1(x), positions, mask)
            return x + self.mlp(self.norm2(x))
        modulation = self.modulation(condition).unsqueeze(2).chunk(6, dim=-1)
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation
        x = x + gate1 * self.attend(self.norm1(x) * (1 + scale1) + shift1, positions, mask)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    def attend(self, x, positions, mask):
        """Applies self-attention over all tokens of all steps, subject to the mask."""
        B, T, N, D = x.shape
        qkv = self.qkv(x).view(B, T * N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()
        q, k = rotate(q, *positions), rotate(k, *positions)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(B, T, N, D))

    def mlp(self, x):
        """Applies the MLP to each token."""
        return self.fc2(F.gelu(self.fc1(x)))


class Stack(nn.Module):
    """Applies frame-causal blocks: a token attends to its own and earlier steps."""

    def __init__(self, width, heads, depth, conditioned):
        super().__init__()
        self.head_dim = width // heads
        self.blocks = nn.ModuleList([Block(width, heads, conditioned) for _ in range(depth)])
        self.tables = {}  # caches rotary embeddings and masks per shape

    def forward(self, x, condition=None):
        """Maps [B, T, N, D] to [B, T, N, D]."""
        T, N = x.shape[1:3]
        if (T, N) not in self.tables:
            step = torch.arange(T * N, device=x.device) // N
            mask = step[:, None] >= step[None, :] if T > 1 else None
            positions = [table.to(x) for table in rotary(T, N, self.head_dim)]
            self.tables[T, N] = positions, mask
        positions, mask = self.tables[T, N]
        for block in self.blocks:
            x = block(x, positions, mask, condition)
        return x


class Predictor(nn.Module):
    """Maps states s [B, T, N, D] and latents z [B, T, A] to the next states [B, T, N, D]."""

    def __init__(self, features, latent, width, heads, depth):
        super().__init__()
        self.latent1 = nn.Linear(latent, width)
        self.latent2 = nn.Linear(width, width)
        self.embed = nn.Linear(features, width)
        self.stack = Stack(width, heads, depth, conditioned=True)
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.out = nn.Linear(width, features)

    def forward(self, s, z):
        condition = F.silu(self.latent2(F.silu(self.latent1(z))))
        x = self.stack(self.embed(s), condition)
        scale, shift = self.modulation(condition).unsqueeze(2).chunk(2, dim=-1)
        return s + self.out(self.norm(x) * (1 + scale) + shift)


class Controller(nn.Module):
    """Maps real actions u [B, T, U] and states s [B, T, N, D] to latents [B, T, A]."""

    def __init__(self, features, latent, actions, width, heads, depth):
        super().__init__()
        one = lambda *shape: nn.Parameter(torch.ones(shape), requires_grad=False)  # noqa: E731
        scale = {"action_mean": one(actions), "action_std": one(actions)}
        self.scale = nn.ParameterDict(scale | {"latent_mean": one(latent), "latent_std": one()})
        self.heads = heads
        self.action1 = nn.Linear(actions, width)
        self.action2 = nn.Linear(width, width)
        self.action3 = nn.Linear(width, width)
        self.embed = nn.Linear(features, width)
        self.stack = Stack(width, heads, depth, conditioned=False)
        for name in "norm_tokens", "norm_q", "norm_mlp", "norm":
            setattr(self, name, nn.LayerNorm(width, eps=1e-6))
        for name in "q", "k", "v", "proj":
            setattr(self, name, nn.Linear(width, width))
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.head = nn.Linear(width, latent)

    def forward(self, u, s):
        B, T, N, D = s.shape
        x = (u - self.scale["action_mean"]) / self.scale["action_std"]
        x = self.action3(F.silu(self.action2(F.silu(self.action1(x)))))
        tokens = self.norm_tokens(self.stack(self.embed(s.reshape(B * T, 1, N, D)))[:, 0])
        split = lambda x: x.view(B * T, -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)  # noqa: E731
        q, k, v = split(self.q(self.norm_q(x))), split(self.k(tokens)), split(self.v(tokens))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.proj(seen)
        x = x + self.fc2(F.gelu(self.fc1(self.norm_mlp(x))))
        return self.scale["latent_mean"] + self.scale["latent_std"] * self.head(self.norm(x))


class Model(nn.Module):
    """Computes costs of plans, in units of `std` [U], for stable-worldmodel's solvers.

    Attributes:
      features, latent, actions: widths of a state token, of a latent and of a real action.
      predictor, controller: (width, heads, depth) of each.
    """

    def __init__(self, features, latent, actions, predictor, controller):
        super().__init__()
        self.predictor = Predictor(features, latent, *predictor)
        self.controller = Controller(features, latent, actions, *controller)
        self.std = nn.Parameter(torch.ones(actions), requires_grad=False)

    def get_cost(self, info_dict, action_candidates):
        """Computes the root mean square difference of the last predicted state and the goal.

        Args:
          info_dict: the solver's inputs, repeated for each of S candidates: the context, `states`
            [B, S, T, N, D] and `latents` [B, S, T-1, A], and `goal` [B, S, N, D].
          action_candidates: [B, S, H, U].

        Returns:
          [B, S].
        """
        flat = {name: info_dict[name].flatten(0, 1) for name in ("states", "latents", "goal")}
        last = self.rollout(flat["states"], flat["latents"], action_candidates.flatten(0, 1))
        costs = (last - flat["goal"]).float().square().mean((1, 2)).sqrt()
        return costs.view(action_candidates.shape[:2])

    def rollout(self, s, z, plans):
        """Predicts the last state [P, N, D] without a cache, as stable-worldmodel's models do."""
        for t in range(plans.shape[1]):
            u = plans[:, t : t + 1] * self.std
            z = torch.cat([z, self.controller(u, s[:, -1:])], dim=1)
            s = torch.cat([s, self.predictor(s, z)[:, -1:]], dim=1)
        return s[:, -1]


def sizes(model, params):
    """Returns the arguments of `Model` for a world model with a state controller.

    Raises:
      ValueError: `Model` does not support the world model.
    """
    of = lambda network: (network.width, network.heads, network.depth)  # noqa: E731
    if model.normalise or model.latent.kind == "discrete" or model.controller.kind != "state":
        raise ValueError("model: expected a nano model with a state controller and without codes")
    return {
        "features": len(params["predictor"]["embed"]["kernel"]),
        "latent": model.latent.dim,
        "actions": model.controller.actions,
        "predictor": of(model.predictor),
        "controller": of(model.controller),
    }


def state_dict(params):
    """Converts lawm_jax's parameters, a nested dict, to name -> numpy array for PyTorch modules."""
    found = {}
    for name, value in params.items():
        if name == "blocks":  # layers are stacked on the leading axis
            value = {str(i): _pick(value, i) for i in range(len(value["qkv"]["bias"]))}
        if isinstance(value, dict):
            found |= {f"{name}.{key}": x for key, x in state_dict(value).items()}
        elif name == "kernel":
            found["weight"] = np.reshape(value, (len(value), -1)).T
        else:
            found["weight" if name == "scale" else name] = np.reshape(
                value, -1 if name == "bias" else np.shape(value)
            )
    return found


def _pick(tree, i):
    return {k: _pick(x, i) for k, x in tree.items()} if isinstance(tree, dict) else tree[i]


def load(sizes, arrays):
    """Makes a `Model` from the arrays returned by `state_dict`."""
    model = Model(**sizes)
    model.load_state_dict({name: torch.tensor(np.array(x)) for name, x in arrays.items()})
    return model.eval()

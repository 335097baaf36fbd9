"""Implements the training step in PyTorch, to benchmark training.

It extends torch_model.py by the inverse dynamics model, noisy, sparse and unconstrained latents,
the loss and the optimizer. Its loss, gradients and updates equal those of lawm_jax, so each checks
the other (tests/test_benchmarks.py). `torch.optim.Muon` is not used: it orthogonalizes in bfloat16,
one matrix at a time, without optax's bias correction of the momentum. Needs only `torch`.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import torch_model

# Number of matrices in a layer's weight that are orthogonalized separately.
MATRICES = {"qkv": 3, "proj": 1, "fc1": 1, "fc2": 1, "modulation": 6}


class InverseDynamics(nn.Module):
    """Infers what happened between consecutive states: s [B, T, N, D] -> [B, T-1, outputs]."""

    def __init__(self, features, outputs, width, heads, depth):
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(2 * features, width)
        self.stack = torch_model.Stack(width, heads, depth, conditioned=False)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Parameter(torch.zeros(width))
        self.pool = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, outputs)

    def forward(self, s):
        B, T, N, _ = s.shape
        x = self.embed(torch.cat([s[:, :-1], s[:, 1:]], dim=-1))
        x = self.norm(self.stack(x.view(B * (T - 1), 1, N, -1)))[:, 0]
        k, v = self.pool(x).view(B * (T - 1), N, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        q = self.query.view(1, self.heads, 1, -1).expand(len(x), -1, -1, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).reshape(B, T - 1, -1))


def noisy(h, noise, beta):
    """Samples latents from moments h [B, T, 2A]; returns them and their cost [B, T]."""
    mean, log_var = h.chunk(2, dim=-1)
    log_var = log_var.clamp(-10, 6)
    price = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1)
    return mean + (0.5 * log_var).exp() * noise, beta * price


def sparse(h, noise, l1):
    """Returns latents h [B, T, A], and their energy plus the batch statistics' cost, [B, T]."""
    A = h.shape[-1]
    energy = F.relu(math.sqrt(A) - h.square().sum(-1)) + l1 * h.abs().sum(-1)
    cov = torch.cov(h.reshape(-1, A).T)
    off_diagonal = (cov.square().sum() - cov.diag().square().sum()) / (A * (A - 1))
    spread = F.relu(1 - (cov.diag() + 1e-6).sqrt()).mean()
    mean = h.mean((0, 1)).square().mean()
    return h, energy + 0.1 * spread + 0.001 * off_diagonal + 0.1 * mean


def none(h, noise, strength):
    """Returns latents h [B, T, A] unchanged, at zero cost."""
    return h, h.new_zeros(h.shape[:-1])


KINDS = {"noisy": noisy, "sparse": sparse, "none": none}


class WorldModel(nn.Module):
    """Holds the trained networks and computes the loss.

    Attributes:
      features, latent: widths of a state token and of a latent.
      predictor, inverse: (width, heads, depth) of each.
      kind, strength, weight: of the latents; the last one multiplies their cost.
      cells: number of equal parts of a predicted token, each normalized by LayerNorm; 0: none.
    """

    def __init__(self, features, latent, predictor, inverse, kind, strength, weight=1.0, cells=0):
        super().__init__()
        outputs = 2 * latent if kind == "noisy" else latent
        self.predictor = torch_model.Predictor(features, latent, *predictor)
        self.inverse = InverseDynamics(features, outputs, *inverse)
        self.restrict, self.strength, self.weight = KINDS[kind], strength, weight
        self.cells = cells

    def forward(self, s, noise):
        """Computes the loss of states s [B, T, N, D], given noise [B, T-1, A] for the latents."""
        z, cost = self.restrict(self.inverse(s), noise, self.strength)
        prediction = self.predictor(s[:, :-1], z)
        if self.cells:
            prediction = prediction.unflatten(-1, (self.cells, -1))
            prediction = F.layer_norm(prediction, prediction.shape[-1:], eps=1e-6).flatten(-2)
        return F.l1_loss(prediction, s[:, 1:]) + self.weight * cost.mean()


def make(model, params):
    """Makes a PyTorch copy of a lawm_jax world model and its parameters.

    Raises:
      ValueError: the kind of latent is not supported.
    """
    of = lambda network: (network.width, network.heads, network.depth)  # noqa: E731
    latent = model.latent
    if latent.kind not in KINDS:
        raise ValueError(f"latent.kind: expected one of {sorted(KINDS)}, got {latent.kind!r}")
    copy = WorldModel(
        len(params["predictor"]["embed"]["kernel"]),
        latent.dim,
        of(model.predictor),
        of(model.inverse),
        latent.kind,
        latent.strength,
        getattr(latent, "weight", 1.0),  # of sparse latents
        model.merge**2 if model.normalise else 0,
    )
    arrays = torch_model.state_dict(params)
    copy.load_state_dict({name: torch.tensor(np.array(x)) for name, x in arrays.items()})
    return copy


def orthogonalise(x):
    """Moves the singular values of matrices [n, out, in] close to 1, by Newton-Schulz steps."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.square().sum((1, 2), keepdim=True).sqrt() + 1e-8)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445
        )
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Implements Muon as in optax; orthogonalizes all matrices of the same shape in one batch.

    Attributes:
      named: (name, weight) pairs; a weight stacks the layer's `MATRICES` along its first axis.
      lr, weight_decay, momentum: as in torch.optim.Muon.
      orthogonalise: function of matrices [n, out, in], for example compiled.
    """

    def __init__(self, named, lr, weight_decay, momentum=0.95, orthogonalise=orthogonalise):
        named = list(named)
        super().__init__([x for _, x in named], dict(lr=lr, weight_decay=weight_decay))
        self.orthogonalise, self.momentum, self.count = orthogonalise, momentum, 0
        self.shapes = {}
        for name, x in named:
            n = MATRICES.get(name.split(".")[-2], 1)
            self.shapes.setdefault((len(x) // n, x.shape[1]), []).append(x)
            self.state[x]["momentum"] = torch.zeros_like(x)

    @torch.no_grad()
    def step(self):
        """Updates the weights with their gradients."""
        self.count += 1
        beta, (group,) = self.momentum, self.param_groups
        for shape, weights in self.shapes.items():
            grads = [x.grad for x in weights]
            moments = [self.state[x]["momentum"] for x in weights]
            torch._foreach_lerp_(moments, grads, 1 - beta)
            ahead = torch._foreach_mul(moments, beta / (1 - beta ** (self.count + 1)))
            torch._foreach_add_(ahead, grads, alpha=(1 - beta) / (1 - beta**self.count))
            updates = self.orthogonalise(torch.cat(ahead).view(-1, *shape))
            updates = updates.reshape(-1, shape[1]).split([len(x) for x in weights])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            scale = max(1, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(weights, updates, alpha=-group["lr"] * scale)


class Optimiser:
    """Updates embeddings and the blocks' matrices with Muon, and other parameters with AdamW.

    Attributes:
      model: WorldModel of this file.
      config: section `optim` of a lawm_jax config, with a peak learning rate for each optimizer.
      share: schedule, step (from 0) -> fraction of the peak learning rates.
      orthogonalise: see `Muon`.
    """

    def __init__(self, model, config, share, orthogonalise=orthogonalise):
        named = dict(model.named_parameters())
        muon = {k: x for k, x in named.items() if x.ndim == 2 and _is_hidden(k)}
        rest = {k: x for k, x in named.items() if k not in muon}
        kernels = [x for x in rest.values() if x.ndim == 2]
        others = [x for x in rest.values() if x.ndim != 2]
        decay = config["weight_decay"]
        groups = [
            {"params": kernels, "weight_decay": decay},
            {"params": others, "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            groups, lr=config["adamw"], betas=(0.9, config["b2"]), eps=1e-8, fused=True
        )
        self.parts = Muon(muon.items(), config["muon"], decay, orthogonalise=orthogonalise), adamw
        self.peaks = config["muon"], config["adamw"]
        self.share, self.count = share, 0

    def step(self):
        """Updates the parameters with their gradients and clears the gradients."""
        share = self.share(self.count)
        self.count += 1
        for part, peak in zip(self.parts, self.peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * share
            part.step()
            part.zero_grad()


def _is_hidden(name):
    layer = name.split(".")[-2]
    return layer == "embed" or "blocks" in name and layer in MATRICES

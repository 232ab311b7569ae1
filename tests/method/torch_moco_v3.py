"""MoCo v3 in PyTorch, the second implementation that `test_step_v3.py` compares with.

It is written from the paper (algorithm 1) and the semantics of the authors' code, and shares
nothing with the package: the optimizer LARS is a loop over parameters, the vision transformer is
made of torch's own layers.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.encoders import narrow


def batch_norm_mlp(layers, fan_in, hidden, dim, last_norm):
    """Linear layers without bias, a BatchNorm after each, ReLU between.

    The last BatchNorm has no scale and bias; without `last_norm` it is left out.
    """
    parts = []
    for number in range(layers):
        last = number == layers - 1
        width = dim if last else hidden
        parts.append(nn.Linear(fan_in, width, bias=False))
        if not last:
            parts += [nn.BatchNorm1d(width), nn.ReLU()]
        elif last_norm:
            parts.append(nn.BatchNorm1d(width, affine=False))
        fan_in = width
    return nn.Sequential(*parts)


def mlp_variables(mlp):
    """The package's params and batch_stats of a `batch_norm_mlp`."""
    params, stats, number = {}, {}, 0
    for part in mlp:
        if isinstance(part, nn.Linear):
            number += 1
            params[f"fc{number}"] = {"kernel": part.weight.detach().numpy().T}
        elif isinstance(part, nn.BatchNorm1d):
            name = f"bn{number}"
            stats[name] = {"mean": part.running_mean.numpy(), "var": part.running_var.numpy()}
            if part.affine:
                params[name] = {
                    "scale": part.weight.detach().numpy(),
                    "bias": part.bias.detach().numpy(),
                }
    return {"params": params, "batch_stats": stats}


def resnet(dim, hidden):
    """Encoder and predictor of the ResNet recipe; each block's last BatchNorm starts at zero."""
    net = narrow.resnet("resnet6", zero_init_residual=True)
    net.fc = batch_norm_mlp(2, net.inplanes, hidden, dim, True)
    return net.double().train(), batch_norm_mlp(2, dim, hidden, dim, False).double().train()


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        parts = self.attn.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
        x = x + self.attn.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer with fixed positions and a frozen patch projection."""

    def __init__(self, width, depth, heads, patch, side):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.patch_embed.proj.weight.requires_grad = False
        self.patch_embed.proj.bias.requires_grad = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc = nn.Identity()
        self.register_buffer("positions", self._positions(width, side // patch), persistent=False)

    @staticmethod
    def _positions(width, side):
        across, down = torch.meshgrid(
            torch.arange(side, dtype=torch.float64),
            torch.arange(side, dtype=torch.float64),
            indexing="ij",
        )
        omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        a, b = across.flatten()[:, None] * omega, down.flatten()[:, None] * omega
        table = torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], 1)
        return torch.cat([torch.zeros(1, width, dtype=torch.float64), table])[None]

    def forward(self, images):
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.fc(self.norm(x)[:, 0])


def vit(width, depth, heads, patch, side, dim, hidden):
    """Encoder and predictor of the ViT recipe."""
    net = ViT(width, depth, heads, patch, side)
    net.fc = batch_norm_mlp(3, width, hidden, dim, True)
    return net.double().train(), batch_norm_mlp(2, dim, hidden, dim, True).double().train()


class LARS:
    """LARS, one layer after the other; the learning rate stays outside the buffer.

    Only parameters of rank above 1 have a trust ratio and decay.
    """

    def __init__(self, parameters, weight_decay, momentum=0.9, trust=0.001):
        self.parameters = list(parameters)
        self.buffers = [torch.zeros_like(p) for p in self.parameters]
        self.weight_decay, self.momentum, self.trust, self.lr = weight_decay, momentum, trust, None

    @torch.no_grad()
    def step(self):
        for p, buffer in zip(self.parameters, self.buffers, strict=True):
            update = p.grad
            if p.ndim > 1:
                update = update + self.weight_decay * p
                size, length = p.norm(), update.norm()
                if size > 0 and length > 0:
                    update = update * (self.trust * size / length)
            buffer.mul_(self.momentum).add_(update)
            p.sub_(self.lr * buffer)


class MoCo:
    """Algorithm 1 of MoCo v3."""

    def __init__(self, encoder, predictor, *, momentum, temperature, optimizer, weight_decay):
        self.q, self.predictor, self.k = encoder, predictor, copy.deepcopy(encoder)
        self.m, self.tau = momentum, temperature
        trained = [p for p in [*encoder.parameters(), *predictor.parameters()] if p.requires_grad]
        if optimizer == "lars":
            self.optimizer = LARS(trained, weight_decay)
        else:
            self.optimizer = torch.optim.AdamW(trained, 1.0, weight_decay=weight_decay)

    def contrast(self, q, k):
        logits = F.normalize(q) @ F.normalize(k).T / self.tau
        return 2 * self.tau * F.cross_entropy(logits, torch.arange(len(q)))

    def step(self, first, second, lr):
        q1, q2 = self.predictor(self.q(first)), self.predictor(self.q(second))
        with torch.no_grad():
            for key, query in zip(self.k.parameters(), self.q.parameters(), strict=True):
                key.mul_(self.m).add_((1 - self.m) * query)
            k1, k2 = self.k(first), self.k(second)
        loss = self.contrast(q1, k2) + self.contrast(q2, k1)
        for p in [*self.q.parameters(), *self.predictor.parameters()]:
            p.grad = None
        loss.backward()
        if isinstance(self.optimizer, LARS):
            self.optimizer.lr = lr
        else:
            self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        return loss.item()

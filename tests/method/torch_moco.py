"""Algorithm 1 of the MoCo paper in PyTorch: the second implementation, for `test_step.py`.

It is written from the paper and the semantics of the authors' code, and shares nothing with the
package: the shuffle is an explicit list of places, BatchNorm groups are separate calls, the queue
is a flat array with a pointer.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import ResNet

from tests.encoders import narrow


class GroupedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over consecutive groups; running statistics move to the mean over groups."""

    groups = 1

    def forward(self, x):
        parts, means, variances = [], [], []
        for part in x.chunk(self.groups):
            parts.append(
                F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps)
            )
            flat = part.detach().transpose(0, 1).flatten(1)
            means.append(flat.mean(1))
            variances.append(flat.var(1, unbiased=True))
        self.running_mean.mul_(0.9).add_(0.1 * torch.stack(means).mean(0))
        self.running_var.mul_(0.9).add_(0.1 * torch.stack(variances).mean(0))
        return torch.cat(parts)


def make_encoder(head: str, dim: int, groups: int) -> ResNet:
    norm = type("Norm", (GroupedBatchNorm,), {"groups": groups})
    net = narrow.resnet("resnet6", norm_layer=norm)
    width = net.inplanes
    net.fc = nn.Linear(width, dim)
    if head == "mlp":
        net.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
    return net.double().train()


def key_order(batch: int, groups: int, span: int) -> list[int]:
    """The batch places, in the order in which the key encoder sees them."""
    per_group, part = batch // groups, batch // groups // span
    order = []
    for group in range(groups):
        block, member = divmod(group, span)
        for other in range(span):
            start = (block * span + other) * per_group + member * part
            order += range(start, start + part)
    return order


class MoCo:
    def __init__(
        self, encoder, queue, *, momentum, temperature, groups, span, symmetric, weight_decay
    ):
        self.q, self.k = encoder, copy.deepcopy(encoder)
        self.queue, self.pointer = queue.clone(), 0
        self.m, self.tau, self.symmetric = momentum, temperature, symmetric
        self.groups, self.span = groups, span
        self.optimizer = torch.optim.SGD(
            self.q.parameters(), 1.0, momentum=0.9, weight_decay=weight_decay
        )

    @torch.no_grad()
    def keys(self, images):
        order = torch.tensor(key_order(len(images), self.groups, self.span))
        shuffled = F.normalize(self.k(images[order]))
        keys = torch.empty_like(shuffled)
        keys[order] = shuffled
        return keys

    def contrast(self, query_images, key_images):
        q, k = F.normalize(self.q(query_images)), self.keys(key_images)
        positive = (q * k).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ self.queue.T], 1) / self.tau
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long)), k, logits.detach()

    def step(self, first, second, lr):
        with torch.no_grad():
            for key, query in zip(self.k.parameters(), self.q.parameters(), strict=True):
                key.mul_(self.m).add_((1 - self.m) * query)
        loss, keys, logits = self.contrast(first, second)
        keys = [keys]
        if self.symmetric:
            other, first_keys, _ = self.contrast(second, first)
            loss, keys = loss + other, [first_keys, *keys]
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for k in keys:
            self.queue[self.pointer : self.pointer + len(k)] = k
            self.pointer = (self.pointer + len(k)) % len(self.queue)
        return loss.item(), logits

"""The MoCo step in PyTorch, as its users write it; the one that `steps.py` is compared with."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from benchmarks.steps import DECAY, DIM, MOMENTUM, RATE, TEMPERATURE, Case, Step
from moco_jax.config import imagenet


class SplitBatchNorm(nn.BatchNorm2d):
    """BatchNorm over `groups` groups of samples.

    One call has all groups as channels of their own, as in the authors' CIFAR demo, where that
    moves nothing in memory or a compiler fuses what it moves. Eager kernels of a GPU would move
    images whose channels lie last: these have a call for each group, which is of other samples
    (neighbours, not every `groups`-th); the work is the same.
    """

    groups = 1

    def forward(self, x):
        mean, var = self.running_mean.repeat(self.groups), self.running_var.repeat(self.groups)
        last = x.is_contiguous(memory_format=torch.channels_last)
        if x.is_cuda and last and not torch.compiler.is_compiling():
            out = self.one_by_one(x, mean, var)
        else:
            out = self.in_one_call(x, mean, var)
        self.running_mean.copy_(mean.view(self.groups, -1).mean(0))
        self.running_var.copy_(var.view(self.groups, -1).mean(0))
        return out

    def in_one_call(self, x, mean, var):
        b, c, h, w = x.shape
        parts = x.reshape(-1, c * self.groups, h, w)
        scale, shift = self.weight.repeat(self.groups), self.bias.repeat(self.groups)
        out = F.batch_norm(parts, mean, var, scale, shift, True, self.momentum, self.eps)
        return out.reshape(b, c, h, w)

    def one_by_one(self, x, mean, var):
        parts = zip(*(y.chunk(self.groups) for y in (x, mean, var)), strict=True)
        rest = self.weight, self.bias, True, self.momentum, self.eps
        return torch.cat([F.batch_norm(part, m, v, *rest) for part, m, v in parts])


def torch_encoder(case: Case) -> nn.Module:
    """Build torchvision's network with the MLP head, and for the ResNet-18 the CIFAR stem."""
    norm = type("Norm", (SplitBatchNorm,), {"groups": case.groups})
    net = getattr(torchvision.models, case.arch)(norm_layer=norm)
    hidden = net.fc.in_features
    net.fc = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, DIM))
    if case.stem == "cifar":
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


def torch_step(case: Case, compiled: bool, device: str, layout: torch.memory_format) -> Step:
    """Make the step of `case`; on a GPU it computes in bfloat16 where autocast does."""
    torch.manual_seed(0)
    bf16 = device == "cuda"
    if bf16:  # what its users switch on for speed: measured convolutions, and products in TF32
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    query, key = torch_encoder(case).to(device), torch_encoder(case).to(device)
    query, key = (net.to(memory_format=layout) for net in (query, key))
    key.load_state_dict(query.state_dict())
    optimizer = torch.optim.SGD(query.parameters(), RATE, momentum=0.9, weight_decay=DECAY)
    queue = F.normalize(torch.randn(case.queue, DIM, device=device))
    shape = 2, case.batch, 3, case.side, case.side
    images = torch.randint(0, 255, shape, dtype=torch.uint8, device=device)
    center, scale = (
        torch.tensor(v, device=device).view(3, 1, 1) for v in (imagenet.MEAN, imagenet.STD)
    )
    target = torch.zeros(case.batch, dtype=torch.long, device=device)
    pointer = 0

    def forward(q_images, k_images, order, back):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                inputs = ((k_images[order].float() / 255 - center) / scale).contiguous(
                    memory_format=layout
                )
                keys = F.normalize(key(inputs).float())[back]
            inputs = ((q_images.float() / 255 - center) / scale).contiguous(memory_format=layout)
            queries = query(inputs).float()
        queries = F.normalize(queries)
        logits = (
            torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], 1) / TEMPERATURE
        )
        return F.cross_entropy(logits, target), keys

    run = torch.compile(forward, dynamic=False) if compiled else forward

    def start() -> torch.Tensor:
        nonlocal pointer
        with torch.no_grad():
            torch._foreach_lerp_(list(key.parameters()), list(query.parameters()), 1 - MOMENTUM)
        order = torch.randperm(case.batch, device=device)
        loss, keys = run(images[0], images[1], order, torch.argsort(order))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[pointer : pointer + case.batch] = keys
        pointer = (pointer + case.batch) % case.queue
        return loss.detach()

    return Step(start, lambda loss: loss.item())

"""torchvision's ResNets with fewer channels: as deep and of the same blocks, but soon computed."""

import torch
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

WIDTH = 8  # of the stem; torchvision's own is 64
LAYERS = {
    "resnet6": (BasicBlock, [1, 1]),  # as in tests/smallest.py: each kind of block once
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "bottlenecks": (Bottleneck, [1, 1]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


class Narrow(ResNet):
    """torchvision's ResNet with `width` channels behind its stem, all others in proportion."""

    width = WIDTH

    def _make_layer(self, block, planes, *args, **kwargs):
        if planes == 64:
            self.inplanes = self.width
            self.conv1 = torch.nn.Conv2d(3, self.width, 7, 2, 3, bias=False)
            self.bn1 = self._norm_layer(self.width)
        return super()._make_layer(block, planes * self.width // 64, *args, **kwargs)


def resnet(name, width=WIDTH, **options):
    """Make a network of torchvision's by name, so wide behind its stem; `options` are its own."""
    block, stages = LAYERS[name]
    kind = type("Narrow", (Narrow,), {"width": width})
    return shortened(kind(block, [*stages, 1, 1][:4], **options), len(stages))


def shortened(net, stages):
    """Return `net` with the first so many of its four stages; channels of the last go to `fc`."""
    for number in range(stages, 4):
        net.inplanes //= 2
        setattr(net, f"layer{number + 1}", torch.nn.Identity())
    return net

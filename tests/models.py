"""Tiny networks by shape of trouble. Each takes ``(n, 3, h, w)`` and has random weights; call eval() for statistics."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


def conv_norm_relu(channels=8, **options):
    return nn.Sequential(nn.Conv2d(3, channels, 3, **options), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class Block(nn.Module):
    """A residual block; its ReLU is one module called twice."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


class Residual(nn.Module):
    """Stem, two residual blocks, pooling, classifier."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = conv_norm_relu(8, padding=1)
        self.block1 = Block(8, 8)
        self.block2 = Block(8, 16, stride=2)
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = self.block2(self.block1(self.stem(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(self.conv(F.relu(self.conv(self.stem(x)))))


class TwoUsers(nn.Module):
    """One convolution read by a norm and by an addition, so that the norm must not be folded into it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.head(torch.add(self.bn(x), x))


class Grouped(nn.Module):
    """Grouped, depthwise, strided and dilated convolutions without bias."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=2, bias=False)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.strided = nn.Conv2d(32, 32, 3, stride=2, dilation=2, padding=2, bias=False)
        self.tiny = nn.Conv2d(32, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.tiny(self.strided(F.relu6(self.depthwise(F.relu(self.grouped(self.stem(x)))))))
        return self.fc(x.mean((2, 3)))


class ControlFlow(nn.Module):
    """A forward that cannot be traced, around parts that can."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv_norm_relu(8), nn.Conv2d(8, 16, 3), nn.ReLU())
        self.body.out_channels = 16
        self.loose = nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.body(x)
        if x.mean() > 0:
            x = F.relu(self.loose(x))
        return self.fc(x.mean((2, 3)))


class Caller(nn.Module):
    """Untraceable, and uses methods of its child, so that the child must stay what it is."""

    def __init__(self):
        super().__init__()
        self.child = Residual()
        self.child.scaled = lambda y: y
        self.helper = Helpful()

    def forward(self, x):
        x = self.helper.prepare(x)
        return self.child(x) if bool(x.sum() > 0) else self.child(-x)


class Helpful(nn.Module):
    """Traceable, but with a method that others call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def prepare(self, x):
        return self.conv(x)

    def forward(self, x):
        return self.conv(x)


class SameConv2d(nn.Conv2d):
    """Another forward, with padding worked out at run time."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class NamedConv2d(nn.Conv2d):
    """A subclass that changes nothing."""


def subclasses():
    return nn.Sequential(nn.Conv2d(3, 16, 3), SameConv2d(16, 16, 3), NamedConv2d(16, 16, 3), nn.Conv2d(16, 4, 1))


def weight_norm():
    middle = parametrizations.weight_norm(nn.Conv2d(16, 16, 3))
    return nn.Sequential(nn.Conv2d(3, 16, 3), middle, nn.Conv2d(16, 4, 1))


class Auxiliary(nn.Module):
    """A second head that only training uses."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.aux = nn.Conv2d(16, 4, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


class Overwriting(nn.Module):
    """Reads a tensor again after it was overwritten."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.conv(x)
        rows = x.shape[2]
        half = rows
        half //= 2
        y = self.head(self.relu(x))
        return (x + y)[:, :, : half + rows]


class Switches(nn.Module):
    """Optional arguments that Python decides on."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x, mask=None, features=False):
        x = self.conv(x)
        if mask is not None:
            x = x * mask
        return x if features else self.head(x)


class Attention(nn.Module):
    """Layers whose weights are read by something else than their own forward."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.tied = nn.Linear(32, 32)
        self.volume = nn.Conv3d(1, 1, 3, padding=1)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = F.linear(x, self.tied.weight)
        x = self.volume(x[:, None, :, None])[:, 0, :, 0]
        return self.head(x.mean(1))

"""A small residual network for 8x8 digits. The demo copies this file: it stands for a user's own model code."""

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (32, 64, 128)


@final
class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation beside a shortcut."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and channels == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, c, h, w)`` to ``(n, o, h / stride, w / stride)``."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


@final
class DigitsNet(nn.Module):
    """A stem, three residual blocks and a classifier of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        narrow, middle, wide = WIDTHS
        self.stem = nn.Conv2d(1, narrow, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(narrow)
        self.blocks = nn.Sequential(Block(narrow, narrow, 1), Block(narrow, middle, 2), Block(middle, wide, 2))
        self.classifier = nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, 1, 8, 8)`` to scores ``(n, 10)``."""
        x = F.relu(self.norm(self.stem(x)))
        scores: Tensor = self.classifier(self.blocks(x).mean((2, 3)))
        return scores


def network() -> nn.Module:
    """Build the network with untrained weights."""
    return DigitsNet()

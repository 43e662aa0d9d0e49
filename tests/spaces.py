"""Small networks with convolutions of one and three dimensions, and with transposed ones."""

import torch
from torch import nn


class Rising(nn.Module):
    """Down, a residual, up again by a transposed convolution, PReLU."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.inner, self.norm1 = nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.up, self.norm2 = nn.ConvTranspose2d(16, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.act, self.head = nn.PReLU(16), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = torch.relu(self.norm0(self.stem(x)))
        x = torch.relu(self.norm1(self.inner(x)) + x)
        return self.head(self.act(self.norm2(self.up(x))))


class Clip(nn.Module):
    """Convolutions over time, height and width, with strides in each, and a residual."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(3, 8, 3, 1, 1)
        self.down, self.norm = nn.Conv3d(8, 16, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(16)
        self.time, self.inner = nn.Conv3d(16, 16, (3, 1, 1), (2, 1, 1), (1, 0, 0)), nn.Conv3d(16, 16, 3, 1, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.down(torch.relu(self.stem(x)))))
        x = self.time(x)
        return self.head(torch.relu(self.inner(x) + x).mean((2, 3, 4)))


class Signal(nn.Module):
    """One dimension: groups, a dilation, "same" padding, and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 16, 5, 2, 2)
        self.wide = nn.Conv1d(16, 32, 3, padding="same", dilation=4, groups=2)
        self.up, self.head = nn.ConvTranspose1d(32, 16, 3, 3), nn.Conv1d(16, 3, 1)

    def forward(self, x):
        return self.head(torch.relu(self.up(torch.relu(self.wide(torch.relu(self.stem(x)))))))


SHAPES = {Rising: (4, 3, 20, 28), Clip: (4, 3, 6, 12, 10), Signal: (4, 2, 50)}


def network(kind):
    """Return a network with weights and statistics, and a batch for it."""
    torch.manual_seed(0)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval(), torch.randn(*SHAPES[kind])

"""A function that writes into a list it is given: whoever runs the graph, each call gets its own."""

import pytest
import torch
from torch import fx, nn

from binarize.passes.lists import Interpreter, lend_lists


def shrunk(sizes, window):
    for axis, size in enumerate(sizes):
        window[axis] = min(window[axis], size)
    return window


fx.wrap("shrunk")


class Windowed(nn.Module):
    def forward(self, x):
        window = shrunk([x.shape[2], x.shape[3]], window=[4, 64])
        return torch.cat([x, x], 1)[:, :, : window[0], : window[1]]


def test_each_call_of_a_function_gets_lists_of_its_own():
    gm = fx.symbolic_trace(Windowed())
    x = torch.randn(1, 3, 2, 2)
    with pytest.raises(TypeError, match="does not support mutation"):
        fx.Interpreter(gm).run(x)
    lent = fx.symbolic_trace(Windowed())
    lend_lists(lent)

    for size in (2, 6):  # the second call does not see what the first wrote into its window
        x = torch.randn(1, 3, size, size)
        wanted = gm(x)
        assert wanted.shape[2] == min(size, 4)
        for got in (Interpreter(gm).run(x), fx.Interpreter(lent).run(x), lent(x)):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)

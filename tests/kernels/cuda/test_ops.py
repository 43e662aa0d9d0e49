"""What torch knows of the ops on a GPU, as far as tensors without memory can show it."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from binarize.errors import ModelError
from binarize.kernels import ops

NAMES = list(ops._OPS)


@pytest.mark.parametrize("name", NAMES)
def test_every_op_has_an_implementation_for_gpus(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"binarize::{name}", "CUDA")


def test_the_fakes_stay_on_the_gpu():
    with FakeTensorMode():
        x = torch.empty(2, 6, 4, 4, device="cuda")
        planes = ops.pack_uniform(x, 0.0, 3.0, 2, 1)
        weight = torch.empty(1, 1, 1, 9, 1, 2, 2, 16, dtype=torch.int32, device="cuda")
        geometry = (6, 5, [3, 3], [1, 1], [1, 1], [1, 1], 1, [1], [2])
        sums = ops.conv2d_integer(planes, weight, *geometry)
        tables = torch.empty(1, 5, device="cuda"), torch.empty(1, 5, device="cuda"), None, None, None
        y = ops.conv2d(planes, weight, *tables, *geometry, 0.0, 1.0)
        codes = ops.conv2d_codes(planes, weight, *tables, *geometry, 0.0, 1.0, 0.0, 1.0, 2, 1)

    assert {made.device.type for made in (planes, sums, y, codes)} == {"cuda"}
    assert y.shape == (2, 5, 4, 4)
    assert codes.shape == (2, 4, 4, 1, 1, 8)


def test_tensors_of_two_devices_are_refused_by_name():
    run = ops._on_one_device("conv2d", lambda *arguments: pytest.fail("ran"))
    with pytest.raises(ModelError, match=r"binarize::conv2d: all tensors must be on one device.*meta, cpu"):
        run(torch.empty(1, device="meta"), torch.empty(1), 3, None)

    assert ops._on_one_device("conv2d", lambda *arguments: len(arguments))(torch.empty(1), 3, None) == 3

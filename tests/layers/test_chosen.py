"""Grouping images by branch: which memory is read, and that none is mixed up."""

import pytest
import torch
from torch import nn

from binarize.layers.chosen import empty, run_chosen, runs, take


def test_images_side_by_side_are_one_stretch():
    assert runs([0, 1, 2, 5, 7, 8]) == [(0, 3), (5, 6), (7, 9)]
    assert runs([4]) == [(4, 5)]


def layouts():
    planes = torch.arange(5.0 * 3 * 4 * 6)
    yield planes.reshape(5, 3, 4, 6)
    yield planes.reshape(5, 4, 6, 3).permute(0, 3, 1, 2)
    yield planes.reshape(5, 4, 6, 3).permute(0, 3, 1, 2)[..., 1:]  # a crop: memory with gaps
    yield planes.reshape(5, 72)


@pytest.mark.parametrize("x", [*layouts()], ids=lambda x: str((*x.shape, *x.stride())))
@pytest.mark.parametrize("images", [[0, 1, 2, 3, 4], [1, 2], [3], [0, 2, 4]])
def test_some_images_are_a_view_or_a_copy_in_the_same_order_of_memory(x, images):
    taken = take(x, images)

    assert torch.equal(taken, x[images])
    assert torch.equal(take(list(x), images), x[images])
    side_by_side = images[-1] - images[0] + 1 == len(images)
    assert (taken.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) == side_by_side
    by_stride = [sorted(range(1, x.dim()), key=y.stride) for y in (taken, x)]
    assert by_stride[0] == by_stride[1]


@pytest.mark.parametrize("x", [*layouts()], ids=lambda x: str((*x.shape, *x.stride())))
def test_images_of_fresh_memory_do_not_overlap(x):
    made = empty(4, x[0])
    made.copy_(x[:4])

    assert torch.equal(made, x[:4])
    assert made.untyped_storage().nbytes() == made.numel() * made.element_size()


def test_outputs_are_handed_on_without_copies_for_all_copies_of_a_branch():
    x = torch.randn(4, 2, 3, 3)
    ran = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0]]).bool()
    weights = torch.rand(4, 4) * ran
    parts = []
    bodies = [nn.Sequential(nn.Conv2d(2, 2, 1)) for _ in range(4)]
    for body in bodies:
        body.register_forward_hook(lambda m, args, y: parts.append(y))
    total, rows = run_chosen(bodies, lambda k, images: take(x, images), weights, ran, hands_on=2)

    assert [len(part) for part in parts] == [2, 2, 2, 2]
    for image in range(4):
        for k in range(4):
            copy = k % 2 if ran[image, k % 2] else k % 2 + 2
            torch.testing.assert_close(rows[k][image], bodies[copy](x[image : image + 1])[0])
    assert rows[0][1].data_ptr() == rows[2][1].data_ptr() == parts[0][1].data_ptr()
    assert rows[1][2].data_ptr() == rows[3][2].data_ptr() == parts[3][1].data_ptr()
    wanted = sum(weights[:, k].reshape(-1, 1, 1, 1) * bodies[k](x) for k in range(4))
    torch.testing.assert_close(total, wanted)
    assert run_chosen(bodies, lambda k, images: take(x, images), weights, ran, hands_on=0)[1] == []

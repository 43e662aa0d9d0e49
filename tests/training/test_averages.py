import pytest
from torch import nn
from training_desk import converted, data, teacher

from binarize.errors import TrainingError
from binarize.finetune import Settings, finetune
from binarize.training.averages import Statistics


@pytest.mark.parametrize(
    ("factor", "divided"),
    [(1.0, 1), (0.26, 1), (0.25, 4), (0.07, 4), (0.0625, 16), (0.016, 16), (1 / 64, 64), (0.0, 64)],
)
def test_statistics_are_remembered_longer_at_low_rates(factor, divided):
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2, momentum=0.3), nn.BatchNorm2d(2, momentum=None))
    statistics = Statistics(net)

    statistics.set_factor(factor)

    assert [layer.momentum for layer in net] == [0.1 / divided, 0.3 / divided, None]
    statistics.restore()
    assert [layer.momentum for layer in net] == [0.1, 0.3, None]


def test_a_run_changes_the_momenta_and_leaves_them_as_they_were():
    net = converted()
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    seen = []

    def progress(step):
        seen.append(layers[0].momentum)
        if len(seen) == 7:
            raise TrainingError("enough")

    usual = [layer.momentum for layer in layers]
    with pytest.raises(TrainingError, match="enough"):
        finetune(net, data(), teacher=teacher(), settings=Settings(epochs=3, warmup=0.0), progress=progress)

    assert seen[0] == usual[0]
    assert seen[-1] < usual[0]
    assert [layer.momentum for layer in layers] == usual

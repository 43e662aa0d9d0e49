"""What every test stands on: fixed seeds, full float32 precision, and `models` importable by name."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

torch.set_num_threads(2)
torch.set_float32_matmul_precision("highest")
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries under test draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request):
    return torch.device(request.param)

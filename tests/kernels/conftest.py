import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Small float64 convolutions lose more to threads than they gain; tests of threads set their own number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

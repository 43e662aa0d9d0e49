import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Images of 8x8 gain nothing from more, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

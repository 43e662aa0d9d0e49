import os
import subprocess
import sys

import pytest

from binarize.training.memory import MMAP_THRESHOLD, OWN, TRIM_THRESHOLD, keep_freed_memory

FAULTS = """
import ctypes
import resource

import torch

from binarize.training.memory import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: one fault would stand for 512
print(keep_freed_memory())


def step():
    return [torch.ones(2 << 20) for _ in range(20)]


for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_of_four_steps(**more):
    environment = {key: value for key, value in os.environ.items() if key not in OWN}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env={**environment, **more}
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_a_step_does_not_ask_for_its_memory_again():
    kept, faults = pages_of_four_steps()
    if kept == "False":
        pytest.skip("the C library is not glibc")
    _, otherwise = pages_of_four_steps(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")

    pages = 4 * 20 * 8 * 2**20 / os.sysconf("SC_PAGE_SIZE")  # of 4 steps of 20 tensors of 8 MiB
    assert otherwise > pages / 2  # given back at once: left to itself, glibc does so at some times and not at others
    assert faults < pages / 10


def test_what_the_user_asked_for_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")

    assert not keep_freed_memory()


def test_an_older_glibc_takes_as_much_as_it_can(monkeypatch):
    taken = {}

    class Older:
        @staticmethod
        def mallopt(name, size):
            if name == MMAP_THRESHOLD and size > 32 << 20:
                return 0
            taken[name] = size
            return 1

    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Older)

    assert keep_freed_memory()
    assert taken == {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 2**31 - 1}


def test_another_c_library_is_left_alone(monkeypatch):
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())

    assert not keep_freed_memory()

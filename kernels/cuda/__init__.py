"""Kernels for NVIDIA GPUs: CUDA C++ in ``source/``, compiled at run time for the device at hand. docs/cuda.md."""

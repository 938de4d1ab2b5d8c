"""CUDA C++ kernels on the CPU, under sanitizers: see README.md in this folder."""

"""What dwconv's CUDA kernels may take (see test_cuda_compile.py)."""

from __future__ import annotations

# Of 64 threads; registers for ten and more warps on a scheduler of sm_90. fp64 takes twice as many.
CUDA_LIMITS = {"forward": 64, "backward": 104, "reduce_strips": 56}

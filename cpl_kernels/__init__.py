"""Fused kernels for all-in-one image restoration, with plain PyTorch definitions beside them.

Every function runs on CPU and CUDA tensors, is differentiable, deterministic and opaque to
torch.compile (fullgraph works), and takes ``backend=`` (None, "reference", "native", "triton",
"cuda"). ``show_config()`` says what runs where and why.
"""

from cpl_kernels._version import __version__
from cpl_kernels.backends import config, show_config, use_backend
from cpl_kernels.layer_norm2d import layer_norm2d

__all__ = ["__version__", "config", "layer_norm2d", "show_config", "use_backend"]

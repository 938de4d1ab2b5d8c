"""Fused kernels for all-in-one image restoration, with plain PyTorch definitions beside them.

Every function runs on CPU and CUDA tensors, is differentiable, deterministic and opaque to
torch.compile (fullgraph works), and takes ``backend=`` (None, "reference", "native", "triton",
"cuda"). ``show_config()`` says what runs where and why.
"""

from cpl_kernels._version import __version__
from cpl_kernels.aggregate_prompts import aggregate_prompts
from cpl_kernels.attention_half import attention_half
from cpl_kernels.backends import BackendError, config, show_config, use_backend
from cpl_kernels.channel_attention import channel_attention
from cpl_kernels.checkpointing import checkpointed
from cpl_kernels.checks import NonFiniteError
from cpl_kernels.dwconv import dwconv
from cpl_kernels.feature_distances import feature_distances
from cpl_kernels.feed_forward_half import feed_forward_half
from cpl_kernels.gated_dwconv import gated_dwconv
from cpl_kernels.info_nce import info_nce
from cpl_kernels.layer_norm2d import layer_norm2d
from cpl_kernels.pointwise_conv import pointwise_conv
from cpl_kernels.route_negatives import route_negatives
from cpl_kernels.route_topk import route_topk
from cpl_kernels.sparse_prompt import sparse_prompt
from cpl_kernels.strips import works_in_strips
from cpl_kernels.transformer_block import transformer_block

__all__ = [
    "BackendError",
    "NonFiniteError",
    "__version__",
    "aggregate_prompts",
    "attention_half",
    "channel_attention",
    "checkpointed",
    "config",
    "dwconv",
    "feature_distances",
    "feed_forward_half",
    "gated_dwconv",
    "info_nce",
    "layer_norm2d",
    "pointwise_conv",
    "route_negatives",
    "route_topk",
    "show_config",
    "sparse_prompt",
    "transformer_block",
    "use_backend",
    "works_in_strips",
]

"""Prompt blocks: a mixture of learned prompts, chosen by the features, resized to them.

Sources of the layouts: PromptIR, arXiv 2306.13090, equation 3 (all N prompts); CPL, arXiv 2504.09973 (the k best, k in
``num_expert``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cpl.interop.strangers import stranger
from cpl.interop.structure import Block, Layout, Options, why_no_conv
from cpl_kernels import sparse_prompt

# The usual names; any other number of the module that decides how many is found too.
_NAMES_OF_K = (
    "top_k",
    "topk",
    "k",
    "num_expert",
    "num_experts",
    "num_selected",
    "num_active",
    "n_expert",
    "n_experts",
)


def _why_not(module: Block) -> str | None:
    pool = getattr(module, "prompt_param", None)
    if not isinstance(pool, Tensor):
        return ""
    if pool.dim() != 5 or pool.shape[0] != 1:
        return f"its prompt_param is {tuple(pool.shape)}, not [1, N, C, S, S]"
    router = getattr(module, "linear_layer", None)
    if not isinstance(router, nn.Linear) or router.out_features != pool.shape[1]:
        return "it has no linear_layer with an output for each prompt"
    return why_no_conv(module, "conv3x3", 3, depthwise=False)


def _choices(module: Block) -> Iterable[Options]:
    """The k best where an attribute says how many, their weights as they are or made to sum to 1; else all."""
    count = module.prompt_param.shape[1]
    others = [name for name in vars(module) if name not in _NAMES_OF_K and _decides(module, name)]
    for name in (*_NAMES_OF_K, *others):
        if _is_number(getattr(module, name, None), count):
            yield {"k": name, "normalize": "none"}
            yield {"k": name, "normalize": "topk"}
    yield {"k": None, "normalize": "none"}


def _is_number(k: Any, most: int) -> bool:
    return isinstance(k, int) and not isinstance(k, bool) and 1 <= k <= most


def _decides(module: Block, name: str) -> bool:
    """Whether the block computes something else where this number is another: no chance neighbour of k does."""
    k, pool = getattr(module, name), module.prompt_param
    if name.startswith("_") or not _is_number(k, pool.shape[1] - 1) or pool.device.type == "meta":
        return False
    probe = stranger(module, pool.dtype).eval()
    x = torch.linspace(-1, 1, module.linear_layer.in_features).view(1, -1, 1, 1).expand(2, -1, 4, 4).to(pool)
    try:
        with torch.no_grad():
            before = probe(x)
            setattr(probe, name, k + 1)
            return not torch.equal(before, probe(x))
    except Exception:  # another kind of number, for which k + 1 makes no sense
        return False


def _forward(module: Block, x: Tensor, k: str | None, normalize: str) -> Tensor:
    pool = module.prompt_param[0]
    logits = module.linear_layer(x.mean((2, 3)))
    chosen = module.linear_layer.out_features if k is None else getattr(module, k)
    return module.conv3x3(sparse_prompt(logits, pool, chosen, (x.shape[2], x.shape[3]), normalize))


PROMPT = Layout("prompt block", _why_not, lambda m: (m.linear_layer.in_features,), _forward, options=_choices)

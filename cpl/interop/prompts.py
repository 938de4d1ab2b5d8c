"""Prompt blocks: a mixture of learned prompts, chosen by the features, resized to them.

Sources of the layouts: PromptIR, arXiv 2306.13090, equation 3 (all N prompts); CPL, arXiv 2504.09973 (the k best).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from cpl.interop.structure import Block, Layout, Options, why_no_conv
from cpl_kernels import sparse_prompt

_NAMES_OF_K = ("top_k", "topk", "k")


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
    for name in _NAMES_OF_K:
        k = getattr(module, name, None)
        if isinstance(k, int) and 1 <= k <= count:
            yield {"k": name, "normalize": "none"}
            yield {"k": name, "normalize": "topk"}
    yield {"k": None, "normalize": "none"}


def _forward(module: Block, x: Tensor, k: str | None, normalize: str) -> Tensor:
    pool = module.prompt_param[0]
    logits = module.linear_layer(x.mean((2, 3)))
    chosen = module.linear_layer.out_features if k is None else getattr(module, k)
    return module.conv3x3(sparse_prompt(logits, pool, chosen, (x.shape[2], x.shape[3]), normalize))


PROMPT = Layout("prompt block", _why_not, lambda m: (m.linear_layer.in_features,), _forward, options=_choices)

"""The depthwise convolution and the gate behind it, which are one kernel.

By itself SimpleGate is one product of two halves, which torch computes in one pass already: nothing to gain. With the
convolution before it it pays, so it is taken where what stands before it is certain: in NAFNet's block, and where the
two are neighbours in an nn.Sequential. In any other module only its code says what runs before what.

Source of the layout: NAFNet, arXiv 2204.04676.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from cpl.interop.structure import Block, Layout, Options, apply, is_plain, is_untouched, why_no_conv
from cpl_kernels import gated_dwconv

# -- NAFNet's block


def _why_not_block(module: Block) -> str | None:
    if not (hasattr(module, "sg") and hasattr(module, "sca")):
        return ""
    missing = [
        n for n in ("norm1", "norm2", "dropout1", "dropout2", "beta", "gamma") if not hasattr(module, n)
    ]
    if missing:
        return f"it has no {', '.join(missing)}"
    return why_no_conv(module, "conv2", 3, depthwise=True) or next(
        filter(None, (why_no_conv(module, f"conv{i}", 1, depthwise=False) for i in (1, 3, 4, 5))), None
    )


def _forward_block(module: Block, x: Tensor) -> Tensor | None:
    conv2 = module.conv2
    if not (is_plain(conv2) and is_untouched(module.sg)):
        return None
    y = gated_dwconv(apply(module.conv1, module.norm1(x)), conv2.weight, conv2.bias, activation="none")
    y = module.dropout1(apply(module.conv3, y * module.sca(y)))
    x = x + y * module.beta
    y = module.sg(apply(module.conv4, module.norm2(x)))
    return x + module.dropout2(apply(module.conv5, y)) * module.gamma


# -- neighbours in an nn.Sequential


def _is_gate(module: nn.Module) -> bool:
    tensors = next(module.parameters(), None) is not None or next(module.buffers(), None) is not None
    return "Gate" in type(module).__name__ and not tensors and not list(module.children())


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _pairs(module: Block) -> list[Block]:
    """Each depthwise convolution with the gate behind it, as a sequence of two."""
    if type(module).forward is not nn.Sequential.forward:
        return []
    parts = list(module)
    return [
        nn.Sequential(conv, gate) for conv, gate in pairwise(parts) if _is_depthwise(conv) and _is_gate(gate)
    ]


def _why_not_sequence(module: Block) -> str | None:
    pairs = _pairs(module)
    if not pairs:
        return ""
    return next(filter(None, (why_no_conv(pair, "0", 3, depthwise=True) for pair in pairs)), None)


def _classes(module: Block) -> Iterable[Options]:
    """The classes that the comparison finds to be gates: what stands in the sequence may change after a patch."""
    return ({"gates": tuple({type(pair[1]) for pair in _pairs(module)})},)


def _forward_sequence(module: Block, x: Tensor, gates: tuple[type, ...]) -> Tensor:
    parts = list(module)
    at = 0
    while at < len(parts):
        if at + 1 < len(parts) and x.dim() == 4 and _is_one_kernel(module, at, parts, gates):
            x = gated_dwconv(x, parts[at].weight, parts[at].bias, activation="none")
            at += 2
        else:
            x = parts[at](x)
            at += 1
    return x


def _is_one_kernel(module: Block, at: int, parts: list[Block], gates: tuple[type, ...]) -> bool:
    conv, gate = parts[at], parts[at + 1]
    if type(gate) not in gates or not is_untouched(gate) or not _is_depthwise(conv) or not is_plain(conv):
        return False
    return why_no_conv(module, list(module._modules)[at], 3, depthwise=True) is None


# -- a gate by itself


def _why_not_alone(module: Block) -> str | None:
    if not _is_gate(module):
        return ""
    return (
        "by itself it is one product already; it is taken behind a depthwise 3x3 convolution in nn.Sequential"
    )


def _as_it_is(module: Block, x: Tensor) -> None:
    """Reported, never taken: the module's own product is the whole computation."""


BLOCK = Layout(
    "gated block",
    _why_not_block,
    lambda m: (m.conv1.in_channels,),
    _forward_block,
    dropouts=("dropout1", "dropout2"),
    covers=lambda m: (m.conv2, m.sg),
)
SEQUENCE = Layout(
    "gated convolution",
    _why_not_sequence,
    lambda m: (m[0].in_channels,),
    _forward_sequence,
    options=_classes,
    compared=_pairs,
    covers=lambda m: (part for pair in _pairs(m) for part in pair),
)
ALONE = Layout("gate", _why_not_alone, lambda m: (2,), _as_it_is)

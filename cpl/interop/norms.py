"""Layer norms over the channels of an image.

Sources of the layouts: Restormer, arXiv 2111.09881 (``body``); NAFNet, arXiv 2204.04676; ConvNeXt, arXiv 2201.03545;
Histoformer, arXiv 2407.10172 (without a weight); DA-CLIP, arXiv 2310.01018 (``g``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cpl.interop.epsilon import Epsilon, measured, of_dtype
from cpl.interop.structure import Block, Layout, Options, is_untouched
from cpl_kernels import layer_norm2d

_RESTORMER_EPS = 1e-5
_WEIGHTS = ("weight", "g", "gamma")
_BIASES = ("bias", "b", "beta")
_ANY_CHANNELS = 8  # of a norm that has no parameters, and says nowhere how many channels it takes


class Parts(NamedTuple):
    """Weight [C] and bias [C], or None, and the eps that an attribute names, or else Restormer's."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


def parts(module: Block) -> Parts:
    """What the norm computes with; a weight of [1, C, 1, 1] or [C, 1, 1] is a vector too."""
    body = _body(module)
    weight, bias = (_vector(body, _found(body, names)) for names in (_WEIGHTS, _BIASES))
    eps = getattr(body, "eps", getattr(module, "eps", _RESTORMER_EPS))
    return Parts(weight, bias, eps if isinstance(eps, float) else _RESTORMER_EPS)


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool) -> Tensor:
    """:func:`cpl_kernels.layer_norm2d`, where a weight of None is 1."""
    return layer_norm2d(x, ones(x) if weight is None else weight, bias, eps, center)


def ones(x: Tensor) -> Tensor:
    """A weight for x [B, C, H, W] that changes nothing."""
    return torch.ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def is_one(module: nn.Module) -> bool:
    """A norm by its name, over whatever."""
    return "Norm" in type(module).__name__ or isinstance(module, nn.LayerNorm)


def why_not(module: Block) -> str | None:
    """As a layout says it, for a norm that may stand in either way."""
    return _why_not_plain(module) if _why_not_wrapped(module) == "" else _why_not_wrapped(module)


def _why_not_wrapped(module: Block) -> str | None:
    if not is_one(module) or len(list(module.children())) != 1:
        body = getattr(module, "body", None)
        if is_one(module) and isinstance(body, nn.Module) and _found(body, _WEIGHTS):
            return "it has more parts than body"
        return ""
    body = _body(module)
    vectors = {name for name in (_found(body, _WEIGHTS), _found(body, _BIASES)) if name}
    looks = vectors or is_one(body) or "LayerNorm" in type(module).__name__
    if not looks or list(body.children()) or _is_torchs(type(module)):
        return ""
    if _is_torchs(type(body)) and not isinstance(body, nn.LayerNorm):
        return ""  # over batches, groups or pixels
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if own or {name for name, _ in body.named_parameters()} - vectors:
        return "it has more parts than the weight and the bias of its body"
    return None


def _why_not_plain(module: Block) -> str | None:
    if not is_one(module) or list(module.children()) or _is_torchs(type(module)):
        return ""
    weight, bias = _found(module, _WEIGHTS), _found(module, _BIASES)
    parameters = {name for name, _ in module.named_parameters()}
    if not weight and (parameters or "LayerNorm" not in type(module).__name__):
        return ""
    if parameters - {weight, bias} or list(module.buffers()):
        return "it has more parameters than a weight and a bias"
    if getattr(module, "data_format", None) == "channels_last":
        return "its data_format is channels_last: it is over the last dimension, as torch's own"
    return None


def _is_torchs(kind: type[nn.Module]) -> bool:
    """Its forward is torch's: over batches, groups or the last dimension."""
    return str(getattr(kind.forward, "__module__", "")).startswith("torch.")


def _body(module: Block) -> Block:
    return next(module.children(), module)


def _found(body: Block, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if _vector(body, name) is not None), None)


def _vector(body: Block, name: str | None) -> Tensor | None:
    value = getattr(body, name, None) if name else None
    if not isinstance(value, Tensor):
        return None
    while value.dim() > 1 and value.shape[-1] == 1:
        value = value.squeeze(-1)
    if value.dim() == 2 and len(value) == 1:
        value = value[0]
    return value if value.dim() == 1 else None


def epsilon(module: Block) -> Epsilon | None:
    """What it adds to the variance, as measured; None for what :func:`parts` says, which may change later."""
    said = parts(module).eps
    eps = measured(module, *channels(module), said)
    return None if eps == said else eps


def choices(module: Block) -> Iterable[Options]:
    """Without a bias Restormer's norm leaves the mean in; others do not."""
    eps = epsilon(module)
    centers = (True,) if parts(module).bias is not None else (False, True)
    return tuple({"center": center, "eps": eps} for center in centers)


def forward(module: Block, x: Tensor, center: bool, eps: Epsilon | None) -> Tensor | None:
    """Ours, or None where somebody watches the body."""
    body = _body(module)
    if body is not module and not is_untouched(body):
        return None
    weight, bias, said = parts(module)
    return normalise(x, weight, bias, said if eps is None else of_dtype(eps, x.dtype), center)


def channels(module: Block) -> tuple[int]:
    """How many it takes."""
    weight, body = parts(module).weight, _body(module)
    if weight is not None:
        return (len(weight),)
    shape = getattr(body, "normalized_shape", getattr(module, "normalized_shape", None))
    return (int(shape[-1]) if shape else _ANY_CHANNELS,)


WRAPPED = Layout(
    "layer norm",
    _why_not_wrapped,
    channels,
    forward,
    options=choices,
    covers=lambda m: m.children(),
)
PLAIN = Layout("layer norm", _why_not_plain, channels, forward, options=choices)

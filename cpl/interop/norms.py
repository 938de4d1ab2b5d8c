"""Layer norms over the channels of an image.

Sources of the layouts: Restormer, arXiv 2111.09881 (``body``); NAFNet, arXiv 2204.04676; ConvNeXt, arXiv 2201.03545.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from cpl.interop.epsilon import Epsilon, measured, of_dtype
from cpl.interop.structure import Block, Layout, Options, is_untouched, is_vector
from cpl_kernels import layer_norm2d

_RESTORMER_EPS = 1e-5


def _why_not_wrapped(module: Block) -> str | None:
    body = getattr(module, "body", None)
    if not (isinstance(body, nn.Module) and "Norm" in type(module).__name__ and is_vector(body, "weight")):
        return ""
    if len(list(module.children())) != 1 or set(dict(module.named_parameters())) - {
        "body.weight",
        "body.bias",
    }:
        return "it has more parts than body.weight and body.bias"
    return None


def _why_not_plain(module: Block) -> str | None:
    looks = (
        "LayerNorm" in type(module).__name__ and is_vector(module, "weight") and not list(module.children())
    )
    if not looks or type(module).forward is nn.LayerNorm.forward:
        return ""
    if set(dict(module.named_parameters())) - {"weight", "bias"}:
        return "it has more parameters than weight and bias"
    if getattr(module, "data_format", None) == "channels_last":
        return "its data_format is channels_last: it is over the last dimension, as torch's own"
    return None


def parts(module: Block) -> tuple[Tensor, Tensor | None, float]:
    """Weight [C], bias [C] or None, and the eps that an attribute names, or else Restormer's."""
    body = _body(module)
    eps = getattr(body, "eps", getattr(module, "eps", None))
    return body.weight, getattr(body, "bias", None), eps if isinstance(eps, float) else _RESTORMER_EPS


def _body(module: Block) -> Block:
    return getattr(module, "body", module)


def epsilon(module: Block) -> Epsilon | None:
    """What it adds to the variance, as measured; None for what :func:`parts` says, which may change later."""
    said = parts(module)[2]
    eps = measured(module, *_channels(module), said)
    return None if eps == said else eps


def _choices(module: Block) -> Iterable[Options]:
    """Without a bias Restormer's norm leaves the mean in; others do not."""
    eps, bias = epsilon(module), parts(module)[1]
    centers = (True,) if bias is not None else (False, True)
    return tuple({"center": center, "eps": eps} for center in centers)


def _forward(module: Block, x: Tensor, center: bool, eps: Epsilon | None) -> Tensor | None:
    body = _body(module)
    if body is not module and not is_untouched(body):
        return None
    weight, bias, said = parts(module)
    return layer_norm2d(x, weight, bias, said if eps is None else of_dtype(eps, x.dtype), center)


def _channels(module: Block) -> tuple[int]:
    return (len(parts(module)[0]),)


WRAPPED = Layout("layer norm", _why_not_wrapped, _channels, _forward, options=_choices)
PLAIN = Layout("layer norm", _why_not_plain, _channels, _forward, options=_choices)

"""How far several feature tensors are from one anchor, per image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cpl_kernels import backends, checks
from cpl_kernels.feature_distances import op as _op

__all__ = ["feature_distances"]


def feature_distances(
    anchor: Tensor | Sequence[Tensor],
    others: Tensor | Sequence[Tensor],
    p: int = 1,
    normalize: bool = False,
    layer_weights: Sequence[float] | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """The mean absolute or squared difference of K tensors from the anchor, for each image.

        d[k, b] = mean over all elements of |anchor[b] - others[k, b]|^p

    With lists, one entry per layer of a feature network, the result is the sum of the layers' distances, each
    times its weight. ``normalize=True`` first divides each channel vector (over dimension 1 of the
    anchor) by its L2 norm; a vector of norm 1e-12 or less, as often after a ReLU, becomes zero
    and passes no gradient. Where a difference is 0 the gradient of its absolute value is 0. The anchor
    is read once for all K; nothing but the inputs is kept for the backward.

    Args:
        anchor: [B, ...], or a list of such, at least one element per image and, with normalize, at
            least two dimensions; any strides; float32, bfloat16, float16 or float64.
        others: [K, B, ...] on the shape of anchor, or a list of as many. Its dtype may differ.
        p: 1 or 2.
        normalize: L2-normalise over channels first.
        layer_weights: one finite number per layer; None means 1 each.
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        [K, B] in float32 (float64 if an input is), also under autocast, which changes nothing.
        Differentiable with respect to anchor and others.

    Raises:
        TypeError: dtypes that are not floating; one argument a list and the other not.
        ValueError: shapes that do not fit, lists of different lengths or empty, a wrong p, tensors on
            several devices.
        RuntimeError: the named backend cannot serve this call.

    Source: the distance D of contrastive regularisation, Wu et al., "AECR-Net", arXiv 2104.09367,
    equation 5, with K negatives as in Wu et al., arXiv 2504.09973.
    """
    layers = _layers(anchor, others)
    weights = _weights(layer_weights, len(layers))
    if isinstance(p, bool) or p not in (1, 2):
        raise ValueError(f"p must be 1 (absolute) or 2 (squared), got {p!r}")
    for name, a, o in layers:
        _check(name, a, o, normalize)
    if any(checks.sizes(o)[:2] != checks.sizes(layers[0][2])[:2] for _, _, o in layers):
        shapes = [tuple(o.shape) for _, _, o in layers]
        raise ValueError(f"the layers of others must have the same K and B, got {shapes}")
    request = backends.requested("feature_distances", backend)
    total: Tensor | None = None
    for (_, a, o), weight in zip(layers, weights, strict=True):
        distance = _op.feature_distances(a, o, p, normalize, request)  # [K, B]
        distance = distance if weight == 1 else weight * distance
        total = distance if total is None else total + distance
    assert total is not None
    return total


def _layers(
    anchor: Tensor | Sequence[Tensor], others: Tensor | Sequence[Tensor]
) -> list[tuple[str, Tensor, Tensor]]:
    """(suffix for messages, anchor, others) per layer."""
    single = isinstance(anchor, Tensor)
    if single != isinstance(others, Tensor):
        raise TypeError(
            "anchor and others must both be tensors or both lists, one entry per layer, "
            f"got {type(anchor).__name__} and {type(others).__name__}"
        )
    if single:
        return [("", anchor, others)]  # type: ignore[list-item]
    anchors, rest = list(anchor), list(others)
    if len(anchors) != len(rest) or not anchors:
        raise ValueError(
            f"anchor and others must list the same layers, at least one, got {len(anchors)} and {len(rest)}"
        )
    return [(f"[{i}]", a, o) for i, (a, o) in enumerate(zip(anchors, rest, strict=True))]


def _weights(layer_weights: Sequence[float] | None, layers: int) -> list[float]:
    if layer_weights is None:
        return [1.0] * layers
    weights = [float(w) for w in layer_weights]
    if len(weights) != layers:
        raise ValueError(f"layer_weights must hold one number for each of {layers} layers, got {weights}")
    if not all(-float("inf") < w < float("inf") for w in weights):
        raise ValueError(f"layer_weights must be finite, got {weights}")
    return weights


def _check(layer: str, anchor: Tensor, others: Tensor, normalize: bool) -> None:
    checks.floating(f"anchor{layer}", anchor)
    checks.floating(f"others{layer}", others)
    if anchor.dim() < (2 if normalize else 1):
        layout = "[B, C, ...] to be normalised over channels" if normalize else "[B, ...]"
        raise ValueError(f"anchor{layer} must be {layout}, got shape {tuple(anchor.shape)}")
    if others.dim() != anchor.dim() + 1 or checks.sizes(others)[1:] != checks.sizes(anchor):
        raise ValueError(
            f"others{layer} must be [K, B, ...] on the shape [B, ...] = {tuple(anchor.shape)} of "
            f"anchor{layer}, got {tuple(others.shape)}; for K = 1 use others.unsqueeze(0)"
        )
    if 0 in checks.sizes(anchor)[1:]:
        raise ValueError(
            f"anchor{layer} must have at least one element per image, got shape {tuple(anchor.shape)}"
        )
    if anchor.device != others.device:
        checks.same_device(**{f"anchor{layer}": anchor, f"others{layer}": others})

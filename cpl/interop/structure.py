"""How a block of somebody else's model is described, and what may be done with its parts.

A layout names the parts that a block must have; no code of those projects is imported or copied. What is found is
still only a candidate: :mod:`cpl.interop.patch` compares both computations before it swaps anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cpl.nn.block import is_watched
from cpl.nn.pointwise import pointwise_conv

Block = Any  # an nn.Module whose parts are known by name only
Options = Mapping[str, Any]


def _itself(module: Block) -> list[Block]:
    return [module]


def _no_choice(_module: Block) -> Iterable[Options]:
    return ({},)


@dataclass(frozen=True)
class Layout:
    """One kind of block.

    Attributes:
        kind: what the report calls it.
        why_not: module -> None where it has this layout, else what is missing; "" where it does not even look like it.
        channels: module -> C of each image [B, C, H, W] that it takes.
        forward: our computation of (module, *images, **options); None where a part was changed since, so that the
            module's own forward must run.
        options: module -> what its structure leaves open, the likely first; the comparison decides.
        compared: module -> the parts to compare, each by itself, where that is not the module as a whole.
        dropouts: parts that ``forward`` calls too, and that may therefore drop values in training.
    """

    kind: str
    why_not: Callable[[Block], str | None]
    channels: Callable[[Block], tuple[int, ...]]
    forward: Callable[..., Tensor | None]
    options: Callable[[Block], Iterable[Options]] = _no_choice
    compared: Callable[[Block], list[Block]] = _itself
    dropouts: tuple[str, ...] = ()


class PatchedForward:
    """What a patched module calls instead of its class's forward; pickles and deep-copies with the module."""

    def __init__(self, module: nn.Module, layout: Layout, options: Options) -> None:
        self.module, self.forward, self.options = module, layout.forward, dict(options)
        self.images = len(layout.channels(layout.compared(module)[0]))
        self.before = vars(module).get("forward")

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        images = all(isinstance(x, Tensor) and x.dim() == 4 for x in inputs)
        if images and len(inputs) == self.images and not named:
            y = self.forward(self.module, *inputs, **self.options)
            if y is not None:
                return y
        # A call of another kind than was compared.
        if self.before is not None:
            return self.before(*inputs, **named)
        return type(self.module).forward(self.module, *inputs, **named)


# -- what a part must be


def is_vector(module: Block, name: str) -> bool:
    value = getattr(module, name, None)
    return isinstance(value, Tensor) and value.dim() == 1


def why_no_conv(module: Block, name: str, kernel: int, depthwise: bool) -> str | None:
    """What keeps attribute ``name`` from being a plain convolution that keeps the size of an image."""
    conv = getattr(module, name, None)
    if not isinstance(conv, nn.Conv2d):
        return f"it has no convolution {name}"
    same = (conv.kernel_size, conv.stride, conv.dilation, conv.padding, conv.padding_mode)
    if same != ((kernel, kernel), (1, 1), (1, 1), (kernel // 2, kernel // 2), "zeros"):
        return f"{name} is {conv}, not {kernel}x{kernel} with stride 1 and zero padding"
    if conv.groups != (conv.in_channels if depthwise else 1) or (
        depthwise and conv.out_channels != conv.in_channels
    ):
        return f"{name} has {conv.groups} groups for {conv.in_channels} to {conv.out_channels} channels"
    return None


# -- what may be passed over when our kernel computes what a part did


def is_untouched(part: nn.Module) -> bool:
    """Nobody watches it or has exchanged its forward (but for us)."""
    return not is_watched(part) and isinstance(vars(part).get("forward"), PatchedForward | None)


def is_plain(conv: nn.Module) -> bool:
    """A convolution that computes what torch's does (its weight may be parametrised) and is untouched."""
    kind = type(conv)
    own = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward  # type: ignore[attr-defined]
    return own and is_untouched(conv)


def apply(conv: Block, x: Tensor) -> Tensor:
    """A 1x1 convolution: ours where it is a plain one without a bias."""
    return pointwise_conv(x, conv.weight) if is_plain(conv) and conv.bias is None else conv(x)

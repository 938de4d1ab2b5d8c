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
from cpl_kernels import dwconv, pointwise_conv

Block = Any  # an nn.Module whose parts are known by name only
Options = Mapping[str, Any]
DEPTHWISE_SIZES = (3, 5, 7)  # what dwconv computes


def _itself(module: Block) -> list[Block]:
    return [module]


def _no_choice(_module: Block) -> Iterable[Options]:
    return ({},)


def _nothing(_module: Block) -> Iterable[nn.Module]:
    return ()


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
        covers: module -> the parts that ``forward`` computes itself, so that no report counts or names them again.
        ranks: module -> the number of dimensions of each input, where not all are images.
        certain: whether ``why_not`` knows what the module computes, from torch's own class: two images are enough then.
    """

    kind: str
    why_not: Callable[[Block], str | None]
    channels: Callable[[Block], tuple[int, ...]]
    forward: Callable[..., Tensor | None]
    options: Callable[[Block], Iterable[Options]] = _no_choice
    compared: Callable[[Block], list[Block]] = _itself
    dropouts: tuple[str, ...] = ()
    covers: Callable[[Block], Iterable[nn.Module]] = _nothing
    ranks: Callable[[Block], tuple[int, ...]] | None = None
    certain: bool = False


class PatchedForward:
    """What a patched module calls instead of its class's forward; pickles and deep-copies with the module."""

    def __init__(self, module: nn.Module, layout: Layout, options: Options) -> None:
        self.module, self.forward, self.options = module, layout.forward, dict(options)
        images = len(layout.channels(layout.compared(module)[0]))
        self.ranks = layout.ranks(module) if layout.ranks else (4,) * images
        self.before = vars(module).get("forward")

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if not named and len(inputs) == len(self.ranks) and self._are_images(inputs):
            y = self.forward(self.module, *inputs, **self.options)
            if y is not None:
                return y
        # A call of another kind than was compared.
        if self.before is not None:
            return self.before(*inputs, **named)
        return type(self.module).forward(self.module, *inputs, **named)

    def _are_images(self, inputs: tuple[Any, ...]) -> bool:
        """Or what else the layout takes."""
        return all(isinstance(x, Tensor) and x.dim() == n for x, n in zip(inputs, self.ranks, strict=True))


# -- what a part must be


def is_vector(module: Block, name: str) -> bool:
    value = getattr(module, name, None)
    return isinstance(value, Tensor) and value.dim() == 1


def why_no_conv(module: Block, name: str, kernel: int, depthwise: bool) -> str | None:
    """What keeps attribute ``name`` from being a plain convolution that keeps the size of an image."""
    conv = getattr(module, name, None)
    if not isinstance(conv, nn.Conv2d):
        return f"it has no convolution {name}"
    if not _keeps_size(conv, (kernel,)):
        return f"{name} is {describe(conv)}, not {kernel}x{kernel} with stride 1 and zero padding"
    if conv.groups != (conv.in_channels if depthwise else 1) or (
        depthwise and conv.out_channels != conv.in_channels
    ):
        return f"{name} has {conv.groups} groups for {conv.in_channels} to {conv.out_channels} channels"
    return None


def _keeps_size(conv: Block, kernels: tuple[int, ...]) -> bool:
    height, width = conv.kernel_size
    return (
        height == width
        and height in kernels
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding in ((height // 2, height // 2), "same")
        and conv.padding_mode == "zeros"
    )


def describe(conv: nn.Module) -> str:
    """In one line, also where it is parametrised."""
    return f"{type(conv).__name__}({conv.extra_repr()})"


def is_depthwise(conv: Block) -> bool:
    """A convolution, each channel by its own filter, that dwconv computes."""
    return conv.groups == conv.in_channels == conv.out_channels and _keeps_size(conv, DEPTHWISE_SIZES)


# -- what may be passed over when our kernel computes what a part did


def is_untouched(part: nn.Module) -> bool:
    """Nobody watches it or has exchanged its forward (but for us)."""
    return not is_watched(part) and isinstance(vars(part).get("forward"), PatchedForward | None)


def computes_as_torch(conv: nn.Module) -> bool:
    """A convolution whose class changes nothing about what nn.Conv2d computes; its weight may be parametrised."""
    kind = type(conv)
    return (
        isinstance(conv, nn.Conv2d)
        and kind.forward is nn.Conv2d.forward
        and kind._conv_forward is nn.Conv2d._conv_forward  # type: ignore[attr-defined]
    )


def is_plain(conv: nn.Module) -> bool:
    """A convolution that computes what torch's does and is untouched."""
    return computes_as_torch(conv) and is_untouched(conv)


def apply(conv: Block, x: Tensor) -> Tensor:
    """A 1x1 convolution: ours where it is a plain one without a bias, of a batch of images."""
    ours = x.dim() == 4 and is_plain(conv) and conv.bias is None
    return pointwise_conv(x, conv.weight) if ours else conv(x)


def convolve(conv: Block, x: Tensor) -> Tensor:
    """Any convolution: ours where it is a plain depthwise or 1x1 one, else its own code. A linear layer over channels
    is a 1x1 convolution."""
    if isinstance(conv, nn.Linear):
        return conv(x.movedim(1, -1)).movedim(-1, 1)
    if is_plain(conv) and is_depthwise(conv):
        return dwconv(x, conv.weight, conv.bias)
    return apply(conv, x) if is_pointwise(conv) else conv(x)


def is_pointwise(conv: Block) -> bool:
    """A 1x1 convolution."""
    return isinstance(conv, nn.Conv2d) and conv.groups == 1 and _keeps_size(conv, (1,))


def is_free(module: Block, names: Iterable[str]) -> bool:
    """Nobody watches the convolutions that ours computes of those parts: hooks on the others are called anyway."""
    parts = [getattr(module, name, None) for name in names]
    return all(
        is_untouched(part)
        for part in parts
        if part is not None and computes_as_torch(part) and is_depthwise(part)
    )

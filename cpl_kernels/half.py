"""What the two halves of a transformer block share: both ends, and the autograd node that keeps as much as asked.

A half is x + W2 f(W1 LN(x)) with 1x1 convolutions W1 and W2. Its room (attention_half, feed_forward_half) says what f
is. Forward and backward are written out in the functions of the ops, so that the half itself decides what it keeps:

    keep="all"       every map that the backward pass reads, except the outputs of the norm and of the gate where their
                     backward kernels recompute them on the way
    keep="products"  the output of W1; what lies between the two products is cheap and is computed again
    keep="input"     x alone; in a chain of halves, the x of the first one alone

Nothing is approximate: the same functions run again on the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from cpl_kernels import autocast, backends, checks, registration
from cpl_kernels.checkpointing import checkpointed
from cpl_kernels.layer_norm2d import layer_norm2d
from cpl_kernels.layer_norm2d import op as norm_op
from cpl_kernels.pointwise_conv import op as conv_op
from cpl_kernels.pointwise_conv import pointwise_conv

KEEP = ("all", "products", "input")
NARROW = (torch.float16, torch.bfloat16)
Tensors = tuple[Tensor | None, ...]
Needs = Sequence[bool]


class Normed(NamedTuple):
    """The maps of the first two steps; None for one that is not kept."""

    mean: Tensor | None = None  # [B, H, W]
    rstd: Tensor | None = None  # [B, H, W]
    y: Tensor | None = None  # [B, C, H, W], in the dtype that W1 multiplies
    hidden: Tensor | None = None  # [B, C', H, W]


class Half(ABC):
    """One half without its x; a room's subclass says what lies between the two products.

    Attributes:
        op: its name.
        tensors: weight and bias of the norm and of W1; what f has; weight and bias of W2. Without a weight of the norm
            there is no norm. It is emptied when the graph is made, because the graph keeps those that it needs.
        count: how many these are.
        eps, center: of the norm.
        residual: whether x is added.
        narrow: the dtype that autocast multiplies in, or None.
    """

    op: ClassVar[str]

    def __init__(
        self, tensors: Tensors, eps: float, center: bool, residual: bool, backend: str | None
    ) -> None:
        self.tensors, self.eps, self.center, self.residual = tensors, eps, center, residual
        self.count = len(tensors)
        self.request = backends.requested_of_parts(self.op, backend)
        self.narrow: torch.dtype | None = None

    # -- what a room says

    @abstractmethod
    def between(self, hidden: Tensor) -> Tensor:
        """f, by public functions."""

    @abstractmethod
    def in_strips(self, x: Tensor) -> Tensor | None:
        """The half without a graph, strip by strip; None if the whole is best computed at once."""

    @abstractmethod
    def maps(self, x: Tensor, tensors: Tensors) -> Tensors:
        """All maps from the norm to the input of W2, which is the last of them."""

    @abstractmethod
    def kept(self, x: Tensor, tensors: Tensors, maps: Tensors, keep: str, needs: Needs) -> Tensors:
        """``maps``, with None for those that the backward pass does without.

        ``needs``: which gradients are needed, that of x and then those of the tensors.
        """

    @abstractmethod
    def backward(
        self, dproduct: Tensor, x: Tensor | None, tensors: Tensors, maps: Tensors, needs: Needs
    ) -> Tensors:
        """The gradients of x, but for the residual's share, and of the tensors. ``dproduct``: that of W2's output."""

    # -- the beginning: norm and W1

    def plainly(self, x: Tensor) -> Tensor:
        """The half by public functions, each with a node of its own."""
        norm_weight, norm_bias, first, bias = self.tensors[:4]
        last, last_bias = self.tensors[-2:]
        conv = partial(pointwise_conv, backend=self.request["pointwise_conv"] or None)
        y = x
        if norm_weight is not None:
            request = self.request["layer_norm2d"] or None
            y = layer_norm2d(x, norm_weight, norm_bias, self.eps, self.center, backend=request)
        mixed = self.between(_product(conv, y, first, bias))
        return _product(conv, mixed, last, last_bias, x if self.residual else None)

    def normed(self, x: Tensor, tensors: Tensors) -> Normed:
        normed = self._norm(x, tensors)
        assert normed.y is not None
        return normed._replace(hidden=self.conv(normed.y, *tensors[2:4]))

    def _norm(self, x: Tensor, tensors: Tensors) -> Normed:
        weight, bias = tensors[:2]
        if weight is None:
            return Normed(y=self.cast(x))
        request = self.request["layer_norm2d"]
        y, mean, rstd = norm_op.layer_norm2d(x, weight, bias, self.eps, self.center, request)
        return Normed(mean, rstd, self.cast(y))

    def kept_of_normed(self, x: Tensor, normed: Normed, keep: str, needs: Needs) -> Normed:
        wanted = keep == "all" and needs[3] and normed.mean is not None
        if wanted and not backends.gives_output("layer_norm2d", self.request["layer_norm2d"], x):
            return normed
        return normed._replace(y=None)

    def backward_of_normed(
        self, dhidden: Tensor, x: Tensor, tensors: Tensors, normed: Normed, needs: Needs
    ) -> Tensors:
        """The gradients of x, of the norm's weight and bias, and of those of W1."""
        norm_weight, norm_bias, weight, _ = tensors[:4]
        assert weight is not None
        dx = dnorm = dnorm_bias = None
        y = self.cast(x) if norm_weight is None else normed.y
        if any(needs[:3]):
            dy = conv_op.gradient_of_x(dhidden, weight, self.request["pointwise_conv"]).to(x.dtype)
            request = self.request["layer_norm2d"]
            if norm_weight is None:
                dx = dy
            elif y is None and needs[3]:
                dx, dnorm, dnorm_bias, y = norm_op.layer_norm2d_backward_and_output(
                    dy, x, norm_weight, norm_bias, normed.mean, normed.rstd, self.eps, self.center, request
                )
                y = self.cast(y)
            else:
                dx, dnorm, dnorm_bias = norm_op.layer_norm2d_backward(
                    dy, x, norm_weight, normed.mean, normed.rstd, self.center, request
                )
            del dy
        elif y is None and needs[3]:
            y = self._norm(x, tensors).y
        return dx, dnorm, dnorm_bias, *self.gradients_of(tensors[2:4], dhidden, y, needs[3:5])

    # -- the end: W2 and the residual

    def close(self, x: Tensor, mixed: Tensor, tensors: Tensors) -> Tensor:
        weight, bias = tensors[-2:]
        return self.conv(mixed, weight, bias, x if self.residual else None)

    def gradient_of_mixed(self, dproduct: Tensor, tensors: Tensors) -> Tensor:
        return conv_op.gradient_of_x(dproduct, tensors[-2], self.request["pointwise_conv"])  # type: ignore[arg-type]

    # -- both

    def cast(self, x: Tensor) -> Tensor:
        """As autocast does to the factors of a product."""
        return x if self.narrow is None or x.dtype == torch.float64 else x.to(self.narrow)

    def cast_tensors(self, tensors: Tensors) -> Tensors:
        """Those of the two products, cast; once, for both passes."""
        if self.narrow is None:
            return tensors
        products = (2, len(tensors) - 2)
        return tuple(self.cast(t) if i in products and t is not None else t for i, t in enumerate(tensors))

    def conv(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        request = self.request["pointwise_conv"]

        def conv(
            x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
        ) -> Tensor:
            return conv_op.pointwise_conv(x, weight, bias, residual, request)

        return _product(conv, x, weight, bias, residual)

    def gradients_of(
        self, product: Tensors, dy: Tensor, x: Tensor | None, needs: Needs
    ) -> tuple[Tensor | None, Tensor | None]:
        """Those of a product's weight and bias (``product``)."""
        weight, bias = product
        assert weight is not None
        need_weight, need_bias = needs[0], needs[1] and bias is not None
        if not (need_weight or need_bias):
            return None, None
        if x is None:  # for a bias alone, whose gradient is a sum over dy
            x = dy.new_empty(1).expand(dy.shape[0], weight.shape[1], *dy.shape[2:])
        request = self.request["pointwise_conv"]
        _, dweight, dbias = conv_op.pointwise_conv_backward(
            dy, x, weight, False, need_weight, need_bias, request
        )
        return dweight if need_weight else None, dbias if need_bias else None


def _product(
    conv: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None = None,
) -> Tensor:
    """A 1x1 convolution with what is added to it; in 16 bits afterwards, because a product that rounds the whole sum
    once runs in float32."""
    if not (x.dtype in NARROW or autocast.active(x)):
        if residual is not None and residual.dtype != x.dtype:
            return residual + conv(x, weight, bias)
        return conv(x, weight, bias, residual)
    y = conv(x, weight)
    if bias is not None:
        y = y + bias[:, None, None].to(y.dtype)
    return y if residual is None else residual + y


def ranked(**given: tuple[Any, str]) -> tuple[Tensor, ...]:
    """The tensors, of which each has as many dimensions as its shape in letters."""
    for name, (value, letters) in given.items():
        checks.floating(name, value)
        checks.rank(name, value, letters)
    return tuple(value for value, _ in given.values())


def checked(
    x: Tensor,
    keep: str,
    eps: float,
    given: Mapping[str, Tensor | None],
    wanted: Mapping[str, tuple[str, tuple[int, ...], bool]],
) -> Tensors:
    """The tensors of a half in the order of ``wanted``: name -> its shape in letters and in numbers, and whether it
    must be given.

    Raises:
        TypeError, ValueError: one is missing, unknown, or not as wanted; ``keep`` or ``eps`` is wrong.
    """
    unknown = [name for name in given if name not in wanted]
    if unknown:
        raise TypeError(f"the tensors of a half must be among {', '.join(wanted)}, got {', '.join(unknown)}")
    found: list[Tensor | None] = []
    for name, (letters, shape, needed) in wanted.items():
        value = given.get(name)
        found.append(value)
        if value is not None or needed:
            checks.floating(name, value)  # type: ignore[arg-type]
            checks.shape(name, value, shape, letters)  # type: ignore[arg-type]
    if given.get("norm_bias") is not None and given.get("norm_weight") is None:
        raise ValueError(
            "norm_bias must be None without a norm_weight, got a tensor. Give a norm_weight, of ones if need be."
        )
    checks.same_device(x=x, **given)
    checks.one_of("keep", keep, KEEP)
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    return tuple(found)


def run(halves: Sequence[Half], x: Tensor, keep: str) -> Tensor:
    """The halves one after the other."""
    given = (x, *(t for half in halves for t in half.tensors if t is not None))
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if registration.transformed(given):
        return _watched(halves, x, keep if learns else "all")
    for half in halves:
        half.narrow = torch.get_autocast_dtype(x.device.type) if autocast.active(x) else None
    if not learns:
        for half in halves:
            y = half.in_strips(x)
            x = half.plainly(x) if y is None else y
        return x
    if keep == "input":
        return _Node.apply(tuple(halves), keep, x, *(t for half in halves for t in half.tensors))
    for half in halves:
        x = _Node.apply((half,), keep, x, *half.tensors)
    return x


def _watched(halves: Sequence[Half], x: Tensor, keep: str) -> Tensor:
    """By public functions, where a compiler, torch.func or the like looks on.

    A compiler chooses itself what of its own code to compute again, except with keep="input".
    """

    def chain(x: Tensor) -> Tensor:
        for half in halves:
            x = half.plainly(x)
        return x

    compiling = torch.compiler.is_compiling()
    return checkpointed(chain, x) if keep == "input" and compiling else chain(x)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, halves: tuple[Half, ...], keep: str, x: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.halves, ctx.dtypes = halves, [None if t is None else t.dtype for t in (x, *tensors)]
        cast: list[Tensor | None] = []
        y = before = x
        maps: Tensors = ()
        for half, own in zip(halves, _split(halves, tensors), strict=True):
            own = half.cast_tensors(own)
            cast += own
            maps = ()  # those of the half before are not needed any more
            maps = half.maps(y, own)
            before, y = y, half.close(y, maps[-1], own)  # type: ignore[arg-type]
        ctx.product = maps[-1].dtype  # type: ignore[union-attr]
        if keep == "input":
            ctx.save_for_backward(x, *cast)
        else:  # one half
            needs = ctx.needs_input_grad[2:]
            kept = halves[0].kept(before, tuple(cast), maps, keep, needs)
            # If W2 alone learns, its input is kept, which is smaller than the maps that it is computed from.
            ctx.save_for_backward(before if any(needs[:-2]) else None, *cast, *kept)
        for half in halves:
            half.tensors = ()
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a graph of the gradients is wanted
            return None, None, *_Backward.apply(ctx, dy, *ctx.saved_tensors)
        return None, None, *_found(ctx, dy, list(ctx.saved_tensors))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(_no_derivative(ctx.halves, "no derivative in forward mode"))


class _Backward(torch.autograd.Function):
    """The backward pass, whose own derivative is an error rather than a wrong answer."""

    @staticmethod
    def forward(own: FunctionCtx, ctx: Any, dy: Tensor, *saved: Tensor | None) -> Tensors:
        own.halves = ctx.halves  # type: ignore[attr-defined]
        return _found(ctx, dy, list(saved))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(_no_derivative(ctx.halves, "no second derivative"))

    jvp = backward


def _found(ctx: Any, dy: Tensor, saved: list[Tensor | None]) -> Tensors:
    """The gradients that are needed, each in the dtype of its tensor."""
    needs = ctx.needs_input_grad[2:]
    found = _gradients(ctx.halves, ctx.product, dy, saved, needs)
    return tuple(
        g.to(dtype) if need and g is not None else None
        for g, dtype, need in zip(found, ctx.dtypes, needs, strict=True)
    )


def _gradients(
    halves: Sequence[Half], product: torch.dtype, dy: Tensor, saved: list[Tensor | None], needs: Needs
) -> list[Tensor | None]:
    """The gradients of x and of all tensors.

    If no map was kept, the maps are computed again first, without the last product.

    Args:
        saved: x, the tensors and the maps. It is emptied, so that no map lives longer than it is needed.
    """
    count = 1 + sum(half.count for half in halves)
    inputs, each = [saved[0]], _split(halves, tuple(saved[1:count]))
    every = [tuple(saved[count:])]
    saved.clear()
    if not every[0]:
        every = []
        for half, own in zip(halves, each, strict=True):
            every.append(half.maps(inputs[-1], own))  # type: ignore[arg-type]
            if len(every) < len(halves):
                inputs.append(half.close(inputs[-1], every[-1][-1], own))  # type: ignore[arg-type]
    wanted: list[Needs] = []
    upstream = needs[0]
    for own_needs in _split(halves, tuple(needs[1:])):
        wanted.append((upstream, *own_needs))
        upstream = upstream or any(own_needs)
    found: list[Tensor | None] = []
    into: Tensor | None = dy
    for half, own, own_needs in reversed(list(zip(halves, each, wanted, strict=True))):
        if not any(own_needs) or into is None:
            found = [*(None for _ in own), *found]
            continue
        dx, *others = half.backward(into.to(product), inputs.pop(), own, every.pop(), own_needs)
        found = [*others, *found]
        into = dx
        if half.residual and own_needs[0]:
            into = dy if dx is None else dx + dy.to(dx.dtype)
        dy = into
    return [into, *found]


def _split(halves: Sequence[Half], values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    parts, at = [], 0
    for half in halves:
        parts.append(values[at : at + half.count])
        at += half.count
    return parts


def _no_derivative(halves: Sequence[Half], what: str) -> str:
    names = " and ".join(half.op for half in halves)
    imports = "; ".join(f"from cpl_kernels.{half.op}.reference import {half.op}" for half in halves)
    has = "has" if len(halves) == 1 else "have"
    return f"{names} {has} {what}. Call the plain PyTorch definition instead: {imports}"

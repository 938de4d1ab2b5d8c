"""A step of a network: as published or patched, in fp32 or exactly.

Steps of one network can be compared: they draw the same random numbers, and what sorts, takes the k largest, or is zero
below zero, can keep the choice of the first step. Else rounding decides which of two nearly equal values comes first,
and all that follows differs.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.networks.catalogue import Network
from benchmarks.networks.loading import SEED


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """The same random numbers in every run, whatever its dtype."""
    own = torch.randn_like
    torch.manual_seed(SEED)
    torch.randn_like = lambda x, **_: torch.randn(x.shape, dtype=torch.float32).to(x)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn_like = own


class SaysFloat32(TorchFunctionMode):
    """A tensor of fp64 that is asked for its dtype says fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        asked = func == torch.Tensor.dtype.__get__  # each access makes a new one, so not "is"
        return torch.float32 if asked and found is torch.float64 else found


@contextlib.contextmanager
def in_float64(dtype_matters: bool) -> Iterator[None]:
    """What a network makes itself is fp64 too, and ``.float()`` does not round."""
    own, default = Tensor.float, torch.get_default_dtype()
    Tensor.float = Tensor.double  # type: ignore[assignment,method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        with SaysFloat32() if dtype_matters else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(default)
        Tensor.float = own  # type: ignore[method-assign]


class Chosen(NamedTuple):
    values: Tensor
    indices: Tensor


class Choices(TorchFunctionMode):
    """The orders, the k largest and the signs at a ReLU that the first run finds hold in the next ones.

    The first of a shape takes the first order of that shape; a run with fewer of them, because a kernel of ours makes
    the choice itself, must leave all of a shape out.
    """

    SORTS = (torch.sort, torch.Tensor.sort)
    TOPS = (torch.topk, torch.Tensor.topk)
    RELUS = (F.relu, torch.relu, torch.Tensor.relu)

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[tuple[Any, ...], list[Tensor]] = {}
        self.at: dict[tuple[Any, ...], int] = {}

    def __enter__(self) -> Any:
        self.at = dict.fromkeys(self.found, 0)
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.RELUS:
            key = ("relu", tuple(args[0].shape))
            return self._held(key, lambda: func(*args, **kwargs), lambda y: y > 0, partial(_where, args[0]))
        if func not in self.SORTS + self.TOPS:
            return func(*args, **kwargs)
        names = ("x", "dim", "descending") if func in self.SORTS else ("x", "k", "dim", "largest", "sorted")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x, dim = next(iter(given.values())), given.get("dim", -1)
        key = (func.__name__, tuple(x.shape), *(v for _, v in sorted(given.items()) if isinstance(v, int)))
        again = partial(_gathered, x, dim)
        return self._held(key, lambda: func(*args, **kwargs), lambda chosen: chosen[1], again)

    def _held(
        self,
        key: tuple[Any, ...],
        compute: Callable[[], Any],
        choice_of: Callable[[Any], Tensor],
        again: Callable[[Tensor], Any],
    ) -> Any:
        """What is computed, its choice noted; or, from the second run on, what the choice noted then gives."""
        if key not in self.at:
            found = compute()
            self.found.setdefault(key, []).append(choice_of(found))
            return found
        if self.at[key] == len(self.found[key]):
            return compute()  # more of this shape than in the first run
        self.at[key] += 1
        return again(self.found[key][self.at[key] - 1])


def _where(x: Tensor, positive: Tensor) -> Tensor:
    return x * positive


def _gathered(x: Tensor, dim: int, order: Tensor) -> Chosen:
    # gather keeps x for its backward pass, sort does not: who then writes into x (Histoformer) must not meet it.
    return Chosen(x.clone().gather(dim, order), order)


@dataclass
class Inputs:
    image: Tensor
    others: tuple[Any, ...]

    def to(self, dtype: torch.dtype) -> Inputs:
        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        return Inputs(cast(self.image), tuple(map(cast, self.others)))


def inputs(network: Network, side: int) -> Inputs:
    image = torch.rand(1, network.channels, side, side, generator=torch.Generator().manual_seed(SEED))
    return Inputs(image, network.others(image))


def shape(given: Inputs) -> str:
    return "x".join(map(str, given.image.shape))


def forward(model: nn.Module, given: Inputs) -> Tensor:
    """Of several outputs, the last."""
    with repeatable():
        y = model(given.image, *given.others)
    return y[-1] if isinstance(y, list | tuple) else y


def step(model: nn.Module, given: Inputs, choices: Choices | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of the image and of every parameter that has one."""
    model.zero_grad(set_to_none=True)
    leaf = Inputs(given.image.clone().requires_grad_(), given.others)
    with choices or contextlib.nullcontext():
        y = forward(model, leaf)
    y.backward(cotangent(y))
    found = {"the image": leaf.image.grad, **{name: p.grad for name, p in model.named_parameters()}}
    return y.detach(), {name: grad for name, grad in found.items() if grad is not None}


def cotangent(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float32).to(y)


def exact(
    network: Network, model: nn.Module, given: Inputs, choices: Choices
) -> tuple[Tensor, dict[str, Tensor]]:
    """The published network's step in fp64."""
    with in_float64(network.dtype_matters):
        return step(copy.deepcopy(model).double(), given.to(torch.float64), choices)

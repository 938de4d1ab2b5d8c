"""What torch.autocast means for these ops, in one place.

An op of torch.library is no entry in autocast's own lists, so each public function says what it
does: it calls ``cast`` on the inputs that convolution and matmul would also see in half precision,
``widen`` on those that must stay in fp32, or neither. The implementation itself then runs with autocast
off: a matmul inside it must accumulate in fp32, whatever the caller's context.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_DEVICES = ("cpu", "cuda")


def active(value: Tensor) -> bool:
    """Whether autocast is on for the device of ``value`` and would touch a tensor of its dtype."""
    device = value.device.type
    return device in _DEVICES and value.dtype != torch.float64 and torch.is_autocast_enabled(device)


def cast(value: Tensor) -> Tensor:
    """``value`` in the autocast dtype where autocast is on; float64 is left alone, as torch does."""
    return value.to(torch.get_autocast_dtype(value.device.type)) if active(value) else value


def widen(value: Tensor) -> Tensor:
    """``value`` in float32 where autocast is on; float64 is left alone."""
    return value.float() if active(value) else value


def off(impl: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an op's implementation so that it runs with autocast off.

    The autocast dispatch key stays active below an op that has no autocast kernel: without this, a
    matmul within an implementation would run in bf16 although its inputs were widened to fp32.
    """

    @functools.wraps(impl)
    def run(*args: Any) -> Any:
        cpu, cuda = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        if not (cpu or cuda):
            return impl(*args)
        # Not the context manager: two of them cost six times as much as this, in every call.
        torch.set_autocast_enabled("cpu", False)
        torch.set_autocast_enabled("cuda", False)
        try:
            return impl(*args)
        finally:
            torch.set_autocast_enabled("cpu", cpu)
            torch.set_autocast_enabled("cuda", cuda)

    return run


def wide(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype that an op accumulates in: float32, or float64 where an input is float64."""
    return functools.reduce(torch.promote_types, dtypes, torch.float32)

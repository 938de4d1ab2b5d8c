"""Registers an op with torch: schema, implementation, fake and autograd, in one call.

Every op is two dispatcher ops, ``name`` and ``name_backward``. Both are opaque to torch.compile
(so fullgraph=True holds) and both take the requested backend as their last argument, so the
backward of a call runs on the backend that ran its forward.

``torch.library.custom_op`` would be shorter, but costs 16 to 20 microseconds a call where
``Library.impl`` costs 3.5; at the sizes of the prompt ops that is most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import FunctionCtx

from cpl_kernels import autocast

LIBRARY = torch.library.Library("cpl_kernels", "DEF")
NAMESPACE = torch.ops.cpl_kernels

Impl = Callable[..., Any]


def _requires_grad(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


def register(name: str, schema: str, *, impl: Impl, fake: Impl) -> None:
    """Register an op without a derivative (``schema``: the part after the name). It runs with autocast off."""
    LIBRARY.define(name + schema, tags=[torch.Tag.pt2_compliant_tag])
    LIBRARY.impl(name, autocast.off(impl), "CompositeExplicitAutograd")
    torch.library.register_fake(f"cpl_kernels::{name}", fake, lib=LIBRARY)


def register_differentiable(
    name: str,
    schema: str,
    *,
    impl: Impl,
    fake: Impl,
    backward_schema: str,
    backward_impl: Impl,
    backward_fake: Impl,
    save: Callable[[FunctionCtx, tuple[Any, ...], Any], None],
    grads: Callable[..., tuple[Any, ...]],
) -> None:
    """Register ``name`` and ``name_backward``.

    Args:
        save: ``save(ctx, inputs, output)`` keeps what the backward needs on ``ctx``.
        grads: ``grads(ctx, *output_grads)`` calls ``name_backward`` and returns one gradient (or
            None) per input of ``name``.
    """
    register(name, schema, impl=impl, fake=fake)
    register(f"{name}_backward", backward_schema, impl=backward_impl, fake=backward_fake)
    forward_op = getattr(NAMESPACE, name).default
    backward_op = getattr(NAMESPACE, f"{name}_backward").default

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = forward_op(*args)
            ctx.set_materialize_grads(False)  # a None gradient costs nothing; zeros cost a pass
            save(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *output_grads: Any) -> Any:
            if all(g is None for g in output_grads):
                return (None,) * len(ctx.needs_input_grad)
            return grads(ctx, *output_grads)

    class Backward(torch.autograd.Function):
        """The backward op, whose own derivative is an error rather than a wrong answer."""

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return backward_op(*args)

        @staticmethod
        def backward(ctx: Any, *output_grads: Any) -> Any:
            raise RuntimeError(
                f"{name} has no second derivative. For one, call its plain PyTorch definition "
                f"instead: from cpl_kernels.{name}.reference import {name}"
            )

    def through_autograd(function: type[torch.autograd.Function], op: Any) -> Impl:
        def kernel(*args: Any) -> Any:
            if _requires_grad(args):
                return function.apply(*args)
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)

        return kernel

    LIBRARY.impl(name, through_autograd(Forward, forward_op), "Autograd")
    LIBRARY.impl(f"{name}_backward", through_autograd(Backward, backward_op), "Autograd")

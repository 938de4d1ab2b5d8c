"""Registers an op with torch: schema, implementation, fake and autograd, in one call.

Every op is two dispatcher ops, ``name`` and ``name_backward``. Both are opaque to torch.compile
(so fullgraph=True holds) and both take the requested backend as their last argument, so the
backward of a call runs on the backend that ran its forward.

What a caller gets is not the dispatcher op but a function beside it. Where nobody watches the
dispatcher (no compilation, tracing, functorch transform, dispatch mode, profiler or tensor subclass), it calls
the implementation directly: two passes through the dispatcher, each of them into Python and
back, cost more than everything else about a call, and at the sizes of the prompt ops more than the kernel.
Everywhere else it calls the dispatcher op. Both give the same results.

torch.func works on the dispatcher op: ``grad``, ``vjp`` and ``jacrev`` by its autograd kernel, ``vmap`` by a rule
that is the same for every op (mapping.py). A derivative in forward mode and a second one are errors, never zeros.

``torch.library.custom_op`` would be shorter, but costs 16 to 20 microseconds a call where
``Library.impl`` costs 3.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

from cpl_kernels import autocast
from cpl_kernels.mapping import Rows, rule

LIBRARY = torch.library.Library("cpl_kernels", "DEF")
NAMESPACE = torch.ops.cpl_kernels

Impl = Callable[..., Any]

_PLAIN = (Tensor, torch.nn.Parameter)  # subclasses have ways of their own to be called


def _watched(args: tuple[Any, ...]) -> bool:
    """Whether this call must go through the dispatcher, because someone there may want to see it."""
    return torch.autograd.profiler._is_profiler_enabled or transformed(args)  # a profile names the ops


def transformed(args: tuple[Any, ...]) -> bool:
    """Whether this call is not, or not only, to be computed: it is compiled, traced, differentiated by torch.func..."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ):
        return True
    for a in args:  # noqa: SIM110 -- any() takes twice as long on so few
        if isinstance(a, Tensor) and (type(a) not in _PLAIN or not (a.is_cpu or a.is_cuda)):
            return True
    return False


def rewritten() -> bool:
    """Whether torch.func or torch.jit.trace look at each call: a function of several calls must make them plainly.

    Neither works with an autograd function of other ops, or with a loop over parts of an image. torch.compile does not
    count: it sees through both.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None
    )


def _requires_grad(args: tuple[Any, ...]) -> bool:
    if not torch.is_grad_enabled():
        return False
    for a in args:  # noqa: SIM110
        if isinstance(a, Tensor) and a.requires_grad:
            return True
    return False


def register(name: str, schema: str, *, impl: Impl, fake: Impl) -> Impl:
    """Register an op without a derivative (``schema``: the part after the name). It runs with autocast off.

    Returns:
        What to call: takes the op's arguments, by position.
    """
    impl = autocast.off(impl)
    _define(name, schema, impl, fake)

    def call(*args: Any) -> Any:
        return getattr(NAMESPACE, name)(*args) if _watched(args) else impl(*args)

    torch.library.register_vmap(f"cpl_kernels::{name}", rule(call, fake), lib=LIBRARY)
    return call


def register_composed(name: str, schema: str, impl: Impl) -> Impl:
    """Register an op that is other ops of these one after the other; its derivative is theirs.

    Returns:
        What to call: takes the op's arguments, by position.
    """
    LIBRARY.define(name + schema, tags=[torch.Tag.pt2_compliant_tag])
    LIBRARY.impl(name, impl, "CompositeImplicitAutograd")
    return getattr(NAMESPACE, name)


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
    rows: Rows | None = None,
    backward_rows: Rows | None = None,
) -> tuple[Impl, Impl]:
    """Register ``name`` and ``name_backward``.

    Args:
        save: ``save(ctx, inputs, output)`` keeps what the backward needs on ``ctx``.
        grads: ``grads(ctx, *output_grads)`` calls the backward and returns one gradient (or
            None) per input of ``name``.
        rows, backward_rows: of the two ops, where every result has rows; else vmap calls the op once per entry.

    Returns:
        What to call for the two: each takes its op's arguments, by position.
    """

    way_out = f"call its plain PyTorch definition instead: from cpl_kernels.{name}.reference import {name}"

    def forward_through(run: Impl) -> type[torch.autograd.Function]:
        class Forward(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                output = run(*args)
                ctx.set_materialize_grads(False)  # a None gradient costs nothing; zeros cost a pass
                save(ctx, args, output)
                return output

            @staticmethod
            def backward(ctx: Any, *output_grads: Any) -> Any:
                if all(g is None for g in output_grads):
                    return (None,) * len(ctx.needs_input_grad)
                return grads(ctx, *output_grads)

            @staticmethod
            def jvp(ctx: Any, *tangents: Any) -> Any:
                raise RuntimeError(
                    f"{name} has no derivative in forward mode (jvp, jacfwd, hessian). Use reverse mode (grad, vjp, "
                    f"jacrev), or {way_out}"
                )

        return Forward

    def backward_through(run: Impl) -> type[torch.autograd.Function]:
        class Backward(torch.autograd.Function):
            """The backward op, whose own derivative is an error rather than a wrong answer."""

            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                return run(*args)

            @staticmethod
            def backward(ctx: Any, *output_grads: Any) -> Any:
                raise RuntimeError(f"{name} has no second derivative. For one, {way_out}")

            @staticmethod
            def jvp(ctx: Any, *tangents: Any) -> Any:
                raise RuntimeError(f"{name} has no second derivative. For one, {way_out}")

        return Backward

    def callable_as(
        op_name: str,
        op_schema: str,
        op_impl: Impl,
        op_fake: Impl,
        through: Callable[[Impl], type[torch.autograd.Function]],
        op_rows: Rows | None,
    ) -> Impl:
        op_impl = autocast.off(op_impl)
        op = _define(op_name, op_schema, op_impl, op_fake)

        def below_autograd(*args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)

        def below_level(*args: Any) -> Any:
            with (
                torch.enable_grad(),
                forward_ad._set_fwd_grad_enabled(True),
            ):  # off in forward; the next level's are on
                return below_autograd(*args)

        direct, dispatched, level = (
            through(op_impl).apply,
            through(below_autograd).apply,
            through(below_level),
        )

        def autograd(*args: Any) -> Any:
            if not (_requires_grad(args) or forward_ad._current_level >= 0):
                return below_autograd(*args)
            if not torch._C._are_functorch_transforms_active():
                return dispatched(*args)
            # The dispatcher has brought the call to one level of torch.func, and takes it to the next one below
            # autograd. Function.apply, which stands above the dispatcher, would begin with all levels again.
            with enable_single_level_autograd_function():
                return super(torch.autograd.Function, level).apply(*args)  # type: ignore[misc]

        LIBRARY.impl(op_name, autograd, "Autograd")

        def call(*args: Any) -> Any:
            if _watched(args):
                return getattr(NAMESPACE, op_name)(*args)
            return direct(*args) if _requires_grad(args) else op_impl(*args)

        torch.library.register_vmap(f"cpl_kernels::{op_name}", rule(call, op_fake, op_rows), lib=LIBRARY)
        return call

    return (
        callable_as(name, schema, impl, fake, forward_through, rows),
        callable_as(
            f"{name}_backward",
            backward_schema,
            backward_impl,
            backward_fake,
            backward_through,
            backward_rows,
        ),
    )


def _define(name: str, schema: str, impl: Impl, fake: Impl) -> Any:
    LIBRARY.define(name + schema, tags=[torch.Tag.pt2_compliant_tag])
    LIBRARY.impl(name, impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cpl_kernels::{name}", fake, lib=LIBRARY)
    return getattr(NAMESPACE, name).default

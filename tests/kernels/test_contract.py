"""What every op promises beside its values, on every backend: one graph, autocast, repeatable bits, clear errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from cpl_kernels import backends, registration
from tests.kernels import spec
from tests.kernels.harness import assert_same_bits, run
from tests.kernels.spec import CAST, WIDEN, Bad, Case, OpSpec
from tests.kernels.targets import Target, gradients_for, layouts, once, over


def on_cpu(op: OpSpec, target: Target) -> bool:
    return target.device == "cpu"


def in_torch(op: OpSpec, target: Target) -> bool:
    """Compilers and checkers copy tensors and call the op many times; a process per call is none of their business."""
    return on_cpu(op, target) and not target.emulated


def differentiable(op: OpSpec, target: Target) -> bool:
    return on_cpu(op, target) and bool(op.differentiable)


@pytest.mark.usefixtures("threads")
@over(
    lambda op: op.small,
    keep=lambda op, t: in_torch(op, t) and differentiable(op, t) and t.computes(op, torch.float64),
    short=lambda op, t, case: case == op.small[0],
)
def test_gradcheck(op: OpSpec, target: Target, case: Case) -> None:
    torch.set_num_threads(1)  # hundreds of calls on a few elements
    inputs = case.inputs(torch.float64)
    wanted = op.wanted(inputs)

    def of_wanted(*values: Tensor) -> tuple[Tensor, ...]:
        outs = case.call(**{**inputs, **dict(zip(wanted, values, strict=True))}, backend=target.backend)
        outs = (outs,) if isinstance(outs, Tensor) else outs
        return tuple(o for o in outs if o.is_floating_point())

    assert torch.autograd.gradcheck(of_wanted, [inputs[name].requires_grad_() for name in wanted])


def _checked_layouts(op: OpSpec, case: Case) -> list[tuple[str, str, bool]]:
    """Those that fakes tell apart, and of the others one; a check takes half a second."""
    return [(n, n, n not in ("contiguous", "channels_last", "cropped")) for n in layouts(op)]


@over(lambda op: op.small, keep=in_torch, also=("layout", _checked_layouts), short=once)
def test_opcheck(op: OpSpec, target: Target, case: Case, layout: str) -> None:
    """Schema, fake (dtypes, shapes, strides) and autograd of every dispatcher op that a call reaches."""
    inputs = case.inputs(torch.float32, layout)
    for name in op.wanted(inputs):
        inputs[name] = inputs[name].detach().requires_grad_()
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    def recorded(packet: Any) -> Callable[..., Any]:
        def record(*args: Any) -> Any:
            calls.append((packet.default, args))
            return packet(*args)

        return record

    namespace = torch.ops.cpl_kernels
    names = backends.COMPOSED.get(op.name, (op.name,))
    with (
        mock.patch.object(registration, "_watched", return_value=True),  # by way of the dispatcher
        mock.patch.multiple(namespace, **{name: recorded(getattr(namespace, name)) for name in names}),
    ):
        case.call(**inputs, backend=target.backend)
    assert calls
    for function, args in calls:
        leaves = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args]
        torch.library.opcheck(function, tuple(leaves))


def _doubled(case: Case, target: Target) -> Callable[..., Any]:
    """The op between others, so that it is not the whole graph."""

    def function(**inputs: Tensor) -> Any:
        doubled = {n: 2 * x if x.is_floating_point() else x for n, x in inputs.items()}
        outs = case.call(**doubled, backend=target.backend)
        return -outs if isinstance(outs, Tensor) else tuple(-o for o in outs)

    return function


def _compare_compiled(op: OpSpec, target: Target, case: Case, **options: Any) -> None:
    inputs = case.inputs(torch.float32)
    wanted, dys = op.wanted(inputs), gradients_for(op, case, inputs, torch.float32)
    function = _doubled(case, target)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, **options)
    got = run(compiled, inputs, tuple(op.outputs), wanted, dys)
    assert_same_bits(got, run(function, inputs, tuple(op.outputs), wanted, dys), f"{case.name} {options}")


@over(lambda op: op.small, keep=in_torch, short=once)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_to_one_graph(op: OpSpec, target: Target, case: Case, dynamic: bool) -> None:
    """Forward and backward, with the bits of eager mode; also when the sizes are symbols."""
    _compare_compiled(op, target, case, backend="aot_eager", dynamic=dynamic)


# One op of several results, one with an index, one of two ops and one of four: Inductor is torch's.
_INDUCTOR = ("layer_norm2d", "route_topk", "sparse_prompt", "attention_half")


@over(keep=lambda op, target: target.name == "reference", short=lambda op, target, case: op.name in _INDUCTOR)
def test_compiles_with_inductor(op: OpSpec, target: Target) -> None:
    """The default backend of the op, as a user has it."""
    _compare_compiled(op, Target("default", None), op.small[0], backend="inductor")


@over(lambda op: op.small, keep=on_cpu)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast(op: OpSpec, target: Target, case: Case, dtype: torch.dtype) -> None:
    """The bits of a call outside autocast on inputs treated as declared; gradients in the inputs' own dtypes."""
    if not target.computes(op, dtype):
        dtype = torch.float16  # nothing is skipped: 16 bits of the other kind instead
    inputs = case.inputs(dtype)

    def treated(**given: Tensor) -> Any:
        if case.calls is not None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return case.calls(**given, backend=target.backend)

        def treat(name: str, x: Tensor) -> Tensor:
            if x.dtype == torch.float64 or not x.is_floating_point():
                return x
            how = op.autocast.get(name)
            return x.bfloat16() if how == CAST else x.float() if how == WIDEN else x

        return case.call(**{n: treat(n, x) for n, x in given.items()}, backend=target.backend)

    def under_autocast(**given: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return case.call(**given, backend=target.backend)

    outputs, wanted = tuple(op.outputs), op.wanted(inputs)
    with target.serving(op.name):
        outs = run(treated, inputs, outputs)
        dys = [torch.ones_like(o) for o in outs.values() if o.is_floating_point()]
        expected = run(treated, inputs, outputs, wanted, dys)
        got = run(under_autocast, inputs, outputs, wanted, dys)
    assert all(got[f"gradient of {n}"].dtype == inputs[n].dtype for n in wanted)
    for name in [f"gradient of {n}" for n in op.near_in_autocast if n in wanted]:
        gold = expected.pop(name)
        assert (got.pop(name) - gold).abs().max() <= torch.finfo(torch.bfloat16).eps * gold.abs().max(), name
    assert_same_bits(got, expected)


@over(lambda op: op.small, keep=differentiable)
def test_gradients_do_not_depend_on_which_are_asked_for(op: OpSpec, target: Target, case: Case) -> None:
    inputs = case.inputs(torch.float32)
    every, dys = op.wanted(inputs), gradients_for(op, case, inputs, torch.float32)
    full = target.run(op, case, inputs, every, dys)
    for some in itertools.product([True, False], repeat=len(every)):
        wanted = [name for name, want in zip(every, some, strict=True) if want]
        got = target.run(op, case, inputs, wanted, dys)
        assert_same_bits(got, {name: full[name] for name in got}, f"{wanted} of {every}")
    with torch.no_grad():
        assert_same_bits(
            target.run(op, case, inputs), {name: full[name] for name in op.outputs}, "without gradients"
        )


@over(lambda op: (op.large,), keep=lambda op, target: not target.emulated)  # the order test repeats, and more
def test_same_bits_every_time(op: OpSpec, target: Target, case: Case) -> None:
    once, again = (_run_large(op, target, case) for _ in range(2))
    assert_same_bits(once, again)


def _run_large(
    op: OpSpec, target: Target, case: Case, dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> dict[str, Tensor]:
    inputs = case.inputs(dtype, layout)
    dys = gradients_for(op, case, inputs, dtype, layout)
    return target.run(op, case, inputs, op.wanted(inputs), dys)


@pytest.mark.usefixtures("threads")
@over(lambda op: (op.large,), keep=lambda op, target: target.name == "native")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_at_any_number_of_threads(
    op: OpSpec, target: Target, case: Case, layout: str, dtype: torch.dtype
) -> None:
    """In float64 too: a float32 result hides in which order its sums were taken in float64."""
    runs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(_run_large(op, target, case, dtype, layout))
    for other in runs[1:]:
        assert_same_bits(other, runs[0])


@over(lambda op: op.small, keep=lambda op, target: target.emulated)
def test_same_bits_in_any_order_of_threads_and_blocks(op: OpSpec, target: Target, case: Case) -> None:
    inputs = case.inputs(torch.float32)
    dys = gradients_for(op, case, inputs, torch.float32)
    runs = [target.in_order(seed).run(op, case, inputs, op.wanted(inputs), dys) for seed in range(4)]
    for other in runs[1:]:
        assert_same_bits(other, runs[0])


@over(lambda op: op.small[:1], keep=differentiable)
def test_second_derivative_is_an_error_that_names_the_way_out(op: OpSpec, target: Target, case: Case) -> None:
    inputs = {n: x.requires_grad_(n in op.differentiable) for n, x in case.inputs(torch.float32).items()}
    leaves = [inputs[n] for n in op.wanted(inputs)]
    with target.serving(op.name):
        outs = case.call(**inputs, backend=target.backend)
        out = outs if isinstance(outs, Tensor) else outs[0]
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        with pytest.raises(
            RuntimeError, match=r"no second derivative.*from cpl_kernels\.\w+\.reference import"
        ):
            sum(g.square().sum() for g in first).backward()  # type: ignore[union-attr]


@over(keep=on_cpu)
def test_float64_is_served_or_refused(op: OpSpec, target: Target) -> None:
    """What the matrix leaves out, the backend says itself; it never falls back."""
    if target.computes(op, torch.float64):
        target.run(op, op.small[0], op.small[0].inputs(torch.float64))
        return
    with pytest.raises(backends.BackendError, match="float64"):
        target.run(op, op.small[0], op.small[0].inputs(torch.float64))


BAD = [(op, bad, name) for op in spec.everything() for name, bad in op.bad.items()]


@pytest.mark.parametrize(("op", "bad"), [pytest.param(o, b, id=f"{o.name}-{n}") for o, b, n in BAD])
def test_bad_input_is_named(op: OpSpec, bad: Bad) -> None:
    with pytest.raises(bad.error, match=bad.message):
        bad.call()


@over(lambda op: op.small, keep=lambda op, target: target.device == "cuda")
def test_cuda_graph(op: OpSpec, target: Target, case: Case) -> None:
    """Forward and backward replay on new values with the bits of eager mode: no host sync, no stale pointer."""
    inputs = {n: x.cuda() for n, x in case.inputs(torch.float32).items()}
    wanted = op.wanted(inputs)
    dys = [dy.cuda() for dy in gradients_for(op, case, case.inputs(torch.float32), torch.float32)]

    def step() -> dict[str, Tensor]:
        return run(lambda **a: case.call(**a, backend=target.backend), inputs, tuple(op.outputs), wanted, dys)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles and allocates before the capture
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for name, x in case.inputs(torch.float32, seed=5).items():
        inputs[name].copy_(x)
    graph.replay()
    assert_same_bits(captured, step())

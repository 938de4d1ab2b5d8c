"""The test matrix as functions over a case: an op's call beside a naive formula that shares no code with it.

The rule is the harness's: |op - gold| <= |torch in the same dtype - gold| + tolerance, elementwise,
for the output and every gradient. Gold is the naive formula in fp64 on the same (rounded) inputs. "torch
in the same dtype" is the naive formula in fp32, rounded once for 16-bit dtypes: stricter than a
16-bit chain, and there are no 16-bit CPU kernels to miss. The tolerance is relative to the largest magnitude of
the tensor (times ``terms``, for results of large cancelling sums).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.kernels import harness

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")
BACKENDS = ("reference",)  # the parity harness adds the fast ones

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One call of one op, differentiable in all its inputs, and the same in plain torch.

    Attributes:
        name: what is special about it; also the test's id.
        make: the float64 inputs, from a seeded generator.
        call: ``call(*inputs, backend=name)`` -> the differentiable output.
        naive: ``naive(*inputs)`` -> the same, by a formula independent of reference.py.
        terms: how many times larger than the result its terms are (1: no cancellation).
        floor: a magnitude of the terms that holds however small the result: sums that may cancel to 0.
    """

    name: str
    make: Callable[[torch.Generator], Inputs]
    call: Callable[..., Tensor]
    naive: Callable[..., Tensor]
    terms: float = 1.0
    floor: float = 0.0

    def inputs(self, dtype: torch.dtype, layout: str = "contiguous", seed: int = 0) -> Inputs:
        rng = torch.Generator().manual_seed(seed)
        return tuple(lay_out(layout, x.to(dtype)) for x in self.make(rng))


def randn(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def lay_out(name: str, x: Tensor) -> Tensor:
    """The same values at other strides; for "expanded" those of the first entry, repeated."""
    if name == "contiguous" or x.dim() == 0:
        return x.contiguous()
    if name == "transposed":  # memory order of the dimensions reversed
        order = tuple(reversed(range(x.dim())))
        return x.permute(order).contiguous().permute(order)
    if name == "sliced":  # every other element, poison between
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
        wide[..., ::2] = x
        return wide[..., ::2]
    if name == "expanded":
        return x[:1].expand_as(x)
    raise ValueError(name)


def of(cases: Sequence[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def check_parity(
    case: Case, dtype: torch.dtype, layout: str = "contiguous", dy_layout: str = "contiguous", **kwargs: str
) -> None:
    """Output and every gradient by the rule."""
    inputs = case.inputs(dtype, layout)
    out = case.call(*inputs, **kwargs)
    dy = lay_out(dy_layout, torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    got = gradients(lambda *a: case.call(*a, **kwargs), inputs, dy)
    gold = gradients(case.naive, [x.double() for x in inputs], dy.double())
    single = torch.float64 if dtype == torch.float64 else torch.float32
    same = gradients(case.naive, [x.to(single) for x in inputs], dy.to(single))
    for i, (g, s, o) in enumerate(zip(got, same, gold, strict=True)):
        what = "output" if i == 0 else f"gradient of input {i - 1}"
        assert i == 0 or g.dtype == dtype, f"{case.name} {what}: {g.dtype}"
        largest = float(o.abs().max()) if o.numel() else 0.0
        scale = torch.full_like(o, case.terms * max(largest, case.floor))
        harness.assert_no_worse(f"{case.name} {dtype} {layout} {what}", g, s.to(g.dtype), o, scale)


def check_gradients(case: Case) -> None:
    """gradcheck in fp64, all inputs at once; ``check_subsets_agree`` carries it over to every subset."""
    leaves = [x.requires_grad_() for x in case.inputs(torch.float64)]
    assert torch.autograd.gradcheck(case.call, leaves)


def check_subsets_agree(case: Case) -> None:
    """The gradients that are asked for do not depend on which others are; the rest is None."""
    inputs = case.inputs(torch.float32)
    dy = torch.ones_like(case.call(*inputs))
    full = gradients(case.call, inputs, dy)[1:]
    for wanted in subsets(len(inputs)):
        leaves = [x.detach().clone().requires_grad_(w) for x, w in zip(inputs, wanted, strict=True)]
        case.call(*leaves).backward(dy)
        for leaf, want, expected in zip(leaves, wanted, full, strict=True):
            assert (leaf.grad is not None) is want
            assert leaf.grad is None or torch.equal(leaf.grad, expected)


def subsets(count: int) -> Iterator[tuple[bool, ...]]:
    return (w for w in itertools.product([True, False], repeat=count) if any(w))


def check_repeats_bitwise(case: Case) -> None:
    inputs = case.inputs(torch.float32)
    dy = torch.ones_like(case.call(*inputs))
    once, again = (gradients(case.call, inputs, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def check_compiles(case: Case) -> None:
    """One graph, forward and backward, with the bits of eager mode; also when the sizes are symbols."""
    inputs = case.inputs(torch.float32)
    dy = torch.ones_like(case.call(*inputs))
    eager = gradients(lambda *a: case.call(*(2 * x for x in a)), inputs, dy)
    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda *a: case.call(*(2 * x for x in a)), fullgraph=True, backend="aot_eager", dynamic=dynamic
        )
        got = gradients(compiled, inputs, dy)
        assert all(torch.equal(a, b) for a, b in zip(got, eager, strict=True)), f"dynamic={dynamic}"


def check_no_second_derivative(case: Case) -> None:
    """An error that names the way out, and the way out (the definition) is there and differentiable."""
    leaves = [x.requires_grad_() for x in case.inputs(torch.float64)]
    out = case.call(*leaves)
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*from cpl_kernels\.\w+\.reference import"):
        sum(g.square().sum() for g in first).backward()  # type: ignore[union-attr]


def check_under_autocast(case: Case, expected: torch.dtype) -> None:
    """fp32 inputs under bf16 autocast: the dtype of the result, and gradients in the inputs' own dtype."""
    inputs = [x.requires_grad_() for x in case.inputs(torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = case.call(*inputs)
    assert out.dtype == expected
    out.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in inputs)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor) -> list[Tensor]:
    """The output and the gradient of every tensor input, detached."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    out = function(*leaves)
    wanted = [t for t in leaves if t is not None]
    return [out.detach(), *torch.autograd.grad(out, wanted, dy)]

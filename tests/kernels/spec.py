"""What an op declares about itself, so that the matrix of tests can be run on every backend it has.

``tests/kernels/<op>/spec.py`` holds one ``SPEC = OpSpec(...)``; test_parity.py and test_contract.py do
the rest. Inputs go by the names of the public function's parameters, so an op's ``call`` is mostly the
public function with its options filled in. ``layer_norm2d`` is the template; ``route_topk`` has an
output that is compared exactly, ``aggregate_prompts`` an input that has no gradient.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from cpl_kernels import backends
from tests.kernels.harness import DTYPES, lay_out

Inputs = dict[str, Tensor]
# How an output is compared: by the rule of harness.py, or bit for bit (indices).
RULE, EXACT = "rule", "exact"
# What autocast does to an input: to the autocast dtype, to float32, or (unnamed) nothing.
CAST, WIDEN = "cast", "widen"


Terms = Callable[[Inputs, Sequence[Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """One call of one op, and the same in plain torch.

    Attributes:
        name: short; part of the test's id.
        why: why this shape, option or value is in the matrix.
        make: the inputs by name from a seeded generator, float64 where they are floating.
        call: ``call(**inputs, backend=name)`` -> the public function's result.
        naive: ``naive(**inputs)`` -> the same by a formula that shares no code with cpl_kernels, in the dtype
            of the inputs.
        terms: the magnitudes that are added and subtracted to form the results (harness.py says why). A
            number: how many times larger than a tensor's largest element they are. Or a function
            ``terms(inputs, gradients)`` in float64 -> a tensor for each result, by name, as ``harness.run`` names them.
        floor: a magnitude of the terms that holds however small the result: for sums that may cancel to 0.
            One for all results, or by name.
        orders: ``naive`` with its sums in other orders, where what is rounded first is made much larger afterwards.
            Then the largest error that any of them makes, at any element of a result, is allowed at all of them: an
            element at which one order errs by chance less than another says nothing.
        calls: for an op that is several: ``calls(**inputs, backend=name)``, the same by those public functions. What
            autocast does to the op is then what it does to them.
    """

    name: str
    why: str
    make: Callable[[torch.Generator], Inputs]
    call: Callable[..., Any]
    naive: Callable[..., Any]
    terms: float | Terms = 1.0
    floor: float | Mapping[str, float] = 0.0
    orders: tuple[Callable[..., Any], ...] = ()
    calls: Callable[..., Any] | None = None

    def inputs(self, dtype: torch.dtype, layout: str = "contiguous", seed: int = 0) -> Inputs:
        made = self.make(torch.Generator().manual_seed(seed))
        return {
            name: lay_out(layout, x.to(dtype) if x.is_floating_point() else x) for name, x in made.items()
        }


def sums_of_magnitudes(naive: Callable[..., Tensor]) -> Terms:
    """The terms of an op that is linear in each of its floating inputs: its formula, and its gradients', of magnitudes.

    So a sum that cancels, as a bias's gradient over a whole image, is allowed the rounding of what it adds up.
    """

    def terms(inputs: Inputs, gradients: Sequence[Tensor]) -> Mapping[str, Tensor]:
        sizes = {n: x.abs().requires_grad_() if x.is_floating_point() else x for n, x in inputs.items()}
        y = naive(**sizes)
        leaves = [n for n, x in sizes.items() if x.requires_grad]
        found = torch.autograd.grad(y, [sizes[n] for n in leaves], gradients[0].abs())
        return {"y": y.detach()} | {f"gradient of {n}": g for n, g in zip(leaves, found, strict=True)}

    return terms


@dataclass(frozen=True)
class Bad:
    """A call that must fail, with an error whose message names the value."""

    call: Callable[[], object]
    error: type[Exception]
    message: str


@dataclass(frozen=True)
class OpSpec:
    """One op's declaration.

    Attributes:
        name: as in ``backends.OPS``.
        cases: every shape, option and extreme value; each in every dtype on every backend.
        small: for what is tried many times or differentiated numerically: strides, gradcheck, opcheck,
            compile, subsets of gradients, offsets past 2^31. Results must not sit on a kink.
        large: enough work that a backend splits it: bitwise repeat, and the same bits at 1, 2 and 3 threads.
        random: further cases, of any shape and option, for hypothesis.
        bad: the calls that must fail, by name.
        outputs: how each output is compared, by name, in order.
        differentiable: the inputs that have a gradient; none for an op without a derivative.
        autocast: what autocast does to which input. The result under autocast must have the bits of the result
            outside it for inputs treated so.
        near_in_autocast: inputs whose gradients may differ from those of ``Case.calls`` by an ulp of the autocast
            dtype, because they are summed in float32.
        images: whether 4-d inputs are also tried channels-last, cropped and expanded over pixels.
        wide_result: the output is float32 (float64 for float64) whatever the inputs are; else it has their dtype.
        narrow_factors: backend -> how many times larger than a gradient's largest element are the terms that it sums
            as products of bf16 numbers, for bf16 inputs on a GPU: the tensor cores take no others, so each errs by
            half an ulp of bf16 before the sum. (In fp16, whose range is too small, no backend does so.)
        dtypes: in which the rule can hold: all, for an op that rounds its result once.
        float64: the backends that compute in float64; any other must refuse it, naming it.
    """

    name: str
    cases: tuple[Case, ...]
    small: tuple[Case, ...]
    large: Case
    random: SearchStrategy[Case]
    bad: Mapping[str, Bad]
    outputs: Mapping[str, str] = field(default_factory=lambda: {"y": RULE})
    differentiable: tuple[str, ...] = ()
    autocast: Mapping[str, str] = field(default_factory=dict)
    near_in_autocast: tuple[str, ...] = ()
    images: bool = False
    wide_result: bool = False
    narrow_factors: Mapping[str, float] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = DTYPES
    float64: tuple[str, ...] = ("reference", "native", "cuda")

    def result_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.promote_types(dtype, torch.float32) if self.wide_result else dtype

    def wanted(self, inputs: Inputs) -> list[str]:
        """The inputs of this call that have a gradient, in order: a case may leave optional ones out."""
        return [name for name in inputs if name in self.differentiable]


def randn(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


@functools.cache
def of(op: str) -> OpSpec:
    spec = importlib.import_module(f"tests.kernels.{op}.spec").SPEC
    assert spec.name == op
    return spec


def everything() -> tuple[OpSpec, ...]:
    """Every op, or those that CPL_TEST_OPS names (``CPL_TEST_OPS=layer_norm2d,dwconv``): then this process, and those
    that it starts for an instruction set or a sanitizer, run the matrix of these alone.

    An op without a declaration fails at collection: ModuleNotFoundError names the file.
    """
    chosen = os.environ.get("CPL_TEST_OPS", "")
    return tuple(map(of, chosen.split(",") if chosen else backends.OPS))

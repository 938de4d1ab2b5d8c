"""Where an op's declaration can be run: every backend that the op has, on every device that can serve it.

reference, native    CPU tensors, in this process
triton               CPU tensors by Triton's interpreter, marked ``interpreter``: a process of its own
emulated             the CUDA C++ kernels on CPU tensors (tests/cuda_host), where tests/cuda_host/<op>.cpp is
gpu-default, gpu-triton, gpu-cuda    CUDA tensors, marked ``gpu``
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from cpl_kernels import backends, core
from tests.conftest import INTERPRETED
from tests.cuda_host import build, emulator
from tests.kernels import harness, spec
from tests.kernels.harness import as_tuple, assert_no_worse, incoming, run
from tests.kernels.spec import EXACT, Case, Inputs, OpSpec


@dataclass(frozen=True)
class Target:
    """One backend on one device. ``backend`` is what the public function is asked for; None: its default.

    ``seed`` orders the threads and blocks of an emulated kernel (0 upwards, 1 downwards, else shuffled);
    nothing else depends on it.
    """

    name: str
    backend: str | None
    device: str = "cpu"
    seed: int = 0

    @property
    def emulated(self) -> bool:
        return self.backend == "cuda" and self.device == "cpu"

    @contextlib.contextmanager
    def serving(self, op: str) -> Iterator[None]:
        """Within it the public function with ``backend=self.backend`` runs on this target."""
        with contextlib.ExitStack() as stack:
            for part in backends.COMPOSED.get(op, (op,)) if self.emulated else ():
                stack.enter_context(emulator.on_cpu(part, self.seed))
            yield

    def run(
        self,
        op: OpSpec,
        case: Case,
        inputs: Inputs,
        wanted: Sequence[str] = (),
        gradients: Sequence[Any] = (),
    ) -> dict[str, torch.Tensor]:
        """harness.run of the op's call on this target; results on the CPU."""
        there = {name: self.place(x) for name, x in inputs.items()}
        with self.serving(op.name):
            results = run(
                lambda **a: case.call(**a, backend=self.backend),
                there, tuple(op.outputs), wanted, [self.place(g) for g in gradients],
            )  # fmt: skip
        return {name: x.cpu() for name, x in results.items()}

    def in_order(self, seed: int) -> Target:
        return replace(self, seed=seed)

    def place(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` on this device at its own strides."""
        if self.device == "cpu":
            return x
        extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
        memory = x.as_strided((extent,), (1,)).to(self.device)
        return memory.as_strided(x.shape, x.stride())

    def computes(self, op: OpSpec, dtype: torch.dtype) -> bool:
        return dtype in op.dtypes and (
            dtype != torch.float64 or self.backend is None or self.backend in op.float64
        )


def of(op: str) -> list[Any]:
    """The targets of ``op`` as pytest parameters, with the marks that say where each can run."""
    parts = backends.COMPOSED.get(op, (op,))
    has = [name for name in backends.NAMES if all(name in backends.backends_of(part) for part in parts)]
    params = [pytest.param(Target("reference", "reference"), id="reference")]
    if "native" in has:
        absent = pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
        params.append(pytest.param(Target("native", "native"), id="native", marks=absent))
    if "triton" in has:
        params.append(pytest.param(Target("triton", "triton"), id="triton", marks=pytest.mark.interpreter))
    if "cuda" in has and all((build.HERE / f"{part}.cpp").exists() for part in parts):
        absent = pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}")
        params.append(pytest.param(Target("emulated", "cuda"), id="emulated", marks=absent))
    for name in (None, *(name for name in has if name in ("triton", "cuda"))):
        target = Target(f"gpu-{name or 'default'}", name, "cuda")
        params.append(pytest.param(target, id=target.name, marks=pytest.mark.gpu))
    return params


def layouts(op: OpSpec) -> tuple[str, ...]:
    return harness.LAYOUTS + harness.IMAGE_LAYOUTS * op.images


def on(op: str) -> pytest.MarkDecorator:
    """Parametrise a test of one op by ``target``, on the CPU."""
    return pytest.mark.parametrize("target", [param for param in of(op) if param.values[0].device == "cpu"])


def over(
    cases: Callable[[OpSpec], Sequence[Case]] | None = None,
    dtypes: bool = False,
    also: tuple[str, Callable[..., Sequence[Any]]] | None = None,
    keep: Callable[[OpSpec, Target], bool] = lambda op, target: True,
    short: Callable[[OpSpec, Target, Case | None], bool] = lambda op, target, case: True,
) -> pytest.MarkDecorator:
    """Parametrise a test by ``op`` and ``target``, and if asked by ``case``, ``dtype`` and one thing more.

    ``also`` is a name and its values for an op (and case), each with an id: ``(id, value, slow)``. What is not
    ``short`` is for the full grid. Of the emulator, where a call takes a process, and of Triton's interpreter the short
    run has one dtype of what is not small.
    """
    names = (
        ["op", "target"] + ["case"] * (cases is not None) + ["dtype"] * dtypes + ([also[0]] if also else [])
    )
    rows = []
    for op, param in [(declared, p) for declared in spec.everything() for p in of(declared.name)]:
        (target,) = param.values
        if not keep(op, target):
            continue
        for case in cases(op) if cases else (None,):
            for dtype in op.dtypes if dtypes else (None,):
                if dtype is not None and not target.computes(op, dtype):
                    continue  # test_float64_is_served_or_refused holds the backend to what it says
                slowly = target.emulated or param.id == "triton"
                long = slowly and dtype not in (None, torch.float32) and case not in op.small
                long = long or not short(op, target, case)
                if target.emulated:  # another order of threads for each
                    target = target.in_order(len(rows) % 5)
                for name, value, slow in (
                    also[1](op, *[case] * (case is not None)) if also else [("", None, False)]
                ):
                    values = (
                        [op, target] + [case] * (case is not None) + [dtype] * dtypes + [value] * bool(also)
                    )
                    words = [op.name, param.id, case and case.name, dtype and str(dtype)[6:], name]
                    marks = [*param.marks, *[pytest.mark.slow] * (long or slow)]
                    rows.append(pytest.param(*values, id="-".join(filter(None, words)), marks=marks))
    return pytest.mark.parametrize(",".join(names), rows)


def once(op: OpSpec, target: Target, case: Case | None) -> bool:
    """One target and case of an op, for what hangs on Python alone: the fastest in this process."""
    usual = (
        "native"
        if core.available() and any(p.values[0].name == "native" for p in of(op.name))
        else "reference"
    )
    return target.name == usual and case in (None, op.small[0])


def check(
    op: OpSpec, case: Case, target: Target, inputs: Inputs, dtype: torch.dtype, dy_layout: str = "contiguous"
) -> None:
    """Outputs and every gradient by the rule (or exactly), with random gradients coming in at ``dy_layout``."""
    compare_results(op, case, target, inputs, gradients_for(op, case, inputs, dtype, dy_layout), dtype)


def gradients_for(
    op: OpSpec, case: Case, inputs: Inputs, dtype: torch.dtype, layout: str = "contiguous"
) -> list[torch.Tensor]:
    """Random incoming gradients, shaped as the naive formula says the outputs are."""
    with torch.no_grad():
        outs = as_tuple(case.naive(**_in(torch.float64, inputs)))
    return incoming([o.to(op.result_dtype(dtype)) for o in outs if o.is_floating_point()], layout)


def _in(dtype: torch.dtype, inputs: Inputs) -> Inputs:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def compare_results(
    op: OpSpec,
    case: Case,
    target: Target,
    inputs: Inputs,
    gradients: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """``check``, with these gradients coming in."""

    def naive(precision: torch.dtype, formula: Any = case.naive) -> dict[str, torch.Tensor]:
        incoming_ = [g.to(precision) for g in gradients]
        return run(formula, _in(precision, inputs), tuple(op.outputs), wanted, incoming_)

    wanted = op.wanted(inputs)
    got = target.run(op, case, inputs, wanted, gradients)
    arithmetic = torch.promote_types(dtype, torch.float32)
    gold, same = naive(torch.float64), naive(arithmetic)
    orders = [naive(arithmetic, formula) for formula in case.orders]
    of_gold = 2 if dtype == torch.float64 else 1  # which then errs as much as what is compared with it
    terms: Any = case.terms
    if callable(terms):
        terms = terms(_in(torch.float64, inputs), [g.double() for g in gradients])
    cut = target.backend == "triton" and target.device == "cpu" and INTERPRETED
    for name, value in got.items():
        what = f"{op.name} {case.name} on {target.name}, {dtype}: {name}"
        if op.outputs.get(name) == EXACT:
            assert value.dtype == gold[name].dtype, f"{what}: {value.dtype}, expected {gold[name].dtype}"
            assert torch.equal(value, gold[name]), f"{what}: {value.tolist()}, expected {gold[name].tolist()}"
            continue
        expected = dtype if name.startswith("gradient") else op.result_dtype(dtype)
        if isinstance(terms, float | int):
            largest = float(gold[name].abs().max()) if gold[name].numel() else 0.0
            floor = case.floor if isinstance(case.floor, float | int) else case.floor[name]
            scale = torch.full_like(gold[name], terms * max(largest, floor))
        else:
            scale = terms[name]
        if name.startswith("gradient") and dtype == torch.bfloat16 and target.device == "cuda":
            largest = gold[name].abs().amax() if gold[name].numel() else 0.0
            narrow = op.narrow_factors.get(target.backend or "", 0.0) * largest * torch.finfo(dtype).eps / 2
            scale = scale + narrow / (harness.TERM_ULPS * torch.finfo(torch.float32).eps)
        assert_no_worse(
            what, value, same[name].to(expected), gold[name], scale,
            result_ulps=harness.INTERPRETER_BF16_ULPS if cut else 0.5,
            spread=of_gold * max((float((o[name] - gold[name]).abs().max()) for o in orders), default=0.0),
        )  # fmt: skip

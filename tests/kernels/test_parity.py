"""Every op's values on every backend: results and gradients against gold, by the rule of harness.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.harness import beyond_int32
from tests.kernels.spec import Case, OpSpec
from tests.kernels.targets import Target, check, compare_results, gradients_for, layouts, over


@over(lambda op: (*op.cases, *op.small), dtypes=True)
def test_shapes_options_and_values(op: OpSpec, target: Target, case: Case, dtype: torch.dtype) -> None:
    check(op, case, target, case.inputs(dtype), dtype)


@pytest.mark.slow
@over(
    lambda op: (*op.cases, *op.small),
    also=("seed", lambda op, case: [(f"order {seed}", seed, False) for seed in range(5)]),
    keep=lambda op, target: target.emulated,
)
def test_any_order_of_threads_and_blocks(op: OpSpec, target: Target, case: Case, seed: int) -> None:
    for dtype in (d for d in op.dtypes if target.computes(op, d)):
        check(op, case, target.in_order(seed), case.inputs(dtype), dtype)


def _pairs(op: OpSpec) -> list[tuple[str, tuple[str, str], bool]]:
    """Each layout on both sides and against the plain one; the other pairs of them are for the full grid."""
    pairs = itertools.product(layouts(op), repeat=2)
    return [("-".join(pair), pair, pair[0] != pair[1] and "contiguous" not in pair) for pair in pairs]


@over(also=("pair", _pairs))
def test_strides_of_inputs_and_incoming_gradients(op: OpSpec, target: Target, pair: tuple[str, str]) -> None:
    for case in op.small:
        check(op, case, target, case.inputs(torch.float32, pair[0]), torch.float32, pair[1])


def _far_dimensions(op: OpSpec, case: Case) -> list[tuple[str, int, bool]]:
    """Those in which some input has an offset at all."""
    shapes = [x.shape for x in case.inputs(torch.float32).values()]
    return [(f"{d}", d, False) for d in range(4) if any(len(s) > d and s[d] > 1 for s in shapes)]


@pytest.mark.xdist_group("memory")  # gigabytes of a GPU's: one process at a time
@over(lambda op: op.small, also=("dimension", _far_dimensions))
def test_offsets_past_two_to_the_31(op: OpSpec, target: Target, case: Case, dimension: int) -> None:
    """Memory is promised, not allocated: a 32-bit offset would crash or read the wrong page."""
    dtype = torch.bfloat16 if torch.bfloat16 in op.dtypes else torch.float32
    inputs, limit = case.inputs(dtype), 2**40 if target.device == "cpu" else 2  # a GPU's memory is allocated

    def far(x: torch.Tensor, order: tuple[int, ...] | None) -> torch.Tensor:
        has_offset = x.dim() > dimension and 1 < x.shape[dimension] <= limit
        return beyond_int32(x, dimension, order) if has_offset and (not order or x.dim() == 4) else x

    for order in [None, (0, 2, 3, 1)] if op.images else [None]:
        far_inputs = {n: far(x, order) for n, x in inputs.items()}
        dys = [far(dy, order) for dy in gradients_for(op, case, inputs, dtype)]
        compare_results(op, case, target, far_inputs, dys, dtype)
        del far_inputs, dys
        if target.device == "cuda":  # gigabytes, which other processes' tests want too
            torch.cuda.empty_cache()


def _random_cases(examples: int):  # type: ignore[no-untyped-def]
    # Derandomised: CI says the same every day. The fixture (NaN in new memory) is the same for every example.
    suppressed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=suppressed,
    )


def _check_random(op: OpSpec, target: Target, data: st.DataObject) -> None:
    case = data.draw(op.random)
    dtype = data.draw(st.sampled_from([d for d in op.dtypes if target.computes(op, d)]))
    pair = data.draw(st.tuples(*[st.sampled_from(layouts(op))] * 2))
    inputs = case.inputs(dtype, pair[0], seed=data.draw(st.integers(0, 2**31)))
    if any(0 in x.shape for x in inputs.values()) and "expanded_pixels" in pair:
        return  # there is no pixel to expand
    check(op, case, target, inputs, dtype, pair[1])


@over()
@given(data=st.data())
@_random_cases(5)
def test_random(op: OpSpec, target: Target, data: st.DataObject) -> None:
    _check_random(op, target, data)


@pytest.mark.slow
@over()
@given(data=st.data())
@_random_cases(200)
def test_many_random(op: OpSpec, target: Target, data: st.DataObject) -> None:
    _check_random(op, target, data)

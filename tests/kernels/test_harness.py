"""The rule by which every kernel is judged can be broken, and allows what no dtype can do better."""

from __future__ import annotations

import pytest
import torch

from cpl_kernels import backends
from tests.kernels import spec
from tests.kernels.harness import assert_no_worse

GOLD = torch.tensor([1.0, -70000.0], dtype=torch.float64)  # the second is beyond fp16
TERMS = GOLD.abs()


@pytest.mark.parametrize("chosen", [("layer_norm2d",), ("dwconv", "route_topk")])
def test_the_matrix_of_chosen_ops(chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPL_TEST_OPS", ",".join(chosen))
    assert tuple(op.name for op in spec.everything()) == chosen
    monkeypatch.delenv("CPL_TEST_OPS")
    assert tuple(op.name for op in spec.everything()) == backends.OPS


def judge(*values: float, dtype: torch.dtype = torch.float16) -> None:
    assert_no_worse("y", torch.tensor(values, dtype=dtype), GOLD.to(dtype), GOLD, TERMS)


def test_right_values_pass() -> None:
    judge(1.0, -70000.0, dtype=torch.float32)
    judge(1.0, float("-inf"))


@pytest.mark.parametrize("beyond", [float("inf"), float("nan")])
def test_what_overflows_keeps_its_sign(beyond: float) -> None:
    with pytest.raises(AssertionError, match="not finite where gold is"):
        judge(1.0, beyond)


def test_infinity_is_wrong_where_gold_fits() -> None:
    with pytest.raises(AssertionError, match="not finite where gold is"):
        judge(float("inf"), float("-inf"))
    with pytest.raises(AssertionError, match="not finite where gold is"):
        judge(1.0, float("-inf"), dtype=torch.float32)


def test_what_other_orders_err_by_is_allowed_everywhere() -> None:
    given = torch.tensor([1.01, -70000.0])
    assert_no_worse("y", given, GOLD.float(), GOLD, TERMS, spread=0.011)
    with pytest.raises(AssertionError, match="1 of 2 elements off"):
        assert_no_worse("y", given, GOLD.float(), GOLD, TERMS, spread=0.009)


def test_a_wrong_value_is_named_with_its_place() -> None:
    with pytest.raises(AssertionError, match=r"y: 1 of 2 elements off; worst at flat index 0: got 1\.009"):
        judge(1.01, float("-inf"))

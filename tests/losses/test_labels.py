"""Labels and targets of the contrastive losses: integers, or refused. Nothing is cast without a word."""

from __future__ import annotations

import math
import re

import pytest
import torch

from cpl.losses import InfoNCELoss, SupConLoss
from cpl_kernels import info_nce

Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
ROWS = torch.arange(4)
TAKES = {
    "labels": lambda labels: SupConLoss()(Z, labels),
    "labels of views": lambda labels: SupConLoss()(Z[:, None].expand(4, 2, 3), labels),
    "labels against others": lambda labels: SupConLoss()(Z, labels, Z, ROWS),
    "ref_labels": lambda labels: SupConLoss()(Z, ROWS, Z, labels),
    "targets": lambda labels: InfoNCELoss()(Z, Z, labels),
    "targets and queue": lambda labels: InfoNCELoss()(Z, Z, labels, Z),
}
KERNEL = {
    "targets": lambda labels: info_nce(Z, Z, targets=labels),
    "query_labels": lambda labels: info_nce(Z, Z, query_labels=labels, key_labels=ROWS),
    "key_labels": lambda labels: info_nce(Z, Z, query_labels=ROWS, key_labels=labels),
    "self": lambda labels: info_nce(Z, query_labels=labels),
}
NOT_INTEGERS = {
    "fractions": torch.tensor([0.1, 0.9, 1.1, 1.9]),
    "nan": torch.tensor([math.nan, 0.0, 1.0, 1.0]),
    "whole": torch.tensor([0.0, 0.0, 1.0, 1.0]),
    "float64": ROWS.double(),
    "half": ROWS.half(),
    "bfloat16": ROWS.bfloat16(),
    "bool": ROWS > 1,
    "complex": ROWS.to(torch.complex64),
    "uint64": ROWS.to(torch.uint64),
}


@pytest.mark.parametrize("labels", NOT_INTEGERS)
@pytest.mark.parametrize("takes", TAKES)
def test_labels_that_are_not_integers_are_refused(takes, labels):
    given = NOT_INTEGERS[labels]
    with pytest.raises(TypeError, match=re.escape(f"must be integers (int64, say), got {given.dtype}. ")):
        TAKES[takes](given)


@pytest.mark.parametrize("labels", NOT_INTEGERS)
@pytest.mark.parametrize("takes", KERNEL)
def test_the_op_takes_int64_alone(takes, labels):
    with pytest.raises(TypeError, match="must be int64, got"):
        KERNEL[takes](NOT_INTEGERS[labels])


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32]
)
@pytest.mark.parametrize("takes", TAKES)
def test_integers_of_any_width_are_taken(takes, dtype):
    labels = torch.tensor([1, 1, 3, 3])
    torch.testing.assert_close(TAKES[takes](labels.to(dtype)), TAKES[takes](labels), rtol=0, atol=0)


@pytest.mark.parametrize("takes", TAKES)
@pytest.mark.parametrize("labels", [torch.tensor(3), ROWS[:, None], ROWS[None], ROWS[:3], [0, 0, 1, 1], "0"])
def test_other_shapes_and_kinds_are_refused(takes, labels):
    kind, words = (ValueError, r"must be \[[BM]\] = \(4,\), got") if torch.is_tensor(labels) else (
        TypeError,
        "must be a torch.Tensor, got",
    )  # fmt: skip
    with pytest.raises(kind, match=words):
        TAKES[takes](labels)


@pytest.mark.parametrize("value", [1.5, math.nan, True, None, "0", 2**63, torch.tensor(1)])
@pytest.mark.parametrize(
    "takes",
    [
        lambda value: SupConLoss(ignore_index=value),
        lambda value: InfoNCELoss(ignore_index=value),
        lambda value: info_nce(Z, Z, targets=ROWS, ignore_index=value),
    ],
)
def test_an_ignore_index_is_an_integer(takes, value):
    with pytest.raises(
        (TypeError, ValueError), match="ignore_index must (be an integer|fit into int64), got"
    ):
        takes(value)

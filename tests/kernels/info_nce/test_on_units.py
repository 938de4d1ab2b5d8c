"""info_nce with its products on the processor's matrix units, by tiles small enough for these sizes to have many."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cpl_kernels
from cpl_kernels import core, products
from cpl_kernels.info_nce import native, op, tiled, units
from tests.kernels import harness
from tests.kernels.info_nce.spec import IGNORE, SPEC
from tests.kernels.info_nce.test_tiles import evaluate, integers, rows, same_at_any_thread_count
from tests.kernels.spec import Case
from tests.kernels.targets import Target, check

pytestmark = [
    pytest.mark.skipif(not products.available(), reason="this process has no matrix units"),
    pytest.mark.usefixtures("no_large_cache"),
]


class Counted:
    """The core, whose calls are noted."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(core.core(), name)

    def multiplied(self) -> list[str]:
        return [name for name in self.calls if "multiply" in name]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Of the core; products go to the units however few the vectors are."""
    counted = Counted()
    monkeypatch.setattr(units, "core", lambda: counted)
    monkeypatch.setattr(products, "core", SimpleNamespace(core=lambda: counted, available=lambda: True))
    monkeypatch.setattr(native, "UNITS_FROM", 0)
    monkeypatch.setattr(native.NativeTiles, "row_step", 64)
    monkeypatch.setattr(native.NativeTiles, "column_step", 32)
    monkeypatch.setattr(native, "LEAST_ROWS", 32)
    monkeypatch.setattr(native, "WHOLE", 1)
    return counted


@pytest.fixture(params=["kept", "some kept", "later"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether gradients come with the forward, and which tiles are kept for them."""
    if request.param == "later":
        monkeypatch.setattr(op, "had_at_once", lambda *_: False)
    elif request.param == "some kept":
        monkeypatch.setattr(tiled, "kept_at_most", lambda *_: 70 * 33)


# More rows and columns than a tile has, and a last tile of fewer.
MANY: dict[str, dict[str, Any]] = {
    "one direction": {"key": rows(150, seed=1)},
    "targets and queue": {
        "key": rows(90, seed=1),
        "targets": integers(90, 83).masked_fill(integers(5, 83) == 0, IGNORE),
        "queue": rows(70, seed=2),
    },
    "symmetric": {"key": rows(83, seed=1), "symmetric": True, "queue": rows(70, seed=2)},
    "symmetric, kept": {"key": rows(83, seed=1), "symmetric": True},
    "labels": {
        "key": rows(110, seed=1),
        "query_labels": integers(20, 83),
        "key_labels": integers(22, 110, seed=1),
        "symmetric": True,
    },
    "SimCLR": {"targets": torch.arange(83).roll(41)},
    "SupCon": {"query_labels": integers(12, 83), "queue": rows(70, seed=2)},
    "SupCon symmetric": {"query_labels": integers(12, 83), "symmetric": True},
}


def but_for_the_smallest(given: Case) -> Case:
    """Numbers below 1e-30 have pieces beyond the range of bf16, as info_nce says: from the second on, 2^-8 of them."""
    assert callable(given.terms)
    floor, terms = 2**-8 * 1e-30 / (harness.TERM_ULPS * torch.finfo(torch.float32).eps), given.terms
    return replace(given, terms=lambda *of: {name: value + floor for name, value in terms(*of).items()})


# Not bf16: its gradients by the products are rounded before they are multiplied, which few vectors do not even out.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", SPEC.cases + SPEC.small, ids=lambda case: case.name)
def test_every_case(case: Case, dtype: torch.dtype) -> None:
    case = but_for_the_smallest(case) if callable(case.terms) else case
    check(SPEC, case, Target("native", "native"), case.inputs(dtype), dtype)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("name", "reduction"),
    # With "labels" there are more keys than queries, and so no loss per pair.
    [(name, "mean") for name in MANY] + [(name, "none") for name in MANY if name != "labels"],
)
def test_many_tiles(name: str, reduction: str, calls: Counted) -> None:
    """No further from fp64 than torch's formula in fp32 is, but for the order of sums."""
    query = rows(83)
    gold = evaluate(MANY[name], torch.float64, "reference", reduction, query)
    assert not calls.multiplied()
    same = evaluate(MANY[name], torch.float32, "reference", reduction, query)
    got = evaluate(MANY[name], torch.float32, "native", reduction, query)
    assert len(calls.multiplied()) > 6
    for ours, theirs, expected in zip(got, same, gold, strict=True):
        largest = expected.abs().max()
        error, allowed = (x.double().sub(expected).abs().max() for x in (ours, theirs))
        assert error <= allowed + 4e-7 * largest, f"{error} against {allowed} of {largest}"


@pytest.mark.parametrize("name", MANY)
def test_of_bf16_products_are_exact_and_gradients_rounded(name: str) -> None:
    half = {k: v.bfloat16().double() if k in ("key", "queue") else v for k, v in MANY[name].items()}
    query = rows(83).bfloat16()
    gold = evaluate(half, torch.float64, "reference", "mean", query)
    got = evaluate(half, torch.bfloat16, "native", "mean", query)
    torch.testing.assert_close(got[0].double(), gold[0], rtol=1e-6, atol=0)
    for ours, expected in zip(got[1:-1], gold[1:-1], strict=True):
        # Gradients of the products are rounded, and their sums: each to half an ulp, 2^-9.
        assert (ours.double() - expected).norm() <= 2 * 2**-9 * expected.norm()


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", ["one direction", "symmetric, kept", "SimCLR"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_at_any_thread_count(name: str, dtype: torch.dtype) -> None:
    options = {k: v for k, v in MANY[name].items() if k != "key"}
    vectors = [v.to(dtype).requires_grad_() for v in (rows(83), MANY[name].get("key")) if v is not None]
    same_at_any_thread_count(vectors, options)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", ["one direction", "symmetric, kept", "SimCLR", "SupCon"])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan, 3.4e38, 1e25])
def test_what_has_no_pieces_gives_what_torchs_products_give(
    name: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN reaches the same elements, and what is finite is as near."""
    found = {}
    for place in ("query", "key"):
        query, arrangement = rows(83), dict(MANY[name])
        if place == "query":
            query[17, 3] = bad
        elif "key" in arrangement:
            arrangement["key"] = arrangement["key"].clone().index_fill_(0, torch.tensor(40), 0.0)
            arrangement["key"][40, 3] = bad
        for on_units in (True, False):
            monkeypatch.setattr(products, "available", lambda on_units=on_units: on_units)
            found[on_units] = evaluate(arrangement, torch.float32, "native", "mean", query)
        torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_gradient_without_pieces_is_nan() -> None:
    query, key = rows(83).float().requires_grad_(), rows(83, seed=1).float()
    loss = cpl_kernels.info_nce(query, key, reduction="none", backend="native")
    dloss = torch.ones(83)
    dloss[5] = torch.inf
    (grad,) = torch.autograd.grad(loss, query, dloss)
    assert grad[5].isnan().all()
    assert grad[:5].isfinite().all()
    assert grad[6:].isfinite().all()


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shared", ["query in key", "key in query", "key in queue", "labels"])
def test_operands_that_share_memory(shared: str, reduction: str) -> None:
    """From the same address on, of different lengths."""
    x = rows(144, 32).float()
    few, many = x[:80].detach().requires_grad_(), x.detach().requires_grad_()
    vectors = [few, many]
    options: dict[str, Any] = {"reduction": reduction, "temperature": 1.0}
    if shared == "key in query":
        vectors, options["targets"] = [many, few], integers(80, 144)
    elif shared == "key in queue":
        vectors = [rows(80, 32, seed=1).float().requires_grad_(), few]
    elif shared == "labels":
        options |= {"query_labels": integers(20, 80), "key_labels": integers(20, 144, seed=1)}
    wide = [v.detach().double().requires_grad_() for v in vectors]
    found = []
    for backend, made in (("native", vectors), ("reference", wide)):
        if shared == "key in queue":
            options["queue"] = x.to(made[0].dtype)
        loss = cpl_kernels.info_nce(*made, **options, backend=backend).sum()
        found.append([loss.detach(), *torch.autograd.grad(loss, made)])
    for ours, gold in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), gold, rtol=1e-5, atol=1e-5 * gold.abs().max().item())


def test_no_keys_in_memory_of_odd_strides() -> None:
    nothing = torch.randn(10, 64)[:0, ::2]
    query, key = rows(83, 32).float(), rows(83, 32, seed=1).float()
    with_none = cpl_kernels.info_nce(query, key, queue=nothing, symmetric=True, backend="native")
    assert torch.equal(with_none, cpl_kernels.info_nce(query, key, symmetric=True, backend="native"))


def test_few_vectors_are_left_to_torch(monkeypatch: pytest.MonkeyPatch, calls: Counted) -> None:
    monkeypatch.setattr(native, "UNITS_FROM", 83 * 24 + 1)
    cpl_kernels.info_nce(rows(83).float(), rows(83).float(), backend="native")
    assert not calls.multiplied()
    cpl_kernels.info_nce(rows(84).float(), rows(84).float(), backend="native")
    assert calls.multiplied()
    calls.calls.clear()
    cpl_kernels.info_nce(rows(84), rows(84), backend="native")
    assert not calls.multiplied(), "units do not multiply in fp64"


@pytest.mark.parametrize("name", ["one direction", "symmetric", "SimCLR"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_blocks_of_rows_are_worked_on_while_in_the_cache(name: str, reduction: str, calls: Counted) -> None:
    """Where sums of rows or gradients are all that is wanted of a tile, and it is not kept."""
    options = {k: v.float() if k in ("key", "queue") else v for k, v in MANY[name].items()}
    query = rows(83).float().requires_grad_()
    cpl_kernels.info_nce(query, **options, reduction=reduction, backend="native").sum().backward()
    made = {name for name in calls.multiplied() if name.startswith("info_nce")}
    at_once = name == "one direction" and reduction == "mean"
    expected = {"info_nce_multiply_whole_rows"} if at_once else {"info_nce_multiply_gradient"}
    if not at_once and name != "SimCLR":  # there a tile counts for its mirror image too
        expected.add("info_nce_multiply_rows")
    assert made == (set() if name == "SimCLR" and reduction == "mean" else expected)


def test_a_factor_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[tuple[int, int]] = []
    of = products.Right.of
    monkeypatch.setattr(
        products.Right, "of", lambda plain, *args: packed.append(tuple(plain.shape)) or of(plain, *args)
    )
    evaluate(MANY["SimCLR"], torch.float32, "native", "mean", rows(83))
    assert packed == [(32, 96), (96, 32)]

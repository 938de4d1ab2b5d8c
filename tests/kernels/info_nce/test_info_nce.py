"""info_nce against F.cross_entropy where that can say it, and against loops over pairs everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels.info_nce import reference
from tests.kernels import matrix
from tests.kernels.matrix import Case, randn

IGNORE = -100


def direction(
    query: Tensor, keys: Tensor, more: Tensor | None, positive: list[list[int]], t: Tensor, self_: bool
) -> tuple[list[Tensor], int]:
    """Per-row losses and how many rows count, one pair at a time, from the formula of the docstring."""
    losses, rows = [], 0
    for i, positives in enumerate(positive):
        s = torch.stack([query[i] @ key / t for key in keys]) if len(keys) else query.new_zeros(0)
        compared = [s[j] for j in range(len(keys)) if not (self_ and j == i)]
        compared += [] if more is None else [query[i] @ key / t for key in more]
        if not positives:
            losses.append(0 * (query[i].sum() + keys.sum() + t))
            continue
        rows += 1
        mean = torch.stack([s[j] for j in positives]).mean()
        losses.append(torch.logsumexp(torch.stack(compared), 0) - mean)
    return losses, rows


def naive(
    query: Tensor,
    key: Tensor | None,
    temperature: Tensor,
    *,
    targets: Tensor | None = None,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    symmetric: bool = False,
    queue: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    keys, self_ = (query, True) if key is None else (key, False)
    pairs = list(itertools.product(range(len(query)), range(len(keys))))
    if targets is not None:
        hits = {(i, int(t)) for i, t in enumerate(targets) if t != IGNORE}
    elif query_labels is not None:
        other = query_labels if key_labels is None else key_labels
        hits = {(i, j) for i, j in pairs if query_labels[i] == other[j] != IGNORE and not (self_ and i == j)}
    else:
        hits = {(i, i) for i in range(len(query))}

    def reduce(losses: list[Tensor], rows: int) -> Tensor:
        stacked = torch.stack(losses) if losses else query.new_zeros(0)
        if reduction == "none":
            return stacked
        return stacked.sum() if reduction == "sum" else stacked.sum() / max(rows, 1)

    of_row = [[j for j in range(len(keys)) if (i, j) in hits] for i in range(len(query))]
    more = None if queue is None else queue.to(query.dtype)
    loss = reduce(*direction(query, keys, more, of_row, temperature, self_))
    if symmetric:
        of_column = [[i for i in range(len(query)) if (i, j) in hits] for j in range(len(keys))]
        loss = (loss + reduce(*direction(keys, query, None, of_column, temperature, self_))) / 2
    return loss


def case(name: str, queries: int, keys: int | None = None, queue: int = 0, **options: object) -> Case:
    """A ``keys`` of None is key=None. Temperature is an input too, so its gradient is checked."""
    more = randn(torch.Generator().manual_seed(7), queue, 6).bfloat16().double() if queue else None

    def make(rng: torch.Generator) -> matrix.Inputs:
        vectors = (randn(rng, queries, 6),) if keys is None else (randn(rng, queries, 6), randn(rng, keys, 6))
        return (*vectors, torch.tensor(0.7, dtype=torch.float64))

    def call(*inputs: Tensor, backend: str | None = None) -> Tensor:
        query, key, t = inputs if keys is not None else (inputs[0], None, inputs[1])
        extra = None if more is None else more.to(query.dtype)
        return cpl_kernels.info_nce(query, key, temperature=t, queue=extra, backend=backend, **options)  # type: ignore[arg-type]

    def plain(*inputs: Tensor) -> Tensor:
        query, key, t = inputs if keys is not None else (inputs[0], None, inputs[1])
        return naive(query, key, t, queue=more, **options)  # type: ignore[arg-type]

    return Case(name, make, call, plain, terms=16, floor=0.1)


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


SUPCON = ids(0, 1, 0, IGNORE, 1, 2, 0)
CASES = [
    case("CLIP one way", 5, 5),
    case("more keys than queries", 4, 7, reduction="sum"),
    case("CLIP", 5, 5, symmetric=True),
    case("CLIP per pair", 4, 4, symmetric=True, reduction="none"),
    case("MoCo", 3, 3, queue=9),
    case("symmetric with queue", 3, 3, queue=4, symmetric=True),
    case("targets", 5, 4, targets=ids(3, IGNORE, 0, 3, 1)),
    case("targets per row", 3, 4, targets=ids(3, IGNORE, 0), reduction="none"),
    case("SimCLR", 6, targets=ids(3, 4, 5, 0, 1, 2)),
    case("SimCLR with queue", 4, queue=3, targets=ids(2, 3, IGNORE, 1)),
    case("SupCon", 7, query_labels=SUPCON),
    case("SupCon symmetric", 7, query_labels=SUPCON, symmetric=True, reduction="none"),
    case("labels", 3, 5, query_labels=ids(4, 9, IGNORE), key_labels=ids(4, 4, IGNORE, 1, 4)),
    case("labels symmetric", 3, 5, query_labels=ids(4, 9, 1), key_labels=ids(4, 4, 8, 1, IGNORE), symmetric=True),
    case("labels with queue", 3, 4, queue=2, query_labels=ids(0, 1, 5), key_labels=ids(0, 0, 1, 2), reduction="none"),
    case("nobody has a positive", 3, query_labels=ids(0, 1, 2)),
    case("all ignored", 2, 3, targets=ids(IGNORE, IGNORE), reduction="sum"),
    case("one query, itself its only key", 1, query_labels=ids(0)),
]  # fmt: skip
SMALL = [CASES[i] for i in (2, 5, 6, 9, 10, 13)]


@matrix.of(CASES)
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_parity(case: Case, dtype: torch.dtype) -> None:
    matrix.check_parity(case, dtype)


@matrix.of(SMALL)
@pytest.mark.parametrize("layout", matrix.LAYOUTS)
def test_strides(case: Case, layout: str) -> None:
    matrix.check_parity(case, torch.float32, layout)


@pytest.mark.parametrize("dy_layout", matrix.LAYOUTS)
def test_strides_of_incoming_gradients(dy_layout: str) -> None:
    matrix.check_parity(CASES[3], torch.float32, "contiguous", dy_layout)


@matrix.of(CASES)
def test_gradcheck(case: Case) -> None:
    matrix.check_gradients(case)


@matrix.of(SMALL)
def test_matrix(case: Case) -> None:
    matrix.check_subsets_agree(case)
    matrix.check_repeats_bitwise(case)
    matrix.check_no_second_derivative(case)


@matrix.of([CASES[1], CASES[5], CASES[10]])
def test_compiles(case: Case) -> None:
    matrix.check_compiles(case)


@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, False)])
def test_opcheck(wanted: tuple[bool, ...]) -> None:
    query, key = torch.randn(3, 4, requires_grad=wanted[0]), torch.randn(3, 4, requires_grad=wanted[1])
    t = torch.tensor(0.5, requires_grad=wanted[2])
    args = (query, key, torch.randn(2, 4), None, None, None, t, True, IGNORE, "none", "reference")
    torch.library.opcheck(torch.ops.cpl_kernels.info_nce.default, args)
    if wanted[0]:
        args = (query, None, None, None, ids(0, 0, 1), ids(0, 0, 1), t, False, IGNORE, "mean", "reference")
        torch.library.opcheck(torch.ops.cpl_kernels.info_nce.default, args)


def test_definition_has_second_derivatives() -> None:
    query, key, t = (x.requires_grad_() for x in case("tiny", 2, 3).inputs(torch.float64))
    rest = (False, IGNORE, "mean")
    assert torch.autograd.gradgradcheck(
        lambda q, k, t: reference.info_nce(q, k, None, None, None, None, t, *rest), (query, key, t)
    )


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def test_is_cross_entropy() -> None:
    query, key, queue = unit(16, 8), unit(20, 8, seed=1), unit(30, 8, seed=2)
    targets = torch.randint(0, 20, (16,))
    targets[3] = IGNORE
    logits = query @ torch.cat((key, queue)).T / 0.07
    for reduction in ("mean", "sum", "none"):
        got = cpl_kernels.info_nce(query, key, targets, queue=queue, reduction=reduction)
        torch.testing.assert_close(got, F.cross_entropy(logits, targets, reduction=reduction))
    got = cpl_kernels.info_nce(query, key[:16], symmetric=True, temperature=0.1)
    logits, diagonal = query @ key[:16].T / 0.1, torch.arange(16)
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    torch.testing.assert_close(got, expected)


def test_another_ignore_index() -> None:
    query, key = unit(4, 8), unit(5, 8, seed=1)
    got = cpl_kernels.info_nce(query, key, ids(4, 0, 2, 0), ignore_index=0)
    torch.testing.assert_close(got, F.cross_entropy(query @ key.T / 0.07, ids(4, 0, 2, 0), ignore_index=0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_without_a_positive_get_neither_loss_nor_gradient(reduction: str, symmetric: bool) -> None:
    query = unit(4, 8).requires_grad_()
    labels = ids(0, 5, 0, IGNORE)
    loss = cpl_kernels.info_nce(query, query_labels=labels, reduction=reduction, symmetric=symmetric)
    if reduction == "none":
        assert torch.equal(loss[[1, 3]], torch.zeros(2, dtype=torch.float64))
        assert (loss[[0, 2]] > 0).all()
    alone = query.detach().clone().requires_grad_()
    nothing = cpl_kernels.info_nce(
        alone, query_labels=ids(0, 1, 2, IGNORE), reduction=reduction, symmetric=symmetric
    )
    nothing.sum().backward()
    assert torch.equal(nothing, torch.zeros_like(nothing))
    assert torch.equal(alone.grad, torch.zeros_like(alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [128.0, 8192.0])
def test_similarities_far_beyond_exps_range(size: float, dtype: torch.dtype) -> None:
    """exp ends at 88 in fp32; here similarities are +-size / 0.07."""
    query = torch.tensor([[size, 0], [0, size]], dtype=dtype, requires_grad=True)
    for key, expected in (
        (torch.eye(2), 0.0),
        (-torch.eye(2), size / 0.07),
        (torch.zeros(2, 2), 0.6931471805599453),
    ):
        loss = cpl_kernels.info_nce(query, key.to(dtype))
        torch.testing.assert_close(loss.item(), expected, rtol=1e-5, atol=1e-6)
        (grad,) = torch.autograd.grad(loss, query)
        assert torch.isfinite(grad).all()


def test_temperature_as_number_tensor_and_vector_of_one() -> None:
    query, key = unit(4, 8).float(), unit(4, 8, seed=1).float()
    number = cpl_kernels.info_nce(query, key, temperature=0.2)
    for t in (torch.tensor(0.2), torch.tensor([0.2]), torch.tensor(0.2, dtype=torch.float64)):
        t.requires_grad_()
        loss = cpl_kernels.info_nce(query, key, temperature=t)
        assert torch.equal(loss, number)
        loss.backward()
        assert t.grad.shape == t.shape
        assert t.grad.dtype == t.dtype


def test_gradient_of_temperature_alone() -> None:
    query, key = unit(4, 8), unit(4, 8, seed=1)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: cpl_kernels.info_nce(query, key, temperature=t, symmetric=True), (t,)
    )


def test_queue_gets_no_gradient() -> None:
    query, key, queue = (unit(3, 4, seed=i).requires_grad_() for i in range(3))
    cpl_kernels.info_nce(query, key, queue=queue).backward()
    assert queue.grad is None
    assert query.grad is not None
    assert not cpl_kernels.info_nce(query.detach(), key.detach(), queue=queue).requires_grad


@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_loss_is_at_least_float32(dtype: torch.dtype) -> None:
    loss = cpl_kernels.info_nce(unit(3, 4).to(dtype), unit(3, 4, seed=1).to(dtype))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_autocast_casts_the_vectors_and_keeps_the_loss_in_float32() -> None:
    query, key, queue = (unit(16, 64, seed=i).float().requires_grad_() for i in range(3))
    t = torch.tensor(0.07, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cpl_kernels.info_nce(query, key.bfloat16(), queue=queue, temperature=t)
    half = [x.detach().bfloat16() for x in (query, key, queue)]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cpl_kernels.info_nce(half[0], half[1], queue=half[2], temperature=t.detach()))
    exact = cpl_kernels.info_nce(half[0].double(), half[1].double(), queue=half[2].double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)  # sums were fp32, not bf16
    loss.backward()
    assert all(x.grad.dtype == torch.float32 for x in (query, key, t))


def test_keeps_no_matrix() -> None:
    query, key = torch.randn(64, 4, requires_grad=True), torch.randn(64, 4, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cpl_kernels.info_nce(query, key, symmetric=True)
    assert sum(t.numel() for t in kept) <= 2 * 64 * 4 + 4 * 64 + 1


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_batch(reduction: str) -> None:
    none, labels = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for options in (
        {"key": torch.zeros(0, 3), "symmetric": True},
        {"key": torch.zeros(5, 3), "targets": labels},
        {"query_labels": labels},
    ):
        loss = cpl_kernels.info_nce(none, reduction=reduction, **options)  # type: ignore[arg-type]
        assert loss.shape == ((0,) if reduction == "none" else ())
        assert torch.equal(loss, torch.zeros_like(loss))
        loss.sum().backward()


def test_a_bad_target_gives_nan_where_nobody_looks() -> None:
    """What CUDA does: the backend itself does not check, and reads nothing out of bounds."""
    query, key, t = unit(3, 4), unit(5, 4, seed=1), torch.tensor(0.1, dtype=torch.float64)
    for k, bad in ((key, 5), (key, -1), (None, 1), (None, 3)):
        targets = ids(2, bad, IGNORE)
        outputs = reference.forward(query, k, None, targets, None, None, t, False, IGNORE, "none")
        assert outputs[0].isnan().tolist() == [False, True, False]
        grads = reference.backward(
            torch.ones(3, dtype=torch.float64), query, k, None, targets, None, None, t, *outputs[1:],
            False, IGNORE, "none", True, False, False,
        )  # fmt: skip
        assert grads[0][1].isnan().all()
    assert reference.info_nce(query, key, None, None, None, None, -t, False, IGNORE, "mean").isnan()


Q, K, L = torch.zeros(4, 3), torch.zeros(6, 3), torch.zeros(4, dtype=torch.int64)
loss = cpl_kernels.info_nce
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no positive said": (lambda: loss(Q), ValueError, "key=None the positives must be said.*SimCLR.*SupCon"),
    "fewer keys": (lambda: loss(Q, K[:3]), ValueError, "M must be at least B = 4, got M = 3"),
    "both": (lambda: loss(Q, Q, L, L, L), ValueError, "targets .* or labels .*not both"),
    "query labels alone": (lambda: loss(Q, Q, query_labels=L), ValueError, "key_labels is missing"),
    "key labels alone": (lambda: loss(Q, Q, key_labels=L), ValueError, "query_labels is missing"),
    "key labels, no key": (lambda: loss(Q, query_labels=L, key_labels=L), ValueError, "leave key_labels out"),
    "symmetric, B < M": (lambda: loss(Q, K, symmetric=True), ValueError, "B = 4 and M = 6"),
    "symmetric targets": (lambda: loss(Q, Q, L, symmetric=True), ValueError, "does not go with targets"),
    "symmetric none": (
        lambda: loss(
            Q, K, query_labels=L, key_labels=torch.zeros(6).long(), symmetric=True, reduction="none"
        ),
        ValueError,
        'reduction="none" needs B = M, got B = 4 and M = 6',
    ),
    "target too large": (
        lambda: loss(Q, K, L + 6),
        ValueError,
        "from 0 to M-1 = 5 or ignore_index = -100, got 6",
    ),
    "target negative": (lambda: loss(Q, K, L - 1), ValueError, "got -1"),
    "own target": (lambda: loss(Q, targets=torch.arange(4)), ValueError, r"targets\[i\] = i"),
    "query rank": (lambda: loss(Q[0], K), ValueError, r"query must be \[B, D\].*\(3,\)"),
    "no features": (lambda: loss(Q[:, :0], K[:, :0]), ValueError, "at least one feature"),
    "query dtype": (lambda: loss(Q.int(), K), TypeError, "query.*int32"),
    "key dtype": (lambda: loss(Q, K.double()), TypeError, "key is torch.float64 but query is torch.float32"),
    "key features": (lambda: loss(Q, K[:, :2]), ValueError, r"key \(6, 2\).*D = 3"),
    "key rank": (lambda: loss(Q, K[0]), ValueError, r"key must be \[M, D\]"),
    "queue features": (lambda: loss(Q, K, queue=K[:, :2]), ValueError, r"queue \(6, 2\).*D = 3"),
    "queue dtype": (lambda: loss(Q, K, queue=K.bfloat16()), TypeError, "queue is torch.bfloat16"),
    "targets dtype": (lambda: loss(Q, K, L.int()), TypeError, "targets must be int64, got torch.int32"),
    "targets shape": (lambda: loss(Q, K, L[:2]), ValueError, r"targets.*\(4,\).*\(2,\)"),
    "key labels shape": (lambda: loss(Q, K, query_labels=L, key_labels=L), ValueError, r"key_labels.*\(6,\)"),
    "temperature 0": (lambda: loss(Q, K, temperature=0.0), ValueError, "positive finite number, got 0.0"),
    "temperature NaN": (lambda: loss(Q, K, temperature=float("nan")), ValueError, "got nan"),
    "temperature tensor": (lambda: loss(Q, K, temperature=torch.tensor(-1.0)), ValueError, "got -1.0"),
    "temperature shape": (lambda: loss(Q, K, temperature=torch.ones(2)), ValueError, r"temperature.*\(2,\)"),
    "temperature dtype": (lambda: loss(Q, K, temperature=torch.tensor(1)), TypeError, "temperature.*int64"),
    "reduction": (lambda: loss(Q, K, reduction="avg"), ValueError, "'mean', 'sum', 'none', got 'avg'"),
    "device": (lambda: loss(Q, K.to("meta")), ValueError, "key is on meta"),
    "backend": (lambda: loss(Q, K, backend="cuda"), RuntimeError, "info_nce.*'cuda'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()

"""What goes by tiles in info_nce: borders between them, and gradients that come with the forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.compiled_autograd
import torch.utils.checkpoint
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels import core
from cpl_kernels.info_nce import native, op, tiled
from cpl_kernels.info_nce.tiles import Place, Span
from tests.kernels.info_nce.spec import IGNORE, SPEC
from tests.kernels.spec import Case
from tests.kernels.targets import Target, check, on

pytestmark = [
    pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}"),
    pytest.mark.usefixtures("no_large_cache"),  # tiles are then small enough for these sizes to have several
]


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 rows and 3 columns: every case of the matrix then has many, and borders anywhere."""
    monkeypatch.setattr(native.NativeTiles, "row_step", 2)
    monkeypatch.setattr(native, "LEAST_ROWS", 2)
    monkeypatch.setattr(native.NativeTiles, "column_step", 3)
    monkeypatch.setattr(native.NativeTiles, "multiple", 1)
    monkeypatch.setattr(native, "WHOLE", 1)


@pytest.fixture(params=["kept", "some kept", "made again", "later"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which tiles are kept for gradients with the forward; or gradients by the backward, as some arrangements have."""
    most = {"some kept": 7 if "tiny_tiles" in request.fixturenames else 520 * 520, "made again": 0}
    if request.param == "later":
        monkeypatch.setattr(op, "had_at_once", lambda *_: False)
    elif request.param != "kept":
        monkeypatch.setattr(tiled, "kept_at_most", lambda *_: most[request.param])
    return request.param


@pytest.mark.usefixtures("tiny_tiles", "kept")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", SPEC.cases + SPEC.small, ids=lambda case: case.name)
def test_every_case_in_tiny_tiles(case: Case, dtype: torch.dtype) -> None:
    check(SPEC, case, Target("native", "native"), case.inputs(dtype), dtype)


def rows(count: int, features: int = 24, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, features, generator=rng, dtype=torch.float64))


def integers(high: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, high, (count,), generator=torch.Generator().manual_seed(seed))


# More rows than a tile has (512) and more columns (1024), which is also where sums go over to fp64.
MANY = {
    "one direction": {"key": rows(1300, seed=1)},
    "targets and queue": {
        "key": rows(700, seed=1),
        "targets": integers(700, 520).masked_fill(integers(5, 520) == 0, IGNORE),
        "queue": rows(1500, seed=2),
    },
    "symmetric": {"key": rows(520, seed=1), "symmetric": True, "queue": rows(1030, seed=2)},
    "labels": {
        "key": rows(1100, seed=1),
        "query_labels": integers(90, 520),
        "key_labels": integers(100, 1100, seed=1),
        "symmetric": True,
    },
    "labels, one direction": {
        "key": rows(1100, seed=1),
        "query_labels": integers(90, 520),
        "key_labels": integers(100, 1100, seed=1),
        "queue": rows(50, seed=2),
    },
    "SimCLR": {"targets": torch.arange(520).roll(260)},
    "SupCon": {"query_labels": integers(60, 520) * 2**40, "queue": rows(70, seed=2)},
    "SupCon symmetric": {"query_labels": integers(60, 520), "queue": rows(70, seed=2), "symmetric": True},
}


def evaluate(
    arrangement: dict[str, Any], dtype: torch.dtype, backend: str, reduction: str, query: Tensor | None = None
) -> list[Tensor]:
    """Loss and the gradients of all that has one."""
    made = {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in {"query": rows(520) if query is None else query, **arrangement}.items()
    }
    leaves = [made[name].clone().requires_grad_() for name in ("query", "key") if name in made]
    made |= dict(zip(("query", "key"), leaves, strict=False))
    t = torch.tensor(0.07, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    loss = cpl_kernels.info_nce(**made, temperature=t, reduction=reduction, backend=backend)
    dloss = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, [*leaves, t], dloss)]


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", MANY)
def test_many_tiles(name: str, reduction: str) -> None:
    """No further from fp64 than torch's formula in fp32 is, but for the order of sums; and the same in fp64."""
    if reduction == "none" and name == "labels":
        pytest.skip(reason="symmetric with B != M has no loss per pair")
    gold = evaluate(MANY[name], torch.float64, "reference", reduction)
    exact = evaluate(MANY[name], torch.float64, "native", reduction)
    same = evaluate(MANY[name], torch.float32, "reference", reduction)
    got = evaluate(MANY[name], torch.float32, "native", reduction)
    for ours, wide, theirs, expected in zip(got, exact, same, gold, strict=True):
        torch.testing.assert_close(wide, expected, rtol=1e-12, atol=1e-13)
        largest = expected.abs().max()
        error, allowed = (x.double().sub(expected).abs().max() for x in (ours, theirs))
        assert error <= allowed + 4e-7 * largest, f"{error} against {allowed} of {largest}"


@on("info_nce")
@pytest.mark.parametrize("place", ["query", "key"])
def test_nan_is_not_lost(target: Target, place: str) -> None:
    query, key = rows(5), rows(6, seed=1)
    (query if place == "query" else key)[2, 0] = torch.nan
    query, key = query.float().requires_grad_(), key.float().requires_grad_()
    for reduction in ("none", "mean"):
        with target.serving("info_nce"):
            loss = cpl_kernels.info_nce(query, key, reduction=reduction, backend=target.backend)
            (grad,) = torch.autograd.grad(loss.sum(), query)
        if reduction == "none":
            assert loss.isnan().tolist() == [place == "key" or i == 2 for i in range(5)]
        assert grad[2].isnan().all()


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", ["symmetric", "labels", "SimCLR", "SupCon"])
def test_rows_and_columns_of_very_different_size(name: str) -> None:
    """Logits up to thousands, and rows and columns beside them whose largest are near 0: what is summed beside one
    maximum would be lost beside another's."""
    size = torch.logspace(-2, 1.5, 520, dtype=torch.float64)[:, None]
    mixed = size[torch.randperm(520, generator=torch.Generator().manual_seed(0))]
    far, query = dict(MANY[name]), rows(520) * mixed
    if name == "symmetric":
        far["key"], query = far["key"] * mixed, rows(520)
    gold = evaluate(far, torch.float64, "reference", "mean", query)
    exact = evaluate(far, torch.float64, "native", "mean", query)
    for wide, expected in zip(exact, gold, strict=True):
        torch.testing.assert_close(wide, expected, rtol=1e-11, atol=1e-12)
    # In fp32 a logit of 300 is off by 2e-5 at each of two roundings, and exp(logit - lse) by as much of itself. The
    # 6900 of SimCLR are in rows whose probabilities are 0 and 1 all the same.
    got = evaluate(far, torch.float32, "native", "mean", query)
    for narrow, expected in zip(got, gold, strict=True):
        torch.testing.assert_close(narrow.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_tile_of_nothing_but_minus_infinity(symmetric: bool) -> None:
    """exp(-inf) is 0 also where no other product of the tile is larger: the last of these has one column."""
    query, key = rows(1000, 4).abs().float(), rows(1025, 4, seed=1).float()
    key[1024] = torch.tensor([-torch.inf, 0, 0, 0])
    options: dict[str, Any] = {"reduction": "none"}
    if symmetric:  # nobody is positive with that key, so that its own loss does not count
        options = {"query_labels": torch.arange(1000), "key_labels": torch.arange(1025), "symmetric": True}
    found = cpl_kernels.info_nce(query, key, **options, backend="native")
    assert found.isfinite().all()
    torch.testing.assert_close(found, cpl_kernels.info_nce(query, key, **options, backend="reference"))


def test_gradients_at_once_are_those_of_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one direction", "targets and queue", "labels, one direction", "labels", "SimCLR"):
        at_once = evaluate(MANY[name], torch.float32, "native", "mean")
        with monkeypatch.context() as patch:
            patch.setattr(op, "had_at_once", lambda *_: False)
            later = evaluate(MANY[name], torch.float32, "native", "mean")
        for a, b in zip(at_once, later, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_at_once_are_rounded_once() -> None:
    """Of fp16: kept in fp32 until the loss's gradient has come in."""
    half = [rows(40).half().requires_grad_(), rows(50, seed=1).half()]
    loss = cpl_kernels.info_nce(*half, backend="native")
    (grad,) = torch.autograd.grad(loss, half[0], torch.tensor(1 / 3))
    wide = half[0].detach().double().requires_grad_()
    (gold,) = torch.autograd.grad(cpl_kernels.info_nce(wide, half[1].double()) / 3, wide)
    torch.testing.assert_close(grad, gold.half(), rtol=2**-10, atol=2**-24)  # an ulp: gold may lie halfway


def test_gradients_at_once_are_handed_on_where_nothing_multiplies_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backward: list[Any] = []
    run = op.info_nce_backward
    monkeypatch.setattr(op, "info_nce_backward", lambda *args: backward.append(args) or run(*args))
    vectors = [rows(40).float().requires_grad_(), rows(50, seed=1).float().requires_grad_()]

    def gradients(factor: float, **options: bool) -> list[Tensor]:
        backward.clear()
        loss = cpl_kernels.info_nce(*vectors, backend="native")
        return list(torch.autograd.grad(loss * factor, vectors, **options))

    handed, through = gradients(1.0), gradients(2.0)
    assert len(backward) == 1
    for one, two in zip(handed, through, strict=True):
        assert torch.equal(2 * one, two)
    assert not gradients(1.0)[0].requires_grad
    assert not backward
    gradients(1.0, retain_graph=True)
    assert len(backward) == 1
    twice = gradients(1.0, create_graph=True)  # whose own derivative is an error
    assert len(backward) == 1
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(twice[0].sum(), vectors[0])
    half = rows(40).bfloat16().requires_grad_()
    torch.autograd.grad(cpl_kernels.info_nce(half, half.detach(), backend="native"), half)
    assert len(backward) == 2, "those of 16 bits are still to be rounded"


def test_gradients_of_a_graph_that_is_kept_are_each_its_own() -> None:
    query, key = rows(40).float().requires_grad_(), rows(40, seed=1).float()
    loss = cpl_kernels.info_nce(query, key, backend="native")
    (grad,) = torch.autograd.grad(loss, query, retain_graph=True)
    (again,) = torch.autograd.grad(loss, query, retain_graph=True)
    expected = grad.clone()
    grad.zero_()
    assert torch.equal(again, expected)
    again.zero_()
    assert torch.equal(torch.autograd.grad(loss, query)[0], expected)


def test_a_gradient_handed_on_can_be_changed_in_place() -> None:
    for count in (40, 48):  # padded, and as it is
        query = rows(count).float().requires_grad_()
        (grad,) = torch.autograd.grad(cpl_kernels.info_nce(query, query.detach(), backend="native"), query)
        assert not grad._is_view()
        grad.add_(torch.ones((), requires_grad=True))


def test_gradients_at_once_by_compiled_autograd() -> None:
    query, key = rows(40).float().requires_grad_(), rows(40, seed=1).float()
    (expected,) = torch.autograd.grad(cpl_kernels.info_nce(query, key, backend="native"), query)
    loss = cpl_kernels.info_nce(query, key, backend="native")
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        loss.backward()
    assert query.grad is not None
    torch.testing.assert_close(query.grad, expected)


def test_gradients_at_once_in_a_checkpoint() -> None:
    query, key = rows(40).float().requires_grad_(), rows(40, seed=1).float()
    expected = torch.autograd.grad(cpl_kernels.info_nce(query, key), query)[0]
    loss = torch.utils.checkpoint.checkpoint(
        lambda: cpl_kernels.info_nce(query * 1, key), use_reentrant=False
    )
    assert torch.equal(torch.autograd.grad(loss, query)[0], expected)


@pytest.mark.parametrize("whole", [native.WHOLE, 1], ids=["whole rows at once", "256 whole rows"])
@pytest.mark.parametrize("multiplies_bf16", [False, True])
@pytest.mark.parametrize("name", ["one direction", "symmetric", "SimCLR"])
def test_bf16(name: str, multiplies_bf16: bool, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is that of the rounded vectors to fp32, and gradients are nearer to gold than torch's in bf16."""
    monkeypatch.setattr(native, "_multiplies_bf16", lambda: multiplies_bf16)
    monkeypatch.setattr(native, "BF16_FROM", 0)
    monkeypatch.setattr(native, "WHOLE", whole)
    half = {k: v.bfloat16().double() if k in ("key", "queue") else v for k, v in MANY[name].items()}
    gold = evaluate(half, torch.float64, "reference", "mean", rows(520).bfloat16())
    got = evaluate(half, torch.bfloat16, "native", "mean", rows(520).bfloat16())
    torch.testing.assert_close(got[0].double(), gold[0], rtol=1e-6, atol=0)
    for ours, expected, theirs in zip(got[1:-1], gold[1:-1], in_bf16(half), strict=True):
        error, allowed = ((x.double() - expected).norm() for x in (ours, theirs))
        # Where nothing but the end is rounded, half an ulp of the largest element is no error.
        assert error <= (allowed if multiplies_bf16 else 2**-8 * expected.norm())


def in_bf16(arrangement: dict[str, Any]) -> list[Tensor]:
    """Gradients as torch makes them of bf16 vectors: products and logits in bf16, cross-entropy in fp32."""
    query = rows(520).bfloat16().requires_grad_()
    if "targets" in arrangement:
        logits = (query @ query.T / 0.07).fill_diagonal_(-torch.inf)
        return list(torch.autograd.grad(F.cross_entropy(logits.float(), arrangement["targets"]), [query]))
    key, place = arrangement["key"].bfloat16().requires_grad_(), torch.arange(520)
    logits = (query @ key.T / 0.07).float()
    if "queue" not in arrangement:
        return list(torch.autograd.grad(F.cross_entropy(logits, place), [query, key]))
    more = (query @ arrangement["queue"].bfloat16().T / 0.07).float()
    rows_ = F.cross_entropy(torch.cat((logits, more), 1), place)
    return list(torch.autograd.grad((rows_ + F.cross_entropy(logits.T, place)) / 2, [query, key]))


@pytest.mark.parametrize("symmetric", [False, True])
def test_keeps_no_matrix(symmetric: bool, kept: str) -> None:
    query, key = rows(64, 4).float().requires_grad_(), rows(64, 4, seed=1).float().requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cpl_kernels.info_nce(query, key, symmetric=symmetric, backend="native")
    gradients = 0 if kept == "later" else 2 * 64 * 4
    assert (
        sum(t.numel() for t in saved) <= 2 * 64 * 4 + 2 * 3 * 64 + 1 + gradients + 1
    )  # two sums and a count each way


@pytest.mark.parametrize("arrangement", ["symmetric", "SimCLR"])
def test_keeps_as_many_similarities_as_it_may(arrangement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that, in their order, still fit into the memory allowed; none is multiplied again that was kept."""
    options = {
        "symmetric": {"key": rows(96, seed=1).float(), "symmetric": True},
        "SimCLR": {"targets": torch.arange(96).roll(48)},
    }
    products: list[int] = []
    held: list[int] = []
    multiply, gradient = native.NativeTiles._put, native.NativeTiles.gradient

    def counted(tiles: native.NativeTiles, made: Tensor, *args: Any) -> None:
        products.append(made.numel())
        multiply(tiles, made, *args)

    def watched(tiles: native.NativeTiles, *args: Any) -> Tensor:
        held.append(sum(kept.numel() for kept in tiles._kept.values()))
        return gradient(tiles, *args)

    monkeypatch.setattr(native.NativeTiles, "_put", counted)
    monkeypatch.setattr(native.NativeTiles, "gradient", watched)
    monkeypatch.setattr(native.NativeTiles, "row_step", 32)
    monkeypatch.setattr(native.NativeTiles, "column_step", 32)
    every = {}
    for most in (0, 3000, 2**20):
        monkeypatch.setattr(tiled, "kept_at_most", lambda *_, most=most: most)
        products.clear()
        cpl_kernels.info_nce(rows(96).float().requires_grad_(), **options[arrangement], backend="native")
        assert max(held) <= most
        held.clear()
        every[most] = len(products)
    tiles = every[2**20]
    assert every[0] == 2 * tiles
    assert tiles < every[3000] < 2 * tiles


def same_at_any_thread_count(vectors: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """The gradients of the vectors, after seeing that they and the loss are the same to the bit."""
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loss = cpl_kernels.info_nce(*vectors, **options, backend="native")
            results.append([loss.detach(), *torch.autograd.grad(loss, vectors)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    return results[0][1:]


@pytest.mark.parametrize("cache", [0, native.LARGE_CACHE], ids=["small cache", "large cache"])
@pytest.mark.parametrize("features", [native.LONG + 4, 1100])
@pytest.mark.parametrize("arrangement", ["one direction", "symmetric", "with themselves"])
def test_same_bits_at_any_thread_count_with_long_vectors(
    arrangement: str, features: int, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From native.LONG features on tiles are larger, and with a large cache again. Half the steps of the real ones
    here, so that there are several tiles and a last small one."""
    core.core().set_last_level_cache(cache)  # set back by no_large_cache
    monkeypatch.setattr(native, "WHOLE", 1)
    monkeypatch.setattr(native.NativeTiles, "row_step", 256)
    monkeypatch.setattr(native.NativeTiles, "column_step", 512)
    sources = (0,) if arrangement == "with themselves" else (0, 1)
    vectors = [rows(1300, features, seed).float().requires_grad_() for seed in sources]
    options: dict[str, Any] = {"symmetric": arrangement == "symmetric"}
    if arrangement == "with themselves":
        options["targets"] = torch.arange(1300).roll(650)
    gradients = same_at_any_thread_count(vectors, options)
    wide = [x.detach().double().requires_grad_() for x in vectors]
    gold = cpl_kernels.info_nce(*wide, **options, backend="reference")
    for got, expected in zip(gradients, torch.autograd.grad(gold, wide), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [16, 128, 144, 272, 1024])
def test_a_tile_on_the_diagonal_is_multiplied_once(
    count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By blocks, whose mirror images are copied: exactly symmetric, and nothing beside the tile is written."""
    x = rows(count, 32).to(dtype)
    tiles = native.NativeTiles(x, torch.ones((), dtype=dtype), dtype)
    around = torch.full((count, count + 48), torch.nan, dtype=dtype)
    products = around[:, :count]
    multiplied: list[int] = []
    put = tiled.put_product

    def counted(total: Tensor, *factors: Tensor) -> None:
        multiplied.append(total.numel())
        put(total, *factors)

    monkeypatch.setattr(tiled, "put_product", counted)
    whole = Span(0, count)
    tiles._put(products, x, x, Place(whole, whole, without_diagonal=True))
    blocks = range(0, count, native.BLOCK)
    assert sum(multiplied) == sum(min(native.BLOCK, count - i) * (count - i) for i in blocks)
    if count > native.BLOCK:
        assert torch.equal(products, products.T)
    assert around[:, count:].isnan().all()
    torch.testing.assert_close(products, x @ x.T, rtol=0, atol=4 * torch.finfo(dtype).eps)  # of unit vectors


@pytest.mark.parametrize("features", [24, native.LONG])
def test_tiles_are_larger_where_the_last_cache_is(features: int) -> None:
    query, key = rows(1300, features).float(), rows(2100, features, seed=1).float()
    temperature, steps, losses = torch.ones(()), [], []
    for cache in (0, native.LARGE_CACHE):
        core.core().set_last_level_cache(cache)  # set back by no_large_cache
        tiles = native.NativeTiles(query, temperature, query.dtype)
        steps.append((tiles.row_step, tiles.column_step))
        losses.append(cpl_kernels.info_nce(query, key, reduction="none", backend="native"))
    assert steps[1] == (2 * steps[0][0], 2 * steps[0][1])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("features", [48, 512, 1100])
@pytest.mark.parametrize("sizes", [(32, 32), (16, 144), (48, 512), (144, 1024), (512,), (1296,)], ids=str)
def test_same_bits_at_any_thread_count_of_small_products_of_long_vectors(
    sizes: tuple[int, ...], features: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where threads are many for a result, MKL would share out its sums. Of 1296 vectors with themselves, the last tile
    has 272 rows, and its last block 16."""
    core.core().set_last_level_cache(native.LARGE_CACHE)  # set back by no_large_cache
    monkeypatch.setattr(native, "BF16_FROM", 0)
    vectors = [rows(n, features, seed).to(dtype).requires_grad_() for seed, n in enumerate(sizes)]
    options = {"targets": torch.arange(sizes[0]).roll(sizes[0] // 2)} if len(sizes) == 1 else {}
    same_at_any_thread_count(vectors, options)


@pytest.mark.parametrize("symmetric", [False, True])
def test_keys_in_the_memory_of_the_queries(symmetric: bool) -> None:
    """Their products are symmetric as well; otherwise they are keys like others."""
    x = rows(272).requires_grad_()
    key = rows(272).requires_grad_()
    found = []
    for other in (x.detach(), key.detach()):
        loss = cpl_kernels.info_nce(x, other, symmetric=symmetric, backend="native")
        found.append((loss.detach(), *torch.autograd.grad(loss, x)))
    for shared, apart in zip(*found, strict=True):
        torch.testing.assert_close(shared, apart, rtol=1e-12, atol=1e-14)

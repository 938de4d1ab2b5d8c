"""Products on the processor's matrix units, and the same in plain C++ under the sanitizers (test_sanitizers.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpl_kernels import products

pytestmark = pytest.mark.skipif(not products.available(), reason="this process has no matrix units")

# Rows, terms, columns. One number; a tile and a panel, one less and one more; more terms than are summed in one go
# (512); more rows than a thread has together; more columns than rows.
SHAPES = [
    (1, 1, 1),
    (16, 32, 16),
    (15, 31, 17),
    (33, 65, 31),
    (32, 512, 32),
    (40, 513, 70),
    (450, 64, 33),
    (3, 48, 700),
]
BITS_OF_HALF = 2**-24  # of fp32: half of what neighbouring numbers are apart, in their size


def numbers(rows: int, columns: int, seed: int, transposed: bool = False) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    made = torch.randn((columns, rows) if transposed else (rows, columns), generator=rng)
    return made.T if transposed else made


def memory(count: int) -> Tensor:
    made = torch.empty(count, dtype=torch.uint8)
    assert made.data_ptr() % 64 == 0
    return made


def packed(right: Tensor, pieces: int = 3) -> products.Right:
    return products.Right.of(right, pieces, memory)


def product(left: Tensor, right: products.Right, **options: bool) -> Tensor:
    out = torch.empty(len(left), right.plain.shape[1])
    right.multiply(left, out, **options)
    return out


def allowed(left: Tensor, right: Tensor, terms: int) -> Tensor:
    """Of a sum of rounded products in fp32, at worst; the pieces lose as much as a rounding of each product."""
    return (left.double().abs() @ right.double().abs()) * (terms**0.5 + 4) * BITS_OF_HALF


@pytest.mark.parametrize("left_turned", [False, True])
@pytest.mark.parametrize("right_turned", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_as_near_as_fp32(shape: tuple[int, int, int], left_turned: bool, right_turned: bool) -> None:
    rows, terms, columns = shape
    left, right = numbers(rows, terms, 0, left_turned), numbers(terms, columns, 1, right_turned)
    gold = left.double() @ right.double()
    error = (product(left, packed(right)).double() - gold).abs()
    assert (error <= allowed(left, right, terms)).all()
    theirs = (left @ right).double().sub(gold).abs()
    assert error.square().mean() <= 1.2 * theirs.square().mean() + 1e-16, "further away than torch in fp32"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bf16_numbers_are_multiplied_exactly(shape: tuple[int, int, int]) -> None:
    rows, terms, columns = shape
    left, right = (x.bfloat16().float() for x in (numbers(rows, terms, 0), numbers(terms, columns, 1)))
    gold = left.double() @ right.double()
    for pieces in (1, 3):
        error = (product(left, packed(right, pieces)).double() - gold).abs()
        assert (error <= allowed(left, right, terms)).all()


def test_long_sums_are_no_further_away_than_torchs() -> None:
    left, right = numbers(64, 8192, 0).abs(), numbers(8192, 64, 1).abs()  # no term makes up for another
    gold = left.double() @ right.double()
    ours, theirs = ((x.double() - gold).square().mean() for x in (product(left, packed(right)), left @ right))
    assert ours <= theirs


def test_all_of_the_digits_count() -> None:
    """Factors whose product needs each piece: what two pieces, or five of the six products, would lose is seen."""
    for digits in (2**-8, 2**-16, 2**-23):
        left, right = torch.full((1, 1), 1 + digits), torch.full((1, 1), 1 + digits)
        assert product(left, packed(right)).item() == pytest.approx((1 + digits) ** 2, rel=2**-23, abs=0)
        assert product(left, packed(torch.ones(1, 1))).item() == left.item()
        assert product(torch.ones(1, 1), packed(right)).item() == right.item()


def test_far_apart_in_size() -> None:
    size = torch.logspace(-18, 18, 64)
    left, right = numbers(20, 64, 0) * size, numbers(64, 20, 1) / size[:, None]
    error = (product(left, packed(right)).double() - left.double() @ right.double()).abs()
    assert (error <= allowed(left, right, 64)).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_added(shape: tuple[int, int, int]) -> None:
    rows, terms, columns = shape
    left, right = numbers(rows, terms, 0), packed(numbers(terms, columns, 1))
    before = numbers(rows, columns, 2)
    out = before.clone()
    right.multiply(left, out, add=True)
    expected = product(left, right) if terms <= 512 else None
    if expected is not None:  # one sum, added once
        assert torch.equal(out, before + expected)
    gold = before.double() + left.double() @ right.plain.double()
    assert (
        (out.double() - gold).abs() <= allowed(left, right.plain, terms) + gold.abs() * 3 * BITS_OF_HALF
    ).all()


def test_only_what_is_named_is_written() -> None:
    left, right = numbers(37, 40, 0), numbers(40, 45, 1)
    around = torch.full((40, 64), torch.nan)
    packed(right).multiply(left, around[:37, :45])
    assert around[37:].isnan().all()
    assert around[:, 45:].isnan().all()
    assert torch.equal(around[:37, :45], product(left, packed(right)))


@pytest.mark.parametrize("rows", [slice(0, 70), slice(32, 64), slice(64, 70), slice(96, 130)], ids=str)
@pytest.mark.parametrize("columns", [slice(None), slice(32, 90), slice(64, 65)], ids=str)
def test_parts(rows: slice, columns: slice) -> None:
    right = numbers(130, 90, 1)
    part = packed(right).part(rows, columns)
    assert torch.equal(part.plain, right[rows, columns])
    left = numbers(20, len(part.plain), 0)
    assert torch.equal(product(left, part), product(left, packed(right[rows, columns].contiguous())))


def test_a_part_must_begin_between_panels() -> None:
    right = packed(numbers(64, 64, 1))
    assert right.part(slice(32, 64)).packed is not None
    assert right.part(slice(16, 64)).packed is None
    assert right.part(slice(0, 64), slice(8, 64)).packed is None


@pytest.mark.parametrize("size", [20, 32, 65, 260])
@pytest.mark.usefixtures("threads")
def test_above_the_diagonal(size: int) -> None:
    left, right = numbers(size, 48, 0), packed(numbers(48, size, 1))
    whole = product(left, right)
    panel = torch.arange(size) // products.PANEL
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = torch.full((size, size), torch.nan)
        right.multiply(left, out, above_diagonal=True)
        above = panel[:, None] <= panel[None, :]
        assert torch.equal(out[above], whole[above])
        assert out[~above].isnan().all()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(450, 600, 33), (10, 600, 700), (1, 1, 1)], ids=str)
def test_the_same_bits_at_any_number_of_threads(shape: tuple[int, int, int]) -> None:
    rows, terms, columns = shape
    left, right = numbers(rows, terms, 0), numbers(terms, columns, 1)
    made = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        made.append(product(left, packed(right)))
    assert all(torch.equal(made[0], other) for other in made[1:])


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 3.4e38, -(2.0**63)])
@pytest.mark.parametrize("turned", [False, True])
def test_what_has_no_pieces_is_told(bad: float, turned: bool) -> None:
    good = numbers(40, 40, 0, turned)
    for place in ((0, 0), (39, 39), (17, 20)):
        other = good.clone(memory_format=torch.preserve_format)
        other[place] = bad
        assert packed(other).packed is None
        assert not products.have_pieces(other)
        made = product(other, packed(good))
        assert abs(bad) == 2.0**63 or made[place[0]].isnan().all()
        rest = torch.arange(40) != place[0]
        assert torch.equal(made[rest], product(good, packed(good))[rest])
    assert products.have_pieces(good)
    largest = torch.full((1, 1), 9.2e18)
    assert products.have_pieces(largest)
    assert packed(largest).packed is not None
    assert product(torch.ones(1, 1), packed(largest)).item() == largest.item()
    assert product(largest, packed(-largest)).item() == pytest.approx(-(largest.item() ** 2), rel=1e-6)


def test_nothing_to_do() -> None:
    assert product(torch.empty(0, 5), packed(numbers(5, 4, 0))).shape == (0, 4)
    assert product(numbers(3, 5, 0), packed(torch.empty(5, 0))).shape == (3, 0)
    nothing = packed(torch.empty(0, 4))
    assert torch.equal(product(torch.empty(3, 0), nothing), torch.zeros(3, 4))
    ones = torch.ones(3, 4)
    nothing.multiply(torch.empty(3, 0), ones, add=True)
    assert torch.equal(ones, torch.ones(3, 4))

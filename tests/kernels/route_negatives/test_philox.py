"""The random bits: published vectors, and a second implementation in Python's own integers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpl_kernels import philox
from tests.kernels.route_negatives import spec

# Random123, kat_vectors: counter, key, result of philox4x32-10.
VECTORS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def words(values: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v) for v in values)


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS, ids=["zeros", "ones", "pi"])
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], result: tuple[int, ...]) -> None:
    assert tuple(int(w) for w in philox.philox4x32(words(counter), words(key))) == result


def test_key_of_a_seed_is_its_two_words() -> None:
    for seed in (0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF):
        low, high = philox.key_of(torch.tensor(seed))
        assert int(low) | int(high) << 32 == seed % 2**64


@pytest.mark.parametrize("bound", [1, 2, 3, 5, 1000, 2**31 - 1])
def test_below_is_the_exact_multiply_shift(bound: int) -> None:
    bits = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15]
    low, high = torch.tensor([b % 2**32 for b in bits]), torch.tensor([b >> 32 for b in bits])
    assert philox.below(bound, low, high).tolist() == [b * bound >> 64 for b in bits]


def test_draws_are_the_documented_shuffle() -> None:
    """Counter (image, negative, step, 0); partial Fisher-Yates over the candidates as given."""
    seed, count, repeats = -(2**40) - 12345, 3, 4
    candidates = torch.tensor([[9, 4, 7, 1, 0], [3, 2, 8, 6, 5]])
    drawn = philox.draw_distinct(torch.tensor([seed]), candidates, count, repeats)
    for j in range(repeats):
        for b in range(2):
            pool, expected = candidates[b].tolist(), []
            for i in range(count):
                low, high, _, _ = spec.philox([b, j, i, 0], [seed % 2**32, seed % 2**64 >> 32])
                at = i + ((low | high << 32) * (5 - i) >> 64)
                pool[i], pool[at] = pool[at], pool[i]
                expected.append(pool[i])
            assert drawn[j, b].tolist() == expected

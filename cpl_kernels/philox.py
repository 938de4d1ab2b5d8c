"""Philox4x32-10, the counter-based random generator, in torch integer arithmetic.

A draw is a pure function of a 64-bit key and a 128-bit counter. There is no state to carry, so every
thread of every backend computes its own draw, and the same seed gives the same bits on all of them.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the constants and
the test vectors are those of the authors' Random123 library.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF  # 32 bits; words are held in int64, whose products wrap at 64 bits as uint64 would
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Words4 = tuple[Tensor, Tensor, Tensor, Tensor]


def key_of(seed: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high word of an int64 seed (negative ones by their two's complement)."""
    return seed & WORD, (seed >> 32) & WORD


def philox4x32(counter: Words4, key: tuple[Tensor, Tensor]) -> Words4:
    """Four random words for a counter of four words and a key of two; all broadcast, int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            _high(product1) ^ c1 ^ k0,
            product1 & WORD,
            _high(product0) ^ c3 ^ k1,
            product0 & WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & WORD, (k1 + _WEYL[1]) & WORD
    return c0, c1, c2, c3


def below(bound: int, low: Tensor, high: Tensor) -> Tensor:
    """An integer from 0 to bound-1 out of 64 random bits, high * 2^32 + low: floor(bits * bound / 2^64).

    Each value's probability is within 2^-64 of 1 / bound (multiply-shift, without rejection), so every
    thread needs one draw only. 1 <= bound < 2^31, so that nothing overflows.
    """
    return (high * bound + ((low * bound) >> 32)) >> 32


def draw_distinct(seed: Tensor, candidates: Tensor, count: int, repeats: int) -> Tensor:
    """Draw ``count`` distinct ones of each row's candidates, ``repeats`` times over, each equally likely.

    Args:
        seed: int64, one element.
        candidates: [B, n], int64, count <= n.

    Returns:
        [repeats, B, count]: draw j of image b is a partial Fisher-Yates shuffle of candidates[b], as

            for i in 0 .. count-1:
                bits = words 0 (low) and 1 (high) of philox(counter = (b, j, i, 0), key = seed)
                swap list[i] and list[i + below(n - i, bits)];  result[i] = list[i]
    """
    device = candidates.device
    batch, n = candidates.shape
    if batch == 0 or repeats == 0:
        return candidates.new_empty(repeats, batch, count)
    image = torch.arange(batch, device=device).view(1, batch, 1)
    repeat = torch.arange(repeats, device=device).view(repeats, 1, 1)
    step = torch.arange(count, device=device).view(1, 1, count)
    low, high, _, _ = philox4x32((image, repeat, step, torch.zeros_like(step)), key_of(seed.reshape(1)))
    pool = candidates.expand(repeats, batch, n).clone()
    for i in range(count):
        at = i + below(n - i, low[..., i], high[..., i]).unsqueeze(2)  # [repeats, B, 1]
        taken = pool.gather(2, at)
        pool.scatter_(2, at, pool[..., i : i + 1].clone())
        pool[..., i : i + 1] = taken
    return pool[..., :count].contiguous()


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & WORD  # the shift is arithmetic; the mask takes its sign bits off

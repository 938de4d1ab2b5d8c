"""What the matrix needs to know of route_negatives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor

import cpl_kernels
from tests.kernels.route_topk.spec import Make, distinct, rounded
from tests.kernels.spec import EXACT, RULE, WIDEN, Bad, Case, Inputs, OpSpec

SEED = torch.tensor(20250409)
_MASK = 2**32 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers, from the paper (Salmon et al., SC 2011, figure 3 and table 2)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


def naive(
    logits: Tensor, seed: Tensor, k: int, num_negatives: int, weights: str, normalize: str
) -> tuple[Tensor, Tensor]:
    """Draws from a list of what is left, one number at a time."""
    key = [int(seed) & _MASK, (int(seed) >> 32) & _MASK]
    prompts, p = logits.shape[1], logits.softmax(1)
    drawn, weighed = [], []
    for j in range(num_negatives):
        for b, row in enumerate(logits.tolist()):
            order = sorted(range(prompts), key=lambda i, row=row: (-row[i], i))
            pool = sorted(order[k:])
            for i in range(k):  # the first i are taken
                low, high, *_ = philox([b, j, i, 0], key)
                at = i + ((low | high << 32) * (len(pool) - i) >> 64)
                pool[i], pool[at] = pool[at], pool[i]
            drawn.append(pool[:k])
            weighed.append(p[b, order[:k] if weights == "positive" else pool[:k]])
    shape = (num_negatives, logits.shape[0], k)
    w = torch.stack(weighed).reshape(shape) if weighed else logits.new_zeros(shape)
    indices = torch.tensor(drawn, dtype=torch.int64).reshape(shape)
    return (w if normalize == "none" else w / w.sum(2, keepdim=True)), indices


def case(
    name: str,
    why: str,
    shape: Sequence[int],
    k: int,
    num_negatives: int,
    weights: str = "own",
    normalize: str = "none",
    logits: Make = distinct,
    seed: int = int(SEED),
) -> Case:
    def make(rng: torch.Generator) -> Inputs:
        return {"logits": logits(rng, shape), "seed": torch.tensor(seed)}

    options = {"k": k, "num_negatives": num_negatives, "weights": weights, "normalize": normalize}
    call, plain = partial(cpl_kernels.route_negatives, **options), partial(naive, **options)
    return Case(name, why, make, call, plain, terms=4)


def _random(
    batch: int, left: int, k: int, num_negatives: int, weights: str, normalize: str, logits: Make, seed: int
) -> Case:
    shape = (batch, 2 * k + left)
    return case("random", "any option", shape, k, num_negatives, weights, normalize, logits, seed)


L = torch.zeros(2, 5)
call = partial(cpl_kernels.route_negatives, seed=SEED)

SPEC = OpSpec(
    name="route_negatives",
    cases=(
        case("model", "the published choice, CPR's four negatives", (4, 5), 1, 4),
        case("nothing left over", "N = 2k: all that is left is drawn", (3, 6), 3, 2, "own", "topk"),
        case("beyond a warp", "more prompts, and more drawn, than lanes", (2, 80), 33, 2, "positive", "topk"),
        case("ties", "which are chosen says the lowest index", (5, 7), 2, 3, logits=rounded),
        case(
            "1e4",
            "the weights of the rest are 0, of the chosen 1",
            (4, 6),
            2,
            2,
            "positive",
            logits=lambda *a: 1e4 * distinct(*a),
        ),
        case("negative seed", "its high word has the sign", (3, 9), 2, 2, seed=-3),
        case("no images", "draws for nobody", (0, 5), 2, 4),
    ),
    small=(
        case("own", "the published weights", (3, 7), 2, 3),
        case("positive", "the other weights, renormalised", (3, 7), 2, 3, "positive", "topk"),
    ),
    large=case("large", "C++ gives a thread 4 such rows: 4, 4 and 1", (9, 4096), 4, 4),
    random=st.builds(
        _random,
        st.integers(0, 5),
        st.integers(0, 30),
        st.integers(1, 5),
        st.integers(1, 4),
        st.sampled_from(["own", "positive"]),
        st.sampled_from(["none", "topk", "straight_through"]),
        st.sampled_from([distinct, rounded]),
        st.integers(-(2**63), 2**63 - 1),
    ),
    outputs={"weights": RULE, "indices": EXACT},
    autocast={"logits": WIDEN},
    bad={
        "N < 2k": Bad(lambda: call(L, 3, 4), ValueError, "N >= 2k.*N = 5 and k = 3"),
        "k = 0": Bad(lambda: call(L, 0, 4), ValueError, "k must be from 1"),
        "k > N": Bad(lambda: call(L, 9, 4), ValueError, "k must be from 1 to N = 5"),
        "none wanted": Bad(lambda: call(L, 1, 0), ValueError, "num_negatives must be at least 1, got 0"),
        "fractional": Bad(lambda: call(L, 1, 1.5), TypeError, "num_negatives must be an int, got float"),
        "rank": Bad(lambda: call(L[0], 1, 4), ValueError, r"\[B, N\]"),
        "integers": Bad(lambda: call(L.int(), 1, 4), TypeError, "int32"),
        "weights": Bad(lambda: call(L, 1, 4, weights="mine"), ValueError, "'own', 'positive', got 'mine'"),
        "normalize": Bad(lambda: call(L, 1, 4, normalize="l2"), ValueError, "got 'l2'"),
        "seed int": Bad(lambda: call(L, 1, 4, seed=3), TypeError, "seed must be a torch.Tensor, got int"),
        "seed dtype": Bad(
            lambda: call(L, 1, 4, seed=torch.tensor(1.0)), TypeError, "seed must be int64, got torch.float32"
        ),
        "seed shape": Bad(lambda: call(L, 1, 4, seed=torch.zeros(2).long()), ValueError, r"seed.*\(2,\)"),
        "both": Bad(lambda: call(L, 1, 4, generator=torch.Generator()), ValueError, "not both"),
        "NaN": Bad(lambda: call(L * torch.nan, 1, 4), cpl_kernels.NonFiniteError, "no softmax in row 0"),
        "backend": Bad(lambda: call(L, 1, 4, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)

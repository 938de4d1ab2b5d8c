"""What the matrix needs to know of route_topk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor

import cpl_kernels
from tests.kernels.spec import EXACT, RULE, WIDEN, Bad, Case, OpSpec

Make = Callable[[torch.Generator, Sequence[int]], Tensor]


def naive(logits: Tensor, k: int, normalize: str) -> tuple[Tensor, Tensor]:
    """Sorted row by row in Python, by logit and then by index."""
    rows = [sorted(range(logits.shape[1]), key=lambda i: (-row[i], i))[:k] for row in logits.tolist()]
    indices = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), k)
    p = (logits - logits.detach().amax(1, keepdim=True)).exp()
    p = (p / p.sum(1, keepdim=True)).gather(1, indices)
    if normalize == "none":
        return p, indices
    total = p.sum(1, keepdim=True)
    return p / (total if normalize == "topk" else total.detach()), indices


def distinct(rng: torch.Generator, shape: Sequence[int]) -> Tensor:
    """From -2 to 2, distinct also in bf16: a small step of gradcheck must not change the order."""
    batch, prompts = shape
    rows = [torch.randperm(prompts, generator=rng).double() for _ in range(batch)]
    return torch.stack(rows) * (4 / prompts) - 2 if rows else torch.zeros(batch, prompts, dtype=torch.float64)


def rounded(rng: torch.Generator, shape: Sequence[int]) -> Tensor:
    return torch.randint(-1, 2, tuple(shape), generator=rng).double()


def case(
    name: str, why: str, shape: Sequence[int], k: int, normalize: str = "none", logits: Make = distinct
) -> Case:
    options = {"k": k, "normalize": normalize}
    return Case(
        name,
        why,
        lambda rng: {"logits": logits(rng, shape)},
        partial(cpl_kernels.route_topk, **options),
        partial(naive, **options),
        terms=4,
        floor=0.1,  # with one prompt, or all weight on one, the gradient cancels to 0
    )


def _random(batch: int, prompts: int, k: int, normalize: str, logits: Make) -> Case:
    return case("random", "any shape and option", (batch, prompts), 1 + k % prompts, normalize, logits)


L = torch.zeros(2, 5)
call = cpl_kernels.route_topk

SPEC = OpSpec(
    name="route_topk",
    cases=(
        case("model", "the published choice", (4, 5), 1),
        case("all", "PromptIR: nothing is left out", (2, 5), 5),
        case("one prompt", "the weight is 1 and its gradient 0", (3, 1), 1),
        case("beyond a warp", "more prompts, and more chosen, than lanes", (2, 37), 33, "topk"),
        case("many", "beyond any register tile; an unstable sort shows", (2, 1000), 1000, logits=rounded),
        case("sharp", "one weight has nearly all", (3, 6), 3, logits=lambda *a: 8 * distinct(*a)),
        case("ties", "to the lowest index", (6, 7), 4, logits=rounded),
        case("equal", "all tie", (3, 9), 3, "topk", lambda rng, shape: torch.full(tuple(shape), 3.0).double()),
        case("1e4", "exp overflows without the maximum taken off", (4, 6), 2, logits=lambda *a: 1e4 * rounded(*a)),
        case("1e4, renormalised", "as above", (4, 6), 2, "topk", lambda *a: 1e4 * rounded(*a)),
        case("straight through", "one weight, 1, whose gradient is that of p over p", (4, 5), 1, "straight_through"),
        case("straight through, three", "the sum is a constant to the gradient", (3, 7), 3, "straight_through"),
        case("no images", "sums over nothing", (0, 5), 2),
    ),
    small=(
        case("two of five", "one chosen row beside what is left", (3, 5), 2),
        case("renormalised", "the other formula", (3, 5), 2, "topk"),
    ),
    large=case("large", "C++ gives a thread 4 such rows: 4, 4 and 1", (9, 4096), 4),
    random=st.builds(
        _random,
        st.integers(0, 9),
        st.integers(1, 70),
        st.integers(0, 100),
        st.sampled_from(["none", "topk", "straight_through"]),
        st.sampled_from([distinct, rounded]),
    ),
    outputs={"weights": RULE, "indices": EXACT},
    differentiable=("logits",),
    autocast={"logits": WIDEN},
    bad={
        "rank": Bad(lambda: call(L[0], 1), ValueError, r"\[B, N\].*\(5,\)"),
        "integer logits": Bad(lambda: call(L.long(), 1), TypeError, "logits must be float32.*int64"),
        "not a tensor": Bad(lambda: call([[1.0]], 1), TypeError, "Tensor, got list"),  # type: ignore[arg-type]
        "k = 0": Bad(lambda: call(L, 0), ValueError, "k must be from 1 to N = 5.*got 0"),
        "k > N": Bad(lambda: call(L, 6), ValueError, "k must be from 1 to N = 5.*got 6"),
        "k float": Bad(lambda: call(L, 1.0), TypeError, "k must be an int, got float"),  # type: ignore[arg-type]
        "k bool": Bad(lambda: call(L, True), TypeError, "k must be an int, got bool"),
        "no prompts": Bad(lambda: call(L[:, :0], 1), ValueError, "N = 0"),
        "normalize": Bad(lambda: call(L, 1, "sum"), ValueError, "'none', 'topk', 'straight_through', got 'sum'"),
        "backend": Bad(lambda: call(L, 1, backend="fast"), ValueError, "'reference'.*'fast'"),
        "NaN": Bad(lambda: call(L * torch.nan, 1), cpl_kernels.NonFiniteError, "no softmax in row 0.*nan"),
    },
)  # fmt: skip

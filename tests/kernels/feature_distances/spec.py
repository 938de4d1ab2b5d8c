"""What the matrix needs to know of feature_distances (of one layer; lists are its own tests')."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from tests.kernels.spec import Bad, Case, OpSpec, randn


def naive(anchor: Tensor, others: Tensor, p: int, normalize: bool) -> Tensor:
    """torch's own losses, one negative and one image at a time."""
    loss = F.l1_loss if p == 1 else F.mse_loss
    rows = []
    for other in others:
        row = [
            loss(*(F.normalize(x, dim=0) for x in (a, o))) if normalize else loss(a, o)
            for a, o in zip(anchor, other, strict=True)
        ]
        rows.append(torch.stack(row) if row else anchor.reshape(0) + other.reshape(0))
    return torch.stack(rows)


def case(
    name: str,
    why: str,
    negatives: int,
    shape: Sequence[int],
    p: int = 1,
    normalize: bool = False,
    scale: float = 1,
) -> Case:
    return Case(
        name,
        why,
        lambda rng: {"anchor": scale * randn(rng, *shape), "others": scale * randn(rng, negatives, *shape)},
        partial(cpl_kernels.feature_distances, p=p, normalize=normalize),
        partial(naive, p=p, normalize=normalize),
        terms=4,
        # The gradient through a norm is of the size 1 / |x|, its parts may cancel (one channel: to 0).
        floor=0.1 if normalize else 0.0,
    )


def _random(negatives: int, batch: int, channels: int, rest: list[int], p: int, normalize: bool) -> Case:
    return case("random", "any shape and option", negatives, (batch, channels, *rest), p, normalize)


A, X = torch.zeros(2, 3, 4), torch.zeros(5, 2, 3, 4)
call = cpl_kernels.feature_distances

SPEC = OpSpec(
    name="feature_distances",
    cases=(
        case("four negatives", "CPR's", 4, (2, 16, 6, 6)),
        case("squared", "the other p", 3, (2, 5, 4, 3), p=2),
        case("normalised", "over the channels", 2, (2, 8, 3, 5), normalize=True),
        case("normalised, squared", "both options", 2, (3, 8, 3, 2), p=2, normalize=True),
        case("one number", "the smallest", 1, (3,)),
        case("vectors", "no pixels", 2, (4, 7), normalize=True),
        case("beyond", "five dimensions, odd, one more than a tile of 256", 2, (1, 3, 5, 1, 257)),
        case("five negatives", "one more than a kernel takes at once", 5, (2, 16, 6, 6)),
        case("long", "an image of two tiles and a tail", 2, (1, 5, 41, 47)),
        case("long, normalised", "several tiles of pixels and a tail", 2, (1, 5, 41, 11), normalize=True),
        case("large values", "squares end fp16; the sum is in fp32", 2, (2, 8, 3, 2), p=2, scale=1e3),
        case("no images", "a result without elements", 2, (0, 3, 4)),
    ),
    small=(
        case("p1", "the published one", 2, (2, 3, 4)),
        case("p2, normalised", "the other formula, with pixels", 2, (2, 3, 1, 4), 2, True),
        case("p1, normalised", "the third formula", 2, (2, 3, 2), 1, True),
    ),
    large=case("large", "more negatives and images than threads, and a tail", 4, (3, 16, 33, 35)),
    random=st.builds(
        _random,
        st.integers(1, 5),
        st.integers(1, 4),
        st.integers(2, 9),
        st.lists(st.integers(1, 20), max_size=3),
        st.sampled_from([1, 2]),
        st.booleans(),
    ),
    outputs={"distances": "rule"},
    differentiable=("anchor", "others"),
    images=True,
    wide_result=True,
    bad={
        "no K": Bad(lambda: call(A, A), ValueError, r"others must be \[K, B, ...\].*\(2, 3, 4\).*unsqueeze"),
        "shape": Bad(lambda: call(A, X[..., :3]), ValueError, r"others.*\(2, 3, 4\).*\(5, 2, 3, 3\)"),
        "batch": Bad(lambda: call(A[:1], X), ValueError, r"others.*\(1, 3, 4\)"),
        "scalar": Bad(lambda: call(A[0, 0, 0], X), ValueError, r"anchor must be \[B, ...\]"),
        "no channels": Bad(
            lambda: call(A[:, 0, 0], X[:, :, 0, 0], 1, True), ValueError, r"\[B, C, ...\].*\(2,\)"
        ),
        "no elements": Bad(
            lambda: call(A[:, :0], X[:, :, :0]), ValueError, r"at least one element.*\(2, 0, 4\)"
        ),
        "dtype": Bad(lambda: call(A.int(), X), TypeError, "anchor.*int32"),
        "others dtype": Bad(lambda: call(A, X.long()), TypeError, "others.*int64"),
        "p": Bad(lambda: call(A, X, 3), ValueError, "p must be 1.*or 2.*got 3"),
        "p bool": Bad(lambda: call(A, X, True), ValueError, "got True"),
        "half a list": Bad(lambda: call([A], X), TypeError, "both lists.*list and Tensor"),
        "lengths": Bad(lambda: call([A, A], [X]), ValueError, "same layers.*2 and 1"),
        "empty list": Bad(lambda: call([], []), ValueError, "at least one, got 0 and 0"),
        "second layer": Bad(lambda: call([A, A], [X, A]), ValueError, r"others\[1\] must be"),
        "layers' K": Bad(lambda: call([A, A], [X, X[:2]]), ValueError, "same K and B"),
        "weights": Bad(
            lambda: call([A], [X], layer_weights=[1, 2]), ValueError, r"1 layers, got \[1.0, 2.0\]"
        ),
        "NaN weight": Bad(
            lambda: call(A, X, layer_weights=[float("nan")]), ValueError, r"finite, got \[nan\]"
        ),
        "device": Bad(lambda: call(A, X.to("meta")), ValueError, "others is on meta"),
        "backend": Bad(lambda: call(A, X, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)

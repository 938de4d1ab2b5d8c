"""What the matrix needs to know of aggregate_prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from tests.kernels.spec import Bad, Case, Inputs, OpSpec, randn, sums_of_magnitudes

Size = tuple[int, int] | int | None


def naive(weights: Tensor, indices: Tensor, prompts: Tensor, size: Size) -> Tensor:
    """The dense form of PromptIR: every prompt resized, then summed with its weight (mostly 0)."""
    dense = torch.zeros(weights.shape[0], prompts.shape[0], dtype=weights.dtype)
    for i in range(weights.shape[1]):
        dense = dense + F.one_hot(indices[:, i], prompts.shape[0]) * weights[:, i : i + 1]
    resized = prompts
    if size is not None:
        resized = F.interpolate(prompts, size, mode="bilinear", align_corners=False)
    return torch.einsum("bn,nchw->bchw", dense, resized)


def case(
    name: str, why: str, indices: list[list[int]], prompts: tuple[int, ...], size: Size = None, k: int = 2
) -> Case:
    """``k`` is for no rows at all."""

    def make(rng: torch.Generator) -> Inputs:
        chosen = torch.tensor(indices, dtype=torch.int64).reshape(
            len(indices), len(indices[0]) if indices else k
        )
        return {"weights": randn(rng, *chosen.shape), "indices": chosen, "prompts": randn(rng, *prompts)}

    call, plain = partial(cpl_kernels.aggregate_prompts, size=size), partial(naive, size=size)

    def terms(inputs: Inputs, gradients: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """Four times the largest: where the resize lies between two numbers is rounded too, by eps of its place."""
        found = sums_of_magnitudes(plain)(inputs, gradients)
        return {n: 4 * x.amax().expand_as(x) if x.numel() else x for n, x in found.items()}

    return Case(name, why, make, call, plain, terms)


def cycled(batch: int, k: int, prompts: int, step: int = 1) -> list[list[int]]:
    return [[(i * k + j * step) % prompts for j in range(k)] for i in range(batch)]


def _random(
    batch: int, k: int, prompts: tuple[int, int, int, int], step: int, size: tuple[int, int] | None
) -> Case:
    """``size`` as any numbers, of which what is up to three times the prompts' own size is made."""
    if size is not None:
        size = (1 + size[0] % (3 * prompts[2]), 1 + size[1] % (3 * prompts[3]))
    return case("random", "any shape", cycled(batch, k, prompts[0], step), prompts, size, k)


W, CHOSEN, P = torch.ones(2, 1), torch.zeros(2, 1).long(), torch.ones(5, 3, 4, 4)
call = cpl_kernels.aggregate_prompts

# Triton's interpreter walks every tap of every pair in Python: (2 H / S_h) (2 W / S_w) of them, rounded up, for each
# pair, channel and tile of 512. So no shape is larger than its reason.
SPEC = OpSpec(
    name="aggregate_prompts",
    cases=(
        case(
            "one of five",
            "the published choice, no resize; one prompt for two images",
            [[3], [0], [3]],
            (5, 4, 6, 6),
        ),
        case("all five", "PromptIR, enlarged", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]], (5, 1, 4, 4), 6),
        case(
            "reduced",
            "rows between which pixels are passed over; thin",
            [[1, 0], [0, 1]],
            (2, 3, 8, 8),
            (1, 3),
        ),
        case("one image", "a batch of one, only rows resized", [[1, 0]], (2, 2, 5, 7), (11, 7)),
        case("pixel", "a prompt of one pixel is constant", [[0], [1]], (2, 2, 1, 1), (3, 2)),
        case(
            "beyond",
            "tiles of 1024 results, 512 and 256 of a prompt: one pixel more; odd",
            [[1], [0]],
            (2, 2, 19, 27),
            (25, 41),
        ),
        case("beyond, same size", "a tile of 1024 and a part of one", [[1], [0]], (2, 3, 19, 19)),
        case(
            "far apart",
            "16 neighbours in a row read more than 32 pixels: C++ gathers them one by one",
            [[0], [1]],
            (2, 1, 2, 70),
            (2, 17),
        ),
        case(
            "doubled",
            "the gradients of 16 neighbours read more than 32 pixels together, but not by their first taps alone",
            [[0], [1]],
            (2, 1, 1, 21),
            (1, 42),
        ),
        case(
            "wide",
            "C++ takes it in strips of one row; one image after another of a prompt",
            [[0], [0]],
            (1, 1, 3, 600),
            (4, 1200),
        ),
        case("spread", "the same of the gradient", [[0], [1]], (2, 1, 1, 16), (1, 37)),
        case(
            "unused",
            "prompts that nobody chose get exact zeros; an image that chose one prompt twice",
            [[1, 1], [3, 1], [1, 3]],
            (5, 1, 2, 3),
            (3, 4),
        ),
        case(
            "many images",
            "more pairs than CUDA lists at once (256); an odd number of them for each prompt, where C++ takes two",
            cycled(87, 3, 3),
            (4, 1, 1, 3),
        ),
        case("no images", "sums over nothing", [], (5, 2, 4, 4), (6, 6)),
    ),
    small=(
        case(
            "up and down",
            "more columns and fewer rows; no two dimensions of a tensor of equal size",
            [[2, 1], [0, 2], [1, 2]],
            (3, 2, 5, 4),
            (4, 6),
        ),
        case(
            "twice in a row",
            "the path without a resize; weights of one index add up; one row",
            [[2, 2, 0], [1, 1, 1]],
            (4, 3, 1, 5),
        ),
    ),
    large=case(
        "large",
        "more channels than threads, by no multiple; a prompt of a tile and a part of one",
        cycled(3, 2, 5),
        (5, 5, 24, 23),
        (17, 16),
    ),
    random=st.builds(
        _random,
        st.integers(0, 4),
        st.integers(1, 3),
        st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
        st.integers(0, 3),
        st.none() | st.tuples(st.integers(0, 35), st.integers(0, 35)),
    ),
    differentiable=("weights", "prompts"),
    images=True,
    bad={
        "weights rank": Bad(lambda: call(W[0], CHOSEN, P), ValueError, r"weights must be \[B, k\].*\(1,\)"),
        "weights dtype": Bad(lambda: call(W.int(), CHOSEN, P), TypeError, "weights.*int32"),
        "indices dtype": Bad(
            lambda: call(W, CHOSEN.int(), P), TypeError, "indices must be int64, got torch.int32"
        ),
        "indices shape": Bad(lambda: call(W, CHOSEN[:1], P), ValueError, r"indices.*\(2, 1\).*\(1, 1\)"),
        "indices list": Bad(lambda: call(W, [[0], [0]], P), TypeError, "indices.*list"),  # type: ignore[arg-type]
        "index 5": Bad(lambda: call(W, CHOSEN + 5, P), ValueError, "from 0 to N-1 = 4, got 5"),
        "index -1": Bad(lambda: call(W, CHOSEN - 1, P), ValueError, "from 0 to N-1 = 4, got -1"),
        "prompts rank": Bad(lambda: call(W, CHOSEN, P[None]), ValueError, r"prompts.*\(1, 5, 3, 4, 4\)"),
        "prompts dtype": Bad(lambda: call(W, CHOSEN, P.long()), TypeError, "prompts.*int64"),
        "no prompts": Bad(lambda: call(W, CHOSEN, P[:0]), ValueError, r"prompts.*\(0, 3, 4, 4\)"),
        "no pixels": Bad(lambda: call(W, CHOSEN, P[..., :0]), ValueError, r"prompts.*\(5, 3, 4, 0\)"),
        "device": Bad(lambda: call(W, CHOSEN, P.to("meta")), ValueError, "prompts is on meta"),
        "size 0": Bad(lambda: call(W, CHOSEN, P, (0, 3)), ValueError, r"size.*\(0, 3\)"),
        "size of 3": Bad(lambda: call(W, CHOSEN, P, (1, 2, 3)), ValueError, r"size.*\(1, 2, 3\)"),
        "size float": Bad(lambda: call(W, CHOSEN, P, (1.5, 2)), ValueError, r"size.*\(1.5, 2\)"),  # type: ignore[arg-type]
        "backend": Bad(lambda: call(W, CHOSEN, P, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)

"""What the matrix needs to know of sparse_prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from tests.kernels.route_topk.spec import distinct
from tests.kernels.spec import WIDEN, Bad, Case, Inputs, OpSpec, randn

Size = tuple[int, int] | None


def naive(logits: Tensor, prompts: Tensor, k: int, size: Size, normalize: str) -> Tensor:
    """PromptIR's dense formula with all but the k largest weights cut."""
    p = logits.softmax(1)
    p = torch.where(logits >= logits.topk(k, dim=1).values[:, -1:], p, 0)
    if normalize != "none":
        total = p.sum(1, keepdim=True)
        p = p / (total if normalize == "topk" else total.detach())
    y = torch.einsum("bn,nchw->bchw", p.to(prompts.dtype), prompts)
    return y if size is None else F.interpolate(y, size, mode="bilinear", align_corners=False)


def terms(inputs: Inputs, gradients: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Magnitudes per element. No weight is above 1; the softmax's backward takes differences of dweights.

    Three times for y: the weights, an exponential of differences up to 4 over a sum, bring as much error as mixing
    does (hypothesis found 8.3 eps of fp64 on a CPU and 19 on an H200, whose exp is another).
    """
    dy, prompts = gradients[0].abs(), inputs["prompts"].abs().requires_grad_()
    resized = F.interpolate(prompts, dy.shape[2:], mode="bilinear", align_corners=False)
    (dprompts,) = torch.autograd.grad(resized, prompts, dy.sum(0).expand_as(resized))
    resized = resized.detach()
    dweights = torch.einsum("bchw,nchw->bn", dy, resized).amax(1, keepdim=True)
    return {
        "y": 3 * resized.amax(0).expand_as(dy),
        "gradient of logits": dweights.expand_as(inputs["logits"]),
        "gradient of prompts": dprompts,
    }


def case(
    name: str,
    why: str,
    batch: int,
    prompts: tuple[int, ...],
    k: int,
    size: Size = None,
    normalize: str = "none",
) -> Case:
    options = {"k": k, "size": size, "normalize": normalize}
    return Case(
        name,
        why,
        lambda rng: {"logits": distinct(rng, (batch, prompts[0])), "prompts": randn(rng, *prompts)},
        partial(cpl_kernels.sparse_prompt, **options),
        partial(naive, **options),
        terms,
    )


def _random(batch: int, prompts: tuple[int, int, int, int], k: int, size: Size, normalize: str) -> Case:
    """``size`` as any numbers, of which what is up to three times the prompts' own size is made."""
    if size is not None:
        size = (1 + size[0] % (3 * prompts[2]), 1 + size[1] % (3 * prompts[3]))
    return case("random", "any shape and option", batch, prompts, 1 + k % prompts[0], size, normalize)


L, P = torch.zeros(2, 5), torch.ones(5, 3, 4, 4)
call = cpl_kernels.sparse_prompt

SPEC = OpSpec(
    name="sparse_prompt",
    cases=(
        case("model", "the published choice", 2, (5, 4, 6, 6), 1),
        case("dense", "PromptIR", 2, (5, 1, 4, 4), 5, (6, 6)),
        case("no images", "sums over nothing", 0, (5, 2, 4, 4), 1, (8, 8)),
    ),
    small=(
        case("two, resized", "no two dimensions of equal size", 3, (4, 2, 5, 3), 2, (4, 6)),
        case("renormalised", "the other formula, no resize", 2, (6, 1, 2, 3), 3, None, "topk"),
    ),
    large=case("large", "more channels than threads, by no multiple", 4, (5, 5, 12, 11), 2, (9, 8)),
    random=st.builds(
        _random,
        st.integers(0, 5),
        st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
        st.integers(0, 9),
        st.none() | st.tuples(st.integers(0, 26), st.integers(0, 26)),
        st.sampled_from(["none", "topk", "straight_through"]),
    ),
    differentiable=("logits", "prompts"),
    autocast={"logits": WIDEN},
    images=False,  # what the layout of prompts means, aggregate_prompts is tried on
    # In 16 bits the weights are rounded between the two calls; test_is_the_two_calls has the bits.
    dtypes=(torch.float32, torch.float64),
    bad={
        "number of prompts": Bad(lambda: call(L, P[:4], 1), ValueError, "N = 5 prompts.*holds 4"),
        "logits rank": Bad(lambda: call(L[0], P, 1), ValueError, r"logits must be \[B, N\]"),
        "prompts rank": Bad(lambda: call(L, P[0], 1), ValueError, r"prompts.*\(3, 4, 4\)"),
        "logits list": Bad(lambda: call([0.0], P, 1), TypeError, "logits.*list"),  # type: ignore[arg-type]
        "k": Bad(lambda: call(L, P, 6), ValueError, "k must be from 1 to N = 5"),
        "normalize": Bad(lambda: call(L, P, 1, None, "l1"), ValueError, "got 'l1'"),
        "size": Bad(lambda: call(L, P, 1, (0, 1)), ValueError, r"size.*\(0, 1\)"),
        "NaN": Bad(lambda: call(L / 0, P, 1), ValueError, "no softmax in row 0"),
        "backend": Bad(lambda: call(L, P, 1, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)

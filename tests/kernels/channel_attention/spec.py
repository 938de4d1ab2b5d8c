"""What the matrix needs to know of channel_attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels.channel_attention.reference import MIN_NORM
from tests.kernels.spec import CAST, Bad, Case, OpSpec, randn


def naive(qkv: Tensor, temperature: Tensor) -> Tensor:
    """Restormer's formula with F.normalize and einsum."""
    heads = temperature.shape[0]
    batch, channels, height, width = qkv.shape
    parts = qkv.reshape(batch, 3, heads, channels // (3 * heads), height * width).unbind(1)
    q, k = (F.normalize(x, dim=-1) for x in parts[:2])
    attention = (torch.einsum("bhip,bhjp->bhij", q, k) * temperature).softmax(-1)
    return torch.einsum("bhij,bhjp->bhip", attention, parts[2]).reshape(batch, channels // 3, height, width)


def magnitudes(inputs: Mapping[str, Tensor], gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """What rounding may move each result by, in eps: a running bound to first order through reference.backward.

    e_x is the bound of x. A sum is allowed the magnitudes that it adds up, however small it is itself: where q or k
    hardly changes along the pixels, dq and dk are the rest of two sums that cancel. A cosine's error, however small the
    cosine, is multiplied by the temperature and then relative to the attention.
    """
    t, heads = inputs["temperature"], len(inputs["temperature"])
    q, k, v, g = (x.flatten(2).unflatten(1, (heads, -1)) for x in (*inputs["qkv"].chunk(3, 1), gradients[0]))
    q_norm, k_norm = (x.norm(dim=-1, keepdim=True).clamp(min=MIN_NORM) for x in (q, k))
    q_hat, k_hat = q / q_norm, k / k_norm
    cosines = q_hat @ k_hat.mT
    a = (t * cosines).softmax(-1)
    da = g @ v.mT
    spread = (da - (da * a).sum(-1, keepdim=True)).abs()
    q_hat, k_hat, v, g, t = q_hat.abs(), k_hat.abs(), v.abs(), g.abs(), t.abs()
    e_cosines = q_hat @ k_hat.mT + cosines.abs()
    e_logits = t * e_cosines
    e_a = a * (1 + e_logits + (a * e_logits).sum(-1, keepdim=True))
    e_da, da, cosines = g @ v.mT, da.abs(), cosines.abs()
    dlogits = a * spread
    e_dlogits = a * (e_da + (a * e_da + da * e_a + da * a).sum(-1, keepdim=True)) + e_a * spread
    d, e_d = t * dlogits, t * e_dlogits  # of the cosines
    along = e_d * cosines + d * e_cosines + d * cosines
    dq = (e_d @ k_hat + d @ k_hat + q_hat * along.sum(-1, keepdim=True)) / q_norm
    dk = (e_d.mT @ q_hat + d.mT @ q_hat + k_hat * along.sum(-2).unsqueeze(-1)) / k_norm
    return {
        "y": ((a + e_a) @ v).reshape(gradients[0].shape),
        "gradient of qkv": torch.stack((dq, dk, (a + e_a).mT @ g), dim=1).reshape(inputs["qkv"].shape),
        "gradient of temperature": (e_dlogits * cosines + dlogits * e_cosines).sum((0, 2, 3)).view(t.shape),
    }


def case(
    name: str, why: str, heads: int, shape: Sequence[int], temperature: float = 1.0, scale: float = 1.0
) -> Case:
    return Case(
        name,
        why,
        lambda rng: {
            "qkv": scale * randn(rng, *shape),
            "temperature": temperature * (1 + 0.5 * randn(rng, heads, 1, 1)),
        },
        cpl_kernels.channel_attention,
        naive,
        magnitudes,
    )


def _random(heads: int, each: int, shape: tuple[int, int, int]) -> Case:
    return case("random", "any shape", heads, (shape[0], 3 * heads * each, *shape[1:]))


X, T = torch.zeros(2, 12, 4, 4), torch.ones(2, 1, 1)
call = cpl_kernels.channel_attention

SPEC = OpSpec(
    name="channel_attention",
    cases=(
        case("model", "its first level, cut down", 1, (1, 3 * 48, 8, 8)),
        case("heads", "several, odd sizes", 4, (2, 3 * 12, 5, 7)),
        case("one channel per head", "attention is 1", 3, (2, 9, 4, 3)),
        case("pixel", "cosines are 1 or -1", 2, (2, 12, 1, 1)),
        case("beyond", "one pixel beyond a tile of 128, odd channels", 2, (1, 6 * 11, 1, 129)),
        case(
            "wide",
            "one head of more channels than a tile of 64, in two steps of 32 pixels",
            1,
            (1, 3 * 70, 3, 11),
        ),
        case("sharp", "one attention has nearly all", 2, (2, 12, 4, 4), temperature=30.0),
        case("large values", "their squares end fp16", 2, (2, 12, 4, 4), scale=1e3),
        case("no images", "sums over nothing", 2, (0, 12, 3, 3)),
        case("no pixels", "sums over nothing", 2, (2, 12, 0, 3)),
    ),
    small=(case("small", "no two dimensions of equal size", 2, (2, 12, 3, 5)),),
    large=case("large", "more heads and images than threads", 4, (3, 3 * 4 * 8, 20, 33)),
    random=st.builds(
        _random,
        st.integers(1, 4),
        st.integers(1, 9),
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 20)),
    ),
    differentiable=("qkv", "temperature"),
    autocast={"qkv": CAST},
    images=True,
    bad={
        "rank": Bad(lambda: call(X[0], T), ValueError, r"\[B, 3C, H, W\].*\(12, 4, 4\)"),
        "dtype": Bad(lambda: call(X.long(), T), TypeError, "qkv.*int64"),
        "heads": Bad(
            lambda: call(X, torch.ones(3, 1, 1)), ValueError, r"divisible by the 3 heads.*multiple of 9"
        ),
        "not 3C": Bad(lambda: call(X[:, :10], T), ValueError, "10 is not a positive multiple of 6"),
        "no channels": Bad(lambda: call(X[:, :0], T), ValueError, "0 is not a positive multiple"),
        "no heads": Bad(lambda: call(X, T[:0]), ValueError, "at least one head"),
        "temperature shape": Bad(
            lambda: call(X, torch.ones(2, 2, 1)), ValueError, r"\(2, 1, 1\).*\(2, 2, 1\)"
        ),
        "temperature rank": Bad(lambda: call(X, torch.ones(2)), ValueError, r"\[heads, 1, 1\].*\(2,\)"),
        "temperature dtype": Bad(lambda: call(X, T.int()), TypeError, "temperature.*int32"),
        "temperature number": Bad(lambda: call(X, 1.0), TypeError, "temperature.*float"),  # type: ignore[arg-type]
        "device": Bad(lambda: call(X, T.to("meta")), ValueError, "temperature is on meta"),
        "backend": Bad(lambda: call(X, T, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)

"""Wrong prompts for each image: drawn at random among those that the router did not choose."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import autocast, backends, checks
from cpl_kernels.route_negatives import op as _op
from cpl_kernels.route_topk.op import check

__all__ = ["route_negatives"]


def route_negatives(
    logits: Tensor,
    k: int,
    num_negatives: int,
    generator: torch.Generator | None = None,
    seed: Tensor | None = None,
    weights: str = "own",
    normalize: str = "none",
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw k of the N - k prompts that route_topk(logits, k) leaves, K = num_negatives times per image.

    The k indices of a draw are distinct; every ordered selection is equally likely, to within
    k * 2^-64, and draws are independent. With p = softmax(logits[b]) and g the weights of route_topk:

        weights[j, b, i] = p[indices[j, b, i]]     weights="own"; over their sum but with normalize="none"
        weights[j, b, i] = g[b, i]                 weights="positive": the chosen prompts', in order

    "own" is the published way; as the router sharpens, the weights of unlikely prompts go to 0, and
    a "wrong prompt" decays to "no prompt", which "positive" prevents.

    The result is a pure function of its arguments: draw i of negative j for image b takes its bits
    from Philox4x32-10 with the counter (b, j, i, 0) under the key ``seed`` (cpl_kernels.philox has the
    steps), so one seed gives one result on every backend and device. Give each level of a network,
    each step and each process its own seed: the same seed draws the same positions again.

    Args:
        logits: [B, N], as for route_topk; N >= 2k.
        k: how many prompts per draw, >= 1.
        num_negatives: K, >= 1.
        generator: a torch.Generator on the CPU that the seed is drawn from, once; None is torch's own.
        seed: int64, shape [] or [1], any device; instead of a generator. For torch.compile with
            fullgraph=True and for CUDA graphs give this; for the latter on the device of logits.
        weights: "own" or "positive".
        normalize: "none", "topk" or "straight_through", as for route_topk; the last two are one here.
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        weights [K, B, k] in the dtype of logits, under autocast float32 (float64 stays), and indices
        [K, B, k], int64. Neither carries a gradient.

    Raises:
        TypeError: logits that are not floating, a seed that is not an int64 tensor, a k or
            num_negatives that is not an int.
        ValueError: a wrong shape, N < 2k, k, num_negatives, weights or normalize out of range, both a
            generator and a seed, a generator that is not on the CPU; on the CPU a row of logits without a
            softmax. On CUDA such a row gives NaN weights and some valid indices.
        RuntimeError: the named backend cannot serve this call.

    Source: the negatives of Contrastive Prompt Regularization, Wu et al., arXiv 2504.09973;
    generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    check(logits, k, normalize)
    prompts = checks.sizes(logits)[1]
    if prompts < 2 * k:
        raise ValueError(
            f"negatives need N >= 2k, so that k prompts are left to draw from, got N = {prompts} "
            f"and k = {k}; choose fewer or add prompts"
        )
    if isinstance(num_negatives, bool) or not isinstance(num_negatives, (int, torch.SymInt)):
        raise TypeError(f"num_negatives must be an int, got {type(num_negatives).__name__}")
    if num_negatives < 1:
        raise ValueError(f"num_negatives must be at least 1, got {num_negatives}")
    checks.one_of("weights", weights, ("own", "positive"))
    if seed is None:
        seed = _seed_from(generator)
    elif generator is not None:
        raise ValueError("give a generator or a seed, not both: the generator's only use is to draw a seed")
    checks.tensor("seed", seed)
    if seed.dtype != torch.int64:
        raise TypeError(f"seed must be int64, got {seed.dtype}; use torch.tensor(number)")
    if tuple(seed.shape) not in ((), (1,)):
        raise ValueError(f"seed must be one number, of shape [] or [1], got shape {tuple(seed.shape)}")
    return _op.route_negatives(
        autocast.widen(logits.detach()),
        seed.to(logits.device),
        k,
        num_negatives,
        weights == "positive",
        normalize != "none",
        backends.requested("route_negatives", backend),
    )


def _seed_from(generator: torch.Generator | None) -> Tensor:
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator must be on the CPU, got one on {generator.device}; it only supplies the seed: "
            "use torch.Generator().manual_seed(number)"
        )
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device="cpu", generator=generator)

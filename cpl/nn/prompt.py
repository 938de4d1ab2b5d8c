"""Sparse Prompt Module: picks k of N learnable prompts for an image, on the positive or a negative route.

With p = softmax(router(mean over H, W of x)) and idx the k largest of p (ties to the lowest index):

    prompt = conv3x3(resize(sum_i p[idx_i] * pool[idx_i], (H, W)))

The weights are not renormalised (``normalize="topk"`` makes them sum to 1). k = N is PromptIR's module.

**Negative route.** The same with k indices drawn uniformly, without repetition, among the N - k that
the router does *not* choose; no gradient. Each negative image is judged by its own features: deeper
routers see what the negative prompts upstream made of the image, and a negative avoids what that
router would choose for *it* there, not what the positive path chose. Otherwise a deep level could
hand a negative exactly the prompt that suits it.

Source: CPL, arXiv 2504.09973 (router, top-k, negatives); PromptIR, arXiv 2306.13090, equation 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpl_kernels import aggregate_prompts, route_negatives, sparse_prompt

# Odd constants that set the levels' random streams apart. An exclusive or with a constant keeps the
# seed uniform, and, unlike seed + level, cannot make a counter-based generator overlap with itself.
_STREAMS = {1: 0x2545F4914F6CDD1D, 2: 0x5851F42D4C957F2D, 3: 0x369DEA0F31A53F85}


@dataclass(frozen=True)
class NegativeDraw:
    """Which wrong prompts to take: a function of the seed, the level, and the negative's place.

    Rows of a negative batch stand negative by negative: row j * B + b is negative j of image b.
    ``first`` and ``count`` name the negatives at hand out of all ``num_negatives``, so that
    working in chunks draws the same prompts as working at once.
    """

    seed: Tensor  # int64, one element
    num_negatives: int
    batch: int
    first: int
    count: int

    def level_seed(self, level: int) -> Tensor:
        return self.seed ^ _STREAMS[level]


class SparsePromptModule(nn.Module):
    """[B, channels, H, W] -> [B, prompt_channels, H, W].

    Args:
        level: 1, 2 or 3; sets the level's negative draws apart from the others'.
        channels: of the features that the router looks at.
        num_prompts: N.
        prompt_channels, prompt_size: each prompt is [prompt_channels, prompt_size, prompt_size].
        top_k: k, 1 <= k <= N.
        normalize: "none" or "topk".
        negative_weights: the weights of a negative's prompts: "own", their softmax values (they go to 0 as the
            router sharpens, and a wrong prompt becomes no prompt), or "positive", those of the k
            prompts that the router would choose.

    Attributes:
        watcher: None, or a function that is called with (level, router logits [B, N]) whenever prompts are
            chosen on the positive route; see :func:`cpl.inference.routing.watch_routing`.
    """

    watcher: Callable[[int, Tensor], None] | None = None

    def __init__(
        self,
        level: int,
        channels: int,
        num_prompts: int,
        prompt_channels: int,
        prompt_size: int,
        top_k: int = 1,
        normalize: str = "none",
        negative_weights: str = "own",
    ) -> None:
        super().__init__()
        self.level, self.top_k = level, top_k
        self.normalize, self.negative_weights = normalize, negative_weights
        self.prompt_param = nn.Parameter(
            torch.rand(1, num_prompts, prompt_channels, prompt_size, prompt_size)
        )
        self.linear_layer = nn.Linear(channels, num_prompts)
        self.conv3x3 = nn.Conv2d(prompt_channels, prompt_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor, draw: NegativeDraw | None = None) -> Tensor:
        """The prompt for x [B, C, H, W]; with ``draw`` the wrong ones, for a negative batch.

        Returns [B, C', H, W]; with ``draw`` [count * B, C', H, W], whether x is one batch that all
        negatives share or has a row for each.
        """
        logits, size = self.logits(x), (x.shape[2], x.shape[3])
        if draw is None:
            if self.watcher is not None:
                self.watcher(self.level, logits)
            prompt = sparse_prompt(logits, self.prompt_param[0], self.top_k, size, self.normalize)
        else:
            weights, indices = self._wrong_route(logits, draw)
            prompt = aggregate_prompts(weights, indices, self.prompt_param[0], size)
        return self.conv3x3(prompt)

    def logits(self, x: Tensor) -> Tensor:
        """Router logits [B, N].

        Written without a matrix product, which autocast would round to bf16: which prompt is chosen
        should not hang on that, and the router is far too small to be worth it.
        """
        router = self.linear_layer
        mean = x.mean((2, 3), dtype=torch.promote_types(x.dtype, router.weight.dtype))  # [B, C]
        return (mean.unsqueeze(1) * router.weight).sum(-1) + router.bias

    def _wrong_route(self, logits: Tensor, draw: NegativeDraw) -> tuple[Tensor, Tensor]:
        """Weights and indices [count * B, k] for logits [B, N] or [count * B, N]."""
        if logits.shape[0] != draw.count * draw.batch:
            logits = logits.repeat(draw.count, 1)
        rows = slice(draw.first * draw.batch, (draw.first + draw.count) * draw.batch)
        if draw.count < draw.num_negatives:
            # A draw belongs to its row: put the chunk's rows where they stand among all negatives.
            all_rows = logits.new_zeros(draw.num_negatives * draw.batch, logits.shape[1])
            all_rows[rows] = logits
            logits = all_rows
        weights, indices = route_negatives(
            logits,
            self.top_k,
            num_negatives=1,  # one for each row
            seed=draw.level_seed(self.level),
            weights=self.negative_weights,
            normalize=self.normalize,
        )
        return weights[0, rows], indices[0, rows]

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, normalize={self.normalize!r}, negative_weights={self.negative_weights!r}"

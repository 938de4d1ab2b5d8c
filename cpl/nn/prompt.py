"""Sparse Prompt Module: picks k of N learnable prompts for an image, on the positive or a negative route.

With p = softmax(router(mean over H, W of x)) and idx the k largest of p (ties to the lowest index):

    prompt = conv3x3(resize(sum_i p[idx_i] * pool[idx_i], (H, W)))

The weights are not renormalised (``normalize="topk"`` and "straight_through" make them sum to 1). k = N is PromptIR's
module.

**Negative route.** The same with k indices drawn uniformly, without repetition, among the N - k that
the router does *not* choose; no gradient. Each negative image is judged by its own features: deeper
routers see what the negative prompts upstream made of the image, and a negative avoids what that
router would choose for *it* there, not what the positive path chose. Otherwise a deep level could
hand a negative exactly the prompt that suits it.

**Tiles.** A large image may be worked through in tiles. Then the choice is made once, from the mean over the tiles'
features (`mean`, `mixture`), and each tile is given its part of the prompt that the whole image would be given.

Source: CPL, arXiv 2504.09973 (router, top-k, negatives); PromptIR, arXiv 2306.13090, equation 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpl.nn.resample import resized_window
from cpl_kernels import aggregate_prompts, route_negatives, route_topk, sparse_prompt

# Odd constants that set the levels' random streams apart. An exclusive or with a constant keeps the
# seed uniform, and, unlike seed + level, cannot make a counter-based generator overlap with itself.
_STREAMS = {1: 0x2545F4914F6CDD1D, 2: 0x5851F42D4C957F2D, 3: 0x369DEA0F31A53F85}


Watcher = Callable[[int, Tensor, Tensor], None]

_CERTAIN = 1e4  # a logit so far above the others that their softmax is 0 in fp64 too


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


@dataclass(frozen=True)
class TilePrompts:
    """Where a batch of tiles lies in its image, and the prompts that were chosen for the whole of it.

    Attributes:
        mixtures: of each level the chosen prompts' weighted sum, [C', S, S].
        size: (H, W) of the image, and corners: (top, left) of each tile; in pixels, multiples of 8.
    """

    mixtures: Mapping[int, Tensor]
    size: tuple[int, int]
    corners: tuple[tuple[int, int], ...]

    def parts(self, level: int, height: int, width: int) -> Tensor:
        """[B, C', height + 2, width + 2] for tiles of height x width features: of the prompt resized to the whole
        image, each tile's part and a border of one more on each side (beyond the image zeros)."""
        scale = 2**level  # pixels to a feature of that level
        size = (self.size[0] // scale, self.size[1] // scale)
        return torch.stack(
            [
                resized_window(
                    self.mixtures[level], size, _with_border(top, height), _with_border(left, width)
                )
                for top, left in ((top // scale, left // scale) for top, left in self.corners)
            ]
        )


def _with_border(first: int, length: int) -> range:
    return range(first - 1, first + length + 1)


class SparsePromptModule(nn.Module):
    """[B, channels, H, W] -> [B, prompt_channels, H, W].

    Args:
        level: 1, 2 or 3; sets the level's negative draws apart from the others'.
        channels: of the features that the router looks at.
        num_prompts: N.
        prompt_channels, prompt_size: each prompt is [prompt_channels, prompt_size, prompt_size].
        top_k: k, 1 <= k <= N.
        normalize: "none", "topk" or "straight_through"; see :func:`cpl_kernels.route_topk`.
        negative_weights: the weights of a negative's prompts: "own", their softmax values (they go to 0 as the
            router sharpens, and a wrong prompt becomes no prompt), or "positive", those of the k
            prompts that the router would choose.

    Attributes:
        watcher: None, or a function that is called with (level, router logits [B, N], logits that were used) whenever
            prompts are chosen on the positive route; the two differ where prompts are forced. See
            :func:`cpl.inference.routing.watch_routing`.
        forced: None, or indices [B] or [1] of the prompts that images get whatever the router says; see
            :func:`cpl.inference.routing.force_prompts`.
    """

    watcher: Watcher | None = None
    forced: Tensor | None = None

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

    def forward(
        self, x: Tensor, draw: NegativeDraw | None = None, tiles: TilePrompts | None = None
    ) -> Tensor:
        """The prompt for x [B, C, H, W]; with ``draw`` the wrong ones, for a negative batch; with ``tiles`` theirs.

        Returns [B, C', H, W]; with ``draw`` [count * B, C', H, W], whether x is one batch that all
        negatives share or has a row for each.
        """
        if tiles is not None:  # the border is there already: convolve without padding
            return F.conv2d(tiles.parts(self.level, x.shape[2], x.shape[3]), self.conv3x3.weight)
        logits, size = self.logits(x), (x.shape[2], x.shape[3])
        used = self._used(logits, x.shape[0] if draw is None else draw.batch)
        if draw is None:
            if self.watcher is not None:
                self.watcher(self.level, logits, used)
            prompt = sparse_prompt(used, self.prompt_param[0], self.top_k, size, self.normalize)
        else:
            weights, indices = self._wrong_route(used, draw)
            prompt = aggregate_prompts(weights, indices, self.prompt_param[0], size)
        return self.conv3x3(prompt)

    def logits(self, x: Tensor) -> Tensor:
        """Router logits [B, N] for features [B, C, H, W]."""
        return self.logits_of(self.mean(x))

    def mean(self, x: Tensor) -> Tensor:
        """What the router looks at: the mean over H and W, [B, C], in the router's dtype or wider."""
        wide = torch.promote_types(x.dtype, self.linear_layer.weight.dtype)
        return (self.total(x) / (x.shape[2] * x.shape[3])).to(wide)

    def total(self, x: Tensor) -> Tensor:
        """The sum over H and W, [B, C] in float64, for features [B, C, H, W].

        Rows are summed in float32 or wider, and these sums in float64: sums of parts of an image add up to the same, to
        a relative 1e-7.
        """
        wide = torch.promote_types(
            torch.promote_types(x.dtype, self.linear_layer.weight.dtype), torch.float32
        )
        return x.sum(3, dtype=wide).sum(2, dtype=torch.float64)

    def logits_of(self, mean: Tensor) -> Tensor:
        """Router logits [B, N] for means [B, C].

        Written without a matrix product, which autocast would round to bf16: which prompt is chosen
        should not hang on that, and the router is far too small to be worth it.
        """
        router = self.linear_layer
        return (mean.unsqueeze(1) * router.weight).sum(-1) + router.bias

    def _used(self, logits: Tensor, images: int) -> Tensor:
        """The router's logits [B, N] or [count * B, N] of so many images; where prompts are forced, some whose softmax
        is 1 at these and 0 elsewhere."""
        if self.forced is None:
            return logits
        if len(self.forced) not in (1, images):
            raise ValueError(
                f"{len(self.forced)} forced prompts cannot serve a batch of {images} images: give one for each, or one"
            )
        one_hot = F.one_hot(self.forced.to(logits.device), logits.shape[1]).to(logits.dtype)
        return _CERTAIN * one_hot.repeat(logits.shape[0] // len(self.forced), 1)

    def mixture(self, mean: Tensor) -> Tensor:
        """The weighted sum [C', S, S] of the prompts chosen for an image whose features have that mean [C]."""
        logits = self.logits_of(mean[None].to(self.linear_layer.weight.dtype))
        used = self._used(logits, 1)
        if self.watcher is not None:
            self.watcher(self.level, logits, used)
        weights, indices = route_topk(used, self.top_k, self.normalize)
        return aggregate_prompts(weights, indices, self.prompt_param[0])[0]

    def margin(self, mean: Tensor) -> float:
        """Between the softmax share of the last prompt chosen for that mean [C] and the first one left out; infinite
        if none is. Below about 1e-5 the choice hangs on rounding."""
        logits = self._used(self.logits_of(mean[None].to(self.linear_layer.weight.dtype)), 1)[0]
        if self.top_k >= len(logits):
            return float("inf")
        shares = logits.softmax(-1).sort(descending=True).values
        return float(shares[self.top_k - 1] - shares[self.top_k])

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

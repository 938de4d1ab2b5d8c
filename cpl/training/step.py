"""One training step's arithmetic as a module, so that DDP and autocast see a plain forward()."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpl.inference.routing import force_prompts
from cpl.nn.prompt import SparsePromptModule, Watcher
from cpl_kernels import NonFiniteError


class StepOutput(NamedTuple):
    """``loss``: scalar; ``mse``: [B], of the restored image clipped to [0, 1], without gradient;
    ``parts``: the loss's terms, scalars without gradient; ``logits``: level -> [B, N] of the routers, without gradient.
    """

    loss: Tensor
    mse: Tensor
    parts: dict[str, Tensor]
    logits: dict[int, Tensor]


class TrainingStep(nn.Module):
    """Restores a batch and measures the loss.

    DistributedDataParallel synchronises what runs inside its module's forward(); a direct call of
    ``model.forward_with_negatives`` would train every rank on its own, unnoticed.

    Args:
        model: maps [B, 3, H, W] to [B, 3, H, W]; for ``num_negatives`` > 0 it also has
            ``forward_with_negatives(x, K, generator)``.
        criterion: ``criterion(restored, target, negatives, return_parts)``; None is plain L1.
        num_negatives: K, negatives per image.
        routing: ``routing(logits {level: [B, N]}, tasks [B])``, which is added to the loss.
        pixel: the loss without a criterion, ``pixel(restored, target)``.
        teacher: restore each image with the prompt of its task's number, whatever the router says, which then learns
            from ``routing`` alone. An attribute too, for a teacher that leaves.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module | None = None,
        num_negatives: int = 0,
        routing: nn.Module | None = None,
        pixel: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
        teacher: bool = False,
    ) -> None:
        super().__init__()
        if (criterion is None) != (num_negatives == 0):
            raise ValueError(
                f"negatives serve a contrastive criterion only, got {criterion} and {num_negatives}"
            )
        self.model, self.criterion, self.num_negatives = model, criterion, num_negatives
        self.routing, self.pixel, self.teacher = routing, pixel, teacher
        self._routers = [m for m in model.modules() if isinstance(m, SparsePromptModule)]

    def forward(
        self,
        degraded: Tensor,
        target: Tensor,
        draw: int,
        want_parts: bool = False,
        tasks: Tensor | None = None,
    ) -> StepOutput:
        """``draw`` seeds the negative prompts of this batch; the same number draws the same ones.

        ``want_parts``: the loss's terms too, which may cost another pass of the feature network.
        ``tasks``: [B], what was done to each image, which ``routing`` needs.
        """
        try:
            return self._measure(degraded, target, draw, want_parts, tasks)
        except NonFiniteError:
            # On a CPU the router refuses NaN features. To training that is a non-finite loss like any other,
            # and it must have a backward pass, or the other ranks would wait for this one's gradients.
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            loss = torch.stack([p.sum() for p in parameters]).sum() * math.nan
            return StepOutput(loss, torch.full((len(degraded),), math.nan, device=degraded.device), {}, {})

    def _measure(
        self, degraded: Tensor, target: Tensor, draw: int, want_parts: bool, tasks: Tensor | None
    ) -> StepOutput:
        parts: dict[str, Tensor] = {}
        if tasks is None and (self.teacher or self.routing is not None):
            raise ValueError("the routing loss and the teacher need the images' tasks: give tasks=[B]")
        with self._watched() as logits, self._taught(tasks):
            if self.criterion is None:
                restored = self.model(degraded)
                loss = self.pixel(restored, target)
            else:
                generator = torch.Generator().manual_seed(draw)
                restored, negatives = self.model.forward_with_negatives(  # type: ignore[operator]
                    degraded, self.num_negatives, generator
                )
                result = self.criterion(restored, target, negatives, return_parts=want_parts)
                loss, parts = result if want_parts else (result, {})
        if self.routing is not None:
            term = self.routing(logits, tasks)
            loss = loss + term
            parts = parts | {"routing": term.detach()}
        with torch.no_grad():
            mse = (restored.float().clamp(0, 1) - target.float()).square().mean(dim=(1, 2, 3))
        return StepOutput(loss, mse, parts, {level: values.detach() for level, values in logits.items()})

    def _taught(self, tasks: Tensor | None) -> contextlib.AbstractContextManager[None]:
        if self.teacher and tasks is not None:
            return force_prompts(self.model, tasks)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[dict[int, Tensor]]:
        """The routers' logits of what is restored inside, with their graph."""
        logits: dict[int, Tensor] = {}
        before = [router.watcher for router in self._routers]

        def watcher(earlier: Watcher | None) -> Watcher:
            def note(level: int, values: Tensor, used: Tensor) -> None:
                logits[level] = values
                if earlier is not None:
                    earlier(level, values, used)

            return note

        for router, earlier in zip(self._routers, before, strict=True):
            router.watcher = watcher(earlier)
        try:
            yield logits
        finally:
            for router, earlier in zip(self._routers, before, strict=True):
                router.watcher = earlier

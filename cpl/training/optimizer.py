"""AdamW that can leave prompts which no image of the batch used where they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cpl.nn.prompt import SparsePromptModule


class PromptAdamW(torch.optim.AdamW):
    """AdamW; a step skips those prompts of ``pools`` whose gradient is exactly zero: value, moments, decay.

    The gradient of a prompt that no image used is exactly zero (cpl_kernels.aggregate_prompts), yet AdamW
    would decay it, push it along its old momentum, and let its second moment fade, so that its next real
    gradient moves it too far. The gradient itself says who was used: it is summed over all processes
    and accumulation steps already, where a mask of one forward is not.

    The bias correction counts all steps, as torch.optim.SparseAdam's does.

    Args:
        pools: parameters [1, N, ...], a prompt for each n.
    """

    def __init__(self, params: Iterable[Tensor], *, pools: Sequence[Tensor] = (), **options: Any) -> None:
        self._pools = list(pools)
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is not None:
            raise ValueError("a closure computes gradients within the step, too late to see who was used")
        before = [self._unused(pool) for pool in self._pools if pool.grad is not None]
        result = super().step()
        for unused, kept in before:
            for value, old in kept:
                value.copy_(torch.where(unused, old, value))  # no look at the mask: on a GPU that would sync
        return result

    def _unused(self, pool: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The mask [1, N, 1, ...] and what to put back under it: the pool and its moments, and their copies."""
        assert pool.grad is not None
        unused = (pool.grad == 0).flatten(2).all(dim=2).view(1, -1, *[1] * (pool.dim() - 2))
        if pool not in self.state:  # before the first step the moments are zeros, and so they stay
            for name in ("exp_avg", "exp_avg_sq"):
                self.state[pool].setdefault(name, torch.zeros_like(pool))
            self.state[pool]["step"] = torch.zeros((), dtype=torch.float32, device=pool.device)
        values = [pool, *(self.state[pool][name] for name in ("exp_avg", "exp_avg_sq"))]
        return unused, [(value, value.clone()) for value in values]


def pools_of(model: nn.Module) -> list[Tensor]:
    """The prompt pools of a network, in its order of modules."""
    return [m.prompt_param for m in model.modules() if isinstance(m, SparsePromptModule)]

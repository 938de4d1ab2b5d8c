"""Embeddings of every process, with gradients to where they came from."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather(x: Tensor) -> tuple[Tensor, int]:
    """The ``x`` [M, D] of every process of the default group as one tensor [W * M, D], by rank, and where x begins.

    The gradient that reaches a process is the sum of what the losses of all W processes say of its x. All
    processes must call this together, forward and backward, with x of the same shape.

    Raises:
        RuntimeError: torch.distributed has no process group.
        ValueError: processes hold different numbers of rows (looked at on CPU tensors: on a GPU it would be a sync).
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "gather_distributed=True needs a process group: call torch.distributed.init_process_group first (torchrun "
            "and accelerate do), or leave gather_distributed out where there is one process"
        )
    if x.is_cpu:
        _same_length(x)
    return _Gather.apply(x), dist.get_rank() * len(x)


def _same_length(x: Tensor) -> None:
    mine = torch.tensor([len(x)])
    lengths = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, mine)
    found = [int(n) for n in lengths]
    if len(set(found)) > 1:
        raise ValueError(
            f"gather_distributed=True needs batches of one size, got {found} rows on the processes; "
            "drop the last batch (drop_last=True) or pad it"
        )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # A sum of all, of which each takes its rows: unlike reduce_scatter, every backend has it.
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.rows :][: ctx.rows]

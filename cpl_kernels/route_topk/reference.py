"""route_topk in plain PyTorch: the definition that every backend is tested against."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.autocast import wide


def choose(logits: Tensor, k: int) -> Tensor:
    """Indices [B, k] of the k largest logits of each row, descending, ties to the lowest index.

    A stable sort, because torch.topk leaves the order of equal values open.
    """
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :k].contiguous()


def weigh(logits: Tensor, indices: Tensor, renormalize: bool) -> Tensor:
    """Softmax weights of logits [..., N] at indices [..., k], over all N or those k, in fp32 or better."""
    logits = logits.to(wide(logits.dtype))
    if renormalize:
        return logits.gather(-1, indices).softmax(dim=-1)
    return logits.softmax(dim=-1).gather(-1, indices)


def route_topk(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The definition; weights are differentiable any number of times."""
    indices = choose(logits, k)
    return weigh(logits, indices, renormalize).to(logits.dtype), indices


forward = route_topk


def backward(dweights: Tensor, logits: Tensor, indices: Tensor, renormalize: bool) -> Tensor:
    """Returns dlogits [B, N] in the dtype of logits.

    With w the weights, n_i the chosen indices and <dw w> = sum_i dw_i w_i:
        none:  dlogits_n = p_n * (sum_i dw_i [n_i = n] - <dw w>)         for all n
        topk:  dlogits_{n_i} = w_i * (dw_i - <dw w>)                     elsewhere 0
    """
    dtype = wide(logits.dtype)
    logits_wide, dweights = logits.to(dtype), dweights.to(dtype)
    weights = weigh(logits_wide, indices, renormalize)
    mean = (dweights * weights).sum(dim=1, keepdim=True)  # [B, 1]
    chosen = logits_wide.new_zeros(logits.shape).scatter(1, indices, dweights)  # indices are distinct
    if renormalize:
        dlogits = logits_wide.new_zeros(logits.shape).scatter(1, indices, weights * (dweights - mean))
    else:
        dlogits = logits_wide.softmax(dim=1) * (chosen - mean)
    return dlogits.to(logits.dtype)


def why_not(logits: Tensor) -> str | None:
    return None

"""channel_attention in plain PyTorch: the definition that every backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import layout
from cpl_kernels.autocast import wide

MIN_NORM = 1e-12  # as of torch.nn.functional.normalize


def channel_attention(qkv: Tensor, temperature: Tensor) -> Tensor:
    """The definition; differentiable any number of times."""
    return _attend(qkv, temperature)[0]


def forward(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns y, and for the backward the clamped norms of q and k, [B, C] each, and the cosines."""
    y, q_norm, k_norm, cosines = _attend(qkv, temperature)
    return y.contiguous(memory_format=layout.output_format(qkv)), q_norm, k_norm, cosines


def backward(
    dy: Tensor, qkv: Tensor, temperature: Tensor, q_norm: Tensor, k_norm: Tensor, cosines: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns dqkv in the dtype of qkv and dtemperature in that of the cosines.

    With S the cosines, A = softmax(t S), q^ = q / ||q|| and k^ = k / ||k||:
        dv = A^T dy,  dA = dy v^T,  dL = A * (dA - rowsum(dA * A)),  dt = sum(dL * S),  dS = t dL
        dq^ = dS k^,  dq = (dq^ - q^ * rowsum(dS * S)) / ||q||
        dk^ = dS^T q^,  dk = (dk^ - k^ * columnsum(dS * S)) / ||k||
    The projections use rowsum(dS * S) = <dq^, q^>, so they cost nothing. Where a norm was clamped it
    is a constant, and the projection falls away.
    """
    q, k, v = _split(qkv, temperature)
    g = _heads(dy.to(v.dtype), temperature)  # [B, heads, c, HW]
    q_norm, k_norm = (n.view(cosines.shape[:3]).unsqueeze(-1) for n in (q_norm, k_norm))  # [B, heads, c, 1]
    q_hat, k_hat = q / q_norm, k / k_norm
    t = temperature.to(v.dtype)
    attention = (t * cosines).softmax(dim=-1)  # [B, heads, c, c]
    dv = attention.mT @ g
    dattention = g @ v.mT
    dlogits = attention * (dattention - (dattention * attention).sum(dim=-1, keepdim=True))
    dcosines = t * dlogits
    along = dcosines * cosines
    dq = dcosines @ k_hat - _unclamped(q_norm) * q_hat * along.sum(dim=-1, keepdim=True)
    dk = dcosines.mT @ q_hat - _unclamped(k_norm) * k_hat * along.sum(dim=-2).unsqueeze(-1)
    dqkv = torch.stack((dq / q_norm, dk / k_norm, dv), dim=1).view(qkv.shape).to(qkv.dtype)
    return dqkv.contiguous(memory_format=layout.output_format(qkv)), (dlogits * cosines).sum(
        dim=(0, 2, 3)
    ).view(temperature.shape)


def why_not(qkv: Tensor, temperature: Tensor) -> str | None:
    return None


def _attend(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = _split(qkv, temperature)
    q_norm, k_norm = (n.norm(dim=-1, keepdim=True).clamp(min=MIN_NORM) for n in (q, k))  # [B, heads, c, 1]
    cosines = (q / q_norm) @ (k / k_norm).mT  # [B, heads, c, c]
    y = (temperature.to(v.dtype) * cosines).softmax(dim=-1) @ v
    batch, channels, height, width = qkv.shape
    y = y.reshape(batch, channels // 3, height, width).to(qkv.dtype)
    return y, q_norm.flatten(1), k_norm.flatten(1), cosines


def _split(qkv: Tensor, temperature: Tensor) -> list[Tensor]:
    """q, k and v, [B, heads, c, HW] each, in fp32 or better."""
    return [_heads(x, temperature) for x in qkv.to(wide(qkv.dtype, temperature.dtype)).chunk(3, dim=1)]


def _heads(x: Tensor, temperature: Tensor) -> Tensor:
    return x.flatten(2).unflatten(1, (temperature.shape[0], -1))


def _unclamped(norm: Tensor) -> Tensor:
    return (norm > MIN_NORM).to(norm.dtype)

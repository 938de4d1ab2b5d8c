"""channel_attention for torch: schema, fake and autograd. Which backend runs is for backends.py to say."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cpl_kernels import autocast, backends, layout
from cpl_kernels.mapping import Rows
from cpl_kernels.registration import register_differentiable


def _forward(qkv: Tensor, temperature: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return backends.select("channel_attention", backend, qkv, temperature).forward(qkv, temperature)


def _forward_fake(qkv: Tensor, temperature: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels, heads = qkv.shape[0], qkv.shape[1] // 3, temperature.shape[0]
    dtype = autocast.wide(qkv.dtype, temperature.dtype)
    width_of_head = channels // heads
    return (
        layout.empty_like(qkv, channels),
        qkv.new_empty(batch, channels, dtype=dtype),
        qkv.new_empty(batch, channels, dtype=dtype),
        qkv.new_empty(batch, heads, width_of_head, width_of_head, dtype=dtype),
    )


def _backward(
    dy: Tensor,
    qkv: Tensor,
    temperature: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cosines: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    chosen = backends.select("channel_attention", backend, qkv, temperature)
    return chosen.backward(dy, qkv, temperature, q_norm, k_norm, cosines)


def _backward_fake(
    dy: Tensor,
    qkv: Tensor,
    temperature: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cosines: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return layout.empty_like(qkv), cosines.new_empty(temperature.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    qkv, temperature, backend = inputs
    _, q_norm, k_norm, cosines = output
    ctx.mark_non_differentiable(q_norm, k_norm, cosines)
    ctx.save_for_backward(qkv, temperature, q_norm, k_norm, cosines)
    ctx.backend = backend


def _grads(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    qkv, temperature, q_norm, k_norm, cosines = ctx.saved_tensors
    dqkv, dtemperature = channel_attention_backward(
        dy, qkv, temperature, q_norm, k_norm, cosines, ctx.backend
    )
    need_qkv, need_temperature = ctx.needs_input_grad[:2]
    return dqkv if need_qkv else None, dtemperature.to(temperature.dtype) if need_temperature else None, None


channel_attention, channel_attention_backward = register_differentiable(
    "channel_attention",
    "(Tensor qkv, Tensor temperature, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    impl=_forward,
    fake=_forward_fake,
    backward_schema="(Tensor dy, Tensor qkv, Tensor temperature, Tensor q_norm, Tensor k_norm, Tensor cosines"
    ", str backend) -> (Tensor, Tensor)",
    backward_impl=_backward,
    backward_fake=_backward_fake,
    save=_save,
    grads=_grads,
    rows=Rows({0: 0}),
)

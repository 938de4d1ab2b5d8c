"""cpl.patch takes only what it computes: at any size, scale, mode and dtype, with any parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import cpl
from tests.interop import layouts, look_alikes
from tests.interop.layouts import trained


def only_left(report: cpl.interop.PatchReport, kind: str) -> bool:
    return kind not in {taken for _, taken in report.patched} and kind in {seen for _, seen, _ in report.left}


@pytest.mark.parametrize("name", look_alikes.ATTENTION)
def test_attention_that_is_another_somewhere_is_left(name: str) -> None:
    assert only_left(cpl.patch(look_alikes.ATTENTION[name]()), "channel attention")


@pytest.mark.parametrize("name", look_alikes.CROSS)
def test_cross_attention_that_is_another_somewhere_is_left(name: str) -> None:
    assert only_left(cpl.patch(look_alikes.CROSS[name]()), "cross attention")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", look_alikes.ACTIVATIONS)
def test_another_activation_is_left(name: str, dtype: torch.dtype) -> None:
    made = look_alikes.FeedForward(look_alikes.ACTIVATIONS[name]).to(dtype)
    assert only_left(cpl.patch(made), "gated feed-forward")


@pytest.mark.parametrize(
    "second",
    [torch.detach, torch.abs, lambda b: b.clamp(-30, 30), lambda b: b * (1 + 1e-6)],
    ids=["detached", "absolute", "bounded", "a hair more"],
)
def test_another_gate_is_left(second: Callable[[Tensor], Tensor]) -> None:
    made = layouts.gated_sequence(8)
    made[2] = look_alikes.Gate(second)
    assert only_left(cpl.patch(made), "gated convolution")


@pytest.mark.parametrize(
    "make",
    [
        lambda: look_alikes.LocalNAFBlock(64),
        lambda: look_alikes.DetachedNAFBlock(8),
        lambda: look_alikes.BoundedNAFBlock(8),
    ],
    ids=["detached", "bounded", "local"][::-1],
)
def test_another_gated_block_is_left(make: Callable[[], nn.Module]) -> None:
    made = make()
    if isinstance(made, look_alikes.LocalNAFBlock):  # ours calls its pooling, which may therefore be any
        assert ("", "gated block") in cpl.patch(made).patched
    else:
        assert only_left(cpl.patch(made), "gated block")


@pytest.mark.parametrize("name", look_alikes.PROMPTS)
def test_another_prompt_block_is_left(name: str) -> None:
    assert only_left(cpl.patch(look_alikes.PROMPTS[name]()), "prompt block")


@pytest.mark.parametrize("name", look_alikes.NORMS)
def test_another_norm_is_left(name: str) -> None:
    assert only_left(cpl.patch(look_alikes.NORMS[name]()), "layer norm")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", look_alikes.RIGHT_NORMS)
def test_eps_is_measured(name: str, dtype: torch.dtype) -> None:
    """Taken, and right where the variance is of eps's size, to the rounding of a chain in that dtype."""
    made = trained(look_alikes.RIGHT_NORMS[name]()).to(dtype)
    numbers = torch.Generator().manual_seed(3)
    xs = [scale * torch.randn(2, 8, 5, 7, generator=numbers) for scale in (1e-2, 1.0)]
    if dtype != torch.float16:  # whose squares are 0 there
        xs.append(2e-3 * torch.randn(2, 8, 5, 7, generator=numbers))
    right = [made(x.to(dtype)) for x in xs]
    report = cpl.patch(made)
    assert report.patched == (("", "layer norm"),), str(report)
    for x, y in zip(xs, right, strict=True):
        off = (made(x.to(dtype)) - y).abs().max() / y.abs().max()
        assert off <= (
            1e-6 if name == "in float32" and dtype == torch.float64 else 8 * torch.finfo(dtype).eps
        )

"""What published networks hold beside the layouts of test_layouts.py: taken, on which kernel, or left and why."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import cpl
from tests.interop import field_layouts as field
from tests.interop.layouts import image, trained
from tests.interop.test_halves import BLOCKS
from tests.interop.test_layouts import ran

Make = Callable[[], nn.Module]


def scene(batch: int = 2, features: int = 9) -> Tensor:
    return torch.randn(batch, features, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class WithScene(nn.Module):
    """A block of an image and a vector, as one of an image."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, scene().to(x))


def cross(**parts: nn.Module | None) -> Make:
    return lambda: field.OfItself(field.AnyCrossAttention(**parts))


ANY = {
    "CPLIR's prompts": (lambda: field.CplirPromptBlock(8, 5, 4, 8), "prompt block", "aggregate_prompts"),
    "three of CPLIR's": (lambda: field.CplirPromptBlock(8, 5, 4, 8, 3), "prompt block", "aggregate_prompts"),
    "num_selected": (partial(field.NamedCount, "num_selected"), "prompt block", "aggregate_prompts"),
    "any name": (partial(field.NamedCount, "sparsity"), "prompt block", "aggregate_prompts"),
    "no weight": (lambda: field.BareLayerNorm(8), "layer norm", "layer_norm2d"),
    "no weight, the mean stays": (lambda: field.BareLayerNorm(8, False), "layer norm", "layer_norm2d"),
    "a gain": (lambda: field.GainLayerNorm(8), "layer norm", "layer_norm2d"),
    "torch's own, permuted": (lambda: field.WrappedLayerNorm(8), "layer norm", "layer_norm2d"),
    "7x7 of k and v": (
        lambda: field.OfItself(field.mixer_of_two_maps()),
        "cross attention",
        "channel_attention",
    ),
    "5x5 of q": (cross(q_dwconv=field.depthwise(8, 5)), "cross attention", "channel_attention"),
    "9x9 of k and v": (cross(kv_dwconv=field.depthwise(16, 9)), "cross attention", "channel_attention"),
    "dilated": (
        cross(kv_dwconv=field.depthwise(16, 3, padding=2, dilation=2)),
        "cross attention",
        "channel_attention",
    ),
    "borders repeated": (
        cross(kv_dwconv=field.depthwise(16, 3, padding_mode="replicate")),
        "cross attention",
        "channel_attention",
    ),
    "whole convolutions": (
        cross(
            q=nn.Conv2d(8, 8, 3, padding=1), kv=nn.Conv2d(8, 16, 3, padding=1), q_dwconv=None, kv_dwconv=None
        ),
        "cross attention",
        "channel_attention",
    ),
    "q linear at each pixel": (
        cross(q=nn.Linear(8, 8), q_dwconv=None),
        "cross attention",
        "channel_attention",
    ),
    "q of a scene": (lambda: WithScene(field.TextAttention()), "cross attention", "channel_attention"),
    "q of a scene, biased": (
        lambda: WithScene(field.TextAttention(bias=True)),
        "cross attention",
        "channel_attention",
    ),
    "a scene of few features": (
        lambda: WithScene(field.TextAttention(heads=1, side=3)),
        "cross attention",
        "channel_attention",
    ),
    "5x5 of all three": (
        lambda: field.AnyAttention(qkv_dwconv=field.depthwise(24, 5)),
        "channel attention",
        "channel_attention",
    ),
    "a whole 3x3": (
        lambda: field.AnyAttention(qkv=nn.Conv2d(8, 24, 3, padding=1), qkv_dwconv=None),
        "channel attention",
        "channel_attention",
    ),
}


@pytest.mark.usefixtures("brief_comparison")
@pytest.mark.parametrize("name", ANY)
def test_it_is_taken_and_is_the_same(name: str) -> None:
    make, kind, op = ANY[name]
    made, x = trained(make()).double(), image(torch.float64).requires_grad_()
    before = made(x)
    up = torch.linspace(-1, 1, before.numel(), dtype=before.dtype).view_as(before)
    wanted = [x, *made.parameters()]
    slopes = torch.autograd.grad(before, wanted, up, allow_unused=True)
    report = cpl.patch(made)
    assert kind in {taken for _, taken in report.patched}, str(report)
    assert not [found for found in report.left if found[1] == kind], str(report)
    assert op in ran(made, x)
    after = made(x)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(after, wanted, up, allow_unused=True), slopes, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


# One of each kind, by the whole comparison.
WHOLE: dict[str, tuple[Make, str]] = {
    "CPLIR's prompts": (lambda: field.CplirPromptBlock(8, 5, 4, 8), "prompt block"),
    "no weight": (lambda: field.BareLayerNorm(8), "layer norm"),
    "a gain": (lambda: field.GainLayerNorm(8), "layer norm"),
    "7x7 of k and v": (field.mixer_of_two_maps, "cross attention"),
    "q of a scene": (field.TextAttention, "cross attention"),
    "5x5": (lambda: nn.Sequential(field.depthwise(8, 5)), "depthwise convolution"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_it_is_taken_by_the_whole_comparison(name: str) -> None:
    make, kind = WHOLE[name]
    report = cpl.patch(trained(make()))
    assert [taken for _, taken in report.patched] == [kind], str(report)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["products", "input"])
@pytest.mark.parametrize("name", ["MoCE-IR's", "BioIR's", "X-Restormer's", "norms without a weight"])
def test_a_block_is_found_by_the_whole_comparison(name: str, keep: str) -> None:
    """BioIR's attention pads by reflection, which needs images of some pixels: it is compared where it runs."""
    report = cpl.patch(trained(BLOCKS[name]()), keep)
    assert "transformer block" in {kind for _, kind in report.patched}, str(report)


LEFT = {
    "channels and pixels together": (lambda: field.GroupLayerNorm(8), None, ""),
    "torch's group norm": (lambda: nn.GroupNorm(1, 8), None, ""),
    "the larger half": (lambda: field.TopKAttention(8, 2), "channel attention", "computes something else"),
    "five maps": (
        lambda: field.AnyAttention(qkv=nn.Conv2d(8, 40, 1), qkv_dwconv=field.depthwise(40, 3)),
        "channel attention",
        "qkv gives 40 channels, not 3 times the 8 that project_out takes",
    ),
}


@pytest.mark.usefixtures("brief_comparison")
@pytest.mark.parametrize("name", LEFT)
def test_it_is_left(name: str) -> None:
    make, kind, why = LEFT[name]
    report = cpl.patch(trained(make()))
    assert not [found for _, found in report.patched if found != "depthwise convolution"]
    assert [found for _, found, _ in report.left] == [kind] * (kind is not None)
    assert all(why in said for *_, said in report.left)


def test_eps_of_the_dtype_is_taken_as_it_is_or_named() -> None:
    """Where it is taken, each dtype has its own eps."""
    made = trained(field.GainLayerNorm(8, field.eps_by_dtype))
    x = 1e-3 * image()
    right = [made.to(dtype)(x.to(dtype)) for dtype in (torch.float64, torch.float32)]
    report = cpl.patch(made)
    assert [kind for _, kind in report.patched] or [kind for _, kind, _ in report.left] == ["layer norm"]
    for dtype, before in zip((torch.float64, torch.float32), right, strict=True):
        torch.testing.assert_close(made.to(dtype)(x.to(dtype)), before, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("brief_comparison")
@pytest.mark.parametrize("name", ["num_expert", "num_selected", "sparsity"])
def test_the_number_that_decides_is_read_at_every_call(name: str) -> None:
    made, x = trained(field.NamedCount(name)), image()
    assert cpl.patch(made).patched
    setattr(made, name, 1)
    made.depth = 3
    ours = made(x)
    cpl.unpatch(made)
    torch.testing.assert_close(ours, made(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("brief_comparison")
def test_a_scene_for_a_batch_and_other_calls() -> None:
    made, x = trained(field.TextAttention()), image()
    assert ("", "cross attention") in cpl.patch(made).patched
    calls = [((x, scene().float()), {}), ((x,), {"query": scene().float()}), ((x, scene(1).float()), {})]
    ours = [made(*inputs, **named) for inputs, named in calls[:2]]
    cpl.unpatch(made)
    for y, (inputs, named) in zip(ours, calls, strict=False):
        torch.testing.assert_close(y, made(*inputs, **named), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("brief_comparison")
@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: field.OfItself(field.mixer_of_two_maps()), "attention.kv_dwconv"),
        (lambda: WithScene(field.TextAttention()), "block.kv_dwconv"),
        (lambda: WithScene(field.TextAttention()), "block.q"),
        (lambda: WithScene(field.TextAttention()), "block.resize"),
        (lambda: WithScene(field.TextAttention()), "block.project_out"),
        (cross(kv_dwconv=field.depthwise(16, 9)), "attention.kv_dwconv"),
        (lambda: field.BareLayerNorm(8), "body"),
        (lambda: field.WrappedLayerNorm(8), "norm"),
    ],
)
def test_hooks_on_parts_are_called(make: Make, part: str) -> None:
    made, x = trained(make()), image()
    right, seen = made(x), []
    cpl.patch(made)
    handle = made.get_submodule(part).register_forward_hook(lambda *_: seen.append(part))
    torch.testing.assert_close(made(x), right, rtol=1e-4, atol=1e-5)
    handle.remove()
    assert seen

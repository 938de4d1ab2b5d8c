"""Each layout by itself: what is taken, on which kernel, and what is left and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import cpl
from tests.interop import layouts
from tests.interop.layouts import image, trained


class CalledTopk(layouts.SparsePromptBlock):
    def __init__(self, k: int, normalize: bool) -> None:
        super().__init__(8, 4, 4, 8, k, normalize)
        self.topk = vars(self).pop("top_k")

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture(x, self.topk)


class CalledK(layouts.SparsePromptBlock):
    def __init__(self, k: int, normalize: bool) -> None:
        super().__init__(8, 4, 4, 8, k, normalize)
        self.k = vars(self).pop("top_k")

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture(x, self.k)


class BareLayerNorm(layouts.LayerNorm2d):
    """With the mean subtracted, and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.bias = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + self.eps).sqrt()
        return self.weight[:, None, None] * y


def two(first: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(*first, *second)  # type: ignore[misc]


TAKEN = {
    "Restormer's norm": (lambda: layouts.LayerNorm(8), "layer norm", "layer_norm2d"),
    "Restormer's norm without a bias": (lambda: layouts.LayerNorm(8, False), "layer norm", "layer_norm2d"),
    "NAFNet's norm": (lambda: layouts.LayerNorm2d(8), "layer norm", "layer_norm2d"),
    "timm's norm": (lambda: layouts.PermutedLayerNorm2d(8, eps=1e-3), "layer norm", "layer_norm2d"),
    "ConvNeXt's norm": (lambda: layouts.FormatLayerNorm(8, "channels_first"), "layer norm", "layer_norm2d"),
    "a centred norm without a bias": (lambda: BareLayerNorm(8), "layer norm", "layer_norm2d"),
    "attention": (lambda: layouts.Attention(8, 2, True), "channel attention", "channel_attention"),
    "cross attention": (lambda: layouts.FrequencyBlock(8, 2), "cross attention", "channel_attention"),
    "cross attention with biases": (
        lambda: layouts.FrequencyBlock(8, 2, True),
        "cross attention",
        "channel_attention",
    ),
    "feed-forward": (lambda: layouts.FeedForward(8), "gated feed-forward", "gated_dwconv"),
    "gated block": (lambda: layouts.NAFBlock(8), "gated block", "gated_dwconv"),
    "gated sequence": (lambda: layouts.gated_sequence(8), "gated convolution", "gated_dwconv"),
    "two gates in a sequence": (
        lambda: two(layouts.gated_sequence(8), layouts.gated_sequence(8, False)),
        "gated convolution",
        "gated_dwconv",
    ),
    "all prompts": (lambda: layouts.PromptGenBlock(8, 3, 4, 8), "prompt block", "aggregate_prompts"),
    "the best prompt": (
        lambda: layouts.SparsePromptBlock(8, 4, 4, 8, 1),
        "prompt block",
        "aggregate_prompts",
    ),
    "two prompts that sum to 1": (
        lambda: layouts.SparsePromptBlock(8, 4, 4, 8, 2, True),
        "prompt block",
        "aggregate_prompts",
    ),
    "topk": (lambda: CalledTopk(3, False), "prompt block", "aggregate_prompts"),
    "k": (lambda: CalledK(2, True), "prompt block", "aggregate_prompts"),
}


KERNELS = ("layer_norm2d", "channel_attention", "gated_dwconv")


def ran(made: nn.Module, x: Tensor) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        made(x)
    return [event.name.removeprefix("cpl_kernels::") for event in profile.events()]


@pytest.mark.parametrize("name", TAKEN)
def test_it_is_taken_and_is_the_same(name: str) -> None:
    make, kind, op = TAKEN[name]
    made, x = trained(make()).double(), image(torch.float64).requires_grad_()
    before = made(x)
    up = torch.linspace(-1, 1, before.numel(), dtype=before.dtype).view_as(before)
    slopes = torch.autograd.grad(before, [x, *made.parameters()], up)
    report = cpl.patch(made)
    assert kind in {taken for _, taken in report.patched}
    assert not report.left
    assert op in ran(made, x)
    after = made(x)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(after, [x, *made.parameters()], up), slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_both_gates_of_a_sequence_are_kernels() -> None:
    one, both = layouts.gated_sequence(8), two(layouts.gated_sequence(8), layouts.gated_sequence(8))
    cpl.patch(one)
    cpl.patch(both)
    assert ran(both, image()).count("gated_dwconv") == 2 * ran(one, image()).count("gated_dwconv") > 0


class NoisyLayerNorm(layouts.LayerNorm2d):
    """Another computation in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0.5 if self.training else 0.0)


class UncountedPrompts(layouts.SparsePromptBlock):
    """The best two, as no attribute says."""

    def __init__(self) -> None:
        super().__init__(8, 4, 4, 8, 2)
        del self.top_k

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture(x, 2)


class WithDropout(layouts.Attention):
    def __init__(self, chance: float) -> None:
        super().__init__(8, 2)
        self.drop = nn.Dropout(chance)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))


def strided_gate() -> nn.Sequential:
    made = layouts.gated_sequence(8)
    made[1].stride = (2, 2)
    return made


LEFT = {
    "queries of the second map": (layouts.CrossedAttention(8, 2), "cross attention", "something else"),
    "a sigmoid gate": (
        layouts.gated_sequence(8, gate=layouts.SigmoidGate),
        "gated convolution",
        "something else",
    ),
    "a gate behind a stride": (strided_gate(), "gated convolution", "stride 1"),
    "the last dimension": (layouts.FormatLayerNorm(8), "layer norm", "channels_last"),
    "so many prompts as nobody says": (UncountedPrompts(), "prompt block", "something else"),
    "another training": (NoisyLayerNorm(8), "layer norm", "in training, on a random image"),
    "a dropout": (WithDropout(0.01), "channel attention", "drop drops values in training"),
    "a gate alone": (nn.Sequential(nn.Conv2d(8, 16, 1), layouts.SimpleGate()), "gate", "by itself"),
}


@pytest.mark.parametrize("name", LEFT)
def test_it_is_left_with_its_reason(name: str) -> None:
    made, kind, why = LEFT[name]
    report = cpl.patch(made)
    assert {found for _, found in report.patched} <= {"depthwise convolution"}
    assert any(found == kind and why in said for _, found, said in report.left), str(report)


def test_a_gate_that_its_block_computes_is_not_reported() -> None:
    made = nn.Sequential(layouts.NAFBlock(8), layouts.gated_sequence(8))
    assert not cpl.patch(made).left
    assert "gate" not in {kind for _, kind, _ in cpl.patch(made).left}


def test_dropouts_of_the_gated_block_go_on() -> None:
    made, x = trained(layouts.NAFBlock(8, dropout=0.5)), image()

    def draw() -> Tensor:
        torch.manual_seed(3)
        return made(x)

    before = draw()
    assert ("", "gated block") in cpl.patch(made).patched
    torch.testing.assert_close(draw(), before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(made(x), made(x))


def test_how_many_prompts_may_change_later() -> None:
    made, x = trained(layouts.SparsePromptBlock(8, 4, 4, 8, 4)), image()
    cpl.patch(made)
    made.top_k = 1
    ours = made(x)
    cpl.unpatch(made)
    torch.testing.assert_close(ours, made(x), rtol=1e-4, atol=1e-5)


def test_what_stands_in_a_sequence_may_change_later() -> None:
    made, x = trained(layouts.gated_sequence(8)), image()
    cpl.patch(made)
    made[2] = layouts.SigmoidGate()
    made.append(nn.Tanh())
    assert "gated_dwconv" not in ran(made, x)
    right = layouts.gated_sequence(8, gate=layouts.SigmoidGate).append(nn.Tanh())
    right.load_state_dict(made.state_dict())
    torch.testing.assert_close(made(x), right(x))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: layouts.LayerNorm(8), "body"),
        (lambda: layouts.Attention(8, 2), "qkv_dwconv"),
        (lambda: layouts.FrequencyBlock(8, 2), "channel_cross.q_dwconv"),
        (lambda: layouts.FrequencyBlock(8, 2), "channel_cross.kv_dwconv"),
        (lambda: layouts.FeedForward(8), "dwconv"),
        (lambda: layouts.NAFBlock(8), "conv2"),
        (lambda: layouts.NAFBlock(8), "sg"),
        (lambda: layouts.gated_sequence(8), "1"),
        (lambda: layouts.gated_sequence(8), "2"),
    ],
)
def test_hooks_on_parts_that_a_kernel_covers_are_called(make: Callable[[], nn.Module], part: str) -> None:
    made, x = trained(make()), image()
    seen: list[int] = []

    def calls() -> int:
        seen.clear()
        handle = made.get_submodule(part).register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(made(x), right, rtol=1e-4, atol=1e-5)
        handle.remove()
        return len(seen)

    right = made(x)
    before = calls()
    cpl.patch(made)
    assert calls() == before > 0
    assert any(op.endswith(KERNELS) for op in ran(made, x))  # without the hook ours runs again


def test_a_part_whose_forward_is_exchanged_later_is_called() -> None:
    made, x = trained(layouts.Attention(8, 2)), image()
    cpl.patch(made)
    depthwise = made.qkv_dwconv
    depthwise.forward = lambda z: 2 * F.conv2d(z, depthwise.weight, None, padding=1, groups=24)
    ours = made(x)
    cpl.unpatch(made)
    torch.testing.assert_close(ours, made(x))
    assert next((kind, why) for _, kind, why in cpl.patch(made).left) == (
        "channel attention",
        "a part of it has hooks, or a forward of its own",
    )


def test_a_parametrised_weight_is_used() -> None:
    made, x = trained(layouts.Attention(8, 2)), image()
    parametrizations.weight_norm(made.qkv_dwconv)
    parametrizations.weight_norm(made.qkv)
    right = made(x)
    assert cpl.patch(made).patched
    assert "channel_attention" in ran(made, x)
    torch.testing.assert_close(made(x), right, rtol=1e-4, atol=1e-5)


class AnyLayerNorm(layouts.LayerNorm2d):
    """Over the channels of images, or of tokens [B, N, C]."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if x.dim() == 3:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return super().forward(x) * scale


def test_a_call_of_another_kind_goes_to_the_module_s_own_forward() -> None:
    made, x, tokens = trained(AnyLayerNorm(8)), image(), torch.randn(2, 5, 8)
    right = made(x), made(tokens)
    assert cpl.patch(made).patched
    assert "layer_norm2d" in ran(made, x)
    assert torch.equal(made(tokens), right[1])
    assert torch.equal(made(x=x), right[0])
    assert torch.equal(made(x, scale=2.0), 2 * right[0])
    assert torch.equal(made(x, 2.0), 2 * right[0])


def test_one_map_for_a_whole_batch_goes_to_the_attention_s_own_forward() -> None:
    made, x = trained(layouts.CrossAttention(8, 2)), image()
    right = made(x, x[:1])
    assert cpl.patch(made).patched
    assert torch.equal(made(x, x[:1]), right)


class Elsewhere:
    """What a library puts in a forward's place: it moves inputs, then calls the module's own."""

    def __init__(self, module: nn.Module, factor: float = 1.0) -> None:
        self.module, self.factor = module, factor

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * type(self.module).forward(self.module, x.contiguous())


def test_what_others_put_before_the_forward_comes_back() -> None:
    made, x = trained(layouts.LayerNorm2d(8)), image()
    made.forward = Elsewhere(made, 2.0)  # type: ignore[method-assign]
    assert not cpl.patch(made).patched  # it computes something else
    made.forward = before = Elsewhere(made)  # type: ignore[method-assign]
    right = made(x)
    assert cpl.patch(made).patched
    torch.testing.assert_close(made(x), right, rtol=1e-4, atol=1e-5)
    before.factor = 3.0  # a call of another kind goes through it
    assert torch.equal(made(x=x), 3 * right)
    assert cpl.unpatch(made) == 1
    assert made.forward is before

"""Depthwise convolutions: taken wherever one stands that no block around it computes, as long as it stays one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import cpl
from cpl.interop import depthwise as room
from cpl_kernels import dwconv
from tests.interop import field_layouts as field
from tests.interop import layouts
from tests.interop.field_layouts import depthwise
from tests.interop.layouts import image, trained
from tests.interop.test_layouts import ran

KIND = "depthwise convolution"
pytestmark = pytest.mark.usefixtures("brief_comparison")


def taken(report: cpl.interop.PatchReport) -> list[str]:
    return [name for name, kind in report.patched if kind == KIND]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding", ["numbers", "same"])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_it_is_taken_and_is_the_same(kernel: int, padding: str, bias: bool) -> None:
    settings = {"padding": "same"} if padding == "same" else {}
    made = trained(nn.Sequential(depthwise(8, kernel, bias=bias, **settings))).double()
    x = image(torch.float64).requires_grad_()
    before = made(x)
    up = torch.linspace(-1, 1, before.numel(), dtype=before.dtype).view_as(before)
    slopes = torch.autograd.grad(before, [x, *made.parameters()], up)
    report = cpl.patch(made)
    assert taken(report) == ["0"]
    assert not report.left
    assert "dwconv" in ran(made, x)
    after = made(x)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(torch.autograd.grad(after, [x, *made.parameters()], up), slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (field.PlainFeedForward, ["2"]),  # Retinexformer
        (field.TanhFeedForward, ["dwconv", "dwconv1", "dwconv2"]),  # CIDNet
        (field.TwoScales, ["dwconv_5"]),  # Histoformer
        (lambda: field.OwnAttention(8), ["dw", "wide"]),  # BioIR
        (lambda: field.TopKAttention(8, 2), ["qkv_dwconv"]),  # DRSformer
    ],
)
def test_in_blocks_that_are_left(make: Callable[[], nn.Module], names: list[str]) -> None:
    made, x = trained(make()).double(), image(torch.float64)
    before = made(x)
    assert taken(cpl.patch(made)) == names
    torch.testing.assert_close(made(x), before, rtol=1e-10, atol=1e-10)
    assert cpl.unpatch(made) == len(names)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layouts.Attention(8, 2),
        lambda: layouts.CrossAttention(8, 2),
        field.mixer_of_two_maps,
        field.TextAttention,
        lambda: layouts.FeedForward(8),
        lambda: layouts.NAFBlock(8),
        lambda: layouts.gated_sequence(8),
    ],
)
def test_what_a_block_around_it_computes_is_not_counted(make: Callable[[], nn.Module]) -> None:
    made = make()
    report = cpl.patch(made)
    assert report.patched
    assert not taken(report)
    assert not report.left
    again = cpl.patch(made)
    assert not again.patched
    assert KIND not in {kind for _, kind, _ in again.left}


class Wide(nn.Conv2d):
    """A subclass that changes nothing."""


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Shifted(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight, bias) + 1


def eight(kind: type[nn.Conv2d] = nn.Conv2d, kernel: int = 3, **settings: object) -> nn.Conv2d:
    return kind(8, 8, kernel, **{"padding": kernel // 2, "groups": 8, **settings})  # type: ignore[arg-type]


def test_subclasses_and_parametrisations() -> None:
    made = nn.Sequential(eight(Wide), parametrizations.weight_norm(eight()))
    x = image()
    right = trained(made)(x)
    assert taken(cpl.patch(made)) == ["0", "1"]
    torch.testing.assert_close(made(x), right, rtol=1e-4, atol=1e-5)
    assert "aten::conv2d" not in ran(made, x)


LEFT = {
    "a forward of its own": (eight(Doubled), "Doubled, has a forward of its own"),
    "an inner forward of its own": (eight(Shifted), "Shifted, has a forward of its own"),
    "stride": (eight(stride=2), "stride=(2, 2)"),
    "dilation": (eight(dilation=2, padding=2), "dilation=(2, 2)"),
    "another padding": (eight(padding=0), "not 3x3, 5x5, 7x7 with stride 1"),
    "circular padding": (eight(padding_mode="circular"), "padding_mode=circular"),
    "9x9": (eight(kernel=9), "kernel_size=(9, 9)"),
    "3x5": (nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=8), "kernel_size=(3, 5)"),
    "parametrised with a stride": (
        parametrizations.weight_norm(eight(stride=2)),
        "ParametrizedConv2d(8, 8, kernel_size",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_others_are_left_with_one_line(name: str) -> None:
    made, why = LEFT[name]
    report = cpl.patch(nn.Sequential(made))
    assert not report.patched
    assert [kind for _, kind, _ in report.left] == [KIND]
    assert why in report.left[0][2]
    assert "\n" not in report.left[0][2]


@pytest.mark.parametrize(
    "made",
    [
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 16, 3, padding=1, groups=8),
        nn.Conv1d(8, 8, 3, padding=1, groups=8),
        nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8),
    ],
)
def test_other_convolutions_are_not_looked_at(made: nn.Module) -> None:
    report = cpl.patch(nn.Sequential(made))
    assert not report.patched
    assert not report.left


def test_hooks_are_called() -> None:
    made, seen = nn.Sequential(depthwise(8, 5)), []
    made[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    made[0].register_forward_hook(lambda *_: seen.append("after"))
    assert taken(cpl.patch(made)) == ["0"]
    assert not seen
    made(image())
    assert seen == ["before", "after"]


def test_what_is_changed_later_runs_as_its_class_says() -> None:
    made, x = nn.Sequential(depthwise(8, 3, bias=False)), image()
    assert taken(cpl.patch(made)) == ["0"]
    made[0].stride = (2, 2)
    torch.testing.assert_close(made(x), F.conv2d(x, made[0].weight, None, 2, 1, 1, 8))
    made[0].stride = (1, 1)
    made[0].weight = nn.Parameter(2 * made[0].weight.detach())
    torch.testing.assert_close(made(x), F.conv2d(x, made[0].weight, None, 1, 1, 1, 8), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(x[0]), made(x)[0], rtol=1e-4, atol=1e-5)  # without a batch: torch's own


def test_our_own_networks_are_left_alone() -> None:
    for name in ("cplir-tiny", "promptir"):
        with torch.device("meta"):
            report = cpl.patch(cpl.create_model(name))
        assert not report.patched
        assert not report.left


def test_a_channels_last_image_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which walks it as it lies, where ours would copy it; 5x5 and 7x7, where torch is slow, stay ours."""
    seen: list[int] = []

    def noted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(weight.shape[-1])
        return dwconv(x, weight, bias)

    monkeypatch.setattr(room, "dwconv", noted)
    made = nn.Sequential(*(nn.Conv2d(8, 8, size, padding=size // 2, groups=8) for size in (3, 5)))
    x = torch.randn(2, 8, 6, 5)
    before = made(x)
    assert len(cpl.patch(made).patched) == 2
    seen.clear()
    torch.testing.assert_close(made(x.to(memory_format=torch.channels_last)), before)
    assert seen == [5]
    torch.testing.assert_close(made(x), before)
    assert seen == [5, 3, 5]
    tokens = x.flatten(2).transpose(1, 2).contiguous()  # [B, H * W, C], and an image again without a copy
    made(tokens.transpose(1, 2).unflatten(2, (6, 5)))
    assert seen == [5, 3, 5, 5]
    per_image = torch.func.vmap(lambda one: made(one[None])[0])(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(per_image, before)

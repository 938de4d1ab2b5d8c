"""What cpl.patch says: each block once, each reason once and in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import cpl
from tests.interop import field_layouts as field
from tests.interop import layouts

pytestmark = pytest.mark.usefixtures("brief_comparison")


class CplirLayerNorm(layouts.LayerNorm):
    """CPLIR's: the body of the norm would be one by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.body = layouts.LayerNorm2d(channels, 1e-5)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class BodyLayerNorm(layouts.NormBody):
    """Restormer's body has such a name."""


class RestormerLayerNorm(layouts.LayerNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.body = BodyLayerNorm(channels, True)


NORMS = [CplirLayerNorm, RestormerLayerNorm, field.BareLayerNorm, field.WrappedLayerNorm]


@pytest.mark.parametrize("norm", NORMS)
def test_the_body_of_a_taken_norm_is_neither_counted_nor_listed(norm: Callable[[int], nn.Module]) -> None:
    made = nn.Sequential(*(norm(8) for _ in range(5)))
    report = cpl.patch(made)
    assert [name for name, _ in report.patched] == ["0", "1", "2", "3", "4"]
    assert not report.left
    assert str(report).startswith("patched: 5 x layer norm\n")
    assert "left" not in str(report)
    again = cpl.patch(made)
    assert [(name, why) for name, _, why in again.left] == [
        (str(at), "it is patched already") for at in range(5)
    ]
    assert cpl.unpatch(made) == 5


def test_reasons_that_differ_in_numbers_are_one_line() -> None:
    left = [
        ("a", "channel attention", "it computes something else (0.34 away, of 2.1)"),
        ("b", "channel attention", "it computes something else (1.2e-05 away, of 3)"),
        ("c", "channel attention", "it computes something else (0.9 away, of 2)"),
        ("d", "channel attention", "it computes something else (0.5 away, of 2)"),
        ("e", "layer norm", "it computes something else (0.5 away, of 2)"),
        ("f", "layer norm", "conv2 is float32, not 3x3"),
        ("g", "layer norm", "conv3 is float16, not 3x3"),
    ]
    assert str(cpl.interop.PatchReport((), tuple(left))).splitlines() == [
        "patched: nothing",
        "left: a, b, c and 1 more (channel attention): it computes something else (1.2e-05 to 0.9 away, of 2 to 3)",
        "left: e (layer norm): it computes something else (0.5 away, of 2)",
        "left: f (layer norm): conv2 is float32, not 3x3",
        "left: g (layer norm): conv3 is float16, not 3x3",
    ]


def test_blocks_of_several_widths_are_one_line() -> None:
    made = nn.Sequential(*(field.TopKAttention(channels, 2) for channels in (4, 8, 12)))
    lines = [line for line in str(cpl.patch(made)).splitlines() if line.startswith("left")]
    assert len(lines) == 1
    assert lines[0].startswith("left: 0, 1, 2 (channel attention): it computes something else")


class Raises(layouts.Attention):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("first line\n\n  second line")


def test_a_reason_of_several_lines_is_one() -> None:
    strided = layouts.FeedForward(8)
    torch.nn.utils.parametrizations.weight_norm(strided.dwconv)
    strided.dwconv.stride = (2, 2)
    report = cpl.patch(nn.Sequential(Raises(8, 2), strided))
    assert all("\n" not in why for *_, why in report.left)
    lines = str(report).splitlines()
    assert all(line.startswith(("patched: ", "compared: ", "left: ")) for line in lines)
    assert any("RuntimeError: first line second line" in line for line in lines)
    assert any("dwconv is ParametrizedConv2d(" in line for line in lines)


def test_one_reason_for_a_block_that_two_layouts_fit() -> None:
    """Queries by a linear layer may be at each pixel, or from a vector."""

    class Squared(field.TextAttention):
        def forward(self, x: Tensor, query: Tensor) -> Tensor:
            return super().forward(x, query).square()

    report = cpl.patch(Squared())
    assert [kind for _, kind, _ in report.left] == ["cross attention"]
    again = field.TextAttention()
    cpl.patch(again)
    assert [why for *_, why in cpl.patch(again).left] == ["it is patched already"]


@pytest.mark.parametrize("keep", ["products", "input"])
def test_a_model_without_blocks_is_told_in_a_sentence(keep: str) -> None:
    said = str(cpl.patch(layouts.NAFBlock(8), keep)).splitlines()[-1]
    assert said == f'No transformer block was found, so keep="{keep}" has no effect.'

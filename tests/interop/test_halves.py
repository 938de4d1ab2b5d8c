"""cpl.patch(model, keep=...) finds blocks by structure: residual halves, whatever their parts are called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import cpl
from tests.interop import field_layouts as field
from tests.interop import layouts
from tests.interop.layouts import image, trained
from tests.interop.test_patch_keep import LESS, gradients, kept, kinds

pytestmark = pytest.mark.usefixtures("brief_comparison")
KIND = "transformer block"


class WithScene(nn.Module):
    """OneRestore's block for one scene: it takes an image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.block = field.SceneBlock()
        self.query = nn.Parameter(torch.linspace(-1, 1, 9))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.query.expand(len(x), -1))


class OwnNames(layouts.TransformerBlock):
    """Restormer's under other names, the attention being whatever."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(8, 2)
        del self.attn, self.norm1
        self.before_mixing, self.mixing_attention = layouts.LayerNorm2d(8), attention

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixing_attention(self.before_mixing(x))
        return x + self.ffn(self.norm2(x))


class BareNorms(layouts.TransformerBlock):
    """Histoformer's norms."""

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.norm1, self.norm2 = field.BareLayerNorm(8), field.BareLayerNorm(8)  # type: ignore[assignment]


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "MoCE-IR's": field.ListedBlock,
    "MoCE-IR's without biases": lambda: field.ListedBlock(8, False),
    "OneRestore's": WithScene,
    "BioIR's": field.OwnBlock,
    "X-Restormer's": field.FourHalves,
    "biases": lambda: layouts.TransformerBlock(8, 2, bias=True),
    "other names": lambda: OwnNames(layouts.Attention(8, 2)),
    "a convolution for an attention": lambda: OwnNames(nn.Conv2d(8, 8, 3, padding=1)),
    "5x5": lambda: OwnNames(field.AnyAttention(qkv_dwconv=field.depthwise(24, 5))),
    "norms without a weight": BareNorms,
}
# Maps of the input's size that two blocks keep with keep="products", at most, where all their products are known.
MOST = {
    "MoCE-IR's": 22,
    "MoCE-IR's without biases": 22,
    "biases": 22,
    "other names": 22,
    "norms without a weight": 22,
}


@pytest.mark.parametrize("keep", LESS)
@pytest.mark.parametrize("name", BLOCKS)
def test_it_is_found_and_is_the_same(name: str, keep: str) -> None:
    made, x = trained(nn.Sequential(BLOCKS[name](), BLOCKS[name]())).double(), image(torch.float64)
    right = gradients(made, x)
    report = cpl.patch(made, keep)
    assert kinds(report).count(KIND) == 2, str(report)
    assert not report.left, str(report)
    for ours, theirs in zip(gradients(made, x), right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(made(x), right[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BLOCKS)
def test_how_much_is_kept(name: str) -> None:
    made = trained(nn.Sequential(BLOCKS[name](), BLOCKS[name]()))
    plain = kept(made)
    cpl.patch(made, "input")
    assert kept(made) < 3
    cpl.unpatch(made)
    cpl.patch(made, "products")
    assert kept(made) < min(plain, MOST.get(name, plain))


@pytest.mark.parametrize("keep", LESS)
@pytest.mark.parametrize("part", ["0.mixer.qkv", "0.norms.1", "0.norms.0.body", "0.ffn.dwconv"])
def test_a_hook_inside_is_called_once(part: str, keep: str) -> None:
    made, x = trained(nn.Sequential(field.ListedBlock())), image()
    right = made(x)
    cpl.patch(made, keep)
    seen: list[str] = []
    made.get_submodule(part).register_forward_hook(lambda *_: seen.append(part))
    y = made(x.requires_grad_())
    y.sum().backward()
    assert seen == [part]
    torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-5)


def test_a_decoder_of_other_parts_is_named_and_its_parts_are_taken() -> None:
    report = cpl.patch(field.Decoder(), "input")
    assert [(kind, why) for _, kind, why in report.left] == [
        (KIND, "it has 2 norms and 4 other parts, not one behind each norm")
    ]
    assert kinds(report).count("cross attention") == 1


class Statistics(field.ListedBlock):
    """A second pass would count the batch twice."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))  # type: ignore[assignment]


class PowerIteration(field.ListedBlock):
    """A second pass would have another weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.nn.utils.parametrizations.spectral_norm(self.ffn.project_in)


@pytest.mark.parametrize("make", [Statistics, PowerIteration])
def test_what_changes_in_a_pass_is_not_run_again(make: Callable[[], nn.Module]) -> None:
    report = cpl.patch(make(), "input")
    assert KIND not in kinds(report)
    assert KIND in {kind for _, kind, _ in report.left}


def test_products_of_parts_that_are_not_known_are_not_promised() -> None:
    made = field.OwnBlock()
    made.ffn = nn.Sequential(nn.Conv2d(8, 16, 1), nn.GELU(), nn.Conv2d(16, 8, 1))  # type: ignore[assignment]
    report = cpl.patch(made, "products")
    assert [kind for _, kind, _ in report.left] == [KIND]
    assert KIND in kinds(cpl.patch(made, "input"))


class LastDimension(layouts.TransformerBlock):
    """Tokens: torch's own norms."""

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)  # type: ignore[assignment]


def test_norms_over_the_last_dimension_are_named() -> None:
    report = cpl.patch(LastDimension(), "input")
    assert (KIND, "norm1 is not a layer norm over channels") in [(kind, why) for _, kind, why in report.left]


@pytest.mark.parametrize("keep", LESS)
def test_a_dropout_that_comes_later_is_obeyed(keep: str) -> None:
    class WithDrop(field.ListedBlock):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.0)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.drop(self.mixer(self.norms[0](x)))
            return x + self.drop(self.ffn(self.norms[1](x)))

    made, x = trained(WithDrop()), image().requires_grad_()
    assert KIND in kinds(cpl.patch(made, keep))
    made.drop.p = 0.5
    assert not torch.equal(made(x), made(x))


@pytest.mark.parametrize("keep", LESS)
def test_with_torch_compile(keep: str) -> None:
    made, x = trained(nn.Sequential(field.ListedBlock())), image()
    right = gradients(made, x)
    cpl.patch(made, keep)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(gradients(compiled, x), right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)

"""cpl.patch(model, keep=...): blocks in Restormer's layout that keep less for their backward pass."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import cpl
from cpl_kernels import core
from tests.interop import layouts
from tests.interop.layouts import image, trained

pytestmark = pytest.mark.usefixtures("brief_comparison")  # test_comparison.py has the whole of it
LESS = ("products", "input")


def blocks(**settings: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return trained(  # type: ignore[return-value]
        nn.Sequential(layouts.TransformerBlock(8, 2, **settings), layouts.TransformerBlock(8, 4, **settings))
    )


def gradients(made: nn.Module, x: Tensor, narrow: bool = False) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        y = made(x)
    up = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, [x, *made.parameters()], up)]


def kept(made: nn.Module) -> float:
    """In maps of the input's size, each storage once, beside the parameters."""
    x = torch.randn(1, 8, 32, 32, requires_grad=True)
    weights = {value.untyped_storage().data_ptr() for value in made.parameters()}
    stored: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = made(x)  # alive, so that no storage's place is given to another
    assert y.shape == x.shape
    return sum(stored.values()) / (4 * x.numel())


def kinds(report: cpl.interop.PatchReport) -> list[str]:
    return [kind for _, kind in report.patched]


@pytest.mark.parametrize("norm_bias", [False, True])
@pytest.mark.parametrize("keep", LESS)
def test_same_results_and_gradients(keep: str, norm_bias: bool) -> None:
    made, x = blocks(norm_bias=norm_bias).double(), image(torch.float64)
    right = gradients(made, x)
    report = cpl.patch(made, keep)
    assert kinds(report).count("transformer block") == 2
    assert len(report.patched) == 10
    assert not report.left
    for ours, theirs in zip(gradients(made, x), right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(made(x), right[0], rtol=1e-10, atol=1e-10)


# As cpl.nn.TransformerBlock has them, but of what kernels give along only the gate's output is not kept; and two blocks
# of which the second's input is the first's output.
@pytest.mark.parametrize(
    ("keep", "maps"),
    [("all", 17.0 if core.available() else 19.5), ("products", 10.5), ("input", 1.0)],
)
def test_how_much_is_kept(keep: str, maps: float) -> None:
    made = blocks()
    plain = kept(made)
    cpl.patch(made, keep)
    assert 2 * (maps - 1) <= kept(made) <= 2 * maps * 1.1
    cpl.unpatch(made)
    assert kept(made) == plain > 2 * 22  # and what torch keeps is more than all of ours


@pytest.mark.parametrize("keep", LESS)
def test_autocast(keep: str) -> None:
    """As patch without keep, but for the order of sums: an ulp of bf16, of the largest, for each of three of them."""
    made, lean = blocks(), blocks()
    cpl.patch(made)
    cpl.patch(lean, keep)
    for ours, theirs in zip(gradients(lean, image(), True), gradients(made, image(), True), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).abs().max() <= 3 * torch.finfo(torch.bfloat16).eps * theirs.abs().max()


@pytest.mark.parametrize("keep", LESS)
def test_with_torch_compile(keep: str) -> None:
    made, x = blocks(), image()
    right = gradients(made, x)
    cpl.patch(made, keep)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(gradients(compiled, x), right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    # "products" leaves the choice to the compiler; with "input" both blocks' inputs are kept, and small matrices.
    assert (kept(compiled) < 3) == (keep == "input")


def test_a_copy_and_a_pickle_keep_as_little_on_their_own_parameters() -> None:
    made, x = blocks(), image()
    cpl.patch(made, "input")
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert kept(again) == kept(made)
        with torch.no_grad():
            for p in again.parameters():
                p.mul_(0.5)
        right = blocks()
        with torch.no_grad():
            for p in right.parameters():
                p.mul_(0.5)
        for ours, theirs in zip(gradients(again, x), gradients(right, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("part", ["0.attn", "0.attn.qkv_dwconv", "0.norm1", "0.ffn.project_out"])
def test_a_block_with_a_hook_inside_keeps_all_and_calls_it(part: str) -> None:
    made = blocks()
    cpl.patch(made, "input")
    least, seen = kept(made), []
    handle = made.get_submodule(part).register_forward_hook(lambda *_: seen.append(part))
    assert kept(made) > 5 * least
    assert seen
    handle.remove()
    assert kept(made) == least


def test_it_can_be_asked_for_after_a_patch() -> None:
    made = blocks()
    cpl.patch(made)
    report = cpl.patch(made, "input")
    assert kinds(report) == ["transformer block"] * 2
    assert kept(made) < 3
    assert "it is patched already" in str(cpl.patch(made, "products"))
    assert cpl.unpatch(made) == 10


class PostNorm(layouts.TransformerBlock):
    """The same parts in another order."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.ffn(x))


class WithDropPath(layouts.TransformerBlock):
    def __init__(self) -> None:
        super().__init__(8, 2)
        self.drop_path = nn.Dropout(0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


@pytest.mark.parametrize(
    ("made", "why"),
    [(PostNorm(8, 2), "something else"), (WithDropPath(), "drop_path drops values in training")],
)
def test_other_blocks_are_left_and_their_parts_taken(made: nn.Module, why: str) -> None:
    report = cpl.patch(made, "input")
    assert "gated feed-forward" in kinds(report)
    assert [(kind, why in said) for _, kind, said in report.left] == [("transformer block", True)]


def test_keep_must_be_known() -> None:
    made = blocks()
    with pytest.raises(ValueError, match="one of all, products, input, got 'nothing'"):
        cpl.patch(made, "nothing")
    assert cpl.unpatch(made) == 0

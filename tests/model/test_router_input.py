"""What routers see: the features' mean, or that mean normalized over its channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cpl
from cpl.inference.streaming import plan, restore_streaming
from cpl.models import Restorer
from cpl.nn.prompt import SparsePromptModule


def module(router_input: str) -> SparsePromptModule:
    torch.manual_seed(0)
    return SparsePromptModule(3, 8, 5, 4, 6, router_input=router_input)


def model(router_input: str = "normalized") -> Restorer:
    torch.manual_seed(0)
    made = cpl.create_model("cplir-tiny", router_input=router_input)
    with torch.no_grad():
        for level in (1, 2, 3):
            getattr(made, f"prompt{level}").linear_layer.weight.mul_(20)  # choices that differ
    return made.eval()


def features() -> Tensor:
    return (
        torch.randn(3, 8, 5, 7, generator=torch.Generator().manual_seed(1))
        + torch.linspace(-1, 1, 8)[:, None, None]
    )


def test_the_logits_are_those_of_the_normalized_mean() -> None:
    made, x = module("normalized"), features()
    router = made.linear_layer
    torch.testing.assert_close(made.logits(x), router(F.layer_norm(x.mean((2, 3)), (8,))))
    torch.testing.assert_close(module("mean").logits(x), router(x.mean((2, 3))))


def test_scale_and_offset_of_the_features_say_nothing() -> None:
    """To the eps of the norm, beside a variance of about a third."""
    x = features()
    for router_input, same in (("normalized", True), ("mean", False)):
        made = module(router_input)
        assert torch.allclose(made.logits(x), made.logits(10 * x + 3), atol=1e-4) is same


def test_the_router_learns_all_the_same() -> None:
    made, x = module("normalized"), features()
    x.requires_grad_()
    made.logits(x).square().sum().backward()
    assert made.linear_layer.weight.grad is not None
    assert made.linear_layer.weight.grad.abs().max() > 0
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_a_checkpoint_records_it(tmp_path: Path) -> None:
    made, x = model(), torch.rand(2, 3, 16, 24)
    cpl.save_checkpoint(made, tmp_path / "a.safetensors")
    loaded, _ = cpl.load_checkpoint(tmp_path / "a.safetensors")
    loaded.eval()
    assert loaded.config.router_input == "normalized"
    with torch.no_grad():
        assert torch.equal(loaded(x), made(x))
        assert not torch.equal(model("mean")(x), made(x))  # the same weights


@pytest.mark.parametrize("size", [(45, 70), (64, 33)])
def test_windows_choose_as_the_whole_image_does(size: tuple[int, int]) -> None:
    made = model()
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(2))
    least = plan(made, *size, limit=2**40).least
    restored, margin = restore_streaming(made, image, least, torch.device("cpu"))
    assert margin > 1e-5
    with torch.inference_mode():
        torch.testing.assert_close(restored, made(image[None])[0], rtol=0, atol=1e-4)

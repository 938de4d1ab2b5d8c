"""The forward pass, against the network written a second time, and in every way it may be run."""

from __future__ import annotations

import pytest
import torch

import cpl
from tests.model.plain_restorer import plain_restorer

SMALL = {"num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1}
CASES = {
    "cplir-tiny": {},  # k = 1
    "cplir-tiny k=2": {"top_k": 2},
    "promptir": {"dim": 16, "prompt_channels": (16, 32, 64), **SMALL},  # k = N
    "restormer": {"dim": 16, **SMALL},
    "restormer bias free": {"dim": 16, "norm_bias": False, **SMALL},
}


def make(case: str, **more: object) -> torch.nn.Module:
    """A model whose every parameter is random: at their start norms and temperatures are 1 and hide mistakes."""
    torch.manual_seed(0)
    model = cpl.create_model(case.split()[0], **CASES[case], **more)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("temperature", "body.weight", "body.bias")):
                value.add_(0.3 * torch.randn_like(value))
            elif "linear_layer" in name:
                value.mul_(5)  # a router that is sure of itself differs from one that is not
    return model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(16, 24), (13, 5)])  # a size that fits, one that is padded
@torch.no_grad()
def test_it_is_the_described_network(case, shape):
    model = make(case).double()
    x = torch.rand(2, 3, *shape, dtype=torch.float64)
    expected = plain_restorer(model.state_dict(), x, (1, 2, 4, 8), model.config.picks)
    assert (expected - x).abs().max() > 0.01  # the network does something
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=0, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    model = make("cplir-tiny k=2")
    model(torch.rand(2, 3, 16, 16)).square().sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_gradients_are_those_of_the_described_network():
    model = make("cplir-tiny").double()
    x = torch.rand(1, 3, 9, 16, dtype=torch.float64)
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    plain_restorer(weights, x, (1, 2, 4, 8), 1).square().sum().backward()
    model(x).square().sum().backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(
            value.grad, weights[name].grad, rtol=1e-7, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


@torch.no_grad()
def test_bf16_autocast_stays_close_and_routes_alike():
    model = make("cplir-tiny")
    x = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        features = torch.rand(2, 128, 5, 5).bfloat16()
        logits = model.prompt3.logits(features)
    assert y.dtype == torch.float32
    torch.testing.assert_close(logits, model.prompt3.logits(features.float()))  # routing is not rounded
    error, change = (y - model(x)).abs().max(), (model(x) - x).abs().max()
    assert error < 0.05 * change + 0.02


@pytest.mark.parametrize("what", ["forward", "forward_with_negatives"])
def test_it_compiles_without_a_graph_break(what):
    """With gradients; "aot_eager" traces forward and backward as inductor does, without its minutes."""
    torch._dynamo.reset()
    model = make("cplir-tiny", **SMALL)
    x, seed = torch.rand(1, 3, 8, 7), torch.tensor(5)

    def step(x):
        if what == "forward":
            return model(x)
        return torch.cat([part.flatten() for part in model.forward_with_negatives(x, 2, seed=seed)])

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, step(x), rtol=0, atol=1e-6)
    compiled.sum().backward()
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0
    torch._dynamo.reset()


@torch.no_grad()
def test_strides_do_not_matter():
    model = make("cplir-tiny")
    x = torch.rand(2, 3, 16, 9)
    turned = x.to(memory_format=torch.channels_last)
    sliced = torch.rand(4, 3, 16, 18)[::2, :, :, ::2].copy_(x)
    for other in (turned, sliced):
        torch.testing.assert_close(model(other), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.rand(3, 8, 8), ValueError, r"\[B, 3, H, W\].*\(3, 8, 8\)"),
        (torch.rand(1, 1, 8, 8), ValueError, r"\(1, 1, 8, 8\)"),
        (torch.rand(0, 3, 8, 8), ValueError, r"\(0, 3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "torch.uint8; see cpl.restore"),
        ([1.0], TypeError, "got list"),
    ],
)
def test_what_is_no_image_batch_is_refused(x, error, message):
    model = make("cplir-tiny", **SMALL)
    for call in (model, lambda x: model.forward_with_negatives(x, 2)):
        with pytest.raises(error, match=message):
            call(x)

"""The contrastive regularization, against its formulas written out image by image in fp64."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

from cpl.losses import ContrastivePromptRegularization, VGGFeatures

B, K = 2, 3


class TwoLayers(nn.Module):
    """A small feature network with two layers of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x).tanh()
        return first, self.second(first)


@pytest.fixture
def images():
    """restored with gradient, target, negatives, in fp64; distances between them all differ."""
    generator = torch.Generator().manual_seed(0)
    restored = torch.rand(B, 3, 8, 9, generator=generator, dtype=torch.float64)
    target = restored + 0.1 * torch.rand(B, 3, 8, 9, generator=generator, dtype=torch.float64)
    noise = torch.randn(K, B, 3, 8, 9, generator=generator, dtype=torch.float64)
    negatives = restored + noise * torch.tensor([0.05, 0.2, 0.4]).view(K, 1, 1, 1, 1)
    return restored.requires_grad_(), target, negatives


@pytest.fixture
def network():
    torch.manual_seed(0)
    return TwoLayers().double()


def naive(form, features, layer_weights, restored, target, negatives, weight, margin, tau, eps, normalize):
    def distance(x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for a, f, g in zip(layer_weights, features(x[None]), features(y[None]), strict=True):
            if normalize:
                f, g = (v / v.norm(dim=1, keepdim=True) for v in (f, g))
            total = total + a * (f - g).abs().mean()
        return total

    terms = []
    for b in range(len(restored)):
        away = [distance(restored[b], negative[b]) for negative in negatives]
        if margin is not None:
            away = [d if d < margin else torch.tensor(margin, dtype=torch.float64) for d in away]
        if form == "subtractive":
            terms.append(-sum(away) / len(away))
            continue
        near = distance(restored[b], target[b])
        if form == "ratio":
            terms.append(near / (sum(away) / len(away) + eps))
        else:
            e = [torch.exp(-d / tau) for d in away]
            terms.append(-torch.log(torch.exp(-near / tau) / (torch.exp(-near / tau) + sum(e))))
    return (restored - target).abs().mean() + weight * sum(terms) / len(terms)


@pytest.mark.parametrize("form", ["subtractive", "ratio", "infonce"])
@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("normalize", [False, True])
def test_value_and_gradient_are_the_formulas(form, margin, normalize, images, network):
    restored, _, _ = images
    settings = {"weight": 0.3, "margin": margin, "eps": 1e-3}
    loss = ContrastivePromptRegularization(
        form, network, (0.4, 0.9), temperature=0.2, normalize_features=normalize, **settings
    )
    expected = naive(form, network, (0.4, 0.9), *images, tau=0.2, normalize=normalize, **settings)
    value = loss(*images)
    assert value.dtype == torch.float64
    assert value.shape == ()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    (ours,), (theirs,) = (torch.autograd.grad(v, restored) for v in (value, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    if margin is not None:  # the case tests nothing unless the margin cuts some distances and not others
        unbounded = naive(form, network, (0.4, 0.9), *images, 0.3, None, 0.2, 1e-3, normalize)
        assert not torch.isclose(unbounded, expected)


@pytest.mark.parametrize("form", ["subtractive", "ratio", "infonce"])
def test_gradcheck(form, images, network):
    restored, target, negatives = (part[..., :4, :5] for part in images)
    loss = ContrastivePromptRegularization(form, nn.Tanh(), weight=0.5)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, negatives), restored.detach().requires_grad_())


def test_margin_cuts_the_gradient(images):
    restored, target, _ = images
    loss = ContrastivePromptRegularization("subtractive", "pixel", margin=1e-9)
    plain = torch.autograd.grad((restored - target).abs().mean(), restored)[0]
    torch.testing.assert_close(torch.autograd.grad(loss(*images), restored)[0], plain)


def test_pixel_features_are_the_image_with_weight_one(images):
    restored, target, negatives = images
    value = ContrastivePromptRegularization("subtractive", "pixel", weight=0.5)(*images)
    expected = (restored - target).abs().mean() - 0.5 * (restored - negatives).abs().mean()
    torch.testing.assert_close(value, expected)


def test_the_published_weights_are_the_default(images):
    loss = ContrastivePromptRegularization(features="random").double()
    assert (loss.form, loss.weight) == ("subtractive", 1e-3)
    expected = naive(
        "subtractive", loss.features.network, (0.2, 0.3, 0.5), *images, 1e-3, None, 0.1, 0, False
    )
    torch.testing.assert_close(loss(*images), expected)


@pytest.mark.parametrize("form", ["subtractive", "ratio", "infonce"])
def test_the_parts_add_up_and_change_nothing(form, images, network):
    restored, target, _ = images
    loss = ContrastivePromptRegularization(form, network, weight=0.2)
    total, parts = loss(*images, return_parts=True)
    assert torch.equal(total, loss(*images))
    assert set(parts) == {"total", "pixel", "regularization", "distance_to_target", "distance_to_negatives"}
    assert not any(value.requires_grad for value in parts.values())
    assert torch.equal(parts["total"], total)
    torch.testing.assert_close(parts["pixel"] + parts["regularization"], total.detach())
    near = sum((f - g).abs().mean() / 2 for f, g in zip(network(restored), network(target), strict=True))
    torch.testing.assert_close(parts["distance_to_target"], near.detach())


def test_only_restored_gets_a_gradient(images, network):
    restored, target, negatives = images
    target.requires_grad_()
    negatives.requires_grad_()
    ContrastivePromptRegularization("ratio", network)(*images).backward()
    assert restored.grad is not None
    assert target.grad is None
    assert negatives.grad is None


@pytest.mark.parametrize(("form", "passes"), [("subtractive", [B, K * B]), ("ratio", [B, (K + 1) * B])])
def test_truth_and_negatives_go_through_the_network_in_one_call(form, passes, images, network):
    calls = []
    network.register_forward_hook(lambda _, args, out: calls.append((args[0].shape[0], out[0].requires_grad)))
    ContrastivePromptRegularization(form, network)(*images)
    assert calls == [(passes[0], True), (passes[1], False)]


@pytest.mark.parametrize("form", ["subtractive", "ratio", "infonce"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 9])
def test_streamed_negatives_change_neither_value_nor_gradient(form, chunk, images, network):
    """A chunk that divides neither K = 3 nor 1 + K, one that takes all, and one larger than all."""
    restored, _, _ = images
    settings = {"weight": 0.3, "margin": 0.15, "normalize_features": True}
    whole = ContrastivePromptRegularization(form, network, **settings)
    streamed = ContrastivePromptRegularization(form, network, negative_chunk=chunk, **settings)
    (expected, expected_parts), (got, parts) = (f(*images, return_parts=True) for f in (whole, streamed))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts, expected_parts, rtol=1e-12, atol=1e-12)
    (ours,), (theirs,) = (torch.autograd.grad(value, restored) for value in (got, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("chunk", "kept"), [(None, 2), (1, 0), (2, 0)])
def test_streamed_features_are_let_go(chunk, kept, images, network):
    """Between forward and backward: the two layers of all negatives in one call, or none."""
    calls, saved = [], []
    network.register_forward_hook(lambda _, args, out: calls.append(args[0].shape[0]))
    loss = ContrastivePromptRegularization("subtractive", network, negative_chunk=chunk)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        value = loss(*images)
    # [K, B, C, H, W]; the negatives themselves, of 3 channels, are there anyhow.
    assert sum(len(shape) == 5 and shape[2] > 3 for shape in saved) == kept
    forward = {None: [B, K * B], 1: [B, B, B, B], 2: [B, 2 * B, B]}[chunk]
    assert calls == forward
    value.backward()
    assert sorted(calls[len(forward) :]) == (sorted(forward[1:]) if chunk else []), "each chunk once more"


def test_streamed_negatives_compile_without_a_graph_break(images):
    torch._dynamo.reset()
    images = [part.detach().float() for part in images]
    loss = ContrastivePromptRegularization("ratio", "pixel", negative_chunk=2)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    grads = []
    for call in (compiled, loss):
        restored = images[0].clone().requires_grad_()
        call(restored, *images[1:]).backward()
        grads.append(restored.grad)
    torch.testing.assert_close(*grads)
    torch._dynamo.reset()


def test_ratio_stays_finite_where_a_negative_equals_the_output(images):
    restored, target, _ = images
    same = restored.detach().expand(K, *restored.shape)
    value = ContrastivePromptRegularization("ratio", "pixel")(restored, target, same)
    value.backward()
    assert value.isfinite()
    assert restored.grad.isfinite().all()


def test_infonce_stays_finite_at_a_tiny_temperature(images):
    value = ContrastivePromptRegularization("infonce", "pixel", temperature=1e-6)(*images)
    value.backward()
    assert value.isfinite()


@pytest.mark.parametrize("common", [0.0, 1e4, 1e5])
def test_infonce_loses_nothing_of_distances_with_much_in_common(common):
    """They differ by 1 and 2, whatever all of them are. fp32 holds each, and the sum of 48 pixels."""
    found = []
    for dtype in (torch.float32, torch.float64):
        restored = torch.zeros(1, 3, 4, 4, dtype=dtype, requires_grad=True)
        far = [torch.full_like(restored, common + step).detach() for step in (3.0, 2.0, 1.0)]
        loss = ContrastivePromptRegularization("infonce", "pixel", weight=1.0, temperature=1.0)
        value, parts = loss(restored, far[0], torch.stack(far[1:]), return_parts=True)
        assert value.dtype == dtype
        shares = torch.autograd.grad(value - (restored - far[0]).abs().mean(), restored)[0]
        found.append([parts["regularization"].double(), shares.double()])
    expected = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).logsumexp(0)
    for regularization, shares in found:
        torch.testing.assert_close(regularization, expected, rtol=1e-6, atol=0)
        assert shares.abs().max() < 1e-7  # all distances change alike


@pytest.mark.parametrize("form", ["subtractive", "ratio", "infonce"])
def test_bf16_autocast_keeps_sums_in_fp32(form, images):
    restored, target, negatives = (part.detach().float() for part in images)
    restored.requires_grad_()
    loss = ContrastivePromptRegularization(form, "random")
    with torch.autocast("cpu", torch.bfloat16):
        value, parts = loss(restored, target, negatives, return_parts=True)
    value.backward()
    _, exact_parts = loss(restored, target, negatives, return_parts=True)
    assert value.dtype == torch.float32
    assert torch.equal(parts["pixel"], exact_parts["pixel"])
    torch.testing.assert_close(
        parts["distance_to_negatives"], exact_parts["distance_to_negatives"], rtol=0.05, atol=0
    )
    half = loss(restored.bfloat16(), target, negatives.bfloat16())
    assert half.dtype == torch.float32


def test_it_compiles_without_a_graph_break(images):
    torch._dynamo.reset()
    restored, target, negatives = (part.detach().float() for part in images)
    loss = ContrastivePromptRegularization("infonce", "pixel")
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(restored, target, negatives), loss(restored, target, negatives))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"form": "triplet"}, ValueError, "'subtractive', 'ratio', 'infonce', got 'triplet'"),
        ({"features": "resnet"}, ValueError, "'vgg16', 'random', 'pixel' or an nn.Module, got 'resnet'"),
        ({"features": 3}, ValueError, "got 3"),
        ({"weight": -1.0}, ValueError, "weight must be finite and at least 0, got -1.0"),
        ({"weight": math.nan}, ValueError, "weight must be finite"),
        ({"weight": "1e-3"}, TypeError, "weight must be a number, got '1e-3'"),
        ({"margin": 0.0}, ValueError, "margin must be finite and greater than 0"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and greater than 0"),
        ({"eps": -1e-9}, ValueError, "eps"),
        ({"negative_chunk": 0}, ValueError, "negative_chunk must be at least 1 or None, got 0"),
        ({"negative_chunk": 1.5}, TypeError, "negative_chunk must be an integer or None, got 1.5"),
        ({"negative_chunk": True}, TypeError, "negative_chunk must be an integer or None, got True"),
        ({"layer_weights": ()}, ValueError, "layer_weights must have a weight for each"),
        ({"layer_weights": (0.2, -0.3, 0.5)}, ValueError, r"layer_weights\[1\]"),
        ({"weights_file": "a.pth"}, ValueError, "weights_file is for features='vgg16' only"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        ContrastivePromptRegularization(**{"features": "pixel", **settings})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r, t, n: (r[0], t, n), ValueError, "restored must be [B, 3, H, W]"),
        (
            lambda r, t, n: (r, t[:1], n),
            ValueError,
            "target must have restored's shape (2, 3, 8, 9), got (1, 3, 8, 9)",
        ),
        (
            lambda r, t, n: (r, t, n[:0]),
            ValueError,
            "got (0, 2, 3, 8, 9); model.forward_with_negatives makes them",
        ),
        (lambda r, t, n: (r, t, n[0]), ValueError, "negatives must be [K, B, 3, H, W]"),
        (
            lambda r, t, n: (r, t.byte(), n),
            TypeError,
            "target must be floating point in [0, 1], got torch.uint8",
        ),
        (lambda r, t, n: (r, t.to("meta"), n), ValueError, "target is on meta but restored is on cpu"),
        (lambda r, t, n: (r, None, n), TypeError, "target must be a torch.Tensor, got NoneType"),
    ],
)
def test_images_that_do_not_fit_are_refused(change, error, message, images):
    with pytest.raises(error, match=re.escape(message)):
        ContrastivePromptRegularization(features="pixel")(*change(*images))


def test_weights_for_other_layers_are_refused(images, network):
    loss = ContrastivePromptRegularization(features=network, layer_weights=(0.2, 0.3, 0.5))
    with pytest.raises(ValueError, match=r"each of the 2 feature layers, got \(0.2, 0.3, 0.5\)"):
        loss(*images)


def test_images_too_small_for_vgg_are_refused(images):
    small = [part[..., :3, :3].float() for part in images]
    with pytest.raises(ValueError, match="at least 4x4 pixels"):
        ContrastivePromptRegularization(features="random")(*small)
    with pytest.raises(TypeError, match=re.escape("call .double() on the loss")):
        ContrastivePromptRegularization(features="random")(*images)


def test_vgg_layers_are_where_they_should_be():
    shapes = [tuple(tap.shape) for tap in VGGFeatures()(torch.rand(1, 3, 16, 24))]
    assert shapes == [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6)]

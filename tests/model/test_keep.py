"""Blocks that keep less for the backward pass: the same numbers, of fewer stored ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cpl
import cpl_kernels
from cpl.nn import LayerNorm2d, TransformerBlock, set_keep
from cpl_kernels import core

LESS = ("products", "input")
SHAPE = (2, 16, 9, 14)


def block(**settings: Any) -> TransformerBlock:
    torch.manual_seed(0)
    made = TransformerBlock(16, 2, **settings)
    for value in made.parameters():  # no vector of ones or zeros: what is mixed up must show
        nn.init.normal_(value, std=0.5)
    return made


def gradients(of: nn.Module, x: Tensor, keep: str, narrow: bool = False) -> list[Tensor | None]:
    """The output, x's gradient and those of the parameters, for an output gradient that is the same each time."""
    set_keep(of, keep)
    of.zero_grad()
    x = x.detach().requires_grad_(x.requires_grad)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=narrow):
        y = of(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape))
    return [y.detach(), x.grad, *(p.grad for p in of.parameters())]


def same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for got, gold in zip(found, expected, strict=True):
        assert (got is None) == (gold is None)
        if got is not None and gold is not None:
            torch.testing.assert_close(got, gold, rtol=0, atol=0)


@pytest.mark.parametrize("norm_bias", [True, False])
@pytest.mark.parametrize("keep", LESS)
def test_it_is_the_same_to_the_bit(keep: str, norm_bias: bool) -> None:
    one, x = block(norm_bias=norm_bias), torch.randn(SHAPE, requires_grad=True)
    same(gradients(one, x, keep), gradients(one, x, "all"))


@pytest.mark.parametrize("keep", LESS)
def test_channels_last_is_the_same_but_for_the_order_of_sums(keep: str) -> None:
    one = block().double()
    x = torch.randn(SHAPE, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    for got, gold in zip(gradients(one, x, keep), gradients(one, x, "all"), strict=True):
        torch.testing.assert_close(got, gold, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("keep", LESS)
def test_autocast_is_that_of_the_forward(keep: str) -> None:
    """Gradients are taken outside of autocast; the forward's functions must run as they did. A sum of two bfloat16
    gradients may be added up in another order: half an ulp, of the largest, is allowed for each of three sums."""
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    for got, gold in zip(gradients(one, x, keep, True), gradients(one, x, "all", True), strict=True):
        assert got is not None
        assert gold is not None
        assert got.dtype == gold.dtype
        assert (got - gold).abs().max() <= 1.5 * torch.finfo(torch.bfloat16).eps * gold.abs().max()


@pytest.mark.parametrize("keep", LESS)
@pytest.mark.parametrize(
    "frozen", ["x", "norm1", "attn.project_out", "attn.qkv", "norm2", "ffn", "attn.temperature"]
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(keep: str, frozen: str) -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=frozen != "x")
    for name, value in one.named_parameters():
        value.requires_grad_(not name.startswith(frozen))
    same(gradients(one, x, keep), gradients(one, x, "all"))


def test_a_block_whose_parameters_are_all_frozen() -> None:
    one, x = block().requires_grad_(False), torch.randn(SHAPE, requires_grad=True)
    for keep in LESS:
        same(gradients(one, x, keep), gradients(one, x, "all"))


@pytest.mark.parametrize(
    ("keep", "backend", "maps"),
    [
        ("all", "native", 14.9),
        ("all", "reference", 19.5),
        ("products", "native", 10.5),
        ("products", "reference", 10.5),
        ("input", "native", 1.0),
    ],
)
def test_how_much_is_kept(keep: str, backend: str, maps: float) -> None:
    """In maps of the input's size, each storage once, beside the parameters: x, x + attention, 3 for q, k and v, and
    2 * int(2.66 C) / C for the feed-forward network's hidden channels. "all" adds 3 for the convolved q, k and v and 1
    for what the attention gives; what the norms and the gate give (2 and 2.66) a kernel gives along."""
    if backend == "native" and not core.available():
        pytest.skip(reason=core.MISSING_BECAUSE)
    with cpl_kernels.use_backend(backend):
        kept = maps_kept(block(), keep)
    assert maps - 1 <= kept <= maps + 0.3


def maps_kept(one: TransformerBlock, keep: str) -> float:
    x = torch.randn(1, 16, 32, 32, requires_grad=True)
    set_keep(one, keep)
    weights = {value.untyped_storage().data_ptr() for value in one.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = one(x)  # alive, so that no storage's place is given to another
    assert y.shape == x.shape
    return sum(kept.values()) / (4 * x.numel())


def test_a_network_with_negatives() -> None:
    torch.manual_seed(0)
    network = cpl.create_model("cplir-tiny")
    x = torch.rand(1, 3, 16, 24)

    def step(keep: str) -> list[Tensor | None]:
        set_keep(network, keep)
        network.zero_grad()
        restored, negatives = network.forward_with_negatives(x, 2, seed=0)
        (restored.abs().mean() + (restored - negatives).abs().mean()).backward()
        return [restored.detach(), negatives, *(p.grad for p in network.parameters())]

    assert set_keep(network, "all") == 12
    expected = step("all")
    for keep in LESS:
        same(step(keep), expected)


@pytest.mark.parametrize("keep", ["all", *LESS])
def test_a_hook_sees_its_part_whatever_is_kept(keep: str) -> None:
    """Once, and with "input" once more in the backward pass; a hook's change counts."""
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    calls = []
    set_keep(one, keep)
    before = one(x)
    one.attn.register_forward_hook(lambda part, given, made: calls.append(1) or 2 * made)
    with torch.no_grad():
        one(x)
    assert len(calls) == 1
    y = one(x)
    assert not torch.allclose(y, before)
    y.sum().backward()
    assert len(calls) == (3 if keep == "input" else 2)


@pytest.mark.parametrize("keep", LESS)
def test_it_compiles_whole(keep: str) -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    expected = gradients(one, x, "all")
    set_keep(one, keep)
    one.compile(fullgraph=True, backend="aot_eager")
    for got, gold in zip(gradients(one, x, keep), expected, strict=True):
        torch.testing.assert_close(got, gold, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", LESS)
def test_it_has_no_second_derivative_and_says_so(keep: str) -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    set_keep(one, keep)
    (dx,) = torch.autograd.grad(one(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()


def test_a_parameter_changed_before_the_backward_is_an_error() -> None:
    one, x = block(), torch.randn(SHAPE, requires_grad=True)
    set_keep(one, "input")
    y = one(x)
    with torch.no_grad():
        one.ffn.dwconv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_each_block_has_a_choice_of_its_own_and_copies_have_it_too() -> None:
    network = nn.Sequential(block(), block())
    set_keep(network[1], "products")
    copied = copy.deepcopy(network)
    assert [one.keep for one in copied] == ["all", "products"]
    assert "keep" not in network.state_dict()


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="keep must be one of all, products, input, got 'less'"):
        set_keep(block(), "less")
    with pytest.raises(ValueError, match="this LayerNorm2d holds no"):
        set_keep(LayerNorm2d(4), "all")

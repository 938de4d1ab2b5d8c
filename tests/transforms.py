"""What torch.func, torch.jit.trace and torch.export must give of a network: what it gives itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# Batch, height, width: of an example of one image other batches, sizes that 8 does not divide, a single pixel.
MADE_AT = (2, 13, 21)
RUN_AT = ((1, 16, 16), (4, 13, 21), (3, 24, 9), (2, 8, 8), (1, 5, 3), (1, 1, 1))


def image(channels: int, shape: Sequence[int], seed: int = 0) -> Tensor:
    batch, height, width = shape
    numbers = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, height, width, generator=numbers)


@torch.no_grad()
def assert_same(made: Callable[[Tensor], Tensor], network: nn.Module, channels: int) -> None:
    for shape in RUN_AT:
        x = image(channels, shape)
        # torch's own convolutions may go another way in a graph: a few roundings.
        torch.testing.assert_close(
            made(x), network(x), rtol=1e-5, atol=1e-5, msg=lambda m, s=shape: f"{s}: {m}"
        )


def traced(network: nn.Module, channels: int, shape: Sequence[int] = (1, 16, 16)) -> torch.jit.ScriptModule:
    """Made of one image; torch warns where a size becomes a constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        return torch.jit.trace(network, image(channels, shape))


def exported(network: nn.Module, channels: int, strict: bool = False) -> torch.export.ExportedProgram:
    """With batch, height and width open from 1 on: torch raises where a size becomes a constant or gets a bound."""
    dims = {at: torch.export.Dim(name, min=1) for at, name in ((0, "batch"), (2, "height"), (3, "width"))}
    return torch.export.export(network, (image(channels, MADE_AT),), dynamic_shapes=(dims,), strict=strict)


def assert_gradients_of_each_image(network: nn.Module, channels: int) -> None:
    """vmap over grad of functional_call: for each image the gradients of every parameter, as a loop has them."""
    network = network.double()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    x = image(channels, (3, 5, 9)).double()

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(network, weights, (one[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, one in enumerate(x):
        leaves = list(network.parameters())
        alone = torch.autograd.grad(network(one[None]).square().sum(), leaves)
        for name, gradient in zip(parameters, alone, strict=True):
            scale = float(gradient.abs().max())
            torch.testing.assert_close(each[name][i], gradient, rtol=1e-9, atol=1e-11 * max(1.0, scale))

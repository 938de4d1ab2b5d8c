"""Whether a module computes what a layout of ours does."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cpl.interop.structure import Layout, Options

_SIZE = (2, 6, 9)  # B, H, W of what both computations are compared on: no two alike
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def difference(module: nn.Module, layout: Layout, options: Options) -> str | None:
    """Why our computation is not the module's own, or None: both on small random images."""
    first = next(module.parameters())
    if first.device.type == "meta":
        return "its parameters are on the meta device, so nothing can be compared; load them first"
    tolerance = _TOLERANCE.get(first.dtype)
    if tolerance is None:
        return f"its parameters are {first.dtype}"
    for name, part in module.named_modules():
        chance = getattr(part, "p", getattr(part, "drop_prob", 0))  # torch's dropouts, timm's DropPath
        if "Drop" in type(part).__name__ and chance and name not in layout.dropouts:
            return f"{name} drops values in training, which ours does not"
    stranger, images = _stranger(module, layout.channels(module), first)
    devices = [first.device] if first.device.type == "cuda" else []
    for training in (False, True):
        stranger.train(training)
        # Both from the same state, so that they drop the same; seeding would reach generators of other devices too.
        with torch.enable_grad(), torch.random.fork_rng(devices):
            theirs = stranger(*images)
        with torch.enable_grad(), torch.random.fork_rng(devices):
            ours = layout.forward(stranger, *images, **options)
        if ours is None:
            return "a part of it has hooks, or a forward of its own"
        if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
            return "it returns something else"
        scale = max(1.0, float(theirs.detach().abs().max()))
        worst = float((theirs - ours).detach().abs().max())
        if not worst <= tolerance * scale:
            mode = "in training, " if training else ""
            return f"it computes something else ({mode}on a random image {worst:.2g} away, of {scale:.2g})"
    return None


def _stranger(module: nn.Module, channels: tuple[int, ...], like: Tensor) -> tuple[nn.Module, list[Tensor]]:
    """A copy without hooks, and images for it.

    Its parameters are moved off where a fresh model has them: a residual scaled by 0, or a norm that scales by 1, would
    hide what is done to it.
    """
    numbers = torch.Generator().manual_seed(0)
    stranger = copy.deepcopy(module)
    for part in stranger.modules():
        for hooks in (
            part._forward_hooks,
            part._forward_pre_hooks,
            part._backward_hooks,
            part._backward_pre_hooks,
        ):
            hooks.clear()
    batch, height, width = _SIZE
    with torch.no_grad():
        for p in stranger.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=numbers).to(p))
    return stranger, [
        torch.randn(batch, count, height, width, generator=numbers).to(like) for count in channels
    ]

"""``cpl.patch``: our kernels inside somebody else's model, in place, with the same parameters and the same results."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cpl.interop.layouts import LAYOUTS, Layout

_MARK = "_cpl_patched"
_SIZE = (2, 6, 9)  # B, H, W of what both computations are compared on: no two alike
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class PatchReport:
    """What :func:`patch` did.

    Attributes:
        patched: (name of the module, kind of block).
        left: (name, kind, why) of what looked like a block of ours and was left as it is.
    """

    patched: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        counts = Counter(kind for _, kind in self.patched)
        lines = [f"patched: {', '.join(f'{n} x {kind}' for kind, n in counts.items()) or 'nothing'}"]
        reasons: dict[tuple[str, str], list[str]] = {}
        for name, kind, why in self.left:
            reasons.setdefault((kind, why), []).append(name or "the model itself")
        for (kind, why), names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"left: {', '.join(names[:3])}{more} ({kind}): {why}")
        return "\n".join(lines)


class _Forward:
    """What a patched module calls instead of its class's forward; pickles and deep-copies with the module."""

    def __init__(self, module: nn.Module, layout: int) -> None:
        self.module, self.layout = module, layout

    def __call__(self, x: Tensor) -> Tensor:
        return LAYOUTS[self.layout].forward(self.module, x)


def patch(model: nn.Module) -> PatchReport:
    """Let the blocks of ``model`` that cpl_kernels has kernels for run on them.

    Found by structure and attribute names: the norms, attention and feed-forward networks of Restormer and of what
    keeps its names (PromptIR, AdaIR, MoCE-IR), PromptIR's prompt block, NAFNet's norm and gated block; at any depth,
    below DistributedDataParallel, before or after it. A block is taken only where it computes the same as ours on a
    small random image: a copy of it, in eval mode, with its parameters moved by random numbers.

    Modules, parameters, their names, hooks and the state_dict stay what they are: only what ``forward`` computes is
    exchanged, so optimizers, EMA copies, checkpoints and torch.compile go on as before.

    Args:
        model: changed in place. Parameters on "meta" cannot be compared, and are left.

    Returns:
        What was patched, and what was left and why; ``print`` it.

    Raises:
        TypeError: ``model`` is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    patched: list[tuple[str, str]] = []
    left: list[tuple[str, str, str]] = []
    for name, module in list(model.named_modules()):
        if type(module).__module__.startswith("cpl."):
            continue  # it is ours
        for index, layout in enumerate(LAYOUTS):
            why = layout.why_not(module)
            if why == "":
                continue
            if why is None:
                why = "it is patched already" if _MARK in vars(module) else _difference(module, layout)
            if why is None:
                setattr(module, _MARK, vars(module).get("forward"))
                module.forward = _Forward(module, index)
                patched.append((name, layout.kind))
            else:
                left.append((name, layout.kind, why))
    return PatchReport(tuple(patched), tuple(left))


def unpatch(model: nn.Module) -> int:
    """Undo :func:`patch`; returns how many modules compute as their class says again."""
    count = 0
    for module in model.modules():
        if _MARK not in vars(module):
            continue
        before = vars(module).pop(_MARK)
        del module.forward
        if before is not None:
            module.forward = before
        count += 1
    return count


def _difference(module: nn.Module, layout: Layout) -> str | None:
    """Why our computation is not the module's own, or None: both on a small random image."""
    first = next(module.parameters())
    if first.device.type == "meta":
        return "its parameters are on the meta device, so nothing can be compared; load them first"
    tolerance = _TOLERANCE.get(first.dtype)
    if tolerance is None:
        return f"its parameters are {first.dtype}"
    devices = [first.device] if first.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            stranger, x = _stranger(module, layout.channels(module), first)
            theirs, ours = stranger(x), layout.forward(stranger, x)
    except Exception as error:
        return f"it could not be tried: {type(error).__name__}: {error}"
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
        return "it returns something else"
    scale = max(1.0, float(theirs.abs().max()))
    worst = float((theirs - ours).abs().max())
    if not worst <= tolerance * scale:
        return f"it computes something else (on a random image {worst:.2g} away, of {scale:.2g})"
    return None


def _stranger(module: nn.Module, channels: int, like: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy without hooks, in eval mode, and an image for it.

    Its parameters are moved off where a fresh model has them: a residual scaled by 0, or a norm that scales by 1, would
    hide what is done to it.
    """
    numbers = torch.Generator().manual_seed(0)
    stranger = copy.deepcopy(module).eval()
    for part in stranger.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            hooks.clear()
    for p in stranger.parameters():
        p.add_(0.1 * torch.randn(p.shape, generator=numbers).to(p))
    batch, height, width = _SIZE
    return stranger, torch.randn(batch, channels, height, width, generator=numbers).to(like)

"""The parity rule of the kernels, and the inputs that it is tried on.

Gold is the plain PyTorch definition in fp64. A kernel passes when, at every element,

    |kernel - gold| <= |torch in the same dtype - gold| + tolerance

with ``tolerance = half an ulp of the result's dtype + TERM_ULPS * eps(arithmetic) * terms``:
- half an ulp, because where torch happened to round onto gold, a correct kernel may still round the
  other way (16-bit results only: fp32 and fp64 results are not rounded after the arithmetic);
- ``terms`` is the sum of the magnitudes that were added and subtracted to form the element. Summing
  in another order moves a result by a few eps of that, however small the result itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TERM_ULPS = 8  # sums of up to some thousand terms, in trees: observed up to 3
# Triton's interpreter cuts bf16 off where the hardware rounds: up to a whole ulp instead of half.
INTERPRETER_BF16_ULPS = 1.0


def assert_no_worse(
    name: str, out: Tensor, torch_same: Tensor, gold: Tensor, terms: Tensor, *, result_ulps: float = 0.5
) -> None:
    """Assert the rule above; the message says where it is broken worst and by how much."""
    assert out.dtype == torch_same.dtype, f"{name}: {out.dtype}, expected {torch_same.dtype}"
    assert out.shape == gold.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(gold.shape)}"
    assert torch.isfinite(out).all(), f"{name}: not finite where gold is"
    narrow = out.dtype in (torch.float16, torch.bfloat16)
    arithmetic = torch.finfo(torch.float32 if narrow else out.dtype).eps
    error, allowed = (out.double() - gold).abs(), (torch_same.double() - gold).abs()
    allowed = allowed + TERM_ULPS * arithmetic * terms.double()
    if narrow:
        allowed = allowed + 2 * result_ulps * torch.finfo(out.dtype).eps * gold.abs()
        allowed = allowed + torch.finfo(out.dtype).smallest_normal * torch.finfo(out.dtype).eps  # subnormals
    excess = error - allowed
    if excess.numel() and bool((excess > 0).any()):
        worst = int(excess.argmax())
        raise AssertionError(
            f"{name}: {int((excess > 0).sum())} of {excess.numel()} elements off; worst at flat index {worst}: "
            f"got {out.flatten()[worst].item():.9g}, gold {gold.flatten()[worst].item():.9g}, "
            f"error {error.flatten()[worst].item():.3g}, allowed {allowed.flatten()[worst].item():.3g}"
        )


def strided(name: str, x: Tensor) -> Tensor:
    """``x`` [B, C, H, W] with the same values (or, for "expanded", its first image and pixel's) laid out otherwise."""
    if name == "contiguous":
        return x.contiguous()
    if name == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if name == "transposed":  # width outermost: no stride walks the pixels, so it must be copied
        return x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    if name == "sliced":  # every other channel of a larger tensor whose other values are poison
        wide = x.new_full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), float("nan"))
        wide[:, ::2] = x
        return wide[:, ::2]
    if name == "cropped":  # a window of a wider image
        wide = x.new_full((*x.shape[:2], x.shape[2] + 2, x.shape[3] + 3), float("nan"))
        wide[:, :, 1:-1, 2:-1] = x
        return wide[:, :, 1:-1, 2:-1]
    if name == "expanded_batch":
        return x[:1].expand_as(x)
    if name == "expanded_pixels":
        return x[:, :, :1, :1].expand_as(x)
    raise ValueError(name)


# What inputs and incoming gradients are laid out as, one against the other.
STRIDES = (
    "contiguous",
    "channels_last",
    "transposed",
    "sliced",
    "cropped",
    "expanded_batch",
    "expanded_pixels",
)


def beyond_int32(shape: Sequence[int], dimension: int, dtype: torch.dtype) -> Tensor:
    """A tensor whose stride along ``dimension`` is past 2^31 elements, in memory that is only promised.

    The pages in between are never touched, so they are never allocated.
    """
    strides, step = [0] * len(shape), 1
    for d in reversed(range(len(shape))):
        if d != dimension:
            strides[d] = step
            step *= shape[d]
    strides[dimension] = 2**31 + 64
    length = strides[dimension] * (shape[dimension] - 1) + step
    item = torch.empty((), dtype=dtype).element_size()
    noreserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python knows the name from 3.12 on
    promised = mmap.mmap(-1, length * item, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve)
    return torch.frombuffer(promised, dtype=dtype).as_strided(tuple(shape), tuple(strides))


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor | None], dy: Tensor) -> list[Tensor]:
    """The output and the gradient of every tensor input, detached."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    out = function(*leaves)
    wanted = [t for t in leaves if t is not None]
    return [out.detach(), *torch.autograd.grad(out, wanted, dy)]

"""The parity rule of the kernels, and the memory layouts that it is tried on.

Gold is the naive formula in fp64, on the same (rounded) inputs. A kernel passes when, at every element,

    |kernel - gold| <= |torch in the same dtype - gold| + tolerance

where "torch in the same dtype" is the naive formula in fp32, rounded once for 16-bit dtypes (stricter than a
16-bit chain, and there are no 16-bit CPU kernels to miss), and

    tolerance = half an ulp of the result's dtype + TERM_ULPS * eps(arithmetic) * terms

- half an ulp, because where torch happened to round onto gold, a correct kernel may still round the
  other way (16-bit results only: fp32 and fp64 results are not rounded after the arithmetic);
- ``terms`` is the sum of the magnitudes that were added and subtracted to form the element. Summing
  in another order moves a result by a few eps of that, however small the result itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TERM_ULPS = 8  # sums of up to some thousand terms, in trees: observed up to 3
# Triton's interpreter cuts bf16 off where the hardware rounds: up to a whole ulp instead of half.
INTERPRETER_BF16_ULPS = 1.0

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What inputs and incoming gradients are laid out as, one against the other; the second row says something new
# of images only.
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")
IMAGE_LAYOUTS = ("channels_last", "sliced_channels", "cropped", "expanded_pixels")


def assert_no_worse(
    name: str,
    out: Tensor,
    torch_same: Tensor,
    gold: Tensor,
    terms: Tensor,
    *,
    result_ulps: float = 0.5,
    spread: float = 0.0,
) -> None:
    """Assert the rule above; the message says where it is broken worst and by how much.

    ``spread``: the error allowed at every element, if it is more than that of ``torch_same``.
    """
    assert out.dtype == torch_same.dtype, f"{name}: {out.dtype}, expected {torch_same.dtype}"
    assert out.shape == gold.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(gold.shape)}"
    rounded = gold.to(out.dtype)
    overflows = torch.isinf(rounded) & (
        out == rounded
    )  # as it must: gold is beyond the largest number of the dtype
    assert (torch.isfinite(out) | overflows).all(), f"{name}: not finite where gold is"
    narrow = out.dtype in (torch.float16, torch.bfloat16)
    arithmetic = torch.finfo(torch.float32 if narrow else out.dtype).eps
    error, allowed = (out.double() - gold).abs(), (torch_same.double() - gold).abs().clamp(min=spread)
    allowed = allowed + TERM_ULPS * arithmetic * terms.double()
    if narrow:
        allowed = allowed + 2 * result_ulps * torch.finfo(out.dtype).eps * gold.abs()
        allowed = allowed + torch.finfo(out.dtype).smallest_normal * torch.finfo(out.dtype).eps  # subnormals
    excess = torch.where(overflows, 0.0, error - allowed)
    if excess.numel() and bool((excess > 0).any()):
        worst = int(excess.argmax())
        raise AssertionError(
            f"{name}: {int((excess > 0).sum())} of {excess.numel()} elements off; worst at flat index {worst}: "
            f"got {out.flatten()[worst].item():.9g}, gold {gold.flatten()[worst].item():.9g}, "
            f"error {error.flatten()[worst].item():.3g}, allowed {allowed.flatten()[worst].item():.3g}"
        )


def lay_out(name: str, x: Tensor) -> Tensor:
    """The same values at other strides; for "expanded" those of the first entry (or pixel), repeated.

    A layout of images leaves what has not four dimensions as it is.
    """
    if name == "contiguous" or x.dim() == 0:
        return x.contiguous()
    if name == "transposed":  # memory order of the dimensions reversed
        order = tuple(reversed(range(x.dim())))
        return x.permute(order).contiguous().permute(order)
    if name == "sliced":  # every other element, poison between
        wide = _poison(x, (*x.shape[:-1], 2 * x.shape[-1]))
        wide[..., ::2] = x
        return wide[..., ::2]
    if name == "expanded":
        return x[:1].expand_as(x)
    if x.dim() != 4:
        return x.contiguous()
    if name == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if name == "sliced_channels":  # every other channel of a larger image
        wide = _poison(x, (x.shape[0], 2 * x.shape[1], *x.shape[2:]))
        wide[:, ::2] = x
        return wide[:, ::2]
    if name == "cropped":  # a window of a wider image
        wide = _poison(x, (*x.shape[:2], x.shape[2] + 2, x.shape[3] + 3))
        wide[:, :, 1:-1, 2:-1] = x
        return wide[:, :, 1:-1, 2:-1]
    if name == "expanded_pixels":
        return x[:, :, :1, :1].expand_as(x)
    raise ValueError(name)


def _poison(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Values that must not be read: NaN, and an index that is out of every range."""
    return x.new_full(tuple(shape), torch.nan if x.is_floating_point() else 2**40)


def beyond_int32(x: Tensor, dimension: int, order: Sequence[int] | None = None) -> Tensor:
    """A copy of ``x`` whose stride along ``dimension`` is past 2^31 elements, in memory that is only promised.

    The other dimensions lie densely, the last of ``order`` innermost. On the CPU the pages in between are never
    touched, so they are never allocated; on a GPU they are.
    """
    strides, step = [0] * x.dim(), 1
    for d in reversed(order or range(x.dim())):
        if d != dimension:
            strides[d] = step
            step *= x.shape[d]
    strides[dimension] = 2**31 + 64
    length = strides[dimension] * (x.shape[dimension] - 1) + step
    if x.device.type == "cuda":
        memory = x.new_empty(length)
    else:
        noreserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python knows the name from 3.12 on
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve
        memory = torch.frombuffer(mmap.mmap(-1, length * x.element_size(), flags=flags), dtype=x.dtype)
    return memory.as_strided(x.shape, strides).copy_(x)


def run(
    call: Callable[..., Any],
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    wanted: Sequence[str] = (),
    gradients: Sequence[Tensor] = (),
) -> dict[str, Tensor]:
    """The outputs of a call by name, and "gradient of <input>" for each wanted one.

    ``gradients`` are those that come in, one for each floating output; none: no backward.
    """
    leaves = {n: x.detach().requires_grad_() if n in wanted else x.detach() for n, x in inputs.items()}
    outs = as_tuple(call(**leaves))
    results = {name: out.detach() for name, out in zip(outputs, outs, strict=True)}
    if wanted and gradients:
        through = [out for out in outs if out.is_floating_point()]
        grads = torch.autograd.grad(through, [leaves[n] for n in wanted], list(gradients))
        results |= {f"gradient of {n}": g for n, g in zip(wanted, grads, strict=True)}
    return results


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def incoming(outs: Sequence[Tensor], layout: str = "contiguous", seed: int = 1) -> list[Tensor]:
    """A gradient for each floating output, in its dtype."""
    rng = torch.Generator().manual_seed(seed)
    return [
        lay_out(layout, torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out.dtype))
        for out in outs
        if out.is_floating_point()
    ]


def assert_same_bits(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], context: str = "") -> None:
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert value.dtype == expected[name].dtype, f"{context} {name}"
        assert torch.equal(value, expected[name]), f"{context} {name}: other bits"

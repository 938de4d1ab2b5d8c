"""Restore one image, whatever kind of object it is; the same kind comes out."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cpl.errors import CplError
from cpl.images import LUMA
from cpl.inference.streaming import CLOSE, Plan, about_margin, restore_streaming
from cpl.inference.streaming.limits import free_where_short, parse_memory, showing
from cpl.inference.tiled import check_tiles, restore_tiled
from cpl.models.restorer import Restorer

Image = TypeVar("Image")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_RANGE_SLACK = 1e-3  # rounding of whatever made the image; a picture in 0..255 is far beyond it


class RestoreError(CplError):
    """An image that this model cannot restore on this device; the message says the size and the remedy."""


@dataclass(frozen=True)
class _How:
    device: str | torch.device | None
    dtype: str | torch.dtype
    memory: int | None
    tile: int | None
    overlap: int | None
    progress: Callable[[float], None]
    on_plan: Callable[[Plan], None]
    on_margin: Callable[[float], None]


def restore(
    model: nn.Module,
    image: Image,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "fp32",
    *,
    memory: str | int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    progress: bool | Callable[[float], None] = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_margin: Callable[[float], None] | None = None,
) -> Image:
    """Run the model on a whole image and return the result as the same kind of object.

    Args:
        model: maps [B, 3, H, W] in [0, 1] to the same shape. Its training mode is put back afterwards.
        image: one of
            a PIL image (1, L, LA, P, RGB, RGBA, I;16: alpha is returned untouched, palette as RGB(A),
            1-bit as L, and a colour key, `info["transparency"]`, as alpha; pixels are taken as they
            lie, see PIL.ImageOps.exif_transpose for photos);
            a NumPy array [H, W, 3] of uint8, uint16, or of a float type with values in [0, 1];
            a floating-point tensor [3, H, W] or [B, 3, H, W] with values in [0, 1], on any device.
        device: where to run, e.g. "cuda"; the model is moved there and stays. None: where it is.
        dtype: "fp32", or "bf16" to run under autocast (half the memory, small differences).
        memory: a limit like "2GB" on the memory that restoring takes beside the model and the image as given: the image
            is worked through window by window, with the same result to float32 rounding (exact: not tiles), and what
            does not fit lies in scratch files in the folder for temporary ones (TMPDIR). Small
            images take longer so. For the networks of cpl.create_model, in float32. None: at once, unless the free
            memory does not suffice for that; then as with half of it for a limit.
        tile, overlap: sides of overlapping tiles and what neighbours share, in pixels, such as 512 and 64: multiples of
            8, overlap at most half of tile (None: an eighth). Any model and dtype, in little memory, but another
            picture than the whole image's, see docs/restoring.md. An image of one tile or less is restored at once.
        progress: True shows a bar while windows or tiles are worked through; or a function that is given the share.
        on_plan: is given what that will take, a `cpl.inference.streaming.Plan` that str() puts in a line.
        on_margin: is given the smallest margin of a router's choice after windows were worked through. None: a warning,
            where it is so small (below 1e-5) that the network might choose otherwise at once.

    Returns:
        The restored image, clipped to [0, 1], of the same type, shape and dtype (and device) as given.
        A PIL image keeps its ``info``, with EXIF and ICC profile; but not every format's save() writes
        those by itself: for JPEG, ``out.save(path, exif=out.info.get("exif", b""),
        icc_profile=out.info.get("icc_profile"))``. (`cpl restore` and `cpl.images` do.)

    Raises:
        TypeError: no such kind of image; ValueError: its shape, values or ``dtype`` are wrong.
        TypeError, ValueError: ``tile``, ``overlap`` or ``memory`` that cannot be, or tile and memory together; before
            any work.
        RestoreError: out of memory, or the model gave NaN or infinite values.
        CplError: ``memory`` (or, without it, what is free) is too small for this image, or the disk for its scratch
            files; before any work, or, where others fill the disk meanwhile, in the middle.
    """
    limit = None if memory is None else parse_memory(memory)
    check_tiles(tile, overlap, limited=limit is not None)
    plan_to, margin_to = on_plan or (lambda plan: None), on_margin or _warn_of_margin
    with showing(progress) as report:
        return _restore(model, image, _How(device, dtype, limit, tile, overlap, report, plan_to, margin_to))


def _warn_of_margin(margin: float) -> None:
    if margin < CLOSE:
        warnings.warn(about_margin(margin), stacklevel=2)


def _restore(model: nn.Module, image: Image, how: _How) -> Image:
    pil = sys.modules.get("PIL.Image")  # whoever holds a PIL image has imported it
    if pil is not None and isinstance(image, pil.Image):
        return _restore_pil(model, image, how)
    if isinstance(image, np.ndarray):
        return _restore_array(model, image, how)  # type: ignore[return-value]
    if isinstance(image, Tensor):
        return _restore_tensor(model, image, how)  # type: ignore[return-value]
    raise TypeError(f"want a PIL image, a NumPy array or a tensor, got {type(image).__name__}")


def _restore_tensor(model: nn.Module, image: Tensor, how: _How) -> Tensor:
    if not image.is_floating_point():
        raise TypeError(f"want a floating-point tensor in [0, 1], got {image.dtype}: use image.float() / 255")
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
        raise ValueError(f"want a tensor [3, H, W] or [B, 3, H, W], got {tuple(image.shape)}")
    if not bool(torch.isfinite(image).all()):
        raise ValueError("the image holds NaN or infinite values")
    low, high = float(image.min()), float(image.max())
    if low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK:
        raise ValueError(
            f"image values reach from {low:.4g} to {high:.4g}, want [0, 1]: divide by the maximum, or clip"
        )
    batch = image.detach().reshape(-1, *image.shape[-3:])
    restored = _run(model, batch.clamp(0, 1), how)
    return restored.to(device=image.device, dtype=image.dtype).reshape(image.shape)


def _restore_array(model: nn.Module, image: np.ndarray, how: _How) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"want an array [H, W, 3], got {image.shape}")
    if image.dtype in (np.uint8, np.uint16):
        scale = float(np.iinfo(image.dtype).max)
    elif np.issubdtype(image.dtype, np.floating):
        scale = 1.0
    else:
        raise TypeError(f"want uint8, uint16 or floating-point pixels, got {image.dtype}")
    planes = np.moveaxis(image, -1, 0).astype(np.float32) / np.float32(scale)
    restored = _restore_tensor(model, torch.from_numpy(np.ascontiguousarray(planes)), how)
    result = np.ascontiguousarray(np.moveaxis(restored.numpy(), 0, -1))
    if scale != 1.0:
        result = np.rint(result * np.float32(scale))
    return result.astype(image.dtype)


def _restore_pil(model: nn.Module, image: Any, how: _How) -> Any:
    from PIL import Image as pil

    # A colour key names a colour that the restored picture no longer has: it becomes an alpha channel.
    keyed = "transparency" in image.info
    if keyed and image.mode == "I;16":
        raise TypeError(
            "PIL mode 'I;16' with a transparent grey is not supported: del image.info['transparency'] first"
        )
    if image.mode in ("1", "L"):
        image = image.convert("LA" if keyed else "L")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or keyed else "RGB")
    elif image.mode == "RGB" and keyed:
        image = image.convert("RGBA")
    if image.mode not in ("L", "LA", "RGB", "RGBA", "I;16"):
        raise TypeError(f"PIL mode {image.mode!r} is not supported: use image.convert('RGB')")
    pixels = np.asarray(image)  # [H, W] or [H, W, 2 to 4]
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    colours = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    rgb = np.broadcast_to(pixels[:, :, :colours], (*pixels.shape[:2], 3))
    if colours == 1:  # in float, so that the three channels are rounded once, as one
        top = np.iinfo(pixels.dtype).max
        grey = _restore_array(model, rgb.astype(np.float32) / np.float32(top), how) @ LUMA
        restored = np.rint(grey[:, :, None] * top).astype(pixels.dtype)
    else:
        restored = _restore_array(model, rgb, how)
    result = np.concatenate([restored, pixels[:, :, colours:]], axis=2)
    made = pil.fromarray(np.ascontiguousarray(result[:, :, 0] if result.shape[2] == 1 else result))
    # ICC profile and EXIF among it. Some of Pillow's writers take them from here (PNG's the profile),
    # others, as JPEG's, only as arguments of save().
    made.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return made


def _run(model: nn.Module, batch: Tensor, how: _How) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> float32 of the same shape, on the device where it ran."""
    number, device = _dtype(how.dtype), how.device
    first = next(model.parameters(), None)
    where = (
        torch.device(device) if device is not None else first.device if first is not None else batch.device
    )
    if device is not None:
        model.to(where)
    own = first.dtype if first is not None else torch.float32
    height, width = batch.shape[-2:]
    autocast = torch.autocast(where.type, dtype=torch.bfloat16, enabled=number is torch.bfloat16)
    limit, free = how.memory, None
    if limit is not None:
        _check_streams(model, number, own)
    elif how.tile is None and isinstance(model, Restorer) and number is own is torch.float32:
        free = free_where_short(model, batch.shape, where)
        limit = None if free is None else free // 2  # the rest is left to others
    with _evaluating(model), torch.inference_mode(), autocast, _memory_errors(height, width, where, how.tile):
        if how.tile is not None:
            restored = _in_tiles(model, batch, how.tile, how, where)
        elif limit is not None:
            restored = _by_windows(model, batch, limit, free, how, where)
        else:
            restored = model(batch.to(device=where, dtype=own))
    if restored.shape != batch.shape:
        raise ValueError(f"the model gave {tuple(restored.shape)} for an image batch {tuple(batch.shape)}")
    # A clone made outside of inference mode is an ordinary tensor, usable in autograd.
    restored = restored.clone().float()
    if not bool(torch.isfinite(restored).all()):
        raise RestoreError(
            f"the model gave NaN or infinite values on a {width}x{height} image: its weights are damaged"
            + (", or bf16 is too coarse for them: use fp32" if number is torch.bfloat16 else "")
        )
    return restored.clamp_(0, 1)


def _check_streams(model: nn.Module, number: torch.dtype, own: torch.dtype) -> None:
    if not isinstance(model, Restorer):
        raise TypeError(
            f"memory= works for the networks of cpl.create_model, and this is a {type(model).__name__}: leave it out"
        )
    if number is not torch.float32:
        raise ValueError("memory= restores in float32: leave dtype out, or memory")
    if own is not torch.float32:
        raise ValueError(f"memory= restores in float32, and the model's weights are {own}: use model.float()")


def _by_windows(
    model: nn.Module, batch: Tensor, limit: int, free: int | None, how: _How, where: torch.device
) -> Tensor:
    assert isinstance(model, Restorer)

    def one(image: Tensor, progress: Callable[[float], None]) -> Tensor:
        restored, margin = restore_streaming(
            model, image, limit, where, progress=progress, on_plan=how.on_plan, free=free
        )
        how.on_margin(margin)
        return restored

    return _one_by_one(one, batch, how.progress)


def _in_tiles(model: nn.Module, batch: Tensor, tile: int, how: _How, where: torch.device) -> Tensor:
    def one(image: Tensor, progress: Callable[[float], None]) -> Tensor:
        return restore_tiled(model, image, tile, how.overlap, where, progress=progress)

    return _one_by_one(one, batch, how.progress)


def _one_by_one(
    restore_one: Callable[[Tensor, Callable[[float], None]], Tensor],
    batch: Tensor,
    progress: Callable[[float], None],
) -> Tensor:
    done: list[Tensor] = []
    for image in batch:
        done.append(restore_one(image, lambda share: progress((len(done) + share) / len(batch))))
    return torch.stack(done)


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    number = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if number is None or number not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return number


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _memory_errors(height: int, width: int, device: torch.device, tile: int | None) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text
        if not short:
            raise
        other = "tiles (tile=, --tile)" if tile is None else f"tiles smaller than {tile} pixels"
        other = f"{other}, or --dtype bf16" if device.type != "cpu" else other
        raise RestoreError(
            f"not enough memory on {device} for a {width}x{height} image "
            f"({width * height / 1e6:.1f} megapixels): try {other}"
        ) from error

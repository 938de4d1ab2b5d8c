"""A checkpoint made ready for use: loaded, checked and on its device."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from cpl.errors import CplError

HOW_TO_GET_ONE = (
    "'make demo' trains a small one in minutes, 'cpl train' trains your own, "
    "and a released CPLIR, PromptIR or Restormer checkpoint loads as it is"
)


def load_model(
    checkpoint: str | os.PathLike[str],
    device: str | torch.device = "auto",
    architecture: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a checkpoint for inference. (NaN weights are refused by name in `cpl.load_checkpoint`.)

    Args:
        checkpoint: any file that `cpl.load_checkpoint` reads.
        device: "auto" (CUDA where there is one, else CPU), "cpu", "cuda" or "cuda:1".
        architecture: of a file that fits two, such as "cplir" or "promptir"; see `cpl.load_checkpoint`.

    Raises:
        CplError: no such file, not a checkpoint, NaN or infinite weights, no such device, or an architecture that
            does not exist or that the file contradicts.
    """
    from cpl.models import load_checkpoint

    where = pick_device(device)  # before the load: a wrong device costs no time
    try:
        model, info = load_checkpoint(checkpoint, architecture=architecture)
    except ValueError as error:  # what was said of the file cannot be
        raise CplError(f"architecture: {error}") from None
    return model.to(where).eval(), info


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto", "cpu", "cuda", "cuda:1", ... as a torch device that exists here.

    Raises:
        CplError: another kind of device (no kernel here runs on it), or one that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError):
        raise CplError(f"no such device: {device!r}; use auto, cpu, cuda or cuda:1") from None
    if where.type not in ("cpu", "cuda"):
        raise CplError(f"device {str(device)!r} is not supported; use auto, cpu, cuda or cuda:1")
    if where.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (where.index or 0) >= count:
            raise CplError(f"device {str(device)!r} is not here ({count} CUDA devices); use --device cpu")
    return where

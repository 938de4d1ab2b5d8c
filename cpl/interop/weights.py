"""Reads weights out of files that other projects wrote, without running code from them.

A file is told by its first bytes, not by its name: a zip archive or a pickle is torch.save's, a
length followed by "{" is safetensors'.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cpl.errors import CplError
from cpl.extras import require

# Where a file keeps its weights, best first: (file kind, key, prefix of the names).
_PLACES = (
    ("basicsr", "params_ema", ""),
    ("basicsr", "params", ""),
    ("lightning", "state_dict", "net."),
)
_WRAPPERS = ("_orig_mod.", "module.")  # torch.compile and DataParallel put them before every name


@dataclass(frozen=True)
class ForeignWeights:
    """What a file holds.

    Attributes:
        state: names, as our models have them, to tensors.
        kind: "basicsr", "lightning", "plain" (a bare state dict) or "safetensors".
        key: where in the file the weights stood, e.g. "params_ema"; "" for the top.
        metadata: safetensors' strings.
    """

    state: dict[str, Tensor]
    kind: str
    key: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


def read_weights(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> ForeignWeights:
    """The weights in ``path``; of several sets the best (an EMA before the raw ones).

    Raises:
        CplError: no such file, not a file of weights, a damaged one, or one that could only be
            read by running code from it. The message is one line and names the remedy.
    """
    file = Path(path)
    if file.is_dir():
        raise CplError(f"{file} is a folder; name the checkpoint file in it")
    try:
        with open(file, "rb") as stream:
            head = stream.read(9)
    except FileNotFoundError:
        raise CplError(f"there is no checkpoint {file}; check the path") from None
    except OSError as error:
        raise CplError(f"cannot read {file}: {error.strerror}") from None
    if head[8:] == b"{":
        return _read_safetensors(file, map_location)
    if head.startswith((b"PK", b"\x80")):
        return _unwrap(file, _torch_load(file, map_location))
    what = "it is empty" if not head else "it is neither safetensors nor a file of torch.save"
    raise CplError(f"{file} is not a checkpoint: {what}; give a .safetensors, .pth, .pt or .ckpt file")


def _read_safetensors(file: Path, map_location: str | torch.device) -> ForeignWeights:
    safetensors = require("train", "safetensors")
    device = torch.device(map_location)
    try:
        with safetensors.safe_open(str(file), framework="pt", device=str(device)) as opened:
            metadata = dict(opened.metadata() or {})
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise CplError(
            f"{file} is damaged or cut short ({_line(error)}); copy or download it again"
        ) from None
    return ForeignWeights(_strip(state, ""), "safetensors", "", metadata)


def _torch_load(file: Path, map_location: str | torch.device) -> Any:
    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise CplError(f"{file} is damaged ({_line(error)}); copy or download it again") from None
        raise CplError(
            f"{file} holds Python objects besides weights, and reading those would run code from the file, which cpl "
            "never does; if you trust where it comes from, convert it: docs/model.md, 'Converting a file that needs "
            "unpickling'"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CplError(
            f"{file} is damaged or cut short ({_line(error)}); copy or download it again"
        ) from None


def _unwrap(file: Path, content: Any) -> ForeignWeights:
    if not isinstance(content, Mapping):
        raise CplError(
            f"{file} holds a {type(content).__name__}, not a dict of weights; give a checkpoint of a model"
        )
    for kind, key, prefix in _PLACES:
        if isinstance(content.get(key), Mapping):
            state = _tensors(file, content[key], key)
            if not any(name.startswith(prefix) for name in state):
                prefix, kind = "", "plain"
            return ForeignWeights(_strip(state, prefix), kind, key)
    return ForeignWeights(_strip(_tensors(file, content, ""), ""), "plain")


def _tensors(file: Path, state: Mapping[Any, Any], key: str) -> dict[str, Tensor]:
    other = [
        name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if other or not state:
        where = f"under {key!r}" if key else "at its top"
        found = f"{other[0]!r}, which is no tensor" if other else "nothing"
        raise CplError(
            f"{file} has no weights where cpl looks for them: {where} it holds {found}; the weights must stand under "
            f"'params_ema', 'params' or 'state_dict', or be the whole file"
        )
    return {name: value.detach() for name, value in state.items()}


def _strip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Names under ``prefix``, without it and without what wrappers put before every name.

    A Lightning file also holds what is no part of the network (its loss's weights, metrics): names
    without the prefix are left out.
    """
    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    for wrapper in (*_WRAPPERS, *_WRAPPERS):  # they nest either way round
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def _line(error: BaseException) -> str:
    """The first sentence of an error, short and in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."

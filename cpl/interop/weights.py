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

# Where a file keeps its weights, best first: an average before the weights that it is the average of.
_KEYS = (
    "params_ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "params",
    "state_dict",
    "model_state_dict",
    "model",
    "network",
    "net",
    "net_g",
    "netG",
    "generator",
    "weights",
)
_DEPTH = 3  # how deep mappings are looked into
_WRAPPERS = ("_orig_mod.", "module.")  # torch.compile and DataParallel put them before every name
# The attributes under which training code keeps its network, where every name begins with one.
_ATTRIBUTES = ("net.", "model.", "network.", "generator.", "net_g.", "netG.", "restoration_net.")
# A name of every network of this package (and of most Transformers): what precedes it, precedes them all.
_MARK = "patch_embed.proj.weight"
_LIGHTNING = "pytorch-lightning_version"


@dataclass(frozen=True)
class ForeignWeights:
    """What a file holds.

    Attributes:
        state: names, as our models have them, to tensors.
        kind: "basicsr", "lightning", "plain" (a bare state dict, also under another key) or "safetensors".
        key: where in the file the weights stood, e.g. "params_ema" or "ema.model"; "" for the top.
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
    safetensors = require("safetensors")
    device = torch.device(map_location)
    try:
        with safetensors.safe_open(str(file), framework="pt", device=str(device)) as opened:
            metadata = dict(opened.metadata() or {})
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise CplError(
            f"{file} is damaged or cut short ({_line(error)}); copy or download it again"
        ) from None
    return ForeignWeights(_strip(file, state)[0], "safetensors", "", metadata)


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
    path, found = _locate(file, content) or _empty(content)
    state, prefix = _strip(file, _tensors(file, found, ".".join(path)))
    if path and path[0].startswith("params"):
        kind = "basicsr"
    elif path[-1:] == ("state_dict",) and (_LIGHTNING in content or _of_attribute(prefix)):
        kind = "lightning"
    else:
        kind = "plain"
    return ForeignWeights(state, kind, ".".join(path))


def _empty(content: Mapping[Any, Any]) -> tuple[tuple[str, ...], Mapping[Any, Any]]:
    """Where weights were looked for and are not."""
    return next(
        (((key,), content[key]) for key in _KEYS if isinstance(content.get(key), Mapping)), ((), content)
    )


def _locate(
    file: Path, content: Mapping[Any, Any], path: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], Mapping[Any, Any]] | None:
    """The keys to the best set of weights and the set; None: there are no tensors.

    Known keys come first, then tensors at this level, then a set of weights under any other key, if there is one alone.
    """
    inner = {
        key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Mapping)
    }
    deeper = len(path) < _DEPTH
    for key in _KEYS:
        if deeper and key in inner and (found := _locate(file, inner[key], (*path, key))):
            return found
    if any(isinstance(value, Tensor) for value in content.values()):
        return path, content
    others = [_locate(file, inner[key], (*path, key)) for key in inner if deeper and key not in _KEYS]
    sets = [found for found in others if found and _is_a_set(found[1])]
    if len(sets) > 1:
        names = ", ".join(repr(".".join(keys)) for keys, _ in sets)
        raise CplError(
            f"{file} must hold one set of weights, got {len(sets)}: {names}. Save the restorer's alone with torch.save"
        )
    return sets[0] if sets else None


def _is_a_set(state: Mapping[Any, Any]) -> bool:
    """Whether these are a network's weights, not an optimizer's moments."""
    return any(isinstance(name, str) and name.endswith(".weight") for name in state)


def _tensors(file: Path, state: Mapping[Any, Any], key: str) -> dict[str, Tensor]:
    other = [
        name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if other or not state:
        where = f"under {key!r}" if key else "at its top"
        found = f"{other[0]!r}, which is not a tensor" if other else "nothing"
        raise CplError(
            f"{file} has no weights where cpl looks for them: {where} it holds {found}; the weights must stand under "
            f"a key such as 'params_ema', 'params', 'state_dict' or 'model', or be the whole file"
        )
    return {name: value.detach() for name, value in state.items()}


def _strip(file: Path, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Names without what wrappers and training code put before them, and what that was.

    A training's file also holds what is not part of the network (its loss's weights, metrics): names without the
    prefix are left out.
    """
    prefix = _marked(file, state)
    if prefix is None:
        prefix = _shared(state)
        if not prefix and any(name.startswith("net.") for name in state):
            prefix = "net."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}, prefix


def _marked(file: Path, state: Mapping[str, Tensor]) -> str | None:
    """What precedes the mark; of several networks the average, or the only one that has an output."""
    found = [name[: -len(_MARK)] for name in state if name == _MARK or name.endswith("." + _MARK)]
    if "" in found:
        return ""
    if len(found) > 1:
        found = [prefix for prefix in found if prefix + "output.weight" in state] or found
    averages = [prefix for prefix in found if "ema" in prefix.lower()]
    found = averages or found
    if len(found) > 1:
        names = ", ".join(map(repr, sorted(found)))
        raise CplError(
            f"{file} must hold one network, got {len(found)}, under {names}. Save the restorer's weights alone"
        )
    return found[0] if found else None


def _shared(state: Mapping[str, Tensor]) -> str:
    """The known prefixes that all names begin with; they nest in any order."""
    prefix = ""
    while True:
        more = [p for p in (*_WRAPPERS, *_ATTRIBUTES) if all(n.startswith(prefix + p) for n in state)]
        if not state or not more:
            return prefix
        prefix += more[0]


def _of_attribute(prefix: str) -> bool:
    """Whether the prefix names an attribute of training code, beside wrappers."""
    return any(part + "." not in _WRAPPERS for part in prefix.split(".") if part)


def _line(error: BaseException) -> str:
    """The first sentence of an error, short and in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."

"""What a module is, but for the values of its parameters: two with the same signature compute alike."""

from __future__ import annotations

import enum
import types
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, enum.Enum)
# By identity: a function or class that is the same object is the same code.
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
# Hooks are not called in a comparison, the mode is set by it, and parameters have values of its own there.
_PASSED_OVER = {"training", "_parameters", "_modules", "_buffers", "_is_full_backward_hook"}

Parts = dict[str, Hashable]


def signature(module: nn.Module) -> Parts:
    """Name -> what stands there, hashable, of all that ``module`` and its parts hold.

    Classes, plain attributes and values of buffers count as they are, parameters by shape and dtype. What cannot be
    looked into counts by its identity, so that only the module itself has that signature.
    """
    found: Parts = {}
    for path, part in module.named_modules():
        found[f"{path}|class"] = id(type(part))
        for name, value in vars(part).items():
            if name not in _PASSED_OVER and "hooks" not in name:
                found[_join(path, name)] = _of(value, ())
        for name, buffer in part._buffers.items():
            found[_join(path, name)] = _of(buffer, ())
        found[f"{path}|parts"] = tuple(part._modules)
    first: dict[int, str] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        found[name] = (
            tuple(p.shape),
            p.dtype,
            p.device,
            p.requires_grad,
            id(type(p)),
            first.setdefault(id(p), name),
        )
    return found


def key(module: nn.Module) -> Hashable:
    """:func:`signature` as one value to look up by."""
    return tuple(sorted(signature(module).items()))


def changed(before: Parts, after: Parts) -> str | None:
    """The first name that stands for something else now."""
    names = [*before, *(name for name in after if name not in before)]
    return next((name for name in names if before.get(name, id) != after.get(name, id)), None)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _of(value: Any, above: tuple[int, ...]) -> Hashable:
    if isinstance(value, _PLAIN):
        return id(type(value)), repr(value)  # repr: -0.0 is not 0.0, and nan is nan
    if isinstance(value, _CODE):
        return "code", id(value)
    if isinstance(value, nn.Parameter):
        return "parameter", id(value)
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if id(value) in above or len(above) > 8:
        return "above", above.index(id(value)) if id(value) in above else id(value)
    above = (*above, id(value))
    if type(value) in (tuple, list):
        return type(value).__name__, tuple(_of(v, above) for v in value)
    if type(value) in (set, frozenset):
        return type(value).__name__, frozenset(_of(v, above) for v in value)
    if isinstance(value, dict):
        return type(value).__name__, tuple((_of(k, above), _of(v, above)) for k, v in value.items())
    return "object", id(value)


def _of_tensor(value: Tensor) -> Hashable:
    where = ("tensor", tuple(value.shape), value.dtype, value.device)
    try:
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return *where, bytes(content.numpy())
    except (RuntimeError, TypeError):  # on meta, sparse, quantised
        return *where, id(value)

"""Checkpoints: weights, and all that it takes to build their network again, in one safetensors file.

The file's metadata (strings, as safetensors wants it):

    format = "cpl-checkpoint"    format_version = "1"
    architecture, config (JSON of ModelConfig), version, commit, info (JSON of whatever the caller added)

Reading never runs code from a file. A file written by a newer format is refused by name; version 1 is the
first, so there is no older one to convert.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cpl.errors import CplError
from cpl.extras import require
from cpl.files import atomic_write
from cpl.interop.weights import ForeignWeights, read_weights
from cpl.models.config import ModelConfig, check_architecture
from cpl.models.create import build
from cpl.models.infer import infer, split_unused
from cpl.models.provenance import commit
from cpl.models.restorer import Restorer
from cpl_kernels import __version__

FORMAT = "cpl-checkpoint"
FORMAT_VERSION = 1
# What load_checkpoint's info says of the file itself.
_OF_THE_FILE = ("path", "format", "format_version", "key", "version", "commit", "dtype", "unused", "notes")
RESERVED = frozenset((*_OF_THE_FILE, "architecture", "config", "task_names"))


def save_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    weights: Mapping[str, Tensor] | None = None,
    **info: Any,
) -> None:
    """Write ``model`` to ``path``, whole or not at all.

    Args:
        model: a network of :func:`cpl.create_model`, also wrapped by torch.compile or DataParallel.
        path: by convention .safetensors; its folder must exist.
        weights: instead of the model's own, e.g. their exponential moving average: the same names.
        info: anything JSON can hold; :func:`load_checkpoint` gives it back.

    Raises:
        CplError: weights that are NaN or infinite, or no folder to write to.
        TypeError, ValueError: a model that is none of ours, an info name that is taken, or a value that
            JSON cannot hold.
        OSError: the disk is full, say; an older file of that name is then still there.
    """
    network = _unwrap(model)
    taken = RESERVED & info.keys()
    if taken:
        raise ValueError(f"the info name {min(taken)!r} is the checkpoint's own; choose another")
    state = {
        name: value.detach().to("cpu").contiguous()
        for name, value in (network.state_dict() if weights is None else weights).items()
    }
    _check_fit(network, state, "the weights to save")
    _check_finite(
        state, "the weights to save", "this training has diverged; go back to an earlier checkpoint"
    )
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "architecture": network.architecture,
        "config": json.dumps(network.config.to_dict()),
        "version": __version__,
        "commit": commit(),
        "info": json.dumps(info),
    }
    if not Path(path).parent.is_dir():
        raise CplError(f"cannot write {path}: there is no folder {Path(path).parent}; create it first")
    if Path(path).is_dir():
        raise CplError(f"cannot write {path}: it is a folder; name a file in it")
    content = require("safetensors.torch").save(state, metadata)
    with atomic_write(path) as file:
        file.write(content)


def load_checkpoint(
    path: str | os.PathLike[str],
    map_location: str | torch.device = "cpu",
    *,
    architecture: str | None = None,
    top_k: int | None = None,
) -> tuple[Restorer, dict[str, Any]]:
    """Build the network that a file holds, with its weights, in eval mode.

    Reads our own files; released ones of CPLIR and others made with BasicSR (``params_ema`` before
    ``params``); of PromptIR (Lightning's ``state_dict``, prefix ``net.``); state dicts, bare or under a key such
    as ``model``. The architecture comes from our metadata, else from names and shapes
    (:func:`cpl.models.infer`).
    Half-precision weights are widened to float32.

    Args:
        path: the file.
        map_location: the device to load to.
        architecture, top_k: what a foreign file does not say; see :func:`cpl.models.infer`.

    Returns:
        The network, and a dict: path, format ("cpl-checkpoint", "basicsr", "lightning", "plain" or
        "safetensors"), key, architecture, config (a dict), task_names, version, commit, dtype (of the
        weights in the file), unused (names that were left out since no such network runs them), notes (what
        was assumed), and for our own files whatever was saved with them.

    Raises:
        CplError: the file cannot be read or does not fit; one line that names what and the remedy.
    """
    foreign = read_weights(path, map_location)
    state, unused = split_unused(foreign.state)
    info: dict[str, Any] = {"version": "unknown", "commit": "unknown", "format_version": None, "notes": []}
    if foreign.metadata.get("format") == FORMAT:
        if architecture is not None or top_k is not None:
            raise ValueError(f"{path} says itself what it is; leave architecture and top_k out")
        model, own = _from_metadata(foreign.metadata, path)
        info |= own
    else:
        model, notes = _from_shapes(foreign, path, architecture, top_k)
        info |= {"format": foreign.kind, "notes": notes}
    _check_fit(model, state, str(path))
    _check_finite(state, str(path), "it comes from a training that diverged, or is damaged; use another one")
    dtype = state["patch_embed.proj.weight"].dtype
    info |= {
        "path": str(path),
        "key": foreign.key,
        "architecture": model.architecture,
        "config": model.config.to_dict(),
        "task_names": list(model.config.task_names),
        "dtype": str(dtype).removeprefix("torch."),
        "unused": unused,
    }
    wide = torch.promote_types(dtype, torch.float32)
    model.load_state_dict({name: value.to(wide) for name, value in state.items()}, assign=True)
    return model.eval(), info


def _unwrap(model: nn.Module) -> Restorer:
    inner = model
    while not isinstance(inner, Restorer):
        wrapped = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if not isinstance(wrapped, nn.Module):
            raise TypeError(f"model must be a network of cpl.create_model, got {type(model).__name__}")
        inner = wrapped
    return inner


def _from_metadata(
    metadata: Mapping[str, str], path: str | os.PathLike[str]
) -> tuple[Restorer, dict[str, Any]]:
    """The empty network on the meta device, and what the metadata tells besides."""
    version = metadata.get("format_version", "missing")
    if version != str(FORMAT_VERSION):
        newer = version.isdigit() and int(version) > FORMAT_VERSION
        remedy = "pip install -U cpl-kernels" if newer else "save it again with a released version"
        raise CplError(
            f"{path} has checkpoint format {version} (written by cpl {metadata.get('version', 'unknown')}); "
            f"this cpl {__version__} reads format {FORMAT_VERSION}: {remedy}"
        )
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
        with torch.device("meta"):
            model = build(metadata["architecture"], config)
        info = dict(json.loads(metadata.get("info", "{}")))
    except KeyError as error:
        raise CplError(f"{path} is damaged: its metadata lacks {error}; copy or download it again") from None
    except (TypeError, ValueError) as error:  # JSONDecodeError is a ValueError
        raise CplError(
            f"{path} describes no network that this cpl {__version__} can build: {error}"
        ) from None
    own = {name: metadata.get(name, "unknown") for name in ("version", "commit")}
    return model, {**info, **own, "format": FORMAT, "format_version": int(version)}


def _from_shapes(
    foreign: ForeignWeights, path: str | os.PathLike[str], architecture: str | None, top_k: int | None
) -> tuple[Restorer, list[str]]:
    if architecture is not None:
        check_architecture(architecture)
    # With PromptIR's unused layers still among them: they tell whose weights these are.
    inferred = infer(foreign.state, str(path), kind=foreign.kind, architecture=architecture, top_k=top_k)
    try:
        with torch.device("meta"):
            return build(inferred.architecture, inferred.config), list(inferred.notes)
    except ValueError as error:
        raise CplError(f"{path} is not what it is said to be: {error}") from None


def _check_fit(model: Restorer, state: Mapping[str, Tensor], source: str) -> None:
    own = model.state_dict()
    problems = []
    integer = [f"{name} {value.dtype}" for name, value in state.items() if not value.is_floating_point()]
    for what, names in (
        ("missing", [name for name in own if name not in state]),
        ("unexpected", [name for name in state if name not in own]),
        (
            "of another shape",
            [
                f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
                for name, value in own.items()
                if name in state and state[name].shape != value.shape
            ],
        ),
        ("not floating point", integer),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{len(names)} {what}: {', '.join(names[:3])}{more}")
    if problems:
        raise CplError(
            f"{source} does not fit {model.architecture} (dim {model.config.dim}): {'; '.join(problems)}; "
            "use the network that it was made for (cpl.patch(model) puts cpl's kernels into it), or a file that was "
            "written whole"
        )


def _check_finite(state: Mapping[str, Tensor], source: str, remedy: str) -> None:
    bad = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CplError(f"{source}: NaN or infinity in {', '.join(bad[:3])}{more}; {remedy}")

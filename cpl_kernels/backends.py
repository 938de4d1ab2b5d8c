"""Who can run what, what is the default and why.

Each op's room holds one module per backend: ``cpl_kernels/<op>/<backend>.py`` with ``forward``,
``backward`` and ``why_not(...) -> str | None`` (None: it can serve this call, on a device that the
backend runs on); where the backward can give the forward's result along, ``backward_and_output``.
This module picks one of them for a call (the one asked for, else by the table of dispatch.py) and
can say afterwards what it would pick and why.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from cpl_kernels import core, dispatch
from cpl_kernels._version import __version__

NAMES = ("reference", "native", "triton", "cuda")
RUNS_ON = {"native": "cpu", "triton": "cuda", "cuda": "cuda"}  # type of device; the reference runs on any
OPS = (
    "route_topk",
    "route_negatives",
    "aggregate_prompts",
    "sparse_prompt",
    "feature_distances",
    "info_nce",
    "layer_norm2d",
    "dwconv",
    "gated_dwconv",
    "channel_attention",
    "pointwise_conv",
    "attention_half",
    "feed_forward_half",
)


# Ops without kernels of their own: they call others, whose choices hold.
COMPOSED: Mapping[str, tuple[str, ...]] = {
    "sparse_prompt": ("route_topk", "aggregate_prompts"),
    "attention_half": ("layer_norm2d", "pointwise_conv", "dwconv", "channel_attention"),
    "feed_forward_half": ("layer_norm2d", "pointwise_conv", "gated_dwconv"),
}


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot serve the call; the message says why."""


_override: dict[str, str] = {}  # op -> backend; "*" stands for every op
_of_all: dict[str, str] = {}  # what "*" says, for the ops that have that backend


def requested(op: str, backend: str | None) -> str:
    """The backend asked for, by argument, use_backend or CPL_BACKEND; "" when nobody asked.

    What was asked of all ops at once says nothing to an op that has no such backend.
    """
    if backend is not None:
        return _checked(backend)
    return _override.get(op) or _of_all.get(op, "")


def requested_of_parts(op: str, backend: str | None) -> dict[str, str]:
    """The same for each op that ``op`` is made of (COMPOSED); what was asked of ``op`` itself holds for all of them."""
    own = _checked(backend) if backend is not None else _override.get(op)
    return {part: own or requested(part, None) for part in COMPOSED[op]}


def select(op: str, request: str, *tensors: Tensor, variant: str = "") -> Any:
    """The module that runs this call; its ``why_not`` is asked about ``tensors``.

    ``variant``: which of the op's kernels runs, where the table of defaults tells them apart (dispatch.VARIANTS).

    Raises:
        BackendError: ``request`` names a backend that cannot serve the call.
    """
    if not request:
        return _runnable(op, _pick(op, tensors, variant))
    reason = _why_not(op, request, tensors)
    if reason is not None:
        raise BackendError(
            f"{op}: backend {request!r} cannot serve this call: {reason}. "
            f"Leave backend unset to let cpl_kernels choose; here that is {_pick(op, tensors, variant)!r}"
        )
    return _runnable(op, request)


def gives_output(op: str, request: str, *tensors: Tensor) -> bool:
    """Whether the backward of this call gives the forward's result along, at little cost: backward_and_output."""
    return hasattr(select(op, request, *tensors), "backward_and_output")


@contextlib.contextmanager
def use_backend(backend: str | None = None, **per_op: str) -> Iterator[None]:
    """Run every op that has it (``backend``) or single ops (``layer_norm2d="native"``) on a named backend.

    Holds for the whole process, all threads, until the ``with`` block ends; a ``backend=`` argument
    still wins. A call that the named backend cannot serve raises RuntimeError. An op that has no such
    backend at all runs its default, unless it is named itself. A backward runs on the backend of its
    forward, also after the block.
    """
    wanted = _parse_override(backend, per_op)
    before = dict(_override)
    _override.update(wanted)
    _spread()
    try:
        yield
    finally:
        _override.clear()
        _override.update(before)
        _spread()


def config() -> dict[str, Any]:
    """What ``show_config`` prints, as data: versions, core, threads, and per op the choice and why."""
    runtimes = core.openmp_runtimes()
    return {
        "versions": {"cpl_kernels": __version__, "torch": torch.__version__, "triton": _triton_version()},
        "commit": core.build_info().get("commit", "unknown"),
        "native_core": core.missing() or f"built, {core.core().isa()} chosen for this CPU",
        "cuda_core": core.missing(cuda=True) or f"built for {core.core().CUDA_ARCHS}",
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "openmp": (
            f"{len(runtimes)} runtimes in this process, whose thread pools compete: {', '.join(runtimes)}; "
            "build from source where torch lives, or set OMP_WAIT_POLICY=passive"
            if len(runtimes) > 1
            else f"one runtime, shared with torch: {runtimes[0]}"
            if runtimes
            else "none"
        ),
        "override": dict(_override),
        "ops": {op: {device: _describe(op, device) for device in ("cpu", "cuda")} for op in OPS},
    }


def show_config() -> None:
    """Print what this installation can run, what it picks by default for each op, and why."""
    report = config()
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print(f"{versions}, commit {report['commit']}")
    for key in ("native_core", "cuda_core", "openmp", "threads"):
        print(f"{key.replace('_', ' ')}: {report[key]}")
    print(f"cuda devices: {', '.join(report['cuda_devices']) or 'none'}")
    if report["override"]:
        print(f"override: {', '.join(f'{op}={name}' for op, name in report['override'].items())}")
    width = max(map(len, OPS))
    for op, devices in report["ops"].items():
        for device, line in devices.items():
            print(f"{op:<{width}}  {device:<4}  {line}")


@functools.cache
def backends_of(op: str) -> tuple[str, ...]:
    """The backends that ``op`` has a module for, whether or not they can run here."""
    return tuple(name for name in NAMES if importlib.util.find_spec(f"cpl_kernels.{op}.{name}"))


def _pick(op: str, tensors: tuple[Tensor, ...], variant: str) -> str:
    for name in dispatch.order(op, tensors, variant):
        if _why_not(op, name, tensors) is None:
            return name
    return "reference"


def _why_not(op: str, name: str, tensors: tuple[Tensor, ...]) -> str | None:
    return _cannot(op, name, tensors[0].device.type) or _module(op, name).why_not(*tensors)


@functools.cache
def _cannot(op: str, name: str, there: str) -> str | None:
    """Why no call of ``op`` with tensors on a device of type ``there`` is for this backend here, or None."""
    if name not in backends_of(op):
        return "this op has no such backend"
    return _absent(op, name) or _elsewhere(op, name, there)


def _elsewhere(op: str, name: str, there: str) -> str | None:
    device = RUNS_ON.get(name, there)
    if there == device or (name == "triton" and _interpreted(op)):
        return None
    way_out = "; on CPU set TRITON_INTERPRET=1 before the import" if name == "triton" else ""
    return f"it runs on {device.upper()} tensors and these are on {there}{way_out}"


@functools.cache
def _interpreted(op: str) -> bool:
    """Whether TRITON_INTERPRET=1 was set when the kernels of ``op`` were made."""
    from triton import JITFunction

    kernels = [value for name, value in vars(_module(op, "triton")).items() if name.endswith("_kernel")]
    return not all(isinstance(kernel, JITFunction) for kernel in kernels)


@functools.cache
def _absent(op: str, name: str) -> str | None:
    """Why ``op`` cannot run on this backend here, or None. Fixed for the life of the process."""
    if name == "native":
        return core.missing()
    if name == "cuda" and getattr(_module(op, name), "NEEDS_CORE", True):
        return core.missing(cuda=True)
    if name == "triton" and _triton_version() is None:
        return "triton is not installed: pip install triton (Linux only)"
    return None


def _describe(op: str, device: str) -> str:
    if op in COMPOSED:
        return f"runs {', '.join(COMPOSED[op])}"
    family = dispatch.family(torch.device(device))
    lines: list[str] = []
    tried: set[str] = set()
    for where, order, why in dispatch.describe(op, family):
        tried.update(order)
        chosen = next((name for name in order if not _absent(op, name)), "reference")
        line = f"{chosen}{f' for {where}' if where else ''} ({why})"
        passed_over = [f"{name}: {_absent(op, name)}" for name in order if _absent(op, name)]
        lines.append(line + (f"; passed over {'; '.join(passed_over)}" if passed_over else ""))
    others = [name for name in backends_of(op) if name not in tried]
    return "; ".join(lines) + (f"; by name: {', '.join(others)}" if others else "")


@functools.cache
def _runnable(op: str, name: str) -> Any:
    """The backend as an op gets it."""
    module = _module(op, name)
    return OnTheirDevice(module) if RUNS_ON.get(name) == "cuda" else module


class OnTheirDevice:
    """A backend whose functions run while the device of their tensors is the current one.

    Triton and the CUDA runtime launch on the current device, and on its current stream, wherever the tensors are.
    torch guards its own kernels so; here ``select`` does it for ours, so that no backend can forget it.
    """

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return functools.partial(_on_their_device, value) if isinstance(value, FunctionType) else value


def _on_their_device(function: Callable[..., Any], *args: Any) -> Any:
    for a in args:
        if isinstance(a, Tensor) and a.is_cuda:  # all tensors of a call are on one device
            with torch.cuda.device(a.device):
                return function(*args)
    return function(*args)


@functools.cache
def _module(op: str, name: str) -> ModuleType:
    """``cpl_kernels.<op>.<name>``, imported when first needed (triton takes a while)."""
    return importlib.import_module(f"cpl_kernels.{op}.{name}")


def _triton_version() -> str | None:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def _spread() -> None:
    backend = _override.get("*", "")
    _of_all.clear()
    for op in OPS if backend else ():
        if any(backend in backends_of(part) for part in COMPOSED.get(op, (op,))):
            _of_all[op] = backend


def _checked(backend: str) -> str:
    if backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(map(repr, NAMES))} or None, got {backend!r}")
    return backend


def _parse_override(backend: str | None, per_op: Mapping[str, str]) -> dict[str, str]:
    for op in per_op:
        if op not in OPS:
            raise ValueError(f"{op!r} is not an op of cpl_kernels; the ops are {', '.join(OPS)}")
    wanted = {op: _checked(name) for op, name in per_op.items()}
    if backend is not None:
        wanted["*"] = _checked(backend)
    return wanted


def _read_environment() -> None:
    """CPL_BACKEND="native", or "layer_norm2d=native,route_topk=reference"."""
    for part in filter(None, os.environ.get("CPL_BACKEND", "").replace(" ", "").split(",")):
        op, _, name = part.rpartition("=")
        try:
            _override.update(_parse_override(None, {op: name}) if op else _parse_override(name, {}))
        except ValueError as error:
            raise ValueError(f"CPL_BACKEND={os.environ['CPL_BACKEND']!r}: {error}") from None


_read_environment()
_spread()

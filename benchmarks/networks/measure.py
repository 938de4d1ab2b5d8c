"""One network, in a process of its own: python -m benchmarks.networks.measure NAME --root FOLDER [...]

The last line on stdout is a line of JSON. The network is built from a seed and its constants are moved: a residual
scaled by 0, or a norm that scales by 1, would hide what is behind it. Then three of it make the same step (forward, and
backward from one fixed gradient of the output), in training mode: as published in fp64, as published in fp32, and
patched in fp32. Each fp32 run is measured against the fp64 run:

- output: the largest difference over the largest value;
- gradients: the norm of the difference over the norm, the image's and every parameter's together;
- worst_gradient: the largest difference over the largest value, of the gradient where that is the most. What is below
  SMALL of the network's largest gradient is measured against that: where all cancels only rounding is left.

Networks whose steps are random draw the same numbers in every run. The two fp32 steps are also timed by turns, on a
larger image, and there compared with each other.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import copy
import importlib
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import cpl
from benchmarks.networks import clones, stand_ins
from benchmarks.networks.catalogue import Network, named

THREADS, SEED, MOVED = 2, 0, 0.1
SMALL = 1e-5
WARMUP, LEAST_ROUNDS, MOST_ROUNDS = 1, 3, 15


def load(network: Network, root: Path) -> ModuleType:
    """The network's own module, with stand-ins for what is absent."""
    place = root / network.folder / network.path
    if not place.is_dir():
        raise FileNotFoundError(f"{place} must be a clone of {network.repository}, got no folder. {REMEDY}")
    for package in network.bare:
        stand_ins.bare(package, place.joinpath(*package.split(".")))
    stand_ins.install(network.absent)
    sys.path[:0] = [str(place), str(root / clones.SITE)]
    vars(builtins).update(dict.fromkeys(network.constants))
    return importlib.import_module(network.module)


REMEDY = "Run `python -m benchmarks.networks.clones --root FOLDER`."


def build(network: Network, module: ModuleType) -> nn.Module:
    torch.manual_seed(SEED)
    with contextlib.redirect_stdout(sys.stderr):
        model = network.build(module).train()
    move_constants(model)
    return model


@torch.no_grad()
def move_constants(model: nn.Module) -> None:
    """Every parameter of one value only (zeros, ones, a scale) moves off it."""
    numbers = torch.Generator().manual_seed(SEED)
    for p in model.parameters():
        if p.numel() and bool((p == p.flatten()[0]).all()):
            p.add_(MOVED * torch.randn(p.shape, generator=numbers))


# -- a step


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """The same random numbers in every run, whatever its dtype."""
    own = torch.randn_like
    torch.manual_seed(SEED)
    torch.randn_like = lambda x, **_: torch.randn(x.shape, dtype=torch.float32).to(x)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn_like = own


class SaysFloat32(TorchFunctionMode):
    """A tensor of fp64 that is asked for its dtype says fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        asked = func == torch.Tensor.dtype.__get__  # each access makes a new one, so not "is"
        return torch.float32 if asked and found is torch.float64 else found


@contextlib.contextmanager
def in_float64(dtype_matters: bool) -> Iterator[None]:
    """What a network makes itself is fp64 too, and ``.float()`` does not round."""
    own = Tensor.float
    Tensor.float = Tensor.double  # type: ignore[assignment,method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        with SaysFloat32() if dtype_matters else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        Tensor.float = own  # type: ignore[method-assign]


@dataclass
class Inputs:
    image: Tensor
    others: tuple[Any, ...]

    def to(self, dtype: torch.dtype) -> Inputs:
        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        return Inputs(cast(self.image), tuple(map(cast, self.others)))


def inputs(network: Network, side: int) -> Inputs:
    image = torch.rand(1, network.channels, side, side, generator=torch.Generator().manual_seed(SEED))
    return Inputs(image, network.others(image))


def shape(given: Inputs) -> str:
    return "x".join(map(str, given.image.shape))


def forward(model: nn.Module, given: Inputs) -> Tensor:
    """Of several outputs, the last."""
    with repeatable():
        y = model(given.image, *given.others)
    return y[-1] if isinstance(y, list | tuple) else y


def step(model: nn.Module, given: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of the image and of every parameter that has one."""
    model.zero_grad(set_to_none=True)
    leaf = Inputs(given.image.clone().requires_grad_(), given.others)
    y = forward(model, leaf)
    y.backward(cotangent(y))
    found = {"the image": leaf.image.grad, **{name: p.grad for name, p in model.named_parameters()}}
    return y.detach(), {name: grad for name, grad in found.items() if grad is not None}


def cotangent(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float32).to(y)


def exact(network: Network, model: nn.Module, given: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The published network's step in fp64."""
    with in_float64(network.dtype_matters):
        return step(copy.deepcopy(model).double(), given.to(torch.float64))


# -- what is measured


def errors(
    found: tuple[Tensor, dict[str, Tensor]], gold: tuple[Tensor, dict[str, Tensor]]
) -> dict[str, float | str]:
    """How far a step is from the exact one; the module's docstring says how that is counted."""
    (y, grads), (exact_y, exact_grads) = found, gold
    if grads.keys() != exact_grads.keys():
        odd = sorted(grads.keys() ^ exact_grads.keys())
        raise AssertionError(f"gradients of {odd[:5]} are there in one run and not in the other")
    largest = max(float(g.abs().max()) for g in exact_grads.values() if g.numel())
    each = {name: _relative(grads[name], g, SMALL * largest) for name, g in exact_grads.items() if g.numel()}
    worst = max(each, key=lambda name: each[name])
    off = {name: grads[name].double() - g.double() for name, g in exact_grads.items()}
    return {
        "output": _relative(y, exact_y),
        "gradients": _norm(off) / _norm(exact_grads),
        "worst_gradient": each[worst],
        "worst_gradient_of": worst,
    }


def _norm(grads: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))


def _relative(found: Tensor, gold: Tensor, least: float = 0.0) -> float:
    worst = float((found.double() - gold.double()).abs().max())
    scale = max(float(gold.abs().max()), least)
    if math.isnan(worst):
        return math.inf
    return worst / scale if scale else worst


def saved_bytes(model: nn.Module, given: Inputs) -> int:
    """What autograd keeps of a forward pass, each storage once, beside the parameters."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = forward(model, given)
    del y
    return sum(kept.values())


def turns(one: Callable[[], Any], other: Callable[[], Any], seconds: float, most: int) -> dict[str, Any]:
    """Both by turns, each first in every second round; the ratio of a round is ``one`` over ``other``."""
    for call in (one, other) * WARMUP:
        call()
    times: list[tuple[float, float]] = []
    begin = time.monotonic()
    while len(times) < min(LEAST_ROUNDS, most) or (len(times) < most and time.monotonic() - begin < seconds):
        if len(times) % 2:
            second, first = _timed(other), _timed(one)
        else:
            first, second = _timed(one), _timed(other)
        times.append((first, second))
    ratios = sorted(a / b for a, b in times)
    return {
        "published_seconds": statistics.median(a for a, _ in times),
        "patched_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_least": ratios[0],
        "ratio_most": ratios[-1],
        "rounds": len(times),
    }


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def told(report: cpl.interop.PatchReport) -> dict[str, Any]:
    """The report as counts: kind -> taken; (kind, why) -> left, with examples."""
    taken: dict[str, int] = {}
    for _, kind, *_rest in report.patched:
        taken[kind] = taken.get(kind, 0) + 1
    left: dict[tuple[str, str], list[str]] = {}
    for name, kind, why, *_rest in report.left:
        left.setdefault((kind, why), []).append(name)
    return {
        "taken": taken,
        "left": [
            {"kind": kind, "why": why, "count": len(names), "examples": names[:3]}
            for (kind, why), names in left.items()
        ],
        "report": str(report),
    }


def measured(
    network: Network, root: Path, side: int, timed_side: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Everything that the table says of a network. No rounds: no times."""
    published = build(network, load(network, root))
    given, large = (inputs(network, max(s, network.least_side)) for s in (side, timed_side))
    patched = copy.deepcopy(published)
    begin = time.perf_counter()
    report = cpl.patch(patched)
    patching = time.perf_counter() - begin
    gold = exact(network, published, given)
    row = {
        **facts_of(network, root),
        "image": shape(given),
        "parameters": sum(p.numel() for p in published.parameters()),
        "patching_seconds": patching,
        **told(report),
        "errors": {
            "published": errors(step(published, given), gold),
            "patched": errors(step(patched, given), gold),
        },
        "timed_image": shape(large),
        "saved_bytes": {
            "published": saved_bytes(published, large),
            "patched": saved_bytes(patched, large),
        },
    }
    del gold
    if rounds:
        between = errors(step(patched, large), step(published, large))
        row["errors"]["patched_against_published"] = between
        row["time"] = turns(lambda: step(published, large), lambda: step(patched, large), seconds, rounds)
    return row


def facts_of(network: Network, root: Path) -> dict[str, Any]:
    return {
        "name": network.name,
        "repository": network.repository,
        "commit": clones.commit_of(network, root),
        "configuration": network.configuration,
        "note": network.note,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--timed-side", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rounds", type=int, default=MOST_ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        row = measured(named(args.name), args.root, args.side, args.timed_side, args.seconds, args.rounds)
    except Exception as error:
        traceback.print_exc()
        row = {"name": args.name, "failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    print(json.dumps(row))


if __name__ == "__main__":
    main()

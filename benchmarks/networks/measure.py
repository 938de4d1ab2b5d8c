"""One network, in a process of its own: python -m benchmarks.networks.measure NAME --root FOLDER [...]

The last line on stdout is a line of JSON. The network is built from a seed and its constants are moved: a residual
scaled by 0, or a norm that scales by 1, would hide what is behind it. Then three of it make the same step (forward, and
backward from one fixed gradient of the output), in training mode: as published in fp64, as published in fp32, and
patched in fp32. Each fp32 run is measured against the fp64 run:

- output: the largest difference over the largest value;
- gradients: the norm of the difference over the norm, the image's and every parameter's together;
- worst_gradient: the largest difference over the largest value, of the gradient where that is the most. What is below
  SMALL of the network's largest gradient is measured against that: where all cancels only rounding is left.

Random numbers are those of the fp64 run, and so is what rounding could decide: orders, the k largest, the side of a
ReLU. The two fp32 steps are also timed by turns, on a larger image, and there compared with each other.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cpl
from benchmarks.networks import clones
from benchmarks.networks.catalogue import Network, named
from benchmarks.networks.loading import build, load
from benchmarks.networks.runs import Choices, Inputs, exact, forward, inputs, shape, step

THREADS = 2
SMALL = 1e-5
LEAST_ROUNDS, MOST_ROUNDS = 3, 15


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
    """Both by turns, each first in every second round; the ratio of a round is ``one`` over ``other``.

    Both must have run before.
    """
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
    choices = Choices()
    gold = exact(network, published, given, choices)
    row = {
        **facts_of(network, root),
        "image": shape(given),
        "parameters": sum(p.numel() for p in published.parameters()),
        "patching_seconds": patching,
        **told(report),
        "errors": {
            "published": errors(step(published, given, choices), gold),
            "patched": errors(step(patched, given, choices), gold),
        },
        "timed_image": shape(large),
        "saved_bytes": {
            "published": saved_bytes(published, large),
            "patched": saved_bytes(patched, large),
        },
    }
    del gold
    if rounds:
        choices = Choices()
        of_published = step(published, large, choices)
        between = errors(step(patched, large, choices), of_published)
        del of_published
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

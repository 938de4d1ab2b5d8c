"""What a call costs beside its kernel, on a CPU: python -m benchmarks.call_cost [--out FILE.json]

Each op of the native backend runs on tensors so small that the call is all there is, once as it is and once with the
core's functions replaced by ones that do nothing; what is left then is checks, dispatch, autograd and memory. Beside it
the least that torch itself asks for a function with a derivative: an autograd.Function that returns its input.

Microseconds; the least of many medians, since other work on the machine can only add.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cpl_kernels
from benchmarks import idle
from benchmarks.facts import facts
from cpl_kernels.core import core

CALLS, ROUNDS = 200, 25
Made = tuple[Callable[[], Tensor], list[Tensor]]


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def route_topk() -> Made:
    logits = leaf(2, 5)
    return lambda: cpl_kernels.route_topk(logits, 1, backend="native")[0], [logits]


def aggregate_prompts() -> Made:
    weights, prompts, indices = leaf(2, 1), leaf(5, 2, 4, 4), torch.tensor([[0], [3]])
    return lambda: cpl_kernels.aggregate_prompts(weights, indices, prompts, backend="native"), [
        weights,
        prompts,
    ]


def sparse_prompt() -> Made:
    logits, prompts = leaf(2, 5), leaf(5, 2, 4, 4)
    return lambda: cpl_kernels.sparse_prompt(logits, prompts, 1, backend="native"), [logits, prompts]


def layer_norm2d() -> Made:
    x, weight, bias = leaf(1, 4, 4, 4), leaf(4), leaf(4)
    return lambda: cpl_kernels.layer_norm2d(x, weight, bias, backend="native"), [x, weight, bias]


def gated_dwconv() -> Made:
    x, weight = leaf(1, 8, 4, 4), leaf(8, 1, 3, 3)
    return lambda: cpl_kernels.gated_dwconv(x, weight, backend="native"), [x, weight]


def dwconv() -> Made:
    x, weight = leaf(1, 4, 4, 4), leaf(4, 1, 3, 3)
    return lambda: cpl_kernels.dwconv(x, weight, backend="native"), [x, weight]


def pointwise_conv() -> Made:
    x, weight = leaf(1, 4, 4, 4), leaf(4, 4, 1, 1)
    return lambda: cpl_kernels.pointwise_conv(x, weight, backend="native"), [x, weight]


def feature_distances() -> Made:
    anchor, others = leaf(2, 4, 4, 4), torch.randn(4, 2, 4, 4, 4)
    return lambda: cpl_kernels.feature_distances(anchor, others, backend="native"), [anchor]


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.empty_like(x)


def least() -> Made:
    x = leaf(2, 5)
    return lambda: Identity.apply(x), [x]


OPS: dict[str, Callable[[], Made]] = {
    "route_topk": route_topk,
    "aggregate_prompts": aggregate_prompts,
    "sparse_prompt": sparse_prompt,
    "layer_norm2d": layer_norm2d,
    "dwconv": dwconv,
    "gated_dwconv": gated_dwconv,
    "pointwise_conv": pointwise_conv,
    "feature_distances": feature_distances,
}


@contextmanager
def kernels_that_do_nothing() -> Iterator[None]:
    """While it holds, every function of the core returns at once that all is well; results stay what memory holds."""
    module = core()
    kept = {
        name: f
        for name, f in vars(module).items()
        if callable(f) and name.endswith(("_forward", "_backward"))
    }
    try:
        for name in kept:
            setattr(module, name, lambda *args: True)
        yield
    finally:
        for name, function in kept.items():
            setattr(module, name, function)


def microseconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS):
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        taken.append(statistics.median(times))
    return round(min(taken) * 1e6, 1)


def measure(made: Made) -> dict[str, float]:
    call, leaves = made
    dy = torch.ones_like(call())
    return {
        "forward, with grad": microseconds(call),
        "forward and backward": microseconds(lambda: torch.autograd.grad(call(), leaves, dy)),
    }


def rows(ops: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    found = {}
    for op in ops:
        made = OPS[op]()
        whole = measure(made)
        with kernels_that_do_nothing():
            found[op] = {"with its kernel": whole, "beside its kernel": measure(made)}
        print(op, found[op], file=sys.stderr)
    found["an autograd.Function that does nothing"] = {"beside its kernel": measure(least())}
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cpu_call_cost.json"))
    parser.add_argument("--only", nargs="+", choices=list(OPS), default=list(OPS), metavar="OP")
    args = parser.parse_args(argv)
    idle.require()
    torch.set_num_threads(1)
    result = {"family": "cpu", **facts(), "microseconds": rows(args.only)}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

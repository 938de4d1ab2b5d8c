"""Measures what cpl_kernels/dispatch.py cites: every backend against the reference, per dtype and size class.

    python -m benchmarks.dispatch [--device cpu|cuda] [--out FILE.json] [--only OP ...]

Forward and backward of one call, at a size in the middle of each class, all backends in turn round after
round; kept are the median times and the median of the paired ratios to the reference. Rounds go on for a fixed
time, so a quick case has many. On a GPU some calls in a row, as in use, to the end of their work: what the host takes
for them counts where the GPU waits for it.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import idle
from benchmarks.facts import facts
from benchmarks.gpu import machine
from cpl_kernels import backends, dispatch

SECONDS, LEAST_ROUNDS = 0.3, 9  # per case and, together, all its backends
IN_A_ROW = {"cpu": 1, "cuda": 5}
THREADS = 2
Call = Callable[[str], tuple[Tensor, list[Tensor]]]

# Elements of the largest tensor, by size class: well inside it.
ELEMENTS = {
    "cpu": {"small": 2**11, "medium": 2**17, "large": 2**22},
    "cuda": {"small": 2**11, "medium": 2**17, "large": 2**24},
}


def side_of(elements: int, channels: int) -> int:
    """Of a square image; a multiple of 4, as networks have them."""
    return max(4, 4 * round((elements / channels) ** 0.5 / 4))


def layer_norm2d(elements: int, dtype: torch.dtype) -> Call:
    side = side_of(elements, 48)
    leaves = [
        torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((1, 48, side, side), (48,), (48,))
    ]
    return lambda backend: (cpl_kernels.layer_norm2d(*leaves, backend=backend), leaves)


def gated_dwconv(elements: int, dtype: torch.dtype) -> Call:
    side = side_of(elements, 256)
    leaves = [
        torch.randn(shape, dtype=dtype, requires_grad=True)
        for shape in ((1, 256, side, side), (256, 1, 3, 3))
    ]
    return lambda backend: (cpl_kernels.gated_dwconv(*leaves, backend=backend), leaves)


def dwconv(elements: int, dtype: torch.dtype, kernel: int = 3) -> Call:
    side = side_of(elements, 144)
    leaves = [
        torch.randn(shape, dtype=dtype, requires_grad=True)
        for shape in ((1, 144, side, side), (144, 1, kernel, kernel))
    ]
    return lambda backend: (cpl_kernels.dwconv(*leaves, backend=backend), leaves)


def channel_attention(elements: int, dtype: torch.dtype) -> Call:
    """One head of 48 channels, as the model's first level."""
    side = side_of(elements, 144)
    leaves = [
        torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((1, 144, side, side), (1, 1, 1))
    ]
    return lambda backend: (cpl_kernels.channel_attention(*leaves, backend=backend), leaves)


def pointwise_conv(
    elements: int, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> Call:
    """From 48 channels to 144, as the model's first level; the larger image has so many elements."""
    side = side_of(elements, 144)
    x = torch.randn(1, 48, side, side, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(144, 48, 1, 1, dtype=dtype, requires_grad=True)
    return lambda backend: (cpl_kernels.pointwise_conv(x, weight, backend=backend), [x, weight])


def route_topk(elements: int, dtype: torch.dtype) -> Call:
    logits = torch.randn(elements // 5, 5, dtype=dtype, requires_grad=True)
    return lambda backend: (cpl_kernels.route_topk(logits, 2, backend=backend)[0], [logits])


def route_negatives(elements: int, dtype: torch.dtype) -> Call:
    """No gradient: the draw alone."""
    logits, seed = torch.randn(elements // 5, 5, dtype=dtype), torch.tensor(7)
    return lambda backend: (cpl_kernels.route_negatives(logits, 1, 4, seed=seed, backend=backend)[0], [])


def aggregate_prompts(elements: int, dtype: torch.dtype) -> Call:
    """Eight images choose one of five prompts each, resized to 1.5x."""
    side = round((elements / 8 / 64) ** 0.5 / 1.5)
    prompts = torch.randn(5, 64, side, side, dtype=dtype, requires_grad=True)
    weights = torch.rand(8, 1, dtype=dtype, requires_grad=True)
    indices = torch.arange(8)[:, None] % 5

    def call(backend: str) -> tuple[Tensor, list[Tensor]]:
        y = cpl_kernels.aggregate_prompts(weights, indices, prompts, side * 3 // 2, backend=backend)
        return y, [weights, prompts]

    return call


def feature_distances(elements: int, dtype: torch.dtype) -> Call:
    """Two images of 64 channels against four negatives, which are the largest tensor and have no gradient."""
    side = max(1, round((elements / 4 / 2 / 64) ** 0.5))
    anchor = torch.randn(2, 64, side, side, dtype=dtype, requires_grad=True)
    others = torch.randn(4, *anchor.shape, dtype=dtype)
    return lambda backend: (cpl_kernels.feature_distances(anchor, others, backend=backend), [anchor])


MANY_FEATURES = 2**17  # elements above which info_nce has many


def info_nce(elements: int, dtype: torch.dtype) -> Call:
    """One direction, B = M. Large is of many features: the reference holds the matrix, 4096 x 4096 here."""
    features = 128 if elements <= MANY_FEATURES else 1024
    query, key = (
        F.normalize(torch.randn(elements // features, features)).to(dtype).requires_grad_() for _ in range(2)
    )
    return lambda backend: (cpl_kernels.info_nce(query, key, backend=backend), [query, key])


OPS: dict[str, Callable[[int, torch.dtype], Call]] = {
    "layer_norm2d": layer_norm2d,
    "dwconv": dwconv,
    "gated_dwconv": gated_dwconv,
    "channel_attention": channel_attention,
    "pointwise_conv": pointwise_conv,
    "route_topk": route_topk,
    "route_negatives": route_negatives,
    "aggregate_prompts": aggregate_prompts,
    "feature_distances": feature_distances,
    "info_nce": info_nce,
}


# What dispatch.VARIANTS tells apart.
OF_VARIANT: dict[tuple[str, str], Callable[[int, torch.dtype], Call]] = {
    **{("dwconv", f"{k}x{k}"): functools.partial(dwconv, kernel=k) for k in (3, 5, 7)},
    ("pointwise_conv", "channels-last"): functools.partial(pointwise_conv, memory_format=torch.channels_last),
}


def measure(call: Call, names: list[str], device: str) -> dict[str, dict[str, float]]:
    """Median seconds and median paired ratio to the reference of every backend, with the backward if there is one."""
    count = IN_A_ROW[device]

    def once(name: str) -> float:
        start = time.perf_counter()
        for _ in range(count):
            out, leaves = call(name)
            if leaves:
                torch.autograd.grad(out, leaves, torch.ones_like(out))
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    for name in list(names):
        try:
            once(name)
        except cpl_kernels.BackendError:  # it does not serve this dtype
            names.remove(name)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or len(times[names[0]]) < LEAST_ROUNDS:
        for name in names:
            times[name].append(once(name))
    reference = times["reference"]
    return {
        name: {
            "seconds": statistics.median(taken),
            "against_reference": statistics.median(t / r for t, r in zip(taken, reference, strict=True)),
        }
        for name, taken in times.items()
    }


def cases(ops: list[str], device: str) -> list[dict[str, Any]]:
    rows = []
    calls = [(op, variant) for op in ops for variant in dispatch.VARIANTS.get(op, ("",))]
    for op, variant in calls:
        for dtype in dispatch.DTYPES:
            for size, elements in ELEMENTS[device].items():
                names = [n for n in backends.backends_of(op) if backends.RUNS_ON.get(n, device) == device]
                torch.manual_seed(0)
                with torch.device(device):
                    made = OF_VARIANT.get((op, variant), OPS[op])(elements, getattr(torch, dtype))
                result = measure(made, names, device)
                of_variant = {"variant": variant} if variant else {}
                rows.append({"op": op, **of_variant, "dtype": dtype, "size": size, "backends": result})
                ratio = ", ".join(f"{n} {r['against_reference']:.2f}" for n, r in result.items())
                print(f"{op} {variant} {dtype} {size}: {ratio}", file=sys.stderr)
    return rows


def compile_ahead(ops: list[str]) -> None:
    """Triton's kernels, all at once: each op in a process of its own, whose figures nobody reads."""
    command = [sys.executable, "-m", "benchmarks.dispatch", "--device", "cuda", "--once", "--only"]
    for process in [subprocess.Popen([*command, op], stderr=subprocess.DEVNULL) for op in ops]:
        process.wait()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--out", type=Path, help="where the figures go; default: benchmarks/results/cpu_dispatch.json"
    )
    parser.add_argument("--only", nargs="+", choices=list(OPS), default=list(OPS), metavar="OP")
    parser.add_argument("--once", action="store_true", help="run everything once and write nothing")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not args.out and not args.once:
        parser.error("--device cuda needs --out: results of several GPUs stand side by side")
    if len(args.only) < len(OPS) and not args.out and not args.once:
        parser.error("--only needs --out: the file that is written else holds the other ops' figures too")
    out = args.out or Path("benchmarks/results/cpu_dispatch.json")
    global SECONDS, LEAST_ROUNDS
    if args.once:
        SECONDS, LEAST_ROUNDS = 0.0, 1
    elif args.device == "cuda":
        compile_ahead(args.only)
    else:
        idle.require()
    torch.set_num_threads(THREADS)
    rows = cases(args.only, args.device)
    if not args.once:
        family = dispatch.family(torch.device(args.device))
        device = {} if args.device == "cpu" else machine.device("cuda")
        out.write_text(json.dumps({"family": family, **facts(), **device, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

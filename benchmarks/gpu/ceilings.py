"""What this machine reaches at best, as one line of JSON: a large copy, and matrix products on random data.

python -m benchmarks.gpu.ceilings --device cuda
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from benchmarks.gpu import timing

WARMUP, ROUNDS = 5, 20
COPIED = {"cuda": 2**30, "cpu": 2**20}  # bytes: far beyond any cache; on the CPU only to run the code
SIDE = {"cuda": 8192, "cpu": 64}


def seconds(call: timing.Call, device: torch.device) -> float:
    clock = timing.clock(device)
    for _ in range(WARMUP):
        clock(call)
    return statistics.median(clock(call) for _ in range(ROUNDS))


def copy_gb_per_s(device: torch.device) -> float:
    """Bytes read plus bytes written."""
    source = torch.randint(255, (COPIED[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device) / 1e9


def matmul_tflop_per_s(device: torch.device, dtype: torch.dtype) -> float:
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / seconds(lambda: torch.mm(a, b, out=out), device) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    device = torch.device(parser.parse_args().device)
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    torch.manual_seed(0)
    figures = {
        "copy_bytes": COPIED[device.type],
        "copy_gb_per_s": copy_gb_per_s(device),
        "matmul_side": SIDE[device.type],
        "matmul_bfloat16_tflop_per_s": matmul_tflop_per_s(device, torch.bfloat16),
        "matmul_float32_tflop_per_s": matmul_tflop_per_s(device, torch.float32),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

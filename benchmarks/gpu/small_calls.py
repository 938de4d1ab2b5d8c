"""One small call of each op and backend, forward and backward; compute-sanitizer watches this.

python -m benchmarks.gpu.small_calls --device cuda [OP ...]

The inputs are those that the parity tests call small. Each call is printed before it is made.
"""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks.gpu.stages import ROOT
from cpl_kernels import backends
from tests.kernels import harness, spec

BACKENDS = {"cuda": ("triton", "cuda"), "cpu": ("reference", "native")}


def call(op: str, backend: str, device: str) -> None:
    about = spec.of(op)
    case = about.small[0]
    inputs = {name: x.to(device) for name, x in case.inputs(torch.float32).items()}
    wanted = about.wanted(inputs)
    outputs = tuple(about.outputs)

    def function(**inputs: torch.Tensor) -> object:
        return case.call(**inputs, backend=backend)

    results = harness.run(function, inputs, outputs)
    if wanted:
        through = [torch.ones_like(results[name]) for name in outputs if results[name].is_floating_point()]
        harness.run(function, inputs, outputs, wanted, through)
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("ops", nargs="*", metavar="OP")
    args = parser.parse_args()
    failed = False
    for op in args.ops or backends.OPS:
        if not (ROOT / "tests" / "kernels" / op / "spec.py").exists():
            print(f"left out: {op}: it declares no small inputs")
            continue
        parts = backends.COMPOSED.get(op, (op,))
        for backend in BACKENDS[args.device]:
            if not all(backend in backends.backends_of(part) for part in parts):
                continue
            print(f"call: {op} {backend}", flush=True)
            try:
                call(op, backend, args.device)
            except Exception as error:  # the calls after it are worth as much
                failed = True
                print(f"failed: {op} {backend}: {error!r}".splitlines()[0], flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Compiles Triton's kernels for a case in many processes at once, into Triton's cache on disk.

python -m benchmarks.step.warm SPEC DEVICE FIRST STEP

A network of eight widths has a hundred kernels; one process after another would compile them in minutes. Each of these
processes takes every STEP-th of the different blocks and runs it once, forward and backward. What goes wrong here is
no harm: the measurement compiles what is missing, and says what fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import cpl_kernels
from benchmarks.gpu.stages import ROOT
from benchmarks.step.cases import Case, empty
from cpl.models import create_model
from cpl.nn import SparsePromptModule, TransformerBlock

PROCESSES = 12
SECONDS = 60.0


def up(case: Case, device: torch.device) -> None:
    """Returns when all is compiled, or SECONDS are over."""
    end = time.monotonic() + SECONDS
    count = max(1, min(PROCESSES, (os.cpu_count() or 1) - 1))
    command = [sys.executable, "-m", "benchmarks.step.warm", str(case), device.type]
    running = [
        subprocess.Popen([*command, str(i), str(count)], cwd=ROOT, stdout=sys.stderr) for i in range(count)
    ]
    try:
        for one in running:
            one.wait(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        print(f"  not all is compiled after {SECONDS:.0f} s", file=sys.stderr, flush=True)
    finally:
        for one in running:
            one.kill()
            one.wait()


def parts(case: Case) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The blocks and prompt modules that differ in their kernels: name -> shape and dtype of the input.

    Found by a run without memory, arithmetic or GPU, whose autocast rounds as a CPU's does here.
    """
    found: dict[tuple[type, torch.Size, torch.dtype], str] = {}
    narrow = case.dtype == "bfloat16"
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=narrow), torch.no_grad():
        network = create_model(case.model)
        for name, part in network.named_modules():
            if isinstance(part, (TransformerBlock, SparsePromptModule)):

                def note(part: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    found.setdefault((type(part), inputs[0].shape, inputs[0].dtype), name)

                part.register_forward_pre_hook(note)
        network(torch.zeros(case.batch, 3, case.height, case.width))
    return {name: (shape, dtype) for (_, shape, dtype), name in found.items()}


def run(case: Case, device: torch.device, first: int, step: int) -> int:
    """How many were run."""
    network = empty(case.model, plain=False)
    mine = list(parts(case).items())[first::step]
    train = case.mode == "train"
    for name, (shape, dtype) in mine:
        part = network.get_submodule(name).to_empty(device=device)
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.1)
        x = torch.randn(shape, device=device, dtype=dtype, requires_grad=train)
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=case.dtype == "bfloat16"),
            torch.set_grad_enabled(train),
        ):
            y = part(x)
        if train:
            y.backward(torch.randn_like(y))
    return len(mine)


def main(spec: str, kind: str, first: str, step: str) -> None:
    with cpl_kernels.use_backend("triton" if kind == "cuda" else None):
        run(Case.parse(spec), torch.device(kind), int(first), int(step))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Triton kernels compiled without a GPU: exactly what a launch would compile, and what the result takes.

``launches`` runs an op's own launcher on meta tensors and takes down every ``kernel[grid](...)`` instead of
launching it. Triton's own binder then turns the arguments into a signature, as it does before a real launch
(dtypes, strides of 1, divisibility by 16, constexprs, num_warps), so that what is compiled here cannot drift
from what is shipped. Nothing touches a driver: targets are named, and the compilers come in Triton's wheel.

Each op says in ``tests/kernels/<op>/limits.py`` what is compiled and what it may take:

    TRITON_CALLS   name -> call(kernels), which calls forward and backward of cpl_kernels/<op>/triton.py
                   (``kernels``) on meta tensors; the first one launches every kernel of the module
    TRITON_LIMITS  kernel -> Limit, with its reason beside it

CUDA_LIMITS there is for test_cuda_compile.py. Works with Triton 3.6 and 3.7 (their binder is not public).
``python -m tests.kernels.triton_aot [OP ...]`` compiles everything and prints what it takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

from cpl_kernels import dispatch

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "triton_aot"
OPS = tuple(sorted(path.parent.name for path in (ROOT / "cpl_kernels").glob("*/triton.py")))

Call = Callable[[ModuleType], object]


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU family and what one of its multiprocessors (AMD: compute units) holds.

    Numbers from the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability", and the
    CDNA3 instruction set architecture guide: 4 SIMDs of 512 registers a lane and 8 waves, 64 KiB of LDS.
    """

    gpu: GPUTarget
    registers: int  # 32-bit registers of each of its four parts
    granule: int  # a warp's registers come in multiples of it
    warps: int  # of each of its four parts
    programs: int
    shared: int  # bytes
    reserved: int  # bytes of it that the system takes beside each program

    @property
    def shared_limit(self) -> int:
        """Bytes that one program may take."""
        return self.shared - self.reserved

    def resident_warps(self, report: Report) -> int:
        """How many warps of a kernel a multiprocessor holds at once, in whole programs."""
        per_warp = -(-max(report.registers, 1) * self.gpu.warp_size // self.granule) * self.granule
        by_registers = 4 * min(self.registers // per_warp, self.warps) // report.num_warps
        by_shared = self.shared // max(report.shared + self.reserved, 1)
        return report.num_warps * min(by_registers, by_shared, self.programs)


def _cuda(arch: int, *, warps: int, programs: int, shared: int) -> Target:
    return Target(GPUTarget("cuda", arch, 32), 65536 // 4, 256, warps // 4, programs, shared * 1024, 1024)


TARGETS: Mapping[str, Target] = {
    "sm_80": _cuda(80, warps=64, programs=32, shared=164),
    "sm_90": _cuda(90, warps=64, programs=32, shared=228),
    "sm_100": _cuda(100, warps=64, programs=32, shared=228),
    "sm_120": _cuda(120, warps=48, programs=24, shared=100),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 512 * 64, 8 * 64, 8, 32, 64 * 1024, 0),
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """One ``kernel[grid](*args, **kwargs)``."""

    kernel: jit.JITFunction
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__


@dataclasses.dataclass(frozen=True)
class Report:
    """What a compiled kernel takes.

    Attributes:
        registers: 32-bit registers a thread (AMD: vector registers a lane).
        spilled: registers or bytes that went to memory, of whatever kind; 0 when none did.
        shared: bytes of shared memory (AMD: LDS) a program.
        num_warps: warps (AMD: waves) a program.
    """

    registers: int
    spilled: int
    shared: int
    num_warps: int


@dataclasses.dataclass(frozen=True)
class Limit:
    """Of a kernel, on every target.

    Attributes:
        warps: how many of its warps a multiprocessor must hold at once, in whole programs.
        spilled: ``Report.spilled`` at the most.
        on: other limits on some targets, by their architecture (120, "gfx942").
    """

    warps: int
    spilled: int = 0
    on: Mapping[int | str, Limit] = dataclasses.field(default_factory=dict)


def launches(call: Callable[[], object]) -> list[Launch]:
    """Every launch that ``call`` makes, none of which happens."""
    seen: list[Launch] = []

    def take_down(kernel: jit.JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        seen.append(Launch(kernel, args, kwargs))

    launch = jit.JITFunction.run
    jit.JITFunction.run = take_down
    try:
        call()
    finally:
        jit.JITFunction.run = launch
    return seen


def compile_for(launch: Launch, target: Target) -> Report:
    """Compile what ``launch`` would on ``target``; the report is kept by content."""
    kernel, backend = launch.kernel, make_backend(target.gpu)
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, excess = bind(*launch.args, **launch.kwargs)
    options, signature, constexprs, attrs = kernel._pack_args(
        backend, dict(launch.kwargs), bound, specialization, excess
    )
    source = ASTSource(kernel, signature, constexprs, attrs)
    content = f"{triton.__version__} {backend.hash()} {source.hash()} {options}"
    digest = hashlib.sha256(content.encode()).hexdigest()[:24]
    kept = CACHE / f"{launch.name}-{target.gpu.arch}-{digest}.json"
    if kept.exists():
        return Report(**json.loads(kept.read_text()))
    with _triton_cache_elsewhere():
        compiled = triton.compile(source, target=target.gpu, options=options.__dict__)
    read = _read_cuda if target.gpu.backend == "cuda" else _read_hip
    report = Report(*read(compiled.asm), compiled.metadata.shared, compiled.metadata.num_warps)
    CACHE.mkdir(parents=True, exist_ok=True)
    being_written = kept.with_suffix(f".{os.getpid()}")
    being_written.write_text(json.dumps(dataclasses.asdict(report)))
    being_written.replace(kept)
    return report


def excesses(report: Report, target: Target, limit: Limit) -> list[str]:
    """What a compiled kernel takes beyond its limit or the target's."""
    limit = limit.on.get(target.gpu.arch, limit)
    wrong = []
    if report.spilled > limit.spilled:
        wrong.append(f"spills ({report.spilled}) at {report.registers} registers")
    if report.shared > target.shared_limit:
        wrong.append(f"{report.shared} bytes of shared memory, the target has {target.shared_limit}")
    elif target.resident_warps(report) < limit.warps:
        wrong.append(
            f"a multiprocessor holds {target.resident_warps(report)} warps, not {limit.warps}: "
            f"{report.registers} registers, {report.shared} bytes of shared memory, "
            f"{report.num_warps} warps a program"
        )
    return wrong


def limits(op: str) -> ModuleType:
    return importlib.import_module(f"tests.kernels.{op}.limits")


def calls(op: str) -> tuple[str, ...]:
    """Names of TRITON_CALLS; none for an op that has no limits.py yet, so that its other tests can be collected."""
    has_limits = importlib.util.find_spec(f"tests.kernels.{op}.limits") is not None
    return tuple(limits(op).TRITON_CALLS) if has_limits else ()


def kernels(op: str) -> ModuleType:
    return importlib.import_module(f"cpl_kernels.{op}.triton")


def launches_of(op: str, call: str, target: str = "sm_90") -> list[Launch]:
    """With the tiles that the op takes on that target."""
    with mock.patch.object(dispatch, "family", return_value=target):
        return launches(lambda: limits(op).TRITON_CALLS[call](kernels(op)))


@contextlib.contextmanager
def _triton_cache_elsewhere() -> Iterator[None]:
    """Triton keeps every stage of every kernel for good; a full grid would fill the home directory."""
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        yield


def _read_cuda(asm: Mapping[str, Any]) -> tuple[int, int]:
    """Registers and bytes of local memory: Triton's kernels have no arrays, so all of it is spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert found, usage
    return int(found[1]), int(found[2]) + int(found[3])


def _cuobjdump(*arguments: str) -> str:
    command = [knobs.nvidia.cuobjdump.path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _read_hip(asm: Mapping[str, Any]) -> tuple[int, int]:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}: +(\d+)", asm["amdgcn"])
        assert found, f"no {name} in the assembly"
        return int(found[1])

    spilled = field("vgpr_spill_count") + field("sgpr_spill_count") + field("private_segment_fixed_size")
    return field("vgpr_count"), spilled


def _main(ops: list[str]) -> int:
    """One row per kernel and target: the most that any call takes, and on stderr what is beyond a limit."""
    failed = False
    print(f"Triton {triton.__version__}\n")
    print("| op | kernel | target | compiled | registers | spilled | shared | resident warps | limit |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for op in ops or OPS:
        for name, target in TARGETS.items():
            reports: dict[str, list[Report]] = {}
            for call in calls(op):
                for launch in launches_of(op, call, name):
                    report = compile_for(launch, target)
                    reports.setdefault(launch.name, []).append(report)
                    for wrong in excesses(report, target, limits(op).TRITON_LIMITS[launch.name]):
                        failed = True
                        print(f"{op} {call} {launch.name} {name}: {wrong}", file=sys.stderr)
            for kernel, group in reports.items():
                most = [max(getattr(r, what) for r in group) for what in ("registers", "spilled", "shared")]
                cells = [op, kernel, name, len(group), *most, min(map(target.resident_warps, group))]
                limit = limits(op).TRITON_LIMITS[kernel]
                warps = limit.on.get(target.gpu.arch, limit).warps
                print(f"| {' | '.join(map(str, cells))} | {warps} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))

"""Which C++ the long runs passed on: ``python -m tests.kernels.vouched`` runs them and writes a digest of each op down.

The matrix on the other instruction sets and under the sanitizers takes many minutes and says the same until an op's
C++, its Python beside it or its cases change. ``make test`` runs it for ops that have changed since vouched.json was
written. ``make test-full`` runs it, and more, for all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cpl_kernels import backends, core
from tests.cuda_host.build import CSRC, ROOT, contents, digest

LEDGER = Path(__file__).with_name("vouched.json")
SANITIZERS = "sanitizers"
OPS = tuple(op for op in backends.OPS if (CSRC / op / "cpu.cpp").exists())


def digest_of(op: str) -> str:
    """A digest of the op's C++ with all of our headers that it includes, of the Python that calls it, and of its cases.

    A change to the matrix itself (test_parity.py, targets.py) is for ``make test-full``.
    """
    cpp = [
        CSRC / op / "cpu.cpp",
        CSRC / op / "bind.h",
        *sorted(CSRC.glob("products/*.cpp")) * (op == "info_nce"),
    ]
    python = [ROOT / "cpl_kernels" / op / name for name in ("native.py", "compiled.py", "tiled.py", "op.py")]
    python += [ROOT / "cpl_kernels" / name for name in ("core.py", "layout.py", "products.py")]
    cases = [Path(__file__).parent / op / "spec.py"]
    # Names without the folder that this checkout lies in.
    parts = [part.replace(str(ROOT).encode(), b"") for source in cpp for part in contents(source)]
    parts.append((CSRC / "CMakeLists.txt").read_bytes())  # flags
    return digest(*parts, *(path.read_bytes() for path in (*python, *cases) if path.exists()))


def unvouched(run: str) -> tuple[str, ...]:
    """The ops that have changed since ``run``, an instruction set or SANITIZERS, passed on them."""
    ledger = json.loads(LEDGER.read_text()) if LEDGER.exists() else {}
    return tuple(op for op in OPS if ledger.get(run, {}).get(op) != digest_of(op))


def _newest_source() -> float:
    return max(path.stat().st_mtime for path in CSRC.rglob("*") if path.is_file())


def main() -> None:
    from tests.kernels import test_isa, test_sanitizers

    ledger = json.loads(LEDGER.read_text()) if LEDGER.exists() else {}
    before = {op: digest_of(op) for op in OPS}
    if core.available() and Path(core.core().__file__).stat().st_mtime < _newest_source():
        sys.exit(
            "the native core is older than its sources; rebuild it: make vouch, or python setup.py build_ext --inplace"
        )
    for run in (*test_isa.ISAS, SANITIZERS):
        if not core.available() or (run != SANITIZERS and test_isa.why_not(run) is not None):
            print(f"{run}: not here", file=sys.stderr)
            continue
        ops = unvouched(run)
        if run == SANITIZERS and core.core().isa() not in ("avx512", "amx"):
            ops = tuple(
                op for op in ops if op != "info_nce"
            )  # its products on matrix units are left out here
        print(f"{run}: {', '.join(ops) or 'nothing has changed'}", file=sys.stderr, flush=True)
        if not ops:
            continue
        if run == SANITIZERS:
            test_sanitizers.run_values(ops)
        else:
            test_isa.run_values(run, ops)
        assert before == {op: digest_of(op) for op in OPS}, "a source has changed meanwhile; run this again"
        ledger.setdefault(run, {}).update({op: before[op] for op in ops})
        LEDGER.write_text(json.dumps(ledger, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

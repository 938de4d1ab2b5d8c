"""Compiles what the kernels' tests run: ``python -m tests.kernels.prebuild``, before processes share the tests out.

With ``--full`` also the C++ under sanitizers of ops that have not changed (vouched.py).

A test that finds nothing compiled compiles it, so that nothing depends on this: what does not compile is left to the
tests that need it, which say why. But two processes of pytest-xdist often want the same at the same time, and each
would compile it for itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.cuda_host import build as emulator
from tests.kernels import vouched
from tests.kernels.sanitized import build as sanitized

OPS = sorted(
    path.parent.name
    for path in emulator.CSRC.glob("*/cuda.cu")
    if (emulator.HERE / f"{path.parent.name}.cpp").exists()  # an op in the making may have no emulator yet
)


def main() -> None:
    objects: list[Callable[[], Path]] = []
    whole: list[Callable[[], Path]] = []
    if emulator.why_not() is None:
        sources = [*emulator.RUNTIME, *(source for op in OPS for source in emulator.op_sources(op))]
        objects += [partial(emulator.compiled, source) for source in sources]
        whole += [partial(emulator.op, op) for op in OPS]
    if sanitized.why_not() is None:
        whole.append(sanitized.planted)
        if vouched.unvouched(vouched.SANITIZERS) or "--full" in sys.argv:
            objects += [partial(sanitized.compiled, *job) for job in sanitized.core_jobs()]
            whole.append(sanitized.core)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for jobs in (objects, whole):  # the latter from the former
            for made in [pool.submit(job) for job in jobs]:
                if made.exception() is not None:
                    print("left to the tests:", str(made.exception()).splitlines()[0][:200])


if __name__ == "__main__":
    main()

"""Compiles what the kernels' tests run: ``python -m tests.kernels.prebuild``, before processes share the tests out.

A test that finds nothing compiled compiles it, so that nothing depends on this; but then two processes of pytest-xdist
often want the same at the same time, and each compiles it for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.cuda_host import build as emulator
from tests.kernels.sanitized import build as sanitized

OPS = sorted(path.parent.name for path in emulator.CSRC.glob("*/cuda.cu"))


def main() -> None:
    objects: list[Callable[[], Path]] = []
    whole: list[Callable[[], Path]] = []
    if emulator.why_not() is None:
        sources = [*emulator.RUNTIME, *(source for op in OPS for source in emulator.op_sources(op))]
        objects += [partial(emulator.compiled, source) for source in sources]
        whole += [partial(emulator.op, op) for op in OPS]
    if sanitized.why_not() is None:
        objects += [partial(sanitized.compiled, *job) for job in sanitized.core_jobs()]
        whole += [sanitized.core, sanitized.planted]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for made in [pool.submit(job) for job in objects]:
            made.result()
        for made in [pool.submit(job) for job in whole]:
            made.result()


if __name__ == "__main__":
    main()

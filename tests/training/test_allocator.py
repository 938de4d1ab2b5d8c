"""What a training step frees stays with the process: counted in page faults, which do not depend on speed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Allocates, fills and frees 64 MB again and again, and prints the page faults of the last ten of thirty rounds.
PROGRAM = """
import resource, sys
import torch
from cpl.training.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for i in range(30):
    if i == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = torch.ones(16 * 2**20)
    del tensor
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, timeout=300
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has this")
def test_the_pages_of_freed_tensors_are_not_asked_for_again() -> None:
    assert _faults("keep") < 100  # 10 rounds of 16384 pages of 4 KiB
    assert _faults("default") > 100  # else the test above shows nothing

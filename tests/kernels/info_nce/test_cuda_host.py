"""What is special to info_nce's CUDA C++, in the emulator: borders of strips and blocks, values nobody looks at, and
the kernels without one of their barriers (barriers.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cpl_kernels.info_nce import cuda
from tests.cuda_host import build
from tests.kernels import barriers
from tests.kernels.info_nce.spec import IGNORE, SPEC, case
from tests.kernels.spec import Case
from tests.kernels.targets import Target, check

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=f"{build.why_not()}")

EMULATED = Target("emulated", "cuda")

# Two steps of 16 features, and two blocks of 64 either way.
STEPS = case(
    "steps", "a tile that is read twice, and sums of several parts", 66, 66, features=17, symmetric=True
)


@pytest.mark.slow
@pytest.mark.parametrize("barrier", range(barriers.count("info_nce")))
def test_every_barrier_is_needed(barrier: int, tmp_path: Path) -> None:
    barriers.assert_needed(SPEC, barrier, [STEPS], tmp_path)


@pytest.mark.parametrize("given", SPEC.small, ids=lambda given: given.name)
def test_strips(given: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 rows (2 with key=None) and 3 columns: sums go on from launch to launch, and strips begin anywhere."""
    monkeypatch.setattr(cuda.CudaTiles, "row_step", 4)
    monkeypatch.setattr(cuda.CudaTiles, "column_step", 3)
    check(SPEC, given, EMULATED, given.inputs(torch.float32), torch.float32)


@pytest.mark.parametrize(
    "given",
    [
        STEPS,
        case("labels", "many positives in every block", 70, 130, features=5,
             integers={"query_labels": [i % 3 for i in range(70)], "key_labels": [i % 4 for i in range(130)]}),
        case("SimCLR", "the diagonal crosses a border of blocks", 66, features=5,
             integers={"targets": [(i + 33) % 66 for i in range(66)]}),
        case("SupCon symmetric", "a queue of several blocks", 66, queue=130, features=5, symmetric=True,
             integers={"query_labels": [i % 5 for i in range(66)]}),
    ],
    ids=lambda given: given.name,
)  # fmt: skip
def test_several_blocks(given: Case) -> None:
    check(SPEC, given, EMULATED, given.inputs(torch.float32), torch.float32)


@pytest.mark.parametrize(("target", "t"), [(5, 0.1), (-1, 0.1), (2**40, 0.1), (0, 0.0), (0, -0.1)])
def test_values_that_nobody_looks_at_give_nan(target: int, t: float) -> None:
    """On CUDA a target that is no key, or a temperature that is not positive; nothing is read out of bounds."""
    query, key = (torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (3, 5))
    targets, temperature = torch.tensor([2, target, IGNORE]), torch.tensor(t)
    inputs = (query, key, None, targets, None, None, temperature)
    with EMULATED.serving("info_nce"):
        outputs = cuda.forward(*inputs, False, IGNORE, "none")
        dquery, _, _ = cuda.backward(
            torch.ones(3), *inputs, *outputs[1:], False, IGNORE, "none", True, True, True
        )
    assert outputs[0].isnan().tolist() == [t <= 0, True, False]
    assert dquery.isnan().all(dim=1).tolist()[:2] == [t <= 0, True]

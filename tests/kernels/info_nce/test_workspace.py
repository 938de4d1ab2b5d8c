"""Memory that a call of info_nce leaves to the thread's next one."""

from __future__ import annotations

import threading

import pytest
import torch

import cpl_kernels
from cpl_kernels import core
from cpl_kernels.info_nce import workspace
from cpl_kernels.info_nce.workspace import Workspace


def addresses(space: Workspace, *counts: int) -> list[int]:
    return [space.bytes(count).data_ptr() for count in counts]


def test_the_next_call_has_the_memory_of_the_last() -> None:
    for counts in ((1000, 1), (1000, 1), (64, 1000)):
        space = Workspace()
        pieces = [space.bytes(count) for count in counts]
        assert [piece.numel() for piece in pieces] == list(counts)
        assert all(piece.data_ptr() % workspace.ALIGNMENT == 0 for piece in pieces)
        for n, piece in enumerate(pieces):
            piece.fill_(n)
        assert all((piece == n).all() for n, piece in enumerate(pieces))
        del pieces, space
    Workspace()  # as large as the last one wanted
    kept = workspace._KEPT.memory
    assert kept is not None
    space = Workspace()
    assert kept.data_ptr() <= addresses(space, 1000)[0] < kept.data_ptr() + kept.numel()


def test_two_calls_at_a_time_share_nothing() -> None:
    Workspace().bytes(1000)
    one, other = Workspace(), Workspace()
    a, b = one.bytes(1000), other.bytes(1000)
    assert abs(a.data_ptr() - b.data_ptr()) >= 1000
    here = Workspace()
    there: list[int] = []
    thread = threading.Thread(target=lambda: there.extend(addresses(Workspace(), 1000)))
    thread.start()
    thread.join()
    assert abs(addresses(here, 1000)[0] - there[0]) >= 1000


def test_more_than_the_most_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "MOST", 5000)
    for _ in range(2):
        space = Workspace()
        assert space.bytes(100_000).fill_(1).numel() == 100_000
        del space
    assert workspace._KEPT.memory is not None
    assert workspace._KEPT.memory.numel() == 5000
    workspace.forget()
    assert workspace._KEPT.memory is None


def test_a_matrix() -> None:
    space = Workspace()
    assert space.matrix(3, 5, torch.float64).shape == (3, 5)
    assert space.matrix(0, 5, torch.float32).shape == (0, 5)


@pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_what_was_in_the_memory_does_not_matter(dtype: torch.dtype) -> None:
    """Nor does a result lie in it."""
    rng = torch.Generator().manual_seed(0)
    made = [
        torch.randn(600, 128, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2)
    ]
    found = []
    for fill in (0, 255, 63):
        loss = cpl_kernels.info_nce(*made, symmetric=True, temperature=5.0, backend="native")
        found.append([loss, *torch.autograd.grad(loss, made)])
        assert workspace._KEPT.memory is not None
        workspace._KEPT.memory.fill_(fill)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))

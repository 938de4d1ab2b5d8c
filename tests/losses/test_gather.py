"""InfoNCELoss(gather_distributed=True): two processes of gloo must give what one process gives of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cpl.losses import InfoNCELoss

RANKS, ROWS, FEATURES = 2, 5, 7
# A target of each process; ignored ones on both, as many, so that the mean of the means is the mean.
TARGETS = torch.tensor([[3, -100, 0, 4, 3], [1, 1, -100, 0, 2]])
SETTINGS: dict[str, dict[str, Any]] = {
    "one direction": {},
    "symmetric": {"symmetric": True},
    "learnt temperature": {"symmetric": True, "learnable_temperature": True},
    "targets and queue": {"targets": TARGETS},
}


def whole_batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    query, key = (torch.randn(RANKS * ROWS, FEATURES, generator=rng, dtype=torch.float64) for _ in range(2))
    return query, key, torch.randn(3, FEATURES, generator=rng, dtype=torch.float64)


def evaluate(setting: dict[str, Any], query: Tensor, key: Tensor, **call: Any) -> dict[str, Tensor]:
    loss = InfoNCELoss(**setting).double()
    query, key = query.clone().requires_grad_(), key.clone().requires_grad_()
    value = loss(query, key, **call)
    value.backward()
    scale = loss.logit_scale.grad if loss.logit_scale is not None else torch.zeros(())
    return {"loss": value.detach(), "query": query.grad, "key": key.grad, "logit_scale": scale}


def of_one_process(name: str) -> dict[str, Tensor]:
    query, key, queue = whole_batch()
    setting, call = dict(SETTINGS[name]), {}
    if (targets := setting.pop("targets", None)) is not None:
        offsets = ROWS * torch.arange(RANKS)[:, None]
        call = {"targets": torch.where(targets == -100, -100, targets + offsets).flatten(), "queue": queue}
    return evaluate(setting, query, key, **call)


def process(rank: int, directory: str) -> None:
    """What each process does: all settings, and batches of different sizes, which must be refused."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=RANKS)
    query, key, queue = whole_batch()
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    results: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        setting, call = dict(setting), {}
        if (targets := setting.pop("targets", None)) is not None:
            call = {"targets": targets[rank], "queue": queue}
        gathered = {**setting, "gather_distributed": True}
        results[name] = evaluate(gathered, query[own], key[own], **call)
    try:
        InfoNCELoss(gather_distributed=True)(query[own][rank:], key[own][rank:])
    except ValueError as error:
        results["refused"] = str(error)
    torch.save(results, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("gather")
    torch.multiprocessing.spawn(process, (str(directory),), nprocs=RANKS)
    return [torch.load(Path(directory, f"{rank}.pt")) for rank in range(RANKS)]


@pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_are_one_with_the_whole_batch(processes: list[dict[str, Any]], name: str) -> None:
    """A process's loss is the mean of its rows, and its gradients W times those of the mean over all rows."""
    expected, parts = of_one_process(name), [results[name] for results in processes]
    mean = {key: sum(part[key] for part in parts) / RANKS for key in ("loss", "logit_scale")}
    for key in ("query", "key"):
        mean[key] = torch.cat([part[key] for part in parts]) / RANKS
    for key, value in mean.items():
        torch.testing.assert_close(value, expected[key], msg=lambda m, k=key: f"{k}: {m}")
    assert not torch.equal(parts[0]["loss"], parts[1]["loss"]), "each has its own rows"


@pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")
def test_batches_of_different_sizes_are_refused(processes: list[dict[str, Any]]) -> None:
    assert all("got [5, 4] rows" in results["refused"] for results in processes)


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """A group of this process alone."""
    if not dist.is_available():
        pytest.skip(reason="this torch was built without torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_what_cannot_be_gathered_is_refused() -> None:
    z, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 4])
    loss = InfoNCELoss(gather_distributed=True)
    torch.testing.assert_close(loss(z, z), InfoNCELoss()(z, z))
    with pytest.raises(ValueError, match="from 0 to M-1 = 3, got 4"):
        loss(z, z, targets)
    with pytest.raises(ValueError, match="M must be at least B = 4, got M = 3"):
        loss(z, z[:3])
    with pytest.raises(ValueError, match="as many queries as keys, got 4 and 3"):
        InfoNCELoss(symmetric=True, gather_distributed=True)(z, z[:3])


def test_without_a_process_group() -> None:
    loss = InfoNCELoss(gather_distributed=True)
    assert "gather_distributed=True" in repr(loss)
    with pytest.raises(RuntimeError, match=r"init_process_group first .*leave gather_distributed out"):
        loss(torch.randn(4, 3), torch.randn(4, 3))

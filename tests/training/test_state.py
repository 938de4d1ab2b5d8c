"""Random states, the non-finite guard, and the checkpoint folder."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpl.errors import CplError
from cpl.training import rng
from cpl.training.checkpoints import CheckpointStore, DamagedCheckpoint, read_state
from cpl.training.guard import NonFiniteGuard


def draws() -> list[Any]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]


def test_random_states_survive_a_weights_only_file(tmp_path: Path) -> None:
    rng.seed_everything(5)
    draws()  # leaves a cached second Gaussian in both Python and NumPy
    torch.save(rng.capture(), tmp_path / "rng.pt")
    expected = draws()
    rng.seed_everything(6)
    rng.restore(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draws() == expected


def test_guard_stops_at_a_run_of_bad_steps() -> None:
    guard = NonFiniteGuard(limit=100, limit_in_a_row=3)
    for step in (1, 2):
        assert "step skipped" in guard.skipped(step, "the loss", "")
    guard.passed()
    for step in (3, 4):
        guard.skipped(step, "the loss", "")
    with pytest.raises(CplError, match=r"max_nonfinite_in_a_row=3"):
        guard.skipped(5, "the gradient", "no checkpoint")
    assert guard.state() == {"total": 5, "in_a_row": 3}


def test_guard_stops_at_the_total() -> None:
    guard = NonFiniteGuard(limit=2, limit_in_a_row=10)
    guard.skipped(1, "the loss", "")
    guard.passed()
    with pytest.raises(CplError, match=r"max_nonfinite=2"):
        guard.skipped(9, "the loss", "")


def save(store: CheckpointStore, step: int) -> Path:
    return store.save(
        step, {"step": step, "x": torch.arange(1000.0)}, lambda p: p.write_bytes(b"model" * 100)
    )


def test_a_checkpoint_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 30):
        save(store, step)
    assert [p.name for p in store.paths()] == ["step-00000002", "step-00000030"]
    path, state = store.newest_whole(pytest.fail)
    assert (path.name, state["step"]) == ("step-00000030", 30)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [(n, d) for n in ("model.safetensors", "state.pt") for d in (cut, flip, Path.unlink)]
    + [("manifest.json", cut), ("manifest.json", Path.unlink)],
)
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(
    tmp_path: Path, name: str, damage: Any
) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    damage(save(store, 2) / name)
    reports: list[str] = []
    _, state = store.newest_whole(reports.append)
    assert state["step"] == 1
    assert "step-00000002" in reports[0]
    with pytest.raises(DamagedCheckpoint):
        read_state(tmp_path / "checkpoints" / "step-00000002")


def test_nothing_whole_is_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(CplError, match="no checkpoint to resume"):
        store.newest_whole(print)
    cut(save(store, 1) / "state.pt")
    with pytest.raises(CplError, match="all 1 checkpoints are damaged"):
        store.newest_whole(lambda _: None)


@pytest.mark.parametrize("victim", ["model", "state"])
def test_a_full_disk_leaves_the_older_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: Any, **__: Any) -> None:
        raise full if victim == "model" else RuntimeError("PytorchStreamWriter failed writing file") from full

    if victim == "state":
        monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CplError, match=r"No space left on device.*--resume"):
        store.save(2, {"step": 2}, fail if victim == "model" else lambda p: p.write_bytes(b"m"))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert store.newest_whole(pytest.fail)[1]["step"] == 1


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    (tmp_path / "checkpoints" / ".unfinished-abc").mkdir()
    assert [p.name for p in store.paths()] == ["step-00000001"]
    store.remove_unfinished()
    assert not list((tmp_path / "checkpoints").glob(".unfinished*"))


def _save_nothing(path: Path) -> None:
    path.write_bytes(b"model")


def test_a_run_resumed_from_further_back_keeps_what_it_writes(tmp_path: Path) -> None:
    """Damaged or abandoned later checkpoints neither push out the new one nor are taken for the newest."""
    store = CheckpointStore(tmp_path, keep=5)
    for step in (300, 400, 500):
        store.save(step, {"step": step}, _save_nothing)
    (store.paths()[1] / "state.pt").write_bytes(b"")  # 400 is damaged, 500 is whole but abandoned
    store.keep = 2
    store.save(350, {"step": 350}, _save_nothing)
    assert [p.name for p in store.paths()] == ["step-00000300", "step-00000350"]
    assert store.newest_whole(lambda _: None)[1] == {"step": 350}
    assert len(list(store.folder.glob("superseded-step-*"))) == 2


def test_saving_the_same_step_again_replaces_it_whole(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for value in (1, 2):
        store.save(100, {"value": value}, _save_nothing)
    assert store.newest_whole(lambda _: None)[1] == {"value": 2}
    assert [p.name for p in store.folder.iterdir()] == ["step-00000100"]

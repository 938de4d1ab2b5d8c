"""The ablation on a few crops: every arm trains and is measured, interrupted runs go on, and the page tells them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.ablation import __main__ as command
from benchmarks.ablation import data, measure, page
from benchmarks.ablation import train as training
from benchmarks.ablation.arms import ARMS
from cpl.errors import CplError

STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(11):
        small = rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((300, 280), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def crops(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[data.Crops, data.Crops]:
    return data.prepare(folder, tmp_path_factory.mktemp("work"), 40)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PROBED", 20)
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)


def test_crops_are_made_once_and_no_photo_is_on_both_sides(folder: Path, tmp_path: Path) -> None:
    train, test = data.prepare(folder, tmp_path, 40)
    assert train.names == tuple(data.TASKS)
    assert [len(train.of(task)) for task in data.TASKS] == [8] * 5
    assert test.names == (*data.TASKS, *data.UNSEEN)
    assert {len(test.of(name)) for name in test.names} == {2 * data.TEST_CROPS}
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again, _ = data.prepare(folder, tmp_path, 40)
    assert torch.equal(again.degraded, train.degraded)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


def test_too_few_photos(folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for i in range(3):
        (few / f"{i}.png").symlink_to(folder / f"{i}.png")
    with pytest.raises(CplError, match="3 photos; give at least 11"):
        data.prepare(few, tmp_path, 40)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm(name: str, crops: tuple[data.Crops, data.Crops], tmp_path: Path) -> None:
    row = command.run(name, 0, STEPS, tmp_path, crops)
    arm = ARMS[name]
    assert row["steps"] == (1 if arm.only else STEPS)
    seen = set(data.TASKS) if arm.oracle else {*data.TASKS, *data.UNSEEN, data.CLEAN}
    assert set(row["psnr"]) == seen
    json.dumps(row, allow_nan=False)
    if arm.oracle:
        assert row["choices"]["level3"]["of_entropy"] == pytest.approx(1)
    assert (arm.only or name) in page.page([row])
    assert name in command.summary(row)


def test_arms_begin_with_the_same_weights_and_see_the_same_crops(crops: tuple[data.Crops, data.Crops]) -> None:
    runs = [training._Run(ARMS[name], 3, crops[0], STEPS) for name in ("none", "dense", "sparse", "oracle")]
    first, *others = ({n: p for n, p in run.model.named_parameters()} for run in runs)
    for other in others:
        shared = [n for n in first if n in other and first[n].shape == other[n].shape]
        assert len(shared) > 100
        assert all(torch.equal(first[n], other[n]) for n in shared)
    batches = [run._batch()[0] for run in runs]
    assert all(torch.equal(batch, batches[0]) for batch in batches)


def test_an_interrupted_run_ends_as_one_that_was_not(
    crops: tuple[data.Crops, data.Crops], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = training.train("task", 0, crops[0], 4, tmp_path / "whole")
    update, count = training._Run.update, 0

    def stopped(run: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        update(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training._Run, "update", stopped)
        training.train("task", 0, crops[0], 4, tmp_path / "cut")
    resumed, seen = training.train("task", 0, crops[0], 4, tmp_path / "cut")
    assert seen["steps"] == 4 and len(seen["looks"]) == 4
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_arm_that_ended_is_not_run_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(name: str, seed: int, steps: int, work: Path, crops: Any) -> dict[str, Any]:
        ran.append(f"{name} {seed}")
        return {"arm": name, "seed": seed, "asked_steps": steps}

    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "summary", str)
    monkeypatch.setattr(command, "prepare", lambda *_: None)
    asked = ["--photos", str(folder), "--out", str(tmp_path / "out.json"), "--arms", "none", "dense", "--seeds"]
    command.main([*asked, "0"])
    command.main([*asked, "0", "1"])
    assert ran == ["none 0", "dense 0", "none 1", "dense 1"]

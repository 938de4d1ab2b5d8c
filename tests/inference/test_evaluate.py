"""Evaluation: means, gains, and honesty about values that are not numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("skimage", reason="metrics need the extra [train]")
pytest.importorskip("rich", reason="the table needs the extra [train]")
from rich.console import Console

from cpl.errors import CplError
from cpl.inference.evaluate import evaluate
from cpl.inference.metrics import psnr, ssim


def case(task: str, name: str, offset: float, size: int = 16) -> dict[str, Any]:
    target = np.random.default_rng(1).random((size, size, 3), dtype=np.float32) * 0.5
    return {"task": task, "name": name, "degraded": target + np.float32(offset), "target": target}


def cases() -> Iterator[dict[str, Any]]:
    yield case("noise", "a", 0.1)
    yield case("noise", "b", 0.2)
    yield case("haze", "a", 0.4)


def test_means_per_task_and_over_tasks() -> None:
    result = evaluate(lambda image: image - np.float32(0.09), cases())
    assert list(result.tasks) == ["noise", "haze"]
    noise, haze = result.tasks["noise"], result.tasks["haze"]
    assert noise.degraded_psnr == pytest.approx((20 + 20 - 20 * math.log10(2)) / 2, abs=1e-4)
    assert noise.restored_psnr == pytest.approx((40 - 20 * math.log10(0.11)) / 2, abs=1e-3)
    assert noise.gain_psnr == pytest.approx(noise.restored_psnr - noise.degraded_psnr)
    # Over tasks, not over images: haze counts as much as both noise images.
    assert result.average.degraded_psnr == pytest.approx((noise.degraded_psnr + haze.degraded_psnr) / 2)
    third = case("haze", "a", 0.4)
    assert haze.degraded_psnr == pytest.approx(psnr(third["degraded"], third["target"]))
    assert haze.degraded_ssim == pytest.approx(ssim(third["degraded"], third["target"]))
    assert result.notes == []


def test_network_and_progress() -> None:
    class Darker(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image - 0.1

    seen: list[tuple[str, str]] = []
    result = evaluate(Darker(), cases(), progress=lambda *which: seen.append(which))
    assert seen == [("noise", "a"), ("noise", "b"), ("haze", "a")]
    assert result.images[1].scores.restored_psnr == pytest.approx(20, abs=1e-3)


@pytest.mark.parametrize("what", ["degraded", "target", "restored"])
def test_values_out_of_range_name_the_image(what: str) -> None:
    good, bad = case("noise", "a", 0.1), case("noise", "b", 0.1)
    if what != "restored":
        bad[what] = bad[what] * 255
    seen = iter([good["target"], bad["target"] * 255 if what == "restored" else good["target"]])
    with pytest.raises(ValueError, match=rf"noise b: {what} must lie in \[0, 1\], got values from"):
        evaluate(lambda image: next(seen), [good, bad])


def test_identical_images_are_reported_not_hidden(tmp_path: Path) -> None:
    result = evaluate(lambda image: image, [case("none", "a", 0.0), case("none", "b", 0.1)])
    scores = result.tasks["none"]
    assert scores.restored_psnr == math.inf
    assert scores.gain_psnr == 0.0
    assert "1 of 2 images are identical" in result.notes[0]
    result.save_json(tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["tasks"]["none"]["restored_psnr"] is None
    assert data["images"][1]["restored_psnr"] == pytest.approx(20, abs=1e-3)
    assert data["notes"] == result.notes
    assert "inf" in rendered(result)


def test_images_without_ssim() -> None:
    result = evaluate(lambda image: image, [case("noise", "tiny", 0.1, size=6), case("noise", "big", 0.1)])
    assert "1 of 2 images have a side under 7 pixels" in result.notes[0]
    big = case("noise", "big", 0.1)
    assert result.tasks["noise"].restored_ssim == pytest.approx(ssim(big["degraded"], big["target"]))
    alone = evaluate(lambda image: image, [case("noise", "tiny", 0.1, size=6)])
    assert alone.to_dict()["average"]["restored_ssim"] is None
    assert "20.00 / -" in rendered(alone)


def test_table_has_every_row() -> None:
    text = rendered(evaluate(lambda image: image - np.float32(0.05), cases(), channel="y"))
    for word in ("degraded", "restored", "gain", "noise", "haze", "average", "Y"):
        assert word in text


def test_refusals() -> None:
    with pytest.raises(CplError, match="nothing to evaluate"):
        evaluate(lambda image: image, [])
    with pytest.raises(ValueError, match="lab"):
        evaluate(lambda image: image, cases(), channel="lab")
    wrong = case("noise", "a", 0.1) | {"target": np.zeros((4, 4, 3), np.float32)}
    with pytest.raises(ValueError, match="noise a"):
        evaluate(lambda image: image, [wrong])


def rendered(result: Any) -> str:
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.table())
    return console.export_text()

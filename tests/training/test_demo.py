"""examples/demo.py from end to end, on small pictures and a few steps."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import cpl
import cpl.data
from cpl.data.photos import bundled_photos
from cpl.training import load_preset

TINY = [
    "steps=2",
    "schedule.warmup=0",
    "data.crop=16",
    "data.validation.crop=32",
    "log_every=1",
    "model.overrides={dim: 8, num_blocks: [1, 1, 1, 1], prompt_channels: [8, 16, 32], prompt_sizes: [1, 1, 1]}",
]


@pytest.fixture
def demo() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_trains_restores_measures_and_draws(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [dataclasses.replace(p, image=p.image[:40, :56]) for p in bundled_photos("test")]
    monkeypatch.setattr(
        cpl.data, "bundled_photos", lambda split, scale=1: small if split == "test" else bundled_photos(split)
    )
    before = torch.get_num_threads()
    try:
        assert demo.main(["--output", str(tmp_path / "demo"), "--threads", "1", *TINY]) == 0
        assert demo.main(["--output", str(tmp_path / "demo"), "--threads", "1", *TINY]) == 0  # again
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr().out
    output = tmp_path / "demo"
    assert f"restore PHOTO --checkpoint {output / 'model.safetensors'} --output restored/" in said
    results = json.loads((output / "results.json").read_text())
    assert list(results["tasks"]) == ["noise", "blur", "rain", "haze", "low_light"]
    assert results["info"]["steps"] == 2
    assert results["info"]["photos"]["held_out"] == ["coffee", "flower"]
    card = (output / "README.md").read_text()
    assert f"| **average** | {results['average']['degraded_psnr']:.2f}" in card
    assert "low_light:scale" in card
    for name in ("before_restored_truth.png", "curves.png"):
        with Image.open(output / name) as picture:
            assert picture.width > 500
    model, info = cpl.load_checkpoint(output / "model.safetensors")
    assert info["step"] == 2
    assert cpl.restore(model, small[0].image).shape == (40, 56, 3)


def test_mistakes_are_one_line(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--output", str(tmp_path), "stepz=3"]) == 2
    assert "did you mean steps?" in capsys.readouterr().err


def test_the_held_out_photographs_are_not_trained_on() -> None:
    config = load_preset("demo")
    assert [s.split for s in config.data.sources] == ["train"]  # type: ignore[union-attr]
    names = {split: {p.name for p in bundled_photos(split)} for split in ("train", "test")}
    assert not names["train"] & names["test"]
    assert config.loss.kind == "cpr"
    assert config.data.tasks == ["noise", "blur", "rain", "haze", "low_light"]

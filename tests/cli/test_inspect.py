"""cpl inspect: what is written, what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="cpl inspect needs the extra [train]")
pytest.importorskip("imagecodecs", reason="cpl inspect needs the extra [train]")
from PIL import Image

import cpl
from cpl.inference import load
from cpl.inference.inspect import FILES, read_usage
from tests.cli.conftest import one_error


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 28, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_folder_of_photos(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png", 0)
    photo(tmp_path / "in/sub/a.png", 1)
    photo(tmp_path / "other/a.png", 2)
    out = tmp_path / "deep/out"
    command = ("inspect", tmp_path / "in", tmp_path / "other", "--checkpoint", checkpoint, "--output", out)
    options = ("--recursive", "--degradation", "noise:sigma=25", "rain", "--negatives", 1, "--crop", 16)
    result = run(*command, *options)
    assert (result.status, result.err) == (0, "")
    assert f"3 photos under 2 degradations: {out / 'index.html'}" in result.out
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES)
    distances = json.loads((out / "distances.json").read_text())
    assert list(distances["tasks"]) == ["clean", "noise-sigma25", "rain"]
    names = distances["info"]["photos"]
    assert sorted(names) == sorted([str(tmp_path / "in/a.png"), "sub/a.png", str(tmp_path / "other/a.png")])
    assert distances["info"]["crop"] == 16
    assert distances["info"]["degradations"]["noise-sigma25"] == "noise:sigma=25"
    model, _ = cpl.load_checkpoint(checkpoint)
    assert read_usage(out / "usage.json", model).judged == 9
    before = {name: (out / name).read_bytes() for name in FILES}
    one_error(run(*command, *options), out / "usage.json", "7 more", "--overwrite")
    assert run(*command, *options, "--overwrite").status == 0
    assert {name: (out / name).read_bytes() for name in FILES} == before  # the seed fixes everything


def test_bundled_photos_and_the_demonstration_s_degradations(run: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tasks = ["noise", "blur", "rain", "haze", "low_light"]
    cpl.save_checkpoint(
        cpl.create_model("cplir-tiny"), tmp_path / "m.safetensors", preset="demo", tasks=tasks
    )
    command = (
        "inspect",
        "--checkpoint",
        tmp_path / "m.safetensors",
        "--limit",
        1,
        "--crop",
        24,
        "--negatives",
        1,
    )
    assert run(*command, "--output", tmp_path / "a").status == 0
    known = json.loads((tmp_path / "a/usage.json").read_text())["info"]
    assert known["degradations"]["blur"] == "blur:kind=defocus,radius=3"
    assert list(known["degradations"]) == tasks
    assert known["photos"] == ["coffee"] or len(known["photos"]) == 1
    # Trained with other tasks than the preset's: its strengths are not known.
    cpl.save_checkpoint(
        cpl.create_model("cplir-tiny"), tmp_path / "m.safetensors", preset="demo", tasks=["rain"]
    )
    assert run(*command, "--output", tmp_path / "b").status == 0
    assert json.loads((tmp_path / "b/usage.json").read_text())["info"]["degradations"]["blur"] == "blur"


def test_a_dense_model_has_usage_but_no_distances(run: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cpl.save_checkpoint(cpl.create_model("cplir-tiny", top_k=None), tmp_path / "m.safetensors")
    source = photo(tmp_path / "a.png")
    out = tmp_path / "out"
    result = run(
        "inspect",
        source,
        "--checkpoint",
        tmp_path / "m.safetensors",
        "--output",
        out,
        "--degradation",
        "noise",
    )
    assert result.status == 0
    assert "note: no distances: " in result.out
    assert not (out / "distances.json").exists()
    assert (out / "index.html").exists()


def test_refusals(run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = photo(tmp_path / "a.png"), tmp_path / "out"
    command = ("inspect", source, "--output", out)
    one_error(run(*command), "--checkpoint", "make demo")
    one_error(run(*command, "--checkpoint", tmp_path / "absent"), tmp_path / "absent")
    torch.manual_seed(0)
    cpl.save_checkpoint(cpl.create_model("restormer", dim=8, num_blocks=(1, 1, 1, 1)), tmp_path / "plain")
    one_error(run(*command, "--checkpoint", tmp_path / "plain"), "restormer has no prompts", "cplir")
    assert not out.exists()

    def load_nothing(*_: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(load, "load_model", load_nothing)
    command = (*command, "--checkpoint", checkpoint)
    one_error(run(*command, "--degradation", "fog"), "fog")
    one_error(run(*command, "--degradation", "rain", "rain"), "rain is there twice")
    for option in ("--limit", "--crop", "--negatives"):
        one_error(run(*command, option, 0), f"{option} must be at least 1, got 0")
    one_error(
        run("inspect", tmp_path / "none", "--output", out, "--checkpoint", checkpoint), tmp_path / "none"
    )
    one_error(run("inspect", "--output", source, "--checkpoint", checkpoint), source, "is a file")
    one_error(
        run("inspect", "--output", source / "x", "--checkpoint", checkpoint), source, "cannot be written"
    )


def test_a_damaged_photo_is_named(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(photo(tmp_path / "a.png").read_bytes()[:60])
    one_error(
        run("inspect", tmp_path, "--checkpoint", checkpoint, "--output", tmp_path / "out"),
        tmp_path / "bad.png",
    )
    assert not (tmp_path / "out").exists()

"""python -m benchmarks.tiles on a small network and photo: what the seams are measured by, and the files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import idle, tiles


class Offset(nn.Module):
    """Adds to each image what it is on the mean, as no pixelwise function does: seams between tiles."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.8 * x + 0.2 * x.mean((1, 2, 3), keepdim=True)


def test_uniform_tiles_are_the_plain_mean_of_each_for_itself() -> None:
    image = np.random.default_rng(0).random((100, 150, 3), dtype=np.float32)
    assert tiles.uniform_starts(150, 64, 16) == [0, 48, 86]
    assert tiles.uniform_starts(160, 64, 16) == [0, 48, 96]
    assert tiles.uniform_starts(40, 64, 16) == [0]
    same = tiles.uniform(nn.Identity(), image, 64, 16)
    np.testing.assert_allclose(same, image, atol=1e-6)
    made = tiles.uniform(Offset(), image, 64, 16)
    # Two tiles count a half each at (20, 50): that from column 0 and that from 48; padded to 104x152.
    expected = 0.8 * image[20, 50] + 0.1 * (image[:64, :64].mean() + image[:64, 48:112].mean())
    np.testing.assert_allclose(made[20, 50], expected, atol=1e-6)


def test_the_measure_of_a_seam() -> None:
    noise = np.random.default_rng(0).normal(size=(60, 80, 3))
    lines = ([20, 40], [30])
    assert tiles.seam(noise, lines) == pytest.approx(1, abs=0.2)
    stepped = noise.copy()
    stepped[:, 30:] += 10
    stepped[20:] += 10
    stepped[40:] -= 10
    assert tiles.seam(stepped, lines) == pytest.approx(10 / (2 / np.sqrt(np.pi)), rel=0.2)
    assert tiles.seam(noise, ([], [])) is None
    assert tiles.seam(0 * noise, lines) is None
    assert tiles.inner([0, 48, 86], 64, 150) == [48, 64, 86, 112]
    assert tiles.uniform_lines(150, 64, 16) == [48, 64, 88, 112]  # of 152 pixels


def test_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILES", ("512:64", "64:16"))
    monkeypatch.setattr(tiles, "UNIFORM", "64:16")
    monkeypatch.setattr(tiles, "SHOWN", ("uniform 64:16", "tiled 64:16"))
    monkeypatch.setattr(idle, "require", lambda: None)
    out, picture = tmp_path / "tiles.json", tmp_path / "tiles.png"
    options = ["--scale", "0.25", "--tasks", "haze", "--out", str(out), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", ["tiles", *options])
    threads = torch.get_num_threads()
    tiles.main()
    torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    assert {"date", "versions", "commit", "machine_was", "architecture", "weights"} < set(result)
    assert "random" in result["weights"]
    (row,) = result["rows"]
    assert (row["task"], row["photo"], row["size"]) == ("haze", "coffee", "150x100")
    at_once, ours, uniform = row["tiled 512:64"], row["tiled 64:16"], row["uniform 64:16"]
    assert (at_once["largest_difference"], at_once["psnr_to_exact"], at_once["step_at_borders"]) == (
        0,
        None,
        None,
    )
    assert ours["psnr"] - row["exact"]["psnr"] == pytest.approx(ours["psnr_gain_over_exact"])
    assert ours["psnr_to_exact"] > row["blended only 64:16"]["psnr_to_exact"]
    assert uniform["step_at_borders"] > 1.5 * ours["step_at_borders"]
    with Image.open(picture) as image:
        assert image.size == (3 * 150 + 8, 2 * (100 + 16))

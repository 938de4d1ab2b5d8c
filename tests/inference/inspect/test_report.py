"""The files of an inspection: numbers that agree with each other, pictures, one page that needs nothing else."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cpl
from cpl.data.photos import Photo
from cpl.inference.inspect import FILES, Inspection, Usage, charts, inspect_model, write_report
from cpl.inference.inspect.measure import Pictures

HOSTILE = "<script>alert('x')</script>&amp;.safetensors"


@pytest.fixture
def written(inspection: Inspection, tmp_path: Path) -> Path:
    inspection.info = {"checkpoint": HOSTILE, "architecture": "cplir-tiny", "photos": ["a", "<b>"]}
    usage = Usage.of(inspection.images, "abc")
    paths = write_report(inspection, usage, tmp_path / "out" / "deep", dense=False)
    assert [path.name for path in paths] == list(FILES)
    assert sorted(os.listdir(tmp_path / "out" / "deep")) == sorted(FILES)
    return tmp_path / "out" / "deep"


def test_tables_agree(written: Path, inspection: Inspection) -> None:
    usage = json.loads((written / "usage.json").read_text())
    rows = list(csv.DictReader((written / "usage.csv").open()))
    assert len(rows) == 3 * 3 * 5  # tasks, levels, prompts
    for row in rows:
        level = usage["tasks"][row["degradation"]][f"level{row['level']}"]
        for key in ("chosen", "share"):
            number = level["shares" if key == "share" else key][int(row["prompt"]) - 1]
            assert float(row[key]) == pytest.approx(number, rel=1e-5)
    distances = json.loads((written / "distances.json").read_text())
    assert distances["tasks"]["noise"]["distance"] == inspection.mean("noise", "distance")
    assert distances["tasks"]["clean"]["degraded_psnr"] is None  # infinite, which JSON has not
    assert distances["info"]["degradations"] == {"noise": "noise:sigma=50", "dark": "low_light:scale=0.02"}
    lines = list(csv.DictReader((written / "distances.csv").open()))
    assert [(line["degradation"], line["photo"]) for line in lines] == [
        (image.task, image.name) for image in inspection.images
    ]
    assert float(lines[2]["distance"]) == pytest.approx(inspection.images[2].distance, rel=1e-5)


def test_charts_and_pictures_are_images(written: Path) -> None:
    for name, kind in (("usage.png", "PNG"), ("distances.png", "PNG"), ("pictures.jpg", "JPEG")):
        with Image.open(written / name) as image:
            assert image.format == kind
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [(2, 300, (4, 600)), (300, 2, (150, 1)), (20, 40, (150, 300)), (8, 8, (150, 150))],
)
def test_pictures_of_any_shape_fit_into_a_file(height: int, width: int, shown: tuple[int, int]) -> None:
    picture = np.full((height, width, 3), 0.5, np.float32)
    tasks = [Pictures(task, "a", picture, picture, picture, picture) for task in ("clean", "noise")]
    with Image.open(io.BytesIO(charts.sheet(tasks))) as image:
        assert image.size == (4 * (shown[1] + 6) + 6, 20 + 2 * (shown[0] + 26))
        assert abs(image.getpixel((6 + shown[1] // 2, 40 + shown[0] // 2))[0] - 128) < 30


@pytest.mark.parametrize("dense", [False, True])
def test_heat_map_shows_the_usage(
    inspection: Inspection, monkeypatch: pytest.MonkeyPatch, dense: bool
) -> None:
    usage = Usage.of(inspection.images)
    drawn: list[Any] = []
    monkeypatch.setattr(charts, "_png", lambda figure: drawn.append(figure) or b"")
    charts.heat_map(usage, dense)
    panels = [axes for axes in drawn[0].axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["level 3", "level 2", "level 1"]
    for level, axes in zip((3, 2, 1), panels, strict=True):
        rows = [usage.tasks[task][level] for task in inspection.tasks]
        values = [row.shares if dense else row.chosen for row in rows]
        assert np.array_equal(axes.images[0].get_array(), values)
    assert [label.get_text() for label in panels[0].get_yticklabels()] == inspection.tasks


def test_bars_show_the_distances(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(charts, "_png", lambda figure: drawn.append(figure) or b"")
    charts.distances(inspection)
    left, right = drawn[0].axes
    assert [bar.get_width() for bar in left.patches] == [
        inspection.mean(t, "distance") for t in inspection.tasks
    ]
    widths = [bar.get_width() for bar in right.patches]
    assert widths[0] == 0  # the clean photo against itself: infinite, and no bar
    expected = [
        inspection.mean(task, what)
        for what in ("degraded_psnr", "restored_psnr", "negative_psnr")
        for task in inspection.tasks
    ]
    assert widths[1:] == expected[1:]


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_shows_names_as_text(written: Path, inspection: Inspection) -> None:
    page = _Page()
    page.feed((written / "index.html").read_text())
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert "a, <b>" in page.text
    images = [link for link in page.links if link.startswith("data:image/")]
    assert len(images) == page.tags.count("img") == 3
    for link in page.links:
        assert link.startswith("data:image/") or (written / link).is_file()
    assert f"{inspection.mean('noise', 'distance'):.4f}" in page.text


def test_without_negatives_older_distances_go(written: Path, photos: list[Photo]) -> None:
    found = inspect_model(cpl.create_model("cplir-tiny", top_k=None), photos, {"noise": "noise"})
    write_report(found, Usage.of(found.images), written, dense=True)
    assert sorted(os.listdir(written)) == sorted(name for name in FILES if not name.startswith("distances"))
    assert "too few wrong ones" in (written / "index.html").read_text()


def test_a_full_disk_leaves_what_was_there(
    written: Path, inspection: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (written / name).read_bytes() for name in FILES}

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(inspection, Usage.of(inspection.images), written, dense=False)
    assert {name: (written / name).read_bytes() for name in os.listdir(written)} == before

"""Folders and pairs on disk: what belongs together, what is missing, what is damaged."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cpl.data import DataError, ImageFolder, PairedDataset, PairingRule, SyntheticDataset
from cpl.data.files import list_images, pair_files
from cpl.errors import CplError

from .conftest import Write


def test_a_folder_of_images(write: Write, tmp_path: Path) -> None:
    write("b.png", seed=1)
    write("a.jpg", seed=2)
    write("sub/c.png", seed=3)
    write(".hidden.png")
    (tmp_path / "notes.txt").write_text("no image")
    folder = ImageFolder(tmp_path)
    assert [photo.name for photo in folder] == ["a", "b"]
    assert len(ImageFolder(tmp_path, recursive=True)) == 3
    assert ImageFolder(tmp_path, recursive=True)[2].name == "sub/c"
    assert folder[1].image.shape == (40, 50, 3)
    assert [photo.name for photo in folder[1:]] == ["b"]
    assert len(ImageFolder([tmp_path, tmp_path / "sub"])) == 3
    item = SyntheticDataset(pickle.loads(pickle.dumps(folder)), {"noise": "noise"}, crop=16)[0]
    assert (item["name"], item["degraded"].shape) == ("a", (3, 16, 16))


def test_16_bit_and_grey_become_rgb(write: Write, tmp_path: Path) -> None:
    deep, grey = write("deep.png", mode="I;16"), write("grey.png", mode="L")
    for path in (deep, grey):
        image = ImageFolder(tmp_path)[[deep, grey].index(path)].image
        assert image.shape == (40, 50, 3)
        assert image.dtype == np.float32
        assert image.max() <= 1
        assert image.std() > 0.2  # 16 bits are not squeezed into the lowest 8
        assert np.array_equal(image[..., 0], image[..., 2])


def test_missing_and_empty_folders(tmp_path: Path, write: Write) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a\.png: is a file, not a folder"):
        list_images(write("a.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image file .*recursive: true"):
        ImageFolder(tmp_path / "empty")
    with pytest.raises(ValueError, match="at least one folder"):
        ImageFolder([])


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_a_damaged_file_is_named(
    kind: str, write: Write, tmp_path: Path, damage: dict[str, Callable[[Path], None]]
) -> None:
    for suffix in ("png", "jpg"):
        path = write(f"{suffix}/bad.{suffix}")
        damage[kind](path)
        data = SyntheticDataset(ImageFolder(path.parent), {"noise": "noise"}, crop=16)
        with pytest.raises(CplError, match=re.escape(str(path))):
            data[0]


def test_a_file_that_vanished_is_named(write: Write, tmp_path: Path) -> None:
    path = write("a.png")
    folder = ImageFolder(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png: No such file"):
        folder[0]


PAIRS = {  # pairing: (inputs, targets, input -> target)
    "stem": (["in/a.png", "in/b.jpg"], ["gt/a.jpg", "gt/b.png", "gt/unused.png"], {"a": "a", "b": "b"}),
    "rain100l": (["in/rain-001.png"], ["gt/norain-001.png"], {"rain-001": "norain-001"}),
    "reside": (
        ["in/0001_0.95_0.1.jpg", "in/0001_0.8_0.2.jpg", "in/0002_1_0.2.jpg"],
        ["gt/0001.jpg", "gt/0002.png"],
        {"0001_0.95_0.1": "0001", "0001_0.8_0.2": "0001", "0002_1_0.2": "0002"},
    ),
    "outdoor_rain": (["in/im_0001_s80_a04.png"], ["gt/im_0001.png"], {"im_0001_s80_a04": "im_0001"}),
    "raindrop": (["in/0_rain.png"], ["gt/0_clean.png"], {"0_rain": "0_clean"}),
}


@pytest.mark.parametrize("pairing", PAIRS)
def test_pairings(pairing: str, write: Write, tmp_path: Path) -> None:
    inputs, targets, expected = PAIRS[pairing]
    for name in (*inputs, *targets):
        write(name)
    pairs = pair_files(tmp_path / "in", tmp_path / "gt", pairing)
    assert {name: target.stem for name, _, target in pairs} == expected


def test_reside_names_with_dots_lose_only_the_extension(write: Write, tmp_path: Path) -> None:
    write("in/0001_0.95_0.1.jpg")
    assert list_images(tmp_path / "in")[0].stem == "0001_0.95_0.1"


def test_one_folder_for_both_sides(write: Write, tmp_path: Path) -> None:
    for name in ("rain-1.png", "norain-1.png", "rain-2.png", "norain-2.png"):
        write(name)
    pairs = pair_files(tmp_path, tmp_path, "rain100l")
    assert [(n, t.stem) for n, _, t in pairs] == [("rain-1", "norain-1"), ("rain-2", "norain-2")]


def test_gopro_keeps_scenes_apart(write: Write, tmp_path: Path) -> None:
    for scene in ("one", "two"):
        for kind in ("blur", "sharp", "blur_gamma"):
            write(f"{scene}/{kind}/0001.png")
    pairs = pair_files(tmp_path, tmp_path, "gopro", recursive=True)
    assert [name for name, _, _ in pairs] == ["one/blur/0001", "two/blur/0001"]
    assert [t.relative_to(tmp_path).as_posix() for _, _, t in pairs] == [
        "one/sharp/0001.png", "two/sharp/0001.png",
    ]  # fmt: skip


def test_a_rule_of_ones_own(write: Write, tmp_path: Path) -> None:
    write("in/x_noisy.png")
    write("gt/clean-x.png")
    rule = PairingRule(pattern=r"(.+)_noisy", target=r"clean-\1")
    assert pair_files(tmp_path / "in", tmp_path / "gt", rule)[0][2].name == "clean-x.png"


def test_pairing_errors_name_the_files(write: Write, tmp_path: Path) -> None:
    write("in/a.png")
    write("in/b.png")
    write("in/c.png")
    write("gt/a.png")
    with pytest.raises(DataError, match=r"no target for .*in/b\.png \(looked for .*gt/b\.\*\) and 1 more"):
        pair_files(tmp_path / "in", tmp_path / "gt")
    write("gt/a.jpg")
    with pytest.raises(DataError, match=r"in/a\.png: two targets, .*a\.jpg and .*a\.png; remove one"):
        pair_files(tmp_path / "in", tmp_path / "gt")
    with pytest.raises(DataError, match=r"in/a\.png and 2 more: not named as .*rain-.*another pairing"):
        pair_files(tmp_path / "in", tmp_path / "gt", "rain100l")
    with pytest.raises(DataError, match=r"in: no file is named as"):
        pair_files(tmp_path / "in", tmp_path / "in", "rain100l")
    with pytest.raises(ValueError, match="one of stem, rain100l, .*got 'stems'"):
        pair_files(tmp_path / "in", tmp_path / "gt", "stems")


def test_both_sides_get_the_same_window(write: Write, tmp_path: Path) -> None:
    """Pairs of equal content: whatever is cut and turned must stay equal."""
    for seed in range(3):
        write(f"in/{seed}.png", seed=seed)
        write(f"gt/{seed}.png", seed=seed)
    data = PairedDataset(tmp_path / "in", tmp_path / "gt", task="rain", crop=16, seed=3)
    assert data.tasks == ["rain"]
    targets = set()
    for i in range(12):
        item = data[i]
        assert item["degraded"].shape == (3, 16, 16)
        assert torch.equal(item["degraded"], item["target"])
        assert torch.equal(item["target"], pickle.loads(pickle.dumps(data))[i]["target"])
        assert item["name"] == str(i % 3)
        targets.add(item["target"].numpy().tobytes())
    assert len(targets) == 12


def test_small_pairs_are_mirrored(write: Write, tmp_path: Path) -> None:
    write("in/a.png", 10, 12)
    write("gt/a.png", 10, 12)
    item = PairedDataset(tmp_path / "in", tmp_path / "gt", crop=32)[0]
    assert item["degraded"].shape == item["target"].shape == (3, 32, 32)


def test_a_pair_of_two_sizes_is_refused(write: Write, tmp_path: Path) -> None:
    write("in/a.png", 10, 12)
    write("gt/a.png", 10, 13)
    with pytest.raises(DataError, match=r"in/a\.png is 12x10 and .*gt/a\.png is 13x10"):
        PairedDataset(tmp_path / "in", tmp_path / "gt", crop=8)[0]

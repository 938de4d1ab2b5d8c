"""Datasets: stateless, balanced, cropped and turned the same way on both sides."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cpl.data import MixedDataset, SyntheticDataset
from cpl.data.crops import augment, centre_window, cut, degrade_window, random_window, undo_augment
from cpl.data.seeding import derive, generator
from cpl.degradations import create

TASKS = {"noise": "noise:sigma=25", "blur": "blur", "dark_haze": "low_light+haze"}


def pictures(count: int = 4, height: int = 60, width: int = 70) -> list[np.ndarray]:
    return [np.random.default_rng(i).random((height, width, 3), dtype=np.float32) for i in range(count)]


def dataset(**changes: Any) -> SyntheticDataset:
    return SyntheticDataset(**{"images": pictures(), "degradations": TASKS, "crop": 24, "seed": 5, **changes})


def same(first: Any, second: Any) -> bool:
    return (
        torch.equal(first["degraded"], second["degraded"])
        and torch.equal(first["target"], second["target"])
        and (first["task"], first["name"]) == (second["task"], second["name"])
    )


def test_item() -> None:
    item = dataset()[0]
    assert set(item) == {"degraded", "target", "task", "name"}
    for image in (item["degraded"], item["target"]):
        assert image.shape == (3, 24, 24)
        assert image.dtype == torch.float32
        assert image.is_contiguous()
        assert 0 <= image.min() <= image.max() <= 1
    assert item["name"] == "image0000"
    assert dataset().tasks == ["noise", "blur", "dark_haze"]


def test_an_item_depends_on_seed_and_index_alone() -> None:
    one, other = dataset(), dataset()
    order = [7, 0, 30, 7, 11]
    first = {i: one[i] for i in order}
    for i in sorted(order):
        assert same(first[i], other[i])
    assert same(first[7], pickle.loads(pickle.dumps(one))[7])
    assert not same(first[7], dataset(seed=6)[7])


def test_workers_make_the_same_items() -> None:
    data = dataset()
    batches = list(DataLoader(data, batch_size=4, sampler=range(24), num_workers=2))
    assert len(batches) == 6
    for i in range(24):
        assert torch.equal(batches[i // 4]["degraded"][i % 4], data[i]["degraded"])


def test_the_next_epoch_shows_the_same_images_with_new_draws() -> None:
    data = dataset()
    for i in range(len(data)):
        now, later = data[i], data[i + len(data)]
        assert (now["name"], now["task"]) == (later["name"], later["task"])
        assert not torch.equal(now["degraded"], later["degraded"])


def test_iterating_is_one_epoch() -> None:
    assert len(list(dataset())) == len(dataset()) == 4 * 3


def test_an_epoch_is_balanced_throughout() -> None:
    data = dataset()
    items = [data[i] for i in range(len(data))]
    assert len({(item["name"], item["task"]) for item in items}) == 12
    for start in range(0, 12, 3):
        assert {item["task"] for item in items[start : start + 3]} == {0, 1, 2}


def test_repeats_weigh_tasks() -> None:
    data = dataset(repeats={"blur": 4})
    tasks = [data[i]["task"] for i in range(len(data))]
    assert Counter(tasks) == {0: 4, 1: 16, 2: 4}
    assert all(1 in tasks[i : i + 3] for i in range(len(tasks) - 2))  # spread out, not in a heap
    assert len(dataset(repeats=3)) == 36


def test_negative_index_and_other_kinds() -> None:
    with pytest.raises(IndexError, match="start at 0, got -1"):
        dataset()[-1]
    with pytest.raises(TypeError):
        dataset()["0"]
    assert same(dataset()[np.int64(3)], dataset()[3])  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": []}, "images is empty"),
        ({"degradations": {}}, "degradations is empty"),
        ({"degradations": {"noise": "nois"}}, "did you mean noise"),
        ({"crop": 0}, "at least 1, or None for whole images; got 0"),
        ({"crop": 1.5}, "got 1.5"),
        ({"repeats": {"rain": 2}}, "repeats names rain; the tasks are noise, blur, dark_haze"),
        ({"repeats": 0}, "at least 1; got 0"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataset(**changes)


def test_8_bit_arrays_are_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match="divide 8-bit values by 255"):
        dataset(images=[np.zeros((30, 30, 3), np.uint8)])[0]


@pytest.mark.parametrize("size", [(1, 1), (5, 100), (100, 5), (24, 24), (23, 24)])
def test_images_smaller_than_the_crop_are_mirrored(size: tuple[int, int]) -> None:
    data = dataset(images=pictures(1, *size), augment=False, degradations={"nothing": "noise:sigma=0"})
    target = data[0]["target"].numpy().transpose(1, 2, 0)
    assert target.shape == (24, 24, 3)
    rows, columns = (min(24, n) for n in size)
    if size[0] <= 24 and size[1] <= 24:
        assert np.array_equal(target[:rows, :columns], data.images[0])
    if size == (23, 24):
        assert np.array_equal(target[23], target[21])


def test_whole_images() -> None:
    assert dataset(crop=None, augment=False)[0]["target"].shape == (3, 60, 70)


def test_both_sides_are_turned_alike_and_the_target_is_a_piece_of_the_image() -> None:
    """With nothing degraded both sides are equal, and turning back finds the window in the image."""
    image = pictures(1, 40, 50)[0]
    data = dataset(images=[image], degradations={"nothing": "noise:sigma=0"})
    windows = np.lib.stride_tricks.sliding_window_view(image, (24, 24), axis=(0, 1))
    seen = set()
    for i in range(40):
        item = data[i]
        assert torch.equal(item["degraded"], item["target"])
        target = item["target"].numpy().transpose(1, 2, 0)
        for transform in range(8):
            candidate = undo_augment(target, transform)
            if (windows == candidate.transpose(2, 0, 1)).all(axis=(2, 3, 4)).any():
                seen.add(transform)
                break
        else:
            pytest.fail("the target is no window of the image")
    assert seen == set(range(8))  # every symmetry occurs


def test_augmentation_has_eight_different_invertible_forms() -> None:
    image = pictures(1, 5, 7)[0]
    forms = [augment(image, transform) for transform in range(8)]
    assert np.array_equal(forms[0], image)
    for transform, form in enumerate(forms):
        assert np.array_equal(undo_augment(form, transform), image)
    assert len({form.tobytes() + bytes(form.shape) for form in forms}) == 8


def test_windows() -> None:
    image = np.zeros((10, 20, 3), np.float32)
    windows = {random_window(image, 8, np.random.default_rng(s)) for s in range(200)}
    assert {w[0] for w in windows} == set(range(3))
    assert {w[1] for w in windows} == set(range(13))  # the last possible positions too
    assert random_window(image, None, np.random.default_rng(0)) == (0, 0, 10, 20)
    assert centre_window(image, 8) == (1, 6, 8, 8)
    assert centre_window(image, 15) == (0, 2, 10, 15)


@pytest.mark.parametrize("margin", [0, 3, 30])
def test_cut_mirrors_only_beyond_the_image(margin: int) -> None:
    image = pictures(1, 20, 30)[0]
    window = (2, 15, 10, 12)
    piece = cut(image, window, margin)
    assert piece.shape == (10 + 2 * margin, 12 + 2 * margin, 3)
    inner = slice(margin, -margin or None)
    assert np.array_equal(piece[inner, inner], image[2:12, 15:27])
    if margin == 3:
        assert np.array_equal(piece[1:, 3:-3], image[0:15, 15:27])  # one row lacks above
        assert np.array_equal(piece[0], piece[2])


def test_a_crop_is_blurred_as_the_whole_image_is() -> None:
    image, blur = pictures(1, 60, 70)[0], create("motion_blur:length=9,angle=30,bend=0")
    window = (20, 25, 16, 16)
    degraded, target = degrade_window(image, window, blur, np.random.default_rng(0))
    whole = blur(image, np.random.default_rng(0))
    np.testing.assert_allclose(degraded, whole[20:36, 25:41], atol=1e-6)
    assert np.array_equal(target, image[20:36, 25:41])


def test_mixing_joins_tasks_and_repeats() -> None:
    first = dataset(degradations={"noise": "noise", "rain": "rain"}, images=pictures(2))
    second = dataset(degradations={"haze": "haze", "noise": "noise"}, images=pictures(3))
    mixed = MixedDataset([first, second], [1, 5])
    assert mixed.tasks == ["noise", "rain", "haze"]
    assert len(mixed) == 4 + 5 * 6
    items = list(mixed)
    assert Counter(mixed.tasks[i["task"]] for i in items) == {"noise": 2 + 15, "rain": 2, "haze": 15}
    # The five visits to one image differ, and so does the next epoch.
    hazy = [i["degraded"] for i in items if i["name"] == "image0000" and i["task"] == 2]
    hazy += [mixed[len(mixed) + 4]["degraded"]]
    assert len({image.numpy().tobytes() for image in hazy}) == 6
    assert same(mixed[4], {**second[0], "task": 2})
    assert same(mixed[len(mixed) + 4], {**second[30], "task": 2})


def test_bad_mixtures() -> None:
    with pytest.raises(ValueError, match="datasets is empty"):
        MixedDataset([])
    with pytest.raises(ValueError, match="1 datasets but 2 repeats"):
        MixedDataset([dataset()], [1, 2])
    with pytest.raises(ValueError, match="at least 1; got 0"):
        MixedDataset([dataset()], [0])


def test_generators_depend_on_the_whole_key() -> None:
    keys = [(0, "a"), (0, "b"), (1, "a"), ("0", "a"), (0, "a", 0), (0,), ("a", 0)]
    draws = {generator(*key).integers(2**63) for key in keys}
    assert len(draws) == len(keys)
    assert generator(np.int64(0), "a").random() == generator(0, "a").random()
    seeds = {derive(0, "source", i) for i in range(1000)}
    assert len(seeds) == 1000
    assert 0 <= min(seeds) < max(seeds) < 2**63

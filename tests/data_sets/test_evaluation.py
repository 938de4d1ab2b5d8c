"""Fixed cases: the same every time, whatever else is measured with them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from cpl.data import (
    Cases,
    DataConfig,
    Photo,
    ValidationConfig,
    build_cases,
    build_dataset,
    bundled_photos,
    evaluation_cases,
)

from .conftest import Write

TASKS = {"noise": "noise", "rain": "rain"}
BUNDLED = {"kind": "bundled", "split": "test", "degradations": TASKS}


def equal(first: dict, second: dict) -> bool:
    return all(np.array_equal(first[key], second[key]) for key in ("task", "name", "degraded", "target"))


def test_cases() -> None:
    photos = bundled_photos("test")
    cases = evaluation_cases(photos, TASKS, seed=1)
    assert isinstance(cases, list)
    assert [(c["task"], c["name"]) for c in cases] == [
        ("noise", "coffee"), ("noise", "flower"), ("rain", "coffee"), ("rain", "flower"),
    ]  # fmt: skip
    for case, photo in zip(cases, photos * 2, strict=True):
        assert case["degraded"].dtype == case["target"].dtype == np.float32
        assert np.array_equal(case["target"], photo.image)
        assert case["degraded"].shape == photo.image.shape
        assert not np.array_equal(case["degraded"], photo.image)


def test_a_case_depends_on_seed_task_and_name_alone() -> None:
    photos = bundled_photos("test")
    cases = evaluation_cases(photos, TASKS, seed=1, crop=32)
    alone = evaluation_cases(photos[1:], {"rain": "rain"}, seed=1, crop=32)[0]
    assert equal(alone, cases[3])
    other = evaluation_cases(photos[1:], {"rain": "rain"}, seed=2, crop=32)[0]
    assert np.array_equal(other["target"], alone["target"])
    assert not np.array_equal(other["degraded"], alone["degraded"])
    # One picture under two names: its noise is not the same. Nor is it under two tasks.
    twins = [Photo(name, photos[0].image, "", "") for name in ("one", "two")]
    noisy = evaluation_cases(twins, {"a": "noise", "b": "noise"}, seed=1, crop=32)
    assert len({case["degraded"].tobytes() for case in noisy}) == 4


def test_the_crop_is_the_middle() -> None:
    photo = bundled_photos("test")[0]
    case = evaluation_cases([photo], {"noise": "noise:sigma=0"}, seed=0, crop=100)[0]
    assert np.array_equal(case["target"], photo.image[150:250, 250:350])
    assert np.array_equal(case["degraded"], case["target"])
    big = evaluation_cases([photo], {"noise": "noise"}, seed=0, crop=450)[0]
    assert big["target"].shape == (400, 450, 3)


def test_cases_are_a_sequence_that_keeps_little() -> None:
    made = []

    def maker(number: int) -> dict:
        made.append(number)
        image = np.full((10, 10, 3), number / 10, np.float32)
        return {"task": "t", "name": str(number), "degraded": image, "target": image}

    from functools import partial

    cases = Cases([partial(maker, n) for n in range(3)], keep=2 * 2 * 1200)
    assert len(cases) == 3
    assert [c["name"] for c in cases] == [c["name"] for c in cases] == ["0", "1", "2"]
    assert made == [0, 1, 2, 2]  # two fit and are kept, the third is made again
    assert cases[-1]["name"] == "2"
    assert [c["name"] for c in cases[1:]] == ["1", "2"]
    with pytest.raises(IndexError):
        cases[3]


def test_build_cases_bundled() -> None:
    config = ValidationConfig(sources=[BUNDLED], crop=32, limit=1)  # type: ignore[list-item]
    cases = build_cases(config, seed=1)
    assert [(c["task"], c["name"]) for c in cases] == [("noise", "coffee"), ("rain", "coffee")]
    assert equal(cases[0], evaluation_cases(bundled_photos("test"), TASKS, seed=1, crop=32)[0])
    assert equal(cases[1], pickle.loads(pickle.dumps(cases))[1])


def test_build_from_folders_and_pairs(write: Write, tmp_path: Path) -> None:
    for n in range(4):
        write(f"clean/{n}.png", seed=n)
        write(f"rain/in/{n}.png", seed=n)
        write(f"rain/gt/{n}.png", seed=n + 10)
    sources = [
        {
            "kind": "folder",
            "paths": ["clean"],
            "degradations": {"n15": "noise:sigma=15", "n50": "noise:sigma=50"},
        },
        {"kind": "paired", "task": "rain", "input": "rain/in", "target": "rain/gt", "repeats": 3},
    ]
    config = DataConfig.model_validate(
        {
            "root": tmp_path,
            "crop": 16,
            "sources": sources,
            "validation": {"sources": sources, "limit": 2, "crop": 20},
        }
    )
    data = build_dataset(config, seed=0)
    assert data.tasks == config.tasks == ["n15", "n50", "rain"]
    assert len(data) == 4 * 2 + 4 * 3
    assert [data.tasks[data[i]["task"]] for i in (0, 1, 8, 19)] == ["n15", "n50", "rain", "rain"]
    assert data[8]["target"].shape == (3, 16, 16)
    assert config.validation is not None
    cases = build_cases(config.validation, seed=0)
    assert [(c["task"], c["name"]) for c in cases] == [
        (task, name) for task in ("n15", "n50", "rain") for name in ("0", "2")  # spread over the four
    ]  # fmt: skip
    assert {c["target"].shape for c in cases} == {(20, 20, 3)}
    # Two sources of the same images do not share their draws.
    twice = DataConfig.model_validate({"root": tmp_path, "crop": 16, "sources": [sources[0], sources[0]]})
    one, two = build_dataset(twice, seed=0).datasets
    assert not np.array_equal(one[0]["degraded"], two[0]["degraded"])

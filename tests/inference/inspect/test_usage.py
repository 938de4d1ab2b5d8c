"""The table of prompt usage: what it says, what it tells of a photo, which files are taken for one."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cpl
from cpl.errors import CplError
from cpl.inference.inspect import Inspected, Inspection, Usage, read_usage, router_fingerprint
from cpl.inference.inspect import usage as usages
from cpl.inference.routing import Choice
from cpl.models.restorer import Restorer


def image(task: str, name: str, *shares: tuple[float, ...]) -> Inspected:
    """One whose three levels have these shares (the last for those that are left)."""
    levels = [shares[min(i, len(shares) - 1)] for i in range(3)]
    choices = []
    for level, row in enumerate(levels, start=1):
        best = max(range(len(row)), key=row.__getitem__)
        choices.append(Choice(level, row, (best,), (row[best],)))
    return Inspected(task, name, tuple(choices), 20.0, 25.0)


SHARP = [
    image("noise", "a", (0.9, 0.1)),
    image("noise", "b", (0.7, 0.3)),
    image("rain", "a", (0.2, 0.8)),
    image("rain", "b", (0.6, 0.4), (0.1, 0.9)),
]


def test_shares_and_choices_are_means_over_photos() -> None:
    usage = Usage.of(SHARP)
    assert usage.tasks["noise"][1].shares == pytest.approx((0.8, 0.2))
    assert usage.tasks["noise"][1].chosen == (1, 0)
    assert usage.tasks["rain"][1].shares == pytest.approx((0.4, 0.6))
    assert usage.tasks["rain"][1].chosen == (0.5, 0.5)
    assert usage.tasks["rain"][3].shares == pytest.approx((0.15, 0.85))


def test_information_is_of_the_first_choice_and_leaves_clean_photos_out() -> None:
    many = [
        image(task, f"{task}{n}", row)
        for n in range(50)
        for task, row in (("noise", (0.9, 0.1)), ("rain", (0.2, 0.8)))
    ]
    others = [image("clean", f"clean{n}", (0.9, 0.1)) for n in range(50)]
    found = Usage.of([*many, *others]).information
    assert found == {level: pytest.approx(1, abs=0.02) for level in (1, 2, 3)}
    mixed = [image("noise", "a", (0.9, 0.1), (0.5, 0.4)), *many[1:]]
    assert Usage.of(mixed).information == found  # whatever the shares, the first prompt is chosen
    assert Usage.of(SHARP[:2]).information == {1: None, 2: None, 3: None}  # one degradation: nothing to tell


def test_information_needs_one_prompt_an_image() -> None:
    def two(task: str) -> Inspected:
        return Inspected(
            task, "a", tuple(Choice(n, (0.6, 0.4), (0, 1), (0.6, 0.4)) for n in (1, 2, 3)), 20.0, 25.0
        )

    assert Usage.of([two("noise"), two("rain")]).information == {1: None, 2: None, 3: None}


def test_spread_is_within_degradations() -> None:
    spread = Usage.of(SHARP).spread
    # noise 0.9 and 0.7, rain 0.2 and 0.6: squares 2 * 0.1^2 + 2 * 0.2^2 over 4 - 2 degrees of freedom
    assert spread[1] == pytest.approx((math.sqrt(0.05),) * 2)
    assert spread[3] == pytest.approx((math.sqrt((2 * 0.1**2 + 2 * 0.05**2) / 2),) * 2)
    assert Usage.of(SHARP[:1]).spread[2] == (0, 0)


def test_likeness_is_by_distance_in_spreads() -> None:
    usage = Usage.of(SHARP)
    likely = usage.likely(image("?", "c", (0.6, 0.4)).choices)
    scores = {}
    for task, means in (("noise", (0.8, 0.8, 0.8)), ("rain", (0.4, 0.15, 0.15))):
        squares = [((0.6 - m) / usage.spread[level][0]) ** 2 for level, m in enumerate(means, start=1)]
        scores[task] = math.exp(-0.5 * sum(squares))
    assert likely.likeness["noise"] == pytest.approx(scores["noise"] / sum(scores.values()))
    assert sum(likely.likeness.values()) == pytest.approx(1)
    assert (likely.decided, likely.tasks) == (True, ["noise"])
    assert list(likely.likeness) == ["noise", "rain"]
    assert usage.likely(image("?", "c", (0.0, 1.0)).choices).tasks == ["rain"]


def test_what_cannot_be_told_apart_is_not_decided() -> None:
    same = [
        image("noise", "a", (0.4, 0.6)),
        image("noise", "b", (0.6, 0.4)),
        image("rain", "a", (0.401, 0.599)),
        image("rain", "b", (0.6, 0.4)),
        image("haze", "a", (0.0, 1.0)),
        image("haze", "b", (0.1, 0.9)),
    ]
    likely = Usage.of(same).likely(image("?", "c", (0.5, 0.5)).choices)
    assert not likely.decided
    assert sorted(likely.tasks) == ["noise", "rain"]


def test_a_far_photo_is_no_division_by_zero() -> None:
    usage = Usage.of([image("noise", "a", (1.0, 0.0)), image("rain", "a", (0.999, 0.001))])
    likely = usage.likely(image("?", "c", (0.0, 1.0)).choices)
    assert likely.likeness["rain"] == pytest.approx(1)
    assert usage.likely(image("?", "c", (1.0, 0.0)).choices).tasks == ["noise"]


def test_photos_are_judged_by_the_others() -> None:
    usage = Usage.of([*SHARP, image("noise", "c", (0.8, 0.2)), image("rain", "c", (0.3, 0.7))])
    assert (usage.right, usage.judged) == (6, 6)
    # Photo c's rain lies halfway. The other photos' middle (0.5) says noise, the middle with itself (0.54) rain.
    shares = {"noise": (0.9, 0.8, 0.7), "rain": (0.1, 0.2, 0.52)}
    odd = [
        image(task, name, (share, 1 - share))
        for task, row in shares.items()
        for name, share in zip("abc", row, strict=True)
    ]
    assert Usage.of(odd).likely(odd[-1].choices).tasks == ["rain"]
    usage = Usage.of(odd)
    assert (usage.right, usage.judged) == (5, 6)
    alone = Usage.of([SHARP[0], SHARP[2]])
    assert (alone.right, alone.judged) == (0, 0)


def some_images(photos: int, seed: int) -> list[Inspected]:
    """Of tasks that not all photos have, one of which a single photo has, and one photo twice."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(photos):
        for task, sharp in (("noise", 4.0), ("rain", 2.0), ("haze", 2.0), ("alone", 1.0)):
            if (task == "alone" and n != 1) or (task == "haze" and n % 2):
                continue
            for _ in range(2 if n == 2 else 1):
                rows = rng.dirichlet([sharp, 1, 1 + (task == "rain")], 3)
                found.append(image(task, f"p{n}", *map(tuple, rows.tolist())))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_usage_of_the_others_is_as_if_the_photo_were_not_there(seed: int) -> None:
    images = some_images(5, seed)
    usage = Usage.of(images)
    right = 0
    for own, others in usages._each_and_others(images, usage):
        rest = [image for image in images if image.name != own[0].name]
        assert own == [image for image in images if image.name == own[0].name]
        direct = Usage.of([dataclasses.replace(image, name="one") for image in rest])
        assert set(others.tasks) == set(direct.tasks)
        for level in (1, 2, 3):
            assert others.spread[level] == pytest.approx(direct.spread[level], rel=1e-12)
            for task in direct.tasks:
                shares = direct.tasks[task][level].shares
                assert others.tasks[task][level].shares == pytest.approx(shares, rel=1e-12)
        for one in own:
            likely = direct.likely(one.choices)
            right += likely.decided and likely.tasks == [one.task]
    assert (usage.right, usage.judged) == (right, len(images))


def test_the_usage_is_tabulated_once_for_all_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    tabulate = usages._tabulate

    def counted(images: Any) -> Any:
        calls.append(len(images))
        return tabulate(images)

    monkeypatch.setattr(usages, "_tabulate", counted)
    images = some_images(20, 0)
    assert Usage.of(images).judged == len(images)
    assert calls == [len(images)]  # not once more for each photo, which is quadratic


def test_photos_with_the_same_shares_have_no_spread() -> None:
    for outlier in np.linspace(0.05, 0.6, 12).tolist():
        rows = [(outlier, 0.1, 0.9 - outlier), *[(1 / 3, 0.1, 0.9 - 1 / 3)] * 6]
        images = [image(task, f"p{n}", row) for task in ("noise", "rain") for n, row in enumerate(rows)]
        own, others = next(iter(usages._each_and_others(images, Usage.of(images))))
        assert own[0].choices[0].shares == rows[0]
        # No square root of what rounding leaves below zero.
        assert all(0 <= spread < 1e-6 for spread in others.spread[1])


def test_a_table_is_written_and_read(inspection: Inspection, network: Restorer, tmp_path: Path) -> None:
    usage = Usage.of(inspection.images, router_fingerprint(network))
    usage.info = {"step": 7}
    usage.save(tmp_path / "usage.json")
    assert read_usage(tmp_path / "usage.json", network) == usage
    assert sum(usage.tasks["noise"][2].shares) == pytest.approx(1)
    assert sum(usage.tasks["noise"][2].chosen) == pytest.approx(1)  # one prompt a photo


def test_a_table_is_of_one_model(network: Restorer, inspection: Inspection, tmp_path: Path) -> None:
    Usage.of(inspection.images, router_fingerprint(network)).save(tmp_path / "usage.json")
    torch.manual_seed(1)
    with pytest.raises(CplError, match="another model"):
        read_usage(tmp_path / "usage.json", cpl.create_model("cplir-tiny"))
    torch.manual_seed(0)
    assert read_usage(tmp_path / "usage.json", cpl.create_model("cplir-tiny"))  # the same weights
    torch.manual_seed(0)
    with pytest.raises(CplError, match="another model"):  # the same weights, used otherwise
        read_usage(tmp_path / "usage.json", cpl.create_model("cplir-tiny", top_k=2))


def change(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: {**data, **values}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: [], "not a table"),
        (change(format="x"), "not a table"),
        (change(format_version=2), "format 2"),
        (change(tasks={}), "damaged"),
        (change(tasks=[1]), "damaged"),
        (change(tasks={"noise": {"level1": {"chosen": [1], "shares": [1]}}}), "damaged"),
        (change(tasks={"n": {f"level{i}": {"chosen": [1], "shares": [-1]} for i in (1, 2, 3)}}), "damaged"),
        (change(tasks={"n": {f"level{i}": {"chosen": [1], "shares": [1, 0]} for i in (1, 2, 3)}}), "damaged"),
        (
            change(tasks={"n": {f"level{i}": {"chosen": [0] * i, "shares": [0] * i} for i in (1, 2, 3)}}),
            "damaged",
        ),
        (change(named_rightly=None), "damaged"),
        (change(spread={f"level{i}": [0.1] for i in (1, 2, 3)}), "damaged"),
        (change(spread={f"level{i}": [-1.0] * 5 for i in (1, 2, 3)}), "damaged"),
    ],
)
def test_what_is_no_table_is_refused(
    inspection: Inspection, tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], words: str
) -> None:
    path = tmp_path / "usage.json"
    path.write_text(json.dumps(spoil(Usage.of(inspection.images).to_dict())))
    with pytest.raises(CplError, match=f"{path}: .*{words}.*cpl inspect"):
        read_usage(path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "usage.json"
    with pytest.raises(CplError, match="no such file.*cpl inspect"):
        read_usage(path)
    for content in (b"\xff\xfe", b"{", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(CplError, match="not JSON"):
            read_usage(path)

"""The table of prompt usage: what it says, what it tells of a photo, which files are taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cpl
from cpl.errors import CplError
from cpl.inference.inspect import Inspected, Inspection, Usage, read_usage, router_fingerprint
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


def test_agreement_is_the_overlap_of_shares() -> None:
    likely = Usage.of(SHARP).likely(image("?", "c", (1.0, 0.0)).choices)
    assert likely.agreement["noise"] == pytest.approx(0.8)
    assert likely.agreement["rain"] == pytest.approx((0.4 + 0.15 + 0.15) / 3)
    assert (likely.decided, likely.tasks) == (True, ["noise"])
    assert list(likely.agreement) == ["noise", "rain"]
    other = Usage.of(SHARP).likely(image("?", "c", (0.0, 1.0)).choices)
    assert other.tasks == ["rain"]


def test_what_cannot_be_told_apart_is_not_decided() -> None:
    same = [image("noise", "a", (0.5, 0.5)), image("rain", "a", (0.49, 0.51)), image("haze", "a", (0.0, 1.0))]
    likely = Usage.of(same).likely(image("?", "c", (0.5, 0.5)).choices)
    assert not likely.decided
    assert likely.tasks == ["noise", "rain"]


def test_photos_are_judged_by_the_others() -> None:
    usage = Usage.of(SHARP)
    assert (usage.right, usage.judged) == (4, 4)
    # Photo b's rain looks like noise. With a photo's own usage among that it is judged by, 3 would be right.
    odd = [
        image("noise", "a", (0.9, 0.1)),
        image("noise", "b", (0.8, 0.2)),
        image("rain", "a", (0.1, 0.9)),
        image("rain", "b", (0.9, 0.1)),
    ]
    usage = Usage.of(odd)
    assert (usage.right, usage.judged) == (1, 4)
    alone = Usage.of([SHARP[0], SHARP[2]])
    assert (alone.right, alone.judged) == (0, 0)


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

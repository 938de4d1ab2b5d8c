"""The data section: what is accepted, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cpl.data import PAIRINGS, DataConfig, PairingRule
from cpl.data.config import resolve

BUNDLED = {"kind": "bundled", "degradations": {"noise": "noise:sigma=25", "rain": {"name": "rain"}}}


def test_defaults() -> None:
    config = DataConfig.model_validate({"sources": [BUNDLED]})
    assert (config.crop, config.augment, config.validation) == (128, True, None)
    assert config.tasks == ["noise", "rain"]


def test_it_survives_a_round_trip() -> None:
    sources: list[dict[str, Any]] = [
        BUNDLED,
        {"kind": "folder", "paths": ["a", "/b"], "degradations": {"haze": "haze"}, "repeats": {"haze": 3}},
        {"kind": "paired", "task": "rain", "input": "i", "target": "t", "pairing": "rain100l", "count": 200},
        {
            "kind": "paired",
            "task": "x",
            "input": "i",
            "target": "t",
            "pairing": {"pattern": "a(.+)", "target": r"b\1"},
        },
    ]
    config = DataConfig.model_validate(
        {"root": "/data", "sources": sources, "validation": {"sources": sources[:1]}}
    )
    assert config.tasks == ["noise", "rain", "haze", "x"]
    assert config.validation is not None
    assert config.validation.root == Path("/data")
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources": []}, "at least 1"),
        ({"sources": [{"kind": "web"}]}, "'bundled', 'folder', 'paired'"),
        ({"sources": [BUNDLED], "crops": 3}, "Extra inputs are not permitted"),
        ({"sources": [{**BUNDLED, "split": "validation"}]}, "'train', 'test' or 'all'"),
        ({"sources": [{**BUNDLED, "degradations": {}}]}, "at least 1"),
        (
            {"sources": [{**BUNDLED, "degradations": {"n": "nois"}}]},
            "task 'n': no degradation 'nois'.*mean noise",
        ),
        ({"sources": [{**BUNDLED, "degradations": {"a b": "noise"}}]}, "match pattern"),
        ({"sources": [{**BUNDLED, "repeats": {"haze": 2}}]}, "repeats names haze.*it defines noise, rain"),
        ({"sources": [{**BUNDLED, "repeats": 0}]}, "greater than 0"),
        ({"sources": [BUNDLED], "crop": 0}, "greater than 0"),
        (
            {"sources": [{"kind": "paired", "task": "x", "input": "i", "target": "t", "pairing": "stems"}]},
            "'stem', 'rain100l'",
        ),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DataConfig.model_validate(change)


def test_rules_are_checked() -> None:
    with pytest.raises(ValidationError, match=r"'\(' is no regular expression"):
        PairingRule(pattern="(", target="x")
    with pytest.raises(ValidationError, match=r"names group \\2; the pattern '\(a\)' has 1"):
        PairingRule(pattern="(a)", target=r"\2")
    assert set(PAIRINGS) == {"stem", "rain100l", "reside", "gopro", "outdoor_rain", "raindrop"}


def test_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASETS", "/disk")
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve(Path("a/b"), None) == Path("a/b")
    assert resolve(Path("a"), Path("$DATASETS/x")) == Path("/disk/x/a")
    assert resolve(Path("${DATASETS}/a"), Path("/other")) == Path("/disk/a")
    assert resolve(Path("~/a"), Path("/other")) == Path("/home/me/a")


def test_the_documented_section_is_accepted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "photos.md").read_text(encoding="utf-8")
    block = page.split("```yaml\n")[1].split("```")[0]
    config = DataConfig.model_validate(yaml.safe_load(block)["data"])
    assert config.tasks == ["noise", "dusk", "rain"]
    for name in PAIRINGS:
        assert f"| `{name}`" in page

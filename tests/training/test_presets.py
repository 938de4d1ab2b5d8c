"""Presets and overrides: what resolves, and what every mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cpl.cli import main, train
from cpl.errors import CplError
from cpl.training import load_preset, preset_names
from cpl.training.presets import parse_config


def test_every_preset_of_the_package_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT", "/photos")
    assert set(preset_names()) >= {
        "three_task", "five_task", "cdd11", "all_weather", "weatherbench", "demo", "smoke"
    }  # fmt: skip
    for name in preset_names():
        config = load_preset(name)
        assert config.name == name
        assert config.run_dir() == f"runs/{name}"
        assert parse_config(config.model_dump(mode="json"), "again") == config


def test_the_protocols_figures() -> None:
    three = load_preset("three_task", ["ROOT=/photos"])
    assert three.data.tasks == ["noise15", "noise25", "noise50", "rain", "haze"]
    assert (three.epochs, three.schedule.warmup, three.schedule.periods) == (120, 15, [150])
    assert (three.batch_size, three.optimizer.lr, three.data.crop) == (8, 2e-4, 128)
    assert [s.repeats for s in three.data.sources] == [3, 120, 1]
    weather = load_preset("weatherbench", ["ROOT=/photos"])
    assert weather.schedule.periods == [250_000] * 4
    assert (weather.optimizer.betas, weather.schedule.min_lr, weather.ema) == ((0.9, 0.9), 1e-7, 0.999)
    assert weather.channel == "y"
    assert len(load_preset("cdd11", ["ROOT=/photos"]).data.tasks) == 11
    assert load_preset("demo").data.tasks == ["noise", "blur", "rain", "haze", "low_light"]


def test_overrides_of_every_kind() -> None:
    config = load_preset(
        "smoke",
        [
            "optimizer.lr=1e-4",
            "optimizer.betas=[0.9, 0.9]",
            "ema=null",
            "epochs=2",
            "data.sources.0.degradations.noise=noise:sigma=50",
            "model.num_prompts=4",
        ],
    )
    assert (config.optimizer.lr, config.optimizer.betas) == (1e-4, (0.9, 0.9))
    assert (config.ema, config.epochs, config.steps) == (None, 2, None)
    assert config.data.sources[0].degradations["noise"] == "noise:sigma=50"  # type: ignore[union-attr]
    assert config.model.num_prompts == 4


@pytest.mark.parametrize(
    ("preset", "overrides", "parts"),
    [
        ("smok", [], ["'smok'", "did you mean smoke?", "weatherbench"]),
        ("nowhere/mine.yaml", [], ["nowhere/mine.yaml", "no such preset file"]),
        ("three_task", [], ["ROOT is not set", "ROOT=/path"]),
        ("smoke", ["optimizer.lr"], ["'optimizer.lr'", "field=value"]),
        ("smoke", ["optimizer.lrr=1"], ["optimizer.lrr", "did you mean lr?", "weight_decay"]),
        ("smoke", ["stepz=1"], ["stepz", "did you mean steps?"]),
        ("smoke", ["optimizer.lr=-1"], ["optimizer.lr=-1", "greater than 0"]),
        ("smoke", ["optimizer.lr=fast"], ["optimizer.lr='fast'", "number"]),
        ("smoke", ["loss.form=substractive"], ["did you mean subtractive?", "infonce"]),
        ("smoke", ["loss.weight=.nan"], ["loss.weight=nan", "finite"]),
        ("smoke", ["model.name=cplir-tinny"], ["cplir-tinny", "cplir-small"]),
        ("smoke", ["model.name=restormer"], ["loss.kind=cpr", "restormer", "loss.kind=l1"]),
        ("smoke", ["model.top_k=9"], ["model.top_k=9", "num_prompts=3"]),
        ("smoke", ["model.num_prompts=1"], ["model.num_prompts must be at least 2, got 1"]),
        ("smoke", ["steps=null"], ["exactly one of steps and epochs"]),
        ("smoke", ["batch_size=0"], ["batch_size=0", "greater than or equal to 1"]),
        ("smoke", ["data.sources.3.split=all"], ["data.sources", "0 to 0", "not 3"]),
        ("smoke", ["data.sources.0.degradations.fog=fogg"], ["fogg"]),
        ("smoke", ["ema.decay=1"], ["'ema.decay=1'", "ema has no fields"]),
        ("smoke", ["optimizer.lr=[1"], ["not a YAML value"]),
        ("smoke", ["schedule.min_lr=1"], ["schedule.min_lr=1", "optimizer.lr=0.001"]),
    ],
)
def test_mistakes_are_named_in_one_line(
    preset: str, overrides: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROOT", raising=False)
    with pytest.raises(CplError) as caught:
        load_preset(preset, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(load_preset("smoke").to_yaml())
    assert load_preset(path).optimizer == load_preset("smoke").optimizer
    path.write_text("- a list\n")
    with pytest.raises(CplError, match="a preset is a mapping"):
        load_preset(path)
    path.write_text("{")
    with pytest.raises(CplError, match="not a YAML file"):
        load_preset(path)
    path.write_text("data: &a {root: *a}\n")
    with pytest.raises(CplError, match="not a YAML file"):
        load_preset(path)


def test_what_is_quoted_is_text() -> None:
    assert load_preset("smoke", ['output_dir="2024"']).output_dir == "2024"
    assert load_preset("smoke", ["optimizer.lr=1e-2"]).optimizer.lr == 0.01


@pytest.mark.parametrize("words", [["--output", "2024"], ["--output", "a\\b"], ["--init", "1e5"]])
def test_paths_that_look_like_something_else(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "smoke", "--dry-run", *words]) == 0
    field = {"--output": "output_dir", "--init": "init"}[words[0]]
    assert yaml.safe_load(capsys.readouterr().out)[field] == words[1]


def test_examples_of_the_help_resolve() -> None:
    examples = [line.split("   ")[0].split() for line in train.EPILOG.splitlines() if "cpl train " in line]
    presets = [words[2:] for words in examples if words[2] in preset_names()]
    assert len(presets) >= 3
    for name, *rest in presets:
        load_preset(name, [word for word in rest if "=" in word])


def test_differences_name_what_would_change_the_run() -> None:
    stored = load_preset("smoke").model_dump(mode="json")
    now = load_preset("smoke", ["optimizer.lr=1e-2", "log_every=7", "output_dir=elsewhere"])
    assert now.differences(stored) == ["optimizer.lr: stored 0.001, now 0.01"]


def test_what_an_older_cpl_did_not_store_had_its_default() -> None:
    stored = load_preset("smoke").model_dump(mode="json")
    del stored["loss"]["routing"]
    assert load_preset("smoke").differences(stored) == []
    now = load_preset("smoke", ["loss.routing.balance=0.5"])
    assert now.differences(stored) == ["loss.routing.balance: stored 0.0, now 0.5"]


def test_a_teacher_needs_labels_to_be_learnt() -> None:
    asked = ["loss.kind=l1", "loss.routing.teacher=0.5"]
    with pytest.raises(CplError, match=r"loss\.routing\.task alone: give that a weight"):
        load_preset("smoke", asked)
    with pytest.raises(CplError, match=r"model\.top_k=2"):
        load_preset("smoke", [*asked, "loss.routing.task=0.1", "model.top_k=2"])
    assert load_preset("smoke", [*asked, "loss.routing.task=0.1"]).loss.routing.teacher == 0.5
    with pytest.raises(CplError, match=r"loss\.routing\.teacher"):
        load_preset("smoke", ["loss.routing.teacher=1.5", "loss.routing.task=0.1"])


def test_routing_needs_routers() -> None:
    with pytest.raises(CplError, match="restormer has not"):
        load_preset(
            "smoke", ["model.name=restormer", "model.num_prompts=null", "loss.kind=l1", "loss.routing.task=1"]
        )

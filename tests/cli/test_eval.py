"""cpl eval: each kind of test set, the table, the JSON, and refusals in one line."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

pytest.importorskip("pydantic", reason="cpl eval needs the extra [train]")
pytest.importorskip("skimage", reason="cpl eval needs the extra [train]")
pytest.importorskip("rich", reason="cpl eval needs the extra [train]")
pytest.importorskip("PIL", reason="cpl eval needs the extra [train]")
from PIL import Image

from cpl import cli
from cpl.cli import eval as evaluate
from cpl.inference import load
from cpl.inference.metrics import psnr, ssim
from tests.cli.conftest import one_error


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that gives back its input: restored equals degraded, gain is nothing."""
    monkeypatch.setattr(
        load, "load_model", lambda path, device: (nn.Identity(), {"architecture": "identity"})
    )


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Two pairs of files; returns the first as [0, 1] floats (degraded, target)."""
    rng = np.random.default_rng(0)
    first = []
    for name in ("a", "b"):
        clean = rng.integers(60, 200, (20, 24, 3)).astype(np.uint8)
        noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
        for side, pixels in (("noisy", noisy), ("clean", clean)):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / side / f"{name}.png")
            first.append(pixels.astype(np.float32) / 255)
    return first[0], first[1]


@pytest.mark.usefixtures("identity")
def test_two_folders(run: Any, tmp_path: Path, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    scores = tmp_path / "scores.json"
    for channel in ("rgb", "y"):
        result = run(
            "eval", "--checkpoint", "x", "--input", tmp_path / "noisy", "--target", tmp_path / "clean",
            "--channel", channel, "--json", scores,
        )  # fmt: skip
        assert result.status == 0, result.err
        assert "average" in result.out
        data = json.loads(scores.read_text())
        assert data["channel"] == channel
        image = {i["name"].removesuffix(".png"): i for i in data["images"]}["a"]
        assert image["degraded_psnr"] == pytest.approx(psnr(*pairs, channel), abs=1e-4)
        assert image["restored_ssim"] == pytest.approx(ssim(*pairs, channel), abs=1e-4)
        assert data["average"]["gain_psnr"] == pytest.approx(0, abs=1e-4)
        assert data["info"]["architecture"] == "identity"


@pytest.mark.usefixtures("identity")
def test_a_folder_degraded_here_is_the_same_each_time(
    run: Any, tmp_path: Path, pairs: tuple[np.ndarray, np.ndarray]
) -> None:
    texts = []
    for name in ("one.json", "two.json"):
        result = run(
            "eval", "--checkpoint", "x", "--images", tmp_path / "clean", "--degradation", "noise:sigma=25",
            "low_light+noise", "--json", tmp_path / name,
        )  # fmt: skip
        assert result.status == 0, result.err
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    tasks = json.loads(texts[0])["tasks"]
    assert list(tasks) == ["noise-sigma25", "low_light+noise"]
    assert tasks["noise-sigma25"]["images"] == 2
    assert (
        18 < tasks["noise-sigma25"]["degraded_psnr"] < 23
    )  # 20 log10(255/25) is 20.2, a little more by clipping


def test_bundled_photos_with_a_real_network(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    result = run(
        "eval", "--checkpoint", checkpoint, "--crop", 32, "--limit", 1, "--json", tmp_path / "s.json"
    )
    assert result.status == 0, result.err
    for word in ("noise", "blur", "rain", "haze", "low_light", "average", "degraded", "restored", "gain"):
        assert word in result.out
    data = json.loads((tmp_path / "s.json").read_text())
    assert data["info"]["architecture"] == "cplir-tiny"
    assert set(data["tasks"]) == {"noise", "blur", "rain", "haze", "low_light"}


@pytest.mark.usefixtures("identity")
def test_without_a_test_set_it_is_what_the_demonstration_measures(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pixels: examples/demo.py's photographs, degradations and seed, whole."""
    from cpl.data import BundledSource, bundled_photos, evaluation_cases
    from cpl.inference import evaluate as module
    from cpl.training import load_preset

    demo = Path(__file__).parents[2] / "examples/demo.py"
    if not demo.exists():
        pytest.skip(reason="an installed copy has no examples")
    seed = int(re.findall(r"^EVALUATION_SEED = (\d+)", demo.read_text(), re.M)[0])
    source = load_preset("demo").data.sources[0]
    assert isinstance(source, BundledSource)
    specs = source.degradations
    wanted = evaluation_cases(bundled_photos("test", source.scale), {"noise": specs["noise"]}, seed)
    measured = []

    def evaluate(model: nn.Module, cases: Any, **options: Any) -> Any:
        assert [case["task"] for case in cases][:: len(wanted)] == list(specs)
        measured.extend(cases[: len(wanted)])
        return module.Evaluation("rgb", [module.ImageScores("t", "n", module.Scores(1, 1, 1, 1))])

    monkeypatch.setattr(module, "evaluate", evaluate)
    result = run("eval", "--checkpoint", "x")
    assert result.status == 0, result.err
    assert len(measured) == len(wanted)
    for one, other in zip(measured, wanted, strict=True):
        assert (one["task"], one["name"]) == (other["task"], other["name"])
        np.testing.assert_array_equal(one["degraded"], other["degraded"])
        np.testing.assert_array_equal(one["target"], other["target"])
    assert "preset `demo`" in run("eval", "--help").out


def test_every_example_of_the_help_says_a_test_set() -> None:
    parser = cli._build_parser(["eval"])
    examples = [line.split()[1:] for line in evaluate.EPILOG.splitlines() if line.startswith("  cpl ")]
    assert any("--preset" in example for example in examples)
    for example in examples:
        what, channel, _ = evaluate._what(parser.parse_args(example))
        assert what.sources
        assert channel in ("rgb", "y")


@pytest.mark.usefixtures("identity")
def test_scores_are_shown_even_if_they_cannot_be_saved(
    run: Any, tmp_path: Path, pairs: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    arguments = ("--input", tmp_path / "noisy", "--target", tmp_path / "clean", "--json", tmp_path / "s.json")
    result = run("eval", "--checkpoint", "x", *arguments)
    one_error(result, f"{tmp_path / 's.json'}: No space left on device")
    assert "average" in result.out


def test_where_the_scores_go_is_settled_before_anything_is_measured(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_nothing(*_: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(load, "load_model", load_nothing)
    one_error(run("eval", "--checkpoint", "x", "--json", tmp_path), tmp_path, "is a folder")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    one_error(
        run("eval", "--checkpoint", "x", "--json", tmp_path / "s.json"), tmp_path, "cannot be written to"
    )


@pytest.mark.usefixtures("identity")
def test_test_set_of_a_preset(run: Any) -> None:
    result = run("eval", "--checkpoint", "x", "--preset", "demo", "channel=y", "--crop", 24, "--limit", 1)
    assert result.status == 0, result.err
    assert "SSIM, Y" in result.out
    one_error(run("eval", "--checkpoint", "x", "--preset", "dem"), "dem", "demo")


def test_refusals(run: Any, checkpoint: Path, tmp_path: Path, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    clean, with_model = tmp_path / "clean", ("eval", "--checkpoint", checkpoint)
    one_error(run("eval"), "--checkpoint", "make demo")
    one_error(run(*with_model, "--input", clean), "--target")
    one_error(run(*with_model, "--images", clean), "--degradation")
    one_error(run(*with_model, "--images", clean, "--preset", "demo"), "--preset", "--images")
    one_error(run(*with_model, "--images", clean, "--degradation", "fog"), "fog")
    for twice in (("blur", "blur"), ("noise:sigma=25", "noise:sigma25")):
        one_error(
            run(*with_model, "--images", clean, "--degradation", "rain", *twice), "leave one out", *twice
        )
    one_error(run(*with_model, "steps=3"), "steps=3", "--preset")
    one_error(
        run(*with_model, "--images", tmp_path / "absent", "--degradation", "noise"), tmp_path / "absent"
    )
    (tmp_path / "empty").mkdir()
    one_error(run(*with_model, "--input", tmp_path / "empty", "--target", clean), tmp_path / "empty")
    one_error(run(*with_model, "--json", tmp_path / "absent/s.json"), tmp_path / "absent", "create it")
    one_error(run(*with_model, "--crop", "-3"), "crop")
    one_error(
        run("eval", "--checkpoint", tmp_path / "absent.safetensors", "--crop", "16", "--limit", "1"),
        tmp_path / "absent.safetensors",
    )

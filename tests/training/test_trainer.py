"""Whole runs of a tiny network: what is written, what stops a run, and how it goes on."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import cpl
from cpl.errors import CplError
from cpl.models import load_checkpoint
from cpl.training import Trainer, load_preset, stored_config, trainer
from cpl.training.build import initialise
from cpl.training.checkpoints import read_state
from cpl.training.progress import read_metrics
from cpl.training.trainer import RunResult


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(output: Path, *overrides: str, text: io.StringIO | None = None, **options: Any) -> RunResult:
    config = load_preset("smoke", [f"output_dir={str(output)!r}", "validate_every=null", *overrides])
    console = Console(file=text or io.StringIO(), width=1000)
    return Trainer(config, console=console, **options).run()


QUICK = ("data.validation=null",)


def newest(run: Path) -> dict[str, Any]:
    return read_state(sorted((run / "checkpoints").iterdir())[-1])


def assert_same(first: Any, second: Any, path: str = "state") -> None:
    """Equal bits, whatever containers they are in."""
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    else:
        assert first == second, path


def comparable(state: dict[str, Any]) -> dict[str, Any]:
    """The state without what names the run's folder."""
    return {**state, "config": {**state["config"], "output_dir": None}}


def test_a_run_leaves_models_logs_and_its_configuration(tmp_path: Path) -> None:
    text = io.StringIO()
    result = train(tmp_path / "run", "validate_every=3", text=text)
    assert (result.step, result.signal) == (6, 0)
    run = result.run_dir
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        f"step-0000000{s}" for s in (2, 4, 6)
    ]
    model, info = load_checkpoint(run / "best.safetensors")
    assert model.config.task_names == ("noise", "haze")
    assert model.config.num_prompts == 3
    assert info["best_psnr"] == result.best_psnr
    assert info["preset"] == "smoke"
    records = read_metrics(run / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in records] == [
        ("train", 2), ("validation", 3), ("train", 4), ("train", 6), ("validation", 6)
    ]  # fmt: skip
    assert all(math.isfinite(r["psnr"]) for r in records)
    assert records[0]["loss/regularization"] < 0  # CPR is on: it pays for being away from the negatives
    assert list((run / "tensorboard").glob("events*"))
    assert load_preset(run / "config.yaml") == stored_config(run)
    assert "step 2/6  loss" in text.getvalue()
    assert "images/s" in text.getvalue()


def test_what_makes_a_step_fast_on_a_cpu_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freed memory is kept, and AdamW is one kernel: neither shows in any result."""
    kept: list[bool] = []
    monkeypatch.setattr(trainer, "keep_freed_memory", lambda: kept.append(True))
    run = train(tmp_path / "run", *QUICK).run_dir
    assert kept == [True]
    assert all(group["fused"] for group in newest(run)["optimizer"]["param_groups"])


def test_the_model_file_holds_the_average_and_the_state_both(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *QUICK).run_dir
    state = newest(run)
    model = load_checkpoint(run / "last.safetensors")[0].state_dict()
    averaged = {k.removeprefix("module."): v for k, v in state["ema"].items() if k != "n_averaged"}
    assert_same(dict(model), averaged)
    assert any(not torch.equal(model[k], state["weights"][k]) for k in model)


def test_ema_is_the_average_that_it_says(tmp_path: Path) -> None:
    """Weights after 1, 2 and 3 updates, averaged by hand with decay 0.9."""
    run = train(tmp_path / "run", *QUICK, "save_every=1", "steps=3", "schedule.kind=constant").run_dir
    states = [read_state(p) for p in sorted((run / "checkpoints").iterdir())]
    name = "output.weight"
    w = [s["weights"][name].double() for s in states]
    expected = 0.9 * (0.9 * w[0] + 0.1 * w[1]) + 0.1 * w[2]
    assert torch.allclose(states[-1]["ema"][f"module.{name}"].double(), expected, atol=1e-6)


def test_resuming_gives_the_bits_of_an_uninterrupted_run(tmp_path: Path) -> None:
    train(tmp_path / "whole", *QUICK)
    train(tmp_path / "parts", *QUICK)
    for step in (4, 6):  # as if it had been killed after step 2
        folder = tmp_path / "parts" / "checkpoints" / f"step-0000000{step}"
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    torch.rand(3)  # another process would have other random states
    result = train(tmp_path / "parts", *QUICK, resume=True)
    assert result.step == 6
    assert_same(comparable(newest(tmp_path / "parts")), comparable(newest(tmp_path / "whole")))
    steps = [r["step"] for r in read_metrics(tmp_path / "parts" / "metrics.jsonl")]
    assert steps == [2, 4, 6]  # what was recorded after the checkpoint is not there twice


def test_two_runs_of_one_seed_agree_and_another_seed_differs(tmp_path: Path) -> None:
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, *QUICK, f"seed={seed}", "steps=2")
        states.append(newest(tmp_path / name)["weights"])
    assert_same(dict(states[0]), dict(states[1]))
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_data_workers_do_not_change_the_bits(tmp_path: Path) -> None:
    for workers in (0, 1):
        train(tmp_path / str(workers), *QUICK, "steps=2", f"num_workers={workers}")
    assert_same(dict(newest(tmp_path / "0")["weights"]), dict(newest(tmp_path / "1")["weights"]))


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "run", *QUICK, "steps=1")
    with pytest.raises(CplError, match=r"already holds a run \(step-00000001\).*--resume.*--output"):
        train(tmp_path / "run", *QUICK)


def test_resuming_with_other_settings_names_them(tmp_path: Path) -> None:
    train(tmp_path / "run", *QUICK, "steps=2")
    with pytest.raises(CplError, match=r"optimizer\.lr: stored 0\.001, now 0\.01"):
        train(tmp_path / "run", *QUICK, "steps=2", "optimizer.lr=0.01", resume=True)


def test_another_thread_count_is_refused_unless_allowed(tmp_path: Path) -> None:
    train(tmp_path / "run", *QUICK, "steps=2")
    torch.set_num_threads(2)
    with pytest.raises(CplError, match=r"with 1 threads, now there are 2.*OMP_NUM_THREADS=1"):
        train(tmp_path / "run", *QUICK, "steps=2", resume=True)
    text = io.StringIO()
    train(tmp_path / "run", *QUICK, "steps=2", resume=True, allow_thread_change=True, text=text)
    assert "not bit for bit" in text.getvalue()


def test_a_damaged_newest_checkpoint_is_reported_and_passed_over(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *QUICK).run_dir
    broken = run / "checkpoints" / "step-00000006" / "state.pt"
    broken.write_bytes(broken.read_bytes()[:1000])
    text = io.StringIO()
    train(run, *QUICK, resume=True, text=text)
    assert "step-00000006/state.pt holds 1000 bytes" in text.getvalue()
    assert "step-00000004 at step 4" in text.getvalue()
    assert newest(run)["step"] == 6  # and the damaged one has been replaced


def test_a_missing_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(CplError, match="no such run folder"):
        train(tmp_path / "nowhere", resume=True)


def test_a_bad_batch_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, bad = io.StringIO(), {1, 3}
    poison(monkeypatch, bad)
    train(tmp_path / "run", *QUICK, text=text)
    state = newest(tmp_path / "run")
    assert state["nonfinite"] == {"total": 2, "in_a_row": 0}
    assert int(state["ema"]["n_averaged"]) == 4  # neither weights nor EMA moved in those steps
    assert all(torch.isfinite(v).all() for v in state["weights"].values())
    assert "step 1: the loss is not finite; step skipped (1 so far)" in text.getvalue()


def test_a_loss_that_stays_bad_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(2, 100)))
    with pytest.raises(CplError, match=r"stopped at step 4.*max_nonfinite_in_a_row=3.*step-00000004"):
        train(tmp_path / "run", *QUICK, "max_nonfinite_in_a_row=3")


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """NaN pixels in the batches of these steps."""
    original = Trainer._update

    def update(self: Trainer, batch: Any, *rest: Any) -> int:
        if self.step in steps:
            batch["degraded"][0, 0, 0, 0] = math.nan
        return original(self, batch, *rest)

    monkeypatch.setattr(Trainer, "_update", update)


def test_a_full_disk_ends_the_run_and_older_checkpoints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.save

    def save(state: Any, file: Any) -> None:
        if state["step"] == 4:
            raise OSError(28, "No space left on device")
        original(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(
        CplError, match=r"step-00000004: No space left on device.*older checkpoints are whole"
    ):
        train(tmp_path / "run", *QUICK)
    assert newest(tmp_path / "run")["step"] == 2


def test_too_little_space_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(CplError, match="checkpoints need about"):
        train(tmp_path / "run", *QUICK)
    assert not (tmp_path / "run").exists()


def test_missing_data_is_found_before_the_first_step(tmp_path: Path) -> None:
    source = "data.sources=[{kind: folder, paths: [/nowhere/at/all], degradations: {noise: noise}}]"
    with pytest.raises(CplError, match="/nowhere/at/all"):
        train(tmp_path / "run", *QUICK, source)


def test_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CplError, match="device=cuda, but"):
        train(tmp_path / "run", "device=cuda")


def test_fine_tuning_takes_what_fits_and_names_the_rest(tmp_path: Path) -> None:
    first = train(tmp_path / "first", *QUICK, "steps=2").run_dir / "last.safetensors"
    text = io.StringIO()
    train(tmp_path / "second", *QUICK, "steps=1", "model.num_prompts=5", f"init={str(first)!r}", text=text)
    said = text.getvalue()
    assert f"started from {first}" in said
    assert (
        "prompt1.prompt_param starts afresh: the file's shape is (1, 3, 8, 16, 16), the model's (1, 5,"
        in said
    )
    same = load_checkpoint(first)[0].state_dict()["patch_embed.proj.weight"]
    # One step of Adam moves a weight by at most about the learning rate.
    moved = newest(tmp_path / "second")["weights"]["patch_embed.proj.weight"]
    assert (moved - same).abs().max() < 2e-3


def test_fine_tuning_takes_a_lightning_file_that_two_architectures_fit(tmp_path: Path) -> None:
    """Their weights are the same; which of the two is trained stands in the configuration."""
    torch.manual_seed(0)
    network = cpl.create_model("cplir-tiny")
    weights = {f"net.{name}": value + 1 for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "last.ckpt")
    lines = initialise(network, str(tmp_path / "last.ckpt"))
    assert "of" in lines[0]
    assert len(lines) == 1, lines
    assert all(torch.equal(value, weights[f"net.{name}"]) for name, value in network.state_dict().items())


def test_l1_alone_and_a_network_without_prompts(tmp_path: Path) -> None:
    overrides = [
        "model={name: restormer, overrides: {dim: 8, num_blocks: [1, 1, 1, 1], num_refinement_blocks: 1}}",
        "loss.kind=l1",
        "steps=2",
        "ema=null",
    ]
    run = train(tmp_path / "run", *QUICK, *overrides).run_dir
    state = newest(run)
    assert state["ema"] is None
    assert_same(dict(load_checkpoint(run / "last.safetensors")[0].state_dict()), dict(state["weights"]))


@pytest.mark.parametrize("keep", ["products", "input"])
def test_what_blocks_keep_leaves_the_weights_as_they_are(tmp_path: Path, keep: str) -> None:
    expected, found = (
        newest(train(tmp_path / name, *QUICK, "steps=2", f"keep={name}").run_dir) for name in ("all", keep)
    )
    assert_same(dict(found["weights"]), dict(expected["weights"]))


def test_keep_reaches_every_block() -> None:
    from cpl.nn import TransformerBlock
    from cpl.training import build

    network = build.model(load_preset("smoke", ["keep=input"]), ("noise",))
    kept = {part.keep for part in network.modules() if isinstance(part, TransformerBlock)}
    assert kept == {"input"}


def test_bf16(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *QUICK, "steps=2", "mixed_precision=bf16").run_dir
    state = newest(run)
    assert all(v.dtype == torch.float32 for v in state["weights"].values())
    assert state["nonfinite"]["total"] == 0


def test_a_run_says_what_its_routers_do(tmp_path: Path) -> None:
    text = io.StringIO()
    asked = ("model.normalize=straight_through", "loss.routing.task=1.0", "loss.kind=log_l1", "log_every=3")
    train(tmp_path / "run", *QUICK, *asked, text=text)
    records = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert all(r["loss/routing"] > 0 for r in records)
    for level in (1, 2, 3):
        known = [r[f"routing/information{level}"] for r in records if f"routing/information{level}" in r]
        assert known
        assert all(0 <= value <= 1 for value in known)
        assert all(sum(r[f"routing/share{level}/{n}"] for n in range(3)) == pytest.approx(1) for r in records)
    model, _ = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert model.config.normalize == "straight_through"


def test_flat_routers_are_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(trainer, "flat", lambda figures: True)
    train(tmp_path / "run", *QUICK, "log_every=1", text=text)
    assert text.getvalue().count("no router's choice tells the tasks apart") == 1
    assert "after 1 of 6 steps" in text.getvalue()


def test_a_teacher_leaves_after_its_part_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = []
    original = Trainer._update

    def update(self: Trainer, *rest: Any) -> int:
        signal = original(self, *rest)
        present.append(self.module.teacher)
        return signal

    monkeypatch.setattr(Trainer, "_update", update)
    asked = (
        "model.normalize=straight_through",
        "loss.routing.task=0.1",
        "loss.routing.teacher=0.5",
        "loss.kind=l1",
    )
    train(tmp_path / "run", *QUICK, *asked)
    assert present == [True] * 3 + [False] * 3
    present.clear()
    train(tmp_path / "without", *QUICK, "loss.kind=l1")
    assert present == [False] * 6


def test_more_tasks_than_prompts_cannot_each_have_one(tmp_path: Path) -> None:
    with pytest.raises(CplError, match=r"2 tasks have 1: give model\.num_prompts=2"):
        train(tmp_path / "run", *QUICK, "loss.routing.task=1", "model.num_prompts=1", "loss.kind=l1")
    assert not (tmp_path / "run").exists()

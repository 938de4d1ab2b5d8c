"""`cpl train` as a process: killed, interrupted, on two ranks, and given nonsense."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.test_trainer import assert_same, comparable, newest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# Long enough to be stopped in the middle; a checkpoint at every step makes the stop land between any two.
LONG = ["smoke", "data.validation=null", "steps=12", "save_every=1", "keep_checkpoints=2", "log_every=1"]


def command(*words: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, "-m", *launcher, *(("-m",) if launcher else ()), "cpl", "train", *words]


def cpl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def start_and_stop(output: Path, number: int) -> subprocess.Popen[str]:
    """Start a run and send it a signal once its third checkpoint stands."""
    run = subprocess.Popen(
        command(*LONG, "--output", str(output)), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not (output / "checkpoints" / "step-00000003").exists():
        assert run.poll() is None, run.stderr.read() if run.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.send_signal(number)
    return run


def test_killed_and_resumed_ends_with_the_bits_of_an_uninterrupted_run(tmp_path: Path) -> None:
    killed = start_and_stop(tmp_path / "killed", signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    assert newest(tmp_path / "killed")["step"] < 12
    resumed = cpl("--resume", str(tmp_path / "killed"))
    assert resumed.returncode == 0, resumed.stderr
    whole = cpl(*LONG, "--output", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    # Weights, EMA, optimizer, random states, counters: all that a checkpoint holds.
    assert_same(comparable(newest(tmp_path / "killed")), comparable(newest(tmp_path / "whole")))
    assert not list((tmp_path / "killed" / "checkpoints").glob(".unfinished*"))


def test_interrupted_saves_at_the_step_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = start_and_stop(tmp_path / "run", signal.SIGINT)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130
    state = newest(tmp_path / "run")
    assert f"stopped by SIGINT at step {state['step']} of 12, which is saved" in said
    assert f"continue with: cpl train --resume {tmp_path / 'run'}" in said
    assert "Traceback" not in said


def test_two_ranks_train_as_one_process_of_twice_the_batch(tmp_path: Path) -> None:
    """Gradients are averaged over ranks and each takes its own samples: else the weights would differ."""
    fields = ["smoke", "data.validation=null", "device=cpu", "steps=3", "loss.kind=l1", "optimizer.eps=1e-3"]
    launcher = ("torch.distributed.run", "--nproc_per_node=2", f"--master_port={29500 + os.getpid() % 1000}")
    both = subprocess.run(
        command(*fields, "batch_size=1", "--output", str(tmp_path / "both"), launcher=launcher),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert both.returncode == 0, both.stderr
    assert both.stderr.count("saved ") == 2  # rank 0 alone: after step 2 and at the end
    one = cpl(*fields, "batch_size=2", "--output", str(tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    two_ranks, one_rank = newest(tmp_path / "both"), newest(tmp_path / "one")
    assert (two_ranks["ranks"], len(two_ranks["rng"])) == (2, 2)
    for name, value in one_rank["weights"].items():
        # eps keeps Adam from blowing the last bits of tiny gradients up into whole steps.
        assert torch.allclose(two_ranks["weights"][name], value, atol=1e-5), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which preset?"),
        (["smokk"], "did you mean smoke?"),
        (["smoke", "optimizer.lr=fast"], "optimizer.lr='fast'"),
        (["smoke", "--resume", "/nowhere/run"], "/nowhere/run: no such run folder"),
        (["smoke", "--init", "/nowhere.safetensors", "--output", "/tmp/never-made"], "/nowhere.safetensors"),
        (["smoke", "--init", "a.safetensors", "--resume"], "give one of them"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from cpl.cli import main

    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error:") == 1
    assert "Traceback" not in error


def test_dry_run_prints_what_a_preset_file_may_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cpl.cli import main
    from cpl.training import load_preset

    assert main(["train", "smoke", "--dry-run", "--output", str(tmp_path / "x"), "steps=3"]) == 0
    path = tmp_path / "smoke.yaml"
    path.write_text(capsys.readouterr().out)
    config = load_preset(path)
    assert (config.steps, config.output_dir) == (3, str(tmp_path / "x"))  # fields may follow options
    assert not (tmp_path / "x").exists()


def test_resume_may_stand_before_the_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cpl.cli import main

    assert main(["train", "--resume", "smoke", "--output", str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none'}: no such run folder" in capsys.readouterr().err

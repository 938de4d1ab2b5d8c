"""The measurements that are no single call of an op: on small sizes they still run, and compute what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import cpr_step, dispatch, info_nce_memory


def test_the_forms_of_the_cpr_step_are_one_loss_and_train() -> None:
    model, losses = cpr_step.losses(1, "cplir-tiny", side=32)  # asserts that both forms are equal
    assert set(losses) == {"plain, reference", "plain", "CPR", "CPR, naive"}
    weights = [p.clone() for p in model.parameters()]
    for step in cpr_step.steps(model, losses).values():
        step()
    assert any(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_what_cpr_adds_is_counted_in_plain_steps_of_the_same_round() -> None:
    times = {"plain, reference": [2.0, 20.0, 4.0], "plain": [1.0, 10.0, 2.0], "CPR": [2.0, 20.0, 4.0]}
    assert cpr_step.added(times, "CPR") == {"added": 0.5, "added_q1": 0.5, "added_q3": 0.5}


def test_memory_of_info_nce_and_what_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process: the memory of a fork is tested with memory.py, and here the threads have started.
    monkeypatch.setattr(info_nce_memory.memory, "in_a_process_of_its_own", lambda work: work())
    threads = torch.get_num_threads()
    found: dict[str, Any] = info_nce_memory.row("ours (native)", 512)
    torch.set_num_threads(threads)
    assert found["peak_bytes"] >= 0
    assert found["seconds"] > 0
    monkeypatch.setattr(info_nce_memory, "available", lambda: info_nce_memory.COPIES * 4 * 512 * 512 - 1)
    assert "not_run" in info_nce_memory.row("F.cross_entropy", 512)


@pytest.mark.parametrize("op", dispatch.OPS)
def test_every_op_of_the_table_of_defaults_has_a_call(op: str) -> None:
    out, leaves = dispatch.OPS[op](2**11, torch.float32)("reference")
    if leaves:
        assert len(torch.autograd.grad(out.sum(), leaves)) == len(leaves)


def test_one_op_alone_does_not_overwrite_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        dispatch.main(["--only", "dwconv"])
    assert "--only needs --out" in capsys.readouterr().err

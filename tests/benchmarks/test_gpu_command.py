"""python -m benchmarks.gpu where there is no GPU: dry from end to end, and what it does when a stage goes wrong."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, page, stages
from benchmarks.gpu.stages import DONE, FAILED, LEFT_OUT, OVERRUN, Stage

FACTS = {"dry": True, "date": "2026-01-01T00:00:00+00:00", "only": []}


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def go(tmp_path: Path) -> Any:
    """go(stages, seconds) -> whether all went well, and result.json."""

    def run(listed: list[Stage], seconds: float = 60.0) -> tuple[bool, dict[str, Any]]:
        well = stages.run_all(listed, tmp_path, seconds, FACTS)
        return well, json.loads((tmp_path / "result.json").read_text())

    return run


def test_dry(tmp_path: Path) -> None:
    """Every stage's code, each in its own process, for one op."""
    done = stages.run(
        Stage("dry", 120, [sys.executable, "-m", "benchmarks.gpu", "--dry", "--only", "gated_dwconv",
                           "--out", str(tmp_path)], lambda text: {"text": text}),
        120, (tmp_path / "own.txt").open("w+b"),
    )  # fmt: skip
    assert done["state"] == DONE, done["text"]
    result = json.loads((tmp_path / "result.json").read_text())
    kept = result["stages"]
    left_out = {"wheels", "build", *checks.TOOLS}
    assert {name for name, stage in kept.items() if stage["state"] == LEFT_OUT} == left_out
    assert {name for name, stage in kept.items() if stage["state"] == DONE} == set(kept) - left_out
    assert kept["machine"]["torch"] == torch.__version__
    assert "tests collected" in kept["tests"]["closing_line"]
    assert "gated_dwconv reference" in kept["small calls"]["calls"]
    assert kept["ceilings"]["copy_gb_per_s"] > 0
    (case,) = kept["benchmarks"]["cases"]
    assert case["failed"] == {}
    assert set(case["absent"]) == {"ours (triton)", "ours (cuda)"}
    names = set(harness.load("gated_dwconv").implementations) - set(case["absent"])
    assert {(row["name"], row["group"].split()[-1]) for row in case["rows"]} == {
        (name, passes) for name in names for passes in harness.PASSES
    }
    written = (tmp_path / "page.md").read_text()
    assert written == page.markdown(result)
    assert "A dry run" in written
    assert all(name in written for name in (*kept, *names))


def test_an_unknown_op_is_named_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--dry", "--out", str(tmp_path / "out"), "--only", "layer_norm2d", "layer_norm3d"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "layer_norm3d" in said
    assert all(op in said for op in harness.OPS)
    assert not (tmp_path / "out").exists()


def test_the_ops_are_those_of_the_harness() -> None:
    assert stages.known_ops() == harness.OPS


def test_a_stage_that_overruns_is_killed_with_its_children_and_the_next_one_runs(
    tmp_path: Path, go: Any
) -> None:
    child = tmp_path / "child"
    sleeps = (
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], preexec_fn=os.setpgrp)\n"
        f"open({str(child)!r}, 'w').write(str(p.pid))\n"
        "print('as far as here'); time.sleep(60)"
    )
    begin = time.monotonic()
    well, result = go(
        [Stage("slow", 2, python(sleeps), lambda text: {"said": text}), Stage("next", 9, python(""))]
    )
    assert time.monotonic() - begin < 30  # sixty if it were waited for
    assert not well
    slow = result["stages"]["slow"]
    assert (slow["state"], slow["said"]) == (OVERRUN, "as far as here\n")
    assert result["stages"]["next"]["state"] == DONE
    assert "overran its time" in (tmp_path / "page.md").read_text()
    assert gone(int(child.read_text()))


def gone(pid: int) -> bool:
    """Within a second: that it is no more, or waits to be buried by a parent that is not us."""
    for _ in range(20):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_page_and_the_result_are_of_now_after_every_stage(tmp_path: Path, go: Any) -> None:
    """A stage reads what stands there while it runs: the stages before it, and it not."""
    look = python(
        f"print(open({str(tmp_path / 'page.md')!r}).read(), open({str(tmp_path / 'result.json')!r}).read())"
    )
    well, result = go(
        [
            Stage("alpha", 9, python("")),
            Stage("beta", 9, look, lambda text: {"saw": text}),
            Stage("gamma", 9, python("")),
        ]
    )
    assert well
    saw = result["stages"]["beta"]["saw"]
    assert "| alpha | done" in saw
    assert '"alpha"' in saw
    assert "beta" not in saw
    assert "| gamma | done" in (tmp_path / "page.md").read_text()
    assert not list(tmp_path.glob("*.part"))


def test_all_stages_together_have_no_more_than_the_whole(go: Any) -> None:
    sleeps = Stage("all of it", None, python("import time; time.sleep(60)"))
    well, result = go([sleeps, Stage("too late", 9, python(""))], seconds=2)
    assert not well
    assert [stage["state"] for stage in result["stages"].values()] == [OVERRUN, OVERRUN]
    assert "took all the time" in result["stages"]["too late"]["why"]


def test_what_goes_wrong_is_said(tmp_path: Path, go: Any) -> None:
    well, result = go(
        [
            Stage("crash", 9, python("print('last words'); raise SystemExit(3)")),
            Stage("absent", 9, [str(tmp_path / "no such program")]),
            Stage("garbled", 9, python("print('no JSON')"), lambda text: stages.json_lines(text)[-1]),
            Stage("both", 9, python("raise SystemExit(4)"), lambda text: stages.json_lines(text)[-1]),
            Stage("not here", 9, python(""), left_out="no such tool"),
        ]
    )
    assert not well
    kept = result["stages"]
    assert (kept["crash"]["state"], kept["crash"]["why"]) == (FAILED, "exit status 3")
    assert kept["absent"]["state"] == kept["garbled"]["state"] == FAILED
    assert "could not be read" in kept["garbled"]["why"]
    assert kept["both"]["why"] == "exit status 4"  # not what followed from it
    assert kept["not here"] == {"state": LEFT_OUT, "why": "no such tool"}
    written = (tmp_path / "page.md").read_text()
    assert "last words" in written
    assert "no such program" in written
    assert "no JSON" in written


def test_all_gpu_tests_stand_where_they_are_looked_for() -> None:
    marked = [
        path.relative_to(stages.ROOT).as_posix()
        for path in (stages.ROOT / "tests").rglob("*.py")
        if "mark" + ".gpu" in path.read_text()
    ]
    assert marked
    assert all(path.startswith(checks.GPU_TESTS + "/") for path in marked)


PYTEST = """\
[gw0] [ 50%] PASSED tests/kernels/test_parity.py::test_call[a]
[gw1] [100%] FAILED tests/kernels/test_parity.py::test_call[b]
"""
SUMMARY = """\
FAILED tests/kernels/test_parity.py::test_call[b] - AssertionError: y: 3 elements off
========== 1 failed, 1 passed, 3 warnings in 61.20s (0:01:01) ==========
"""


def test_reading_pytest() -> None:
    whole = checks.read_tests(PYTEST + SUMMARY)
    assert whole["closing_line"] == "1 failed, 1 passed, 3 warnings in 61.20s (0:01:01)"
    assert whole["failures"] == [
        "FAILED tests/kernels/test_parity.py::test_call[b] - AssertionError: y: 3 elements off"
    ]
    killed = checks.read_tests(PYTEST)
    assert killed["closing_line"] == "no closing line; so far 1 passed, 1 failed"
    assert "test_call[b]" in killed["failures"][0]


def test_reading_compute_sanitizer() -> None:
    """Its errors stand under the call that was under way."""
    text = (
        "========= COMPUTE-SANITIZER\ncall: route_topk triton\ncall: layer_norm2d cuda\n"
        "========= Invalid __global__ read of size 4 bytes\n=========     at kernel+0x10\n"
        "========= ERROR SUMMARY: 1 error\n"
    )
    read = checks.read_sanitizer(text)
    assert read["summary"] == "ERROR SUMMARY: 1 error"
    assert read["errors"] == ["layer_norm2d cuda: Invalid __global__ read of size 4 bytes"]
    assert read["calls"] == ["route_topk triton", "layer_norm2d cuda"]


def test_the_core_is_built_for_one_architecture_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CPL_CUDA_ARCHS", raising=False)
    assert checks.build_environment() == {"CPL_CUDA_ARCHS": "90a", "CPL_FORCE_CUDA": "1"}
    monkeypatch.setenv("CPL_CUDA_ARCHS", "80")
    assert checks.build_environment()["CPL_CUDA_ARCHS"] == "80"
    assert {"--no-build-isolation", "--no-deps", "--no-index"} <= set(checks.BUILD)


def test_a_run_on_a_gpu_leaves_out_only_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "peer-1-py3-none-any.whl").touch()
    monkeypatch.setattr(checks, "sanitizer", lambda: "/cuda/bin/compute-sanitizer")
    listed = command.plan([], tmp_path, dry=False)
    assert not [stage.name for stage in listed if stage.left_out]
    assert sum(stage.seconds or 0 for stage in listed) < command.SECONDS - 60  # the least for the benchmarks
    monkeypatch.setattr(checks, "sanitizer", lambda: None)
    bare = {stage.name: stage.left_out for stage in command.plan([], None, dry=False) if stage.left_out}
    assert set(bare) == {"wheels", *checks.TOOLS}


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads the state of a process from /proc")
def test_gone_knows_a_process_that_is_there() -> None:
    assert not gone(os.getpid())

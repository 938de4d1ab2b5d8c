"""The verdict on two commits: what it is on given times, and that neither side's tree is mistaken for the other."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, idle
from benchmarks.gpu.stages import ROOT, known_ops

REQUEST = {"op": "some", "problem": 0, "dtype": "float32", "passes": "forward"}


@pytest.mark.parametrize(
    ("here", "there", "ratio", "slower"),
    [
        ([1.0] * 5, [1.0] * 5, 1.0, False),
        ([1.06] * 5, [1.0] * 5, 1.06, True),
        ([1.05] * 5, [1.0] * 5, 1.05, False),
        ([0.5] * 5, [1.0] * 5, 0.5, False),
        ([1.0, 10.0, 1.0, 10.0, 1.0], [1.0, 10.0, 1.0, 10.0, 1.0], 1.0, False),
        ([1.1, 11.0, 1.1, 11.0, 1.1], [1.0, 10.0, 1.0, 10.0, 1.0], 1.1, True),
        ([1.0, 1.0, 1.0, 50.0, 50.0], [1.0] * 5, 1.0, False),
        ([1.0, 2.0, 30.0, 1.0, 30.0], [1.0, 1.0, 30.0, 1.0, 30.0], 1.0, False),
    ],
    ids=[
        "same", "past", "at the threshold", "faster", "a slow spell hits both", "slower in any spell",
        "two rounds disturbed",
        "medians apart, rounds not",
    ],
)  # fmt: skip
def test_verdict(here: list[float], there: list[float], ratio: float, slower: bool) -> None:
    found = compare.verdict(here, there, threshold=1.05)
    assert found.ratio == pytest.approx(ratio)
    assert found.slower == slower
    assert found.low <= found.ratio <= found.high


def test_both_take_turns_and_the_first_one_changes() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or float(len(order))  # type: ignore[func-returns-value]

    here, there = compare.taken_in_turn(side("a"), side("b"), seconds=0)
    assert "".join(order[:8]) == "abbaabba"
    assert len(here) == len(there) == compare.LEAST_ROUNDS
    assert here[:2] == [1.0, 4.0]  # in the order of rounds, as they are paired
    assert there[:2] == [2.0, 3.0]


class Given:
    """A side whose calls take what it is told, on a machine that is slower in every other round."""

    def __init__(self, seconds: float, absent: str = "") -> None:
        self.times: Iterator[float] = itertools.cycle([seconds, 3 * seconds])
        self.first = {"absent": absent} if absent else {"seconds": seconds}
        self.asked: list[dict[str, Any]] = []

    def ask(self, **request: Any) -> dict[str, Any]:
        self.asked.append(request)
        return self.first if "op" in request else {"seconds": next(self.times)}


@pytest.mark.parametrize(
    ("here", "there", "threshold", "status", "said"),
    [
        (Given(0.010), Given(0.010), 1.05, 0, "1.000 of old"),
        (Given(0.012), Given(0.010), 1.05, compare.SLOWER, "1.200 of old"),
        (Given(0.012), Given(0.010), 1.25, 0, "1.200 of old"),
        (Given(0.012), Given(0.0, "no such op"), 1.05, compare.NOTHING, "not compared (old: no such op)"),
        (Given(0.0, "not built"), Given(0.010), 1.05, compare.NOTHING, "not compared (here: not built)"),
    ],
    ids=["same", "slower", "slower but allowed", "absent there", "absent here"],
)
def test_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    here: Given, there: Given, threshold: float, status: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(compare, "SECONDS", 0.0)
    assert (
        compare.compare_sides(here, there, [("some 1x2 float32 forward", REQUEST)], "old", threshold)
        == status
    )
    assert f"some 1x2 float32 forward: {said}" in capsys.readouterr().out


def test_quick_calls_are_timed_several_at_a_time_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "SECONDS", 0.0)
    here, there = Given(0.002), Given(0.001)
    compare.compare_sides(here, there, [("g", REQUEST)], "old", 1.05)
    assert {request["calls"] for request in here.asked[1:] + there.asked[1:]} == {
        10
    }  # 0.02 s of the slower one


def fake_tree(tmp_path: Path, body: str) -> Path:
    (tmp_path / "cpl_kernels").mkdir()
    (tmp_path / "cpl_kernels" / "__init__.py").write_text(body)
    (tmp_path / "benchmarks").mkdir()  # another commit's, which must not be used
    (tmp_path / "benchmarks" / "__init__.py").write_text("raise RuntimeError('the wrong benchmarks')\n")
    return tmp_path


def test_a_side_has_its_own_kernels_and_our_benchmarks(tmp_path: Path) -> None:
    """A tree without the public functions is named, and can be asked on."""
    side = compare.Side(fake_tree(tmp_path, "print('chatter')\nclass BackendError(RuntimeError): pass\n"))
    try:
        for _ in range(2):
            answer = side.ask(op=known_ops()[0], problem=0, dtype="float32", passes="forward")
            assert "cpl_kernels" in answer["absent"]
        assert side.ask(calls=3)["seconds"] >= 0
    finally:
        side.close()
    assert side.process.returncode is not None


def test_a_side_that_dies_ends_the_comparison(tmp_path: Path) -> None:
    side = compare.Side(fake_tree(tmp_path, "raise SystemExit(5)\n"))
    with pytest.raises(compare.CompareError, match="ended with 5"):
        side.ask(calls=1)
    side.close()


def worktrees() -> str:
    return subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout


needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout: this is an archive")


@needs_git
@pytest.mark.parametrize("trouble", [KeyboardInterrupt, SystemExit, compare.CompareError])
@pytest.mark.parametrize("when", ["building", "comparing"])
def test_the_worktree_is_removed_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, when: str, trouble: type[BaseException]
) -> None:
    trees: list[Path] = []

    def build(tree: Path) -> None:
        assert (tree / "setup.py").exists()
        assert str(tree) in worktrees()
        trees.append(tree)
        if when == "building":
            raise trouble

    monkeypatch.setattr(compare, "_build", build)
    with pytest.raises(trouble), compare.checked_out("HEAD"):
        raise trouble
    assert not trees[0].parent.exists()
    assert str(trees[0]) not in worktrees()


@needs_git
def test_a_worktree_that_git_cannot_remove_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_build", lambda tree: shutil.rmtree(tree))
    with compare.checked_out("HEAD") as tree:
        pass
    assert str(tree) not in worktrees()
    assert not tree.parent.exists()


@needs_git
def test_an_unknown_commit_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "stale", lambda: None)
    monkeypatch.setattr(idle, "check", lambda: None)
    assert compare.main(["no-such-commit"]) == compare.NOTHING
    assert "no-such-commit" in capsys.readouterr().err


def test_an_unknown_op_is_named_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["HEAD", "--op", "layer_norm3d"])
    said = capsys.readouterr().err
    assert "layer_norm3d" in said
    assert all(op in said for op in known_ops())


def test_a_core_older_than_its_sources_is_refused(tmp_path: Path) -> None:
    (tmp_path / "csrc" / "some_op").mkdir(parents=True)
    (tmp_path / "cpl_kernels").mkdir()
    source, core = tmp_path / "csrc" / "some_op" / "cpu.cpp", tmp_path / "cpl_kernels" / "_core.so"
    source.touch()
    assert "not built" in str(compare.stale(tmp_path))
    core.touch()
    os.utime(core, (200, 200))
    os.utime(source, (100, 100))
    assert compare.stale(tmp_path) is None
    os.utime(source, (300, 300))
    assert "csrc/some_op/cpu.cpp is newer" in str(compare.stale(tmp_path))


@needs_git
@pytest.mark.slow
def test_head_against_head() -> None:
    """From end to end; that one commit is as fast as itself is not asserted, on a machine that others use too."""
    before = worktrees()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", "HEAD", "--op", "gated_dwconv", "--threshold", "1000"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, idle.VARIABLE: "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" of HEAD (quartiles ") == 6  # three sizes, two passes
    assert "0 of 6 slower" in done.stdout
    assert worktrees() == before

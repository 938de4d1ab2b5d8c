"""Steps of the whole network: the plain one is the same function, and the command measures what it says."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cpl
from benchmarks import bench_step, harness, memory
from benchmarks.gpu import stages
from benchmarks.plain import Block, PlainRestorer
from benchmarks.step import cases, measure, page, peaks
from benchmarks.step.cases import Case

TINY = "cplir-tiny:1x16x16:float32:train"
MISSING = {"case": TINY, "error": "not measured: the time was up"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Of images so small the barriers between threads would be all that takes time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def networks() -> tuple[torch.nn.Module, PlainRestorer]:
    torch.manual_seed(0)
    ours = cpl.create_model("cplir-tiny", top_k=2)
    for parameter in ours.parameters():  # off where a fresh norm or temperature does nothing
        parameter.data += 0.02 * torch.randn_like(parameter)
    plain = PlainRestorer(ours.config)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("size", [(2, 16, 24), (1, 13, 9), (1, 3, 1)])
def test_plain_is_the_same_function(
    networks: tuple[torch.nn.Module, PlainRestorer], size: tuple[int, int, int], checkpointed: bool
) -> None:
    batch, *image = size
    x = torch.rand(batch, 3, *image, generator=torch.Generator().manual_seed(1))
    for part in networks[1].modules():
        if isinstance(part, Block):
            part.checkpointed = checkpointed
    restored, gradients = [], []
    for network in networks:
        network.zero_grad()
        restored.append(network(x))
        restored[-1].square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*restored, rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys() == dict(networks[0].named_parameters()).keys()
    theirs = gradients[1]
    for name, gradient in gradients[0].items():
        far = float((theirs[name] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-6))
        assert far < 1e-3, name


@pytest.mark.parametrize("name", ["cplir", "cplir-small", "promptir"])
def test_plain_has_the_names_and_shapes_of_ours(name: str) -> None:
    ours, plain = cases.empty(name, plain=False), cases.empty(name, plain=True)
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (ours, plain)]
    assert shapes[0] == shapes[1]


def test_plain_says_what_it_was_not_written_for() -> None:
    with pytest.raises(ValueError, match="cplir networks"):
        PlainRestorer(cpl.models.MODELS["restormer"])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry, with a profile: each implementation is there, and page and chart can be made of it."""
    out = tmp_path / "step.json"
    monkeypatch.setattr(bench_step.signal, "signal", lambda *_: None)  # the tests' own stays
    bench_step.main(["--device", "cpu", "--out", str(out), "--dry", "--cases", TINY, "--profile"])
    result = json.loads(out.read_text())
    step, profile = result["cases"]
    kept = {f"ours, {what}" for what in ("keep=products", "keep=input", "checkpoint of its blocks")}
    names = {"ours (default)", "plain", "ours (reference)", "plain, checkpoint of its blocks", *kept}
    assert {row["name"] for row in step["rows"]} == names
    assert step["failed"] == step["absent"] == profile["failed"] == {}
    assert all(row["peak_bytes"] > 0 and row["seconds"] > 0 for row in step["rows"])
    assert len({round(row["gradient_norm"], 4) for row in step["rows"]}) == 1
    assert 0 < len(profile["profile"]["plain"]["top"]) <= 25
    written = page.markdown({**result, "cases": [*result["cases"], MISSING]})
    assert all(name in written for name in (*names, "A dry run", "the time was up"))
    page.report.chart(page.as_report(result), tmp_path / "step.png")
    assert not list(tmp_path.glob("*.part"))


def test_all_listed_cases_can_be_read_and_what_matters_comes_first() -> None:
    for specs in cases.DEFAULT.values():
        assert [str(Case.parse(spec)) for spec in specs] == list(specs)
        assert len(set(specs)) == len(specs)
    first = "cplir:8x128x128:bfloat16:train"
    assert bench_step.listed([], "cuda", profile=True)[:3] == [first, f"{first}:blocks", f"{first}:profile"]
    assert bench_step.listed([TINY], "cpu", profile=True) == [TINY, f"{TINY}:profile"]
    with pytest.raises(ValueError, match="is no case"):
        Case.parse("cplir:8x128:bfloat16:train")


def test_ours_is_the_unit_on_a_gpu() -> None:
    for spec in cases.CUDA:
        names = list(cases.variants(Case.parse(spec), "cuda"))
        assert harness.unit_of(dict.fromkeys(names)) == names[0] == "ours (default)"
        assert names[1] == "plain"


def test_it_is_no_op() -> None:
    assert "step" not in harness.OPS
    assert "step" not in stages.known_ops()


@pytest.fixture
def measurement(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(spec: str, **options: Any) -> measure.Measurement:
        asked = {"left_out": {}, "compile_ours": False, "ready_seconds": 60.0, **options}
        return measure.Measurement(Case.parse(spec), torch.device("cpu"), time.monotonic() + 600, asked)

    return make


def test_one_that_is_wrong_slow_or_left_out_is_named_and_the_others_are_ready(
    measurement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = cases.Step.look

    def look(step: cases.Step) -> dict[str, float]:
        if step.variant.backend == "reference":
            with measure.at_most(0.05):
                time.sleep(5)
        found = genuine(step)
        return {**found, "loss": found["loss"] * 1.01} if step.variant.checkpointed else found

    monkeypatch.setattr(cases.Step, "look", look)
    one = measurement(TINY)
    one.prepare()
    assert set(one.calls) == {"ours (default)", "plain", "ours, keep=products", "ours, keep=input"}
    assert "was not ready" in one.failed["ours (reference)"]
    assert "its loss is" in one.failed["plain, checkpoint of its blocks"]
    other = measurement(TINY, left_out={"plain": "it crashed"})
    other.prepare()
    assert other.failed["plain"] == "it crashed"
    assert "plain" not in other.calls


WORKER = """\
import json, os, sys
asked = json.loads(sys.argv[-1])
for spec in asked["cases"]:
    print(json.dumps({"trying": "bad"}), flush=True)
    if spec == "b" and "bad" not in asked["left_out"]:
        os.abort()
    print(json.dumps({"trying": None}), flush=True)
    if spec == "c":
        sys.exit(3)
    print("a library's word", flush=True)
    print(json.dumps({"case": spec, "failed": asked["left_out"]}), flush=True)
    asked["left_out"] = {}
"""


def as_worker(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bench_step start ``source`` for benchmarks.step.measure."""
    (tmp_path / "benchmarks" / "step").mkdir(parents=True)
    for name in ("", "step/"):
        (tmp_path / "benchmarks" / name / "__init__.py").touch()
    (tmp_path / "benchmarks" / "step" / "measure.py").write_text(source)
    monkeypatch.setattr(bench_step, "ROOT", tmp_path)
    monkeypatch.delitem(os.environ, "PYTHONPATH", raising=False)


def test_a_crash_costs_one_implementation_or_one_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_worker(WORKER, tmp_path, monkeypatch)
    found = list(bench_step.measured("abcd", "cpu", 60.0, {"ready_seconds": 9.0}))
    assert [one["case"] for one in found] == list("abcd")
    assert "ended with -6" in found[1]["failed"]["bad"]
    assert found[2]["error"] == "the process ended with 3"
    assert found[0]["failed"] == found[3]["failed"] == {}
    assert list(bench_step.measured("a", "cpu", 1.0, {})) == [{**MISSING, "case": "a"}]


PATIENT = """
import json, sys, time
for spec in json.loads(sys.argv[-1])["cases"]:
    print(json.dumps({"trying": None}), flush=True)
    for _ in range(16):
        time.sleep(0.5)
        if spec == "long":
            print(json.dumps({"alive": True}), flush=True)
    if spec == "silent":
        time.sleep(50)
    print(json.dumps({"case": spec}), flush=True)
"""


def test_whoever_gives_signs_of_life_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_worker(PATIENT, tmp_path, monkeypatch)
    monkeypatch.setattr(bench_step, "QUIET", 3.0)
    found = list(bench_step.measured(["long", "silent"], "cpu", 60.0, {"ready_seconds": 3.0}))
    assert found == [{"case": "long"}, {"case": "silent", "error": "no word in 6 s"}]


def test_signs_of_life_come_with_every_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_a_round(calls: Any, clock: Any) -> dict[str, list[float]]:
        return {name: [clock(call)] for name, call in calls.items()}

    monkeypatch.setattr(harness, "interleaved", in_a_round)
    options = {"left_out": {}, "compile_ours": False, "ready_seconds": 60.0}
    one = measure.Measurement(Case.parse(TINY), torch.device("cpu"), time.monotonic() + 600, options)
    one.prepare()
    capsys.readouterr()
    names = [row["name"] for row in one.rows()]
    said = stages.json_lines(capsys.readouterr().out)
    assert said == [{"alive": True}] * 2 * len(names)  # its memory, and its time
    assert all(one.peaks.values())


def test_one_killed_for_memory_costs_its_own_peak_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def killed_once(work: Any) -> None:
        done.append("called")
        if len(done) == 1:
            raise RuntimeError("the process that measures ended with -9")

    monkeypatch.setattr(memory, "in_a_process_of_its_own", killed_once)
    threads = torch.get_num_threads()
    try:
        peaks.main(TINY, str(threads), cases.PLAIN, "ours (default)")
    finally:
        torch.set_num_threads(threads)
    assert len(done) == 2
    said = capsys.readouterr()
    assert f"peak memory of {cases.PLAIN}: the process that measures ended with -9" in said.err
    assert stages.json_lines(said.out) == [
        {"name": cases.PLAIN, "peak_bytes": None}
    ]  # which is a sign of life, too

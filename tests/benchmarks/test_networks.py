"""python -m benchmarks.networks, on a made-up network: what the table says of the published ones is measured so."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.networks import __main__ as command
from benchmarks.networks import clones, loading, measure, page, runs, stand_ins
from benchmarks.networks.catalogue import NETWORKS, Network

# As in published files: packages that are absent, a name that is not defined, a residual that starts at 0, random
# numbers, sums in fp32 whatever the input, a list as the result, a constructor that prints.
SOURCE = """
import torch
from torch import nn
from absent_here import registry
from absent_here.transforms import Resize
from absent_here.registry import REGISTRY
from helper import Norm

assert registry.REGISTRY is REGISTRY


@REGISTRY.register()
class Made(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        print("building")
        self.embed = nn.Conv2d(3, width, 3, padding=1)
        self.norm = Norm(width)
        self.close = nn.Conv2d(width, 3, 1)
        self.scale = nn.Parameter(torch.zeros(1))
        self.wanted = not_defined

    def forward(self, x, vector):
        y = self.norm(self.embed(x)) + vector.mean()
        y = y + 0.1 * torch.randn_like(y)
        return [x, x + self.scale * self.close(y).float()]
"""
HELPER = """
import torch
from torch import nn


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x):
        eps = 1e-5 if x.dtype == torch.float32 else 1e-1
        mean = x.mean(1, keepdim=True)
        return (x - mean) / (x.var(1, keepdim=True, unbiased=False) + eps).sqrt() * self.g
"""


def git(*arguments: str | Path, at: Path) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=at, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


@pytest.fixture
def made(tmp_path: Path) -> tuple[Network, str]:
    """The network, and where its repository is."""
    origin = tmp_path / "somebody+Made"
    (origin / "package" / "inner").mkdir(parents=True)
    (origin / "package" / "__init__.py").write_text("raise AssertionError('it imports everything')")
    (origin / "package" / "inner" / "net.py").write_text(SOURCE)
    (origin / "helper.py").write_text(HELPER)
    (origin / "large.bin").write_text("not needed")
    git("init", "--quiet", at=origin)
    git("add", ".", at=origin)
    git("commit", "--quiet", "-m", "first", at=origin)
    network = Network(
        "Made",
        "somebody/Made",
        git("rev-parse", "HEAD", at=origin),
        ("package/inner/net.py", "helper.py"),
        "package.inner.net",
        lambda m: m.Made(),
        "eight channels",
        bare=("package", "package.inner"),
        absent=("absent_here",),
        others=lambda image: (torch.ones(len(image), 4),),
        constants=("not_defined",),
        dtype_matters=True,
        note="it draws numbers",
    )
    return network, str(tmp_path / "{owner}+{name}")


@pytest.fixture
def root(made: tuple[Network, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The clones, and an interpreter that forgets afterwards what was imported from them."""
    network, source = made
    clones.clone(network.repository, network.commit, set(network.files), tmp_path / "clones", source)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(stand_ins.GIVEN, "absent_here.registry", {"REGISTRY": stand_ins.Registry()})
    before, threads = set(sys.modules), torch.get_num_threads()
    yield tmp_path / "clones"
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("package", "absent_here", "helper"):
            del sys.modules[name]
    vars(builtins).pop("not_defined", None)


def test_a_clone_has_the_files_at_the_commit_and_no_more(made: tuple[Network, str], root: Path) -> None:
    network, source = made
    folder = root / "Made"
    files = sorted(
        str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and ".git" not in f.parts
    )
    assert files == ["helper.py", "package/inner/net.py"]
    assert clones.commit_of(network, root) == network.commit
    clones.clone(network.repository, network.commit, set(network.files), root, source)  # again: no error
    (folder / "helper.py").write_text("# changed\n")
    assert clones.commit_of(network, root) == network.commit + " with changes"


def test_a_network_is_measured(
    made: tuple[Network, str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, _ = made
    row = measure.measured(network, root, side=12, timed_side=16, seconds=0.0, rounds=2)
    assert capsys.readouterr().out == ""  # stdout is for the line of JSON
    assert (row["name"], row["commit"], row["timed_image"]) == ("Made", network.commit, "1x3x64x64")
    assert row["parameters"] == 3 * 8 * 9 + 8 + 8 + 8 * 3 + 3 + 1
    for whose in ("published", "patched", "patched_against_published"):
        # 1e-1 instead of 1e-5 under the root would be off by percents, other random numbers by tenths.
        assert row["errors"][whose]["output"] < 1e-5, whose
        assert 0 <= row["errors"][whose]["gradients"] < 1e-5, whose
    assert row["errors"]["published"]["output"] > 0
    assert row["saved_bytes"]["published"] > 4 * 8 * 64 * 64
    assert row["time"]["rounds"] == 2
    assert row["time"]["ratio_least"] <= row["time"]["ratio"] <= row["time"]["ratio_most"]
    assert "time" not in measure.measured(network, root, side=12, timed_side=16, seconds=0.0, rounds=0)


def test_constants_are_moved_and_nothing_else_is() -> None:
    model = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5))
    before = model[1].weight.clone()
    loading.move_constants(model)
    assert model[0].weight.unique().numel() == 5
    assert model[0].bias.unique().numel() == 5
    assert torch.equal(model[1].weight, before)


def test_a_wrong_patch_is_seen() -> None:
    exact = torch.tensor([1.0, -4.0]).double(), {"a": torch.ones(3).double(), "b": torch.zeros(2).double()}
    right = measure.errors((exact[0].float(), {k: g.float() for k, g in exact[1].items()}), exact)
    assert right == {"output": 0, "gradients": 0, "worst_gradient": 0, "worst_gradient_of": "a"}
    grads = {"a": torch.tensor([1.0, 1.0, 1.5]), "b": torch.tensor([0.0, 1e-5])}
    wrong = measure.errors((torch.tensor([1.0, -3.0]), grads), exact)
    assert wrong["output"] == pytest.approx(1 / 4)
    assert wrong["gradients"] == pytest.approx(0.5 / 3**0.5)
    # b's own gradient is 0: what it is off by counts against SMALL of the largest.
    assert (wrong["worst_gradient"], wrong["worst_gradient_of"]) == (pytest.approx(1), "b")
    nan = measure.errors((torch.tensor([1.0, float("nan")]), grads), exact)
    assert nan["output"] == float("inf")
    with pytest.raises(AssertionError, match="'b'"):
        measure.errors((exact[0], {"a": exact[1]["a"]}), exact)


def test_runs_keep_the_order_of_the_first() -> None:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        values, order = x.sort(-1)
        best = torch.topk(x, k=2, dim=0)
        return values, order, x.sort(dim=-1, descending=True).values, best.values, best.indices

    first = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 2.5, 2.0]])
    rounded = first + torch.tensor([[0.0, 1.1, 0.0], [0.0, 0.0, 0.0], [0.6, 0.0, 0.0]])
    choices = runs.Choices()
    with choices:
        values, order, *_, best = run(first)
    assert torch.equal(values, first.sort(-1).values)
    with choices:
        of_rounded = run(rounded)
        beyond = rounded.sort(-1).values
    assert torch.equal(of_rounded[1], order)
    assert torch.equal(of_rounded[0], rounded.gather(-1, order))
    assert not torch.equal(of_rounded[0], rounded.sort(-1).values)
    assert torch.equal(of_rounded[3], rounded.gather(0, best))
    assert torch.equal(beyond, rounded.sort(-1).values)  # the first run had no second sort of this kind
    assert torch.equal(of_rounded[2], rounded.gather(-1, first.sort(-1, descending=True).indices))


def test_what_was_sorted_may_be_written_into() -> None:
    choices = runs.Choices()
    for _ in range(2):
        leaf = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
        x = leaf * 1
        with choices:
            values, _order = x.sort()
            y = torch.relu(x)
        x[:] = values
        (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        assert torch.equal(leaf.grad, torch.tensor([1.0, 2.0, 3.0]))


def test_runs_keep_the_side_of_a_relu() -> None:
    choices, x = runs.Choices(), torch.tensor([1.0, -1.0, 0.5])
    rounded = torch.tensor([1.0, 1.0, -0.5], requires_grad=True)
    with choices:
        assert torch.equal(nn.ReLU(inplace=True)(x.clone()), x.relu())
    with choices:
        y = nn.ReLU()(rounded)
    y.sum().backward()
    assert torch.equal(y, torch.tensor([1.0, 0.0, -0.5]))
    assert torch.equal(rounded.grad, torch.tensor([1.0, 0.0, 1.0]))


class _Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(100))

    def forward(self, x: Tensor) -> Tensor:
        y = (
            x[..., :1].exp() * self.weight.view(1, 4, 5, 5)[..., :1]
        )  # keeps y, a view of 1/5, and the parameter
        return y.sin()


def test_saved_bytes_count_storages_once_and_no_parameter() -> None:
    given = runs.Inputs(torch.ones(1, 4, 5, 5), ())
    assert measure.saved_bytes(_Keeps(), given) == 2 * 4 * 20  # exp's result, which two keep, and sin's input


def test_turns_are_ratios_of_one_round() -> None:
    seen: list[str] = []
    found = measure.turns(lambda: seen.append("one"), lambda: seen.append("other"), seconds=0.0, most=5)
    assert seen == ["one", "other", *("other", "one"), *("one", "other")]
    assert found["rounds"] == measure.LEAST_ROUNDS


def test_stand_ins_can_be_imported_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    stand_ins.install(("absent_here",))
    module = __import__("absent_here.deeper.still", fromlist=["thing"])
    with pytest.raises(ModuleNotFoundError, match=r"absent_here\.deeper\.still\.thing is a stand-in"):
        module.thing(3)
    for name in list(sys.modules):
        if name.split(".")[0] == "absent_here":
            del sys.modules[name]
    image = torch.arange(48.0).view(1, 3, 4, 4)
    assert stand_ins.Resize([2, 2])(image).shape == (1, 3, 2, 2)


def test_a_process_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "processor", lambda: "a processor")
    out = tmp_path / "found.json"
    arguments = ["--root", str(tmp_path / "nowhere"), "--out", str(out), "--rounds", "0", "--threads", "1"]
    command.main([*arguments, "--only", "NAFNet"])
    result = json.loads(out.read_text())
    (row,) = result["rows"]
    assert row["name"] == "NAFNet"
    assert "must be a clone of megvii-research/NAFNet, got no folder" in row["failed"]
    assert result["processor"] == "a processor"
    assert result["machine_was"] == "no times taken"
    assert "- NAFNet was not run: FileNotFoundError: " in page.table(result)


def _row(name: str, **more: Any) -> dict[str, Any]:
    errors = {"output": 1.5e-7, "gradients": 2e-6, "worst_gradient": 3e-5, "worst_gradient_of": "w"}
    return {
        "name": name,
        "repository": "somebody/Made",
        "commit": "0123456789abcdef",
        "configuration": "small",
        "note": "",
        "parameters": 26_100_000,
        "taken": {"layer norm": 3, "gate": 1},
        "left": [{"kind": "gate", "why": "it is a | b\nand c", "count": 4, "examples": ["", "x", "y"]}],
        "errors": {"published": errors, "patched": {**errors, "output": 1e-7}},
        "saved_bytes": {"published": 3 * 2**20, "patched": 2**20},
        "timed_image": "1x3x128x128",
        **more,
    }


def test_what_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(name: str, _args: object) -> dict[str, Any]:
        asked.append(name)
        return _row(name)

    monkeypatch.setattr(command, "run", run)
    out = tmp_path / "found.json"
    out.write_text(json.dumps({"rows": [_row("AdaIR"), {"name": "NAFNet", "failed": "memory"}]}))
    arguments = ["--root", ".", "--out", str(out), "--rounds", "0"]
    command.main([*arguments, "--resume", "--only", "AdaIR", "NAFNet", "Restormer"])
    assert asked == ["NAFNet", "Restormer"]
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == ["Restormer", "AdaIR", "NAFNet"]


def test_the_page_has_a_row_a_network_and_the_reasons_of_what_was_left() -> None:
    time = {
        "published_seconds": 3.0,
        "patched_seconds": 2.0,
        "ratio": 1.5,
        "ratio_least": 1.4,
        "ratio_most": 1.6,
        "rounds": 3,
    }
    result = {
        "processor": "a processor",
        "threads": 2,
        "machine_was": "idle",
        "versions": {"torch": "2.13.0", "cpl_kernels": "1"},
        "checkout": "f" * 40,
        "date": "2026-01-01T00:00:00",
        "side": 64,
        "timed_side": 128,
        "rows": [_row("A", time=time, note="it sorts"), _row("B", left=[], timed_image="1x3x256x256")],
    }
    text = page.markdown(result)
    assert (
        "| A (small) | [somebody/Made](https://github.com/somebody/Made/tree/0123456789abcdef) 0123456 | 26.1 M | "
        "3 x layer norm, 1 x gate | 1.0e-07 (1.5e-07) | 2.0e-06 (2.0e-06) | 3.0e-05 (3.0e-05) | 3 to 1 | "
        "1.50x (1.40 to 1.60), 3.00 s to 2.00 s |" in text
    )
    assert "| 3 to 1 (1x3x256x256) | not timed |" in text
    assert "- A: it sorts." in text
    assert "  - the network itself, `x`, `y` and 1 more (gate): it is a \\| b and c" in text
    assert "- B: nothing that looked like a block of ours" in text
    there = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    put = page.put_into(there, result)
    assert put == f"before\n{page.BEGIN}\n{page.table(result)}{page.END}\nafter\n"
    assert page.put_into(put, result) == put
    with pytest.raises(ValueError, match="got another number"):
        page.put_into("no comments", result)


def test_the_docs_show_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    result = json.loads((root / command.OUT).read_text())
    docs = (root / "docs" / "drop_in.md").read_text()
    assert docs == page.put_into(docs, result)
    assert (root / command.OUT.with_suffix(".md")).read_text() == page.markdown(result)
    assert [row["name"] for row in result["rows"]] == [network.name for network in NETWORKS]
    for row, network in zip(result["rows"], NETWORKS, strict=True):
        assert "failed" in row or row["commit"] == network.commit


def test_the_catalogue_names_each_network_once_at_a_commit() -> None:
    assert len({network.name for network in NETWORKS}) == len(NETWORKS)
    for network in NETWORKS:
        assert len(network.commit) == 40
        assert f"{network.module.replace('.', '/')}.py" in {
            str(Path(file).relative_to(network.path)) for file in network.files
        }
    # One commit a repository, since there is one folder for it.
    assert len({n.repository for n in NETWORKS}) == len({(n.repository, n.commit) for n in NETWORKS})

"""Our own checkpoints: what goes in comes out, and what cannot be read is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import cpl
import cpl.files
from cpl.errors import CplError
from cpl.models.provenance import commit


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return cpl.create_model("cplir-tiny", num_prompts=4, top_k=2, task_names=("noise", "rain"))


@pytest.fixture
def path(tmp_path, model):
    cpl.save_checkpoint(model, tmp_path / "best.safetensors", step=12, psnr={"rain": 30.5})
    return tmp_path / "best.safetensors"


def rewrite(path: Path, metadata: dict | None = None, **tensors: torch.Tensor) -> None:
    """Change a written checkpoint, as another version or a bad disk would have."""
    with safetensors.safe_open(path, "pt") as opened:
        kept = opened.metadata()
    state = safetensors.torch.load_file(path) | tensors
    kept = {name: value for name, value in (kept | (metadata or {})).items() if value is not None}
    safetensors.torch.save_file(state, path, kept)


def refusal(path: Path, **arguments: str) -> str:
    with pytest.raises(CplError) as caught:
        cpl.load_checkpoint(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_round_trip_gives_the_same_network(model, path):
    loaded, info = cpl.load_checkpoint(path)
    assert loaded.config == model.config
    assert loaded.architecture == "cplir-tiny"
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    x = torch.rand(1, 3, 9, 8)
    assert torch.equal(loaded(x), model(x))
    assert loaded(x).requires_grad  # it can be trained on
    assert {
        name: info[name] for name in ("architecture", "format", "format_version", "version", "commit")
    } == {
        "architecture": "cplir-tiny",
        "format": "cpl-checkpoint",
        "format_version": 1,
        "version": cpl.__version__,
        "commit": commit(),
    }
    assert info["config"] == model.config.to_dict()
    assert info["task_names"] == ["noise", "rain"]
    assert (info["step"], info["psnr"], info["dtype"]) == (12, {"rain": 30.5}, "float32")


def test_other_weights_can_be_saved_in_the_models_place(tmp_path, model):
    average = {name: value + 1 for name, value in model.state_dict().items()}
    cpl.save_checkpoint(model, tmp_path / "a.safetensors", weights=average)
    loaded = cpl.load_checkpoint(tmp_path / "a.safetensors")[0].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in average.items())


def test_wrapped_models_are_unwrapped(tmp_path, model):
    for wrapped in (torch.compile(model), torch.nn.DataParallel(model)):
        cpl.save_checkpoint(wrapped, tmp_path / "w.safetensors")
        assert cpl.load_checkpoint(tmp_path / "w.safetensors")[0].config == model.config


@pytest.mark.parametrize(
    ("dtype", "loaded"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)]
)
def test_half_precision_is_widened_and_double_kept(tmp_path, model, dtype, loaded):
    weights = {name: value.to(dtype) for name, value in model.state_dict().items()}
    cpl.save_checkpoint(model, tmp_path / "d.safetensors", weights=weights)
    read, info = cpl.load_checkpoint(tmp_path / "d.safetensors")
    assert info["dtype"] == str(dtype).removeprefix("torch.")
    assert {value.dtype for value in read.parameters()} == {loaded}


def test_what_is_saved_is_plain_safetensors_with_the_documented_metadata(path, model):
    with safetensors.safe_open(path, "pt") as opened:
        metadata = opened.metadata()
        assert set(opened.keys()) == set(model.state_dict())
    assert set(metadata) == {
        "format",
        "format_version",
        "architecture",
        "config",
        "version",
        "commit",
        "info",
    }
    assert json.loads(metadata["info"]) == {"step": 12, "psnr": {"rain": 30.5}}


def test_a_full_disk_leaves_the_older_file(path, model, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cpl.files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cpl.save_checkpoint(model, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_saving_refuses_before_it_writes(tmp_path, model):
    broken = dict(model.state_dict())
    broken["output.weight"] = torch.full_like(broken["output.weight"], torch.nan)
    with pytest.raises(CplError, match=r"NaN or infinity in output\.weight; this training has diverged"):
        cpl.save_checkpoint(model, tmp_path / "a", weights=broken)
    with pytest.raises(CplError, match=r"1 missing: output\.weight"):
        cpl.save_checkpoint(
            model, tmp_path / "a", weights={k: v for k, v in broken.items() if k != "output.weight"}
        )
    with pytest.raises(CplError, match="no folder .*absent; create it first"):
        cpl.save_checkpoint(model, tmp_path / "absent" / "a")
    with pytest.raises(CplError, match="it is a folder"):
        cpl.save_checkpoint(model, tmp_path)
    with pytest.raises(ValueError, match="'version' is the checkpoint's own"):
        cpl.save_checkpoint(model, tmp_path / "a", version="3")
    with pytest.raises(TypeError, match="JSON"):
        cpl.save_checkpoint(model, tmp_path / "a", when=object())
    with pytest.raises(TypeError, match="got Linear"):
        cpl.save_checkpoint(torch.nn.Linear(1, 1), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_newer_format_is_refused_by_name(path):
    rewrite(path, {"format_version": "2", "version": "9.9"})
    message = refusal(path)
    assert "format 2 (written by cpl 9.9)" in message
    assert "reads format 1: pip install -U" in message


def test_an_older_format_is_refused_by_name(path):
    rewrite(path, {"format_version": "0"})
    assert "format 0" in refusal(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": "cplir-huge"}, "no model 'cplir-huge'"),
        ({"config": "{"}, "describes no network"),
        ({"config": '{"depth": 3}'}, "no setting 'depth'"),
        ({"config": '{"dim": 15}'}, "15"),
        ({"config": None}, "its metadata lacks 'config'"),
        ({"format_version": None}, "format missing"),
        ({"info": "[3]"}, "describes no network"),
    ],
)
def test_metadata_that_cannot_be_is_refused(path, metadata, message):
    rewrite(path, metadata)
    assert message in refusal(path)


def test_weights_that_do_not_fit_are_named(path):
    rewrite(path, {}, **{"output.weight": torch.zeros(3, 2, 3, 3), "extra.weight": torch.zeros(1)})
    message = refusal(path)
    assert "1 unexpected: extra.weight" in message
    assert "output.weight (3, 2, 3, 3) instead of (3, 32, 3, 3)" in message


def test_integer_weights_are_named(path):
    rewrite(path, {}, **{"output.weight": torch.zeros(3, 32, 3, 3, dtype=torch.int8)})
    assert "1 not floating point: output.weight torch.int8" in refusal(path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(path, value):
    weight = torch.zeros(5, 32)
    weight = torch.zeros(4, 32).index_fill_(0, torch.tensor(1), value)
    rewrite(path, {}, **{"prompt1.linear_layer.weight": weight})
    assert "NaN or infinity in prompt1.linear_layer.weight" in refusal(path)


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut short" in refusal(path)
    path.write_bytes(path.read_bytes()[:1000])
    assert "cut short" in refusal(path)


def test_what_is_no_checkpoint_file_is_refused(tmp_path):
    assert "is a folder" in refusal(tmp_path)
    assert "there is no checkpoint" in refusal(tmp_path / "absent.safetensors")
    text = tmp_path / "text.safetensors"
    for content, reason in (("", "it is empty"), ("hello, I am a text", "neither safetensors")):
        text.write_text(content)
        assert reason in refusal(text)


def test_our_own_file_says_itself_what_it_is(path):
    with pytest.raises(ValueError, match="leave architecture and top_k out"):
        cpl.load_checkpoint(path, top_k=1)


def test_without_safetensors_the_error_names_the_extra(path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: cpl.load_checkpoint(path), lambda: cpl.save_checkpoint(model, path)):
        with pytest.raises(CplError, match=r"this needs safetensors: pip install 'cpl-kernels\[restore\]'"):
            call()


def test_models_need_nothing_but_torch():
    """In a process where every extra is absent: import, create, run, read a torch file, make a loss."""
    extras = (
        "accelerate huggingface_hub matplotlib PIL pydantic yaml rich safetensors skimage sklearn tensorboard"
    )
    script = f"""
import sys
for name in {extras.split()!r}:
    sys.modules[name] = None
import cpl, torch
model = cpl.create_model("cplir-tiny")
y, n = model.forward_with_negatives(torch.rand(1, 3, 8, 8), 1)
cpl.losses.ContrastivePromptRegularization(features="random")(y, y.detach(), n)
torch.save(model.state_dict(), sys.argv[1])
cpl.load_checkpoint(sys.argv[1])
assert "create_model" in dir(cpl) and cpl.__version__
try:
    cpl.no_such_thing
except AttributeError as error:
    assert "no_such_thing" in str(error)
print("fine")
"""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        root = Path(cpl.__file__).parents[1]
        run = subprocess.run(
            [sys.executable, "-c", script, file.name], capture_output=True, text=True, cwd=root, check=False
        )
    assert run.stdout == "fine\n", run.stderr

"""Our networks under torch.func, torch.jit.trace and torch.export."""

from __future__ import annotations

import importlib
import io

import pytest
import torch

import cpl
from cpl.models import Restorer
from cpl.nn.padding import crop, pad_to_multiple, reflected_index
from tests.transforms import assert_gradients_of_each_image, assert_same, exported, image, traced

ARCHITECTURES = ("cplir", "promptir", "restormer")
LEAST = {
    "dim": 8,
    "heads": (1, 1, 2, 2),
    "num_blocks": (1, 1, 1, 1),
    "num_refinement_blocks": 1,
}
PROMPTS = {"prompt_heads": 1, "prompt_channels": (8, 8, 8), "prompt_sizes": (4, 3, 2)}


def make(architecture: str, keep: str = "all") -> Restorer:
    torch.manual_seed(0)
    model = cpl.create_model(architecture, **LEAST, **(PROMPTS if architecture != "restormer" else {}))
    cpl.nn.set_keep(model, keep)
    return model


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trace_restores_images_of_any_size(architecture: str, grad: bool) -> None:
    model = make(architecture)
    with torch.set_grad_enabled(grad):
        made = traced(model, 3)
    assert_same(made, model, 3)


def test_a_trace_is_saved_and_trained() -> None:
    model = make("cplir", keep="input")
    file = io.BytesIO()
    torch.jit.save(traced(model, 3), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x = image(3, (2, 9, 12))
    ours = torch.autograd.grad(loaded(x).square().sum(), list(loaded.parameters()))
    theirs = dict(zip((n for n, _ in loaded.named_parameters()), ours, strict=True))
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(model(x).square().sum(), list(parameters.values()))
    for name, gradient in zip(parameters, expected, strict=True):  # keep="input" sums in another order
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    ("architecture", "strict"),
    [
        ("cplir", False),
        # The same layers once more: half a minute each.
        pytest.param("cplir", True, marks=pytest.mark.slow),
        pytest.param("promptir", False, marks=pytest.mark.slow),
        pytest.param("restormer", False, marks=pytest.mark.slow),
    ],
)
def test_an_export_restores_images_of_any_size(architecture: str, strict: bool) -> None:
    model = make(architecture).eval()
    made = exported(model, 3, strict)
    assert_same(made.module(), model, 3)
    file = io.BytesIO()
    torch.export.save(made, file)
    file.seek(0)
    assert_same(torch.export.load(file).module(), model, 3)


def test_an_export_of_one_size_pads_only_where_it_must() -> None:
    class Pad(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return crop(pad_to_multiple(x, 8) + 1, x.shape[2], x.shape[3])

    for size, padded in ((16, False), (13, True)):
        made = torch.export.export(Pad(), (image(3, (1, size, 16)),))
        ops = {str(node.target) for node in made.graph.nodes}
        assert ("aten.index_select.default" in ops) == padded


@pytest.mark.parametrize("keep", ["all", "products", "input"])
@pytest.mark.parametrize("architecture", ["cplir", "restormer"])
def test_gradients_of_each_image(architecture: str, keep: str) -> None:
    assert_gradients_of_each_image(make(architecture, keep), 3)


def test_second_derivatives_and_forward_mode_are_errors() -> None:
    model, x = make("restormer"), image(3, (1, 8, 8))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return model(x).square().sum()

    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x)
    with pytest.raises(RuntimeError, match="no derivative in forward mode"):
        torch.func.jvp(loss, (x,), (x,))


def test_without_gradients_a_large_map_is_vmapped_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over strips of rows would write into a map that vmap does not know of."""
    for half in ("attention_half", "feed_forward_half"):
        op = importlib.import_module(f"cpl_kernels.{half}.op")
        monkeypatch.setattr(op, "rows_of_a_strip", lambda *_: 4)
    model, x = make("restormer"), image(3, (2, 16, 8))
    with torch.no_grad():
        got = torch.func.vmap(lambda one: model(one[None])[0])(x)
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_index_has_no_branch(n: int) -> None:
    """Traced at one length it is right at another, a single pixel too."""
    made = torch.jit.trace(lambda x: reflected_index(x.shape[0], x.shape[0] + 9), torch.empty(5))
    assert made(torch.empty(n)).tolist() == reflected_index(n, n + 9).tolist()

"""cpl.patch takes only what it computes: at any size, scale, mode and dtype, with any parameters."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cpl
from cpl.interop import comparison
from cpl.interop.signature import key
from tests.interop import layouts, look_alikes
from tests.interop.layouts import trained


def only_left(report: cpl.interop.PatchReport, kind: str) -> bool:
    return kind not in {taken for _, taken in report.patched} and kind in {seen for _, seen, _ in report.left}


@pytest.mark.parametrize("name", look_alikes.ATTENTION)
def test_attention_that_is_another_somewhere_is_left(name: str) -> None:
    assert only_left(cpl.patch(look_alikes.ATTENTION[name]()), "channel attention")


@pytest.mark.parametrize("name", look_alikes.CROSS)
def test_cross_attention_that_is_another_somewhere_is_left(name: str) -> None:
    assert only_left(cpl.patch(look_alikes.CROSS[name]()), "cross attention")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", look_alikes.ACTIVATIONS)
def test_another_activation_is_left(name: str, dtype: torch.dtype) -> None:
    made = look_alikes.FeedForward(look_alikes.ACTIVATIONS[name]).to(dtype)
    assert only_left(cpl.patch(made), "gated feed-forward")


@pytest.mark.parametrize(
    "second",
    [torch.detach, torch.abs, lambda b: b.clamp(-30, 30), lambda b: b * (1 + 1e-6)],
    ids=["detached", "absolute", "bounded", "a hair more"],
)
def test_another_gate_is_left(second: Callable[[Tensor], Tensor]) -> None:
    made = layouts.gated_sequence(8)
    made[2] = look_alikes.Gate(second)
    assert only_left(cpl.patch(made), "gated convolution")


@pytest.mark.parametrize(
    "make",
    [
        lambda: look_alikes.LocalNAFBlock(64),
        lambda: look_alikes.DetachedNAFBlock(8),
        lambda: look_alikes.BoundedNAFBlock(8),
    ],
    ids=["detached", "bounded", "local"][::-1],
)
def test_another_gated_block_is_left(make: Callable[[], nn.Module]) -> None:
    made = make()
    if isinstance(made, look_alikes.LocalNAFBlock):  # ours calls its pooling, which may therefore be any
        assert ("", "gated block") in cpl.patch(made).patched
    else:
        assert only_left(cpl.patch(made), "gated block")


@pytest.mark.parametrize("name", look_alikes.PROMPTS)
def test_another_prompt_block_is_left(name: str) -> None:
    assert only_left(cpl.patch(look_alikes.PROMPTS[name]()), "prompt block")


@pytest.mark.parametrize("name", look_alikes.NORMS)
def test_another_norm_is_left(name: str) -> None:
    assert only_left(cpl.patch(look_alikes.NORMS[name]()), "layer norm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", look_alikes.RIGHT_NORMS)
def test_eps_is_measured(name: str, dtype: torch.dtype) -> None:
    """Taken, and right where the variance is of eps's size, to the rounding of a chain in that dtype."""
    made = trained(look_alikes.RIGHT_NORMS[name]()).to(dtype)
    numbers = torch.Generator().manual_seed(3)
    xs = [scale * torch.randn(2, 8, 5, 7, generator=numbers) for scale in (1e-2, 1.0)]
    if dtype != torch.float16:  # whose squares are 0 there
        xs.append(2e-3 * torch.randn(2, 8, 5, 7, generator=numbers))
    right = [made(x.to(dtype)) for x in xs]
    report = cpl.patch(made)
    assert report.patched == (("", "layer norm"),), str(report)
    for x, y in zip(xs, right, strict=True):
        off = (made(x.to(dtype)) - y).abs().max() / y.abs().max()
        assert off <= (
            1e-6 if name == "in float32" and dtype == torch.float64 else 8 * torch.finfo(dtype).eps
        )


def test_the_report_says_what_was_compared() -> None:
    report = cpl.patch(nn.ModuleDict({"a": layouts.LayerNorm2d(8), "b": layouts.LayerNorm2d(8)}))
    assert len(report.compared) == len(report.patched) == 2
    text = report.compared[0]
    assert text.startswith("float64, ")
    assert "1x1x2 to 1x257x259, scales 1e-06 to 1e+05, worst " in text
    assert text.endswith("also float32, float16, bfloat16, autocast to float16, autocast to bfloat16")
    assert str(report).count(text) == 1  # once for the kind


def test_a_module_that_computes_in_float32_is_compared_in_it() -> None:
    assert cpl.patch(look_alikes.WideLayerNorm(8)).compared[0].startswith("float32, ")


def test_modules_of_one_class_are_told_apart() -> None:
    """By attributes, buffers, shapes and parts; the full comparison runs once for those that are alike."""
    large = 10**9
    made = nn.ModuleDict(
        {
            "same": look_alikes.PoolsLarge(large),
            "again": look_alikes.PoolsLarge(large),
            "other": look_alikes.PoolsLarge(64 * 64),
            "last": look_alikes.PoolsLarge(large),
        }
    )
    report = cpl.patch(made)
    assert [name for name, kind in report.patched if kind == "channel attention"] == ["same", "again", "last"]
    assert [name for name, *_ in report.left] == ["other"]


def test_alike_modules_are_compared_in_full_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[bool] = []
    compare = comparison.compare

    def counted(*args: Any, **named: Any) -> comparison.Compared:
        runs.append(args[3] if len(args) > 3 else named["known"])
        return compare(*args, **named)

    monkeypatch.setattr(
        import_module("cpl.interop.patch"), "compare", counted
    )  # the package names a function so
    cpl.patch(nn.Sequential(*(layouts.LayerNorm2d(8) for _ in range(4)), layouts.LayerNorm2d(8, 1e-5)))
    assert runs == [False, True, True, True, False]


class Table(nn.Module):
    def __init__(self, value: object, buffer: float = 1.0) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.full((3,), buffer))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Table(1), Table(2)),
        (Table(1), Table(1.0)),
        (Table(0.0), Table(-0.0)),
        (Table((1, [2, {"a": 3}])), Table((1, [2, {"a": 4}]))),
        (Table(torch.zeros(2)), Table(torch.ones(2))),
        (Table(abs), Table(len)),
        (Table({1, 2}), Table({1, 3})),
        (Table(None, 1.0), Table(None, 2.0)),
        (Table(None).half(), Table(None)),
        (Table(object()), Table(object())),  # what cannot be looked into is like itself only
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())),
        (nn.ReLU(), nn.ReLU(inplace=True)),
    ],
)
def test_what_may_compute_otherwise_has_another_signature(one: nn.Module, other: nn.Module) -> None:
    assert key(one) != key(other)
    assert key(one) == key(one)


def test_signatures_pass_over_values_of_parameters_and_the_mode() -> None:
    made = Table([1, None, "a", torch.float16])
    again = Table([1, None, "a", torch.float16]).eval()
    with torch.no_grad():
        again.weight.mul_(3)
    assert key(made) == key(again)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.float16)]
)
def test_the_comparison_does_not_depend_on_the_caller_s_mode(context: Callable[[], Any]) -> None:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with context():
            report = cpl.patch(
                nn.ModuleList([layouts.Attention(8, 2), look_alikes.Attention(attention=Tensor.detach)])
            )
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert [name for name, kind in report.patched if kind == "channel attention"] == ["0"]
    assert [name for name, *_ in report.left] == ["1"]


def test_random_numbers_and_buffers_stay() -> None:
    made = look_alikes.Skips(random.random)
    made.register_buffer("table", torch.ones(2))
    before = random.getstate(), torch.get_rng_state(), copy.deepcopy(made.state_dict())
    cpl.patch(made)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), before[2].values(), strict=True))


@pytest.mark.parametrize("keep", ["products", "input"])
def test_whole_blocks_use_the_measured_eps(keep: str) -> None:
    made = layouts.TransformerBlock(8, 2)
    made.norm1, made.norm2 = look_alikes.right_wrapped(True), look_alikes.right_wrapped(True)
    made, x = trained(made), 2e-3 * layouts.image()
    right = made(x)
    assert ("", "transformer block") in cpl.patch(made, keep).patched
    torch.testing.assert_close(made(x), right, rtol=1e-5, atol=1e-6)


def test_eps_that_an_attribute_names_may_change_later() -> None:
    made, x = trained(layouts.LayerNorm2d(8)), 1e-2 * layouts.image()
    cpl.patch(made)
    made.eps = 1e-2
    ours = made(x)
    cpl.unpatch(made)
    torch.testing.assert_close(ours, made(x), rtol=1e-5, atol=1e-6)


def test_eps_by_dtype_compiles_copies_and_pickles() -> None:
    made = trained(look_alikes.LayerNormByDtype()).bfloat16().float()
    x = 1e-2 * layouts.image()
    narrow = x.bfloat16()
    right = made(x), made.bfloat16()(narrow)
    made.float()
    cpl.patch(made)
    for again in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        compiled = torch.compile(again, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), right[0], rtol=1e-5, atol=1e-6)
        assert (compiled.bfloat16()(narrow) - right[1]).abs().max() <= 8 * torch.finfo(
            torch.bfloat16
        ).eps * right[1].abs().max()

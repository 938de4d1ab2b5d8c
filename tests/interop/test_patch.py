"""cpl.patch: the same model, the same parameters, the same results, on our kernels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cpl
from tests.interop import layouts
from tests.interop.layouts import image, trained

# What is compared, test_comparison.py tests; here it is what happens then.
pytestmark = pytest.mark.usefixtures("brief_comparison")
KINDS = {
    "layer norm": 8,
    "channel attention": 1,
    "cross attention": 1,
    "gated feed-forward": 1,
    "prompt block": 2,
    "gated block": 2,
    "gated convolution": 1,
}


def gradients(made: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(made(x).square().mean(), list(made.parameters())))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm_bias", [False, True])
def test_same_results_and_gradients(norm_bias: bool, bias: bool) -> None:
    made = trained(layouts.model(norm_bias, bias)).double()
    x = image(torch.float64)
    before, slopes = made(x), gradients(made, x)
    report = cpl.patch(made)
    kinds = [kind for _, kind in report.patched]
    assert {kind: kinds.count(kind) for kind in kinds} == KINDS
    assert not report.left
    torch.testing.assert_close(made(x), before, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients(made, x), slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_our_kernels_run() -> None:
    made = trained(layouts.model())
    cpl.patch(made)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        made(image())
    ran = {event.key for event in profile.key_averages()}
    for op in ("layer_norm2d", "channel_attention", "gated_dwconv", "aggregate_prompts"):
        assert f"cpl_kernels::{op}" in ran


def test_parameters_names_and_mode_stay() -> None:
    made = layouts.model()
    made[0].eval()
    state, parameters = copy.deepcopy(made.state_dict()), list(made.parameters())
    modes = [m.training for m in made.modules()]
    random = torch.get_rng_state()
    cpl.patch(made)
    assert [m.training for m in made.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(a is b for a, b in zip(made.parameters(), parameters, strict=True))
    assert made.state_dict().keys() == state.keys()
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), state.values(), strict=True))
    assert all(p.grad is None for p in made.parameters())
    layouts.model().load_state_dict(made.state_dict())


def test_unpatch_brings_the_old_computation_back() -> None:
    made = trained(layouts.model())
    report = cpl.patch(made)
    assert cpl.unpatch(made) == len(report.patched)
    assert all("forward" not in vars(m) for m in made.modules())
    assert cpl.unpatch(made) == 0
    assert len(cpl.patch(made).patched) == len(report.patched)


def test_a_second_patch_changes_nothing_and_says_so() -> None:
    made = layouts.model()
    cpl.patch(made)
    report = cpl.patch(made)
    assert not report.patched
    assert {why for _, _, why in report.left} == {"it is patched already"}


def test_what_computes_something_else_is_left() -> None:
    report = cpl.patch(
        nn.ModuleDict({"odd": layouts.SquaredAttention(8, 2), "naf": layouts.SwappedNAFBlock(8)})
    )
    # NAFNet's norms inside, and what no block around it computes.
    assert {kind for _, kind in report.patched} == {"layer norm", "depthwise convolution"}
    assert [(name, kind) for name, kind, _ in report.left] == [
        ("odd", "channel attention"),
        ("naf", "gated block"),
        ("naf.sg", "gate"),  # as the block around it does not compute it
    ]
    assert all("computes something else" in why for *_, why in report.left[:2])


def test_what_has_other_parts_is_left_with_a_reason() -> None:
    strided = layouts.FeedForward(8)
    strided.dwconv.stride = (2, 2)
    odd = nn.Module()
    odd.temperature = nn.Parameter(torch.ones(2, 1, 1))
    made = nn.ModuleDict({"odd": odd, "strided": strided})
    report = cpl.patch(made)
    assert not report.patched
    said = str(report)
    assert "patched: nothing" in said
    assert "odd (channel attention): it has no convolution qkv" in said
    assert "strided (gated feed-forward): dwconv is Conv2d(" in said


def test_torch_s_own_layer_norm_is_not_one_over_channels() -> None:
    report = cpl.patch(nn.Sequential(nn.LayerNorm(8)))
    assert not report.patched
    assert not report.left


def test_a_copy_runs_on_its_own_parameters() -> None:
    made = trained(layouts.model())
    cpl.patch(made)
    ema = copy.deepcopy(made)
    with torch.no_grad():
        for p in ema.parameters():
            p.mul_(0.5)
    halved = trained(layouts.model())
    with torch.no_grad():
        for p in halved.parameters():
            p.mul_(0.5)
    torch.testing.assert_close(ema(image()), halved(image()), rtol=1e-4, atol=1e-5)


def test_it_pickles() -> None:
    made = trained(layouts.model())
    cpl.patch(made)
    again = pickle.loads(pickle.dumps(made))
    assert torch.equal(again(image()), made(image()))


def test_hooks_go_on_and_the_comparison_calls_none() -> None:
    made = layouts.model()
    seen: list[str] = []
    for name in ("0.attn", "0.attn.qkv", "0.norm1"):
        made.get_submodule(name).register_forward_hook(lambda *_, n=name: seen.append(n))
    cpl.patch(made)
    assert not seen
    made(image())
    assert sorted(seen) == ["0.attn", "0.attn.qkv", "0.norm1"]


def test_autocast() -> None:
    made, x = trained(layouts.model()), image()
    exact = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = made(x)
        cpl.patch(made)
        ours = made(x)
    assert ours.dtype == theirs.dtype
    # As close to the exact result as torch's own mixed precision, and no wider than twice.
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max()


@pytest.mark.parametrize("first", ["patch", "compile"])
def test_with_torch_compile(first: str) -> None:
    made = trained(layouts.model())
    x, right = image(), made(image())
    compiled: Callable[[Tensor], Tensor] = torch.compile(made, backend="aot_eager", fullgraph=True)
    if first == "patch":
        cpl.patch(made)
    else:
        compiled(x)
        assert cpl.patch(compiled).patched  # type: ignore[arg-type]
    torch.testing.assert_close(compiled(x), right, rtol=1e-4, atol=1e-5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        compiled(x)
    assert "cpl_kernels::channel_attention" in {event.key for event in profile.key_averages()}
    cpl.unpatch(made)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.testing.assert_close(compiled(x), right)
    assert not any(event.key.startswith("cpl_kernels::") for event in profile.key_averages())


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("keep", ["all", "products", "input"])
@pytest.mark.parametrize("first", ["patch", "wrap"])
def test_with_distributed_data_parallel(first: str, keep: str) -> None:
    made, x = trained(layouts.model()), image()
    right = gradients(made, x)
    if first == "patch":
        cpl.patch(made, keep)
    wrapped = nn.parallel.DistributedDataParallel(made)
    if first == "wrap":
        assert cpl.patch(wrapped, keep).patched[0][0].startswith("module.")
    wrapped(x).square().mean().backward()
    for p, slope in zip(made.parameters(), right, strict=True):
        torch.testing.assert_close(p.grad, slope, rtol=1e-3, atol=1e-5)


def test_nothing_can_be_compared_on_meta() -> None:
    with torch.device("meta"):
        report = cpl.patch(layouts.model())
    assert not report.patched
    assert "meta device" in report.left[0][2]


def test_only_a_module_can_be_patched() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got dict"):
        cpl.patch({})  # type: ignore[arg-type]


def test_our_own_model_runs_on_the_kernels_already() -> None:
    report = cpl.patch(cpl.create_model("cplir-tiny"))
    assert not report.patched
    assert not report.left

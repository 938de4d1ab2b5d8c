"""What is special to channel_attention; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cpl_kernels
from cpl_kernels import core
from cpl_kernels.channel_attention import reference
from tests.kernels import targets
from tests.kernels.channel_attention.spec import SPEC, case, naive
from tests.kernels.harness import assert_same_bits
from tests.kernels.spec import Case
from tests.kernels.targets import Target

HEADS = next(case for case in SPEC.cases if case.name == "heads")


def test_definition_has_second_derivatives() -> None:
    tiny = case("tiny", "second derivatives by differences", 2, (1, 12, 2, 1))
    inputs = [x.requires_grad_() for x in tiny.inputs(torch.float64).values()]
    assert torch.autograd.gradgradcheck(reference.channel_attention, inputs)


def test_accumulates_in_float32_under_autocast_too() -> None:
    """Autocast is off below the op: a bf16 matmul inside would be off by 2^-9 where fp32 is off by 2^-24."""
    qkv, temperature = SPEC.cases[0].inputs(torch.bfloat16).values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, norm, _, cosines = torch.ops.cpl_kernels.channel_attention(qkv, temperature.float(), "reference")
    _, _, _, expected = reference.forward(qkv.double(), temperature.double())
    assert (norm.dtype, cosines.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(cosines.double(), expected, rtol=1e-5, atol=1e-6)


@targets.on("channel_attention")
def test_zero_channels_are_no_division_by_zero(target: Target) -> None:
    """A norm of 0 is clamped: its cosines are 0, so its attention is even, and its gradient has no projection."""
    qkv, temperature = HEADS.inputs(torch.float32).values()
    qkv[:, 1] = 0
    qkv[:, 13] = 0
    tiny = 1e-14 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(3))  # clamped, and not zero
    qkv[:, 2] = tiny
    qkv[:, 15] = tiny.flip(0)
    inputs = {"qkv": qkv, "temperature": temperature}
    (dy,) = targets.gradients_for(SPEC, HEADS, inputs, torch.float32)
    got = target.run(SPEC, HEADS, inputs, ["qkv", "temperature"], [dy])
    leaves = [x.double().requires_grad_() for x in inputs.values()]
    expected = naive(*leaves)
    torch.testing.assert_close(got["y"], expected.float())
    dqkv, dtemperature = torch.autograd.grad(expected, leaves, dy.double())
    clamped = [1, 2, 13, 15]
    free = [c for c in range(qkv.shape[1]) if c not in clamped]
    torch.testing.assert_close(got["gradient of qkv"][:, free], dqkv.float()[:, free], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["gradient of temperature"], dtemperature.float(), rtol=1e-4, atol=1e-5)
    scale = float(dqkv[:, clamped].abs().max())  # of gradients divided by 1e-12
    torch.testing.assert_close(
        got["gradient of qkv"][:, clamped], dqkv.float()[:, clamped], rtol=1e-4, atol=1e-5 * scale
    )


@targets.on("channel_attention")
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_scale_of_q_and_k_does_not_matter(target: Target, scale: float) -> None:
    qkv, temperature = SPEC.small[0].inputs(torch.float32).values()
    scaled = torch.cat((qkv[:, :8] * scale, qkv[:, 8:]), dim=1)
    with target.serving("channel_attention"):
        y, expected = (
            cpl_kernels.channel_attention(x, temperature, backend=target.backend) for x in (scaled, qkv)
        )
    torch.testing.assert_close(y, expected)


@targets.on("channel_attention")
def test_extreme_temperature_stays_finite(target: Target) -> None:
    qkv, _ = SPEC.small[0].inputs(torch.float32).values()
    inputs = {"qkv": qkv, "temperature": torch.full((2, 1, 1), 1e4)}
    got = target.run(SPEC, SPEC.small[0], inputs, list(inputs), [torch.ones(2, 4, 3, 5)])
    assert len(got) == 3
    assert all(torch.isfinite(t).all() for t in got.values())


def test_keeps_the_inputs_and_per_head_statistics_only() -> None:
    """What autograd holds beyond qkv itself: norms [B, C] and c x c matrices, not q and k over the pixels."""
    qkv, temperature = torch.randn(2, 24, 32, 32, requires_grad=True), torch.ones(2, 1, 1, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cpl_kernels.channel_attention(qkv, temperature)
    beyond = [t.numel() for t in kept if t.data_ptr() != qkv.data_ptr()]
    assert sum(beyond) == 2 + 2 * (2 * 8) + 2 * 2 * 4 * 4
    assert any(t.data_ptr() == qkv.data_ptr() for t in kept)


@targets.on("channel_attention")
def test_channels_last_stays_channels_last(target: Target) -> None:
    inputs = HEADS.inputs(torch.float32, "channels_last")
    with target.serving("channel_attention"):
        y = cpl_kernels.channel_attention(**inputs, backend=target.backend)
    assert y.is_contiguous(memory_format=torch.channels_last)


@targets.on("channel_attention")
@pytest.mark.parametrize("which", [0, 1], ids=["q", "k"])
def test_a_nan_stays_within_its_head(target: Target, which: int) -> None:
    """In q it is a row of the attention, in k a column and so every row; the other head is as it was."""
    qkv, temperature = SPEC.small[0].inputs(torch.float32).values()  # 2 heads of 2 channels
    broken = qkv.clone()
    broken[0, 4 * which + 1, 0, 0] = (
        torch.nan
    )  # the head's second: a maximum that starts with the first passes over it
    with target.serving("channel_attention"):
        y = cpl_kernels.channel_attention(broken, temperature, backend=target.backend)
        whole = cpl_kernels.channel_attention(qkv, temperature, backend=target.backend)
    assert y[0, 1].isnan().all()
    assert y[0, 0].isnan().all() if which else torch.equal(y[0, 0], whole[0, 0])
    assert torch.equal(y[0, 2:], whole[0, 2:])
    assert torch.equal(y[1], whole[1])


@targets.on("channel_attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_differences_of_large_attention_survive(target: Target, dtype: torch.dtype) -> None:
    """The matrix keeps its 24 bits beside a 16-bit image: v_0 - v_1 = 2^-6, and y is within an ulp of fp32's."""
    if not target.computes(SPEC, dtype):
        pytest.skip(reason=f"{target.name} has no {dtype}")
    qkv, temperature = SPEC.small[0].inputs(torch.float64).values()
    qkv[:, 8:] = 1 + 2**-6 * (torch.arange(4)[:, None, None] % 2)
    qkv = qkv.to(dtype)
    with target.serving("channel_attention"):
        y = cpl_kernels.channel_attention(qkv, temperature.float(), backend=target.backend)
    gold = naive(qkv.double(), temperature)
    ulp = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 4 * torch.finfo(dtype).eps
    assert ((y.double() - gold).abs() <= ulp).all()


TILES = (
    case("slices", "two slices of a head, the second with idle warps", 1, (1, 3 * 5, 18, 16)),
    case("pairs", "four tiles of 48 x 48 for a block, aligned rows", 1, (1, 3 * 64, 6, 8)),
    case(
        "parts",
        "the matrix comes in two parts, its rows in three groups of 48; aligned rows",
        1,
        (1, 3 * 104, 3, 16),
    ),
    case(
        "rounds",
        "so many heads that a block walks over all pixels of one, in two rounds",
        45,
        (1, 270, 17, 17),
    ),
)


@targets.on("channel_attention")
@pytest.mark.parametrize(
    "tiles",
    [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.name == "rounds" else []) for c in TILES],
)
def test_how_the_tensor_cores_share_out_the_work(target: Target, tiles: Case) -> None:
    """Every way that ``csrc/channel_attention/cuda.cu`` cuts pixels and channels, wide loads and single ones."""
    for dtype in (torch.float32, torch.bfloat16):
        if target.computes(SPEC, dtype):
            targets.check(SPEC, tiles, target, tiles.inputs(dtype), dtype)


@targets.on("channel_attention")
def test_a_nan_stays_within_its_pixel(target: Target) -> None:
    """Of v: the tensor cores multiply 32 pixels at once, and zeros beyond a head's last channel."""
    qkv, temperature = SPEC.cases[0].inputs(torch.float32).values()
    broken = qkv.clone()
    broken[0, 2 * 48 + 3, 1, 2] = torch.nan
    with target.serving("channel_attention"):
        y = cpl_kernels.channel_attention(broken, temperature, backend=target.backend)
        whole = cpl_kernels.channel_attention(qkv, temperature, backend=target.backend)
    assert y[0, :, 1, 2].isnan().all()
    whole[0, :, 1, 2] = y[0, :, 1, 2] = 0
    assert torch.equal(y, whole)


SUMS = (
    case("blocks", "so many heads that each is one slice, of several blocks", 1, (32, 3 * 48, 30, 40)),
    case("slices", "one head in three slices, whose sums are added", 1, (1, 3 * 5, 33, 34)),
)


@pytest.mark.skipif(not core.available(), reason=core.MISSING_BECAUSE)
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("sums", SUMS, ids=lambda sums: sums.name)
def test_blocks_and_slices_of_the_native_sums(sums: Case) -> None:
    native = Target("native", "native")
    inputs = sums.inputs(torch.float32)
    targets.check(SPEC, sums, native, inputs, torch.float32)
    dys = targets.gradients_for(SPEC, sums, inputs, torch.float32)
    runs = []
    for count in (1, 2):
        torch.set_num_threads(count)
        runs.append(native.run(SPEC, sums, inputs, SPEC.wanted(inputs), dys))
    assert_same_bits(*runs)

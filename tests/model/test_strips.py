"""Inference in strips of rows: the same numbers, and no wide map at full size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import cpl
from cpl.nn import TransformerBlock, strips
from cpl.nn.strips import attention_in_strips, feed_forward_in_strips, rows_of_a_strip


def block(norm_bias: bool = True, dtype: torch.dtype = torch.float64) -> TransformerBlock:
    torch.manual_seed(0)
    made = TransformerBlock(16, 2, norm_bias=norm_bias).to(dtype)
    for value in made.parameters():  # no vector of ones or zeros: what is mixed up must show
        nn.init.normal_(value, std=0.5)
    return made


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips for any map: of two rows at least."""
    monkeypatch.setattr(strips, "_LARGE", {"cpu": 1})
    monkeypatch.setattr(strips, "_STRIP", {"cpu": 1})
    monkeypatch.setattr(strips, "_LEAST_ROWS", 2)


@pytest.mark.parametrize("norm_bias", [True, False])
@pytest.mark.parametrize(
    "rows", [1, 2, 3, 8, 11, 12]
)  # one row has a neighbour on both sides; 11 leaves one over
@torch.no_grad()
def test_strips_of_any_height_give_the_whole(rows: int, norm_bias: bool) -> None:
    """To a rounding of float64: products of another width may be summed in another order."""
    one, x = block(norm_bias), torch.randn(2, 16, 12, 7, dtype=torch.float64)
    attended = x + one.attn(one.norm1(x))
    torch.testing.assert_close(
        attention_in_strips(x, one.norm1, one.attn, rows), attended, rtol=1e-11, atol=1e-11
    )
    fed = x + one.ffn(one.norm2(x))
    torch.testing.assert_close(
        feed_forward_in_strips(x, one.norm2, one.ffn, rows), fed, rtol=1e-11, atol=1e-11
    )


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_a_block_takes_them_by_itself(layout: torch.memory_format) -> None:
    one, x = block(), torch.randn(2, 16, 9, 6, dtype=torch.float64).contiguous(memory_format=layout)
    torch.testing.assert_close(one(x), one._keep_all(x), rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("few_rows")
@torch.no_grad()
def test_autocast_gives_the_same_dtype_and_numbers() -> None:
    """The norms of q and k are those of bfloat16 numbers either way; an ulp of bfloat16 of the largest number is
    allowed for what is rounded once more or less."""
    one = block(dtype=torch.float32)
    for x in (torch.randn(1, 16, 9, 6), torch.randn(1, 16, 9, 6).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            got, gold = one(x), one._keep_all(x)
        assert got.dtype == gold.dtype
        assert (got - gold).abs().max() <= torch.finfo(torch.bfloat16).eps * gold.abs().max()


@pytest.mark.usefixtures("few_rows")
def test_no_wide_map_exists_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    heights = []

    def noted(name: str) -> None:
        function = getattr(strips, name)

        def call(x: Tensor, *rest: Tensor) -> Tensor:
            heights.append(x.shape[2])
            return function(x, *rest)

        monkeypatch.setattr(strips, name, call)

    noted("gate")
    noted("dwconv")
    with torch.no_grad():
        block()(torch.randn(1, 16, 20, 5, dtype=torch.float64))
    assert len(heights) == 20
    assert max(heights) == 4


def test_with_a_graph_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "_LARGE", {"cpu": 1})
    monkeypatch.setattr(
        TransformerBlock, "_infer", lambda self, x: pytest.fail("strips, though gradients are taken")
    )
    block()(torch.randn(1, 16, 20, 5, dtype=torch.float64)).sum().backward()


@pytest.mark.usefixtures("few_rows")
@torch.no_grad()
def test_hooks_see_whole_maps_and_other_parts_run() -> None:
    one, x = block(), torch.randn(1, 16, 20, 5, dtype=torch.float64)
    heights: list[int] = []
    handle = one.attn.qkv_dwconv.register_forward_pre_hook(lambda *_: None)
    one.attn.qkv.register_forward_hook(lambda part, given, made: heights.append(made.shape[2]))
    one(x)
    assert heights == [20]
    handle.remove()
    one.ffn = nn.Identity()
    torch.testing.assert_close(one(x), one._keep_all(x), rtol=0, atol=0)


def test_when_they_pay() -> None:
    cpu, gpu, size = torch.device("cpu"), torch.device("cuda"), (1, 1, 512, 512)
    assert rows_of_a_strip((1, 1, 64, 64), 100, 4, cpu) is None  # 1.6 MB
    assert rows_of_a_strip(size, 64, 4, cpu) == 64  # 64 MiB in strips of 8
    assert rows_of_a_strip((2, 1, 512, 512), 64, 4, cpu) == 32
    assert rows_of_a_strip(size, 4096, 4, cpu) == 16  # a strip has 16 rows at least
    assert rows_of_a_strip(size, 128, 2, cpu) == 64
    assert rows_of_a_strip((1, 1, 16, 2**14), 64, 4, cpu) is None  # it would be one strip
    assert rows_of_a_strip(size, 1000, 4, gpu) is None  # elsewhere than on a CPU from a GiB on
    assert rows_of_a_strip(size, 1024, 4, gpu) == 64


@pytest.mark.usefixtures("few_rows")
def test_a_network_restores_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = cpl.create_model("cplir-tiny").double().eval()
    x = torch.rand(1, 3, 21, 30, dtype=torch.float64)
    with torch.no_grad():
        got = network(x)
        monkeypatch.setattr(strips, "_LARGE", {"cpu": 2**60})
        torch.testing.assert_close(got, network(x), rtol=1e-11, atol=1e-11)
    assert not torch.equal(got, x)

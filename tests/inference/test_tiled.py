"""In blended tiles: close to the whole image, of any size and kind, with one choice of prompts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cpl.inference.restore import RestoreError, restore
from cpl.inference.streaming import limits
from cpl.inference.tiled import Grid, restore_tiled
from cpl.inference.tiled import restore as tiled
from cpl.models import create_model
from cpl.models.restorer import Restorer
from cpl.nn.resample import resized_window

CPU = torch.device("cpu")


class Noted(nn.Module):
    """A pixelwise function, so that tiles must give exactly what the whole gives; notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.shapes.append(tuple(image.shape))
        return image * self.factor


def small(name: str = "cplir-tiny", **overrides: object) -> Restorer:
    torch.manual_seed(0)
    settings: dict = {"dim": 8, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1, **overrides}
    made = create_model(name, **settings)
    with torch.no_grad():
        made.output.weight.mul_(10)  # so that the residual is not lost beside the image
    return made.eval()


def whole(model: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(image[None])[0]


@pytest.mark.parametrize("size", [(64, 150), (65, 64), (131, 77), (20, 200), (200, 1)])
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_any_size_in_batches_of_equal_tiles(size: tuple[int, int], batch: int | None) -> None:
    model, image = Noted(), torch.rand(3, *size)
    restored = restore_tiled(model, image, 64, 16, batch=batch)
    torch.testing.assert_close(restored, image * 0.5, atol=1e-6, rtol=0)
    height, width = (min(64, -(-n // 8) * 8) for n in size)
    assert {shape[1:] for shape in model.shapes} == {(3, height, width)}
    counts = [shape[0] for shape in model.shapes]
    assert max(counts) == min(batch or 64, sum(counts))
    assert sum(counts) > 1


@pytest.mark.parametrize("size", [(64, 64), (13, 50), (1, 1)])
def test_an_image_of_one_tile_is_restored_at_once(size: tuple[int, int]) -> None:
    model, image = Noted(), torch.rand(3, *size)
    restore_tiled(model, image, 64)
    assert model.shapes == [(1, 3, *size)]  # not even padded
    network = small()
    assert torch.equal(restore_tiled(network, image, 64), whole(network, image))


@pytest.mark.parametrize("name", ["cplir-tiny", "promptir", "restormer"])
def test_the_networks_in_tiles_are_close_to_the_whole(name: str) -> None:
    model, image = small(name), torch.rand(3, 100, 130)
    expected, restored = whole(model, image), restore_tiled(model, image, 64, 32)
    apart = float((restored - expected).abs().mean())
    assert 0 < apart < 0.3 * float((expected - image).abs().mean())
    one_by_one = restore_tiled(model, image, 64, 32, batch=1)
    torch.testing.assert_close(one_by_one, restored, atol=1e-5, rtol=0)


def convolutions_and_prompts(image: Tensor) -> Restorer:
    """A network whose blocks add nothing, so that a pixel hangs on its neighbours and the prompts alone; of its two
    prompts the second is for the bright upper part of ``image``, and the whole is nearer to the first, by far."""
    model = small(num_prompts=2, top_k=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attn.project_out.weight", "ffn.project_out.weight")):
                parameter.zero_()
    sharp = 1000.0  # the chosen one's share is 1 to rounding, whatever the exact mean

    def set_router(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        features = given[0][0]
        bright, dark = (half.mean((1, 2)) for half in features.chunk(2, dim=1))
        along = (bright - dark) / (bright - dark).square().sum()
        module.linear_layer.weight.data = torch.stack((torch.zeros_like(along), sharp * along))
        module.linear_layer.bias.data = torch.stack((torch.tensor(0.0), -sharp * (along @ dark + 0.75)))

    modules = [getattr(model, f"prompt{level}") for level in (3, 2, 1)]
    hooks = [module.register_forward_pre_hook(set_router) for module in modules]
    whole(model, image)
    for hook in hooks:
        hook.remove()
    return model


def choices(model: Restorer, image: Tensor) -> list[int]:
    """At levels 3, 2, 1 the prompt for the image on its own."""
    found: list[int] = []
    modules = [getattr(model, f"prompt{level}") for level in (3, 2, 1)]
    hooks = [
        module.register_forward_pre_hook(lambda of, given: found.append(int(of.logits(given[0]).argmax())))
        for module in modules
    ]
    whole(model, image)
    for hook in hooks:
        hook.remove()
    return found


REACH = 24  # pixels that the convolutions of all levels reach, 1 + 1 + 2 + 4 + 8 + 4 + 2 + 1, and one more


@pytest.mark.parametrize(("size", "count"), [((216, 200), 4), ((600, 264), 18)])
def test_prompts_are_chosen_once_and_each_tile_gets_its_part(size: tuple[int, int], count: int) -> None:
    """Inside of the tiles, beyond the reach of their borders, the result is the whole image's to rounding: where all
    tiles choose, and where 16 of them do at most. Tiles on their own would choose otherwise."""
    torch.manual_seed(1)
    image = 0.2 * torch.rand(3, *size)
    image[:, : size[0] // 2] += 0.8
    grid = Grid.over(size, 128, 32)
    assert len(grid.corners) == count
    model = convolutions_and_prompts(image)
    assert choices(model, image) == [0, 0, 0]
    assert 1 in choices(model, image[:, :128, :128])

    restored, expected = restore_tiled(model, image, 128, 32), whole(model, image)
    down, across = grid.ramps()
    compared = 0
    for top, left in grid.corners:
        inside = (down[top][:, None] * across[left]) == 1  # no other tile counts there
        # At the image's own border a tile sees what the whole does.
        for axis, (start, length) in enumerate(zip((top, left), size, strict=True)):
            if start > 0:
                inside.narrow(axis, 0, REACH)[:] = False
            if start + 128 < length:
                inside.narrow(axis, 128 - REACH, REACH)[:] = False
        apart = (restored - expected)[:, top : top + 128, left : left + 128].abs()
        compared += int(inside.sum())
        assert float(apart[:, inside].max()) < 1e-4
    assert compared > size[0] * size[1] / 4
    alone = whole(model, image[:, :128, :128])
    assert float((alone - expected[:, :128, :128])[:, :64, :64].abs().max()) > 0.01  # prompts do matter


def test_only_a_sample_chooses_and_every_tile_is_restored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "MOST_ROUTED", 2)
    model, image = small(), torch.rand(3, 64, 200)
    events: list[object] = []
    encode, choose = model.encode, model.prompt3.mixture
    monkeypatch.setattr(model, "encode", lambda x: events.append(len(x)) or encode(x))
    monkeypatch.setattr(model.prompt3, "mixture", lambda mean: events.append("chosen") or choose(mean))
    restored = restore_tiled(model, image, 64, 8, batch=2)
    assert events == [2, "chosen", 2]  # four tiles, none of them twice
    assert float((restored - whole(model, image)).abs().mean()) < 0.05


@pytest.mark.parametrize("source", [(5, 7), (16, 16), (24, 3)])
def test_a_window_of_a_resized_map(source: tuple[int, int]) -> None:
    given = torch.rand(2, *source)
    size = (16, 12)
    gold = torch.nn.functional.interpolate(given[None], size, mode="bilinear", align_corners=False)[0]
    padded = torch.nn.functional.pad(gold, (1, 1, 1, 1))
    for rows, columns in (
        (range(-1, 17), range(-1, 13)),
        (range(3, 9), range(-1, 4)),
        (range(7, 17), range(5, 6)),
    ):
        window = resized_window(given, size, rows, columns)
        expected = padded[:, rows.start + 1 : rows.stop + 1, columns.start + 1 : columns.stop + 1]
        torch.testing.assert_close(window, expected)


def test_restore_takes_tiles_of_every_kind_of_image() -> None:
    model = small()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    at_once, in_tiles = restore(model, pixels), restore(model, pixels, tile=64)
    assert in_tiles.dtype == np.uint8
    assert in_tiles.shape == pixels.shape
    assert 0 < np.abs(in_tiles.astype(int) - at_once.astype(int)).mean() < 20
    batch = torch.rand(2, 3, 70, 90, dtype=torch.float64)
    shares: list[float] = []
    both = restore(model, batch, tile=64, overlap=16, progress=shares.append)
    assert (both.dtype, both.shape) == (batch.dtype, batch.shape)
    assert float(both.max()) <= 1
    torch.testing.assert_close(both[1], restore(model, batch[1], tile=64, overlap=16))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert len(shares) == 4  # two images of four tiles, a batch each: half done, and done
    (both.requires_grad_() * 2).sum().backward()  # not an inference tensor


def test_tiles_in_bf16_and_in_double() -> None:
    model, image = small(), torch.rand(3, 64, 100)
    exact = restore(model, image, tile=64)
    halved = restore(model, image, tile=64, dtype="bf16")
    assert 0 < float((halved - exact).abs().max()) < 0.1
    torch.testing.assert_close(restore(model.double(), image, tile=64), exact, atol=1e-4, rtol=0)


def test_batches_are_chosen_by_size_and_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, grid = small(), Grid.over((1024, 1024), 128, 16)
    monkeypatch.setattr(limits, "free_memory", lambda device: None)
    assert tiled._at_once(model, grid, CPU) == 16
    assert tiled._at_once(model, grid, torch.device("cuda")) == 64
    assert tiled._at_once(model, Grid.over((600, 512), 512, 64), CPU) == 1
    assert tiled._at_once(model, Grid.over((128, 200), 128, 16), CPU) == 2  # there are no more
    two = limits.untiled_bytes(model, (2, 3, 128, 128), CPU)
    monkeypatch.setattr(limits, "free_memory", lambda device: int(two / limits._SHARE) + 2)
    assert tiled._at_once(model, grid, CPU) == 2
    monkeypatch.setattr(limits, "free_memory", lambda device: 1)
    assert tiled._at_once(model, grid, CPU) == 1


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"tile": 100}, ValueError, "tile must be a multiple of 8 .* got 100: try 96"),
        ({"tile": 56}, ValueError, "at least 64 pixels, got 56: try 64"),
        ({"tile": 0}, ValueError, "got 0"),
        ({"tile": -64}, ValueError, "got -64"),
        ({"tile": 64.0}, TypeError, "tile must be an int .* got 64.0"),
        ({"tile": True}, TypeError, "got True"),
        ({"tile": "64"}, TypeError, "got '64'"),
        ({"tile": 64, "overlap": 40}, ValueError, r"half of the tile \(32\), got 40"),
        ({"tile": 64, "overlap": 12}, ValueError, "overlap must be a multiple of 8 .* got 12"),
        ({"tile": 64, "overlap": -8}, ValueError, "got -8"),
        ({"tile": 64, "overlap": 8.0}, TypeError, "overlap must be an int"),
        ({"overlap": 8}, ValueError, "no tile is given, got overlap=8"),
        ({"tile": 64, "memory": "1GB"}, ValueError, "one of the two, not both"),
    ],
)
def test_tiles_that_cannot_be_are_refused_before_any_work(
    settings: dict, error: type[Exception], words: str
) -> None:
    model = Noted()
    with pytest.raises(error, match=words):
        restore(model, torch.rand(3, 8, 8), **settings)
    assert model.shapes == []


def test_failures_in_tiles_are_named() -> None:
    class Shrinks(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[..., 1:]

    with pytest.raises(ValueError, match=r"gave \(2, 3, 64, 63\) for an image batch \(2, 3, 64, 64\)"):
        restore(Shrinks(), torch.rand(3, 64, 100), tile=64)
    with pytest.raises(ValueError, match=r"\(1, 3, 5, 4\)"):
        restore(Shrinks(), torch.rand(3, 5, 5), tile=64)
    with pytest.raises(ValueError, match="batch must be at least 1 tile, got 0"):
        restore_tiled(Noted(), torch.rand(3, 64, 100), 64, batch=0)

    class Hungry(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.empty(2**60)

    with pytest.raises(RestoreError, match="tiles smaller than 64 pixels"):
        restore(Hungry(), torch.rand(3, 64, 100), tile=64)


def test_ctrl_c_between_tiles_ends_it() -> None:
    model = Noted()

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(model.train(), torch.rand(3, 64, 500), tile=64, progress=stop)
    assert model.training


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are not faster on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

"""Window by window in bounded memory, the restored image is the one that the whole network gives."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import cpl
from cpl.errors import CplError
from cpl.inference.restore import restore
from cpl.inference.streaming import CLOSE, Plan, about_margin, limits, plan, restore_streaming, walk
from cpl.inference.streaming.windows import LEAST_SIDE, Resized, side_lengths, windows
from cpl.inference.streaming.workspace import Box
from cpl.models import create_model
from cpl.models.restorer import Restorer

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(scope="module")
def model() -> Restorer:
    torch.manual_seed(0)
    made = create_model("cplir-tiny")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("temperature"):
                parameter.uniform_(0.5, 2)
            elif name.startswith("output"):
                parameter.mul_(10)  # so that the residual is not lost beside the image
    return made.eval()


def whole(model: Restorer, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(image[None])[0]


@pytest.mark.parametrize("size", [(45, 70), (8, 8), (1, 3), (64, 33), (150, 90)])
def test_it_is_the_whole_image_to_rounding(model: Restorer, size: tuple[int, int]) -> None:
    """Sizes that are padded, too small for a border, and of many windows; the smallest limit and larger ones."""
    image = torch.rand(3, *size)
    expected = whole(model, image)
    least = plan(model, *size, limit=2**40).least
    for limit in (least, least + 4 * MIB, 2**32):
        restored, margin = restore_streaming(model, image, limit, CPU)
        assert margin > 1e-5
        assert float((restored - expected).abs().max()) <= 1e-4
    assert float((expected - image).abs().max()) > 0.05  # something was computed


@pytest.mark.parametrize("name", ["promptir", "restormer"])
def test_the_networks_without_sparse_prompts(name: str) -> None:
    torch.manual_seed(0)
    made = create_model(name, dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1).eval()
    image = torch.rand(3, 45, 70)
    least = plan(made, 45, 70, limit=2**40).least
    assert plan(made, 45, 70, least).least_sides is not None
    restored, _ = restore_streaming(made, image, least, CPU)
    assert float((restored - whole(made, image)).abs().max()) <= 1e-4


def test_a_channel_of_zeros_has_a_direction_too(model: Restorer) -> None:
    """Its norm is 0, which is clamped as in channel_attention."""
    same = create_model("cplir-tiny").eval()
    same.load_state_dict(model.state_dict())
    with torch.no_grad():
        same.latent[0].attn.qkv.weight[:3] = 0
    image = torch.rand(3, 24, 24)
    restored, _ = restore_streaming(same, image, 2**24, CPU)
    assert float((restored - whole(same, image)).abs().max()) <= 1e-4


def test_maps_that_do_not_fit_lie_in_files_that_leave_nothing(
    model: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(3, 64, 64)
    small, large = plan(model, 64, 64, limit=plan(model, 64, 64, 2**40).least), plan(model, 64, 64, 2**32)
    assert small.maps_in_memory == large.maps_in_files == 0
    assert min(small.maps_in_files, large.maps_in_memory) > 0
    named: list[str] = []
    make = tempfile.mkstemp
    monkeypatch.setattr(tempfile, "mkstemp", lambda **a: named.append(str(a["dir"])) or make(**a))
    restore_streaming(model, image, small.least, CPU, folder=tmp_path)
    assert set(named) == {str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_limit_or_disk_is_an_error_before_any_work(
    model: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(3, 64, 64)
    with pytest.raises(
        CplError, match=r"64x64 image needs at least .* MiB .* limit leaves 0 MiB: raise the limit"
    ):
        restore_streaming(model, image, 1000, CPU)
    least = plan(model, 64, 64, 2**40).least
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("cpl.inference.streaming.restore.shutil.disk_usage", lambda folder: usage)
    begun: list[float] = []
    with pytest.raises(CplError, match="scratch files .* free: set TMPDIR"):
        restore_streaming(model, image, least, CPU, progress=begun.append)
    assert begun == []


def test_the_plan_says_what_the_work_takes(
    model: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpl.inference.streaming.restore.lies_in_memory", lambda folder: False)
    image = torch.rand(3, 64, 48)
    least = plan(model, 64, 48, 2**40).least
    plans: list[Plan] = []
    restore_streaming(model, image, least, CPU, folder=tmp_path, on_plan=plans.append)
    assert plans == [plan(model, 64, 48, least, tmp_path)]
    small, large = plans[0], plan(model, 64, 48, 2**32)
    assert (small.count_in_memory, large.count_in_files) == (0, 0)
    # Three levels of the encoder are kept; beside them at the worst moment a block's input and output, at least.
    assert small.count_in_files == large.count_in_memory >= 5
    assert small.least_sides == (16, 12)
    assert large.least_sides is None
    memory, files = (f"{size / MIB:.0f} MiB of" for size in (small.window, small.maps_in_files))
    assert str(small) == (
        f"48x64 in windows of about 12x16 or more, in about {memory} memory with 0 feature maps in it, "
        f"and {files} scratch files in {tmp_path} for {small.count_in_files} feature maps"
    )
    assert str(large).startswith("48x64 in one window, in about ")
    assert str(large).endswith(" feature maps in it, and no scratch files")


def test_rows_and_maps_of_the_plan_are_those_of_the_work(
    model: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    areas: list[int] = []
    cut = walk.windows

    def noted(height: int, width: int, sides: tuple[int, int]) -> Iterator[Box]:
        if sides != (height, width):
            areas.append(math.prod(sides))
        return cut(height, width, sides)

    monkeypatch.setattr(walk, "windows", noted)
    limit = plan(model, 96, 96, 2**40).least + MIB
    restore_streaming(model, torch.rand(3, 96, 96), limit, CPU)
    needed = plan(model, 96, 96, limit)
    assert needed.least_sides is not None
    assert math.prod(needed.least_sides) == min(areas)
    assert min(needed.count_in_memory, needed.count_in_files) > 0


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (375, 500), (48, 20000), (20000, 8), (17, 4001), (1, 1)]
)
@pytest.mark.parametrize("halo", [0, 1, 2])
@pytest.mark.parametrize("pixels", [400, 3000, 60_000])
def test_windows_cover_a_map_once_within_their_pixels(
    height: int, width: int, halo: int, pixels: int
) -> None:
    sides = side_lengths(pixels, halo, height, width)
    covered = torch.zeros(height, width, dtype=torch.int32)
    for box in windows(height, width, sides):
        covered[box.top : box.bottom, box.left : box.right] += 1
        assert box.top % 2 == box.left % 2 == 0  # pixels go in pairs to the map of half the size
        read = box.grown(halo, height, width)
        area = (read.bottom - read.top) * (read.right - read.left)
        least = math.prod(min(side, LEAST_SIDE + 2 * halo) for side in (height, width))
        assert area <= max(1.1 * pixels, least)  # sides are even numbers
    assert torch.equal(covered, torch.ones_like(covered))


def test_a_close_choice_of_the_router_is_a_warning(model: Restorer) -> None:
    undecided = create_model("cplir-tiny").eval()
    undecided.load_state_dict(model.state_dict())
    with torch.no_grad():
        undecided.prompt2.linear_layer.weight[:2] = 0
        undecided.prompt2.linear_layer.bias[:2] = torch.tensor(
            [30.0, 30.0 + 1e-5]
        )  # the first two win, side by side
    image = torch.rand(3, 16, 16)
    with pytest.warns(UserWarning, match=r"margin of the router's choice is .*e-06, below 1e-05"):
        restore(undecided, image, memory=2**24)
    margins: list[float] = []
    restore(undecided, image, memory=2**24, on_margin=margins.append)  # no warning: a function has it
    assert len(margins) == 1
    assert 0 < margins[0] < CLOSE
    restore(model, torch.rand(2, 3, 16, 16), memory=2**24, on_margin=margins.append)
    assert len(margins) == 3
    assert min(margins[1:]) > CLOSE
    assert "below" not in about_margin(margins[1])
    restore(model, image, memory=2**24)  # no warning either


def test_progress_grows_to_one(model: Restorer) -> None:
    shares: list[float] = []
    image = torch.rand(3, 50, 70)
    restore_streaming(model, image, 2**32, CPU, progress=shares.append)
    sweeps = len(shares)  # each in one window
    shares.clear()
    restore_streaming(model, image, plan(model, 50, 70, 2**32).least, CPU, progress=shares.append)
    assert len(shares) > sweeps
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_restore_takes_a_limit(model: Restorer) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    shares: list[float] = []
    at_once = restore(model, image)
    by_windows = restore(model, image, memory="8MB", progress=shares.append)
    assert by_windows.dtype == np.uint8
    assert int(np.abs(by_windows.astype(int) - at_once.astype(int)).max()) <= 1
    assert shares[-1] == pytest.approx(1.0)
    batch = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(restore(model, batch, memory=2**24), restore(model, batch), atol=1e-4, rtol=0)


def test_without_a_limit_it_goes_by_windows_where_the_memory_is_short(
    model: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    restore(model, torch.rand(3, 16, 16), progress=shares.append)
    assert shares == []
    monkeypatch.setattr(limits, "free_memory", lambda device: 2**20)
    with pytest.raises(CplError, match="needs at least"):  # half a MiB does not suffice either
        restore(model, torch.rand(3, 64, 64))
    monkeypatch.setattr(limits, "_SHARE", 1e-3)
    monkeypatch.setattr(limits, "free_memory", lambda device: 2**26)
    restore(model, torch.rand(3, 16, 16), progress=shares.append)
    assert shares[-1] == pytest.approx(1.0)


def test_free_memory_of_a_container_and_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits._of_container(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 250\nactive_file 9\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert limits._of_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert limits._of_container(tmp_path) == 1000 - 700 + 250
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       3 kB\n")
    assert limits._of_machine(tmp_path / "meminfo") == 3072
    monkeypatch.setattr(limits, "_of_machine", lambda: 3072)
    monkeypatch.setattr(limits, "_of_container", lambda: 550)
    assert limits.free_memory(CPU) == 550
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert limits.free_memory(torch.device("cuda")) == 1300


def test_what_a_photo_takes_at_once_is_not_counted_too_low() -> None:
    """By the measurement that is committed, and, where attention is the widest and the map small, by q, k and v in two
    copies, and four maps more."""
    measured = json.loads(
        (Path(cpl.__file__).parents[1] / "benchmarks/results/cpu_large_photo.json").read_text()
    )
    rows = {row["case"].split(":")[1]: row["whole_peak_anonymous_bytes"] for row in measured["rows"][:3]}
    with torch.device("meta"):
        cplir, narrow = create_model("cplir"), create_model("cplir-tiny", ffn_expansion=1.0)
    for side in (256, 512, 1024):
        assert rows[f"{side}x{side}"] < limits.untiled_bytes(cplir, (1, 3, side, side), CPU)
    pixels, channels = 5 * 64 * 32, 2 * narrow.config.dim
    assert limits.untiled_bytes(narrow, (5, 3, 64, 32), CPU) > 4 * pixels * (6 + 1 + 3) * channels


def test_of_short_memories_the_smaller_one_counts(model: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the windows are computed there and the maps lie with the CPU: neither may run out."""
    shape, gpu = (1, 3, 64, 64), torch.device("cuda")
    wanted = limits.untiled_bytes(model, shape, gpu)
    free = {"cuda": wanted, "cpu": wanted // 4}
    monkeypatch.setattr(limits, "free_memory", lambda device: free[device.type])
    assert limits.free_where_short(model, shape, gpu) == wanted // 4
    free["cpu"] = 100 * wanted
    assert limits.free_where_short(model, shape, gpu) == wanted
    free["cuda"] = 2 * wanted
    assert limits.free_where_short(model, shape, gpu) is None


@pytest.mark.parametrize(
    ("limit", "size"),
    [("2GB", 2**31), ("512 mb", 2**29), ("1.5kb", 1536), (4096, 4096), ("4096", 4096)],
)
def test_limits_as_users_write_them(limit: str | int, size: int) -> None:
    assert limits.parse_memory(limit) == size


@pytest.mark.parametrize("limit", ["", "2 apples", "-1GB", 0, "GB", True])
def test_limits_that_are_none(limit: str | int) -> None:
    with pytest.raises(ValueError, match="2GB"):
        limits.parse_memory(limit)


def test_what_cannot_be_streamed_says_so(model: Restorer) -> None:
    with pytest.raises(TypeError, match="Conv2d"):
        restore(torch.nn.Conv2d(3, 3, 1), torch.rand(3, 8, 8), memory="1GB")
    with pytest.raises(ValueError, match="float32"):
        restore(model, torch.rand(3, 8, 8), dtype="bf16", memory="1GB")
    double = create_model("cplir-tiny").double()
    with pytest.raises(ValueError, match="float64"):
        restore(double, torch.rand(3, 8, 8), memory="1GB")


@pytest.mark.parametrize("size", [(5, 7), (16, 16), (4, 30)])
def test_parts_of_a_resized_map(size: tuple[int, int]) -> None:
    small = torch.rand(3, 6, 5)
    gold = torch.nn.functional.interpolate(small[None], size, mode="bilinear", align_corners=False)
    resized, made = Resized(small, *size), torch.full_like(gold, torch.nan)
    for box in windows(*size, (3, 4)):
        made[:, :, box.top : box.bottom, box.left : box.right] = resized.read(box)
    torch.testing.assert_close(made, gold)


KILLED = """
import os, sys, torch, cpl
from cpl.inference.streaming import plan, restore_streaming
torch.manual_seed(0)
model = cpl.create_model("cplir-tiny").eval()
limit = plan(model, 96, 96, 2**40).least
def die(share):
    if share > 0.5: os.kill(os.getpid(), 9)
restore_streaming(model, torch.rand(3, 96, 96), limit, torch.device("cpu"), folder=sys.argv[1], progress=die)
"""


def test_killed_in_the_middle_it_leaves_no_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=Path(cpl.__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(cpl.__file__).parents[1])},
    )
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []

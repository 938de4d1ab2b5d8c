"""What is free, what a photo takes, and where scratch files lie: by the machine's own account of it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cpl.errors import CplError
from cpl.inference.restore import restore
from cpl.inference.streaming import Plan, limits, plan, restore_streaming
from cpl.inference.streaming import restore as streaming
from cpl.inference.streaming.windows import Resized
from cpl.inference.streaming.workspace import Box
from cpl.models import create_model
from cpl.models.restorer import Restorer

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(scope="module")
def model() -> Restorer:
    torch.manual_seed(0)
    return create_model("cplir-tiny").eval()


@pytest.mark.parametrize(
    ("size", "padded"),
    [((1, 2000), (8, 2000)), ((2000, 3), (2000, 8)), ((9, 17), (16, 24)), ((8, 8), (8, 8))],
)
@pytest.mark.parametrize("large", [2**26, 1])  # the second: blocks work in strips from the first byte on
def test_a_narrow_photo_takes_what_its_padded_size_does(
    model: Restorer,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    padded: tuple[int, int],
    large: int,
) -> None:
    monkeypatch.setattr("cpl_kernels.strips._LARGE", {"cpu": large})
    monkeypatch.setattr("cpl_kernels.strips._LEAST_ROWS", 4)
    monkeypatch.setattr("cpl_kernels.strips._STRIP", {"cpu": 1})
    narrow, whole = (limits.untiled_bytes(model, (2, 3, *sides), CPU) for sides in (size, padded))
    assert narrow == whole


def test_a_large_photo_takes_less_for_each_pixel(model: Restorer) -> None:
    """Its blocks work in strips of rows, as the kernels say: 170 channels of 128x128 are 11 MB, of 512x512 178 MB."""
    small, large = (
        (limits.untiled_bytes(model, (1, 3, side, side), CPU) - limits._BESIDE) / side**2
        for side in (128, 512)
    )
    assert large < 0.7 * small


def test_a_narrow_photo_goes_by_windows_where_its_padded_size_needs_them(
    model: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(3, 400, 1)
    counted = limits.untiled_bytes(model, (1, 3, 400, 8), CPU)
    plans: list[Plan] = []
    for share, by_windows in ((0.5, True), (2, False)):
        monkeypatch.setattr(limits, "free_memory", lambda device, share=share: int(share * counted))
        plans.clear()
        restore(model, image, on_plan=plans.append)
        assert bool(plans) is by_windows


def test_a_window_is_no_larger_than_its_map() -> None:
    """Where the widest maps are small ones, those of a low image have fewer rows than a window with its borders."""
    torch.manual_seed(0)
    wide = create_model("cplir", dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1).eval()
    windows = []
    for height in (1, 64):
        least = plan(wide, height, 80, 2**40).least
        weights = 4 * 4 * max(weight.numel() for weight in wide.parameters())
        windows.append(least - weights - 2 * 4 * 3 * height * 80)  # nor the image as given and as made
    assert windows[0] < 0.7 * windows[1]
    image = torch.rand(3, 1, 80)
    restored, _ = restore_streaming(wide, image, plan(wide, 1, 80, 2**40).least, CPU)
    with torch.inference_mode():
        assert float((restored - wide(image[None])[0]).abs().max()) <= 1e-4


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any op made."""

    most = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = op(*args, **(kwargs or {}))
        self.most = max(self.most, made.numel()) if isinstance(made, torch.Tensor) else self.most
        return made


def test_a_resized_map_is_never_as_wide_as_the_image_in_all_its_rows() -> None:
    """A prompt of 64x64 pixels beside the windows of a panorama would be the largest thing of all."""
    small = torch.rand(3, 64, 64)
    with Largest() as largest:
        part = Resized(small, 4, 5000).read(Box(0, 2, 0, 5000))
    assert part.shape == (1, 3, 2, 5000)
    assert largest.most == 3 * 2 * 5000


def test_a_limit_that_nobody_set_is_not_to_be_raised(
    model: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(3, 300, 400)
    monkeypatch.setattr(limits, "free_memory", lambda device: 3 * MIB)
    with pytest.raises(CplError) as error:
        restore(model, image)
    for words in ("400x300 image needs at least", "and 3 MiB are free, of which half", "free some memory"):
        assert words in str(error.value)
    assert "tiles (tile=, --tile)" in str(error.value)
    assert "limit" not in str(error.value)
    with pytest.raises(CplError, match=r"the limit leaves 1 MiB: raise the limit \(memory=, --memory\)"):
        restore(model, image, memory="1MB")


def test_the_least_limit_that_an_error_names_would_do(model: Restorer) -> None:
    for height in (64, 300, 6000):  # 13.4 MiB for the second, which must not be said as 13; and above a GiB
        with pytest.raises(CplError) as error:
            plan(model, height, 400 if height < 1000 else 9000, 2**20)
        (least,) = re.findall(r"at least (\S+) ([MG])iB", str(error.value))
        plan(model, height, 400 if height < 1000 else 9000, limits.parse_memory("".join(least) + "B"))
    least_bytes = plan(model, 300, 400, 2**40).least
    with pytest.raises(CplError, match="at least 14 MiB of memory, and the limit leaves 13 MiB"):
        plan(model, 300, 400, least_bytes - 1)
    with pytest.raises(CplError, match="limit leaves 12 MiB"):
        plan(model, 300, 400, 12 * MIB + 900_000)


def test_half_of_the_free_memory_is_the_limit(model: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    least = plan(model, 64, 64, 2**40).least
    plans: list[Plan] = []
    monkeypatch.setattr(limits, "_SHARE", 1e-3)
    for free in (2 * least + 2, 4 * least):
        monkeypatch.setattr(limits, "free_memory", lambda device, free=free: free)
        restore(model, torch.rand(3, 64, 64), on_plan=plans.append)
        assert plans[-1] == plan(model, 64, 64, free // 2, free=free)
    monkeypatch.setattr(limits, "free_memory", lambda device: 2 * least - 2)
    with pytest.raises(CplError, match="are free, of which half"):
        restore(model, torch.rand(3, 64, 64))


@pytest.mark.parametrize("free", [None, 5 * MIB])
def test_a_disk_without_room_has_its_own_remedies(
    model: Restorer, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    least = plan(model, 64, 64, 2**40).least
    made = plan(model, 64, 64, least, free=free)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    remedy = "free some memory or use tiles" if free else r"raise the limit \(memory=, --memory\)"
    with pytest.raises(CplError, match=f"set TMPDIR to a larger disk, or {remedy}"):
        made.check_disk()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("at", ["posix_fallocate", "mkstemp"])
def test_a_disk_that_others_fill_in_the_middle(
    model: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, at: str
) -> None:
    """After some files: the error is the one of a disk that was too full before, and nothing is left."""
    where, calls = (os, tempfile)[at == "mkstemp"], []
    real = getattr(where, at)

    def full_at_the_third(*arguments: object, **more: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)

    monkeypatch.setattr(where, at, full_at_the_third)
    least = plan(model, 64, 64, 2**40).least
    with pytest.raises(CplError) as error:
        restore_streaming(model, torch.rand(3, 64, 64), least, CPU, folder=tmp_path)
    for words in (
        f"{tmp_path} has no room for",
        os.strerror(number),
        "set TMPDIR to a larger disk",
        "--memory",
    ):
        assert words in str(error.value)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_a_scratch_file_keeps_its_name(
    model: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "posix_fallocate", broken)
    least = plan(model, 64, 64, 2**40).least
    with pytest.raises(OSError, match="Input/output error"):
        restore_streaming(model, torch.rand(3, 64, 64), least, CPU, folder=tmp_path)


def test_a_container_of_version_1(tmp_path: Path) -> None:
    group = tmp_path / "memory"
    group.mkdir()
    (group / "memory.usage_in_bytes").write_text("700\n")
    (group / "memory.stat").write_text("inactive_file 50\ntotal_cache 300\ntotal_inactive_file 250\n")
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # how the kernel writes "none"
    assert limits._of_container(tmp_path) is None
    (group / "memory.limit_in_bytes").write_text("1000\n")
    assert limits._of_container(tmp_path) == 1000 - 700 + 250
    (group / "memory.usage_in_bytes").write_text("1400\n")
    assert limits._of_container(tmp_path) == 0
    (group / "memory.usage_in_bytes").write_text("what\n")
    assert limits._of_container(tmp_path) is None
    (group / "memory.usage_in_bytes").unlink()
    assert limits._of_container(tmp_path) is None


def test_of_two_versions_at_once_the_smaller_limit_counts(tmp_path: Path) -> None:
    group = tmp_path / "memory"
    group.mkdir()
    for place, used in ((group, "memory.usage_in_bytes"), (tmp_path, "memory.current")):
        (place / used).write_text("100\n")
        (place / "memory.stat").write_text("")
    (tmp_path / "memory.max").write_text("900\n")
    for limit, left in (("600\n", 500), ("1200\n", 800)):
        (group / "memory.limit_in_bytes").write_text(limit)
        assert limits._of_container(tmp_path) == left


def test_whether_files_are_memory(tmp_path: Path) -> None:
    number = os.stat(tmp_path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    mounts = tmp_path / "mountinfo"
    other = "21 1 0:9999 / /tmp rw - tmpfs tmpfs rw\n"
    for kind, memory in (("tmpfs", True), ("ramfs", True), ("ext4", False), ("tmpfs2", False)):
        mounts.write_text(f"{other}22 1 {device} / /a\\040b rw shared:3 - {kind} none rw\n{other}torn")
        assert limits.lies_in_memory(tmp_path, mounts) is memory
    mounts.write_text(other)
    assert limits.lies_in_memory(tmp_path, mounts) is False
    assert limits.lies_in_memory(tmp_path, tmp_path / "absent") is False
    assert limits.lies_in_memory(tmp_path / "absent") is False


def test_whether_files_are_memory_on_this_machine(tmp_path: Path) -> None:
    """Against what stat(1) of coreutils asks the kernel."""
    if shutil.which("stat") is None or not Path("/proc/self/mountinfo").exists():
        pytest.skip("needs Linux and stat(1) to compare with")
    folders = [place for place in (tmp_path, Path("/dev/shm"), Path("/proc")) if place.exists()]
    for place in folders:
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", str(place)], capture_output=True, text=True, check=True
        ).stdout.strip()
        assert limits.lies_in_memory(place) is (kind in ("tmpfs", "ramfs")), (place, kind)


def test_the_plan_warns_of_scratch_files_that_are_memory(
    model: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(streaming, "lies_in_memory", lambda folder: asked.append(folder) or True)
    least = plan(model, 64, 64, 2**40).least
    restored = restore_streaming(model, torch.rand(3, 64, 64), least, CPU, folder=tmp_path)  # not refused
    assert np.isfinite(restored[0].numpy()).all()
    assert asked[-1] == tmp_path
    with_files, without = plan(model, 64, 64, least, tmp_path), plan(model, 64, 64, 2**40, tmp_path)
    assert str(with_files).endswith(
        f"(warning: {tmp_path} is a tmpfs, so these files are memory too: set TMPDIR to a disk)"
    )
    assert "tmpfs" not in str(without)
    monkeypatch.setattr(streaming, "lies_in_memory", lambda folder: False)
    assert "tmpfs" not in str(plan(model, 64, 64, least, tmp_path))

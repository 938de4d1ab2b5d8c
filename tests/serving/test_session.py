"""One photo through the page's back: restored as `cpl.restore` does, limits kept, bad files told of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cpl
from cpl.data.seeding import generator
from cpl.degradations import create
from cpl.errors import CplError, MissingExtra, TooLittleRoom
from cpl.images import read_image
from cpl.inference import restore as restoring
from cpl.inference.inspect import Usage
from cpl.inference.metrics import psnr
from cpl.models.restorer import Restorer
from cpl.serving import session as sessions
from cpl.serving.session import Limits, Session, restored_name, save_answer
from tests.serving.conftest import bomb, png


def upload(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_photo_is_restored_as_it_is(network: Restorer, tmp_path: Path) -> None:
    path = upload(tmp_path / "a.png", png())
    answer = Session(network, {"noise": "noise"}).answer(path)
    rgb = read_image(path).rgb
    assert np.array_equal(answer.before, rgb)
    assert np.array_equal(answer.after, cpl.restore(network, rgb))
    assert (answer.degradation, answer.scores, answer.likely) == ("", None, None)
    assert [choice.level for choice in answer.choices] == [1, 2, 3]


def test_a_degradation_is_added_first(network: Restorer, usage: Usage, tmp_path: Path) -> None:
    path = upload(tmp_path / "a.png", png())
    answer = Session(network, {"grain": "noise:sigma=25"}, usage).answer(path, "grain", seed=4)
    rgb = read_image(path).rgb
    assert np.array_equal(answer.before, create("noise:sigma=25")(rgb, generator(4, "serve", "grain")))
    assert np.array_equal(answer.after, cpl.restore(network, answer.before))
    assert answer.scores == (psnr(answer.before, rgb), psnr(answer.after, rgb))
    assert answer.likely == usage.likely(answer.choices)


def test_the_restored_file_is_like_the_upload(network: Restorer, tmp_path: Path) -> None:
    alpha = np.full((24, 40), 7, np.uint8)
    image = Image.open(upload(tmp_path / "a.png", png())).convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "b.png")
    answer = Session(network, {}).answer(tmp_path / "b.png")
    save_answer(answer, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode == "RGBA"
        assert np.array_equal(np.asarray(written)[:, :, 3], alpha)
        assert np.array_equal(np.asarray(written)[:, :, :3], np.rint(answer.after * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", b"no image at all", "no image of a kind that is read here"),
        ("a.png", b"", "no image of a kind"),
        ("a.png", png()[:80], "damaged or incomplete"),
        ("a.png", png()[:20], "cannot be restored"),
        ("a.png", bomb(), "pixels"),
        ("a.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a kind"),
        ("a.png", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "no image of a kind"),
        ("a.png", png(200, 101), "200x101 pixels, and 0.02 megapixels"),
        ("a.png", png(1, 3000), r"1x3000 pixels \(worked on as 8x3000\), and 0.02 megapixels"),
        ("a.png", png() + bytes(100_000), "larger than 0.0954 MiB"),
    ],
    ids=["text", "empty", "cut", "header alone", "bomb", "svg", "gif", "many pixels", "narrow", "many bytes"],
)
def test_bad_files_are_told_of(
    network: Restorer, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    session = Session(network, {}, limits=Limits(upload_bytes=100_000, pixels=20_000))
    with pytest.raises(CplError, match=words) as caught:
        session.answer(upload(tmp_path / name, content))
    assert str(tmp_path) not in str(caught.value)  # a path of the server is nobody's business


def test_nothing_is_decoded_before_its_size_is_known(
    network: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(path: Path) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(sessions, "read_image", decode)
    with pytest.raises(CplError, match="megapixels"):
        Session(network, {}, limits=Limits(pixels=900)).answer(upload(tmp_path / "a.png", png()))


def test_pixels_are_counted_as_they_are_worked_on(tmp_path: Path) -> None:
    path = upload(tmp_path / "a.png", png(39, 18))
    assert Session(nn.Identity(), {}, limits=Limits(pixels=960)).answer(path).before.shape == (18, 39, 3)
    with pytest.raises(CplError, match=r"39x18 pixels \(worked on as 40x24\)"):
        Session(nn.Identity(), {}, limits=Limits(pixels=959)).answer(path)


def test_no_path_of_this_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = upload(tmp_path / "a.png", png())
    session = Session(nn.Identity(), {})
    answer = session.answer(path)

    def told(wrong: Any, *args: Any) -> str:
        with pytest.raises(CplError) as caught:
            wrong(*args)
        assert str(tmp_path) not in str(caught.value)
        return str(caught.value)

    clear = dataclasses.replace(answer.source, alpha=np.zeros((24, 40), np.uint8))
    said = told(save_answer, dataclasses.replace(answer, source=clear), tmp_path / "restored" / "a.jpg")
    assert said.startswith("The restored photo cannot be saved: JPEG has no transparency")

    def lacks(path: Path) -> None:
        raise MissingExtra(f"{path}: something is not installed")

    def is_full(*_: Any, **__: Any) -> None:
        raise TooLittleRoom(f"4 GB of scratch files and {tmp_path} has 1 GB free")

    monkeypatch.setattr(sessions, "restore", is_full)
    no_room = "This server has not the disk space for a photo of 40x24 pixels: make it smaller, or crop it."
    assert told(session.answer, path) == no_room
    monkeypatch.setattr(sessions, "read_image", lacks)
    assert told(session.answer, path) == "This file cannot be restored: something is not installed"


def test_what_is_not_offered_and_not_there(network: Restorer, tmp_path: Path) -> None:
    session = Session(network, {"noise": "noise"})
    with pytest.raises(CplError, match="Choose a photo"):
        session.answer(None)
    with pytest.raises(CplError, match="gone"):
        session.answer(tmp_path / "absent.png")
    with pytest.raises(CplError, match="no degradation 'rain' here"):
        session.answer(upload(tmp_path / "a.png", png()), "rain")
    with pytest.raises(ValueError, match="fog"):
        Session(network, {"fog": "fog"})


def test_large_photos_go_window_by_window(
    network: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def note(*args: Any, memory: Any, **kwargs: Any) -> np.ndarray:
        given.append(memory)
        return restoring.restore(*args, memory=memory, **kwargs)

    monkeypatch.setattr(sessions, "restore", note)
    path = upload(tmp_path / "a.png", png(64, 64))
    shares: list[float] = []
    small = Session(network, {}).answer(path)
    large = Session(network, {}, limits=Limits(memory=8 * 2**20)).answer(path, progress=shares.append)
    assert given == [None, 8 * 2**20]
    assert np.abs(small.after - large.after).max() < 1e-5
    assert [c.chosen for c in small.choices] == [c.chosen for c in large.choices]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    # A visitor cannot raise the server's limit, so it is not proposed.
    with pytest.raises(CplError, match="photo of 64x64 pixels: make it smaller, or crop it.$"):
        Session(network, {}, limits=Limits(memory=1000)).answer(path)
    assert Session(network, {}, limits=Limits(memory=1000), dtype="bf16").answer(path).choices


def test_networks_without_prompts_are_served_too(tmp_path: Path) -> None:
    path = upload(tmp_path / "a.png", png())
    torch.manual_seed(0)
    for model in (nn.Identity(), cpl.create_model("restormer", dim=8, num_blocks=(1, 1, 1, 1))):
        answer = Session(model, {}).answer(path)
        assert (answer.choices, answer.likely) == ([], None)


def test_names_of_restored_files(tmp_path: Path, network: Restorer) -> None:
    source = Session(network, {}).answer(upload(tmp_path / "a.png", png())).source
    assert restored_name("holiday 1.PNG", source) == "holiday 1_restored.png"
    assert restored_name("a.jpg", source) == "a_restored.png"  # it is a PNG whatever it is called
    assert restored_name("../../<b>.png", source) == "_b__restored.png"
    assert restored_name(".png", source) == "png_restored.png"
    assert restored_name("x" * 300 + ".png", source) == "x" * 60 + "_restored.png"

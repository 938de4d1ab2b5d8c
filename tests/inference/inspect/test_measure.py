"""What is measured: the pictures of `cpl eval`, the negatives of training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import cpl
from cpl.data import evaluation_cases
from cpl.data.crops import as_tensor
from cpl.data.photos import Photo
from cpl.data.seeding import derive
from cpl.errors import CplError
from cpl.inference.inspect import CLEAN, Inspection, inspect_model
from cpl.inference.metrics import psnr
from cpl.models.restorer import Restorer


def test_every_photo_under_every_degradation_and_as_it_is(inspection: Inspection) -> None:
    assert inspection.tasks == [CLEAN, "noise", "dark"]
    assert [(i.task, i.name) for i in inspection.images] == [
        (task, name) for task in (CLEAN, "noise", "dark") for name in ("a", "<b>")
    ]
    assert [(p.task, p.name) for p in inspection.pictures] == [(CLEAN, "a"), ("noise", "a"), ("dark", "a")]
    assert all(math.isinf(image.degraded_psnr) for image in inspection.of(CLEAN))


def test_numbers_are_those_of_the_network(
    inspection: Inspection, network: Restorer, photos: list[Photo]
) -> None:
    (case, *_) = evaluation_cases(photos, {"noise": "noise:sigma=50"}, seed=3)
    x = as_tensor(case["degraded"])[None]
    with torch.no_grad():
        restored, negatives = network.forward_with_negatives(
            x, 2, seed=derive(3, "negatives", "noise", case["name"])
        )
    assert not torch.equal(negatives[0], negatives[1])
    after, *wrong = (image[0].clamp(0, 1).permute(1, 2, 0).numpy() for image in (restored, *negatives))
    found = inspection.of("noise")[0]
    assert found.restored_psnr == pytest.approx(psnr(after, case["target"]), abs=1e-6)
    assert found.degraded_psnr == psnr(case["degraded"], case["target"])
    assert found.negative_psnr == pytest.approx(np.mean([psnr(w, case["target"]) for w in wrong]), abs=1e-6)
    assert found.distance == pytest.approx(np.mean([np.abs(after - w).mean() for w in wrong]), rel=1e-4)
    assert found.distance > 0
    assert inspection.mean("noise", "distance") == pytest.approx(
        sum(i.distance or 0 for i in inspection.of("noise")) / 2
    )


def test_the_order_of_photos_changes_nothing(network: Restorer, photos: list[Photo]) -> None:
    def look(some: list[Photo]) -> dict[str, tuple[float | None, ...]]:
        found = inspect_model(network, some, {"rain": "rain"}, num_negatives=1)
        return {i.name: (i.restored_psnr, i.distance) for i in found.of("rain")}

    both = look(photos)
    assert look(photos[::-1]) == both
    assert look(photos[1:]) == {"<b>": both["<b>"]}


def test_only_the_middle_is_looked_at(network: Restorer, photos: list[Photo]) -> None:
    counted = []
    found = inspect_model(
        network, photos, {"blur": "blur"}, crop=16, num_negatives=1, progress=lambda: counted.append(1)
    )
    assert {picture.degraded.shape for picture in found.pictures} == {(16, 16, 3)}
    assert len(counted) == len(found.images) == 4


def test_a_network_that_takes_all_prompts_has_no_negatives(photos: list[Photo]) -> None:
    torch.manual_seed(0)
    for settings in ({"top_k": None}, {"top_k": 3}):  # of five: two are left, and three are needed
        found = inspect_model(cpl.create_model("cplir-tiny", **settings), photos[:1], {"noise": "noise"})
        assert "too few wrong ones" in found.without_negatives
        assert {(i.distance, i.negative_psnr) for i in found.images} == {(None, None)}
        assert found.mean("noise", "distance") is None


def test_training_mode_is_put_back(photos: list[Photo]) -> None:
    model = cpl.create_model("cplir-tiny").train()
    inspect_model(model, photos[:1], {"noise": "noise"}, num_negatives=1)
    assert model.training


def test_refusals(network: Restorer, photos: list[Photo], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CplError, match="no photo"):
        inspect_model(network, [], {"noise": "noise"})
    with pytest.raises(CplError, match="restormer has no prompts"):
        inspect_model(cpl.create_model("restormer", dim=8), photos, {"noise": "noise"})
    with pytest.raises(ValueError, match="num_negatives .* got 0"):
        inspect_model(network, photos, {"noise": "noise"}, num_negatives=0)
    with pytest.raises(ValueError, match="crop .* got 0"):
        inspect_model(network, photos, {"noise": "noise"}, crop=0)
    with pytest.raises(ValueError, match="fog"):
        inspect_model(network, photos, {"fog": "fog"})

    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Restorer, "forward_with_negatives", no_memory)
    with pytest.raises(CplError, match="not enough memory on cpu for 32x24 pixels"):
        inspect_model(network, photos, {"noise": "noise"})

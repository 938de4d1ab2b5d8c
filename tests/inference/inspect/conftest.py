"""A network and photos, small, and what an inspection finds with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="cpl inspect needs the extra [train]")

import cpl
from cpl.data.photos import Photo
from cpl.inference.inspect import Inspection, inspect_model
from cpl.models.restorer import Restorer


@pytest.fixture(scope="session")
def network() -> Restorer:
    torch.manual_seed(0)
    return cpl.create_model("cplir-tiny").eval()


@pytest.fixture(scope="session")
def photos() -> list[Photo]:
    rng = np.random.default_rng(0)
    return [Photo(name, rng.random((24, 32, 3), dtype=np.float32), "", "") for name in ("a", "<b>")]


@pytest.fixture(scope="session")
def inspection(network: Restorer, photos: list[Photo]) -> Inspection:
    degradations = {"noise": "noise:sigma=50", "dark": "low_light:scale=0.02"}
    return inspect_model(network, photos, degradations, seed=3, num_negatives=2)

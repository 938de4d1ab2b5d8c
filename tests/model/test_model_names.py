"""Parameters are called and shaped as in the released weights, so that those load with strict=True."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cpl

RELEASED = json.loads((Path(__file__).parents[1] / "data" / "cplir_state_dict.json").read_text())


@pytest.fixture(scope="module")
def cplir():
    with torch.device("meta"):
        return cpl.create_model("cplir")


def test_cplir_has_the_released_names_and_shapes(cplir):
    assert {name: list(value.shape) for name, value in cplir.state_dict().items()} == RELEASED
    assert len(RELEASED) == 542
    assert sum(value.numel() for value in cplir.parameters()) == 35_376_967


def test_released_weights_load_strictly(cplir):
    weights = {name: torch.empty(shape, device="meta") for name, shape in RELEASED.items()}
    cplir.load_state_dict(weights, strict=True, assign=True)


def test_promptir_has_the_same_ones():
    with torch.device("meta"):
        model = cpl.create_model("promptir")
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == RELEASED
    assert [module.top_k for module in (model.prompt1, model.prompt2, model.prompt3)] == [5, 5, 5]


def test_restormer_lacks_the_prompts_and_upsamples_the_whole_latent():
    with torch.device("meta"):
        names = {
            name: list(value.shape) for name, value in cpl.create_model("restormer").state_dict().items()
        }
    prompts = [name for name in RELEASED if name.startswith(("prompt", "noise_level", "reduce_noise"))]
    assert set(names) == set(RELEASED) - set(prompts)
    differ = {name: shape for name, shape in names.items() if shape != RELEASED[name]}
    assert differ == {"up4_3.body.0.weight": [768, 384, 3, 3], "reduce_chan_level3.weight": [192, 384, 1, 1]}


@pytest.mark.parametrize("name", ["cplir", "cplir-small", "cplir-tiny", "promptir", "restormer"])
def test_every_model_runs_on_the_meta_device(name):
    with torch.device("meta"):
        assert cpl.create_model(name)(torch.empty(2, 3, 20, 9)).shape == (2, 3, 20, 9)


def test_the_number_of_prompts_is_configuration():
    model = cpl.create_model("cplir-tiny", num_prompts=7, top_k=3)
    assert model.prompt3.prompt_param.shape == (1, 7, 64, 16, 16)
    assert model.prompt3.linear_layer.weight.shape == (7, 128)

"""The configuration: what cannot be is refused before anything is built, and says what would do."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch

import cpl
from cpl.models import MODELS, ModelConfig, config


def test_a_configuration_survives_json():
    made = ModelConfig(dim=16, top_k=2, task_names=("noise", "rain"), prompt_channels=[16, 32, 64])
    assert ModelConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_it_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().dim = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "dim", "blocks", "refinement", "pools"),  # pools (C, S) from level 1 on, as cpl.md has them
    [
        ("cplir", 48, (4, 6, 6, 8), 4, [(64, 64), (128, 32), (320, 16)]),
        ("cplir-small", 32, (2, 3, 3, 4), 2, [(40, 64), (88, 32), (208, 16)]),
        ("cplir-tiny", 16, (1, 1, 1, 2), 1, [(16, 64), (32, 32), (64, 16)]),
    ],
)
def test_the_named_sizes(name, dim, blocks, refinement, pools):
    made = MODELS[name]
    assert (made.dim, made.num_blocks, made.num_refinement_blocks) == (dim, blocks, refinement)
    assert list(zip(made.prompt_channels, made.prompt_sizes, strict=True)) == pools
    assert (made.num_prompts, made.top_k) == (5, 1)
    assert all(made.prompted_width(level) % 4 == 0 for level in (1, 2, 3))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"dim": 15}, ValueError, "15"),
        ({"dim": 16.0}, TypeError, "dim must be a whole number, got 16.0"),
        ({"dim": True}, TypeError, "got True"),
        ({"num_prompts": -1}, ValueError, "num_prompts must be at least 0, got -1"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 6}, ValueError, "top_k must be at most num_prompts = 5, got 6"),
        ({"num_blocks": (1, 2, 3)}, ValueError, r"num_blocks must be 4 whole numbers, got \(1, 2, 3\)"),
        ({"num_blocks": (1, 2, 3, 0)}, ValueError, r"num_blocks\[3\] must be at least 1, got 0"),
        ({"heads": (3, 2, 4, 8)}, ValueError, "3 heads do not divide the 16 channels"),
        ({"prompt_channels": (16, 33, 64)}, ValueError, "4 heads do not divide the 97 channels of level 2"),
        ({"normalize": "softmax"}, ValueError, "'none', 'topk', 'straight_through', got 'softmax'"),
        ({"negative_weights": "mine"}, ValueError, "'own', 'positive', got 'mine'"),
        ({"norm_bias": "no"}, ValueError, "norm_bias must be one of True, False"),
        ({"ffn_expansion": 0.01}, ValueError, "ffn_expansion"),
        ({"task_names": "rain"}, TypeError, "task_names must be a list of names, got 'rain'"),
        ({"task_names": ("rain", "rain")}, ValueError, "differ"),
        ({"width": 3}, ValueError, "no setting 'width'; the settings are dim"),
        ({"dim": 2048}, ValueError, "dim must be at most 1024, got 2048"),
        ({"num_blocks": (30000, 1, 1, 2)}, ValueError, r"num_blocks\[0\] must be at most 128, got 30000"),
        ({"num_refinement_blocks": 10**9}, ValueError, "num_refinement_blocks must be at most 128"),
        ({"heads": (1, 2, 4, 10**9)}, ValueError, r"heads\[3\] must be at most 256"),
        ({"prompt_heads": 10**9}, ValueError, "prompt_heads must be at most 256"),
        ({"num_prompts": 10**9}, ValueError, "num_prompts must be at most 1024"),
        ({"prompt_sizes": (10**9, 32, 16)}, ValueError, r"prompt_sizes\[0\] must be at most 1024"),
        ({"prompt_channels": (16, 32, 10**9)}, ValueError, r"prompt_channels\[2\] must be at most 8192"),
        ({"ffn_expansion": float("inf")}, ValueError, "ffn_expansion must be at most 64, got inf"),
        ({"num_prompts": 0}, ValueError, "without prompts use 'restormer'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(overrides, error, message):
    with pytest.raises(error, match=message):
        cpl.create_model("cplir-tiny", **overrides)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match="no model 'clpir'; the models are cplir, cplir-small, cplir-tiny, promptir, restormer",
    ):
        cpl.create_model("clpir")


@pytest.mark.parametrize(
    ("name", "overrides", "remedy"),
    [
        ("promptir", {"top_k": 1}, "use 'cplir'"),
        ("restormer", {"num_prompts": 5, "top_k": 1}, "'promptir' or 'cplir'"),
    ],
)
def test_an_override_cannot_turn_a_model_into_another(name, overrides, remedy):
    with pytest.raises(ValueError, match=remedy):
        cpl.create_model(name, **overrides)


def test_a_constant_prompt_weight_is_warned_of_once():
    config._warn_constant_weight.cache_clear()
    with pytest.warns(UserWarning, match="the router gets no gradient"):
        ModelConfig(normalize="topk")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelConfig(normalize="topk")
        ModelConfig(normalize="topk", top_k=2)


def test_pools_start_uniform_between_0_and_1():
    torch.manual_seed(0)
    pool = cpl.create_model("cplir-tiny").prompt1.prompt_param
    assert 0 <= pool.min() < 0.001
    assert 0.999 < pool.max() < 1
    assert abs(pool.mean() - 0.5) < 0.01
    assert abs(pool.var() - 1 / 12) < 0.005

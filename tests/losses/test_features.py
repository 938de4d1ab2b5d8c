"""The feature networks: torchvision's names, frozen for good, and no weights without asking."""

from __future__ import annotations

import copy
import socket
import urllib.error

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpl.errors import CplError
from cpl.losses import VGG16_URL, ContrastivePromptRegularization, VGGFeatures
from cpl.losses.features import FrozenFeatures

# torchvision's VGG16: position in ``features`` -> (in, out) of its thirteen convolutions.
TORCHVISION = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip


@pytest.fixture(scope="module")
def vgg16_state():
    """A file as torchvision's, made here; its deep layers are cut to a pixel, since nobody reads them."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for position, (channels, out) in TORCHVISION.items():
        if position > 14:
            channels, out = 1, 1
        std = (2 / (9 * channels)) ** 0.5
        state[f"features.{position}.weight"] = torch.randn(out, channels, 3, 3, generator=generator) * std
        state[f"features.{position}.bias"] = torch.randn(out, generator=generator) * 0.1
    return state | {"classifier.0.weight": torch.zeros(1, 1), "classifier.0.bias": torch.zeros(1)}


@pytest.fixture
def vgg16_file(vgg16_state, tmp_path):
    torch.save(vgg16_state, tmp_path / "vgg16.pth")
    return tmp_path / "vgg16.pth"


def plain_vgg(state, x):
    """relu1_2, relu2_2, relu3_3 straight from torchvision's names."""
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    taps = []
    for block in ((0, 2), (5, 7), (10, 12, 14)):
        if taps:
            x = F.max_pool2d(x, 2)
        for i in block:
            x = F.relu(F.conv2d(x, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1))
        taps.append(x)
    return taps


def test_the_keys_are_torchvisions(vgg16_state):
    own = {name: tuple(value.shape) for name, value in VGGFeatures().state_dict().items()}
    shallow = [name for name in vgg16_state if name.startswith("features.") and int(name.split(".")[1]) <= 14]
    assert own == {name: tuple(vgg16_state[name].shape) for name in shallow}


def test_a_weights_file_gives_vgg16s_features(vgg16_file, vgg16_state):
    loss = ContrastivePromptRegularization(features="vgg16", weights_file=vgg16_file)
    x = torch.rand(2, 3, 9, 14)
    for ours, theirs in zip(loss.features(x), plain_vgg(vgg16_state, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_safetensors_weights_file_is_read_too(vgg16_state, tmp_path):
    import safetensors.torch

    safetensors.torch.save_file(vgg16_state, tmp_path / "vgg16.safetensors")
    ContrastivePromptRegularization(weights_file=tmp_path / "vgg16.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("features.12.bias"),
            "1 of VGG16's 14 tensors up to relu3_3 are missing, first 'features.12.bias'",
        ),
        (
            lambda s: s.update({"features.0.weight": torch.zeros(64, 1, 3, 3)}),
            "features.0.weight has shape (64, 1, 3, 3)",
        ),
        (lambda s: s["features.5.bias"].fill_(torch.nan), "features.5.bias holds NaN or infinity"),
    ],
)
def test_a_file_that_is_not_vgg16s_is_refused_by_name(change, message, vgg16_state, tmp_path):
    state = copy.deepcopy(vgg16_state)
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CplError) as caught:
        ContrastivePromptRegularization(weights_file=tmp_path / "other.pth")
    assert message in str(caught.value)
    assert "other.pth" in str(caught.value)
    assert VGG16_URL in str(caught.value)


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(CplError, match="there is no checkpoint .*absent.pth"):
        ContrastivePromptRegularization(weights_file=tmp_path / "absent.pth")


def test_offline_both_ways_to_the_weights_are_named(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise urllib.error.URLError("name resolution failed")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(CplError) as caught:
        ContrastivePromptRegularization(features="vgg16")
    message = str(caught.value)
    for part in (
        VGG16_URL,
        "name resolution failed",
        "connect this machine",
        "weights_file=PATH",
        "features='random'",
        str(tmp_path),
    ):
        assert part in message
    assert "\n" not in message


def test_torch_hub_is_asked_for_the_usual_url_and_a_checked_file(monkeypatch, vgg16_state):
    asked = {}

    def fetch(url, **arguments):
        asked.update(arguments, url=url)
        return vgg16_state

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    ContrastivePromptRegularization(features="vgg16")
    assert asked["url"] == "https://download.pytorch.org/models/vgg16-397923af.pth"
    assert asked["check_hash"] is True
    assert asked["weights_only"] is True


@pytest.mark.parametrize("features", ["random", "pixel", nn.Tanh()])
def test_other_features_never_touch_the_network(features, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    ContrastivePromptRegularization(features=features)


def test_random_features_are_the_same_everywhere_and_leave_the_global_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = ContrastivePromptRegularization(features="random").features.network
    generator_used = torch.get_rng_state()
    second = ContrastivePromptRegularization(features="random").features.network
    assert torch.equal(before, generator_used)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    weight = first.features[14].weight
    assert weight.shape == (64, 64, 3, 3)
    assert abs(weight.std().item() - (2 / (9 * 64)) ** 0.5) < 1e-3  # He's standard deviation
    assert not any(layer.bias.any() for layer in first.features if isinstance(layer, nn.Conv2d))


def test_the_network_stays_frozen_in_eval_mode_and_out_of_checkpoints():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    loss = ContrastivePromptRegularization(features=network)
    loss.train().requires_grad_(True)
    assert not network.training
    assert not any(module.training for module in network.modules())
    assert not any(value.requires_grad for value in network.parameters())
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(loss.features(x)[0], loss.features(x)[0])


def test_the_network_follows_the_loss_to_a_dtype_and_a_device():
    loss = ContrastivePromptRegularization(features="random").double()
    assert {value.dtype for value in loss.features.network.parameters()} == {torch.float64}
    assert loss.features.network.mean.dtype == torch.float64
    loss.to("meta")
    assert loss.features.network.features[0].weight.is_meta
    assert loss.features.network.mean.is_meta


def test_a_copy_of_the_loss_has_its_own_network():
    loss = ContrastivePromptRegularization(features="random")
    other = copy.deepcopy(loss)
    assert other.features.network is not loss.features.network
    assert isinstance(other.features, FrozenFeatures)

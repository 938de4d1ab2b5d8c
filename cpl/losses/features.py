"""Feature networks that images are compared in. They are judges: frozen, and no part of what is trained."""

from __future__ import annotations

import os
import urllib.error
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cpl.errors import CplError
from cpl.interop.weights import read_weights

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"  # torchvision's ImageNet weights, 528 MB

# VGG16 up to relu3_3: (output channels at full width, whether a 2x2 max pooling comes first).
_CONVOLUTIONS = ((64, False), (64, False), (128, True), (128, False), (256, True), (256, False), (256, False))
_TAPS = (3, 8, 15)  # positions of relu1_2, relu2_2 and relu3_3 in the stack
_MIN_SIZE = 4  # pixels: two poolings must leave one


class VGGFeatures(nn.Module):
    """relu1_2, relu2_2 and relu3_3 of VGG16, for images [M, 3, H, W] in [0, 1], H, W >= 4.

    Returns [M, 64w, H, W], [M, 128w, H/2, W/2] and [M, 256w, H/4, W/4], w = ``width``. Images are
    normalised by ImageNet's mean and standard deviation first. Parameters are called as torchvision
    calls them (features.0.weight ...), so its files load; torchvision itself is not needed. Until
    ``load`` they are He's initialisation from ``seed``.

    Source: Simonyan and Zisserman, arXiv 1409.1556, table 1 column D.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        channels = 3
        for full_width, pool_first in _CONVOLUTIONS:
            if pool_first:
                layers.append(nn.MaxPool2d(2))
            out = int(full_width * width)
            layers += [_he_convolution(channels, out, generator), nn.ReLU(inplace=True)]
            channels = out
        self.features = nn.Sequential(*layers)
        # Not in the state_dict, which is torchvision's.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        if min(images.shape[-2:]) < _MIN_SIZE:
            raise ValueError(
                f"VGG features need images of at least {_MIN_SIZE}x{_MIN_SIZE} pixels, got {tuple(images.shape)}; "
                "train on larger crops or use features='pixel'"
            )
        dtype = self.mean.dtype
        if images.dtype == torch.float64 != dtype:
            raise TypeError("the images are float64 and the VGG features float32: call .double() on the loss")
        x, taps = (images.to(dtype) - self.mean) / self.std, []
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position in _TAPS:
                taps.append(x)
        return taps

    def load(self, weights: Mapping[str, Tensor], source: str) -> VGGFeatures:
        """Take the layers up to relu3_3 out of torchvision's VGG16 ``weights``; deeper ones are left out.

        Raises:
            CplError: a name that is missing, a wrong shape, NaN or infinity; it names ``source``.
        """
        own = self.state_dict()
        missing = [name for name in own if name not in weights]
        if missing:
            raise CplError(
                f"{source}: {len(missing)} of VGG16's {len(own)} tensors up to relu3_3 are missing, "
                f"first {missing[0]!r}; give torchvision's vgg16 weights, as from {VGG16_URL}"
            )
        for name, value in own.items():
            if weights[name].shape != value.shape:
                raise CplError(
                    f"{source}: {name} has shape {tuple(weights[name].shape)}, VGG16's has {tuple(value.shape)}; "
                    f"give torchvision's vgg16 weights, as from {VGG16_URL}"
                )
            if not weights[name].isfinite().all():
                raise CplError(
                    f"{source}: {name} holds NaN or infinity; fetch the file again from {VGG16_URL}"
                )
        self.load_state_dict({name: weights[name] for name in own})
        return self


def _he_convolution(channels: int, out: int, generator: torch.Generator) -> nn.Conv2d:
    """A 3x3 convolution with He's normal initialisation, zero bias. torch's own would draw from the global state.

    Source: He et al., arXiv 1502.01852, equation 10.
    """
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, channels, out, 3, padding=1, device="cpu")
    with torch.no_grad():
        layer.weight.normal_(std=(2 / (9 * channels)) ** 0.5, generator=generator)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class PixelFeatures(nn.Module):
    """The image itself, as the only layer."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


class FrozenFeatures(nn.Module):
    """Keeps a feature network frozen, in eval mode and out of the state_dict.

    The network is not registered as a submodule. So ``parameters()``, ``state_dict()``, ``train()``,
    ``requires_grad_()`` and an optimizer never meet it, and a checkpoint of the loss stays empty; it
    still follows ``.to()``, ``.cuda()`` and ``.double()``.

    Args:
        network: images [M, 3, H, W] -> one tensor [M, ...] or several; frozen in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network.requires_grad_(False).eval()
        self._hidden = [network]  # a list: attributes that are modules get registered

    @property
    def network(self) -> nn.Module:
        return self._hidden[0]

    def forward(self, images: Tensor) -> list[Tensor]:
        taps = self.network(images)
        return [taps] if isinstance(taps, Tensor) else list(taps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenFeatures:
        super()._apply(fn, recurse)
        self.network._apply(fn, recurse)
        return self


def feature_network(
    features: str | nn.Module, weights_file: str | os.PathLike[str] | None = None
) -> nn.Module:
    """The network that ``features`` names; see :class:`cpl.losses.ContrastivePromptRegularization`."""
    if weights_file is not None and features != "vgg16":
        raise ValueError(
            f"weights_file is for features='vgg16' only, got features={features!r}; leave it out"
        )
    if isinstance(features, nn.Module):
        return features
    if features == "vgg16":
        return _vgg16(weights_file)
    if features == "random":
        return VGGFeatures(width=0.25, seed=0)
    if features == "pixel":
        return PixelFeatures()
    raise ValueError(f"features must be 'vgg16', 'random', 'pixel' or an nn.Module, got {features!r}")


def _vgg16(weights_file: str | os.PathLike[str] | None) -> nn.Module:
    if weights_file is not None:
        return VGGFeatures().load(read_weights(weights_file).state, str(weights_file))
    try:
        weights: dict[str, Any] = torch.hub.load_state_dict_from_url(
            VGG16_URL, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, urllib.error.URLError) as error:  # a wrong hash is a RuntimeError
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        reason = " ".join(str(error).split())
        raise CplError(
            f"cannot fetch VGG16's weights from {VGG16_URL} ({reason}): connect this machine, or fetch that file "
            f"elsewhere and pass weights_file=PATH (or put it in {cache}); features='random' needs no weights"
        ) from None
    return VGGFeatures().load(weights, VGG16_URL)

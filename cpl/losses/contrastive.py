"""Contrastive Prompt Regularization: the image restored with the wrong prompts must come out different."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpl.losses.features import FrozenFeatures, feature_network
from cpl_kernels import checks, feature_distances

FORMS = ("subtractive", "ratio", "infonce")
_THREE_LAYERS = (0.2, 0.3, 0.5)  # MCLIR's published values for relu1_2, relu2_2, relu3_3


class ContrastivePromptRegularization(nn.Module):
    """``loss(restored [B,3,H,W], target [B,3,H,W], negatives [K,B,3,H,W])`` -> scalar.

    With out, gt and out_j the three arguments, mean over images and, for out_j, over the K negatives,
    and the distance of two images, for feature layers f_l with layer weights a_l,

        D(x, y) = sum_l a_l * mean |f_l(x) - f_l(y)|

    the forms are:

        subtractive  L = L1(out, gt) - weight * mean_j D(out, out_j)
        ratio        L = L1(out, gt) + weight * D(out, gt) / (mean_j D(out, out_j) + eps)
        infonce      L = L1(out, gt) - weight * log( e(out, gt) / (e(out, gt) + sum_j e(out, out_j)) ),
                     e(x, y) = exp(-D(x, y) / temperature)

    **subtractive** is what the authors' released training code computes (with its defects mended: all layers
    count, and the sum over negatives is divided by K). **ratio** is an interpretation of the paper's figure
    after AECR-Net, and **infonce** another; the text of the paper's loss section could not be had.
    -D is unbounded below: subtractive may push ``out`` away without end, unless ``margin`` is given.

    The gradient goes to ``restored`` alone; target and negatives are taken as constants. Sums are kept
    in fp32 (fp64 for fp64 images), also under autocast, where only the feature network runs in bf16.

    Args:
        form: "subtractive", "ratio" or "infonce".
        features: "vgg16": ImageNet's weights, from ``weights_file`` or else from torch.hub, which
            downloads 528 MB once; "random": VGG16's layers at a quarter of the width, He
            initialisation, seed 0, no download; "pixel": the images themselves; or a module that maps
            images [M, 3, H, W] to one tensor [M, ...] or several. The module is frozen in place.
        layer_weights: one for each layer of ``features``; None: (0.2, 0.3, 0.5) for three layers,
            equal ones that sum to 1 otherwise.
        weight: of the regularization (MCLIR's 1e-3; the paper's own is not known).
        margin: D(out, out_j) counts up to here, with no gradient beyond. None: no bound.
        temperature: infonce's.
        normalize_features: give each feature vector (over channels) unit length first.
        weights_file: torchvision's vgg16 weights, for features="vgg16".
        eps: keeps ratio finite where a negative equals the restored image.
        negative_chunk: how many of the K negatives go through the feature network at a time; None: all, with
            the truth, in one call. A chunk's features are let go once its distances are known and made again
            in the backward: one more pass of the negatives, for the memory of a chunk instead of K.
            The same loss and gradients, up to rounding.

    Raises:
        ValueError: a setting or a shape that cannot be, by name.
        CplError: the VGG16 weights cannot be had; the message says both ways to them.

    Source: CPL, arXiv 2504.09973; AECR-Net, arXiv 2104.09367, equation 4 (ratio); van den Oord et al.,
    arXiv 1807.03748, equation 4 (infonce).
    """

    def __init__(
        self,
        form: str = "subtractive",
        features: str | nn.Module = "vgg16",
        layer_weights: Sequence[float] | None = None,
        weight: float = 1e-3,
        margin: float | None = None,
        temperature: float = 0.1,
        normalize_features: bool = False,
        weights_file: str | os.PathLike[str] | None = None,
        eps: float = 1e-7,
        negative_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
        checks.at_least("weight", weight, 0)
        checks.at_least("eps", eps, 0)
        checks.at_least("temperature", temperature, 0, strict=True)
        if margin is not None:
            checks.at_least("margin", margin, 0, strict=True)
        if layer_weights is not None:
            layer_weights = tuple(layer_weights)
            if not layer_weights:
                raise ValueError("layer_weights must have a weight for each feature layer, got none")
            for i, value in enumerate(layer_weights):
                checks.at_least(f"layer_weights[{i}]", value, 0)
        if isinstance(negative_chunk, bool) or not isinstance(negative_chunk, int | None):
            raise TypeError(f"negative_chunk must be an integer or None, got {negative_chunk!r}")
        if negative_chunk is not None and negative_chunk < 1:
            raise ValueError(f"negative_chunk must be at least 1 or None, got {negative_chunk}")
        self.form, self.weight, self.margin = form, weight, margin
        self.negative_chunk = negative_chunk
        self.temperature, self.normalize_features, self.eps = temperature, normalize_features, eps
        self.layer_weights = layer_weights
        self.features = FrozenFeatures(feature_network(features, weights_file))

    def forward(
        self, restored: Tensor, target: Tensor, negatives: Tensor, return_parts: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss; with ``return_parts`` also a dict of its terms, detached scalars, to log.

        The terms: total, pixel (the L1), regularization (what is added to it, weight included),
        distance_to_target, distance_to_negatives (means of D; the latter with its margin). For
        "subtractive" distance_to_target is no part of the loss and costs one more pass through
        the feature network: ask for the parts when you log them.
        """
        _check_images(restored, target, negatives)
        target, negatives = target.detach(), negatives.detach()
        wide = torch.promote_types(restored.dtype, torch.float32)
        pixel = (restored.to(wide) - target.to(wide)).abs().mean()

        anchor = self.features(restored)  # layers [B, ...]
        pulls = self.form != "subtractive"
        others = torch.cat((target.to(negatives.dtype).unsqueeze(0), negatives)) if pulls else negatives
        distances = self._distances(anchor, others)  # [K, B], or [1 + K, B] with the target first
        to_target, to_negatives = (distances[0], distances[1:]) if pulls else (None, distances)
        if self.margin is not None:
            to_negatives = to_negatives.clamp(max=self.margin)
        regularization = self.weight * self._term(to_target, to_negatives)
        total = pixel + regularization
        if not return_parts:
            return total
        if to_target is None:
            with torch.no_grad():
                to_target = self._distances(anchor, target.unsqueeze(0))
        parts = {
            "total": total,
            "pixel": pixel,
            "regularization": regularization,
            "distance_to_target": to_target.mean(),
            "distance_to_negatives": to_negatives.mean(),
        }
        return total, {name: value.detach() for name, value in parts.items()}

    def _term(self, to_target: Tensor | None, to_negatives: Tensor) -> Tensor:
        """The regularization without its weight, from distances [B] and [K, B]."""
        if to_target is None:
            return -to_negatives.mean()
        if self.form == "ratio":
            return (to_target / (to_negatives.mean(0) + self.eps)).mean()
        similarity = -torch.cat((to_target.unsqueeze(0), to_negatives)) / self.temperature  # [1 + K, B]
        return (similarity.logsumexp(0) - similarity[0]).mean()

    def _distances(self, anchor: list[Tensor], images: Tensor) -> Tensor:
        """D [J, B] between the restored images' features and ``images`` [J, B, 3, H, W]."""
        if self.negative_chunk is None or len(images) <= self.negative_chunk:
            return self._distances_in_one_pass(images, *anchor)
        # The backward of a distance needs both features: without a checkpoint the graph would keep every chunk's.
        return torch.cat(
            [
                checkpoint(
                    self._distances_in_one_pass,
                    chunk,
                    *anchor,
                    use_reentrant=False,
                    preserve_rng_state=False,  # the network is frozen and in eval mode: it draws nothing
                )
                for chunk in images.split(self.negative_chunk)
            ]
        )

    def _distances_in_one_pass(self, images: Tensor, *anchor: Tensor) -> Tensor:
        with torch.no_grad():
            others = [layer.unflatten(0, images.shape[:2]) for layer in self.features(images.flatten(0, 1))]
        return feature_distances(
            list(anchor),
            others,
            p=1,
            normalize=self.normalize_features,
            layer_weights=self._weights_of(len(anchor)),
        )

    def _weights_of(self, layers: int) -> list[float]:
        if self.layer_weights is None:
            return list(_THREE_LAYERS) if layers == len(_THREE_LAYERS) else [1 / layers] * layers
        if len(self.layer_weights) != layers:
            raise ValueError(
                f"layer_weights must have one weight for each of the {layers} feature layers, "
                f"got {self.layer_weights}"
            )
        return list(self.layer_weights)

    def extra_repr(self) -> str:
        return f"form={self.form!r}, weight={self.weight}, margin={self.margin}"


def _check_images(restored: Tensor, target: Tensor, negatives: Tensor) -> None:
    for name, value in (("restored", restored), ("target", target), ("negatives", negatives)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point in [0, 1], got {value.dtype}")
        if value.device != restored.device:
            raise ValueError(
                f"{name} is on {value.device} but restored is on {restored.device}; move one of them"
            )
    if restored.dim() != 4 or restored.shape[1] != 3 or restored.numel() == 0:
        raise ValueError(
            f"restored must be [B, 3, H, W] with B, H, W >= 1, got shape {tuple(restored.shape)}"
        )
    if target.shape != restored.shape:
        raise ValueError(
            f"target must have restored's shape {tuple(restored.shape)}, got {tuple(target.shape)}"
        )
    if negatives.dim() != 5 or negatives.shape[0] < 1 or negatives.shape[1:] != restored.shape:
        raise ValueError(
            f"negatives must be [K, B, 3, H, W] = [K >= 1, {', '.join(map(str, restored.shape))}], "
            f"got {tuple(negatives.shape)}; model.forward_with_negatives makes them"
        )

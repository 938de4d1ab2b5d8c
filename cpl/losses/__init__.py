"""Losses for training restorers."""

from cpl.losses.contrastive import ContrastivePromptRegularization
from cpl.losses.features import VGG16_URL, FrozenFeatures, PixelFeatures, VGGFeatures

__all__ = [
    "VGG16_URL",
    "ContrastivePromptRegularization",
    "FrozenFeatures",
    "PixelFeatures",
    "VGGFeatures",
]

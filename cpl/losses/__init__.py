"""Losses for training restorers."""

from cpl.losses.contrastive import ContrastivePromptRegularization
from cpl.losses.features import VGG16_URL, FrozenFeatures, PixelFeatures, VGGFeatures
from cpl.losses.info_nce import InfoNCELoss, NTXentLoss, SupConLoss

__all__ = [
    "VGG16_URL",
    "ContrastivePromptRegularization",
    "FrozenFeatures",
    "InfoNCELoss",
    "NTXentLoss",
    "PixelFeatures",
    "SupConLoss",
    "VGGFeatures",
]

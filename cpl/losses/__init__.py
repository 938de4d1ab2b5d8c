"""Losses for training restorers."""

from cpl.losses.contrastive import ContrastivePromptRegularization
from cpl.losses.features import VGG16_URL, FrozenFeatures, PixelFeatures, VGGFeatures
from cpl.losses.info_nce import InfoNCELoss, NTXentLoss, SupConLoss
from cpl.losses.pixel import log_l1
from cpl.losses.routing import RoutingLoss

__all__ = [
    "VGG16_URL",
    "ContrastivePromptRegularization",
    "FrozenFeatures",
    "InfoNCELoss",
    "NTXentLoss",
    "PixelFeatures",
    "RoutingLoss",
    "SupConLoss",
    "VGGFeatures",
    "log_l1",
]

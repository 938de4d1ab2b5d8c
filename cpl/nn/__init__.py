"""The parts that every model here is built from; shapes are [B, C, H, W] throughout."""

from cpl.nn.attention import MDTA
from cpl.nn.block import PatchEmbed, TransformerBlock, set_keep
from cpl.nn.feed_forward import GDFN
from cpl.nn.norm import LayerNorm2d
from cpl.nn.padding import pad_to_multiple, reflected_index
from cpl.nn.pointwise import PointwiseConv
from cpl.nn.prompt import NegativeDraw, SparsePromptModule, TilePrompts
from cpl.nn.resample import Downsample, Upsample

__all__ = [
    "GDFN",
    "MDTA",
    "Downsample",
    "LayerNorm2d",
    "NegativeDraw",
    "PatchEmbed",
    "PointwiseConv",
    "SparsePromptModule",
    "TilePrompts",
    "TransformerBlock",
    "Upsample",
    "pad_to_multiple",
    "reflected_index",
    "set_keep",
]

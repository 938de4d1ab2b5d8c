"""Cross attention whose queries come from a vector: the embedding of a text, or of a scene, for each image.

Source of the layout: OneRestore, arXiv 2407.04621 (queries by a linear layer; keys resized to as many pixels as a query
has features).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cpl.interop.attention import depthwise_parts, is_cross, maps, why_no_maps, why_no_temperature
from cpl.interop.structure import Block, Layout, is_free, is_plain, is_untouched
from cpl_kernels import channel_attention


class OfImages(nn.Module):
    """A block of an image and a vector as one of two images, which the comparison has: the vector is a mean."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.block(x, y.mean((2, 3)))


def _why_not(module: Block) -> str | None:
    if not (is_cross(module) and isinstance(module.q, nn.Linear)) or hasattr(module, "q_dwconv"):
        return ""
    why = why_no_temperature(module) or why_no_maps(module, kv=2)
    if why is not None:
        return why
    if not isinstance(module.project_out, nn.Conv2d) or module.project_out.kernel_size != (1, 1):
        return "project_out is not a 1x1 convolution"
    return None


def _forward(module: Block, x: Tensor, y: Tensor) -> Tensor | None:
    """The matrix of softmax is the attention's output where v is the identity. Queries and keys are small, so that this
    costs little; then it is multiplied by the projection, and what is left over the whole map is one product."""
    if isinstance(module, OfImages):
        return _forward(module.block, x, y.mean((2, 3)))
    project, resize = module.project_out, getattr(module, "resize", None)
    if not (is_free(module, ("kv", "kv_dwconv")) and is_untouched(module.q) and is_plain(project)):
        return None
    k, v = maps(module, "kv", x).chunk(2, 1)
    k = (k if resize is None else resize(k)).flatten(2)  # [B, C, L]
    q = module.q(y)[:, None, :].expand_as(k)
    temperature = module.temperature
    channels, pixels = k.shape[1:]
    each = channels // len(temperature)
    identity = torch.eye(each, max(each, pixels), dtype=k.dtype, device=k.device).repeat(len(temperature), 1)
    parts = (_padded(q, each), _padded(k, each), identity.expand(k.shape[0], -1, -1))
    matrix = channel_attention(torch.cat(parts, 1)[:, :, None], temperature)[:, :, 0, :each]  # [B, C, each]
    weight = project.weight.view(-1, len(temperature), each)
    weight = torch.einsum("ohi,bhij->bohj", weight, matrix.unflatten(1, (-1, each))).flatten(2)  # [B, C', C]
    out = (weight @ v.flatten(2)).unflatten(2, v.shape[2:])  # [B, C', H, W]
    return out if project.bias is None else out + project.bias[:, None, None]


def _padded(x: Tensor, pixels: int) -> Tensor:
    """With zeros, which change no cosine, to the pixels that an identity needs."""
    return x if x.shape[2] >= pixels else torch.cat((x, x.new_zeros(*x.shape[:2], pixels - x.shape[2])), 2)


def _inner(module: Block) -> Block:
    return module.block if isinstance(module, OfImages) else module


TEXT = Layout(
    "cross attention",
    _why_not,
    lambda m: (_inner(m).kv.in_channels, _inner(m).q.in_features),
    _forward,
    compared=lambda m: [OfImages(m)],
    covers=depthwise_parts("kv", "kv_dwconv"),
    ranks=lambda _m: (4, 2),
)

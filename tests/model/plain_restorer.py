"""The network written a second time, as plainly as it can be, from its description alone.

A function of a state dict: it shares no code with cpl, so a mistake in either shows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_restorer(w: dict[str, Tensor], x: Tensor, heads: tuple[int, ...], k: int) -> Tensor:
    height, width = x.shape[2:]
    padded = torch.stack([x[:, :, _fold(i, height)] for i in range(-(-height // 8) * 8)], dim=2)
    padded = torch.stack([padded[..., _fold(i, width)] for i in range(-(-width // 8) * 8)], dim=3)

    def stage(y: Tensor, name: str, count: int) -> Tensor:
        i = 0
        while f"{name}.{i}.norm1.body.weight" in w:
            y = _block(w, f"{name}.{i}", y, count)
            i += 1
        assert i > 0
        return y

    def conv(y: Tensor, name: str) -> Tensor:
        weight = w[f"{name}.weight"]
        return F.conv2d(y, weight, padding=weight.shape[-1] // 2)

    def mix(y: Tensor, level: int) -> Tensor:
        if f"prompt{level}.prompt_param" not in w:
            return y
        y = torch.cat([y, _prompt(w, f"prompt{level}", y, k)], dim=1)
        return conv(_block(w, f"noise_level{level}", y, 4), f"reduce_noise_level{level}")

    e1 = stage(conv(padded, "patch_embed.proj"), "encoder_level1", heads[0])
    e2 = stage(F.pixel_unshuffle(conv(e1, "down1_2.body.0"), 2), "encoder_level2", heads[1])
    e3 = stage(F.pixel_unshuffle(conv(e2, "down2_3.body.0"), 2), "encoder_level3", heads[2])
    y = mix(stage(F.pixel_unshuffle(conv(e3, "down3_4.body.0"), 2), "latent", heads[3]), 3)
    y = conv(torch.cat([F.pixel_shuffle(conv(y, "up4_3.body.0"), 2), e3], dim=1), "reduce_chan_level3")
    y = mix(stage(y, "decoder_level3", heads[2]), 2)
    y = conv(torch.cat([F.pixel_shuffle(conv(y, "up3_2.body.0"), 2), e2], dim=1), "reduce_chan_level2")
    y = mix(stage(y, "decoder_level2", heads[1]), 1)
    y = torch.cat([F.pixel_shuffle(conv(y, "up2_1.body.0"), 2), e1], dim=1)
    y = stage(stage(y, "decoder_level1", heads[0]), "refinement", heads[0])
    return (conv(y, "output") + padded)[:, :, :height, :width]


def _fold(i: int, n: int) -> int:
    """Where reflection at both ends puts position i of an axis of n, by walking there."""
    position, step = 0, 1
    for _ in range(i):
        if n == 1:
            return 0
        if not 0 <= position + step < n:
            step = -step
        position += step
    return position


def _norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """F.layer_norm over channels, moved last and back."""
    bias = w.get(f"{name}.body.bias")
    if bias is None:  # BiasFree: the mean stays in
        return (
            x
            / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            * w[f"{name}.body.weight"][:, None, None]
        )
    y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), w[f"{name}.body.weight"], bias, eps=1e-5)
    return y.permute(0, 3, 1, 2)


def _block(w: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    batch, channels, height, width = x.shape

    def dw(y: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(y, weight, padding=1, groups=weight.shape[0])

    y = dw(
        F.conv2d(_norm(w, f"{name}.norm1", x), w[f"{name}.attn.qkv.weight"]),
        w[f"{name}.attn.qkv_dwconv.weight"],
    )
    q, k, v = (part.reshape(batch, heads, channels // heads, height * width) for part in y.chunk(3, dim=1))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = (w[f"{name}.attn.temperature"] * (q @ k.transpose(-1, -2))).softmax(-1)
    y = (attention @ v).reshape(batch, channels, height, width)
    x = x + F.conv2d(y, w[f"{name}.attn.project_out.weight"])

    y = F.conv2d(_norm(w, f"{name}.norm2", x), w[f"{name}.ffn.project_in.weight"])
    first, second = dw(y, w[f"{name}.ffn.dwconv.weight"]).chunk(2, dim=1)
    return x + F.conv2d(F.gelu(first) * second, w[f"{name}.ffn.project_out.weight"])


def _prompt(w: dict[str, Tensor], name: str, x: Tensor, k: int) -> Tensor:
    pool = w[f"{name}.prompt_param"][0]  # [N, C, S, S]
    p = F.linear(x.mean((2, 3)), w[f"{name}.linear_layer.weight"], w[f"{name}.linear_layer.bias"]).softmax(-1)
    rows = []
    for row in p:
        chosen = sorted(range(len(row)), key=lambda i: (-row[i].item(), i))[:k]
        rows.append(sum(row[i] * pool[i] for i in chosen))
    prompt = F.interpolate(torch.stack(rows), x.shape[2:], mode="bilinear", align_corners=False)
    return F.conv2d(prompt, w[f"{name}.conv3x3.weight"], padding=1)

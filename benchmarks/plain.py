"""The whole network as it is usually written in plain PyTorch: what a training or inference step of ours is measured
against.

The function is that of :class:`cpl.models.Restorer` and so are all names of parameters: one state_dict fits both. It is
the obvious code: norms on a view with channels last, attention as two matrix products, the gate as a chunk and a
product, and prompts as PromptIR has them, all N weighted and summed, of which the top-k differ by zeros alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cpl.models.config import ModelConfig
from cpl.nn.padding import pad_to_multiple


class Body(nn.Module):
    """Layer normalisation over the last dimension."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = Body(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv1x1(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 1, bias=False)


def conv3x3(channels: int, out: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, groups=groups, bias=False)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = conv1x1(channels, 3 * channels)
        self.qkv_dwconv = conv3x3(3 * channels, 3 * channels, groups=3 * channels)
        self.project_out = conv1x1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(b, self.heads, c // self.heads, h * w) for part in parts)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return self.project_out((attention @ v).reshape(b, c, h, w))


class FeedForward(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project_in = conv1x1(channels, 2 * hidden)
        self.dwconv = conv3x3(2 * hidden, 2 * hidden, groups=2 * hidden)
        self.project_out = conv1x1(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(first) * second)


class Block(nn.Module):
    """With ``checkpointed`` it keeps its input alone for the backward, and computes the rest again."""

    checkpointed = False

    def __init__(self, channels: int, heads: int, expansion: float) -> None:
        super().__init__()
        self.norm1 = Norm(channels)
        self.attn = Attention(channels, heads)
        self.norm2 = Norm(channels)
        self.ffn = FeedForward(channels, int(expansion * channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(self._compute, x, use_reentrant=False)
        return self._compute(x)

    def _compute(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Prompt(nn.Module):
    def __init__(self, width: int, count: int, channels: int, size: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.prompt_param = nn.Parameter(torch.rand(1, count, channels, size, size))
        self.linear_layer = nn.Linear(width, count)
        self.conv3x3 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear_layer(x.mean((-2, -1))).softmax(dim=1)  # [B, N]
        chosen = weights.topk(self.top_k, dim=1).indices
        weights = weights * torch.zeros_like(weights).scatter(1, chosen, 1.0)
        prompts = weights[:, :, None, None, None] * self.prompt_param  # [B, N, C, S, S]
        return self.conv3x3(F.interpolate(prompts.sum(1), x.shape[-2:], mode="bilinear"))


class Resample(nn.Module):
    def __init__(self, channels: int, out: int, rearrange: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(channels, out), rearrange)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def down(channels: int) -> Resample:
    return Resample(channels, channels // 2, nn.PixelUnshuffle(2))


def up(channels: int) -> Resample:
    return Resample(channels, 2 * channels, nn.PixelShuffle(2))


class Embed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = conv3x3(3, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PlainRestorer(nn.Module):
    """[B, 3, H, W] -> [B, 3, H, W], for a configuration with prompts whose weights are not renormalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.num_prompts or config.normalize != "none" or not config.norm_bias:
            raise ValueError("written for the cplir networks and promptir alone")
        dim, counts, heads = config.dim, config.num_blocks, config.heads

        def block(channels: int, heads: int) -> Block:
            return Block(channels, heads, config.ffn_expansion)

        def level(channels: int, index: int, count: int = 0) -> nn.Sequential:
            return nn.Sequential(*(block(channels, heads[index]) for _ in range(count or counts[index])))

        self.patch_embed = Embed(dim)
        self.encoder_level1, self.down1_2 = level(dim, 0), down(dim)
        self.encoder_level2, self.down2_3 = level(2 * dim, 1), down(2 * dim)
        self.encoder_level3, self.down3_4 = level(4 * dim, 2), down(4 * dim)
        self.latent = level(8 * dim, 3)
        for i, out in ((1, 2 * dim), (2, 4 * dim), (3, 4 * dim)):
            routed, prompted = config.routed_width(i), config.prompted_width(i)
            pool = config.prompt_channels[i - 1], config.prompt_sizes[i - 1]
            setattr(self, f"prompt{i}", Prompt(routed, config.num_prompts, *pool, config.picks))
            setattr(self, f"noise_level{i}", block(prompted, config.prompt_heads))
            setattr(self, f"reduce_noise_level{i}", conv1x1(prompted, out))
        self.up4_3, self.reduce_chan_level3 = up(4 * dim), conv1x1(6 * dim, 4 * dim)
        self.decoder_level3 = level(4 * dim, 2)
        self.up3_2, self.reduce_chan_level2 = up(4 * dim), conv1x1(4 * dim, 2 * dim)
        self.decoder_level2 = level(2 * dim, 1)
        self.up2_1 = up(2 * dim)
        self.decoder_level1 = level(2 * dim, 0)
        self.refinement = level(2 * dim, 0, config.num_refinement_blocks)
        self.output = conv3x3(2 * dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        encoded1 = self.encoder_level1(self.patch_embed(pad_to_multiple(x, 8)))
        encoded2 = self.encoder_level2(self.down1_2(encoded1))
        encoded3 = self.encoder_level3(self.down2_3(encoded2))
        y = self._prompted(3, self.latent(self.down3_4(encoded3)))
        y = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(y), encoded3), dim=1)))
        y = self._prompted(2, y)
        y = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(y), encoded2), dim=1)))
        y = self._prompted(1, y)
        y = self.decoder_level1(torch.cat((self.up2_1(y), encoded1), dim=1))
        return x + self.output(self.refinement(y))[..., : x.shape[-2], : x.shape[-1]]

    def _prompted(self, level: int, x: Tensor) -> Tensor:
        prompt = getattr(self, f"prompt{level}")(x)
        mixed = getattr(self, f"noise_level{level}")(torch.cat((x, prompt), dim=1))
        return getattr(self, f"reduce_noise_level{level}")(mixed)

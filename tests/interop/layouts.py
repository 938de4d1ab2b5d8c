"""Blocks in the layouts of well-known models, written anew from their papers: names and computation alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormBody(nn.Module):
    """Restormer's norm over the last dimension; without a bias the mean stays in."""

    def __init__(self, channels: int, with_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        if with_bias:
            self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(-1, keepdim=True, unbiased=False)
        if not hasattr(self, "bias"):
            return x / torch.sqrt(variance + 1e-5) * self.weight
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class LayerNorm(nn.Module):
    def __init__(self, channels: int, with_bias: bool = True) -> None:
        super().__init__()
        self.body = NormBody(channels, with_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Restormer's MDTA."""

    def __init__(self, channels: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (part.reshape(b, self.num_heads, c // self.num_heads, h * w) for part in parts)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return self.project_out((attention @ v).reshape(b, c, h, w))


class SquaredAttention(Attention):
    """The same parts, another computation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


class CrossAttention(nn.Module):
    """AdaIR's and MoCE-IR's: queries of one feature map, keys and values of another."""

    def __init__(self, channels: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.num_head = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q = nn.Conv2d(channels, channels, 1, bias=bias)
        self.q_dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias)
        self.kv = nn.Conv2d(channels, 2 * channels, 1, bias=bias)
        self.kv_dwconv = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        b, c, h, w = x.shape
        k, v = self.kv_dwconv(self.kv(y)).chunk(2, dim=1)
        q, k, v = (
            part.reshape(len(part), self.num_head, c // self.num_head, h * w)
            for part in (self.q_dwconv(self.q(x)), k, v)
        )
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return self.project_out((attention @ v).reshape(b, c, h, w))


class CrossedAttention(CrossAttention):
    """Queries of the second map."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(y, x)


class FrequencyBlock(nn.Module):
    """AdaIR's modulation in brief: features look at a part of their spectrum (here: what a blur leaves over)."""

    def __init__(self, channels: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.channel_cross = CrossAttention(channels, heads, bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.channel_cross(x, x - F.avg_pool2d(x, 3, 1, 1))


class FeedForward(nn.Module):
    """Restormer's GDFN."""

    def __init__(self, channels: int, expansion: float = 2.66, bias: bool = False) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(a) * b)


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, bias: bool = False, norm_bias: bool = True) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels, norm_bias)
        self.attn = Attention(channels, heads, bias)
        self.norm2 = LayerNorm(channels, norm_bias)
        self.ffn = FeedForward(channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PromptGenBlock(nn.Module):
    """PromptIR's dense prompts."""

    def __init__(self, prompt_dim: int, prompt_len: int, prompt_size: int, lin_dim: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, prompt_len, prompt_dim, prompt_size, prompt_size))
        self.linear_layer = nn.Linear(lin_dim, prompt_len)
        self.conv3x3 = nn.Conv2d(prompt_dim, prompt_dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear_layer(x.mean((-2, -1))).softmax(1)  # [B, N]
        prompt = (weights[:, :, None, None, None] * self.prompt_param.expand(len(x), -1, -1, -1, -1)).sum(1)
        return self.conv3x3(F.interpolate(prompt, x.shape[-2:], mode="bilinear"))


class SparsePromptBlock(PromptGenBlock):
    """CPL's: the k best prompts of all; ``normalize`` makes their weights sum to 1."""

    def __init__(
        self, dim: int, length: int, size: int, lin_dim: int, top_k: int, normalize: bool = False
    ) -> None:
        super().__init__(dim, length, size, lin_dim)
        self.top_k, self.normalize = top_k, normalize
        # Apart, so that rounding to bf16 does not choose others.
        self.linear_layer.bias = nn.Parameter(torch.linspace(-1, 1, length))

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture(x, self.top_k)

    def mixture(self, x: Tensor, k: int) -> Tensor:
        weights = self.linear_layer(x.mean((-2, -1))).softmax(1)  # [B, N]
        best, which = weights.topk(k, dim=1)  # [B, k]
        if self.normalize:
            best = best / best.sum(1, keepdim=True)
        prompt = (best[:, :, None, None, None] * self.prompt_param[0][which]).sum(1)
        return self.conv3x3(F.interpolate(prompt, x.shape[-2:], mode="bilinear"))


class LayerNorm2d(nn.Module):
    """NAFNet's."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + self.eps).sqrt()
        return self.weight[:, None, None] * y + self.bias[:, None, None]


class PermutedLayerNorm2d(nn.LayerNorm):
    """timm's: torch's own, on channels that are moved last."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class FormatLayerNorm(nn.Module):
    """ConvNeXt's: over the last dimension or over channels."""

    def __init__(self, channels: int, data_format: str = "channels_last") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps, self.data_format, self.normalized_shape = 1e-6, data_format, (channels,)

    def forward(self, x: Tensor) -> Tensor:
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        mean = x.mean(1, keepdim=True)
        y = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * y + self.bias[:, None, None]


class SimpleGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a * b


class SigmoidGate(nn.Module):
    """Named like one, but another."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a * b.sigmoid()


def gated_sequence(channels: int, bias: bool = True, gate: type[nn.Module] = SimpleGate) -> nn.Sequential:
    wide = 2 * channels
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1, bias=bias),
        nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=bias),
        gate(),
        nn.Conv2d(channels, channels, 1, bias=bias),
    )


class NAFBlock(nn.Module):
    """beta and gamma begin at 0: a fresh block returns its input."""

    def __init__(self, c: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, 2 * c, 1)
        self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.conv3 = nn.Conv2d(c, c, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.sg = SimpleGate()
        self.conv4 = nn.Conv2d(c, 2 * c, 1)
        self.conv5 = nn.Conv2d(c, c, 1)
        self.norm1, self.norm2 = LayerNorm2d(c), LayerNorm2d(c)
        self.dropout1 = nn.Dropout(dropout) if dropout else nn.Identity()
        self.dropout2 = nn.Dropout(dropout) if dropout else nn.Identity()
        self.beta = nn.Parameter(torch.zeros(1, c, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.sg(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.dropout1(self.conv3(y * self.sca(y))) * self.beta
        y = self.conv5(self.sg(self.conv4(self.norm2(x))))
        return x + self.dropout2(y) * self.gamma


class SwappedNAFBlock(NAFBlock):
    """One branch is scaled by the other's parameter: at 0 nobody sees it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.sg(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.dropout1(self.conv3(y * self.sca(y))) * self.gamma
        y = self.conv5(self.sg(self.conv4(self.norm2(x))))
        return x + self.dropout2(y) * self.beta


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.inner = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def model(norm_bias: bool = True, bias: bool = False) -> nn.Sequential:
    """All of them behind each other, [B, 8, H, W] -> [B, 8, H, W]; the same numbers every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            TransformerBlock(8, 2, bias, norm_bias),
            PromptGenBlock(8, 3, 4, 8),
            NAFBlock(8),
            NAFBlock(8),
            FrequencyBlock(8, 2, bias),
            Residual(SparsePromptBlock(8, 4, 4, 8, 2)),
            Residual(gated_sequence(8, bias)),
            PermutedLayerNorm2d(8),
            FormatLayerNorm(8, "channels_first"),
        )


def trained(made: nn.Module) -> nn.Module:
    """As after some steps: nothing is at 0 or 1 any more."""
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=numbers))
    return made


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(2), dtype=dtype)

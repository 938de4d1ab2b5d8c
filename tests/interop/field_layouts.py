"""More blocks of published networks, written anew from their papers and descriptions: names and computation alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.interop import layouts

# -- prompts


class CplirPromptBlock(layouts.PromptGenBlock):
    """CPLIR's: the weights of all but the best ``num_expert`` prompts are set to 0, and all prompts are added up."""

    def __init__(self, dim: int, length: int, size: int, lin_dim: int, num_expert: int = 1) -> None:
        super().__init__(dim, length, size, lin_dim)
        self.num_expert = num_expert
        # Apart, so that rounding to bf16 does not choose others.
        self.linear_layer.bias = nn.Parameter(torch.linspace(-1, 1, length))

    def count(self) -> int:
        return self.num_expert

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear_layer(x.mean((-2, -1))).softmax(1)  # [B, N]
        best = weights.topk(self.count(), dim=1).indices
        kept = torch.zeros_like(weights).scatter(1, best, weights.gather(1, best))
        prompt = (kept[:, :, None, None, None] * self.prompt_param).sum(1)
        return self.conv3x3(F.interpolate(prompt, x.shape[-2:], mode="bilinear"))


class NamedCount(CplirPromptBlock):
    """k under any name; beside it a number that is the same by chance."""

    def __init__(self, name: str, k: int = 2) -> None:
        super().__init__(8, 4, 4, 8, k)
        self.depth = k
        self.name = name
        setattr(self, name, vars(self).pop("num_expert"))

    def count(self) -> int:
        return int(getattr(self, self.name))


# -- norms


class BareBody(nn.Module):
    """Histoformer's: nothing is learned."""

    def __init__(self, channels: int, center: bool) -> None:
        super().__init__()
        self.normalized_shape, self.center = (channels,), center

    def forward(self, x: Tensor) -> Tensor:
        deviation = torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
        return (x - x.mean(-1, keepdim=True) if self.center else x) / deviation


class BareLayerNorm(layouts.LayerNorm):
    def __init__(self, channels: int, center: bool = True) -> None:
        super().__init__(channels)
        self.body = BareBody(channels, center)  # type: ignore[assignment]


class GainLayerNorm(nn.Module):
    """DA-CLIP's and FoundIR's: a gain ``g`` [1, C, 1, 1]; ``eps`` of the dtype."""

    def __init__(self, channels: int, eps: Callable[[torch.dtype], float] = lambda _: 1e-5) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.eps_of = eps

    def forward(self, x: Tensor) -> Tensor:
        variance = torch.var(x, dim=1, unbiased=False, keepdim=True)
        return (x - x.mean(1, keepdim=True)) * (variance + self.eps_of(x.dtype)).rsqrt() * self.g


def eps_by_dtype(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-3


class WrappedLayerNorm(nn.Module):
    """torch's own behind two permutations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupLayerNorm(nn.Module):
    """Over channels and pixels together, which is called a layer norm too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.GroupNorm(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


# -- attention


def attend(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Between channels; the pixels of q and k may be others than those of v."""
    q, k, values = (part.unflatten(1, (len(temperature), -1)).flatten(3) for part in (q, k, v))
    matrix = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * temperature).softmax(-1)
    return (matrix @ values).reshape(v.shape)


def maps(module: nn.Module, name: str, x: Tensor) -> Tensor:
    first, after = getattr(module, name), getattr(module, f"{name}_dwconv")
    x = first(x.movedim(1, -1)).movedim(-1, 1) if isinstance(first, nn.Linear) else first(x)
    return x if after is None else after(x)


class AnyAttention(layouts.Attention):
    """qkv, and the depthwise convolution behind it if there is one, may be any convolutions."""

    def __init__(self, **parts: nn.Module | None) -> None:
        super().__init__(8, 2)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(attend(*maps(self, "qkv", x).chunk(3, 1), self.temperature))


class AnyCrossAttention(layouts.CrossAttention):
    """The same of two maps."""

    def __init__(self, **parts: nn.Module | None) -> None:
        super().__init__(8, 2)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.project_out(
            attend(maps(self, "q", x), *maps(self, "kv", y).chunk(2, 1), self.temperature)
        )


def depthwise(channels: int, kernel: int, **settings: object) -> nn.Conv2d:
    settings = {"padding": kernel // 2, **settings}
    return nn.Conv2d(channels, channels, kernel, groups=channels, **settings)  # type: ignore[arg-type]


def mixer_of_two_maps(kernel: int = 7) -> AnyCrossAttention:
    """MoCE-IR's: the depthwise convolution of k and v is 7x7."""
    return AnyCrossAttention(kv_dwconv=depthwise(16, kernel, bias=False))


class OfItself(nn.Module):
    """A cross attention as part of a network of one image."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x - F.avg_pool2d(x, 3, 1, 1))


class Resize(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)


class TextAttention(nn.Module):
    """OneRestore's: one query for all channels, from the embedding of a scene; keys are resized to its length."""

    def __init__(self, channels: int = 8, heads: int = 2, side: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = heads
        self.resize = Resize(side)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q = nn.Linear(side**2, side**2, bias=bias)
        self.kv = nn.Conv2d(channels, 2 * channels, 1, bias=bias)
        self.kv_dwconv = depthwise(2 * channels, 3, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        k, v = self.kv_dwconv(self.kv(x)).chunk(2, 1)
        k = self.resize(k)
        q = self.q(query)[:, None].expand(-1, k.shape[1], -1)
        return self.project_out(attend(q[..., None], k, v, self.temperature))


class TopKAttention(layouts.Attention):
    """DRSformer's in brief: of each row of the matrix the larger half alone."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = (
            p.reshape(b, self.num_heads, -1, h * w) for p in self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        )
        matrix = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        least = matrix.topk(matrix.shape[-1] // 2, dim=-1).values[..., -1:]
        matrix = matrix.masked_fill(matrix < least, -torch.inf).softmax(-1)
        return self.project_out((matrix @ v).reshape(b, c, h, w))


# -- blocks of residual halves


class ListedBlock(nn.Module):
    """MoCE-IR's: its norms are a list, its attention is called mixer, and its convolutions have biases."""

    def __init__(self, channels: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.norms = nn.ModuleList([layouts.LayerNorm(channels), layouts.LayerNorm(channels)])
        self.mixer = layouts.Attention(channels, 2, bias)
        self.ffn = layouts.FeedForward(channels, 2, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norms[0](x))
        return x + self.ffn(self.norms[1](x))


class SceneBlock(nn.Module):
    """OneRestore's: three halves, the first of which looks at the scene too."""

    def __init__(self, channels: int = 8, side: int = 3) -> None:
        super().__init__()
        self.norm1 = layouts.LayerNorm(channels)
        self.cross_attn = TextAttention(channels, 2, side)
        self.norm2 = layouts.LayerNorm(channels)
        self.self_attn = layouts.Attention(channels, 2)
        self.norm3 = layouts.LayerNorm(channels)
        self.ffn = layouts.FeedForward(channels)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        x = x + self.cross_attn(self.norm1(x), query)
        x = x + self.self_attn(self.norm2(x))
        return x + self.ffn(self.norm3(x))


class OwnAttention(nn.Module):
    """BioIR's in brief: two halves of the channels modulate each other, one through a 7x7 depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.dw = depthwise(2 * channels, 3, bias=False)
        self.wide = depthwise(channels, 7)
        self.pad = nn.ReflectionPad2d(1)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.dw(self.conv(x)).chunk(2, 1)
        low = low * (self.wide(high) + 1)
        around = F.avg_pool2d(self.pad(low.mean(1, keepdim=True)), 3, 1)
        return self.project_out((low + around) * high)


class OwnBlock(layouts.TransformerBlock):
    def __init__(self, channels: int = 8) -> None:
        super().__init__(channels, 2)
        self.attn = OwnAttention(channels)  # type: ignore[assignment]


class FourHalves(nn.Module):
    """X-Restormer's in brief: four halves, registered in another order than they run in."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.spatial_attn = OwnAttention(channels)
        self.channel_attn = layouts.Attention(channels, 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (layouts.LayerNorm(channels) for _ in range(4))
        self.channel_ffn, self.spatial_ffn = layouts.FeedForward(channels), layouts.FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.channel_attn(self.norm1(x))
        x = x + self.channel_ffn(self.norm2(x))
        x = x + self.spatial_attn(self.norm3(x))
        return x + self.spatial_ffn(self.norm4(x))


class Decoder(ListedBlock):
    """MoCE-IR's decoder block in brief: other parts work on what the first norm gives."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__(channels, False)
        self.proj = nn.ModuleList([nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)])
        self.shared, self.mixer = layouts.Attention(channels, 2), mixer_of_two_maps()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = self.mixer(self.proj[1](y), self.shared(self.proj[0](y))) + x
        return x + self.ffn(self.norms[1](x))


# -- depthwise convolutions in other blocks


class TanhFeedForward(nn.Module):
    """CIDNet's: behind the depthwise convolution each half has another, and a tanh."""

    def __init__(self, channels: int = 8, hidden: int = 12) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = depthwise(2 * hidden, 3, bias=False)
        self.dwconv1, self.dwconv2 = depthwise(hidden, 3, bias=False), depthwise(hidden, 3, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        a, b = torch.tanh(self.dwconv1(a)) + a, torch.tanh(self.dwconv2(b)) + b
        return self.project_out(a * b)


class PlainFeedForward(nn.Sequential):
    """Retinexformer's."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__(
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.GELU(),
            depthwise(2 * channels, 3, bias=False),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
        )


class TwoScales(nn.Module):
    """Histoformer's in brief: a 5x5 depthwise convolution beside a dilated 3x3 one."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.dwconv_5 = depthwise(channels, 5, bias=False)
        self.dwconv_dilated = depthwise(channels, 3, bias=False, padding=2, dilation=2)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.project_in(x).chunk(2, dim=1)
        return self.project_out(F.mish(self.dwconv_dilated(b)) * self.dwconv_5(a))

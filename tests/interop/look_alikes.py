"""Blocks that have the parts of well-known ones and compute something else, each somewhere else only."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.interop import layouts

# -- attention


class Attention(layouts.Attention):
    """Restormer's, in steps that can be exchanged."""

    def __init__(self, **steps: Callable[..., Tensor]) -> None:
        super().__init__(8, 2)
        self.steps = steps

    def step(self, name: str, x: Tensor) -> Tensor:
        return self.steps[name](x) if name in self.steps else x

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = self.qkv_dwconv(self.qkv(self.step("image", x))).chunk(3, dim=1)
        q, k, v = (part.reshape(b, self.num_heads, c // self.num_heads, h * w) for part in parts)
        unit = self.steps.get("unit", lambda z: F.normalize(z, dim=-1))
        logits = unit(q) @ unit(k).transpose(-2, -1) * self.step("temperature", self.temperature)
        attention = self.step("attention", logits.softmax(-1))
        return self.project_out((attention @ v).reshape(b, c, h, w))


class Windows(layouts.Attention):
    """In windows, where the image is larger than one."""

    def __init__(self, side: int, only_in_eval: bool = False) -> None:
        super().__init__(8, 2)
        self.side, self.only_in_eval = side, only_in_eval

    def forward(self, x: Tensor) -> Tensor:
        s, (h, w) = self.side, x.shape[2:]
        if (h <= s and w <= s) or (self.only_in_eval and self.training):
            return super().forward(x)
        x = F.pad(x, (0, -w % s, 0, -h % s))
        b, c, high, wide = x.shape
        tiles = x.view(b, c, high // s, s, wide // s, s).permute(0, 2, 4, 1, 3, 5)
        y = super().forward(tiles.reshape(-1, c, s, s)).view(b, high // s, wide // s, c, s, s)
        return y.permute(0, 3, 1, 4, 2, 5).reshape(b, c, high, wide)[:, :, :h, :w]


class When(nn.Module):
    """Mixin: twice the result where ``condition(module, x)`` says so."""

    condition: Callable[[nn.Module, Tensor], bool]

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return 2 * y if self.condition(x) else y


def when(kind: type[nn.Module], condition: Callable[[nn.Module, Tensor], bool]) -> type[nn.Module]:
    return type(f"{kind.__name__}When", (When, kind), {"condition": condition})


class PoolsLarge(layouts.Attention):
    """Of every other pixel, where the map is larger than ``area``."""

    def __init__(self, area: int) -> None:
        super().__init__(8, 2)
        self.area = area

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] <= self.area:
            return super().forward(x)
        small = super().forward(F.avg_pool2d(x, 2))
        return F.interpolate(small, x.shape[2:], mode="nearest")


class OnlyLater(layouts.Attention):
    """Another computation from the fourth call on; the count is an attribute, or a buffer."""

    def __init__(self, buffer: bool) -> None:
        super().__init__(8, 2)
        if buffer:
            self.register_buffer("calls", torch.tensor(0))
        else:
            self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1.5 if self.calls > 1000 else 1.0)


class KeepsAttention(layouts.Attention):
    """Somebody reads what it stores."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


class Skips(layouts.Attention):
    """Stochastic depth, of which a few runs see nothing."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(8, 2)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and self.draw() < 1e-3 else super().forward(x)


class Noise(layouts.Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (1e-6 * torch.randn_like(x) if self.training else 0)


class BatchNormed(layouts.Attention):
    def __init__(self) -> None:
        super().__init__(8, 2)
        self.batch_norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * self.batch_norm(x)


class InPlace(layouts.Attention):
    """Spares memory where no gradient is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if torch.is_grad_enabled() else x.clamp_(-100, 100))


def torch_draw() -> float:
    return float(torch.rand(()))


def straight_through(x: Tensor) -> Tensor:
    """x, whose gradient is twice what it should be."""
    return 2 * x - x.detach()


def _large(x: Tensor) -> bool:
    return bool(x.abs().max() > 1000)


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    **{f"windows of {side}": (lambda side=side: Windows(side)) for side in (4, 16, 24, 64, 128, 256)},
    "windows of 16 in eval": lambda: Windows(16, only_in_eval=True),
    **{f"maps beyond {n} pixels": (lambda n=n: PoolsLarge(n)) for n in (512, 64 * 64, 128 * 128, 256 * 256)},
    "height beyond 64": lambda: when(layouts.Attention, lambda m, x: x.shape[2] > 64)(8, 2),
    "width beyond 128": lambda: when(layouts.Attention, lambda m, x: x.shape[3] > 128)(8, 2),
    "odd heights": lambda: when(layouts.Attention, lambda m, x: x.shape[2] % 2 == 1)(8, 2),
    "odd widths in training": lambda: when(
        layouts.Attention, lambda m, x: m.training and x.shape[3] % 2 == 1
    )(8, 2),
    "multiples of 8": lambda: when(layouts.Attention, lambda m, x: x.shape[2] % 8 == x.shape[3] % 8 == 0)(
        8, 2
    ),
    "squares": lambda: when(layouts.Attention, lambda m, x: x.shape[2] == x.shape[3])(8, 2),
    "one image": lambda: when(layouts.Attention, lambda m, x: len(x) == 1)(8, 2),
    "three images": lambda: when(layouts.Attention, lambda m, x: len(x) == 3)(8, 2),
    "many images": lambda: when(layouts.Attention, lambda m, x: len(x) > 4)(8, 2),
    "without gradients": lambda: when(layouts.Attention, lambda m, x: not torch.is_grad_enabled())(8, 2),
    "in inference mode": lambda: when(layouts.Attention, lambda m, x: torch.is_inference_mode_enabled())(
        8, 2
    ),
    "an image without gradient": lambda: when(layouts.Attention, lambda m, x: not x.requires_grad)(8, 2),
    "frozen": lambda: when(layouts.Attention, lambda m, x: not m.temperature.requires_grad)(8, 2),
    "bfloat16": lambda: when(layouts.Attention, lambda m, x: x.dtype == torch.bfloat16)(8, 2),
    "float16": lambda: when(layouts.Attention, lambda m, x: x.dtype == torch.float16)(8, 2),
    "float32": lambda: when(layouts.Attention, lambda m, x: x.dtype == torch.float32)(8, 2),
    "autocast": lambda: when(layouts.Attention, lambda m, x: torch.is_autocast_enabled("cpu"))(8, 2),
    "large values": lambda: when(layouts.Attention, lambda m, x: _large(x))(8, 2),
    "negative temperatures": lambda: when(layouts.Attention, lambda m, x: bool((m.temperature < 0).all()))(
        8, 2
    ),
    "clamped image": lambda: Attention(image=lambda x: x.clamp(-50, 50)),
    "image clamped as fp16 asks": lambda: Attention(image=lambda x: x.clamp(-65504, 65504)),
    **{
        f"temperature at most {t}": (lambda t=t: Attention(temperature=lambda x: x.clamp(max=t)))
        for t in (5, 50, 100, 500)
    },
    **{
        f"temperature at least {t}": (lambda t=t: Attention(temperature=lambda x: x.clamp(min=t)))
        for t in (-500, -5, 0, 1e-3, 1e-2)
    },
    "absolute temperature": lambda: Attention(temperature=Tensor.abs),
    "exponential temperature": lambda: Attention(temperature=Tensor.exp),
    "softplus of the temperature": lambda: Attention(temperature=F.softplus),
    "leaky temperature": lambda: Attention(temperature=lambda x: F.leaky_relu(x, 0.5)),
    "normalised with eps 1e-6": lambda: Attention(unit=lambda z: F.normalize(z, dim=-1, eps=1e-6)),
    "normalised with eps 1e-10": lambda: Attention(unit=lambda z: F.normalize(z, dim=-1, eps=1e-10)),
    "norm plus 1e-8": lambda: Attention(unit=lambda z: z / (z.norm(dim=-1, keepdim=True) + 1e-8)),
    "root of 1e-12 more": lambda: Attention(
        unit=lambda z: z * (z.square().sum(-1, keepdim=True) + 1e-12).rsqrt()
    ),
    "detached attention": lambda: Attention(attention=Tensor.detach),
    "detached temperature": lambda: Attention(temperature=Tensor.detach),
    "straight-through image": lambda: Attention(image=straight_through),
    "straight-through temperature": lambda: Attention(temperature=straight_through),
    "detached norms": lambda: Attention(
        unit=lambda z: z / z.norm(dim=-1, keepdim=True).clamp(1e-12).detach()
    ),
    "a count": lambda: OnlyLater(False),
    "a count in a buffer": lambda: OnlyLater(True),
    "what it stores": lambda: KeepsAttention(8, 2),
    "stochastic depth": lambda: Skips(torch_draw),
    "stochastic depth of Python": lambda: Skips(random.random),
    "noise": lambda: Noise(8, 2),
    "statistics": BatchNormed,
    "an image changed in place": lambda: InPlace(8, 2),
}


class OfItself(layouts.CrossAttention):
    """Another computation where both images are one."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) * (2 if x is y else 1)


class OfSmallKeys(layouts.CrossAttention):
    """Keys and values are bounded, queries are not."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y.clamp(-20, 20))


CROSS: dict[str, Callable[[], nn.Module]] = {
    "of itself": lambda: OfItself(8, 2),
    "bounded keys": lambda: OfSmallKeys(8, 2),
    "a wide second image": lambda: when_crossed(lambda x, y: y.shape[3] > 64)(8, 2),
}


def when_crossed(condition: Callable[[Tensor, Tensor], bool]) -> type[nn.Module]:
    class Crossed(layouts.CrossAttention):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x, y) * (2 if condition(x, y) else 1)

    return Crossed


# -- feed-forward networks and gates


class FeedForward(layouts.FeedForward):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__(8)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(self.activation(a) * b)


def tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh GELU": tanh_gelu,
    "SiLU": F.silu,
    "sigmoid GELU": lambda x: x * (1.702 * x).sigmoid(),
    "Mish": F.mish,
    "GELU with a bound": lambda x: F.gelu(x).clamp(max=30),
    "GELU of bounded values": lambda x: F.gelu(x.clamp(-10, 10)),
    "GELU without the far negative": lambda x: torch.where(x < -3, torch.zeros_like(x), F.gelu(x)),
    "tanh GELU for float32": lambda x: tanh_gelu(x) if x.dtype == torch.float32 else F.gelu(x),
    "GELU with a straight-through gradient": lambda x: x + (F.gelu(x) - x).detach(),
}


class Gate(layouts.SimpleGate):
    """In steps that can be exchanged."""

    def __init__(self, second: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a * self.second(b)


class LocalNAFBlock(layouts.NAFBlock):
    """Its pooling is over a neighbourhood, in eval and on large maps alone: test-time local conversion."""

    def __init__(self, side: int) -> None:
        super().__init__(8)
        self.sca[0] = LocalPool(side)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class LocalPool(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if self.training or max(x.shape[2:]) <= self.side:
            return x.mean((2, 3), keepdim=True)
        return F.interpolate(F.avg_pool2d(x, self.side, ceil_mode=True), x.shape[2:])


class DetachedNAFBlock(layouts.NAFBlock):
    def forward(self, x: Tensor) -> Tensor:
        y = self.sg(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.dropout1(self.conv3(y * self.sca(y.detach()))) * self.beta
        y = self.conv5(self.sg(self.conv4(self.norm2(x))))
        return x + self.dropout2(y) * self.gamma


class BoundedNAFBlock(layouts.NAFBlock):
    """Its residual scale has a bound that only training passes."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.sg(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.dropout1(self.conv3(y * self.sca(y))) * self.beta.clamp(-20, 20)
        y = self.conv5(self.sg(self.conv4(self.norm2(x))))
        return x + self.dropout2(y) * self.gamma


# -- prompt blocks


class Prompts(layouts.SparsePromptBlock):
    """CPL's, in steps that can be exchanged."""

    def __init__(self, **steps: Callable[..., Tensor]) -> None:
        super().__init__(8, 4, 4, 8, 2)
        self.steps = steps

    def mixture(self, x: Tensor, k: int) -> Tensor:
        pooled = self.steps.get("pool", lambda z: z.mean((-2, -1)))(x)
        logits = self.steps.get("logits", lambda z: z)(self.linear_layer(pooled))
        best, which = self.steps.get("weights", lambda z: z)(logits.softmax(1)).topk(k, dim=1)
        prompt = (best[:, :, None, None, None] * self.prompt_param[0][which]).sum(1)
        resize = self.steps.get("resize", lambda z, size: F.interpolate(z, size, mode="bilinear"))
        return self.conv3x3(resize(prompt, x.shape[-2:]))


PROMPTS: dict[str, Callable[[], nn.Module]] = {
    "antialiased": lambda: Prompts(resize=lambda z, s: F.interpolate(z, s, mode="bilinear", antialias=True)),
    "corners aligned": lambda: Prompts(
        resize=lambda z, s: F.interpolate(z, s, mode="bilinear", align_corners=True)
    ),
    "bounded logits": lambda: Prompts(logits=lambda z: z.clamp(-30, 30)),
    "a sharper softmax": lambda: Prompts(logits=lambda z: z / 0.99),
    "detached weights": lambda: Prompts(weights=Tensor.detach),
    "small weights left out": lambda: Prompts(
        weights=lambda z: torch.where(z < 1e-3, torch.zeros_like(z), z)
    ),
    "pooled in a corner": lambda: Prompts(pool=lambda z: z[:, :, :64, :64].mean((-2, -1))),
}


# -- norms


class OtherLayerNorm(layouts.LayerNorm2d):
    """Over channels, dividing by ``deviation(variance)``."""

    def __init__(self, deviation: Callable[[Tensor], Tensor], unbiased: bool = False) -> None:
        super().__init__(8)
        self.eps = 1e-5
        self.deviation, self.unbiased = deviation, unbiased

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(1, keepdim=True, unbiased=self.unbiased)
        y = (x - x.mean(1, keepdim=True)) / self.deviation(variance)
        return self.weight[:, None, None] * y + self.bias[:, None, None]


NORMS: dict[str, Callable[[], nn.Module]] = {
    "deviation plus eps": lambda: OtherLayerNorm(lambda v: v.sqrt() + 1e-5),
    "variance at least eps": lambda: OtherLayerNorm(lambda v: v.clamp(min=1e-5).sqrt()),
    "deviation at least eps": lambda: OtherLayerNorm(lambda v: v.sqrt().clamp(min=1e-3)),
    "variance at most 1e4": lambda: OtherLayerNorm(lambda v: (v + 1e-5).clamp(max=1e4).sqrt()),
    "both": lambda: OtherLayerNorm(lambda v: (v + 1e-5).sqrt() + 1e-6),
    "unbiased": lambda: OtherLayerNorm(lambda v: (v + 1e-5).sqrt(), unbiased=True),
    "detached": lambda: OtherLayerNorm(lambda v: (v + 1e-5).sqrt().detach()),
}


class RightLayerNorm(layouts.LayerNorm2d):
    """With eps written into its body, whatever its attribute says."""

    def __init__(self, eps: float, said: float | None = None) -> None:
        super().__init__(8)
        del self.eps
        self.inside = (eps,)
        if said is not None:
            self.eps = said

    def forward(self, x: Tensor) -> Tensor:
        y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + self.inside[0]).sqrt()
        return self.weight[:, None, None] * y + self.bias[:, None, None]


class RightBody(layouts.NormBody):
    eps_inside = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(-1, keepdim=True, unbiased=False)
        y = x if not hasattr(self, "bias") else x - x.mean(-1, keepdim=True)
        y = y / torch.sqrt(variance + self.eps_inside) * self.weight
        return y + self.bias if hasattr(self, "bias") else y


def right_wrapped(with_bias: bool) -> nn.Module:
    made = layouts.LayerNorm(8, with_bias)
    made.body = RightBody(8, with_bias)
    return made


class LayerNormByDtype(layouts.LayerNorm2d):
    """1e-5 for float32, and 1e-3 for all others (that its authors met: half precision)."""

    def __init__(self, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
        super().__init__(8)
        del self.eps
        self.dtypes = dtypes

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-5 if x.dtype in self.dtypes else 1e-3
        y = (x - x.mean(1, keepdim=True)) * (x.var(1, keepdim=True, unbiased=False) + eps).rsqrt()
        return self.weight[:, None, None] * y + self.bias[:, None, None]


class OwnBackward(torch.autograd.Function):
    """A layer norm over channels whose backward pass is written by hand."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:  # type: ignore[no-untyped-def,override]
        deviation = (x.var(1, keepdim=True, unbiased=False) + eps).sqrt()
        normal = (x - x.mean(1, keepdim=True)) / deviation
        ctx.save_for_backward(normal, deviation, weight)
        return normal * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx, up: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def,override]
        normal, deviation, weight = ctx.saved_tensors
        g = up * weight.view(1, -1, 1, 1)
        inner = g - normal * (g * normal).mean(1, keepdim=True) - g.mean(1, keepdim=True)
        return inner / deviation, (up * normal).sum((0, 2, 3)), up.sum((0, 2, 3)), None


class FunctionLayerNorm(layouts.LayerNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return OwnBackward.apply(x, self.weight, self.bias, self.eps)


class WideLayerNorm(layouts.LayerNorm2d):
    """In float32, whatever its input is, and back."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        y = (wide - wide.mean(1, keepdim=True)) * (wide.var(1, keepdim=True, unbiased=False) + 1e-6).rsqrt()
        return (self.weight.float()[:, None, None] * y + self.bias.float()[:, None, None]).to(x.dtype)


class NaiveLayerNorm(layouts.LayerNorm2d):
    """Its variance is E[x^2] - E[x]^2."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = x.square().mean(1, keepdim=True) - mean.square()
        return (
            self.weight[:, None, None] * (x - mean) / (variance + self.eps).sqrt() + self.bias[:, None, None]
        )


RIGHT_NORMS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"eps {eps}": (lambda eps=eps: RightLayerNorm(eps))
        for eps in (1e-12, 1e-8, 1e-6, 3e-6, 1e-5, 1e-3, 0.1)
    },
    "eps that the attribute belies": lambda: RightLayerNorm(1e-6, said=1e-5),
    "eps in a wrapped body": lambda: right_wrapped(True),
    "eps in a wrapped body without bias": lambda: right_wrapped(False),
    "eps by dtype": LayerNormByDtype,
    "eps by dtype, the other way": lambda: LayerNormByDtype((torch.bfloat16, torch.float16)),
    "eps of its own for float64": lambda: LayerNormByDtype((torch.float32, torch.bfloat16, torch.float16)),
    "its own backward pass": lambda: FunctionLayerNorm(8),
    "in float32": lambda: WideLayerNorm(8),
    "the naive variance": lambda: NaiveLayerNorm(8),
}

"""What a network is made of: everything that fixes its parameters' names and shapes, and its routing."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEVELS = (1, 2, 3)  # of the decoder, from full resolution down; 3 comes first

# Far above any network that has been published. A damaged or hostile file is refused by these at once,
# where building what it asks for would take hours or all memory.
LIMITS: Mapping[str, int] = {
    "dim": 1024,
    "num_blocks": 128,
    "num_refinement_blocks": 128,
    "heads": 256,
    "ffn_expansion": 64,
    "num_prompts": 1024,
    "prompt_channels": 8192,
    "prompt_sizes": 1024,
    "prompt_heads": 256,
}


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a :class:`cpl.models.Restorer`. The defaults are the published CPL network's.

    Args:
        dim: channels at full resolution, even; the levels have dim, 2 dim, 4 dim and 8 dim.
        num_blocks: transformer blocks at encoder levels 1 to 3 and in the latent; decoder levels 1
            to 3 have as many as their encoders.
        num_refinement_blocks: blocks after the decoder.
        heads: attention heads at levels 1 to 3 and in the latent.
        ffn_expansion: hidden channels of the feed-forward networks, as a multiple of their input's.
        norm_bias: False for Restormer's "BiasFree" norm.
        num_prompts: N prompts at each level; 0 for a network without prompts.
        prompt_channels, prompt_sizes: at levels 1 to 3, each prompt is [channels, size, size].
        prompt_heads: attention heads of the blocks that mix prompts in.
        top_k: how many of the N are picked for an image; None for all of them (dense prompts).
        normalize: "none": softmax over all N; "topk": the weights of the picked ones sum to 1;
            "straight_through": so they do, and the router's gradient is that of "none", over the sum.
        negative_weights: of wrong prompts: "own" softmax weights, or the "positive"'s.
        task_names: what the network was trained for; not used in computing.

    Raises:
        TypeError, ValueError: a value that cannot be or is above its bound in LIMITS, with what would
            do instead.
    """

    dim: int = 48
    num_blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    num_refinement_blocks: int = 4
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    ffn_expansion: float = 2.66
    norm_bias: bool = True
    num_prompts: int = 5
    prompt_channels: tuple[int, int, int] = (64, 128, 320)
    prompt_sizes: tuple[int, int, int] = (64, 32, 16)
    prompt_heads: int = 4
    top_k: int | None = 1
    normalize: str = "none"
    negative_weights: str = "own"
    task_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, length in (("num_blocks", 4), ("heads", 4), ("prompt_channels", 3), ("prompt_sizes", 3)):
            object.__setattr__(self, name, _counts(name, getattr(self, name), length))
        object.__setattr__(self, "task_names", _names(self.task_names))
        for name in ("dim", "num_refinement_blocks", "prompt_heads"):
            _count(name, getattr(self, name))
        _count("num_prompts", self.num_prompts, least=0)
        _one_of("norm_bias", self.norm_bias, (True, False))
        _one_of("normalize", self.normalize, ("none", "topk", "straight_through"))
        _one_of("negative_weights", self.negative_weights, ("own", "positive"))
        if not (isinstance(self.ffn_expansion, (int, float)) and self.ffn_expansion * self.dim >= 1):
            raise ValueError(
                f"ffn_expansion must be a number with ffn_expansion * dim >= 1, got {self.ffn_expansion!r}"
            )
        _at_most("ffn_expansion", self.ffn_expansion)
        if self.dim % 2:
            raise ValueError(f"dim must be even (level 1 is halved on the way down), got {self.dim}")
        for level, heads in enumerate(self.heads, start=1):
            _divides("heads", heads, self.width(level), f"the {self.width(level)} channels of level {level}")
        _divides("heads", self.heads[0], 2 * self.dim, f"the {2 * self.dim} channels of decoder level 1")
        if self.num_prompts:
            self._check_prompts()

    def _check_prompts(self) -> None:
        for level in LEVELS:
            width = self.prompted_width(level)
            what = f"the {width} channels of level {level} with its prompt"
            _divides("prompt_heads", self.prompt_heads, width, what)
        if self.top_k is not None:
            _count("top_k", self.top_k)
            if self.top_k > self.num_prompts:
                raise ValueError(
                    f"top_k must be at most num_prompts = {self.num_prompts}, got {self.top_k}; None picks all"
                )
        if self.normalize == "topk" and self.top_k == 1:
            _warn_constant_weight()

    def width(self, level: int) -> int:
        """Channels of encoder level 1, 2 or 3, or 4, the latent."""
        return self.dim * 2 ** (level - 1)

    def routed_width(self, level: int) -> int:
        """Channels that the router of ``level`` looks at."""
        return self.width(level + 1)

    def prompted_width(self, level: int) -> int:
        """Channels after the prompt of ``level`` is joined to what its router looked at."""
        return self.routed_width(level) + self.prompt_channels[level - 1]

    @property
    def picks(self) -> int:
        """How many prompts an image gets: k; 0 in a network without prompts."""
        return self.num_prompts if self.top_k is None else min(self.top_k, self.num_prompts)

    @property
    def prompting(self) -> str:
        """ "none", "dense" (k = N) or "sparse"."""
        if not self.num_prompts:
            return "none"
        return "dense" if self.picks == self.num_prompts else "sparse"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON or YAML."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of :meth:`to_dict`; what is left out has its default.

        Raises:
            ValueError: a name that is no setting.
        """
        check_names(values)
        return cls(**values)


def check_names(values: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"a model has no setting {unknown[0]!r}; the settings are {', '.join(known)}")


def check_architecture(name: object) -> None:
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; the models are {', '.join(MODELS)}")


@functools.cache
def _warn_constant_weight() -> None:
    warnings.warn(
        "normalize='topk' with top_k=1 makes every prompt weight 1, so the router gets no gradient and "
        "never learns: use normalize='straight_through', 'none' or top_k >= 2",
        stacklevel=5,
    )


def _count(name: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    _at_most(name, value)


def _at_most(name: str, value: float) -> None:
    limit = LIMITS.get(name.partition("[")[0])  # num_blocks[2] -> num_blocks
    if limit is not None and value > limit:
        raise ValueError(f"{name} must be at most {limit}, got {value}")


def _counts(name: str, value: object, length: int) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) != length:
        raise ValueError(f"{name} must be {length} whole numbers, got {value!r}")
    for i, item in enumerate(value):
        _count(f"{name}[{i}]", item)
    return tuple(value)


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"task_names must be a list of names, got {value!r}")
    if len(set(value)) != len(value):
        raise ValueError(f"task_names must differ from one another, got {value!r}")
    return tuple(value)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _divides(name: str, heads: int, channels: int, what: str) -> None:
    if channels % heads:
        raise ValueError(f"{name}: {heads} heads do not divide {what}; choose a divisor of {channels}")


_SMALL = ModelConfig(
    dim=32,
    num_blocks=(2, 3, 3, 4),
    num_refinement_blocks=2,
    prompt_channels=(40, 88, 208),
)
_TINY = ModelConfig(
    dim=16,
    num_blocks=(1, 1, 1, 2),
    num_refinement_blocks=1,
    prompt_channels=(16, 32, 64),
)

MODELS: Mapping[str, ModelConfig] = {
    "cplir": ModelConfig(),
    "cplir-small": _SMALL,
    "cplir-tiny": _TINY,
    "promptir": ModelConfig(top_k=None),
    "restormer": ModelConfig(num_prompts=0, top_k=None),
}

"""Which network weights belong to, told from their names and shapes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cpl.errors import CplError
from cpl.models.config import LEVELS, MODELS, ModelConfig
from cpl.models.families import other_family, use_patch

# PromptIR's released weights hold layers that its forward never runs.
UNUSED = re.compile(r"(chnl_reduce[123]|reduce_noise_channel_[123])\.(weight|bias)")


class UnclearArchitecture(CplError):
    """The weights fit two architectures alike; the caller must say which."""


@dataclass(frozen=True)
class Inferred:
    """What the weights say, and in ``notes`` what had to be assumed."""

    architecture: str
    config: ModelConfig
    notes: tuple[str, ...]


def split_unused(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights without those that are known to take no part, and the names of the latter."""
    unused = [name for name in state if UNUSED.fullmatch(name)]
    return {name: value for name, value in state.items() if name not in unused}, unused


def infer(
    state: Mapping[str, Tensor],
    source: str,
    *,
    kind: str = "plain",
    architecture: str | None = None,
    top_k: int | None = None,
) -> Inferred:
    """The architecture and configuration that ``state`` fits.

    CPL's and PromptIR's weights have the same names and shapes; only how many prompts are picked
    differs, and no tensor holds that. Unless ``architecture`` or ``top_k`` says so, weights with
    PromptIR's unused layers are taken for PromptIR's, others for CPL's with k = 1, and ``notes`` says that
    this was assumed. A Lightning file without those layers is refused: both projects' training code writes such.

    Args:
        state: names to tensors.
        source: the file's name, for messages.
        kind: of the file, as in :class:`cpl.interop.ForeignWeights`.
        architecture: a name in ``cpl.models.MODELS``, instead of telling.
        top_k: k of "cplir" networks.

    Raises:
        UnclearArchitecture: a Lightning file that either architecture fits.
        CplError: the weights are not of a network that this package has; a known family is named.
    """
    family = other_family(state)
    if family is not None:
        raise CplError(
            f"{source} must hold a network of cpl ({', '.join(MODELS)}), got {family}'s weights; {use_patch(family)}"
        )
    shape = _Shapes(state, source)
    dim, channels = shape.of("patch_embed.proj.weight", 4)[:2]
    if channels != 3:
        raise CplError(
            f"{source} must hold a network for RGB images, got one for {channels} channel{'s' * (channels != 1)}; "
            f"{use_patch()}"
        )
    prompted = "prompt1.prompt_param" in state
    values: dict[str, Any] = {
        "dim": dim,
        "num_blocks": tuple(
            shape.count(name) for name in ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
        ),
        "num_refinement_blocks": shape.count("refinement"),
        "heads": tuple(
            shape.of(f"{name}.0.attn.temperature", 3)[0]
            for name in ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
        ),
        "ffn_expansion": _expansion(shape.feed_forward()),
        "norm_bias": "encoder_level1.0.norm1.body.bias" in state,
        "num_prompts": 0,
        "top_k": None,
    }
    if prompted:
        pools = [shape.of(f"prompt{level}.prompt_param", 5) for level in LEVELS]  # [1, N, C, S, S] each
        values |= {
            "num_prompts": pools[0][1],
            "prompt_channels": tuple(pool[2] for pool in pools),
            "prompt_sizes": tuple(pool[3] for pool in pools),
            "prompt_heads": shape.of("noise_level3.attn.temperature", 3)[0],
        }
    notes: list[str] = []
    if architecture is None:
        architecture = _name(state, source, kind, prompted, top_k, notes)
    if prompted and architecture != "promptir":
        values["top_k"] = 1 if top_k is None else top_k
        if top_k is None:
            notes.append("the file does not say how many prompts are picked: top_k=1 is assumed")
    try:
        config = ModelConfig(**values)
    except (TypeError, ValueError) as error:
        raise CplError(f"{source}: its tensors make no network that cpl knows: {error}") from None
    if architecture.startswith("cplir"):
        size = _size(config)
        if architecture not in ("cplir", size):
            raise CplError(
                f"{source} is no {architecture}: its shapes (dim {config.dim}) are those of {size!r}"
            )
        architecture = size
    return Inferred(architecture, config, tuple(notes))


def _name(
    state: Mapping[str, Tensor], source: str, kind: str, prompted: bool, top_k: int | None, notes: list[str]
) -> str:
    if not prompted:
        return "restormer"
    if top_k is not None:
        return "cplir"
    if any(UNUSED.fullmatch(name) for name in state):
        return "promptir"
    if kind == "lightning":
        raise UnclearArchitecture(
            f"{source} must say whether it is cplir or promptir: their weights have the same names and shapes, and "
            "Lightning files hold either; pass architecture='cplir' or architecture='promptir' (on the command line "
            "--architecture cplir or --architecture promptir)"
        )
    notes.append(
        "cplir and promptir have the same names and shapes: cplir is assumed; pass architecture= to say otherwise"
    )
    return "cplir"


def _size(config: ModelConfig) -> str:
    """cplir's named sizes differ in these fields only; a size of one's own goes by the family's name."""
    for name in ("cplir-small", "cplir-tiny"):
        named = MODELS[name]
        same = dataclasses.replace(
            named, num_prompts=config.num_prompts, top_k=config.top_k, norm_bias=config.norm_bias
        )
        if same == config:
            return name
    return "cplir"


def _expansion(sizes: set[tuple[int, int]]) -> float:
    """The published 2.66 or else the shortest number x with int(x * channels) = hidden for all ``sizes``."""
    least = max((hidden / channels for channels, hidden in sizes), default=0.0)
    for candidate in (2.66, *(math.ceil(least * 10**digits) / 10**digits for digits in range(7))):
        if all(int(candidate * channels) == hidden for channels, hidden in sizes):
            return candidate
    return least  # no one number fits: what differs is then named


class _Shapes:
    """Shapes by name; a name that is missing means that the file is of another network."""

    def __init__(self, state: Mapping[str, Tensor], source: str) -> None:
        self.state, self.source = state, source

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        if name in self.state and self.state[name].dim() == rank:
            return tuple(self.state[name].shape)
        if name in self.state:
            what = f"its {name} has shape {tuple(self.state[name].shape)}, where {rank} dimensions belong"
        else:
            what = (
                f"{name} is not among its {len(self.state)} tensors (first: {next(iter(self.state), 'none')})"
            )
        raise CplError(
            f"{self.source} holds no network that cpl knows: {what}; give a checkpoint of {', '.join(MODELS)}. "
            f"For another one {use_patch()}"
        )

    def count(self, stage: str) -> int:
        """How many blocks a stage has."""
        pattern = re.compile(re.escape(stage) + r"\.(\d+)\.")
        return 1 + max((int(m[1]) for m in map(pattern.match, self.state) if m), default=-1)

    def feed_forward(self) -> set[tuple[int, int]]:
        """(channels, hidden channels) of the feed-forward networks."""
        shapes = (
            value.shape for name, value in self.state.items() if name.endswith(".ffn.project_out.weight")
        )
        return {(shape[0], shape[1]) for shape in shapes if len(shape) == 4}

"""Models by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from cpl.models.config import MODELS, ModelConfig, check_architecture, check_names
from cpl.models.restorer import Restorer

# What makes a network that network: another value makes it another of MODELS.
_PROMPTING = {
    "restormer": ("none", "restormer has no prompts (num_prompts=0); for prompts use 'promptir' or 'cplir'"),
    "promptir": ("dense", "promptir uses all its prompts (top_k=None); to pick top_k of them use 'cplir'"),
}


def create_model(name: str, **overrides: Any) -> Restorer:
    """A network with fresh weights, in training mode, on the default device.

    | name | what | parameters |
    |---|---|---|
    | cplir | CPL's network: three Sparse Prompt Modules, N = 5, k = 1 | 35,376,967 |
    | cplir-small | the same with dim 32 and half the blocks | 11,255,449 |
    | cplir-tiny | the same with dim 16 and 1 or 2 blocks a level: trains on a CPU | 2,031,942 |
    | promptir | dense prompts, k = N | 35,376,967 |
    | restormer | no prompts | 26,126,644 |

    Args:
        name: one of ``cpl.models.MODELS``.
        overrides: any field of :class:`ModelConfig`: num_prompts, top_k, task_names, dim, ...

    Raises:
        ValueError, TypeError: an unknown name or setting, a value that cannot be, or one that makes
            it another model; the message says what would do.
    """
    check_architecture(name)
    check_names(overrides)
    return build(name, dataclasses.replace(MODELS[name], **overrides))


def build(architecture: str, config: ModelConfig) -> Restorer:
    """The network of a whole configuration."""
    check_architecture(architecture)
    prompting, remedy = _PROMPTING.get(architecture, (None, ""))
    if prompting is not None and config.prompting != prompting:
        raise ValueError(f"{remedy}; got num_prompts={config.num_prompts}, top_k={config.top_k}")
    if prompting is None and config.prompting == "none":
        raise ValueError(f"{architecture} needs num_prompts >= 1, got 0; without prompts use 'restormer'")
    return Restorer(config, architecture)

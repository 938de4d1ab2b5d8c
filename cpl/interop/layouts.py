"""The blocks that other people's models are made of, known by their attributes, and how ours computes each."""

from __future__ import annotations

from cpl.interop import attention, depthwise, gates, lean, norms, prompts, text
from cpl.interop.structure import Layout

_ALL = (
    norms.WRAPPED,
    norms.PLAIN,
    attention.ATTENTION,
    attention.CROSS_ATTENTION,
    text.TEXT,
    attention.FEED_FORWARD,
    gates.BLOCK,
    gates.SEQUENCE,
    gates.ALONE,
    prompts.PROMPT,
    depthwise.DEPTHWISE,
)
BLOCK = lean.KIND


def layouts(keep: str) -> tuple[Layout, ...]:
    """All of them; those of whole blocks only where less than "all" is to be kept."""
    return _ALL if keep == "all" else (*_ALL, lean.block(keep))

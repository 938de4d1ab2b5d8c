"""Random generators that depend on nothing but what they are for."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*key: int | str) -> np.random.Generator:
    """A generator for ``key``, as (seed, "noise", "coffee"): the same key, the same numbers.

    Counter-based (Philox), keyed by a hash, so that neither the order in which items are made nor the
    process that makes them matters.
    """
    return np.random.Generator(np.random.Philox(key=_digest(*key)))


def derive(*key: int | str) -> int:
    """A seed of its own, in [0, 2^63), for a part of what ``key`` seeds."""
    return _digest(*key) >> 65


def _digest(*key: int | str) -> int:
    # repr tells 1 from "1"; int() makes NumPy's integers look like Python's
    text = "\0".join(repr(part if isinstance(part, str) else int(part)) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")

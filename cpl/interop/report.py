"""Reasons of a report as lines: one for each, however many blocks it is for, and whatever numbers it names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Not the digits in a name, as in conv2 or float32, nor in a size, as in 3x3.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\w)")
_SHOWN = 3


def one_line(reason: str) -> str:
    """An error's text may have several."""
    return " ".join(reason.split())


def lines(left: Iterable[tuple[str, str, str]]) -> list[str]:
    """For (name, kind, reason) of each block: reasons that differ in their numbers alone are one, with their ranges."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    found = []
    for name, kind, why in left:
        reason = one_line(why)
        if not name and reason.startswith("No "):  # a sentence about the model as a whole
            found.append(reason)
            continue
        groups.setdefault((kind, _NUMBER.sub("#", reason)), []).append((name or "the model itself", reason))
    for (kind, _), members in groups.items():
        names = [name for name, _ in members]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        reason = _in_ranges([reason for _, reason in members])
        found.append(f"left: {', '.join(names[:_SHOWN])}{more} ({kind}): {reason}")
    return found


def _in_ranges(reasons: list[str]) -> str:
    """The first, each of its numbers as the range that the others have there."""
    numbers = [_NUMBER.findall(reason) for reason in reasons]
    ranges = iter(_range(place) for place in zip(*numbers, strict=True))
    return _NUMBER.sub(lambda _: next(ranges), reasons[0])


def _range(numbers: Sequence[str]) -> str:
    least, most = min(numbers, key=float), max(numbers, key=float)
    return least if least == most else f"{least} to {most}"

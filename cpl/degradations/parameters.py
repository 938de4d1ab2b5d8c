"""Parameters of a degradation: one value, several to choose from, or a range; drawn once per image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

# What a user may write for a parameter: 25, "15|25|50", [15, 25, 50], "10..50", {"min": 10, "max": 50}.
Setting: TypeAlias = Any


@dataclass(frozen=True)
class Choice:
    """One of ``options``, each as likely; a single option is a constant and costs no random number."""

    options: tuple[float | str, ...]

    def draw(self, rng: np.random.Generator) -> float | str:
        return self.options[0 if len(self.options) == 1 else int(rng.integers(len(self.options)))]

    def __str__(self) -> str:
        return "|".join(map(_text, self.options))


@dataclass(frozen=True)
class Range:
    """Uniform between ``low`` and ``high``."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"{_text(self.low)}..{_text(self.high)}"


@dataclass(frozen=True)
class Number:
    """A numeric parameter: what it means, its unit and what is allowed."""

    low: float
    high: float
    meaning: str
    unit: str = ""

    def parse(self, owner: str, key: str, setting: Setting) -> Choice | Range:
        """The value behind ``setting``, or a ValueError that names it and what is allowed."""
        where = f"{owner}: {key}={_show(setting)}"
        ends = _range_ends(setting)
        if ends is not None:
            if len(ends) != 2:
                raise ValueError(f"{where}: a range has two ends, as 10..50")
            low, high = (self._check(where, end) for end in ends)
            if low > high:
                raise ValueError(f"{where}: the range runs backwards; write {_text(high)}..{_text(low)}")
            return Range(low, high)
        options = _options(setting)
        if not options:
            raise ValueError(f"{where}: no value to choose from; give at least one")
        return Choice(tuple(self._check(where, option) for option in options))

    def _check(self, where: str, value: Any) -> float:
        try:
            if isinstance(value, bool):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"{where}: {value!r} is no number; write a number, a choice as 15|25|50 or a range as 10..50"
            ) from None
        if not math.isfinite(number) or not self.low <= number <= self.high:
            allowed = f"{_text(self.low)} to {_text(self.high)}"
            raise ValueError(f"{where}: must be {allowed}" + (f" {self.unit}" if self.unit else ""))
        return number


@dataclass(frozen=True)
class Word:
    """A parameter that is one of a few words."""

    words: tuple[str, ...]
    meaning: str

    def parse(self, owner: str, key: str, setting: Setting) -> Choice:
        options = tuple(str(option).strip() for option in _options(setting))
        unknown = [option for option in options if option not in self.words]
        if unknown or not options:
            shown = ", ".join(map(repr, unknown)) or "nothing"
            raise ValueError(f"{owner}: {key} cannot be {shown}; choose from {', '.join(self.words)}")
        return Choice(options)


def _range_ends(setting: Setting) -> list[Any] | None:
    if isinstance(setting, Range):
        return [setting.low, setting.high]
    if isinstance(setting, str) and ".." in setting:
        return setting.split("..")
    if isinstance(setting, Mapping):
        if set(setting) != {"min", "max"}:
            raise ValueError(f"a range is {{min: ..., max: ...}}, got the keys {sorted(map(str, setting))}")
        return [setting["min"], setting["max"]]
    return None


def _options(setting: Setting) -> list[Any]:
    if isinstance(setting, Choice):
        return list(setting.options)
    if isinstance(setting, str):
        return setting.split("|")
    if isinstance(setting, Sequence | np.ndarray):
        return list(setting)
    return [setting]


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"


def _show(setting: Setting) -> str:
    return setting if isinstance(setting, str) else str(setting)

"""From a specification, a string or a mapping, to a degradation.

String::

    specification = one { "+" one }                      composition, left to right
    one           = name [ ":" key "=" value { "," key "=" value } ]
    value         = number | word                        always this
                  | value { "|" value }                  one of these, drawn per image
                  | number ".." number                   uniform between, drawn per image

Mapping, as in YAML: ``{name: noise, sigma: [15, 25, 50]}``; a list is a choice, ``{min: 1, max: 3}`` a
range, and every value may also be written as in a string. ``{compose: [low_light, {name: haze, beta: 1}]}``
is a composition.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from cpl.degradations.base import Degradation
from cpl.degradations.blur import Blur
from cpl.degradations.composition import Composition
from cpl.degradations.defocus_blur import DefocusBlur
from cpl.degradations.haze import Haze
from cpl.degradations.jpeg import Jpeg
from cpl.degradations.low_light import LowLight
from cpl.degradations.motion_blur import MotionBlur
from cpl.degradations.noise import Noise
from cpl.degradations.rain import Rain
from cpl.degradations.snow import Snow

DEGRADATIONS: dict[str, type[Degradation]] = {
    kind.name: kind for kind in (Noise, Blur, MotionBlur, DefocusBlur, Rain, Haze, LowLight, Snow, Jpeg)
}

# A plus sign joins degradations; in a number (1e+3) it is followed by a digit.
_JOIN = re.compile(r"\+(?!\s*\d)")


def names() -> list[str]:
    """The degradations that there are."""
    return list(DEGRADATIONS)


def create(specification: str | Mapping[str, Any] | Degradation) -> Degradation:
    """The degradation that ``specification`` names, as "noise:sigma=15|25|50" or "low_light+haze".

    Raises:
        ValueError: an unknown name or parameter, or a value that is not allowed; says what is.
        TypeError: neither string nor mapping.
    """
    if isinstance(specification, Degradation):
        return specification
    if isinstance(specification, str):
        parts = [_from_text(part, specification) for part in _JOIN.split(specification)]
        return parts[0] if len(parts) == 1 else Composition(tuple(parts))
    if isinstance(specification, Mapping):
        return _from_mapping(specification)
    raise TypeError(
        f"a degradation is a string as 'noise:sigma=25' or a mapping as {{name: noise, sigma: 25}}, "
        f"got {type(specification).__name__}"
    )


def _from_text(text: str, whole: str) -> Degradation:
    name, colon, rest = (piece.strip() for piece in text.partition(":"))
    settings: dict[str, Any] = {}
    for pair in rest.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not (key and equals and value):
            raise ValueError(f"{whole!r}: {pair.strip()!r} should read key=value, as in noise:sigma=25")
        if key in settings:
            raise ValueError(f"{whole!r}: {key} is given twice; choices are written {key}=1|2")
        settings[key] = value
    return _build(name, settings, f"{whole!r}: " if whole.strip() != name else "")


def _from_mapping(mapping: Mapping[str, Any]) -> Degradation:
    settings = dict(mapping)
    if "compose" in settings:
        parts = settings.pop("compose")
        if settings:
            raise ValueError(f"compose stands alone; remove {', '.join(map(str, settings))}")
        if isinstance(parts, str | Mapping) or not hasattr(parts, "__iter__"):
            raise ValueError(f"compose takes a list of degradations, got {parts!r}")
        return Composition(tuple(create(part) for part in parts))
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(
            f"a degradation needs a name, one of {', '.join(DEGRADATIONS)}; got {dict(mapping)!r}"
        )
    return _build(name, settings, "")


def _build(name: str, settings: dict[str, Any], where: str) -> Degradation:
    if name not in DEGRADATIONS:
        raise ValueError(
            f"{where}no degradation {name!r}{_near(name, DEGRADATIONS)}; there are {', '.join(DEGRADATIONS)}"
        )
    kind = DEGRADATIONS[name]
    known = kind.parameters()
    for key in settings:
        if key not in known:
            raise ValueError(
                f"{where}{name} has no parameter {key!r}{_near(key, known)}; it has {', '.join(known)}"
            )
    return kind(**settings)


def _near(name: Any, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""

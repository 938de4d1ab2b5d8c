"""Presets: YAML files by name or path, with overrides from the command line."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cpl.errors import CplError
from cpl.training.config import TrainConfig

PRESETS = Path(__file__).parent / "presets"
_PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a preset (by name, or a YAML file's path) with ``a.b=value`` overrides.

    Values are read as YAML (``optimizer.lr=1e-4``, ``optimizer.betas=[0.9, 0.9]``, ``ema=null``).
    ``${NAME}`` in the file stands for a path the user gives: ``NAME=/folder`` among the overrides,
    or the environment variable NAME.

    Raises:
        CplError: in one line: no such preset, an unknown key, a value that is not allowed.
    """
    path = _find(str(name_or_path))
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        json.dumps(
            values, default=str
        )  # an alias to itself would send everything after this round in circles
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise CplError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise CplError(f"{path}: a preset is a mapping of fields, this is {type(values).__name__}")
    values.setdefault("name", path.stem)
    placeholders = set(_PLACEHOLDER.findall(text))
    given: dict[str, str] = {}
    for override in overrides:
        key, value = _split(override)
        if key in placeholders:
            given[key] = os.path.expanduser(value)
        else:
            apply_overrides(values, [override])
    return parse_config(_fill(values, given, str(name_or_path)), source=str(name_or_path))


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set ``a.b=value`` fields in place."""
    for override in overrides:
        key, value = _split(override)
        _set(values, key.split("."), _parse(override, value), override)


def parse_config(values: Mapping[str, Any], source: str) -> TrainConfig:
    """A TrainConfig from plain values, with errors in one line that start with ``source``."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise CplError(f"{source}: {'; '.join(_explain(e) for e in error.errors())}") from None


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or os.sep in name:
        if not path.is_file():
            raise CplError(
                f"{name}: no such preset file; give a YAML file or one of {', '.join(preset_names())}"
            )
        return path
    if name not in preset_names():
        raise CplError(
            f"no preset named {name!r}{_did_you_mean(name, preset_names())}; there are "
            f"{', '.join(preset_names())}, or give the path of a YAML file"
        )
    return PRESETS / f"{name}.yaml"


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise CplError(f"override {override!r}: write it as field=value, for example optimizer.lr=1e-4")
    return key, value


def _parse(override: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CplError(f"override {override!r}: not a YAML value: {' '.join(str(error).split())}") from None
    if isinstance(value, str) and text.lstrip()[:1] not in ("'", '"'):  # what is quoted is meant as text
        try:
            return float(value)  # YAML 1.1 reads 1e-4, which has no dot, as text
        except ValueError:
            return value
    return value


def _set(values: Any, keys: list[str], value: Any, override: str) -> None:
    for depth, key in enumerate(keys[:-1]):
        if isinstance(values, dict) and values.get(key) is None:
            values[key] = {}
        values = _child(values, key, ".".join(keys[:depth]), override)
        if not isinstance(values, dict | list):
            raise CplError(f"override {override!r}: {'.'.join(keys[: depth + 1])} has no fields")
    if len(keys) == 1 and keys[0] in ("steps", "epochs"):  # one replaces the other
        values.pop("epochs" if keys[0] == "steps" else "steps", None)
    if isinstance(values, list):
        _child(values, keys[-1], ".".join(keys[:-1]), override)  # there, or an error
        values[int(keys[-1])] = value
    else:
        values[keys[-1]] = value


def _child(values: Any, key: str, path: str, override: str) -> Any:
    if isinstance(values, dict):
        return values[key]
    if not key.isdecimal() or int(key) >= len(values):
        raise CplError(
            f"override {override!r}: {path} is a list; its items are 0 to {len(values) - 1}, not {key}"
        )
    return values[int(key)]


def _fill(value: Any, given: Mapping[str, str], source: str) -> Any:
    """Replace every placeholder, in all strings below ``value``."""
    if isinstance(value, dict):
        return {k: _fill(v, given, source) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, given, source) for v in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name in given:
            return given[name]
        if name in os.environ:
            return os.environ[name]
        raise CplError(
            f"{source}: {name} is not set: it names a folder of yours; give {name}=/path/to/folder after the "
            f"preset, or set the environment variable {name}"
        )

    return _PLACEHOLDER.sub(replace, value)


def _explain(error: Any) -> str:
    """One pydantic error as ``field=value: what is allowed``."""
    location = tuple(str(part) for part in error["loc"])
    field, context = ".".join(location), error.get("ctx", {})
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        where = ".".join(location[:-1])
        allowed = f"; {where or 'the top level'} has {', '.join(known)}" if known else ""
        return f"unknown field {field}{_did_you_mean(location[-1], known)}{allowed}"
    if kind == "missing":
        return f"{field} is missing; give {field}=..."
    if kind == "value_error":  # one of our validators, whose message names the remedy
        message = str(context.get("error", error["msg"]))
        return message if not field or isinstance(value, dict) else f"{field}={value!r} {message}"
    if kind == "literal_error":
        choices = [c.strip("' ") for c in str(context["expected"]).replace(" or ", ",").split(",")]
        hint = _did_you_mean(str(value), choices)
        return f"{field}={value!r} is not allowed{hint}; it must be one of {', '.join(choices)}"
    return f"{field}={value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _fields_at(location: Sequence[str]) -> list[str]:
    """The field names of the section at ``location``; parts that are no field (list indices, tags) are skipped."""
    section: type[BaseModel] = TrainConfig
    for part in location:
        field = section.model_fields.get(part)
        if field is None:
            continue
        found = _section_in(field.annotation)
        if found is None:
            return []
        section = found
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for a in get_args(annotation) if (s := _section_in(a)) is not None), None)


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""

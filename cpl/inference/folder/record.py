"""What made each output, in a file beside the outputs, so that a run can go on where another ended.

``OUTPUT/.cpl-restore.jsonl`` holds one JSON object a line, of two kinds, ``output`` being a path below
the output folder with ``/``:

    {"output": "a.png", "begun": true}
    {"output": "a.png", "bytes": 812, "sha256": "...", "input": "...", "model": "...", "settings": {...}}

The first is written before the output, so that one whose line of the second kind a killed process did
not come to write is still known to be ours. Lines are only ever added, each by one write to a file that
is open for appending, so several processes can share it. A line begins with a newline too: what a killed
process or a full disk left of a line spoils no other. Of an output's lines the last one counts, and
nothing is taken on trust: the file must have the content that the line says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

RECORD_NAME = ".cpl-restore.jsonl"


class RecordWarning(UserWarning):
    """The record cannot be written; the message names it and what that means."""


class Record:
    """The record of one output folder, for one model and its settings.

    Args:
        folder: the output folder; it need not be there yet.
        model: `model_digest` of the network.
        settings: whatever else the outputs depend on, plain data for JSON.
        resume: look at what is recorded already; without, nothing is known to be finished.

    Raises:
        OSError: there is a record to resume from, and it cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: str,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / RECORD_NAME
        self._model = model
        self._settings = json.loads(json.dumps(settings))  # as it will be read back
        self._known = _read(self.path) if resume else {}
        self._handle: int | None = None
        self._silent = False

    @staticmethod
    def outputs(folder: str | os.PathLike[str]) -> frozenset[str]:
        """The outputs, by their paths below ``folder``, that earlier runs wrote or began there.

        Raises:
            OSError: there is a record, and it cannot be read.
        """
        return frozenset(_read(Path(folder) / RECORD_NAME))

    def is_finished(self, target: Path, source_sha256: str) -> bool:
        """Whether ``target`` is there as it was written, from that input, by this model with these settings."""
        line = self._known.get(self._name(target))
        made_from = self._made_from(source_sha256)
        if line is None or {key: line.get(key) for key in made_from} != made_from:
            return False
        try:
            if target.stat().st_size != line.get("bytes"):
                return False
            return file_sha256(target) == line.get("sha256")
        except OSError:
            return False

    def begin(self, target: Path) -> None:
        """Note that ``target`` is about to be written."""
        self._append({"output": self._name(target), "begun": True})

    def finish(self, target: Path, source_sha256: str, data: bytes) -> None:
        """Note that ``target`` stands on disk with the content ``data``."""
        self._append(
            {
                "output": self._name(target),
                "bytes": len(data),
                "sha256": sha256(data),
                **self._made_from(source_sha256),
            }
        )

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _made_from(self, source_sha256: str) -> dict[str, Any]:
        return {"input": source_sha256, "model": self._model, "settings": self._settings}

    def _name(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()

    def _append(self, line: Mapping[str, Any]) -> None:
        """Add a line; a record that cannot be written costs a later --resume, but not the pictures of this run."""
        if self._silent:
            return
        try:
            if self._handle is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._handle = os.open(self.path, flags, 0o666)
            data = b"\n" + json.dumps(line).encode() + b"\n"
            if os.write(self._handle, data) != len(data):
                raise OSError("no room for a whole line")
        except OSError as error:
            self._silent = True
            warnings.warn(
                f"{self.path}: {error.strerror or error}; the run goes on, but --resume will not know "
                "what it finishes from here",
                RecordWarning,
                stacklevel=2,
            )


def model_digest(model: nn.Module) -> str:
    """SHA-256 of all that a network's result depends on: its configuration, and its weights by name.

    The same weights in another file, format or place are the same model.
    """
    digest = hashlib.sha256()
    describe = getattr(getattr(model, "config", None), "to_dict", None)
    described = [type(model).__name__, describe() if describe else None]
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line about each output; one of a beginning where there is no other. Torn lines are passed over."""
    lines: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(path, "rb") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("output"), str):
                if "begun" in line:
                    lines.setdefault(line["output"], line)
                else:
                    lines[line["output"]] = line
    return lines

"""A run's checkpoints on disk: each a folder that is whole or absent.

``RUN/checkpoints/step-00000200/`` holds ``model.safetensors`` (what `cpl restore` reads: the EMA
weights, or the weights when EMA is off), ``state.pt`` (all that resuming needs; tensors and plain
containers only) and ``manifest.json`` (size and SHA-256 of both, so that a file damaged later, by a
disk or a copy, is noticed before it is trained on).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpl.errors import CplError

MODEL_FILE, STATE_FILE, MANIFEST_FILE = "model.safetensors", "state.pt", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_UNFINISHED, _SUPERSEDED = ".unfinished-", "superseded-"


class DamagedCheckpoint(CplError):
    """A checkpoint whose files are missing, cut short or changed."""


class CheckpointStore:
    """The ``checkpoints`` folder of a run. Only one process (rank 0) may write to it."""

    def __init__(self, run: str | os.PathLike[str], keep: int = 3) -> None:
        self.folder = Path(run) / "checkpoints"
        self.keep = keep

    def paths(self) -> list[Path]:
        """Complete-looking checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [
            (int(m[1]), p) for p in self.folder.iterdir() if p.is_dir() and (m := _NAME.fullmatch(p.name))
        ]
        return [path for _, path in sorted(found)]

    def save(self, step: int, state: dict[str, Any], save_model: Callable[[Path], object]) -> Path:
        """Write the checkpoint of ``step``; older ones beyond ``keep`` are removed once it stands.

        Args:
            state: what :func:`read_state` gives back.
            save_model: called with the path to write the model file to.

        Raises:
            CplError: it could not be written (a full disk, no permission); nothing of it is left
                behind and the older checkpoints are untouched.
        """
        final = self.folder / f"step-{step:08d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
        try:
            save_model(unfinished / MODEL_FILE)
            with open(unfinished / STATE_FILE, "wb") as file:
                torch.save(state, file)
            manifest = {
                "step": step,
                "files": {
                    n: {"bytes": (unfinished / n).stat().st_size, "sha256": _sha256(unfinished / n)}
                    for n in (MODEL_FILE, STATE_FILE)
                },
            }
            (unfinished / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")
            for name in (MODEL_FILE, STATE_FILE, MANIFEST_FILE):
                _sync(unfinished / name)
            os.chmod(unfinished, 0o755)  # mkdtemp makes it private to the user
            _sync(unfinished)
            aside = None
            if final.exists():  # of the same step, which a resumed run has reached again
                aside = final.rename(
                    self.folder / f"{_UNFINISHED}{final.name}"
                )  # gone only once the new one stands
            os.replace(unfinished, final)
            _sync(self.folder)
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into RuntimeError
            raise CplError(_write_failure(final, error)) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        paths = self.paths()
        place = paths.index(final)
        for later in paths[place + 1 :]:
            # Left by a run that was resumed from further back: the next resume must not take them for the newest.
            later.rename(
                self.folder / f"{_SUPERSEDED}{later.name}-{unfinished.name.removeprefix(_UNFINISHED)}"
            )
        for old in paths[: max(0, place + 1 - self.keep)]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def newest_whole(self, report: Callable[[str], object]) -> tuple[Path, dict[str, Any]]:
        """The newest checkpoint that is undamaged, and its state; damaged newer ones are reported.

        Raises:
            CplError: there is none.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                return path, read_state(path)
            except DamagedCheckpoint as error:
                report(f"{error}; trying the one before")
        if paths:
            raise CplError(f"{self.folder}: all {len(paths)} checkpoints are damaged; start the run again")
        raise CplError(f"{self.folder}: no checkpoint to resume from; start the run without --resume")

    def remove_unfinished(self) -> None:
        """Remove what a killed process was writing."""
        if self.folder.is_dir():
            for path in self.folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The training state of a checkpoint folder, after checking both files against the manifest.

    Raises:
        DamagedCheckpoint: naming the file and what is wrong with it.
    """
    folder = Path(path)
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
        for name in (MODEL_FILE, STATE_FILE):
            size = (folder / name).stat().st_size
            if size != files[name]["bytes"]:
                raise DamagedCheckpoint(f"{folder / name} holds {size} bytes of {files[name]['bytes']}")
            if _sha256(folder / name) != files[name]["sha256"]:
                raise DamagedCheckpoint(f"{folder / name} was changed since it was written (SHA-256 differs)")
        return torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{error.filename} is missing") from None
    except DamagedCheckpoint:
        raise
    except Exception as error:  # json, KeyError, torch's unpickler: whatever a damaged file provokes
        raise DamagedCheckpoint(f"{folder} cannot be read ({type(error).__name__}: {error})") from error


def _write_failure(path: Path, error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    what = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
    free = shutil.disk_usage(path.parent).free
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space" if full or free < 2**30 else "check the folder"
    return (
        f"could not write the checkpoint {path}: {what} ({free / 2**20:.0f} MiB free); older checkpoints "
        f"are whole: {remedy}, then continue with --resume"
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

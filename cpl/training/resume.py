"""Finding the checkpoint that a run continues from, and refusing one that it cannot continue exactly."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cpl.errors import CplError
from cpl.training.checkpoints import MANIFEST_FILE, STATE_FILE, CheckpointStore, read_state
from cpl.training.config import TrainConfig


class Resume:
    """The checkpoint to continue from.

    Args:
        config: the configuration of the run now.
        run_dir: where the run now writes.
        source: a run folder, a checkpoint folder, or True for ``run_dir``.
        allow_thread_change: take another thread count with a note instead of an error.

    Raises:
        CplError: there is no whole checkpoint, or the stored configuration differs.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        source: str | os.PathLike[str] | bool,
        allow_thread_change: bool,
    ) -> None:
        self.notes: list[str] = []
        self.path, self.state = find_state(
            run_dir if source is True else Path(str(source)), self.notes.append
        )
        self._allow_thread_change = allow_thread_change
        differing = config.differences(self.state["config"])
        if differing:
            raise CplError(
                f"{self.path} was trained with other settings ({'; '.join(differing)}): give the stored values, "
                "or start a new run with --output"
            )

    def load(self, ranks: int, device: str) -> tuple[dict[str, Any], list[str]]:
        """The state and what there is to say about it, once processes and device are known."""
        state, notes, threads = self.state, list(self.notes), torch.get_num_threads()
        if state["ranks"] != ranks:
            raise CplError(
                f"{self.path} was trained by {state['ranks']} processes, now there are {ranks}: start as many, or "
                f"fine-tune from its model file with --init"
            )
        if state["threads"] != threads:
            line = f"{self.path} was trained with {state['threads']} threads, now there are {threads}"
            if not self._allow_thread_change:
                raise CplError(
                    f"{line}, which changes the last bits: set OMP_NUM_THREADS={state['threads']}, or give "
                    "--allow-thread-change"
                )
            notes.append(f"{line}: not bit for bit the run it would have been")
        if state["device"] != device:
            notes.append(f"{self.path} was trained on {state['device']}, now on {device}: not bit for bit")
        if state["torch"] != str(torch.__version__):
            notes.append(
                f"{self.path} was trained with torch {state['torch']}, now {torch.__version__}: not bit for bit"
            )
        return state, notes


def find_state(source: Path, report: Callable[[str], object]) -> tuple[Path, dict[str, Any]]:
    """The newest whole checkpoint of a run folder, or the checkpoint folder itself, with its state."""
    if not source.is_dir():
        raise CplError(f"{source}: no such run folder to resume")
    if (source / STATE_FILE).exists() or (source / MANIFEST_FILE).exists():
        path, state = source, read_state(source)
    else:
        path, state = CheckpointStore(source).newest_whole(report)
    if state.get("format") != "cpl-training-state" or state.get("format_version") != 1:
        raise CplError(
            f"{path / STATE_FILE}: format {state.get('format')!r} version {state.get('format_version')!r} is not "
            "one this version of cpl can resume; fine-tune from its model file with --init"
        )
    return path, state


def stored_config(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration that the run in ``source`` was started with, writing where it now stands."""
    from cpl.training.presets import apply_overrides, parse_config

    path, state = find_state(Path(source), lambda _: None)  # what is damaged is reported when resuming
    values = dict(state["config"])
    values["output_dir"] = str(path.parent.parent)
    apply_overrides(values, overrides)
    return parse_config(values, source=str(source))

"""What can be known to be wrong before a run's first step."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from cpl.errors import CplError
from cpl.training.checkpoints import CheckpointStore
from cpl.training.config import TrainConfig


def check_devices(config: TrainConfig) -> None:
    """Raises CplError when the configuration asks for a device or a precision that is not there."""
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        built = "torch finds no GPU" if torch.version.cuda else "this torch is built without CUDA"
        raise CplError(f"device=cuda, but {built}: give device=cpu, or install a CUDA build of torch")
    if (
        config.mixed_precision == "bf16"
        and cuda
        and config.device != "cpu"
        and not torch.cuda.is_bf16_supported()
    ):
        name = torch.cuda.get_device_name()
        raise CplError(f"mixed_precision=bf16, but {name} has no bfloat16: give mixed_precision=no")


def check_no_run(run: Path, store: CheckpointStore) -> None:
    """Raises CplError when ``run`` already holds checkpoints, which a new run would overwrite."""
    paths = store.paths()
    if paths:
        raise CplError(
            f"{run} already holds a run ({paths[-1].name}): continue it with --resume, or give another folder "
            "with --output"
        )


def check_data(config: TrainConfig) -> None:
    """Raises CplError naming the first problems of the data; `cpl data check` lists them all."""
    from cpl.training import build

    problems = build.data_problems(config)
    if problems:
        more = f" (and {len(problems) - 3} more: see cpl data check)" if len(problems) > 3 else ""
        raise CplError("; ".join(problems[:3]) + more)


def check_prompts(config: TrainConfig, tasks: Sequence[str], num_prompts: int) -> None:
    """Raises CplError when tasks are to choose prompts by their numbers and there are not enough."""
    if config.loss.routing.task and len(tasks) > num_prompts:
        raise CplError(
            f"loss.routing.task gives each task a prompt, and {len(tasks)} tasks have {num_prompts}: give "
            f"model.num_prompts={len(tasks)}, or loss.routing.task=0"
        )


def check_disk(run: Path, model: nn.Module, config: TrainConfig) -> None:
    """Raises CplError when the checkpoints that will be kept cannot fit, or the folder cannot be written."""
    parent = _existing(run)
    if not os.access(parent, os.W_OK):
        raise CplError(
            f"{run} cannot be written: no permission in {parent}; give another folder with --output"
        )
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # model file + raw weights + EMA + AdamW's two moments; one more set than is kept, while it is written
    each = weights * (4 + (config.ema is not None))
    needed = each * (config.keep_checkpoints + 1) + 2 * weights
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise CplError(
            f"{run}: {config.keep_checkpoints} checkpoints need about {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB "
            "are free: free some space, lower keep_checkpoints, or give another folder with --output"
        )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failed write of ``path`` into a CplError that says what to do."""
    try:
        yield
    except OSError as error:
        raise CplError(
            f"could not write {path}: {error.strerror or error}; free some space, then continue with --resume"
        ) from error


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise CplError(f"{path} is a file, but the run needs a folder there; give another with --output")
    return path

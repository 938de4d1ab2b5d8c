"""``cpl train``: train a model by a preset, resume a run, or fine-tune a checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Any

HELP = "train a model by a preset"
EXTRA: str | None = "train"
NEEDS = ("accelerate", "pydantic", "yaml", "rich", "safetensors", "skimage", "tensorboard")
DESCRIPTION = """\
Train a restoration model. A PRESET is the name of one that comes with the package (demo, three_task,
five_task, cdd11, all_weather, weatherbench, smoke) or a YAML file; FIELD=VALUE changes its fields.
The run's checkpoints, logs and best.safetensors go to its folder (runs/PRESET, or --output).

Ctrl-C saves a checkpoint and stops; --resume continues as if it had never stopped.
Several GPUs: accelerate launch -m cpl train PRESET ...
"""
EPILOG = """\
examples:
  cpl train demo                                         a small model on bundled photos, on a CPU
  cpl train three_task ROOT=/data                        your folders below /data (docs/training.md)
  cpl train three_task ROOT=/data batch_size=4 optimizer.lr=1e-4 mixed_precision=bf16
  cpl train demo --dry-run                               print every field and its value
  cpl train --resume runs/demo                           continue a run
  cpl train mine.yaml --init model.safetensors --output runs/mine
"""

# What a shell reports for a process that a signal ended.
_SIGNALLED = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``cpl train``."""
    parser.add_argument(
        "preset",
        nargs="?",
        metavar="PRESET",
        help="a preset's name or a YAML file; not needed with --resume DIR",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="FIELD=VALUE", help="change a field, for example optimizer.lr=1e-4"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="more_overrides",
        help="the same, as an option",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="DIR",
        help="continue the run in its folder, or in DIR (a run, or one of its checkpoints)",
    )
    parser.add_argument("--init", metavar="CHECKPOINT", help="start from these weights (fine-tuning)")
    parser.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/PRESET)")
    parser.add_argument("--deterministic", action="store_true", help="same bits from run to run on a GPU too")
    parser.add_argument(
        "--allow-thread-change",
        action="store_true",
        help="resume at another thread count, without the promise of equal bits",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    _intermix(parser)


def _intermix(parser: argparse.ArgumentParser) -> None:
    """Let fields stand after options too (`cpl train demo --output x steps=100`), which argparse refuses."""
    plain = parser.parse_known_args

    def intermixed(args: Any = None, namespace: Any = None) -> Any:
        parser.parse_known_args = plain  # type: ignore[method-assign]  # it is called from within
        return parser.parse_known_intermixed_args(args, namespace)

    parser.parse_known_args = intermixed  # type: ignore[method-assign]


def run(args: argparse.Namespace) -> int:
    """Train; 0 when the last step is done, 130 after Ctrl-C, 143 after SIGTERM."""
    from cpl.training import Trainer

    config, resume = _config(args)
    if args.dry_run:
        print(config.to_yaml(), end="")
        return 0
    trainer = Trainer(config, resume=resume, allow_thread_change=args.allow_thread_change)
    result = trainer.run()
    if os.environ.get("RANK", "0") != "0":
        return _SIGNALLED + result.signal if result.signal else 0
    if result.signal:
        name = signal.Signals(result.signal).name
        print(f"stopped by {name} at step {result.step} of {result.steps}, which is saved", file=sys.stderr)
        print(f"continue with: cpl train --resume {result.run_dir}", file=sys.stderr)
        return _SIGNALLED + result.signal
    best = result.run_dir / "best.safetensors"
    model = best if best.exists() else result.run_dir / "last.safetensors"
    print(f"done: {result.steps} steps; restore photos with: cpl restore PHOTO --checkpoint {model}")
    return 0


def _config(args: argparse.Namespace) -> tuple[Any, str | bool]:
    """The configuration, and where to resume from (True: the run's own folder; False: a new run)."""
    from pathlib import Path

    from cpl.errors import CplError
    from cpl.training import load_preset, preset_names, stored_config

    preset, resume = args.preset, args.resume
    overrides = [*args.overrides, *args.more_overrides]
    if preset is not None and "=" in preset and not Path(preset).exists():
        overrides.insert(0, preset)  # `cpl train --resume DIR field=value`: there was no preset
        preset = None
    if isinstance(resume, str) and not Path(resume).exists():
        # `--resume` without a folder takes the next word, whatever it is.
        if "=" in resume:
            overrides.append(resume)
            resume = True
        elif preset is None and (resume in preset_names() or resume.endswith((".yaml", ".yml"))):
            preset, resume = resume, True
    if args.output is not None:
        overrides.append(f"output_dir={json.dumps(args.output)}")
    if args.init is not None:
        if resume:
            raise CplError("--init starts a new run and --resume continues one: give one of them")
        overrides.append(f"init={json.dumps(args.init)}")
    if args.deterministic:
        overrides.append("deterministic=true")
    if preset is not None:
        return load_preset(preset, overrides), resume
    if isinstance(resume, str):
        return stored_config(resume, overrides), resume
    raise CplError(f"which preset? cpl train PRESET, one of {', '.join(preset_names())}, or a YAML file")

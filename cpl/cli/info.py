"""``cpl info``: what is installed here, or what is in a checkpoint."""

from __future__ import annotations

import argparse
import json
import platform
from typing import Any

from cpl.cli.common import add_architecture_argument, told_architecture

HELP = "show versions, devices and what is installed, or what is in a checkpoint"
DESCRIPTION = """\
Show what this installation consists of: versions, the native core (and why it is missing, if it is),
devices, optional parts and how to get them, the models and which backend runs each kernel.

With CHECKPOINT: the architecture, size, configuration and origin of that file."""
EPILOG = """\
examples:
  cpl info
  cpl info runs/demo/best.safetensors"""
EXTRA = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="a checkpoint file to describe")
    add_architecture_argument(parser)


def run(args: argparse.Namespace) -> int:
    if args.checkpoint is None:
        _installation()
    else:
        _checkpoint(args.checkpoint, args)
    return 0


def _installation() -> None:
    import numpy
    import torch

    import cpl
    import cpl_kernels
    from cpl.cli import missing_modules
    from cpl.extras import EXTRAS, module_name, packages
    from cpl.models.provenance import commit

    rows = {
        "cpl": f"{cpl.__version__} (commit {commit()})",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
        "triton": _triton_version(),
        "numpy": numpy.__version__,
        "device": _devices(torch),
    }
    for extra in EXTRAS:
        absent = missing_modules([module_name(name) for name in packages().get(extra, ())])
        rows[f"extra [{extra}]"] = (
            f"{', '.join(absent)} missing: pip install 'cpl-kernels[{extra}]'" if absent else "installed"
        )
    _print(rows)
    print("\nmodels (parameters)")
    _print({f"  {name}": f"{count:,}" for name, count in _models().items()})
    print("\nkernels")
    cpl_kernels.show_config()


def _checkpoint(path: str, args: argparse.Namespace) -> None:
    from cpl.inference.load import load_model

    model, info = load_model(path, "cpu", **told_architecture(args))
    shown = dict(info)
    rows = {
        "file": str(shown.pop("path", path)),
        "architecture": shown.pop("architecture"),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "format": shown.pop("format", "unknown"),
    }
    config = shown.pop("config", {})
    shown.pop("task_names", None)  # in the configuration too
    for name, value in shown.items():
        if value not in (None, "", [], {}):
            rows[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    _print(rows)
    print("\nconfiguration")
    _print({f"  {name}": json.dumps(value) for name, value in config.items()})


def _models() -> dict[str, int]:
    """Parameters of every model, counted without allocating them."""
    import torch

    from cpl.models import MODELS, create_model

    counts = {}
    for name in MODELS:
        with torch.device("meta"):
            counts[name] = sum(p.numel() for p in create_model(name).parameters())
    return counts


def _devices(torch: Any) -> str:
    devices = [f"cpu ({torch.get_num_threads()} threads, {platform.machine()})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    return ", ".join(devices)


def _triton_version() -> str:
    try:
        import triton
    except ImportError as error:
        return f"missing ({error}); its kernels are left out: pip install triton (Linux)"
    return str(triton.__version__)


def _print(rows: dict[str, str]) -> None:
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")

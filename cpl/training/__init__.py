"""Training: presets, the trainer, and checkpoints that resume bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpl.training.config import TrainConfig
    from cpl.training.presets import load_preset, preset_names
    from cpl.training.resume import stored_config
    from cpl.training.trainer import RunResult, Trainer

__all__ = ["RunResult", "TrainConfig", "Trainer", "load_preset", "preset_names", "stored_config"]

_HOMES = {
    "TrainConfig": "config",
    "load_preset": "presets",
    "preset_names": "presets",
    "stored_config": "resume",
    "RunResult": "trainer",
    "Trainer": "trainer",
}


def __getattr__(name: str) -> Any:
    """The names above, imported when asked for: they need the extra packages of cpl-kernels[train]."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from cpl.extras import require

    for module in ("pydantic", "yaml"):
        require(module)
    return getattr(importlib.import_module(f"cpl.training.{_HOMES[name]}"), name)

"""What a run shows and records: a progress bar or plain lines, TensorBoard, and metrics.jsonl."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

METRICS_FILE = "metrics.jsonl"


class Reporter:
    """Rank 0's voice; with ``enabled=False`` (the other ranks) every method does nothing.

    On a terminal: a live bar with loss, PSNR, images/s and time left. Elsewhere (a pipe, a log
    file): the same as one line per :meth:`log` call.
    """

    def __init__(
        self, run: Path, *, first_step: int, steps: int, enabled: bool = True, console: Console | None = None
    ) -> None:
        self.enabled, self.steps, self.first_step = enabled, steps, first_step
        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._writer: Any = None
        self._started = time.monotonic()
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._metrics = run / METRICS_FILE
        keep_metrics(self._metrics, first_step)
        self._writer = SummaryWriter(
            str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None
        )
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("train", total=steps, completed=first_step, figures="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """``step`` updates are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, figures: dict[str, float], images_per_second: float) -> None:
        """Figures of training: shown, and written to TensorBoard under ``train/``."""
        if not self.enabled:
            return
        self._record("train", step, {**figures, "images_per_second": images_per_second})
        shown = f"loss {figures['loss']:.4f}  PSNR {figures['psnr']:.2f} dB  {images_per_second:.1f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, figures=shown)
        else:
            done = step - self.first_step
            left = (time.monotonic() - self._started) / max(done, 1) * (self.steps - step)
            self.say(f"step {step}/{self.steps}  {shown}  {clock(left)} left")

    def validation(self, step: int, figures: dict[str, float], shown: str) -> None:
        """Figures of a validation: shown as one line, and written to TensorBoard under ``validation/``."""
        if self.enabled:
            self._record("validation", step, figures)
            self.say(shown)

    def say(self, message: str) -> None:
        """One line, above the bar where there is one."""
        if self.enabled:
            self.console.print(message, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the bar and flush TensorBoard."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _record(self, kind: str, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; a last line cut short by a kill is left out."""
    records: list[dict[str, Any]] = []
    if os.path.exists(path):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


def keep_metrics(path: Path, last_step: int) -> None:
    """Drop what a killed run recorded after the checkpoint it resumes from."""
    from cpl.files import atomic_write

    records = read_metrics(path)
    if records:
        with atomic_write(path) as file:
            for record in records:
                if record["step"] <= last_step:
                    file.write((json.dumps(record) + "\n").encode())


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"

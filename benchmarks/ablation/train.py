"""An arm's training: a plain loop over the library's parts, which goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.ablation.arms import ARMS, Arm
from benchmarks.ablation.data import Crops, as_float
from cpl.files import atomic_write
from cpl.inference.routing import force_prompts
from cpl.losses import ContrastivePromptRegularization, RoutingLoss
from cpl.losses.pixel import PIXEL_LOSSES
from cpl.models import Restorer
from cpl.nn.prompt import SparsePromptModule
from cpl.training.allocator import keep_freed_memory
from cpl.training.optimizer import PromptAdamW
from cpl.training.routing import RoutingMeter
from cpl.training.schedule import CosineSchedule
from cpl.training.step import TrainingStep
from cpl.training.trainer import draw_seed

BATCH, RATE, WARMUP, EMA = 8, 1e-3, 50, 0.995
NEGATIVES = 1  # a step, of the arms with CPR
LOOKS = 10  # at the routers, over a run
SAVE_EVERY = 60.0  # seconds


def train(name: str, seed: int, crops: Crops, steps: int, work: Path) -> tuple[Restorer, dict[str, Any]]:
    """The averaged network, and what was seen on the way: seconds, and ``looks`` at the routers."""
    arm = ARMS[name]
    keep_freed_memory()
    run = _Run(arm, seed, crops, steps)
    kept = work / f"{name.replace(' ', '-')}-{seed}-{steps}.pt"
    if kept.exists():
        run.load(torch.load(kept, weights_only=True))
    work.mkdir(parents=True, exist_ok=True)
    saved = time.monotonic()
    for _ in track(range(run.step, run.steps), f"{name}, seed {seed}"):
        run.update()
        if time.monotonic() - saved > SAVE_EVERY or run.step == run.steps:
            with atomic_write(kept) as file:
                torch.save(run.state(), file)
            saved = time.monotonic()
    return run.averaged.module, {"seconds": run.seconds, "steps": run.steps, "looks": run.looks}  # type: ignore[return-value]


class _Run:
    def __init__(self, arm: Arm, seed: int, crops: Crops, steps: int) -> None:
        self.arm, self.seed, self.crops = arm, seed, crops
        self.steps = math.ceil(steps / len(crops.names)) if arm.only else steps
        self.order = crops.of(arm.only) if arm.only else torch.arange(len(crops.tasks))
        self.model = _network(arm, seed)
        criterion = None if arm.cpr is None else ContrastivePromptRegularization(**arm.cpr)
        routing = None if arm.routing is None else RoutingLoss(**arm.routing)
        negatives = 0 if criterion is None else NEGATIVES
        self.module = TrainingStep(self.model, criterion, negatives, routing, PIXEL_LOSSES[arm.pixel])
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(EMA))
        self.routed = [p for n, p in self.model.named_parameters() if ".linear_layer." in n or "prompt_param" in n]
        known = {id(p) for p in self.routed}
        self.rest = [p for p in self.model.parameters() if id(p) not in known]
        self.optimizer = PromptAdamW([{"params": self.rest}, {"params": self.routed}], lr=RATE, weight_decay=1e-4, fused=True)
        self.schedule = CosineSchedule(RATE, RATE / 100, min(WARMUP, self.steps // 10), (float(self.steps),))
        self.meter = RoutingMeter(len(crops.names))
        self.step, self.seconds = 0, 0.0
        self.looks: list[dict[str, float]] = []

    def update(self) -> None:
        started = time.perf_counter()
        degraded, target, tasks = self._batch()
        rate = self.schedule(self.step)
        for group, factor in zip(self.optimizer.param_groups, (1.0, self.arm.router_rate), strict=True):
            group["lr"] = rate * factor
        with self._prompts(tasks):
            output = self.module(degraded, target, draw_seed(self.seed, self.step, 0), False, tasks)
            output.loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.meter.add(output.logits, tasks)
        self.step += 1
        if self.step % max(1, self.steps // LOOKS) == 0:
            self.looks.append({"step": self.step, **self.meter.take(), **self._gradients()})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.model)
        self.seconds += time.perf_counter() - started

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.arange(self.step * BATCH, (self.step + 1) * BATCH) % len(self.order)
        rows = self.order[at]
        return as_float(self.crops.degraded[rows]), as_float(self.crops.target[rows]), self.crops.tasks[rows]

    @contextlib.contextmanager
    def _prompts(self, tasks: Tensor) -> Iterator[None]:
        with force_prompts(self.model, tasks) if self.arm.oracle else contextlib.nullcontext():
            yield

    def _gradients(self) -> dict[str, float]:
        """Norms relative to the parameters', the root mean square over a part's elements."""
        parts = {
            "router": [p for m in _prompt_modules(self.model) for p in m.linear_layer.parameters()],
            "prompts": [m.prompt_param for m in _prompt_modules(self.model)],
            "rest": self.rest,
        }
        return {
            f"gradient/{part}": math.sqrt(
                sum(float(p.grad.square().sum()) for p in values if p.grad is not None)
                / sum(p.numel() for p in values)
            )
            for part, values in parts.items()
            if values
        }

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(), "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds, "looks": self.looks,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.looks = state["step"], state["seconds"], state["looks"]


def _network(arm: Arm, seed: int) -> Restorer:
    """Whatever the arms have in common begins with the same weights."""
    torch.manual_seed(seed)
    common = ARMS["sparse"].network().state_dict()
    network = arm.network()
    own = network.state_dict()
    network.load_state_dict({n: common[n] if n in common and common[n].shape == v.shape else v for n, v in own.items()})
    return network


def _prompt_modules(model: nn.Module) -> list[SparsePromptModule]:
    return [module for module in model.modules() if isinstance(module, SparsePromptModule)]

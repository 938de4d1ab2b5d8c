"""An arm's training: a plain loop over the library's parts, which goes on where it was interrupted."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.ablation.arms import ARMS, Arm
from benchmarks.ablation.data import Crops, as_float
from benchmarks.ablation.told import tell
from cpl.errors import CplError
from cpl.files import atomic_write
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

OF_EACH_TASK = 2  # crops in a batch; a task that is trained alone has these only, in as many batches
RATE = 1e-3
WARMUP, AVERAGED = 0.03, 0.01  # parts of a run: the warm-up, and how far back the averaged weights reach
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
        run.load(torch.load(kept, weights_only=True), kept)
    work.mkdir(parents=True, exist_ok=True)
    saved = time.monotonic()
    for _ in track(range(run.step, run.steps), f"{name}, seed {seed}"):
        run.update()
        if time.monotonic() - saved > SAVE_EVERY or run.step == run.steps:
            with atomic_write(kept) as file:
                torch.save(run.state(), file)
            saved = time.monotonic()
    seen = {
        "seconds": run.seconds,
        "crops": crops.made,
        "parameters": sum(p.numel() for p in run.model.parameters()),
    }
    return run.averaged.module, {**seen, "looks": run.looks}  # type: ignore[return-value]


class _Run:
    def __init__(self, arm: Arm, seed: int, crops: Crops, steps: int) -> None:
        self.arm, self.seed, self.crops = arm, seed, crops
        self.steps = steps
        shuffle = torch.Generator().manual_seed(seed)
        rows = {name: crops.of(name) for name in crops.names}
        rows = {name: of[torch.randperm(len(of), generator=shuffle)] for name, of in rows.items()}
        self.rows = [of for name, of in rows.items() if arm.only in (None, name)]
        self.model = _network(arm, seed)
        criterion = None if arm.cpr is None else ContrastivePromptRegularization(**arm.cpr)
        routing = None if arm.routing is None else RoutingLoss(**arm.routing)
        negatives = 0 if criterion is None else NEGATIVES
        self.module = TrainingStep(self.model, criterion, negatives, routing, PIXEL_LOSSES[arm.pixel])
        self.averaged = AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / max(2.0, AVERAGED * steps))
        )
        self.routed = [
            p for n, p in self.model.named_parameters() if ".linear_layer." in n or "prompt_param" in n
        ]
        known = {id(p) for p in self.routed}
        self.rest = [p for p in self.model.parameters() if id(p) not in known]
        self.optimizer = PromptAdamW(
            [{"params": self.rest}, {"params": self.routed}], lr=RATE, weight_decay=1e-4, fused=True
        )
        self.schedule = CosineSchedule(RATE, RATE / 100, math.ceil(WARMUP * steps), (float(steps),))
        self.meter = RoutingMeter(len(crops.names))
        self.step, self.seconds = 0, 0.0
        self.looks: list[dict[str, float]] = []

    def update(self) -> None:
        started = time.perf_counter()
        degraded, target, tasks = self._batch()
        rate = self.schedule(self.step)
        for group, factor in zip(self.optimizer.param_groups, (1.0, self.arm.router_rate), strict=True):
            group["lr"] = rate * factor
        self.module.teacher = self.arm.oracle or self.step < round(self.arm.teacher * self.steps)
        with tell(self.model, tasks):
            output = self.module(degraded, target, draw_seed(self.seed, self.step, 0), False, tasks)
        output.loss.backward()
        self.meter.add(output.logits, tasks)
        self.step += 1
        if self.step % max(1, self.steps // LOOKS) == 0:
            self.looks.append({"step": self.step, **self.meter.take(), **self._gradients()})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.model)
        self.seconds += time.perf_counter() - started

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        at = torch.arange(self.step * OF_EACH_TASK, (self.step + 1) * OF_EACH_TASK)
        rows = torch.cat([of[at % len(of)] for of in self.rows])
        return as_float(self.crops.degraded[rows]), as_float(self.crops.target[rows]), self.crops.tasks[rows]

    def _gradients(self) -> dict[str, float]:
        """The root mean square of a part's gradients."""
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
            "optimizer": self.optimizer.state_dict(), "meter": self.meter.state(), "step": self.step,
            "seconds": self.seconds, "looks": self.looks, "settings": self.settings,
        }  # fmt: skip

    @property
    def settings(self) -> str:
        return repr((self.arm, self.crops.made, OF_EACH_TASK, RATE, WARMUP, AVERAGED, NEGATIVES))

    def load(self, state: dict[str, Any], path: Path) -> None:
        if state.get("settings") != self.settings:
            raise CplError(
                f"{path}: was made with other settings or crops; remove it, or give another --work"
            )
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.meter.load(state["meter"])
        self.step, self.seconds, self.looks = state["step"], state["seconds"], state["looks"]


def _network(arm: Arm, seed: int) -> Restorer:
    """Whatever the arms have in common begins with the same weights."""
    torch.manual_seed(seed)
    common = ARMS["sparse"].network().state_dict()
    network = arm.network()
    own = network.state_dict()
    network.load_state_dict(
        {n: common[n] if n in common and common[n].shape == v.shape else v for n, v in own.items()}
    )
    return network


def _prompt_modules(model: nn.Module) -> list[SparsePromptModule]:
    return [module for module in model.modules() if isinstance(module, SparsePromptModule)]
